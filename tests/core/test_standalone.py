"""Backends driven by a workflow engine instead of a session."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rhapsody.api import BackendStartError, InvalidTaskError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import UnclosedSessionWarning
from rhapsody.plugin import BackendContext, hookimpl

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Engine:
    """What a workflow engine does with a backend."""

    def __init__(self, backend: ConcurrentExecutionBackend) -> None:
        self.backend = backend
        self.reports: list[tuple[str, str]] = []
        self.ended: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.inside = False
        self.thread = threading.get_ident()
        backend.register_callback(self.report)

    def report(self, task: dict[str, Any], state: str) -> None:
        assert not self.inside, "called from inside submit_tasks"
        assert threading.get_ident() == self.thread
        self.reports.append((task["uid"], state))
        if state in self.backend.get_task_states_map().terminal_states:
            self.ended[task["uid"]].set_result(task)

    async def submit(self, *tasks: dict[str, Any]) -> None:
        for task in tasks:
            self.ended[task["uid"]] = asyncio.get_running_loop().create_future()
        submission = asyncio.ensure_future(self._submit(list(tasks)))
        await submission

    async def _submit(self, tasks: list[dict[str, Any]]) -> None:
        coroutine = self.backend.submit_tasks(tasks)
        self.inside = True  # a callback before the first await would be inside the call
        try:
            await coroutine
        finally:
            self.inside = False

    async def run(self, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
        await self.submit(*tasks)
        return await asyncio.wait_for(asyncio.gather(*(self.ended[task["uid"]] for task in tasks)), 60)


def function(uid: str, call: Any, *args: Any, **more: Any) -> dict[str, Any]:
    return {"uid": uid, "function": call, "args": args, "kwargs": {}, "executable": None, "name": "f", **more}


def executable(uid: str, program: str, *arguments: Any, **more: Any) -> dict[str, Any]:
    return {"uid": uid, "executable": program, "arguments": list(arguments), "function": None, **more}


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_results_are_in_the_dict_when_the_callback_comes(kind: str) -> None:
    backend = await ConcurrentExecutionBackend(executor=kind, max_workers=2)
    engine = Engine(backend)
    good, bad, program, wrong = await engine.run(
        function("task.1", pow, 2, 5),
        function("task.2", int, "no number"),
        executable("task.3", "echo", "hello"),
        executable("task.4", "sh", "-c", "echo why >&2; exit 3"),
    )
    assert (good["return_value"], good["state"]) == (32, "DONE")
    assert isinstance(bad["exception"], ValueError)
    assert (program["stdout"], program["exit_code"]) == ("hello\n", 0)
    assert (wrong["state"], wrong["stderr"], wrong["exit_code"]) == ("FAILED", "why\n", 3)
    finals = [state for _, state in engine.reports if state != "RUNNING"]
    assert sorted(finals) == ["DONE", "DONE", "FAILED", "FAILED"]
    await backend.shutdown()


async def test_nothing_is_reported_of_a_task_before_its_submit_has_returned_however_short_it_is() -> None:
    backend = ConcurrentExecutionBackend(max_workers=2)
    engine = Engine(backend)
    for i in range(50):
        await engine.run(function(f"task.{i}", int))
    assert len([state for _, state in engine.reports if state == "DONE"]) == 50
    await backend.shutdown()


async def test_uids_may_repeat_once_their_task_has_ended_and_even_before() -> None:
    backend = ConcurrentExecutionBackend(max_workers=2)
    one, two = Engine(backend), Engine(backend)
    backend.register_callback(lambda task, state: task["engine"].report(task, state))
    await asyncio.gather(
        one.run(function("task.000001", time.sleep, 0.05, engine=one)),
        two.run(function("task.000001", time.sleep, 0.05, engine=two)),
    )
    await one.run(function("task.000001", int, engine=one))
    assert [state for _, state in one.reports if state == "DONE"] == ["DONE", "DONE"]
    assert [state for _, state in two.reports if state == "DONE"] == ["DONE"]
    await backend.shutdown()


async def test_a_running_executable_and_a_waiting_function_are_canceled_by_uid() -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)
    engine = Engine(backend)
    await engine.submit(executable("task.1", "sleep", 600), function("task.2", int))
    while ("task.1", "RUNNING") not in engine.reports:
        await asyncio.sleep(0.01)
    assert await backend.cancel_task("task.2") is True
    assert await backend.cancel_task("task.1") is True
    assert await backend.cancel_task("task.1") is False
    assert await backend.cancel_task("unknown") is False
    await asyncio.gather(*engine.ended.values())
    assert [state for _, state in engine.reports if state == "CANCELED"] == ["CANCELED", "CANCELED"]
    await backend.shutdown()


async def test_shutdown_tells_the_end_of_every_task_before_it_returns_and_may_be_repeated() -> None:
    backend = ConcurrentExecutionBackend(max_workers=2)
    engine = Engine(backend)
    await engine.submit(*(executable(f"task.{i}", "sleep", 600) for i in range(10)))
    await asyncio.gather(backend.shutdown(), backend.shutdown())
    assert all(future.done() for future in engine.ended.values())
    await backend.shutdown()


async def test_a_backend_that_was_shut_down_starts_again_with_the_next_submit() -> None:
    backend = ConcurrentExecutionBackend(executor="processes", max_workers=1)
    engine = Engine(backend)
    for i in range(2):
        assert (await engine.run(function(f"task.{i}", pow, 2, i)))[0]["return_value"] == 2**i
        await backend.shutdown()


async def test_a_callback_that_raises_keeps_nothing_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    backend = ConcurrentExecutionBackend(max_workers=2)
    engine = Engine(backend)

    def report(task: dict[str, Any], state: str) -> None:
        engine.report(task, state)
        raise ZeroDivisionError("in the engine")

    backend.register_callback(report)
    await engine.run(*(function(f"task.{i}", int) for i in range(20)))
    assert len(engine.ended) == 20
    await backend.shutdown()
    assert "callback_failed" in caplog.text


async def test_captured_output_goes_to_the_engine_s_folder(tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)
    backend._work_dir = str(tmp_path / "engine.0000")
    engine = Engine(backend)
    (task,) = await engine.run(executable("task.1", "echo", "hello", capture_stdio=True))
    assert Path(task["stdout"]).read_text() == "hello\n"
    assert Path(task["stdout"]).parent == tmp_path / "engine.0000"
    await backend.shutdown()


async def test_a_start_that_failed_is_tried_again_by_the_next_submit() -> None:
    class Licensed(ConcurrentExecutionBackend):
        licenses: ClassVar[list[str]] = []

        @hookimpl
        async def rhapsody_init(self, context: BackendContext) -> None:
            if not self.licenses:
                raise RuntimeError("no license")
            await super().rhapsody_init(context)

    backend = Licensed(max_workers=1)
    engine = Engine(backend)
    for _ in range(2):
        with pytest.raises(BackendStartError, match="no license"):
            await engine.submit(function("task.1", pow, 2, 5))
    backend.licenses.append("one")
    (task,) = await engine.run(function("task.2", pow, 2, 5))
    assert task["return_value"] == 32
    await backend.shutdown()


def test_a_backend_whose_loop_ended_without_a_shutdown_serves_the_next_loop() -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)

    async def run(shut_down: bool) -> Any:
        (task,) = await Engine(backend).run(function("task.1", pow, 2, 5))
        if shut_down:
            await backend.shutdown()
        return task["return_value"]

    with pytest.warns(UnclosedSessionWarning):
        asyncio.run(run(shut_down=False))
    assert asyncio.run(run(shut_down=True)) == 32


async def test_an_engine_may_ask_for_captured_output_of_a_function_which_has_none() -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)
    (task,) = await Engine(backend).run(function("task.1", pow, 2, 5, capture_stdio=True))
    assert (task["return_value"], task["stdout"]) == (32, None)
    await backend.shutdown()


async def test_a_dict_that_is_no_task_refuses_all_and_later_ones_run() -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)
    engine = Engine(backend)
    with pytest.raises(InvalidTaskError):
        await engine.submit(function("task.1", int), {"uid": "task.2"})
    assert engine.reports == []
    await engine.run(function("task.3", int))
    await backend.shutdown()
