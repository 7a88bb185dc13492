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
from rhapsody_dragon.parts import PARTS
from rhapsody_dragon.v1 import DragonExecutionBackendV1
from rhapsody_dragon.v2 import DragonExecutionBackendV2
from rhapsody_dragon.v3 import DragonExecutionBackendV3

from .conftest import Script, shared_memory, wait_for

pytestmark = [pytest.mark.engine("dragon"), pytest.mark.timeout(240)]


def start() -> runtime.DragonRuntime:
    return runtime.acquire(lambda what: None)


def test_sessions_one_after_the_other_and_at_the_same_time_share_or_start_a_runtime(tmp_path: Path) -> None:
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
    for _ in range(2):
        asyncio.run(one())
        assert runtime._current is None
        assert {key for key in os.environ if key.startswith("DRAGON_")} == before


def test_two_programs_at_the_same_time_do_not_harm_each_other(script: Callable[[str], Script]) -> None:
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
    assert held._watchdog is not None
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


def test_a_runtime_that_dies_loses_the_backend_and_the_next_session_starts_another(tmp_path: Path) -> None:
    async def lose() -> None:
        session = Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path)
        await session.start()
        task = ComputeTask(function=time.sleep, args=(300,))
        await session.submit_tasks([task])
        assert runtime._current is not None
        watchdog = psutil.Process(runtime._current._watchdog._process.pid)
        processes = watchdog.children(recursive=True)
        files = shared_memory(processes)
        watchdog.children()[0].kill()  # the launcher
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


def test_a_runtime_that_dies_while_a_backend_starts_on_it_fails_the_start_and_holds_nobody_up(tmp_path: Path) -> None:
    async def main() -> None:
        session = Session([DragonExecutionBackendV2({"slots": 2})], work_dir=tmp_path)
        starting = asyncio.create_task(session.start())
        while runtime._current is None:
            await asyncio.sleep(0.01)
        psutil.Process(runtime._current._watchdog._process.pid).children()[0].kill()  # the launcher
        with pytest.raises(BackendStartError, match="Dragon runtime ended"):
            await asyncio.wait_for(starting, 60)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (DragonExecutionBackendV2, "dragon.native.queue.Queue.__init__"),
        (DragonExecutionBackendV2, "dragon.native.process.Process.start"),
        (partial(DragonExecutionBackendV3, disable_batch_submission=True), "dragon.native.process.Process.start"),
    ],
)
def test_a_runtime_that_dies_while_it_is_asked_for_something_fails_the_start(
    kind: Callable[[], ExecutionBackend], asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = start()
    assert held._watchdog is not None
    watchdog = psutil.Process(held._watchdog._process.pid)
    owner, name = pkgutil.resolve_name(asked.rpartition(".")[0]), asked.rpartition(".")[2]
    ask = getattr(owner, name)

    def ask_in_vain(*args: object, **keywords: object) -> object:
        monkeypatch.setattr(owner, name, ask)
        watchdog.children()[0].kill()  # the launcher
        return ask(*args, **keywords)

    monkeypatch.setattr(owner, name, ask_in_vain)

    async def main() -> None:
        with pytest.raises(BackendStartError, match="Dragon runtime"):
            await asyncio.wait_for(Session([kind()], work_dir=tmp_path).start(), 60)

    try:
        asyncio.run(main())
    finally:
        runtime.release(held)


def test_who_waits_for_an_answer_of_a_runtime_that_dies_gets_an_error_and_the_next_runtime_answers() -> None:
    from dragon.native.process import Process

    held = start()
    assert held._watchdog is not None
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
    psutil.Process(held._watchdog._process.pid).children()[0].kill()  # the launcher
    wait_for(lambda: held.lost, 20, "its end is noticed")
    runtime.release(held)
    wait_for(lambda: len(problems) == 3, 20, "nobody waits any more")

    after = start()
    brief = Process(target="/bin/true")
    brief.start()
    assert brief.join(timeout=20) == 0
    runtime.release(after)


def test_a_launcher_that_fails_is_named_with_its_reason_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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


def test_a_start_that_nobody_waits_for_any_more_is_given_up() -> None:
    give_up = threading.Event()
    with pytest.raises(BackendStartError, match="interrupted"):
        runtime.acquire(lambda what: give_up.set(), give_up)
    assert runtime._current is None


def test_a_token_that_opens_no_runtime_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRAGON_ATTACH_TOKEN", "wrong")
    monkeypatch.setenv("DRAGON_ATTACH_DIR", str(tmp_path))
    with pytest.raises(BackendStartError, match="DRAGON_ATTACH_TOKEN") as failed:
        start()
    assert "wrong" not in str(failed.value)


#: A program that has a runtime, and tells its token and its folder.
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


def test_the_token_of_a_running_runtime_attaches_to_it(script: Callable[[str], Script]) -> None:
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


def test_the_death_of_a_runtime_that_was_attached_to_loses_the_backend(
    script: Callable[[str], Script], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = script(OTHER)
    token, folder = json.loads(other.first)
    monkeypatch.setenv("DRAGON_ATTACH_TOKEN", token)
    monkeypatch.setenv("DRAGON_ATTACH_DIR", folder)

    async def main() -> None:
        session = Session([DragonExecutionBackendV2({"slots": 1})], work_dir=tmp_path / "session")
        await session.start()
        task = ComputeTask(function=time.sleep, args=(300,))
        await session.submit_tasks([task])
        [watchdog] = psutil.Process(other.process.pid).children()
        watchdog.children()[0].kill()  # the launcher
        with pytest.raises(BackendLostError, match="Dragon runtime"):
            await asyncio.wait_for(task, 60)
        await session.close(wait=False)

    asyncio.run(main())
    other.process.terminate()
    other.end()
    other.must_leave_nothing()


@pytest.mark.parametrize("kind", [DragonExecutionBackendV1, DragonExecutionBackendV2])
def test_resources_that_make_no_sense_are_refused_where_they_are_given(kind: type) -> None:
    for resources in ({"slots": 0}, {"slots": True}, {"slots": "2"}, {"nodes": 1}, {"working_dir": 3}):
        with pytest.raises(BackendConfigurationError, match=str(next(iter(resources)))):
            kind(resources)


def test_num_workers_that_make_no_sense_are_refused_where_they_are_given() -> None:
    with pytest.raises(BackendConfigurationError, match="num_workers"):
        DragonExecutionBackendV3(num_workers=0)


def test_inside_the_launcher_its_runtime_is_used_and_left_to_it(tmp_path: Path) -> None:
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
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DRAGON_")}
    done = subprocess.run(
        [sys.executable, "-c", launch, "-s", str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert "SUM launcher 4950" in done.stdout, done.stderr
    assert done.returncode == 0
    assert "\nDD" not in done.stdout, "the launcher lists the files that were left in shared memory"
