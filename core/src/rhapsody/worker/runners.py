"""What a worker does with the tasks of a batch, by kind; the table that a further kind adds its runner to."""

from __future__ import annotations

import importlib
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rhapsody.protocol.command import Command
from rhapsody.protocol.encoding import describe_exception, dumps_home
from rhapsody.protocol.frames import Call, Frame
from rhapsody.protocol.imports import Imports, follow
from rhapsody.protocol.shared import load
from rhapsody.protocol.version import unknown_kind
from rhapsody.worker import executables
from rhapsody.worker.functions import AsyncFunctions, forget_functions, load_function, run_function
from rhapsody.worker.guard_process import Guard
from rhapsody.worker.initialize import why_not_initialized
from rhapsody.worker.place import where
from rhapsody.worker.prints import Prints
from rhapsody.worker.surroundings import SURROUNDINGS, as_set, surrounded

#: Runs one task: from its uid and what its encoder made of it to the frame that says how it ended. Never raises.
Run = Callable[[str, Any], Frame]
#: Makes what runs the tasks of one kind in one batch: from the session, what the encoded tasks have in common, and
#: the event loop of the batch.
Runner = Callable[[str, Any, AsyncFunctions], Run]

_PLAIN: Final = frozenset({type(None), bool, int, float, str})  # travel as they are, inside the frame
guard: Final = Guard()  # ends the executables of this process should it die


def runner_of(name: str, module: str | None) -> Runner | None:
    """Return what runs tasks of a kind; None where this worker does not know it, even after importing its module."""
    if name not in RUNNERS and module is not None:
        try:
            importlib.import_module(module)
        except Exception:  # it is not installed here, say; the error of the task names the kind
            return None
    return RUNNERS.get(name)


def value_frame(uid: str, value: Any, started: float) -> Frame:
    """Return the frame of a task that returned a value just now."""
    ended = time.time()
    if type(value) in _PLAIN:
        return (uid, "value", value, started, ended, where())
    try:
        return (uid, "pickle", dumps_home(value), started, ended, where())
    except BaseException as error:
        return (uid, "raised", describe_exception(error, "result"), started, ended, where())


def error_frame(uid: str, error: BaseException, during: str, started: float) -> Frame:
    """Return the frame of a task that failed just now; `during` is "run", or "arguments" while those were loaded."""
    return (uid, "raised", describe_exception(error, during), started, time.time(), where())


def _functions(session: str, common: tuple[list[Any], list[Any], Imports | None], loops: AsyncFunctions) -> Run:
    functions, shared, reported = common
    if (problem := why_not_initialized()) is not None:
        return refusing(problem)
    if reported is not None:
        try:
            follow(reported, forget_functions)
        except Exception as error:
            error.add_note("(raised when the worker reloaded a module, as the program had)")
            return refusing(error)

    def run(uid: str, call: Call) -> Frame:
        setting = call[-1]
        if setting is None or not setting[-1]:
            return run_plain(uid, call)
        with Prints() as prints:
            _, kind, value, started, ended, host = run_plain(uid, call, prints)
        return (uid, "printed", (kind, value, prints.texts), started, ended, host)

    def run_plain(uid: str, call: Call, prints: Prints | None = None) -> Frame:
        started = time.time()
        try:
            number, arguments, fill, setting = call
            function = load_function(functions[number])
            args: Sequence[Any] = ()
            kwargs: dict[str, Any] = {}
            if arguments is not None:
                args, kwargs = pickle.loads(arguments)
                if fill:
                    args = list(args)
                    for place, number in fill:
                        target: Any = args if isinstance(place, int) else kwargs
                        target[place] = load(shared[number])
        except BaseException as error:
            return error_frame(uid, error, "arguments", started)
        if SURROUNDINGS.changed:  # by a module that was imported for the task
            SURROUNDINGS.keep()
        try:
            if setting is None:
                value = run_function(function, args, kwargs, loops)
            else:
                function = as_set(function, setting, uid)
                with surrounded(setting):
                    value = run_function(prints.around(function) if prints else function, args, kwargs, loops)
        except BaseException as error:
            return error_frame(uid, error, "run", started)
        finally:
            if SURROUNDINGS.changed:
                SURROUNDINGS.restore()
        if type(value) in _PLAIN:  # as `value_frame`, without the price of a call
            return (uid, "value", value, started, time.time(), where())
        return value_frame(uid, value, started)

    return run


def _executables(session: str, common: None, loops: AsyncFunctions) -> Run:
    def run(uid: str, fields: tuple[Any, ...]) -> Frame:
        started = time.time()
        command = Command(*fields)
        try:
            finished = executables.run((session, uid), command, guard)
        except Exception as error:  # nothing that the executable or its description can bring about
            return error_frame(uid, error, "run", started)
        value = (tuple(finished), (command.stdout_path, command.stderr_path))
        return (uid, "finished", value, started, time.time(), where())

    return run


def with_variables(kind: str, body: Any, environment: Mapping[str, str]) -> Any:
    """Return what was encoded of a task with further variables; its own come before them. Other kinds have none."""
    if kind == "function":
        *call, setting = body
        seed, folder, own, trace, captures = setting or (None, None, None, None, False)
        return *call, (seed, folder, {**environment, **(own or {})}, trace, captures)
    if kind == "executable":
        command = Command(*body)
        return tuple(command._replace(environment={**environment, **(command.environment or {})}))
    return body


def refusing(error: BaseException) -> Run:
    """Return what fails each task with an error, instead of running it."""

    def run(uid: str, _: Any) -> Frame:
        return error_frame(uid, error, "run", time.time())

    return run


def unknown(kind: str, core: str) -> Run:
    """Return what fails the tasks of a kind that this worker does not know."""
    return refusing(unknown_kind(kind, core))


#: By the name of the kind.
RUNNERS: Final[dict[str, Runner]] = {"function": _functions, "executable": _executables}
