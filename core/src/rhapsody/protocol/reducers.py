"""How objects travel that pickle refers to by a name, which a worker cannot import, or cannot take apart at all."""

from __future__ import annotations

import functools
import threading
from types import FunctionType
from typing import Any, Final

#: The code of every function that `functools.singledispatch` returns.
_DISPATCHER: Final = functools.singledispatch(len).__code__  # type: ignore[attr-defined]  # it is a function
_OF_DISPATCHER: Final = frozenset({"register", "dispatch", "registry", "_clear_cache", "__wrapped__"})
_LOCK: Final = type(threading.RLock())
_Cache: Final = type(functools.lru_cache(lambda: None))


def is_named_function(obj: Any) -> bool:
    """Return whether it is a function that pickle takes for one that can be imported: a cache or a dispatcher."""
    return type(obj) is _Cache or (type(obj) is FunctionType and obj.__code__ is _DISPATCHER)


def reduce_named_function(obj: Any) -> tuple[Any, ...]:
    """Take a cache or a dispatcher apart; the cache's contents stay behind."""
    attributes = vars(obj)
    if type(obj) is _Cache:
        parameters = obj.cache_parameters()
        args = (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
        return _make_cache, args, dict(attributes), None, None, _set_attributes
    registry = dict(obj.registry)
    default = registry.pop(object)
    rest = {name: value for name, value in attributes.items() if name not in _OF_DISPATCHER}
    return functools.singledispatch, (default,), (registry, rest), None, None, _register


def reduce_special(obj: Any) -> Any:
    """Take apart what pickle cannot; NotImplemented for anything else."""
    if isinstance(obj, functools.cached_property) and type(vars(obj).get("lock")) is _LOCK:  # until Python 3.12
        return _make_property, (type(obj), obj.func), {**vars(obj), "lock": None}, None, None, _set_property
    return NotImplemented


def _make_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _set_attributes(made: Any, attributes: dict[str, Any]) -> None:
    vars(made).update(attributes)


def _register(made: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    registry, rest = state
    for kind, function in registry.items():
        made.register(kind, function)
    vars(made).update(rest)


def _make_property(kind: type, function: Any) -> Any:
    return kind(function)


def _set_property(made: Any, attributes: dict[str, Any]) -> None:
    vars(made).update({name: value for name, value in attributes.items() if name != "lock"})
