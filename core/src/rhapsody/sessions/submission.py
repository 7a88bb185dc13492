"""What `Session.submit_tasks` does: takes lists at once, and generators as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Final

from rhapsody.errors import DuplicateTaskError
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.scheduling.runner import BackendRunner
from rhapsody.sessions.admission import Routes, route
from rhapsody.sessions.dispatch import Dispatcher
from rhapsody.sessions.futures import StreamFutures, TaskFutures
from rhapsody.sessions.given import several
from rhapsody.sessions.lifecycle import Lifecycle, Phase
from rhapsody.sessions.observed import Observers
from rhapsody.sessions.recorder import Recorder

Given = ComputeTask | Mapping[str, Any]
IN_FLIGHT: Final = 10_000  # tasks: enough that no engine waits for the stream, about 10 MB
CHUNK: Final = 1000  # tasks submitted at once: about 5 ms of the loop's time


class Submission:
    """Accepts the tasks of one session.

    Args:
        session: its uid.
        runners: of its backends, by name.
        life: of the session.
        recorder: of its tasks.
        observers: of the session.
        dispatcher: hands accepted tasks to their backends.
    """

    def __init__(
        self,
        session: str,
        runners: Mapping[str, BackendRunner],
        life: Lifecycle,
        recorder: Recorder,
        observers: Observers,
        dispatcher: Dispatcher,
    ) -> None:
        self._session = session
        self._runners = runners
        self._life = life
        self._recorder = recorder
        self._observers = observers
        self._dispatcher = dispatcher

    async def submit(self, tasks: Iterable[Given] | AsyncIterable[Given]) -> TaskFutures:
        """Implement `Session.submit_tasks`."""
        if isinstance(tasks, AsyncIterable):
            return await self._submit_one_by_one(tasks)
        given = several(tasks, "submit_tasks")
        if isinstance(given, Collection):
            return await self._accept(given)
        source = iter(given)
        first = list(islice(source, IN_FLIGHT))
        if len(first) < IN_FLIGHT:
            return await self._accept(first)
        stream = _Stream(self)
        with stream:
            await stream.submit(first)
            first.clear()
            while chunk := list(islice(source, CHUNK)):
                await stream.submit(chunk)
        return stream.futures

    async def _submit_one_by_one(self, tasks: AsyncIterable[Given]) -> TaskFutures:
        """Submit what an asynchronous generator yields, each task before it is asked for the next: it may await it."""
        stream = _Stream(self)
        with stream:
            async for task in tasks:
                await stream.submit([task])
        return stream.futures

    async def _accept(self, tasks: Iterable[Given]) -> TaskFutures:
        """Accept tasks: all of them, or none."""
        accepted, loop = await self.accept(tasks)
        return TaskFutures(accepted, loop)

    async def accept(self, tasks: Iterable[Given]) -> tuple[list[ComputeTask], asyncio.AbstractEventLoop]:
        """Accept tasks, all of them or none. Returns them, and the loop of the session."""
        life, recorder = self._life, self._recorder
        life.refuse_if_closed()
        routes = route(tasks, self._runners, session=self._session, live=recorder.tasks, names=recorder.names)
        if life.phase is not Phase.OPEN:
            await life.start()
            life.refuse_if_closed()
            self._refuse_duplicates(routes)
        elif asyncio.get_running_loop() is not life.loop:
            life.bind()
        assert life.loop is not None
        if routes.cached:
            self._observers.add_cache()
        known: Mapping[str, Outcome] = {}
        if self._observers.want_submissions:
            known = self._observers.tasks_submitted(routes.tasks)
        recorder.dicts.add(routes.dicts)
        self._dispatcher.accept(routes, life.loop, known)
        return routes.tasks, life.loop

    def _refuse_duplicates(self, routes: Routes) -> None:
        """Check again what may have changed while the session started."""
        recorder = self._recorder
        for task in routes.tasks:
            if task.state is not TaskState.NEW or task.uid in recorder.tasks or task.uid in recorder.names:
                raise DuplicateTaskError(f"session {self._session} already has a task {task.uid!r}")

    def follow(self, futures: StreamFutures) -> None:
        """Notify the futures of a stream of the tasks that end."""
        self._recorder.ends.add(futures)

    def unfollow(self, futures: StreamFutures) -> None:
        """Notify them no more."""
        self._recorder.ends.remove(futures)


class _Stream:
    """One submission of which at most `IN_FLIGHT` tasks have not ended."""

    def __init__(self, submission: Submission) -> None:
        self.futures = StreamFutures(IN_FLIGHT)
        self._submission = submission

    def __enter__(self) -> None:
        self._submission.follow(self.futures)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._submission.unfollow(self.futures)
        if error is not None and self.futures:
            error.add_note(f"the {len(self.futures)} tasks that the generator had yielded before were accepted")

    async def submit(self, chunk: list[Given]) -> None:
        """Submit tasks once there is room for them."""
        await self.futures.room_for(len(chunk))
        tasks, loop = await self._submission.accept(chunk)
        self.futures.extend(tasks, loop)
