"""In a notebook a session spans cells of one running loop, and its end writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.timeout(240)

SECONDS = 100

Cell = Callable[[str], list[str]]


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    """Run a cell in a kernel, and return all that it wrote, errors and warnings too."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)

        def run(code: str) -> list[str]:
            wrote: list[str] = []

            def keep(message: dict[str, Any]) -> None:
                content = message["content"]
                if message["msg_type"] == "stream":
                    wrote.extend(content["text"].splitlines())
                elif message["msg_type"] == "error":
                    wrote.extend(content["traceback"])

            client.execute_interactive(code, output_hook=keep, timeout=SECONDS)
            return wrote

        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.mark.parametrize(
    "backend",
    [
        "ConcurrentExecutionBackend()",
        "ConcurrentExecutionBackend(executor='processes', max_workers=2)",
        pytest.param("DaskExecutionBackend({'n_workers': 1})", marks=pytest.mark.engine("dask")),
        pytest.param("DaskExecutionBackend({'n_workers': 4})", marks=[pytest.mark.engine("dask"), pytest.mark.nightly]),
        pytest.param("DragonExecutionBackendV3(num_workers=2)", marks=pytest.mark.engine("dragon")),
        pytest.param(
            "RadicalExecutionBackend({'cores': 2})", marks=[pytest.mark.engine("radical"), pytest.mark.nightly]
        ),
    ],
)
def test_session_spans_cells(cell: Cell, backend: str) -> None:
    """A session spans cells of a notebook, and its end writes nothing."""
    kind = backend.partition("(")[0]
    assert cell(f"from rhapsody.api import ComputeTask, Session\nfrom rhapsody.backends import {kind}") == []
    assert cell(f"session = Session(backends=[{backend}])\nscale = 3") == []
    assert (
        cell("""
            def scaled(x):
                return scale * x
            tasks = [ComputeTask(function=scaled, args=(i,)) for i in range(50)]
            tasks.append(ComputeTask(executable="/bin/echo", arguments=["hello"]))
            futures = await session.submit_tasks(tasks)
        """)
        == []
    )
    assert cell("await session.wait_tasks(tasks)\nprint(sum(task.return_value for task in tasks[:50]))") == ["3675"]
    assert cell("print(tasks[50].stdout.strip(), (await tasks[0]).return_value)") == ["hello 0"]
    assert cell("await session.close()") == []
    assert cell("import asyncio\nawait asyncio.sleep(0.2)") == []
