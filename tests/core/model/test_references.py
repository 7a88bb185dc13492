"""Tasks in the arguments of others."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
from rhapsody.api import ComputeTask, InvalidTaskError
from rhapsody.model.references import named_in, value_of, with_values


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    inner: Any
    other: int = 1


@dataclasses.dataclass
class Late:
    given: Any
    late: Any = dataclasses.field(init=False, repr=False)


ONE = ComputeTask(function=int)
SHAPES = [
    (ONE, 7),
    ([1, ONE], [1, 7]),
    ((ONE, "a"), (7, "a")),
    ({"a": [ONE], "b": (2,)}, {"a": [7], "b": (2,)}),
    (Point(ONE, 2), Point(7, 2)),
    (Frozen([ONE]), Frozen([7])),
    (Late(ONE), Late(7)),
    (collections.OrderedDict(a=ONE), collections.OrderedDict(a=7)),
    (collections.defaultdict(None, a=ONE), collections.defaultdict(None, a=7)),
    ([[[[{"deep": Frozen((ONE,))}]]]], [[[[{"deep": Frozen((7,))}]]]]),
]


@pytest.mark.parametrize(("value", "wanted"), SHAPES, ids=lambda value: type(value).__name__)
def test_tasks_are_replaced(value: Any, wanted: Any) -> None:
    """A task is found and replaced in lists, tuples, dicts and dataclasses, and the container keeps its type."""
    before = repr(value)
    assert named_in([(value,)], set()) == [ONE]
    (made,) = with_values((value,), lambda task: 7)
    assert type(made) is type(wanted)
    assert repr(made) == repr(wanted)
    assert repr(value) == before, "what the user gave was changed"


@pytest.mark.parametrize("value", [3, [1, 2.0], {"a": None}, {1, 2}, Frozen(1), "text", [[], ()]])
def test_values_without_tasks_are_not_copied(value: Any) -> None:
    """What holds no task stays the same object."""
    assert named_in([(value,)], set()) == []
    assert with_values((value,), lambda task: 7)[0] is value


def test_shared_list_is_searched_once() -> None:
    """A list that many tasks share is searched once for all of them."""
    searched = 0

    class Counting(list[int]):
        def __iter__(self) -> Any:
            nonlocal searched
            searched += 1
            return super().__iter__()

    shared = Counting(range(10))
    without: set[int] = set()
    for _ in range(5):
        assert named_in([(shared,)], without) == []
    assert searched == 1


def test_container_that_holds_itself() -> None:
    """A list that holds itself is searched once; one that holds a task too cannot be copied."""
    ring: list[Any] = [1]
    ring.append(ring)
    assert named_in([ring], set()) == []
    ring.append(ONE)
    assert named_in([ring], set()) == [ONE]
    with pytest.raises(InvalidTaskError, match="also holds itself"):
        with_values(ring, lambda task: 7)


def test_deep_nesting_is_searched_without_recursion() -> None:
    """Tasks are found at any depth; replacing one that is nested a hundred thousand deep is refused."""
    nested: Any = [ONE]
    for _ in range(100_000):
        nested = [nested]
    assert named_in([nested], set()) == [ONE]
    with pytest.raises(InvalidTaskError, match="nested too deeply"):
        with_values(nested, lambda task: 7)
    while nested is not ONE:
        (nested,) = nested


def test_value_of_an_executable_is_its_stdout() -> None:
    """An executable hands over what it wrote."""
    task = ComputeTask(executable="true")
    task.stdout = "12\n"
    assert value_of(task) == "12\n"
