"""The allocation that this program runs in: of Slurm, Flux, PBS or LSF, by the variables that they set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

_PART: Final = re.compile(r"([^,\[]*)(?:\[([^\]]*)\])?([^,]*)(?:,|$)")  # of a list of Slurm's: node[1-3,7]


@attrs.frozen(kw_only=True)
class Allocation:
    """What a batch system gave to the job that this program is part of.

    Attributes:
        system: the batch system, as it writes its name.
        job: its id there.
        nodes: how many there are.
        hosts: their names; empty where the batch system does not say.
        cores: of this node; None where it does not say.
        gpus: of this node; None likewise.
        copies: how many copies of this program the batch system started, one for each node perhaps.
    """

    system: str
    job: str
    nodes: int
    hosts: tuple[str, ...] = ()
    cores: int | None = None
    gpus: int | None = None
    copies: int = 1

    def __str__(self) -> str:
        """Return a line such as `Slurm job 7: 2 nodes (node1, node2), 4 cores and 2 GPUs on this one`."""
        shown = f" ({', '.join(self.hosts[:4])}{', ...' if len(self.hosts) > 4 else ''})" if self.hosts else ""
        here = [f"{n} {what}" for n, what in ((self.cores, "cores"), (self.gpus, "GPUs")) if n is not None]
        which = f", {' and '.join(here)} on this one" if here else ""
        return f"{self.system} job {self.job}: {self.nodes} node{'s' if self.nodes > 1 else ''}{shown}{which}"


def current_allocation(environment: Mapping[str, str] | None = None) -> Allocation | None:
    """Return the allocation that this program runs in; None on a login node, or a machine without a batch system."""
    given = os.environ if environment is None else environment
    if job := given.get("SLURM_JOB_ID"):
        hosts = tuple(expand(given.get("SLURM_JOB_NODELIST", "")))
        cores = _number(given.get("SLURM_CPUS_ON_NODE")) or _number(given.get("SLURM_JOB_CPUS_PER_NODE"))
        nodes = _number(given.get("SLURM_JOB_NUM_NODES")) or len(hosts)
        copies = _number(given.get("SLURM_STEP_NUM_TASKS")) or 1
        gpus = _number(given.get("SLURM_GPUS_ON_NODE"))
        return _made("Slurm", job, nodes=nodes, hosts=hosts, cores=cores, gpus=gpus, copies=copies)
    if job := given.get("FLUX_JOB_ID"):
        nodes, copies = (_number(given.get(name)) or 1 for name in ("FLUX_JOB_NNODES", "FLUX_JOB_SIZE"))
        return _made("Flux", job, nodes=nodes, copies=copies)
    if job := given.get("PBS_JOBID"):
        lines = _lines(given.get("PBS_NODEFILE"))
        hosts = tuple(dict.fromkeys(lines))
        cores = _number(given.get("NCPUS")) or lines.count(hosts[0]) if hosts else _number(given.get("NCPUS"))
        return _made("PBS", job, nodes=len(hosts) or _number(given.get("PBS_NUM_NODES")), hosts=hosts, cores=cores)
    if job := given.get("LSB_JOBID"):
        words = given.get("LSB_MCPU_HOSTS", "").split()
        counts = dict(zip(words[::2], map(int, words[1::2]), strict=False))
        return _made("LSF", job, nodes=len(counts), hosts=tuple(counts), cores=next(iter(counts.values()), None))
    return None


def _made(
    system: str,
    job: str,
    *,
    nodes: int | None,
    hosts: tuple[str, ...] = (),
    cores: int | None = None,
    gpus: int | None = None,
    copies: int = 1,
) -> Allocation:
    return Allocation(system=system, job=job, nodes=nodes or 1, hosts=hosts, cores=cores, gpus=gpus, copies=copies)


def expand(names: str) -> Iterator[str]:
    """Yield the hosts of a list as Slurm writes it: `login,node[01-03,7]`."""
    for prefix, ranges, suffix in _PART.findall(names):
        if not ranges:
            if prefix or suffix:
                yield prefix + suffix
            continue
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1):
                yield f"{prefix}{number:0{len(first)}d}{suffix}"


def _number(text: str | None) -> int | None:
    """Return the number with which a text begins: Slurm writes `4(x2)`."""
    match = re.match(r"\d+", text or "")
    return int(match[0]) if match else None


def _lines(path: str | None) -> list[str]:
    try:
        return Path(path).read_text().split() if path else []
    except OSError:  # it is on another node
        return []
