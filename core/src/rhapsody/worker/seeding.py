"""Reproducible random numbers: each task draws from a stream of its own, wherever and beside whatever it runs."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rhapsody.errors import InvalidTaskError, describe
from rhapsody.protocol.randomness import is_generator, module_function

_alone: Final = threading.RLock()  # held by a function that draws from the generators of the modules
_forked = False


class Seeded:
    """A function whose calls each draw from a stream of their own; `seeded` makes one.

    Args:
        function: what to call.
        seed: of all streams: a whole number that is not negative, or several.
        number: of the stream; None: the first argument of each call is the number.

    Raises:
        InvalidTaskError: a seed, number or function that cannot be used.
    """

    def __init__(self, function: Callable[..., Any], seed: int | Sequence[int], number: int | None = None) -> None:
        if not callable(function):
            raise InvalidTaskError(f"the function to seed must be callable, not {describe(function)}")
        self.seed = _entropy(seed)
        self.number = None if number is None else _natural(number, "the number of a stream")
        self.numpy = importlib.util.find_spec("numpy") is not None  # decided here, so that all workers do the same
        owner = getattr(function, "__self__", None)
        named = module_function(function)
        self.method: tuple[str, str] | None = None  # the kind of generator, and the name of the method that draws
        if named is not None:
            self.method = ("Random" if named[0] == "random" else "RandomState", named[1])
        elif owner is not None and is_generator(owner):
            kind = "Random" if isinstance(owner, random.Random) else type(owner).__name__
            self.method = (kind, function.__name__)
        self.func = None if self.method else function
        self.takes_rng = self.method is None and _takes_rng(function)
        if self.func is not None and not self.takes_rng and inspect.iscoroutinefunction(function):
            raise InvalidTaskError(
                f"{describe(function)} cannot be seeded: an async function must take an argument named rng, "
                f"which is given a generator"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with its stream."""
        number = self.number
        if number is None:
            number, *args = args  # type: ignore[assignment]  # it is the first
        stream = _Stream(self.seed, number)
        if self.method is not None:
            kind, name = self.method
            return getattr(stream.generator(kind), name)(*args, **kwargs)
        assert self.func is not None
        if self.takes_rng:
            kwargs.setdefault("rng", stream.generator("Generator" if self.numpy else "Random"))
            return self.func(*args, **kwargs)
        with _seeded_modules(stream, self.numpy):
            return self.func(*args, **kwargs)


def seeded(function: Callable[..., Any], seed: int | Sequence[int], number: int) -> Seeded:
    """Return a function that draws from a stream of its own, the same each time: `function=seeded(draw, 42, 7)`.

    A function that takes an argument named `rng` is given a generator (`numpy.random.Generator` where numpy is
    installed, else `random.Random`); a method of a generator, or a function of `random` or `numpy.random`, draws from
    one of its own. For any other, the generators of the modules `random` and `numpy.random` are seeded while it runs:
    in one process such calls run one at a time.

    Args:
        function: what to call.
        seed: of all streams: a whole number that is not negative, or several.
        number: of this task's stream. Streams of other numbers are independent (numpy.random.SeedSequence, by spawn
            key; a BLAKE2 hash of both for `random`).

    Raises:
        InvalidTaskError: a seed, number or function that cannot be used.
    """
    return Seeded(function, seed, number)


class _Stream:
    """The numbers of one task."""

    def __init__(self, seed: tuple[int, ...], number: int) -> None:
        self._seed, self._number = seed, number

    def generator(self, kind: str) -> Any:
        if kind == "Random":
            return random.Random(self.hash())  # noqa: S311  # numbers for simulations
        numpy = importlib.import_module("numpy.random")
        if kind == "RandomState":
            return numpy.RandomState(numpy.MT19937(self.sequence()))
        return numpy.default_rng(self.sequence())

    def hash(self) -> int:
        text = repr((self._seed, self._number)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=32).digest(), "big")

    def sequence(self) -> Any:
        seed = self._seed[0] if len(self._seed) == 1 else self._seed
        return importlib.import_module("numpy.random").SeedSequence(seed, spawn_key=(self._number,))


@contextmanager
def _seeded_modules(stream: _Stream, with_numpy: bool) -> Iterator[None]:
    """Seed the generators of the modules, and give them back as they were: in a thread they are the program's."""
    with _alone:
        held = random.getstate()
        numpy = importlib.import_module("numpy.random") if with_numpy else None
        numpy_held = numpy.get_state() if numpy is not None else None
        random.seed(stream.hash())
        if numpy is not None:
            numpy.seed(stream.sequence().generate_state(8))
        try:
            yield
        finally:
            random.setstate(held)
            if numpy is not None:
                numpy.set_state(numpy_held)


def reseed_after_fork() -> None:
    """Give a worker that was forked numbers of its own; Python does so for `random`, and nobody for `numpy.random`."""
    global _forked
    if _forked:
        _forked = False
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            numpy.seed()


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


def _entropy(seed: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes) and seed:
        return tuple(_natural(part, "a seed") for part in seed)
    return (_natural(seed, "a seed"),)


def _natural(value: Any, what: str) -> int:
    """Return a whole number that is not negative, of any type that is one."""
    number = value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool) else -1
    if number < 0:
        raise InvalidTaskError(f"{what} must be a whole number that is not negative, not {describe(value)}")
    return int(number)


def _takes_rng(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("rng")
    except (TypeError, ValueError):  # a function of an extension module need not declare it
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
