"""What one task gets of this machine: variables that name its GPUs and its cores, and a launcher for its ranks."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rhapsody.model.resources import Resources
from rhapsody.protocol.batch import TaskBatch
from rhapsody.protocol.command import Command

LAUNCHERS: Final = ("mpiexec", "mpirun", "srun")
_DEVICES: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# Open MPI binds the first rank of every job to the first core, where the ranks of several jobs would meet, and counts
# cores by itself; of both, this backend has already seen to it.
_UNBOUND: Final = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
# Open MPI refuses to start anything as root, who most containers' user is, unless both of its switches are set.
_AS_ROOT: Final = dict.fromkeys(
    [f"{name}_ALLOW_RUN_AS_ROOT{confirm}" for name in ("OMPI", "PRTE") for confirm in ("", "_CONFIRM")], "1"
)


def environments_of(batch: TaskBatch, gpus: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the variables of those tasks of a batch that ask for resources, by uid.

    Args:
        batch: with the numbers of the GPUs that its tasks were given.
        gpus: the names of this machine's.
    """
    return {
        task.uid: variables_of(task.resources, [gpus[number] for number in batch.gpus.get(task.uid, ())], bool(gpus))
        for task in batch.tasks
        if task.resources is not None
    }


def variables_of(resources: Resources, gpus: Sequence[str], has_gpus: bool) -> dict[str, str]:
    """Return the variables of one task.

    Args:
        resources: what it asked for.
        gpus: the names of those that it was given; one of which several ranks have a share comes several times.
        has_gpus: whether the machine has any: then a task that was given none sees none.
    """
    variables = dict.fromkeys(_THREADS, str(resources.cores_per_rank))
    if has_gpus:
        variables |= dict.fromkeys(_DEVICES, ",".join(dict.fromkeys(gpus)))
    if resources.ranks > 1:
        variables |= _UNBOUND if os.geteuid() else _UNBOUND | _AS_ROOT
    return variables


@functools.cache
def launcher() -> str | None:
    """Return the path of what starts the ranks of a task; None where there is none on PATH, nor beside Python."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return next((found for name in LAUNCHERS if (found := shutil.which(name, path=path))), None)


def in_ranks(command: Command, ranks: int, start: str) -> Command:
    """Return the command that runs another in several ranks.

    Args:
        command: of each rank.
        ranks: how many.
        start: the launcher.
    """
    argv: Sequence[str] = ("/bin/sh", "-c", *command.argv) if command.shell else command.argv
    return command._replace(argv=(start, "-n", str(ranks), *argv), shell=False)
