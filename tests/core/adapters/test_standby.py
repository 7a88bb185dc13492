"""`await backend` starts the engine, and whoever gets the backend takes it over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import BackendStartError, ComputeTask, Session, SessionError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.plugin import BackendContext, hookimpl

from .engine import Engine, executable, function

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Counted(ConcurrentExecutionBackend):
    """Counts its starts and ends, and fails as many starts as it is given."""

    def __init__(self, *args: Any, failures: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[str] = []
        self.failures = failures

    @hookimpl
    async def rhapsody_init(self, context: BackendContext) -> None:
        self.calls.append("init")
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no license")
        await super().rhapsody_init(context)

    @hookimpl
    async def rhapsody_shutdown(self) -> None:
        self.calls.append("shutdown")
        await super().rhapsody_shutdown()


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_session_takes_the_engine_over(kind: str, work_dir: Path) -> None:
    """An awaited backend starts once; in its session tasks run, are captured and canceled as ever."""
    backend = await Counted(executor=kind, max_workers=2)
    assert backend.calls == ["init"]
    async with Session(backends={"mine": backend}, uid="run", work_dir=work_dir) as session:
        tasks = [ComputeTask(function=pow, args=(2, i), backend="mine") for i in range(100)]
        captured = ComputeTask(executable="echo", arguments=["hello"], capture_stdio=True)
        forever = ComputeTask(executable="sleep", arguments=["600"])
        await session.submit_tasks([*tasks, captured, forever])
        await session.wait_tasks([*tasks, captured])
        assert [task.return_value for task in tasks] == [2**i for i in range(100)]
        assert Path(captured.stdout_path or "").parent == work_dir / "run"
        assert await session.cancel_tasks([forever]) == {forever.uid: "STOPPED"}
    assert backend.calls == ["init", "shutdown"]


async def test_awaited_twice_starts_once() -> None:
    """Several who await a backend get one engine; shutdown ends it, and may be repeated."""
    backend = Counted(max_workers=1)
    assert list(await asyncio.gather(backend, backend)) == [backend, backend]
    await backend
    await backend.shutdown()
    await backend.shutdown()
    assert backend.calls == ["init", "shutdown"]


async def test_failed_start_is_raised_at_await() -> None:
    """A start that fails is raised where the backend is awaited, and may be tried again."""
    backend = Counted(max_workers=1, failures=2)
    for _ in range(2):
        with pytest.raises(BackendStartError, match="no license"):
            await backend
    assert backend.calls == ["init", "shutdown"] * 2
    (task,) = await Engine(await backend).run(function("task.1", pow, 2, 5))
    assert task["return_value"] == 32
    await backend.shutdown()


async def test_block_shuts_the_engine_down() -> None:
    """`async with Backend(...)` starts the engine, and ends it with what still runs."""
    async with Counted(max_workers=1) as backend:
        assert backend.calls == ["init"]
        engine = Engine(backend)
        await engine.submit(executable("task.1", "sleep", 600))
    assert [state for _, state in engine.reports][-1] == "CANCELED"
    assert backend.calls == ["init", "shutdown"]


async def test_create_passes_arguments() -> None:
    """`await Backend.create(...)` takes the arguments of the class, and starts the engine."""
    backend = await Counted.create("threads", "mine", max_workers=3)
    assert (backend.name, backend.calls) == ("mine", ["init"])
    await backend.shutdown()


async def test_state_follows_the_engine() -> None:
    """`state()` is text, and may be awaited."""
    backend = ConcurrentExecutionBackend(max_workers=1)
    states: list[str] = [backend.state()]
    engine = Engine(await backend)
    states.append(backend.state())
    await engine.submit(executable("task.1", "sleep", 600))
    states.append(await backend.state())
    await backend.cancel_task("task.1")
    await engine.ended["task.1"]
    states.append(backend.state())
    await backend.shutdown()
    states.append(backend.state())
    assert states == ["IDLE", "INITIALIZED", "RUNNING", "INITIALIZED", "SHUTDOWN"]


async def test_backend_in_session_refuses_engine(work_dir: Path) -> None:
    """What an engine asks of a backend that is in a session is refused, with what to call instead."""
    backend = ConcurrentExecutionBackend(max_workers=1)
    async with Session(backends=backend) as session:
        task = ComputeTask(function=int, uid="task.1")
        await session.submit_tasks([task])
        with pytest.raises(SessionError, match=r"session\.cancel_tasks"):
            await backend.cancel_task("task.1")
        with pytest.raises(SessionError, match=r"session\.close"):
            await backend.shutdown()
        assert backend.state() == "RUNNING"
        (refused,) = await Engine(backend).run(function("task.2", int))
        assert "belongs to session" in refused["stderr"]
        await task
    await backend.shutdown()
    assert backend.state() == "SHUTDOWN"


def test_unused_engine_ends_with_its_loop() -> None:
    """An awaited backend that nobody takes is shut down with the loop, and starts on the next."""
    backend = Counted(max_workers=1, executor="processes")

    async def start() -> None:
        await backend

    asyncio.run(start())
    assert backend.calls == ["init", "shutdown"]

    async def run() -> None:
        async with Session(backends=await backend) as session:
            await (await session.submit_tasks([ComputeTask(function=int)]))[0]

    asyncio.run(run())
    assert backend.calls == ["init", "shutdown"] * 2


def test_other_loop_is_refused() -> None:
    """A backend that was started on one loop serves no session of another."""
    backend = Counted(max_workers=1)

    async def use() -> Any:
        return await backend

    async def submit() -> None:
        await Session(backends=backend).start()

    with asyncio.Runner() as first:
        first.run(use())
        with asyncio.Runner() as second, pytest.raises(BackendStartError, match="another event loop"):
            second.run(submit())
    assert backend.calls == ["init", "shutdown"]


async def test_interrupted_await_leaves_nothing() -> None:
    """A shutdown while the engine starts ends the start."""
    never = asyncio.Event()

    class Slow(Counted):
        @hookimpl
        async def rhapsody_init(self, context: BackendContext) -> None:
            self.calls.append("init")
            await never.wait()

    backend = Slow(max_workers=1)
    start = asyncio.ensure_future(_started(backend))
    while not backend.calls:
        await asyncio.sleep(0.01)
    await backend.shutdown()
    with pytest.raises(BackendStartError, match="shut down while it started"):
        await start
    assert backend.calls == ["init", "shutdown"]


async def _started(backend: ConcurrentExecutionBackend) -> ConcurrentExecutionBackend:
    return await backend
