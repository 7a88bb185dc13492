"""Backends are made as scripts for the package `rhapsody-py` make them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from rhapsody.api import (
    BackendConfigurationError,
    BackendNotFoundError,
    ComputeTask,
    Session,
    TaskExecutionError,
    TaskState,
    UnsupportedError,
    get_backend,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.compat.names import (
    AITask,
    BackendRegistry,
    StateMapper,
    discover_backends,
    enable_logging,
)
from rhapsody.compat.noop import NoopExecutionBackend


async def test_executor_comes_first() -> None:
    """An executor may be the first argument, with or without a name."""
    with ThreadPoolExecutor(3) as pool:
        alone, named = ConcurrentExecutionBackend(pool), ConcurrentExecutionBackend(pool, "mine")
        async with Session(backends=[alone, named]) as session:
            tasks = [ComputeTask(function=pow, args=(2, 5), backend=name) for name in ("concurrent", "mine")]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)
        assert [task.return_value for task in tasks] == [32, 32]
        for backend, name in (
            (ConcurrentExecutionBackend(pool, name="mine"), "mine"),
            (ConcurrentExecutionBackend("mine", pool), "mine"),
            (ConcurrentExecutionBackend("mine", executor=pool), "mine"),
            (ConcurrentExecutionBackend(pool, "processes"), "processes"),
            (get_backend("concurrent", pool), "concurrent"),
            (get_backend("concurrent", pool, "mine"), "mine"),
        ):
            assert (backend.name, backend._executor) == (name, pool)  # type: ignore[attr-defined]  # not in the base
    processes = ConcurrentExecutionBackend("processes", max_workers=1)
    assert (processes.name, processes.capabilities.cancel_functions) == ("concurrent", True)
    assert ConcurrentExecutionBackend("processes", executor="threads").name == "processes"
    assert ConcurrentExecutionBackend(None, "mine").name == "mine"


def test_text_that_is_no_executor_is_the_name() -> None:
    """A text alone that is no executor is taken for the name, with a warning; with an executor it is the name."""
    with pytest.warns(RuntimeWarning, match="'proceses' is no executor.*name='proceses'"):
        assert ConcurrentExecutionBackend("proceses").name == "proceses"
    assert ConcurrentExecutionBackend("proceses", "processes").name == "proceses"
    with pytest.raises(BackendConfigurationError, match="executor is given twice"):
        ConcurrentExecutionBackend("processes", "mine", executor="threads")
    with pytest.raises(BackendConfigurationError, match="executor must be"):
        ConcurrentExecutionBackend(5)  # type: ignore[arg-type]  # the mistake


async def test_noop_ends_everything() -> None:
    """NoopExecutionBackend ends every task as DONE, and runs none."""
    async with Session(backends=NoopExecutionBackend()) as session:
        tasks = [ComputeTask(function=exit), ComputeTask(executable="no such program")]
        tasks += [ComputeTask(function=exit) for _ in range(5000)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    assert {task.state for task in tasks} == {TaskState.DONE}
    assert {task.return_value for task in tasks} == {"Dummy Output"}


@pytest.mark.engine("dragon")
def test_dragon_takes_batch_kwargs() -> None:
    """DragonExecutionBackend is V3; batch_kwargs that V3 knows are used, and one warning names the others."""
    from rhapsody.backends import DragonExecutionBackendV3
    from rhapsody.compat.dragon import DragonExecutionBackend

    options = {"num_nodes": 1, "pool_nodes": 1, "scheduler_workers": 2, "disable_telemetry": True, "num_workers": 3}
    with pytest.warns(RuntimeWarning, match="num_nodes, pool_nodes, scheduler_workers have no effect") as warned:
        backend = DragonExecutionBackend(options, name="mine")
    assert len(warned) == 1
    assert isinstance(backend, DragonExecutionBackendV3)
    assert (backend.name, backend._workers, backend._telemetry) == ("mine", 3, False)
    assert DragonExecutionBackend().name == "dragon"
    assert DragonExecutionBackend(batch_kwargs={"num_workers": 2})._workers == 2
    assert DragonExecutionBackend("other", num_workers=1).name == "other"


@pytest.mark.engine("radical")
def test_radical_needs_no_raptor() -> None:
    """RadicalExecutionBackend takes a raptor_config, with one warning that functions need none."""
    from rhapsody.backends import RadicalExecutionBackend

    resources = {"resource": "local.localhost", "cores": 1}
    for make in (
        lambda: RadicalExecutionBackend(resources, {"masters": []}),
        lambda: RadicalExecutionBackend(resources, raptor_config={"masters": []}),
        lambda: RadicalExecutionBackend(resources, {"masters": []}, "radical"),
    ):
        with pytest.warns(RuntimeWarning, match="Raptor") as warned:
            assert make().name == "radical"
        assert len(warned) == 1
    assert get_backend("radical_pilot", resources=resources).name == "radical_pilot"
    assert RadicalExecutionBackend(resources, "mine").name == "mine"


def test_registry_lists_backends() -> None:
    """The registry and discover_backends name what is installed."""
    assert "concurrent" in BackendRegistry.list_backends()
    assert BackendRegistry.get_backend_class("concurrent") is ConcurrentExecutionBackend
    assert discover_backends()["concurrent"] is True
    with pytest.raises(BackendNotFoundError, match="entry points"):
        BackendRegistry.register_backend("mine", ConcurrentExecutionBackend)


def test_unknown_backend_is_a_value_error() -> None:
    """A backend that nobody has is a ValueError, as it is a LookupError."""
    with pytest.raises(ValueError, match="no backend is named"):
        get_backend("no_such_backend")


def test_states_by_name() -> None:
    """StateMapper names the states, for any backend."""
    states = StateMapper("dask")
    assert (states.DONE, states.to_main_state("FAILED")) == ("DONE", TaskState.FAILED)
    assert states.terminal_states == ("DONE", "FAILED", "CANCELED")


def test_prompts_are_refused_in_words() -> None:
    """An AITask says what to do instead."""
    with pytest.raises(UnsupportedError, match="from a function"):
        AITask("why?", model="any")


def test_error_has_the_task_uid() -> None:
    """TaskExecutionError names its task as task_uid too."""
    assert TaskExecutionError("task.1", 3).task_uid == "task.1"


def test_enable_logging_writes_records() -> None:
    """enable_logging writes to a stream; a second call replaces the first."""
    first, second = StringIO(), StringIO()
    logger = logging.getLogger("rhapsody")
    handlers, level = list(logger.handlers), logger.level
    try:
        enable_logging(level=logging.INFO, stream=first)
        enable_logging(level=logging.INFO, format_string="%(message)s", stream=second)
        logging.getLogger("rhapsody.test").info("hello")
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    assert (first.getvalue(), second.getvalue()) == ("", "hello\n")
