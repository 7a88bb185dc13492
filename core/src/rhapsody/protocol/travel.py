"""How objects of the program's script travel: to a worker by value, and home by reference.

A worker has no script, so what is defined in `__main__` must be sent to it as code. On the way back the program has the
original: to load the code there would make a second class, or rewrite the first. So each class and function that is
sent by value carries a token, the worker remembers the tokens of what arrived, and a result refers to them.

A closure is data as well as code: what a call has changed in it comes home by value. Its global names are then those
of the program's module, as they were where it was defined.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import pickle
import sys
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

import cloudpickle

from rhapsody.protocol.exceptions import chain_of, reduce_exception
from rhapsody.protocol.randomness import import_function, is_generator, module_function
from rhapsody.protocol.reducers import is_named_function, reduce_named_function, reduce_special

_HOME: Final = "__rhapsody_home__"  # the key of a function's globals that names the module they were taken from
_STANDARD_STREAMS: Final = frozenset({"<stdin>", "<stdout>", "<stderr>"})
_KEPT_CLASSES: Final = 1024  # that were sent: one that a notebook has replaced since must still be known

Reduced = tuple[Any, ...]


class _Registry:
    """What this process sent by value, and what arrived here."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: a forked process has sent nothing, and shares no object with the process that it came from."""
        self.process = uuid.uuid4().hex
        self.numbers = itertools.count(1)
        self.tokens: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # of what was sent
        self.sent: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self.classes: deque[type] = deque(maxlen=_KEPT_CLASSES)
        self.modules: dict[str, dict[str, Any]] = {}  # globals of functions that were sent, by the name of their module
        self.arrived: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def token_for(self, obj: Any) -> str:
        """Return the token under which an object is sent; what arrived from another program keeps the one it had."""
        token = self.arrived.get(obj) or self.tokens.get(obj)
        if token is None:
            token = self.tokens[obj] = f"{self.process}.{next(self.numbers)}"
            if isinstance(obj, type):
                self.classes.append(obj)
        self.sent[token] = obj
        return token

    def is_own(self, token: str) -> bool:
        """Return whether this process gave the token: a worker may be a thread of the program."""
        return token.startswith(self.process)


_registry: Final = _Registry()
os.register_at_fork(after_in_child=_registry.reset)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Takes apart what cloudpickle does not."""

    def reducer_override(self, obj: Any) -> Any:
        """Ask for a reduction of ours, then for cloudpickle's."""
        if is_named_function(obj):
            if obj.__module__ != "__main__" and is_at_its_name(obj):
                return NotImplemented
            return reduce_named_function(obj)
        reduced = reduce_special(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class Outbound(_Pickler):
    """Pickles what the program sends.

    Attributes:
        generators: random generators that are in it.
    """

    def __init__(
        self, file: io.BytesIO, protocol: int, leave_out: Callable[[pickle.PickleBuffer], object] | None
    ) -> None:
        super().__init__(file, protocol, leave_out)
        self.generators: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        """Send classes and functions that the worker cannot import by value, with a token each."""
        named = module_function(obj)
        if named is not None:
            return import_function, named
        if is_generator(obj):
            self.generators.append(obj)
        if isinstance(obj, io.TextIOWrapper) and getattr(obj, "name", None) not in _STANDARD_STREAMS:
            raise TypeError(f"cannot pickle {obj!r}")  # cloudpickle would send what is in it
        reduced = super().reducer_override(obj)
        if type(reduced) is tuple and len(reduced) == 6:
            return _with_token(obj, reduced)
        return reduced


class Homebound(_Pickler):
    """Pickles what a worker sends back."""

    can_travel: Callable[[Any], bool] | None = None  # where something cannot, and the rest is wanted

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self._chain: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        """Refer to what the program has."""
        is_function = isinstance(obj, FunctionType)
        if is_function or isinstance(obj, type) or is_named_function(obj):
            token = _registry.arrived.get(obj) or _registry.tokens.get(obj)
            if token is not None:
                return _own, (token, obj.__qualname__)
            if obj.__module__ == "__main__" and is_at_its_name(obj):  # a worker that was forked from the program
                return _named, (obj.__qualname__,)
        if isinstance(obj, BaseException):
            if id(obj) not in self._chain:
                self._chain |= chain_of(obj)
            return reduce_exception(obj, self._chain, type(self).can_travel)
        reduced = super().reducer_override(obj)
        if type(reduced) is tuple and len(reduced) == 6 and is_function and not is_named_function(obj):
            home = _home_of(obj.__globals__)
            return reduced if home is None else _at_home(home, reduced)
        return reduced


def is_at_its_name(obj: Any) -> bool:
    """Return whether a class or function is what its module has under its name."""
    found: Any = sys.modules.get(obj.__module__)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _with_token(obj: Any, reduced: Reduced) -> Reduced:
    make, args, state, _, _, setter = reduced
    token = None
    if is_named_function(obj):
        if obj in _registry.arrived or is_at_its_name(obj):
            token = _registry.token_for(obj)
    elif isinstance(obj, FunctionType):
        _name_globals(obj.__globals__, args[1])
        if not obj.__closure__ or obj in _registry.arrived or is_at_its_name(obj):
            token = _registry.token_for(obj)
    elif isinstance(obj, type):
        if "__slots__" in vars(obj) and isinstance(args[3], dict):  # else the worker's class has a __dict__
            args[3]["__slots__"] = vars(obj)["__slots__"]
        token = _registry.token_for(obj)
    if token is None:
        return reduced
    return _arrive, (token, make, args), (token, setter, state), None, None, _settle


def _name_globals(own: dict[str, Any], sent: dict[str, Any]) -> None:
    """Note in the globals that a function is sent with which module they are from."""
    home = own.get(_HOME)
    if home is None:
        name = own.get("__name__")
        if own is not getattr(sys.modules.get(name or ""), "__dict__", None):
            return  # of no module; a namedtuple's, say
        home = f"{_registry.process}.{name}"
    _registry.modules[home] = own
    sent[_HOME] = home


def _home_of(own: dict[str, Any]) -> str | None:
    """Return which module of the program a function's globals are from; they may be the module's own dictionary."""
    arrived: str | None = own.get(_HOME)
    return arrived or next((home for home, module in _registry.modules.items() if module is own), None)


def _at_home(home: str, reduced: Reduced) -> Reduced:
    """Have a function find its global names in the module that they were taken from."""
    make, args, (state, slots), _, _, setter = reduced
    slots["__globals__"] = {}
    code, _, *others = args
    return _in_module, (home, make, code, others), (state, slots), None, None, setter


# -- what the pickles call -------------------------------------------------------------------------------------------


def _arrive(token: str, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Make what arrives, and remember its token; where it never left the program, it is the program's own."""
    if _registry.is_own(token):
        own = _registry.sent.get(token)
        if own is not None:
            return own
    made = make(*args)
    _registry.arrived[made] = token
    return made


def _settle(made: Any, state: tuple[str, Callable[..., Any], Any]) -> None:
    token, setter, value = state
    if not _registry.is_own(token) or _registry.sent.get(token) is not made:
        setter(made, value)
        _name_in_main(made)


def _name_in_main(made: Any) -> None:
    """Let what the worker forks find a class or function of the script by name, as the processes of a pool do.

    What the worker's own `__main__` has stays.
    """
    name = getattr(made, "__qualname__", "")
    if getattr(made, "__module__", None) == "__main__" and name.isidentifier():
        main = sys.modules["__main__"]
        send_to_children()
        there = getattr(main, name, None)
        if there is None or (isinstance(there, type | FunctionType) and there in _registry.arrived):
            setattr(main, name, made)


def send_to_children() -> None:
    """Have the processes that a task spawns sent what came from the script by value: their `__main__` is empty.

    `multiprocessing` would refer to it by name, and a pool whose processes cannot find a name waits for ever.
    """
    pickler: Any = importlib.import_module("multiprocessing.reduction").ForkingPickler
    if not hasattr(pickler, "reducer_override"):
        pickler.reducer_override = _to_child


def _to_child(_: object, obj: Any) -> Any:
    is_from_script = getattr(obj, "__module__", None) == "__main__" and isinstance(obj, type | FunctionType)
    if is_from_script and obj in _registry.arrived:
        return pickle.loads, (cloudpickle.dumps(obj),)
    return NotImplemented


def _own(token: str, name: str) -> Any:
    """Return what this process had sent."""
    own = _registry.sent.get(token)
    if own is None:
        raise LookupError(f"{name}, to which this refers, was sent to the worker and is no longer in the program")
    return own


def _named(qualname: str) -> Any:
    found: Any = sys.modules["__main__"]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _in_module(home: str, make: Callable[..., Any], code: Any, others: list[Any]) -> Any:
    return make(code, _registry.modules[home], *others)


def pickled_out(
    value: Any, leave_out: Callable[[pickle.PickleBuffer], object] | None = None
) -> tuple[bytes, list[Any]]:
    """Return a value's pickle for a worker, and the random generators that are in it.

    Args:
        value: what to pickle.
        leave_out: takes buffers that are not to be in the pickle, unless it returns True.
    """
    with io.BytesIO() as file:
        pickler = Outbound(file, pickle.HIGHEST_PROTOCOL, leave_out)
        pickler.dump(value)
        return file.getvalue(), pickler.generators


def pickled_home(value: Any, pickler: type[Homebound] = Homebound) -> bytes:
    """Return a value's pickle for the program."""
    with io.BytesIO() as file:
        pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()
