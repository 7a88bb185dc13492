"""Starts, connects to and closes a Dask cluster; knows nothing of tasks.

Dask's side of the backend runs on one event loop, the *engine's loop*: that of the user's client or cluster where they
gave one, and otherwise a loop in a thread of our own. A scheduler on the user's own loop would stand still whenever
their code computes; on its own thread it goes on feeding the workers, at the same cost per batch.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import dask.config
from distributed import Client, LocalCluster, Nanny, Security
from distributed.deploy.cluster import Cluster
from rhapsody.errors import BackendConfigurationError, BackendStartError

from .clusters import local_cluster, make_scratch, queue_cluster, remove_certificates
from .queues import SYSTEMS, QueueRequest

T = TypeVar("T")

_START_GRACE: Final = (
    10.0  # seconds that a cluster whose start was interrupted has to come up, to be closed in good order
)
_CLIENT_CLOSE: Final = 5.0  # seconds that a client has to close
_CLUSTER_CLOSE: Final = 15.0  # seconds that a cluster has to close


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rhapsody-dask", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=2))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def stop(self) -> None:
        """End the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


class Engine:
    """A cluster and a client of it, ours or the user's.

    Args:
        keywords: for the LocalCluster to start, where none of the others is given.
        cluster: the user's cluster, the address of its scheduler, or what a batch system is asked for.
        client: the user's client.
        security: for the connections of what is started here, or to an address.
        folder: returns the session's folder.

    Attributes:
        client: connected, once `open` has returned; its methods belong to the engine's loop.
        loop: the engine's.
    """

    def __init__(
        self,
        keywords: Mapping[str, Any],
        cluster: Cluster | QueueRequest | str | None,
        client: Client | None,
        security: Security | bool | None,
        folder: Callable[[], Path],
    ) -> None:
        self._keywords = keywords
        self._request = cluster if isinstance(cluster, QueueRequest) else None
        self._given_cluster = None if isinstance(cluster, QueueRequest) else cluster
        self._security = security
        self._folder = folder
        self._given_client = client
        self._thread: LoopThread | None = None
        self._own_cluster: Cluster | None = None
        self._coming: asyncio.Task[Cluster] | None = None  # the cluster, while it starts
        self._own_client: Client | None = None
        self._scratch: str | None = None
        self._environment: dict[str, str | None] = {}  # the program's own, of the variables that nannies set in it
        self._client: Client | None = client
        if client is not None:
            self.loop = _loop_of(client)
        elif isinstance(cluster, Cluster):
            self.loop = _loop_of(cluster)
        else:
            self._thread = LoopThread()
            self.loop = self._thread.loop

    @property
    def client(self) -> Client:
        """The connected client."""
        assert self._client is not None, "the engine is open"
        return self._client

    @property
    def is_adaptive(self) -> bool | None:
        """Whether the cluster adds workers by itself when there is work; None if that is unknown here."""
        cluster = self._own_cluster or getattr(self.client, "cluster", None)
        return None if cluster is None else getattr(cluster, "_adaptive", None) is not None

    @property
    def is_on_this_machine(self) -> bool:
        """Whether all workers that there ever are run on this machine."""
        return isinstance(self._own_cluster or getattr(self.client, "cluster", None), LocalCluster)

    @property
    def owns_cluster(self) -> bool:
        """Whether the cluster was started here, on this machine, and will be closed here."""
        return self._own_cluster is not None and self._request is None

    @property
    def address(self) -> str | None:
        """Of the scheduler; None while there is no connection."""
        scheduler = getattr(self._client, "scheduler", None)
        return getattr(scheduler, "address", None)

    async def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await a coroutine of the engine's loop from any other, or from itself.

        If the caller is cancelled, so is the work.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(*args), self.loop))

    async def open(self) -> None:
        """Start what is to be started, and connect. On the engine's loop.

        Raises:
            BackendStartError: the cluster did not start, or no scheduler answers.
        """
        if self._given_client is not None:
            if self._given_client.asynchronous:
                await self._given_client  # one that was not awaited yet connects now
            if self._given_client.status != "running":
                raise BackendStartError(f"the Dask client that was given is {self._given_client.status}")
            return
        target = self._given_cluster
        if target is None:
            # Not canceled with this coroutine: Dask cannot be interrupted here. `close` waits for it.
            self._coming = asyncio.ensure_future(self._start_cluster())
            self._coming.add_done_callback(lambda done: done.cancelled() or done.exception())
            target = await asyncio.shield(self._coming)
        try:
            security = {"security": self._security} if isinstance(self._security, Security) else {}
            self._own_client = self._client = await Client(
                target, asynchronous=True, set_as_default=False, name="rhapsody", **security
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise BackendStartError(f"no Dask scheduler answers at {target}: {error}") from error

    async def _start_cluster(self) -> Cluster:
        if getattr(multiprocessing.process.current_process(), "_inheriting", False):
            raise BackendStartError(
                "the script starts its session again in each Dask worker, because Dask's workers import it: put what "
                "starts the session under `if __name__ == '__main__':`"
            )
        kind = "LocalCluster" if self._request is None else SYSTEMS[self._request.system]
        given = self._keywords if self._request is None else self._request.keywords
        try:
            if self._request is not None:
                self._own_cluster = queue_cluster(self._request, self._security, self._folder())
                await self._own_cluster
                self._own_cluster.scale(jobs=self._request.nodes)
                return self._own_cluster
            self._scratch = make_scratch()
            self._environment = {name: os.environ.get(name) for name in _nanny_environment()}
            self._own_cluster = local_cluster(given, self._security, self._scratch)
            return await self._own_cluster
        except (TypeError, ValueError) as error:
            raise BackendConfigurationError(f"{kind} refused {dict(given)!r}: {error}") from error
        except (OSError, RuntimeError, ImportError) as error:
            raise BackendStartError(f"{kind} did not start: {error} ({_root_of(error)})") from error
        finally:
            self._restore_environment()

    def _restore_environment(self) -> None:
        """Undo what nannies wrote into the program's environment for the workers that they started.

        distributed 2026.8 (nanny.py, pre_spawn_env) leaves OMP_NUM_THREADS=1 and others there: executables of
        another backend, and numpy imported later, would have one thread.
        """
        written = _nanny_environment()
        for name, before in self._environment.items():
            if os.environ.get(name) == written.get(name) != before:
                os.environ.pop(name) if before is None else os.environ.update({name: before})

    async def close(self, wait: bool) -> None:
        """Close what was opened here, the client first: otherwise both complain. On the engine's loop.

        Args:
            wait: whether the workers are idle. Those that are not are killed: left to themselves they take 5 seconds.
        """
        if self._coming is not None:
            await asyncio.wait([self._coming], timeout=_START_GRACE)
        client, self._own_client = self._own_client, None
        try:
            if client is not None:
                await _bounded(client.close(), _CLIENT_CLOSE)
        finally:
            cluster, self._own_cluster = self._own_cluster, None
            if cluster is not None:
                if not wait:
                    await _kill_workers(cluster)
                await _bounded(cluster.close(), _CLUSTER_CLOSE)
                remove_certificates(cluster)
                self._restore_environment()  # a nanny that started a worker again wrote them again
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def end(self) -> None:
        """End our thread, if there is one; blocks."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()


def _nanny_environment() -> dict[str, str]:
    """Return what a nanny sets in its own process before it starts a worker, as nanny.py does."""
    configured = dask.config.get("distributed.nanny.pre-spawn-environ", None) or {}
    hash_seed = {"PYTHONHASHSEED": "6640"}
    return hash_seed | {name: str(value) for name, value in configured.items() if value is not None}


def _loop_of(given: Client | Cluster) -> asyncio.AbstractEventLoop:
    loop = getattr(given.loop, "asyncio_loop", None)
    if loop is None or loop.is_closed():
        raise BackendConfigurationError(f"{given!r} has no running event loop: it was closed, or never started")
    return loop  # type: ignore[no-any-return]  # tornado ships no types for it


def _root_of(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


async def _kill_workers(cluster: Cluster) -> None:
    for nanny in cluster.workers.values():
        if isinstance(nanny, Nanny) and nanny.process is not None and nanny.process.process is not None:
            nanny.auto_restart = False
            await nanny.process.process.kill()


class QuietLoggers:
    """Silences Dask's loggers while our own clusters are closed, since their warnings are about that close.

    Dask silences the cluster's loggers itself, but ends that just before the last warning. Several clusters may be
    closed at once; the levels are restored when the last of them is.
    """

    _LOGGERS: Final = tuple(map(logging.getLogger, ("distributed", "distributed.client", "distributed.nanny")))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._levels: list[int] = []

    def __enter__(self) -> None:
        """Begin."""
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._levels = [logger.level for logger in self._LOGGERS]
                for logger in self._LOGGERS:
                    logger.setLevel(logging.CRITICAL)

    def __exit__(self, *exception: object) -> None:
        """End."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                for logger, level in zip(self._LOGGERS, self._levels, strict=True):
                    logger.setLevel(level)


QUIET: Final = QuietLoggers()


async def _bounded(work: Awaitable[Any], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await work
