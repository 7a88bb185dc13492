"""The kinds of task, and a further one that touches no module of the core."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, Session, UnsupportedError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.model.checks import check_common, refuse
from rhapsody.model.kinds import Kind
from rhapsody.plugin import EXECUTABLE, FUNCTION, BackendCapabilities
from rhapsody.protocol.encoders import ENCODERS, Environments
from rhapsody.protocol.frames import Frame
from rhapsody.worker import AsyncFunctions
from rhapsody.worker.runners import RUNNERS, Run, value_frame


def _check(prompt: Prompt) -> None:
    check_common(prompt)
    if not prompt.text:
        refuse(prompt, "text must not be empty")


PROMPT = Kind(name="prompt", capability="prompts", check=_check, key=lambda prompt: len(prompt.text), module=__name__)


class Prompt(ComputeTask):
    """A task of a third kind: a text for a model, which answers in capitals."""

    kind = PROMPT

    def __init__(self, text: str, **fields: Any) -> None:
        self.text = text
        super().__init__(**fields)


class _Encoder:
    def __init__(self, tasks: Sequence[ComputeTask], sandbox: Path, given: Environments) -> None:
        pass

    def encode(self, task: ComputeTask) -> str:
        assert isinstance(task, Prompt)
        return task.text

    def common(self) -> str:
        return "!"


def _runner(session: str, common: str, loops: AsyncFunctions) -> Run:
    def run(uid: str, text: str) -> Frame:
        return value_frame(uid, text.upper() + common, time.time())

    return run


ENCODERS[PROMPT] = _Encoder
RUNNERS["prompt"] = _runner


@attrs.frozen(kw_only=True)
class _Capabilities(BackendCapabilities):
    prompts: bool = True


class _Model(ConcurrentExecutionBackend):
    def __init__(self, executor: str) -> None:
        super().__init__(executor=executor, max_workers=1, batching=1.0)
        self.capabilities = _Capabilities(remote=executor == "processes", cancel_executables=True)


def test_task_knows_its_kind() -> None:
    """A task's kind is one of the two constants, and costs the task no field."""
    assert ComputeTask(function=pow).kind is FUNCTION
    assert ComputeTask(executable="true").kind is EXECUTABLE
    assert "kind" not in ComputeTask.__slots__


def test_pickled_task_keeps_its_kind() -> None:
    """A task that was pickled has the same constant as its kind."""
    assert pickle.loads(pickle.dumps(ComputeTask(executable="true"))).kind is EXECUTABLE


@pytest.mark.parametrize("executor", ["threads", "processes"])
async def test_third_kind_runs(executor: str) -> None:
    """A kind that a module outside the core brings is encoded, run and recorded, in one batch with functions too."""
    async with Session(backends=[_Model(executor)]) as session:
        tasks = [Prompt("abc"), ComputeTask(function=pow, args=(2, 5)), Prompt("xyz"), ComputeTask(executable="true")]
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=60)
    assert [(task.state.value, task.return_value) for task in tasks] == [
        ("DONE", "ABC!"),
        ("DONE", 32),
        ("DONE", "XYZ!"),
        ("DONE", None),
    ]


def test_third_kind_brings_its_checks() -> None:
    """A description of a third kind is refused by the checks of that kind, and by those that all kinds share."""
    with pytest.raises(InvalidTaskError, match="text must not be empty"):
        Prompt("")
    with pytest.raises(InvalidTaskError, match="uid must be str"):
        Prompt("abc", uid=3)


async def test_third_kind_must_be_declared() -> None:
    """A backend that does not declare a kind is not given tasks of it."""
    async with Session() as session:
        with pytest.raises(UnsupportedError, match="cannot run prompts"):
            await session.submit_tasks([Prompt("abc")])
