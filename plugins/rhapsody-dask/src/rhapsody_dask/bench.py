"""Dask by itself, for `rhapsody bench --backend dask`: on the same scheduler and workers as the backend."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distributed import Client
from rhapsody.measure import RawEngine

from .backend import DaskExecutionBackend


def _call(arguments: tuple[Any, ...], function: Callable[..., Any]) -> Any:
    return function(*arguments)


def _run_executable(argv: Sequence[str]) -> int:
    return subprocess.run(argv, capture_output=True, check=True).returncode


@contextlib.contextmanager
def raw_engine(backend: DaskExecutionBackend, slots: int) -> Iterator[RawEngine]:
    """Yield a client of its own to the backend's scheduler."""
    with Client(backend.scheduler_address, set_as_default=False) as client:

        def run(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
            client.gather(client.map(_call, list(calls), function=function, pure=False))

        def commands(argvs: Sequence[Sequence[str]]) -> None:
            client.gather(client.map(_run_executable, list(argvs), pure=False))

        async def awaited(function: Callable[[], Any]) -> Any:
            return await asyncio.to_thread(lambda: client.submit(function, pure=False).result())

        yield RawEngine(label="Client.map + gather", run=run, commands=commands, awaited=awaited, most=1_000)
