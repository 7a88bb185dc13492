"""Finding, starting, sharing and losing the runtime."""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from rhapsody.api import ComputeTask, Session
from rhapsody.errors import BackendConfigurationError, BackendLostError, BackendStartError
from rhapsody.plugin import ExecutionBackend
from rhapsody_dragon import runtime
from rhapsody_dragon.startup_checks import PARTS
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v2 import DragonExecutionBackendV2
from rhapsody_dragon.v3 import DragonExecutionBackendV3

from .conftest import Script, outside, shared_memory, wait_for

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.usefixtures("no_dragon"), pytest.mark.timeout(240)]


def start() -> runtime.DragonRuntime:
    return runtime.acquire(lambda what: None)


def guard_of(held: runtime.DragonRuntime | None) -> psutil.Process:
    assert held is not None
    assert held._guard is not None
    return psutil.Process(held._guard.pid)


def kill_launcher(held: runtime.DragonRuntime | None) -> None:
    guard_of(held).children()[0].kill()


def test_sessions_share_a_runtime(tmp_path: Path) -> None:
    """Sessions at the same time share a runtime, which the last of them ends, and no variable is left."""

    async def one() -> None:
        async with Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path) as session:
            task = ComputeTask(function=os.getpid)
            await session.submit_tasks([task])
            await task
            async with Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path) as other:
                assert runtime._current is not None
                assert runtime._current.users == 2
                inner = ComputeTask(function=os.getpid)
                await other.submit_tasks([inner])
                assert (await inner).return_value != task.return_value
            again = ComputeTask(function=os.getpid)
            await session.submit_tasks([again])
            assert (await again).return_value == task.return_value

    before = {key for key in os.environ if key.startswith("DRAGON_")}
    asyncio.run(one())
    assert runtime._current is None
    assert {key for key in os.environ if key.startswith("DRAGON_")} == before


@pytest.mark.nightly  # test_a_child_program_is_not_this_one has two as well
def test_two_programs_have_two_runtimes(script: Callable[[str], Script]) -> None:
    """Each of two scripts ends its own runtime, and the other's goes on."""
    other = script(
        """
import time
from rhapsody_dragon import runtime
held = runtime.acquire(lambda what: None)
print("UP", flush=True)
time.sleep(300)
"""
    )
    assert other.first == "UP"
    held = start()
    runtime.release(held)
    assert all(Path(file).exists() for file in other.files)
    held = start()
    other.process.terminate()
    other.end()
    other.must_leave_nothing()
    from dragon.native.queue import Queue

    queue = Queue()
    queue.put("alive")
    assert queue.get(timeout=10) == "alive"
    queue.destroy()
    runtime.release(held)


def test_a_dead_runtime_loses_the_backend(tmp_path: Path) -> None:
    """Tasks fail with BackendLostError, nothing is left, and the next session starts another runtime."""

    async def lose() -> None:
        session = Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path)
        await session.start()
        task = ComputeTask(function=time.sleep, args=(300,))
        await session.submit_tasks([task])
        guard = guard_of(runtime._current)
        processes = guard.children(recursive=True)
        files = shared_memory(processes)
        kill_launcher(runtime._current)
        with pytest.raises(BackendLostError, match="Dragon runtime"):
            await asyncio.wait_for(task, 60)
        await session.close(wait=False)
        assert files
        assert not [file for file in files if Path(file).exists()]
        wait_for(lambda: not any(process.is_running() for process in processes), 20, "its processes are gone")

    async def use() -> None:
        async with Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path) as session:
            task = ComputeTask(function=abs, args=(-7,))
            await session.submit_tasks([task])
            assert (await task).return_value == 7

    asyncio.run(lose())
    asyncio.run(use())


@pytest.mark.nightly
def test_a_runtime_dies_during_a_start(tmp_path: Path) -> None:
    """The start of a backend fails, and does not wait for answers that never come."""

    async def main() -> None:
        session = Session([DragonExecutionBackendV2({"slots": 2})], work_dir=tmp_path)
        starting = asyncio.create_task(session.start())
        while runtime._current is None:
            await asyncio.sleep(0.01)
        kill_launcher(runtime._current)
        with pytest.raises(BackendStartError, match="Dragon runtime ended"):
            await asyncio.wait_for(starting, 60)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        pytest.param(DragonExecutionBackendV2, "dragon.native.queue.Queue.__init__", marks=pytest.mark.nightly),
        pytest.param(DragonExecutionBackendV2, "dragon.native.process.Process.start", marks=pytest.mark.nightly),
        (partial(DragonExecutionBackendV3, disable_batch_submission=True), "dragon.native.process.Process.start"),
    ],
)
def test_a_runtime_dies_during_a_request(
    kind: Callable[[], ExecutionBackend], asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A start fails whose request to the runtime is never answered."""
    held = start()
    owner, name = pkgutil.resolve_name(asked.rpartition(".")[0]), asked.rpartition(".")[2]
    ask = getattr(owner, name)

    def ask_in_vain(*args: object, **keywords: object) -> object:
        monkeypatch.setattr(owner, name, ask)
        kill_launcher(held)
        return ask(*args, **keywords)

    monkeypatch.setattr(owner, name, ask_in_vain)

    async def main() -> None:
        with pytest.raises(BackendStartError, match="Dragon runtime"):
            await asyncio.wait_for(Session([kind()], work_dir=tmp_path).start(), 60)

    try:
        asyncio.run(main())
    finally:
        runtime.release(held)


@pytest.mark.nightly
def test_requests_fail_with_the_runtime() -> None:
    """Requests to a runtime that dies get an error, and the next runtime answers."""
    from dragon.native.process import Process

    held = start()
    asleep = Process(target="/bin/sleep", args=["300"])
    asleep.start()
    problems: list[BaseException] = []

    def wait() -> None:
        try:
            asleep.join()
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]  # one of them reads, for all
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # until all of them have asked
    kill_launcher(held)
    wait_for(lambda: held.lost, 20, "its end is noticed")
    runtime.release(held)
    wait_for(lambda: len(problems) == 3, 20, "nobody waits any more")

    after = start()
    brief = Process(target="/bin/true")
    brief.start()
    assert brief.join(timeout=20) == 0
    runtime.release(after)


def test_a_failed_launcher_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A launcher that fails is named with its reason and the remedy."""
    (tmp_path / "dragon").mkdir()
    (tmp_path / "dragon" / "__init__.py").write_text("raise ImportError('this Dragon is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    waited_for: list[str] = []
    with pytest.raises(BackendStartError, match="its launcher process") as failed:
        runtime.acquire(waited_for.append)
    assert waited_for == [PARTS["launcher"].waits_for]
    assert "this Dragon is broken" in str(failed.value)
    assert "Remedy: " in str(failed.value)
    assert runtime._current is None


def test_an_unwanted_start_is_given_up() -> None:
    """A start that nobody waits for any more ends early, and holds nothing."""
    give_up = threading.Event()
    with pytest.raises(BackendStartError, match="interrupted"):
        runtime.acquire(lambda what: give_up.set(), give_up)
    assert runtime._current is None


def test_a_wrong_token_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token that opens no runtime is an error that names the variable and not the token."""
    monkeypatch.setenv("DRAGON_ATTACH_TOKEN", "0penSesame")
    monkeypatch.setenv("DRAGON_ATTACH_DIR", str(tmp_path))
    with pytest.raises(BackendStartError, match="DRAGON_ATTACH_TOKEN") as failed:
        start()
    assert "0penSesame" not in str(failed.value)


#: A program that has a runtime, and prints its token and its folder.
OTHER = """
import os
from rhapsody_dragon import runtime
held = runtime.acquire(lambda what: None)
import dragon.infrastructure.facts as facts, json
from dragon.utils import get_local_kv
token = json.loads(get_local_kv(facts.ATTACH_INFO_KVS_KEY))["auth_token"]
print(json.dumps([token, held.home + "/attach"]), flush=True)
import time
time.sleep(300)
"""


def test_a_token_attaches_to_a_runtime(script: Callable[[str], Script]) -> None:
    """The runtime of another program is used, and left alone afterwards."""
    other = script(OTHER)
    token, folder = json.loads(other.first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAGON_ATTACH_TOKEN", token)
        patch.setenv("DRAGON_ATTACH_DIR", folder)
        held = start()
        assert held.kind == "attached"
        from dragon.native.process import Process

        process = Process(target="/bin/sh", args=["-c", "exit 3"])
        process.start()
        assert process.join() == 3
        runtime.release(held)
    assert other.process.poll() is None, "the runtime of another is left alone"
    other.process.terminate()
    other.end()
    other.must_leave_nothing()


@pytest.mark.nightly
def test_an_attached_runtime_dies(
    script: Callable[[str], Script], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The end of another program's runtime loses the backend."""
    other = script(OTHER)
    token, folder = json.loads(other.first)
    monkeypatch.setenv("DRAGON_ATTACH_TOKEN", token)
    monkeypatch.setenv("DRAGON_ATTACH_DIR", folder)

    async def main() -> None:
        session = Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path / "session")
        await session.start()
        task = ComputeTask(function=time.sleep, args=(300,))
        await session.submit_tasks([task])
        [guard] = psutil.Process(other.process.pid).children()
        guard.children()[0].kill()  # the launcher
        with pytest.raises(BackendLostError, match="Dragon runtime"):
            await asyncio.wait_for(task, 60)
        await session.close(wait=False)

    asyncio.run(main())
    other.process.terminate()
    other.end()
    other.must_leave_nothing()


@pytest.mark.parametrize("kind", [DragonExecutionBackendV1, DragonExecutionBackendV2])
def test_bad_resources_are_refused(kind: type) -> None:
    """Unknown resources and unusable values are errors where they are given."""
    for resources in ({"slots": 0}, {"slots": True}, {"slots": "2"}, {"nodes": 1}, {"working_dir": 3}):
        with pytest.raises(BackendConfigurationError, match=str(next(iter(resources)))):
            kind(resources)


def test_bad_num_workers_are_refused() -> None:
    """An unusable number is an error where it is given."""
    with pytest.raises(BackendConfigurationError, match="num_workers"):
        DragonExecutionBackendV3(num_workers=0)


def test_the_launchers_runtime_is_used(tmp_path: Path) -> None:
    """A script inside Dragon's launcher uses its runtime, and leaves it to it."""
    path = tmp_path / "script.py"
    path.write_text(
        """
import asyncio
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import get_backend
from rhapsody_dragon import runtime

async def main():
    async with Session([get_backend("dragon_v2", resources={"slots": 2})]) as session:
        tasks = [ComputeTask(function=abs, args=(-n,)) for n in range(100)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        print("SUM", runtime._current.kind, sum(task.return_value for task in tasks), flush=True)

asyncio.run(main())
"""
    )
    launch = "import sys; from dragon.launcher.launch_selector import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", launch, "-s", str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=outside(),
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert "SUM launcher 4950" in done.stdout, done.stderr
    assert done.returncode == 0
    assert "\nDD" not in done.stdout, "the launcher lists the files that were left in shared memory"
