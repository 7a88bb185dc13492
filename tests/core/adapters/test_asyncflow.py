"""Backends driven by a workflow engine instead of a session."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rhapsody.api import BackendStartError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import UnclosedSessionWarning
from rhapsody.plugin import BackendContext, hookimpl

from .engine import Engine, executable, function

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_result_precedes_the_callback(kind: str) -> None:
    """The result is in the dict when the callback is called."""
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


async def test_no_callback_before_submit_returns() -> None:
    """No callback comes before submit has returned, however short the task."""
    backend = ConcurrentExecutionBackend(max_workers=2)
    engine = Engine(backend)
    for i in range(50):
        await engine.run(function(f"task.{i}", int))
    assert len([state for _, state in engine.reports if state == "DONE"]) == 50
    await backend.shutdown()


async def test_uids_may_repeat() -> None:
    """A uid may repeat once its task has ended, and even before."""
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


async def test_cancel_by_uid() -> None:
    """A running executable and a waiting function are canceled by uid."""
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


async def test_shutdown_reports_every_task() -> None:
    """Shutdown reports the end of every task before it returns, and may be repeated."""
    backend = ConcurrentExecutionBackend(max_workers=2)
    engine = Engine(backend)
    await engine.submit(*(executable(f"task.{i}", "sleep", 600) for i in range(10)))
    await asyncio.gather(backend.shutdown(), backend.shutdown())
    assert all(future.done() for future in engine.ended.values())
    await backend.shutdown()


async def test_submit_restarts_the_backend() -> None:
    """A backend that was shut down starts again with the next submit."""
    backend = ConcurrentExecutionBackend(executor="processes", max_workers=1)
    engine = Engine(backend)
    for i in range(2):
        assert (await engine.run(function(f"task.{i}", pow, 2, i)))[0]["return_value"] == 2**i
        await backend.shutdown()


async def test_raising_callback_blocks_no_report(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises suppresses no other report."""
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


async def test_captured_output_folder(tmp_path: Path) -> None:
    """Captured output goes to the engine's folder."""
    backend = ConcurrentExecutionBackend(max_workers=1)
    backend._work_dir = str(tmp_path / "engine.0000")
    engine = Engine(backend)
    (task,) = await engine.run(executable("task.1", "echo", "hello", capture_stdio=True))
    assert Path(task["stdout"]).read_text() == "hello\n"
    assert Path(task["stdout"]).parent == tmp_path / "engine.0000"
    await backend.shutdown()


async def test_failed_start_is_retried() -> None:
    """A start that failed is tried again by the next submit."""

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
        (task,) = await engine.run(function("task.1", pow, 2, 5))
        assert task["state"] == "FAILED"
        assert isinstance(task["exception"], BackendStartError)
        assert "no license" in task["stderr"]
    backend.licenses.append("one")
    (task,) = await engine.run(function("task.2", pow, 2, 5))
    assert task["return_value"] == 32
    await backend.shutdown()


def test_next_loop_is_served() -> None:
    """A backend whose loop ended without a shutdown serves the next loop."""
    backend = ConcurrentExecutionBackend(max_workers=1)

    async def run(shut_down: bool) -> Any:
        (task,) = await Engine(backend).run(function("task.1", pow, 2, 5))
        if shut_down:
            await backend.shutdown()
        return task["return_value"]

    with pytest.warns(UnclosedSessionWarning):
        asyncio.run(run(shut_down=False))
    assert asyncio.run(run(shut_down=True)) == 32


async def test_capture_for_functions_is_ignored() -> None:
    """An engine may ask for captured output of a function, which has none."""
    backend = ConcurrentExecutionBackend(max_workers=1)
    (task,) = await Engine(backend).run(function("task.1", pow, 2, 5, capture_stdio=True))
    assert (task["return_value"], task["stdout"]) == (32, None)
    await backend.shutdown()
