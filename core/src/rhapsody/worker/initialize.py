"""Calls the initializer of a worker, and keeps why it failed."""

from __future__ import annotations

import pickle

from rhapsody.worker.surroundings import SURROUNDINGS

_problems: list[BaseException] = []


def initialize(pickled: bytes) -> None:
    """Call an initializer before the first task; if it raises, every function task of this process fails with that.

    What it sets in the folder, in variables and in globals stays.

    Args:
        pickled: what `dumps` makes of the function and a tuple of its arguments.
    """
    try:
        function, args = pickle.loads(pickled)
        function(*args)
    except BaseException as error:
        error.add_note("(raised by the initializer of the worker, which runs no task therefore)")
        _problems.append(error)
    SURROUNDINGS.keep()


def why_not_initialized() -> BaseException | None:
    """Return what the initializer has raised."""
    return _problems[0] if _problems else None
