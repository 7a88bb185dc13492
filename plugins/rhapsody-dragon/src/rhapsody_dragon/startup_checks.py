"""What the start of a runtime of ours needs of the machine and its environment, and how a failed one is explained.

The machine is checked before the start costs time: what Dragon lacks it says after seconds, in a traceback of its
own, or not at all.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import secrets
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple

from rhapsody.errors import BackendStartError

GIBIBYTE: Final = 2**30
#: Open files that one process of a runtime needs (measured: its services have 33 before the first worker; each worker
#: and each job takes some more).
FILES: Final = 64
#: Bytes that the runtime writes to in /dev/shm when idle (measured: 73 MB). Each of its pools must fit beside them.
USED: Final = 96 * 2**20
#: The Pythons that dragonhpc 0.15 has wheels for.
PYTHONS: Final = "3.10 to 3.13"
#: Variables that describe another runtime.
FOREIGN: Final = ("DRAGON_ATTACH_TOKEN", "DRAGON_ATTACH_DIR", "DRAGON_RT_UID")
_SHM: Final = "/dev/shm"  # noqa: S108 - where shm_open(3) puts its objects


class Part(NamedTuple):
    """How one part of a runtime is named to the user."""

    waits_for: str  # as the log says it
    name: str  # where it has failed
    remedy: str  # what to do then


PARTS: Final = {
    "launcher": Part(
        "the launcher of a Dragon runtime",
        "its launcher process (`dragon`)",
        "check that `python -m dragon.launcher.launch_selector --version` runs in this environment",
    ),
    "services": Part(
        "the services of the Dragon runtime",
        "its local and global services",
        "check that /dev/shm has free space, and that no other limit of the machine is met",
    ),
    "head": Part(
        "the head process of the Dragon runtime",
        "its head process",
        "the machine may be too busy: give it more time, or fewer processes beside it",
    ),
    "attach": Part(
        "the attachment to the Dragon runtime",
        "the attachment of this process to it",
        "check DRAGON_ATTACH_TOKEN and DRAGON_ATTACH_DIR, and that the runtime runs as the same user",
    ),
}


def start_error(part: str, detail: str) -> BackendStartError:
    """Make the error of a runtime that did not start, naming the part that failed and the remedy."""
    return _error(f"{PARTS[part].name} failed ({detail})", PARTS[part].remedy)


def _error(problem: str, remedy: str) -> BackendStartError:
    return BackendStartError(f"the Dragon runtime did not start: {problem}. Remedy: {remedy}")


def check_installed() -> None:
    """Raise BackendStartError if Dragon is not installed."""
    if importlib.util.find_spec("dragon") is None:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise _error(
            f"dragonhpc is not installed for this Python {here}",
            f"pip install dragonhpc, which has wheels for Python {PYTHONS} on Linux; use one of these",
        )


def check_machine() -> None:
    """Raise BackendStartError for what a runtime of one node needs and is missing here, with the remedy."""
    pools = [_number("DRAGON_DEFAULT_SEG_SZ", 4 * GIBIBYTE), _number("DRAGON_INF_SEG_SZ", GIBIBYTE), GIBIBYTE]
    _check_shared_memory(max(pools) + USED)
    _check_address_space(sum(pools) + GIBIBYTE)  # all of them are mapped (measured: 7 GiB suffice, 6 do not)
    _check_files()
    _check_host_name()


def _number(name: str, otherwise: int) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        return otherwise


def _check_shared_memory(needed: int) -> None:
    try:
        state = os.statvfs(_SHM)
    except OSError as error:
        raise _error(f"{_SHM} cannot be used ({error})", "mount a tmpfs there") from error
    free = state.f_bavail * state.f_frsize
    if free < needed:
        gibibytes = 1 + -(-needed // GIBIBYTE)
        raise _error(
            f"{_SHM} has {free / GIBIBYTE:.2f} GiB free, and Dragon needs {needed / GIBIBYTE:.2f} GiB, most of it "
            "reserved only",
            f"start the container with --shm-size={gibibytes}g, or as root `mount -o remount,size={gibibytes}g {_SHM}`,"
            " or set DRAGON_DEFAULT_SEG_SZ to fewer bytes",
        )


def _check_address_space(needed: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise _error(
            f"the address space of a process is limited to {limit / GIBIBYTE:.2f} GiB, and Dragon's need "
            f"{needed / GIBIBYTE:.2f} GiB, most of it shared memory that is reserved only",
            "`ulimit -v unlimited` in the shell that starts the script",
        )


def _check_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < FILES:
        raise _error(
            f"a process may have {soft} open files, and Dragon's need {FILES}",
            f"`ulimit -n {FILES if most >= FILES else 4096}` in the shell that starts the script"
            + ("" if most >= FILES else f", for which the hard limit, which is {most}, must be raised first"),
        )


def _check_host_name() -> None:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None, socket.AF_INET)
    except OSError as error:
        raise _error(
            f"the name of this host, {name!r}, has no address ({error})",
            f"add a line `127.0.0.1 {name}` to /etc/hosts, or start the container with --hostname",
        ) from error


def launcher_environment(attach_dir: Path, telemetry: bool) -> dict[str, str]:
    """Return the user's environment, with Dragon's settings but nothing that belongs to another runtime.

    Dragon's launcher makes the number of the runtime out of the address that leads outside; where the loopback is all
    that there is (0.15) it makes none, and the descriptor by which to attach lacks it. So a random one is given, which
    the launcher replaces by its own where it can.
    """
    is_nested = "DRAGON_GS_QD" in os.environ  # we run somewhere inside a runtime, or below a program that is attached
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in FOREIGN and not (is_nested and key.startswith("DRAGON_"))
    }
    if not telemetry:
        environment["DRAGON_TELEMETRY_LEVEL"] = "0"
    return environment | {"DRAGON_ATTACH_DIR": str(attach_dir), "DRAGON_RT_UID": str(secrets.randbits(63))}
