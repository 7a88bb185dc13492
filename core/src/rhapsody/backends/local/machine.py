"""What the program may use of this machine: its cores, its memory and its GPUs."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_ANSWER: Final = 10.0  # seconds that nvidia-smi has to answer
_NO_LIMIT: Final = 2**60  # bytes: what stands for no limit in version 1 of cgroups is beyond it


def cores(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return how many processor cores the program may use: of its affinity, and of the quota of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [count * 1.0]
    for folder in _folders("cpu", root, membership):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / f"cpu.cfs_{word}_us").strip() for word in ("quota", "period")
        ]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return max(1, int(min(quotas)))


def memory(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """Return the bytes of memory that the program may use: of its cgroup, or of the machine; None if nothing says."""
    limits = []
    if "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _folders("memory", root, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):
            word = _read(folder / name).strip()
            if word.isdecimal() and int(word) < _NO_LIMIT:
                limits.append(int(word))
    return min(limits, default=None)


def gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the GPUs that the program may use, by the names that CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES takes.

    Where neither is set, nvidia-smi is asked, if it is there.
    """
    environment = os.environ if environment is None else environment
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if variable in environment:
            return _visible(environment[variable])
    return _asked()


def _visible(value: str) -> tuple[str, ...]:
    """Read a list of devices; as for the drivers, the first that is none ends it."""
    found: list[str] = []
    for name in map(str.strip, value.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        found.append(name)
    return tuple(found)


@functools.cache
def _asked() -> tuple[str, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        answer = subprocess.run(
            [command, "--list-gpus"], capture_output=True, text=True, timeout=_ANSWER, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):  # a driver that does not work has no GPU to give
        return ()
    return tuple(str(number) for number, _ in enumerate(line for line in answer.splitlines() if line.startswith("GPU")))


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Go through the folders of the program's cgroup and of those around it, in both versions of cgroups."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top = root
        elif controller in controllers.split(","):
            top = root / controller
        else:
            continue
        folder = top / path.lstrip("/")
        yield folder
        while folder != top and top in folder.parents:
            folder = folder.parent
            yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
