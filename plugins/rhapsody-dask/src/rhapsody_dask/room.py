"""The threads, the memory and the GPUs of a Dask worker, shared out among the batches that run on it.

Dask runs as many batches on a worker as it has threads, whatever each of them uses. A batch of several cores takes the
threads of others, which wait meanwhile. Of GPUs Dask counts the sum, and here each batch gets its own.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Final

from distributed import Worker

from .options import GPU

_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_TINY: Final = 1e-9  # of a GPU: three thirds are a whole one


class WorkerRoom:
    """What is free of one worker; who asks first gets first.

    Args:
        cores: threads of the worker.
        memory: bytes of its limit.
        devices: names of its GPUs.
    """

    def __init__(self, cores: int, memory: int, devices: Sequence[str] = ()) -> None:
        self._whole = cores, memory
        self._cores, self._memory = cores, memory
        self._devices = devices
        self._free = [1.0] * len(devices)  # the share of each that is free
        self._large = 0  # batches that hold, or wait for, memory, GPUs or more than one thread
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, cores: int, memory: int, gpus: float = 0) -> Iterator[dict[str, str]]:
        """Wait for threads, memory and GPUs, and hold them; yields the variables that name the GPUs.

        Raises:
            RuntimeError: the worker has less than that.
        """
        if cores > self._whole[0] or memory > self._whole[1]:
            raise RuntimeError(
                f"the batch needs {cores} threads and {memory} bytes of memory of its worker, which has "
                f"{self._whole[0]} and {self._whole[1]}"
            )
        if self._devices and ceil(gpus) > len(self._devices):
            raise RuntimeError(f"the batch needs {gpus:g} GPUs, and its worker sees {', '.join(self._devices)}")
        is_large = cores > 1 or memory > 0 or gpus > 0
        gpus = gpus if self._devices else 0
        ticket = object()
        with self._changed:
            self._large += is_large
            self._waiting.append(ticket)
            # Without a large one nobody waits: a task that left its thread to others runs beside them.
            self._changed.wait_for(
                lambda: (
                    not self._large
                    or (
                        self._waiting[0] is ticket
                        and cores <= self._cores
                        and memory <= self._memory
                        and self._choose(gpus) is not None
                    )
                )
            )
            self._waiting.remove(ticket)
            chosen = self._choose(gpus) or ()
            self._change(-cores, -memory, chosen, -min(gpus, 1))
        try:
            names = ",".join(self._devices[number] for number in chosen)
            yield dict.fromkeys(_VARIABLES, names) if chosen else {}
        finally:
            with self._changed:
                self._large -= is_large
                self._change(cores, memory, chosen, min(gpus, 1))

    def _choose(self, gpus: float) -> Sequence[int] | None:
        """Return the numbers of whole GPUs, or of the one to share that has the least left; None while none is free."""
        if not gpus:
            return ()
        wide = [number for number, share in enumerate(self._free) if share > min(gpus, 1) - _TINY]
        if gpus < 1:
            return [min(wide, key=self._free.__getitem__)] if wide else None
        count = ceil(gpus - _TINY)
        return wide[:count] if len(wide) >= count else None

    def _change(self, cores: int, memory: int, devices: Sequence[int], share: float) -> None:
        self._cores += cores
        self._memory += memory
        for number in devices:
            self._free[number] += share
        self._changed.notify_all()


_rooms: dict[str, WorkerRoom] = {}  # by address: threads of one process can be several workers
_own: set[str] = set()  # addresses
_lock = threading.Lock()


def room_of(worker: Worker) -> WorkerRoom:
    """Return the room of a worker, which all backends on its cluster share."""
    with _lock:
        room = _rooms.get(worker.address)
        if room is None:
            # Dask's workers are daemonic, and such may have no children; a task may want to use multiprocessing.
            multiprocessing.current_process().daemon = False
            memory = worker.memory_manager.memory_limit or 0
            place = worker.name if worker.address in _own and isinstance(worker.name, int) else 0
            devices = devices_of(worker.state.total_resources.get(GPU, 0), os.environ, place)
            room = _rooms[worker.address] = WorkerRoom(worker.state.nthreads, memory, devices)
        return room


def belong(worker: Worker) -> None:
    """Note that a worker is one of the backend's own cluster, whose workers share the GPUs of this machine."""
    _own.add(worker.address)


def devices_of(amount: float, environment: Mapping[str, str], place: int) -> list[str]:
    """Return the names of a worker's GPUs: those that its variables name, otherwise numbers.

    Args:
        amount: of the Dask resource; a worker that offers none has no GPUs to give.
        environment: the worker's own.
        place: of the worker, from 0, among those that share a machine's GPUs, as many each.
    """
    count = ceil(amount)
    first = place * count
    for name in _VARIABLES:
        if named := [each.strip() for each in environment.get(name, "").split(",") if each.strip()]:
            return named[first : first + count] or named[:count]  # the latter where each worker has its own variable
    return [str(number) for number in range(first, first + count)]
