"""The version of what travels, and the errors where the two ends differ.

What every version keeps, so that each end can name the other's: a payload is the pickle of a tuple that begins with the
wire version, the version of rhapsody-core, the session's uid and the items, each of which begins with a task's uid; a
frame is its length, the wire version and the pickle of a tuple that begins with a task's uid.
"""

from __future__ import annotations

from typing import Final

from rhapsody.errors import ProtocolError
from rhapsody.version import __version__

WIRE_VERSION: Final = 3  # of payloads and frames; a change that the other end would misread raises it
CORE_VERSION: Final = __version__
UNVERSIONED: Final = 0x0580  # the first two bytes of a pickle, where a frame without a version has them


def other_batch(version: object, core: object) -> ProtocolError:
    """Return the error of a batch that was encoded by another version."""
    return ProtocolError(
        f"the batch has wire version {_shown(version)} (rhapsody-core {core}), this worker reads {ours()}; {_CURE}"
    )


def other_frame(version: int) -> ProtocolError:
    """Return the error of a frame that a worker of another version wrote."""
    return ProtocolError(f"the worker's frame has wire version {_shown(version)}, this program reads {ours()}; {_CURE}")


def unknown_kind(kind: object, core: object) -> ProtocolError:
    """Return the error of a task of a kind that this worker does not know."""
    return ProtocolError(
        f"rhapsody-core {core} sent a task of kind {kind!r}, which this worker, {ours()}, does not know; {_CURE}"
    )


def unknown_frame(kind: object) -> ProtocolError:
    """Return the error of a frame of this wire version, and of a kind that this program does not know."""
    return ProtocolError(
        f"the worker's frame has wire version {WIRE_VERSION} and the kind {kind!r}, which this program, {ours()}, does "
        f"not know; {_CURE}"
    )


def ours() -> str:
    """Name this end's versions."""
    return f"wire version {WIRE_VERSION} (rhapsody-core {CORE_VERSION})"


_CURE: Final = "install the same rhapsody-core for the program and for the workers"


def _shown(version: object) -> str:
    return "none" if version == UNVERSIONED or not isinstance(version, int) else str(version)
