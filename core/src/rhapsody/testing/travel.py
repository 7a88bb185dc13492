"""The part of the suite about what is defined in the program's script: it travels, and comes home as what it was."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.rig import Rig
from rhapsody.worker.seeding import seeded

__tracebackhide__ = True  # frames of the suite

_SCRIPT = """
import collections, dataclasses, enum

conformance_scale = 1

class Plain:
    kind = "as written"
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(self) is type(other) and self.x == other.x
    def scaled(self): return self.x * conformance_scale

class Derived(Plain):
    def scaled(self): return super().scaled() + 1

class Slotted:
    __slots__ = ("x", "__hidden")
    def __init__(self, x): self.x, self.__hidden = x, -x
    def __eq__(self, other): return (self.x, self.__hidden) == (other.x, other.__hidden)

@dataclasses.dataclass
class Record:
    x: int
    items: list = dataclasses.field(default_factory=list)

@dataclasses.dataclass(frozen=True, slots=True)
class FrozenRecord:
    x: int

class Color(enum.Enum):
    RED = 1

Pair = collections.namedtuple("Pair", "x")

class Trouble(Exception):
    def __init__(self, x):
        super().__init__(x)
        self.x = x
    def __eq__(self, other): return type(self) is type(other) and self.args == other.args and self.x == other.x

def call(function, *args): return function(*args)
def same(value): return value
def fail(kind, x): raise kind(x)
def multiplier(n):
    def multiply(x): return x * n * conformance_scale
    return multiply
"""
_KINDS = ("Plain", "Derived", "Slotted", "Record", "FrozenRecord", "Color", "Pair", "Trouble")


@contextlib.contextmanager
def script(source: str) -> Iterator[SimpleNamespace]:
    """Run code as if it stood in the program's script; give what it defines, and remove that at the end."""
    main = vars(sys.modules["__main__"])
    before = dict(main)
    exec(source, main)  # noqa: S102  # the suite's own text
    names = {name: value for name, value in main.items() if name not in before}
    try:
        yield SimpleNamespace(**names)
    finally:
        for name in names:
            main.pop(name, None)
        main.update(before)


class TravelTests(SuitePart):
    """What holds for classes and functions of the program's script, on every backend that runs functions."""

    @conforms("functions", needs="functions")
    async def test_instances_of_the_script_come_home(self, rig: Rig) -> None:
        """What a task makes, or gives back, is an instance of the class that the script has."""
        with script(_SCRIPT) as main:
            for name in _KINDS:
                kind = getattr(main, name)
                for function, args in ((main.call, (kind, 1)), (main.same, (kind(1),))):
                    value = await _value(rig, function, *args)
                    check(
                        type(value) is kind and value == kind(1),
                        f"a task returned {name}(1) of the script, and {value!r} came, an instance of "
                        f"{'another' if type(value) is not kind else 'that'} class; {_ADVICE}",
                    )

    @conforms("functions", needs="functions")
    async def test_results_leave_script_classes_alone(self, rig: Rig) -> None:
        """What the script has changed in a class or a global stays changed when a result of before arrives."""
        with script(_SCRIPT) as main:
            method = main.Plain.scaled
            with rig.gate() as gate:
                waits = gate.function("travel")
                late = ComputeTask(function=main.call, args=(main.Derived, 3))
                life = await rig.submit([waits, late])
                main.Plain.kind = "as set"
                vars(sys.modules["__main__"])["conformance_scale"] = 10
                gate.open()
                await rig.ended([waits, late], life)
            must_be(late, TaskState.DONE, "a task that makes an instance of the script's class")
            check(main.Plain.kind == "as set", f"a result reset a class attribute of the script; {_ADVICE}")
            check(main.Plain.scaled is method, f"a result replaced a method of the script's class; {_ADVICE}")
            scaled = late.return_value.scaled()
            check(scaled == 31, f"3 * 10 + 1 by a method of the script is {scaled}: it has other globals; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_script_objects_come_home(self, rig: Rig) -> None:
        """A class or function of the script that a task returns is the script's own."""
        with script(_SCRIPT) as main:
            for name in (*_KINDS, "same", "call"):
                sent = getattr(main, name)
                check(await _value(rig, main.same, sent) is sent, f"{name} came home as a copy; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_closures_come_home_to_the_script(self, rig: Rig) -> None:
        """A function that a task made finds its global names in the script."""
        with script(_SCRIPT) as main:
            triple = await _value(rig, main.multiplier, 3)
            vars(sys.modules["__main__"])["conformance_scale"] = 10
            check(triple(2) == 60, f"3 * 2 * 10 by a closure that a task returned is {triple(2)}; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_a_class_defined_again_travels_anew(self, rig: Rig) -> None:
        """As in a notebook: the new one travels, and an instance of the old one is one of the old one."""
        with script(_SCRIPT) as main:
            old = main.Plain
            first = await _value(rig, main.same, old(1))
            exec("class Plain:\n    kind = 'second'", vars(sys.modules["__main__"]))  # noqa: S102  # as above
            new = vars(sys.modules["__main__"])["Plain"]
            second, third = await _value(rig, main.call, new), await _value(rig, main.same, first)
            check(type(second) is new and second.kind == "second", f"a class defined again did not travel; {_ADVICE}")
            check(type(third) is old, f"an instance of a class that was replaced came as one of another; {_ADVICE}")

    @conforms("exceptions", needs="functions")
    async def test_script_exceptions_keep_their_class(self, rig: Rig) -> None:
        """`except TheClass` fires, for the class as the script has it."""
        with script(_SCRIPT) as main:
            task = await rig.one(function=main.fail, args=(main.Trouble, 7))
            must_be(task, TaskState.FAILED, "a function that raises")
            wanted, error = main.Trouble(7), task.exception
            check(
                type(error) is main.Trouble and error == wanted,
                f"the function raised the script's Trouble(7), and {error!r} came; {_ADVICE}",
            )

    @conforms("exceptions", needs="functions")
    async def test_sys_exit_gives_an_exit_code(self, rig: Rig) -> None:
        """A function that calls sys.exit(3) has failed, with exit code 3; one without end raises RecursionError."""
        task = await rig.one(function=sys.exit, args=(3,))
        must_be(task, TaskState.FAILED, "a function that calls sys.exit(3)")
        check(task.exit_code == 3, f"after sys.exit(3) the exit code is {task.exit_code!r}; {_ADVICE}")
        with script("def endless(n): return endless(n + 1)") as main:
            task = await rig.one(function=main.endless, args=(0,))
        check(isinstance(task.exception, RecursionError), f"a RecursionError arrived as {task.exception!r}; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_random_functions_differ_in_tasks(self, rig: Rig) -> None:
        """A function of `random` draws another number in each task, on whatever worker."""
        batch = [ComputeTask(function=random.random) for _ in range(24)]
        await rig.finish(batch)
        found = {task.return_value for task in batch}
        check(len(found) == 24, f"random.random gave {len(found)} different numbers in 24 tasks; {_ADVICE}")

    @conforms("functions", needs="functions")
    async def test_a_seed_gives_the_same_numbers(self, rig: Rig) -> None:
        """Numbers of `session.map(seed=)` depend on the seed and on nothing else."""
        life = await rig.shared()
        found = [value async for value in life.session.map(random.gauss, [0] * 12, [1] * 12, seed=11)]
        wanted = [seeded(random.gauss, 11, number)(0, 1) for number in range(12)]
        check(found == wanted, f"a seed gives {wanted[:2]}... here, and {found[:2]}... in tasks; {_ADVICE}")


_ADVICE = (
    "decode results in the process that encoded the tasks (TaskBatch.encode, TaskBatch.decode), and let run_batch "
    "pickle them"
)


async def _value(rig: Rig, function: Callable[..., Any], *args: Any) -> Any:
    task = await rig.one(function=function, args=args)
    must_be(task, TaskState.DONE, f"a task whose function is {function.__qualname__} of the script")
    return task.return_value
