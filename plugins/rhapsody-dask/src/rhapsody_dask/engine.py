"""Starts, connects to and closes a Dask cluster; knows nothing of tasks.

Dask's side of the backend runs on one event loop, the *engine's loop*: that of the user's client or cluster where they
gave one, and otherwise a loop in a thread of our own. A scheduler on the user's own loop would stand still whenever
their code computes; on its own thread it goes on feeding the workers, at the same cost per unit.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import dask.config
from distributed import Client, LocalCluster, Nanny, Worker
from distributed.deploy.cluster import Cluster
from rhapsody.errors import BackendConfigurationError, BackendStartError

T = TypeVar("T")

SCRATCH: Final = "rhapsody-dask"
_COMES: Final = 10.0  # seconds that a cluster whose start was interrupted has to come up, to be closed in good order
# No dashboard unless asked for, and any free port for what is left of it: a port that is taken is a warning on the
# user's terminal, and several clusters on one machine are nothing unusual here.
NO_DASHBOARD: Final = {"dashboard": False, "dashboard_address": ":0"}


def cluster_keywords() -> set[str]:
    """Return the keywords that LocalCluster takes, its own and those that it passes on to workers."""
    words: set[str] = set()
    for kind in (LocalCluster, Nanny, Worker):
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in ("self", "scheduler_ip"):
                words.add(name)
    return words


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
        keywords: for the LocalCluster to start, where neither of the others is given.
        cluster: the user's cluster, or the address of its scheduler.
        client: the user's client.

    Attributes:
        client: connected, once `open` has returned; its methods belong to the engine's loop.
        loop: the engine's.
    """

    def __init__(
        self, keywords: Mapping[str, Any], cluster: Cluster | str | None = None, client: Client | None = None
    ) -> None:
        self._keywords = keywords
        self._given_cluster = cluster
        self._given_client = client
        self._thread: LoopThread | None = None
        self._own_cluster: LocalCluster | None = None
        self._coming: asyncio.Task[LocalCluster] | None = None  # the cluster, while it starts
        self._own_client: Client | None = None
        self._scratch: str | None = None
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
        """Whether the cluster adds workers by itself when there is work; None if it cannot be told from here."""
        cluster = self._own_cluster or getattr(self.client, "cluster", None)
        return None if cluster is None else getattr(cluster, "_adaptive", None) is not None

    @property
    def owns_cluster(self) -> bool:
        """Whether the cluster was started here, and will be closed here."""
        return self._own_cluster is not None

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
            BackendStartError: the cluster did not start, or nobody listens.
        """
        if self._given_client is not None:
            if self._given_client.asynchronous:
                await self._given_client  # one that was not awaited yet connects now
            if self._given_client.status != "running":
                raise BackendStartError(f"the Dask client that was given is {self._given_client.status}")
            return
        target = self._given_cluster
        if target is None:
            # Not canceled with this: Dask does not survive being interrupted here. `close` waits for it.
            self._coming = asyncio.ensure_future(self._start_cluster())
            self._coming.add_done_callback(lambda done: done.cancelled() or done.exception())
            target = await asyncio.shield(self._coming)
        try:
            self._own_client = self._client = await Client(
                target, asynchronous=True, set_as_default=False, name="rhapsody"
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise BackendStartError(f"no Dask scheduler answers at {target}: {error}") from error

    async def _start_cluster(self) -> LocalCluster:
        if getattr(multiprocessing.process.current_process(), "_inheriting", False):
            raise BackendStartError(
                "the script starts its session again in each Dask worker, because Dask's workers import it: put what "
                "starts the session under `if __name__ == '__main__':`"
            )
        try:
            given = dict(self._keywords)
            scheduler = dict(given.pop("scheduler_kwargs", None) or {})
            if "dashboard_address" not in given:
                scheduler = {**NO_DASHBOARD, **scheduler}
            if "local_directory" not in given:
                given["local_directory"] = self._scratch = make_scratch()
                scheduler.setdefault("local_directory", self._scratch)
            self._own_cluster = LocalCluster(**{**given, "scheduler_kwargs": scheduler, "asynchronous": True})
            return await self._own_cluster
        except (TypeError, ValueError) as error:
            raise BackendConfigurationError(f"LocalCluster refused {dict(self._keywords)!r}: {error}") from error
        except (OSError, RuntimeError) as error:
            raise BackendStartError(f"LocalCluster did not start: {error} ({_root_of(error)})") from error

    async def close(self, wait: bool) -> None:
        """Close what was opened here, the client first: otherwise both complain. On the engine's loop.

        Args:
            wait: whether the workers are idle. Those that are not are killed: left to themselves they take 5 seconds.
        """
        if self._coming is not None:
            await asyncio.wait([self._coming], timeout=_COMES)
        client, self._own_client = self._own_client, None
        cluster, self._own_cluster = self._own_cluster, None
        try:
            if client is not None:
                await _bounded(client.close(), 5)
        finally:
            if cluster is not None:
                if not wait:
                    await _kill_workers(cluster)
                await _bounded(cluster.close(), 15)
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def end(self) -> None:
        """End our thread, if there is one; blocks."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()


def _loop_of(given: Client | Cluster) -> asyncio.AbstractEventLoop:
    loop = getattr(given.loop, "asyncio_loop", None)
    if loop is None or loop.is_closed():
        raise BackendConfigurationError(f"{given!r} has no running event loop: it was closed, or never started")
    return loop  # type: ignore[no-any-return]  # tornado ships no types for it


def make_scratch() -> str:
    """Make the folder in which the workers of a cluster of ours keep theirs; Dask's own default is never removed.

    The folders of programs that were killed are removed first: their names tell whose they are.
    """
    parent = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    for left in parent.glob(f"{SCRATCH}-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdecimal() and not _is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)  # another user's stays
    return tempfile.mkdtemp(prefix=f"{SCRATCH}-{os.getpid()}-", dir=parent)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _root_of(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


async def _kill_workers(cluster: LocalCluster) -> None:
    for nanny in cluster.workers.values():
        if isinstance(nanny, Nanny) and nanny.process is not None and nanny.process.process is not None:
            nanny.auto_restart = False
            await nanny.process.process.kill()


class Hush:
    """Keeps Dask's own lines from the terminal while clusters of ours are closed, for what they tell of is our doing.

    Dask holds the cluster's lines back by itself, but lets go of them a moment before the last comes. Several clusters
    may be closed at once; the levels are as before when the last of them is.
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


HUSH: Final = Hush()


async def _bounded(work: Awaitable[Any], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await work
