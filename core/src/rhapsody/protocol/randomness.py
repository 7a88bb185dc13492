"""Random generators on their way: the module's own travel by reference, and copies of one are warned of.

A copy of a generator draws what every other copy draws, so tasks that each get one repeat the same numbers.
"""

from __future__ import annotations

import importlib
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

from rhapsody.errors import RepeatedRandomWarning

#: Parts of the pickles of all generators of the standard library and of numpy.
MARKS: Final = (b"\x8c\x06random", b"numpy.random")
_WARNED: Final = 2  # tasks with a copy of one generator; a task that travels again is the same
_REMEMBERED: Final = 256  # generators that were sent, kept so that no other gets their identity
_own: Final = random.random.__self__  # type: ignore[attr-defined]  # that of the module's functions
_copies: OrderedDict[int, tuple[Any, set[str]]] = OrderedDict()  # by id: a generator, and two tasks that got a copy


def module_function(obj: Any) -> tuple[str, str] | None:
    """Return the module and name of a function of `random` or `numpy.random` that draws from the module's own."""
    owner = getattr(obj, "__self__", None)
    if owner is None:
        return None
    if owner is _own:
        return "random", obj.__name__
    numpy = sys.modules.get("numpy.random.mtrand")
    return ("numpy.random", obj.__name__) if numpy is not None and owner is vars(numpy).get("_rand") else None


def import_function(module: str, name: str) -> Any:
    """Return the worker's own."""
    return getattr(importlib.import_module(module), name)


def is_generator(obj: Any) -> bool:
    """Return whether it is a random generator that copies would repeat."""
    if isinstance(obj, random.Random):
        return not isinstance(obj, random.SystemRandom)
    numpy = sys.modules.get("numpy.random")
    return numpy is not None and isinstance(obj, numpy.Generator | numpy.RandomState)


def warn_of_copies(generators: Sequence[Any], uids: Iterable[str]) -> None:
    """Note that generators were copied for tasks; warn, once of each, when it is the second task's copy."""
    for generator in generators:
        _, tasks = _copies.setdefault(id(generator), (generator, set()))
        if len(tasks) == _WARNED:
            continue
        tasks.update(islice((uid for uid in uids if uid not in tasks), _WARNED - len(tasks)))
        if len(tasks) == _WARNED:
            warnings.warn(
                f"tasks each get a copy of {generator!r}, so they all draw the same numbers; give "
                f"session.map a seed=, wrap the function by rhapsody.api.seeded, or pass each task a generator of its "
                f"own (rng.spawn)",
                RepeatedRandomWarning,
                stacklevel=2,
            )
    while len(_copies) > _REMEMBERED:
        _copies.popitem(last=False)
