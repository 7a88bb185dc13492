"""Finds what a hook of a backend waits for: the line of its code at which it stands."""

from __future__ import annotations

import asyncio
import linecache
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import rhapsody

_LIBRARY: Final = str(Path(os.__file__).parent)
_CORE: Final = str(Path(rhapsody.__file__).parent)
_THREAD: Final = "rhapsody thread of"  # how the threads of `context.in_thread` are named


def of_loop() -> str:
    """Describe where the hook that runs on this loop waits; empty where none does. To be called on the loop."""
    chains = [chain for task in asyncio.all_tasks() if (chain := list(_frames(task.get_coro())))]
    for chain in sorted(chains, key=lambda chain: not _hook_of(chain)):  # first those that a hook is in
        hook, theirs = _hook_of(chain), [frame for frame in chain if _is_theirs(frame)]
        if any(frame.f_code.co_name == "in_thread" for frame in chain):
            return f"{hook or 'a hook'} waits for a function in a thread, {_of_threads()}"
        if theirs:
            return f"{hook or 'a coroutine'} waits {_place(theirs[-1])}"
    return ""


def of_thread(ident: int) -> str:
    """Describe where a thread stands that does not turn its event loop."""
    return f"the event loop is blocked {_stack(ident)}"


def _of_threads() -> str:
    stacks = [_stack(each.ident) for each in threading.enumerate() if each.name.startswith(_THREAD) and each.ident]
    return ", ".join(stacks) or "which has just ended"


def _stack(ident: int) -> str:
    frame: FrameType | None = sys._current_frames().get(ident)
    innermost = frame
    while frame is not None and not _is_theirs(frame):
        frame = frame.f_back
    found = frame or innermost
    return _place(found) if found is not None else "in a thread that has ended"


def _frames(coroutine: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine that waits, from the outermost inwards."""
    while coroutine is not None:
        for kind in ("cr", "ag", "gi"):
            if (frame := getattr(coroutine, f"{kind}_frame", None)) is not None:
                yield frame
        coroutine = next(
            (inner for name in ("cr_await", "ag_await", "gi_yieldfrom") if (inner := getattr(coroutine, name, None))),
            None,
        )


def _hook_of(chain: list[FrameType]) -> str:
    return next((frame.f_code.co_name for frame in chain if frame.f_code.co_name.startswith("rhapsody_")), "")


def _is_theirs(frame: FrameType) -> bool:
    """Whether a frame is neither of the standard library nor of core, the local backend apart."""
    file = frame.f_code.co_filename
    is_library = file.startswith((_LIBRARY, "<")) and "site-packages" not in file
    return not is_library and (not file.startswith(_CORE) or file.startswith(f"{_CORE}{os.sep}backends"))


def _place(frame: FrameType) -> str:
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"in {frame.f_code.co_name}, {file}:{line}: {linecache.getline(file, line).strip()}"
