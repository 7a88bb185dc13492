"""Who may write tasks."""

from __future__ import annotations

import ast

import attrs
import pytest
from rhapsody.api import ComputeTask
from rhapsody.model import states
from rhapsody.sessions import recorder

from .source import Module, all_modules

OWNER = "rhapsody.model.task"
WRITERS = {"rhapsody.sessions.recorder", "rhapsody.scheduling.taskflow"}
PRIVATE = {name for name in vars(ComputeTask) if name.startswith("_") and not name.startswith("__")} | {
    field.name for field in attrs.fields(ComputeTask) if field.name.startswith("_")
}


def _of_others(module: Module) -> list[ast.Attribute]:
    """Return the attributes that a module reads or writes of anything but `self`."""
    attributes = [node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)]
    return [node for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))]


def test_private_fields_are_known() -> None:
    """The fields that the next test searches for are those of a task."""
    assert {"_batch", "_settler", "_traceback", "_named", "_shared", "_ended", "_error"} <= PRIVATE


@pytest.mark.parametrize("module", all_modules(), ids=lambda module: module.name)
def test_private_fields_of_tasks(module: Module) -> None:
    """Only the recorder and the task flow touch what is private to a task."""
    if module.name not in {OWNER, *WRITERS}:
        assert not {f"{node.attr}, line {node.lineno}" for node in _of_others(module) if node.attr in PRIVATE}


@pytest.mark.parametrize("module", all_modules(), ids=lambda module: module.name)
def test_state_of_tasks_has_one_writer(module: Module) -> None:
    """Only the recorder writes a task's state; an outcome's own state is no task's."""
    written = [node for node in _of_others(module) if node.attr == "state" and isinstance(node.ctx, ast.Store)]
    if module.name != recorder.__name__:
        assert not [node for node in written if ast.unparse(node.value) != "outcome"]


def test_states_change_by_advance() -> None:
    """Each state that the recorder writes is what `advance` returned."""
    (module,) = (module for module in all_modules() if module.name == recorder.__name__)
    assert vars(recorder)["advance"] is states.advance
    assigned = [node for node in ast.walk(module.tree) if isinstance(node, ast.Assign)]
    advanced = {ast.unparse(node.targets[0]) for node in assigned if ast.unparse(node.value).startswith("advance(")}
    written = {ast.unparse(node.value) for node in assigned if ast.unparse(node.targets[0]).endswith(".state")}
    assert written
    assert all(value in advanced or value.startswith("advance(") for value in written)
