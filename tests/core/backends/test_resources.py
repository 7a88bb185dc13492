"""What tasks get of this machine on the local backend."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rhapsody.api import BackendConfigurationError, ComputeTask, Resources, Session, TaskState, UnsupportedError
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.local import machine, shares

from tests.core.local import KINDS, run

NAMES = ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
LIMITED = {"memory/a/memory.limit_in_bytes": "4096"}
SHOW = " ".join(f"${{{name}-none}}" for name in [*NAMES, "NUMEXPR_NUM_THREADS"])


def node(kind: str = "threads", cores: int = 8, gpus: int = 4) -> Session:
    return Session(backends=[ConcurrentExecutionBackend(executor=kind, max_workers=cores, gpus=gpus)])


def shown(**fields: Any) -> ComputeTask:
    return ComputeTask(executable="/bin/sh", arguments=["-c", f"echo {SHOW}"], **fields)


@pytest.fixture(autouse=True)
def no_threads_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell, or an engine used before in this process, says about threads."""
    for name in [*NAMES, "NUMEXPR_NUM_THREADS"]:
        monkeypatch.delenv(name, raising=False)


def variables() -> list[str | None]:
    return [os.environ.get(name) for name in NAMES]


@pytest.mark.parametrize("kind", KINDS)
async def test_executable_has_its_devices_and_threads(kind: str) -> None:
    """An executable finds its GPUs and its number of threads in its variables; one that asks for nothing, none."""
    tasks = await run(
        node(kind),
        shown(resources=Resources(gpus_per_rank=2, cores_per_rank=3)),
        shown(resources=Resources(cores_per_rank=2)),
        shown(),
        shown(resources=Resources(cores_per_rank=2), environment={"OMP_NUM_THREADS": "7"}),
    )
    assert [(task.stdout or "").split() for task in tasks] == [
        ["0,1", "0,1", "3", "3", "3", "3"],
        ["2", "2", "2", "2"],
        ["none"] * 6,
        ["7", "2", "2", "2"],
    ]


async def test_function_in_process_has_its_devices() -> None:
    """A function in a process finds them too, while it runs and no longer."""
    first, after = (ComputeTask(function=variables, resources=wanted) for wanted in (Resources(gpus_per_rank=1), None))
    async with node("processes", cores=1, gpus=1) as session:
        for task in (first, after):
            await session.submit_tasks([task])
            await task
    assert first.return_value == ["0", "0", "1", "1", "1"]
    assert after.return_value[0] is None


async def test_devices_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are called as the variable of the program calls them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a,3")
    session = Session(backends=[ConcurrentExecutionBackend(max_workers=2)])
    (task,) = await run(session, shown(resources=Resources(gpus_per_rank=2)))
    assert (task.stdout or "").startswith("GPU-5a,3 GPU-5a,3 1")


@pytest.mark.skipif(shares.launcher() is None, reason="there is no MPI on this machine")
async def test_ranks_are_started() -> None:
    """An executable of several ranks runs as often, with its arguments as they are, in a shell too."""
    plain, shell = await run(
        node(),
        ComputeTask(executable="printf", arguments=["%s\n", "a b"], resources=Resources(ranks=3)),
        ComputeTask(executable="echo rank;", shell=True, resources=Resources(ranks=2)),
    )
    assert (plain.stdout or "").split("\n") == ["a b"] * 3 + [""]
    assert (shell.stdout or "").split() == ["rank"] * 2


async def test_missing_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an MPI, ranks are refused, and the error names the launchers that were searched."""
    monkeypatch.setattr("rhapsody.backends.local.backend.launcher", lambda: None)
    async with node() as session:
        with pytest.raises(UnsupportedError, match="neither mpiexec nor mpirun nor srun is on PATH"):
            await session.submit_tasks([ComputeTask(executable="true", resources=Resources(ranks=2))])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"cores_per_rank": 100_000}, "needs 100000 cores, and the largest task that could ever run has"),
        ({"gpus_per_rank": 5}, "needs 1 core and 5 GPUs, and the largest .* 4 GPUs"),
        ({"memory": "1024 TiB"}, "1024 TiB of memory, and the largest"),
        ({"ranks": 5, "gpus_per_rank": 0.9}, "shares of 0.9 for 5 ranks"),
        ({"ranks": 2, "nodes": 2}, "this machine is one node"),
    ],
)
async def test_impossible_is_refused_at_once(
    fields: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this machine does not have is refused before anything starts, and the error says the largest that could."""
    monkeypatch.setattr("rhapsody.backends.local.backend.launcher", lambda: "mpiexec")  # lest that were the complaint
    task = ComputeTask(executable="true", resources=Resources(**fields))
    async with node() as session:
        with pytest.raises(UnsupportedError, match=rf"{task.uid}: backend 'concurrent': .*{complaint}"):
            await session.submit_tasks([task])
    assert task.state is TaskState.NEW


async def test_function_in_thread_has_no_gpu() -> None:
    """A GPU for a function in a thread, or ranks of a function, are refused with the cure."""
    async with node() as session:
        for wanted, cure in ((Resources(gpus_per_rank=1), "executor='processes'"), (Resources(ranks=2), "executable")):
            with pytest.raises(UnsupportedError, match=cure):
                await session.submit_tasks([ComputeTask(function=int, resources=wanted)])


@pytest.mark.parametrize("kind", [*KINDS, "pool"])
async def test_plain_and_large_tasks_mix(kind: str) -> None:
    """Plain tasks and tasks of several cores run in one session, in any order, and all of them end."""
    with ThreadPoolExecutor(4) as pool:
        backend = ConcurrentExecutionBackend(executor=pool if kind == "pool" else kind, max_workers=4)
        large = Resources(cores_per_rank=4)
        tasks = [ComputeTask(function=int, resources=large if number % 7 == 3 else None) for number in range(700)]
        async with Session(backends=[backend]) as session:
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks, timeout=60)
    assert {task.state for task in tasks} == {TaskState.DONE}


@pytest.mark.parametrize("gpus", [-1, True, "2", 1.5])
def test_gpus_is_a_number(gpus: object) -> None:
    """A number of GPUs that is none is refused."""
    with pytest.raises(BackendConfigurationError, match="gpus must be a whole number from 0"):
        ConcurrentExecutionBackend(gpus=gpus)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2, 0"}, ("2", "0")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, ("0",)),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, ("0", "1")),
        ({"CUDA_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0,1"}, ("1",)),
    ],
)
def test_visible_devices_are_read(environment: dict[str, str], expected: tuple[str, ...]) -> None:
    """The variables of the drivers say which GPUs there are, as the drivers read them."""
    assert machine.gpus(environment) == expected


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable, nvidia-smi says how many GPUs there are; one that fails says none."""
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for script, expected in (("echo 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'", ("0", "1")), ("exit 9", ())):
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        machine._asked.cache_clear()
        assert machine.gpus({}) == expected
    machine._asked.cache_clear()


@pytest.mark.parametrize(
    ("membership", "files", "cores", "memory"),
    [
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/memory.max": "1048576", "a/b/cpu.max": "max 100000"}, 1, 2**20),
        (
            "4:memory:/a\n1:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000", **LIMITED},
            1,
            4096,
        ),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ("", {}, None, None),
    ],
)  # fmt: skip
def test_cgroup_limits_are_read(
    tmp_path: Path, membership: str, files: dict[str, str], cores: int | None, memory: int | None
) -> None:
    """The quota and the memory of the program's cgroup, or of one around it, count in both versions of cgroups."""
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    where = tmp_path / "root", tmp_path / "membership"
    every = len(os.sched_getaffinity(0))
    assert machine.cores(*where) == (min(cores, every) if cores else every)
    found = machine.memory(*where)
    assert found == memory if memory else found is not None and found > 2**20
