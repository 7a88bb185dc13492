"""The processors and GPUs of the runtime's nodes, counted: workers and jobs take them from here and give them back."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rhapsody.plugin import BackendContext, ComputeTask

from .runtime import DragonRuntime
from .task_options import ranks_of

_TINY: Final = 1e-9  # of a GPU: three thirds are a whole one


class Node(NamedTuple):
    """One node: its host name, how many processors it has, and the numbers of its GPUs."""

    host: str
    processors: int
    gpus: tuple[int, ...] = ()


class Seat(NamedTuple):
    """Where one rank runs: the number of the node, and the GPUs that are the rank's own, or of which it has a share."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(eq=False)
class Claim:
    """What one task or batch wants, and, once it is granted, where it runs."""

    ranks: int = 1  # processes
    cores: int = 1  # processors for each of them, on one node
    gpus: float = 0  # for each of them, on the same node; a fraction below 1 is a share of one
    prefer: int | None = None  # number of a node; None for the one that has the most free
    granted: Callable[[], None] = lambda: None  # called, with no lock held, by whichever thread makes room
    seats: tuple[Seat, ...] = ()  # of the ranks; empty until it is granted


class Processors:
    """Grants claims in the order in which they came, so that one for many ranks is not overtaken for ever.

    `count` is how many processes run at the same time, where that is not the number of processors.
    """

    def __init__(self, nodes: Sequence[Node], count: int | None = None) -> None:
        self.nodes = resized(nodes, count)
        self.count: Final = sum(node.processors for node in self.nodes)
        self._free = [node.processors for node in self.nodes]
        self._gpus = [dict.fromkeys(node.gpus, 1.0) for node in self.nodes]  # the free share of each, by its number
        self._waiting: deque[Claim] = deque()
        self._lock = threading.Lock()

    @property
    def is_one_node(self) -> bool:
        """Whether all of them are on this node."""
        return len(self.nodes) == 1

    def can_ever_grant(self, claim: Claim) -> bool:
        """Whether idle nodes have room for it."""
        gpus = [dict.fromkeys(node.gpus, 1.0) for node in self.nodes]
        return bool(_seats(claim, [node.processors for node in self.nodes], gpus))

    def claim(self, claim: Claim) -> bool:
        """Ask for seats. Returns whether they are there at once; `granted` is called also then."""
        with self._lock:
            self._waiting.append(claim)
        self._grant()
        return bool(claim.seats)

    def release(self, claim: Claim) -> None:
        """Give back what was granted, or withdraw what was not. May be called again."""
        with self._lock:
            seats, claim.seats = claim.seats, ()
            if claim in self._waiting:
                self._waiting.remove(claim)
            for seat in seats:
                self._free[seat.node] += claim.cores
                for gpu in seat.gpus:
                    self._gpus[seat.node][gpu] += min(claim.gpus, 1)
        self._grant()

    def _grant(self) -> None:
        granted: list[Claim] = []
        with self._lock:
            while self._waiting and (seats := _seats(self._waiting[0], self._free, self._gpus)):
                claim = self._waiting.popleft()
                claim.seats = seats
                for seat in seats:
                    self._free[seat.node] -= claim.cores
                    for gpu in seat.gpus:
                        self._gpus[seat.node][gpu] -= min(claim.gpus, 1)
                granted.append(claim)
        for claim in granted:
            claim.granted()


class Site(NamedTuple):
    """Where a backend runs its tasks."""

    context: BackendContext
    runtime: DragonRuntime  # once it is lost, nothing of it is touched
    processors: Processors  # tasks take them for as long as they run
    folder: str  # in which tasks run that do not say


def claim_of(task: ComputeTask, granted: Callable[[], None] = lambda: None) -> Claim:
    """Return what a task asks for."""
    resources = task.resources
    if resources is None:
        return Claim(ranks_of(task), granted=granted)
    return Claim(ranks_of(task), resources.cores_per_rank, resources.gpus_per_rank, granted=granted)


def _seats(claim: Claim, free: Sequence[int], gpus: Sequence[Mapping[int, float]]) -> tuple[Seat, ...]:
    """Place ranks: as many as fit on the emptiest node, then on the next one. Empty if there is no room for all."""
    order = sorted(range(len(free)), key=lambda node: (node != claim.prefer, -free[node]))
    seats: list[Seat] = []
    for node in order:
        left = dict(gpus[node])
        for _ in range(min(free[node] // claim.cores, claim.ranks - len(seats))):
            chosen = _gpus_of(claim.gpus, left)
            if chosen is None:
                break
            for gpu in chosen:
                left[gpu] -= min(claim.gpus, 1)
            seats.append(Seat(node, chosen))
    return tuple(seats) if len(seats) == claim.ranks else ()


def _gpus_of(wanted: float, left: Mapping[int, float]) -> tuple[int, ...] | None:
    """Return the GPUs of one rank: whole ones, or the one to share that has the least left; None if none is free."""
    if not wanted:
        return ()
    wide = [gpu for gpu, share in left.items() if share > min(wanted, 1) - _TINY]
    if wanted < 1:
        return (min(wide, key=left.__getitem__),) if wide else None
    return tuple(wide[: int(wanted)]) if len(wide) >= wanted else None


def resized(nodes: Sequence[Node], count: int | None) -> tuple[Node, ...]:
    """Return the nodes with `count` processors in total: as many of them on each as its share, as far as it goes."""
    if count is None:
        return tuple(nodes)
    total = sum(node.processors for node in nodes)
    shares = [count * node.processors // total for node in nodes]
    for number in range(count - sum(shares)):
        shares[number % len(nodes)] += 1
    return tuple(node._replace(processors=share) for node, share in zip(nodes, shares, strict=True))


def runtime_nodes() -> list[Node]:
    """Ask Dragon for the nodes of the runtime; of a single one, only the processors that this process may use count."""
    from dragon.native.machine import Node as Machine
    from dragon.native.machine import System

    machines = [Machine(uid) for uid in System().nodes]
    nodes = [Node(machine.hostname, machine.num_cpus, tuple(machine.gpus or ())) for machine in machines]
    if len(nodes) == 1:
        return [nodes[0]._replace(processors=len(os.sched_getaffinity(0)))]
    return nodes


def policy_of(node: Node, gpus: Sequence[int], is_one_node: bool) -> Any:
    """Return Dragon's policy for a process on a node with these GPUs; None leaves the only node to Dragon."""
    if is_one_node and not gpus:
        return None
    from dragon.infrastructure.policy import Policy

    return Policy(placement=Policy.Placement.HOST_NAME, host_name=node.host, gpu_affinity=list(gpus))
