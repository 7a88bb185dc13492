"""The parts of a Dragon runtime, as the user is told of them: what a start waits for, what failed, and the remedy."""

from __future__ import annotations

from typing import Final, NamedTuple

from rhapsody.errors import BackendStartError


class Part(NamedTuple):
    """What the user is told of one part.

    Attributes:
        waits_for: what is being waited for, as the log says it.
        name: what it is called where it has failed.
        remedy: what to do then.
    """

    waits_for: str
    name: str
    remedy: str


PARTS: Final = {
    "launcher": Part(
        "the launcher of a Dragon runtime",
        "its launcher process (`dragon`)",
        "check that `python -m dragon.launcher.launch_selector --version` runs in this environment",
    ),
    "services": Part(
        "the services of the Dragon runtime",
        "its local and global services",
        "check that /dev/shm has free space (Dragon maps 6 GiB, and uses about 100 MB when idle; in a container raise "
        "--shm-size; DRAGON_DEFAULT_SEG_SZ sets the size)",
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
    return BackendStartError(
        f"the Dragon runtime did not start: {PARTS[part].name} failed ({detail}). Remedy: {PARTS[part].remedy}"
    )
