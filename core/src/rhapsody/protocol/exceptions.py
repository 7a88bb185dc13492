"""How exceptions travel home: each with its class, arguments, attributes, notes, cause and context.

Pickle rebuilds an exception by calling its class with its `args`, which most constructors that take several arguments
do not understand. Here the constructor is not called again, unless the class says itself how it is pickled: the object
is made, and gets what it had. What still cannot be rebuilt is stood in for by an instance of a subclass of its class,
which is a SerializationError too.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any, Final

from rhapsody.errors import SerializationError, describe

_CHAIN: Final = 50  # exceptions that travel of a chain of causes and contexts
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the flag that the interpreter's own classes lack
WHY: Final = "_why"  # an attribute of a stand-in


def chain_of(error: BaseException) -> set[int]:
    """Return the ids of the exceptions that travel with one: the nearest of its causes and contexts."""
    found: dict[int, BaseException] = {}
    left = [error]
    while left and len(found) < _CHAIN:
        one = left.pop(0)
        if id(one) not in found:
            found[id(one)] = one
            left += [other for other in (one.__cause__, one.__context__) if other is not None]
            left += getattr(one, "exceptions", ()) if isinstance(one, BaseExceptionGroup) else ()
    return set(found)


def reduce_exception(error: BaseException, chain: set[int], can_travel: Callable[[Any], bool] | None) -> Any:
    """Take an exception apart.

    Args:
        error: the exception.
        chain: the ids of those that may travel as causes and contexts.
        can_travel: whether an object can be pickled, where not all can; the rest of the exception stands in for it.
    """
    kind = type(error)
    cause, context = (
        other if other is not None and id(other) in chain else None for other in (error.__cause__, error.__context__)
    )
    links = (cause, context, error.__suppress_context__)
    if can_travel is not None:
        parts = [*error.args, *vars(error).values()]
        if not can_travel(kind) or not all(map(can_travel, parts)) or _has_own_reduce(kind):
            known = next(base for base in kind.__mro__ if issubclass(base, BaseException) and can_travel(base))
            kept = {name: value for name, value in vars(error).items() if can_travel(value)}
            said = (known, kind.__qualname__, "cannot be pickled")
            return stand_in, said, (None, kept, {}, links), None, None, _restore
    if _has_own_reduce(kind):
        reduced: Any = error.__reduce_ex__(4)
        make, args, *rest = reduced
        return _rebuild, (kind, make, args), (None, rest[0] if rest else None, {}, links), None, None, _restore
    reduced = error.__reduce__()
    _, args, *rest = reduced
    names = copyreg._slotnames(kind)  # type: ignore[attr-defined]  # not public, and what copy and pickle go by
    slots = {name: getattr(error, name) for name in names if hasattr(error, name)}
    return _rebuild, (kind, None, args), (error.args, rest[0] if rest else None, slots, links), None, None, _restore


def stand_in(kind: type[BaseException], name: str, why: str) -> BaseException:
    """Return an exception that is caught by `kind`, and is a SerializationError too.

    Args:
        kind: the class.
        name: the name of the class that the exception had.
        why: it is not itself.
    """
    made: BaseException
    try:
        if not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
            raise TypeError("what the interpreter acts on is not to be caught by chance")
        made = _builtin_of(kind).__new__(_substitute(kind))  # type: ignore[arg-type]  # a class can be hashed
    except Exception:  # its metaclass, or its layout, does not allow it
        made = SerializationError.__new__(SerializationError)
    text = f"the exception was a {name}, which {why}"
    for attribute, value in (
        ("args", (text, name, "")),
        ("original_type", name),
        ("original_traceback", ""),
        (WHY, why),
    ):
        BaseException.__setattr__(made, attribute, value)
    return made


def _builtin_of(kind: type) -> Any:
    return next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)


@functools.lru_cache(maxsize=256)
def _substitute(kind: type[BaseException]) -> type[BaseException]:
    body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__reduce__": _reduce_stand_in}
    body["__str__"] = SerializationError.__str__
    return type(kind.__name__, (SerializationError, kind), body)


def _reduce_stand_in(error: SerializationError) -> Any:
    return _stand_again, (type(error).__bases__[1], error.args, vars(error))


def _stand_again(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    made = stand_in(kind, "", "")
    BaseException.__setattr__(made, "args", args)
    vars(made).clear()
    vars(made).update(attributes)
    return made


def _has_own_reduce(kind: type[BaseException]) -> bool:
    """Return whether its author says how it is pickled."""
    if kind.__reduce_ex__ is not object.__reduce_ex__:
        return True
    owner = next(base for base in kind.__mro__ if "__reduce__" in vars(base))
    return bool(owner.__flags__ & _HEAP_TYPE)


def _rebuild(kind: type[BaseException], make: Callable[..., Any] | None, args: tuple[Any, ...]) -> BaseException:
    try:
        if make is not None:
            made = make(*args)
            if not isinstance(made, BaseException):
                return stand_in(kind, kind.__qualname__, f"is no exception here, but {describe(made)}")
            return made
        builtin = _builtin_of(kind)
        error: BaseException = builtin.__new__(kind, *args)
        builtin.__init__(error, *args)  # as the author's constructors would
        return error
    except Exception as problem:
        return stand_in(kind, kind.__qualname__, f"cannot be loaded here ({type(problem).__name__}: {problem})")


def _restore(error: BaseException, state: tuple[Any, ...]) -> None:
    """Give an exception what it had; by the root's method, since a frozen dataclass forbids its own."""
    args, attributes, slots, (cause, context, suppress) = state
    give = BaseException.__setattr__
    is_itself = not isinstance(error, SerializationError) or type(error) is SerializationError
    if args is not None and is_itself:
        give(error, "args", args)
    set_state = getattr(type(error), "__setstate__", BaseException.__setstate__)
    if args is None and set_state is not BaseException.__setstate__ and attributes is not None:
        set_state(error, attributes)  # it says itself how it is loaded
    else:
        for name, value in {**(attributes or {}), **slots}.items():
            give(error, name, value)
    give(error, "__cause__", cause)
    give(error, "__context__", context)
    give(error, "__suppress_context__", suppress)
