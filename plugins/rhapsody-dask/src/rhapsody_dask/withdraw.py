"""Withdraws waiting tasks from the scheduler and the workers, and stops running executables."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Final

from distributed import Client
from rhapsody.plugin import EXECUTABLE, FUNCTION, CancelResult, ComputeTask

from . import on_scheduler, stopping
from .batches import HeldBatch
from .workers import ANSWER

TRIES: Final = 6  # a batch may move from worker to worker while it is being withdrawn


async def withdraw(
    client: Client, token: str, wanted: Mapping[HeldBatch, list[str]]
) -> AsyncIterator[tuple[HeldBatch, list[str], bool]]:
    """Keep tasks from beginning.

    A batch that no worker has is withdrawn from the scheduler, whole. For a batch that a worker has, the worker either
    withdraws single tasks, or promises not to begin the batch at all. After such a promise the scheduler is asked
    again, because the batch may have moved in between. A worker that does not answer is not asked again; should it
    read the request later, its reports have the outcome of the tasks.

    Args:
        client: whose batches they are.
        token: names the backend on the cluster.
        wanted: uids of tasks, by their batch.

    Yields:
        A batch, its wanted tasks that will not begin, and whether the batch was taken back whole: each as soon as it is
        so, since nothing else reports it.
    """
    pending = dict(wanted)
    promised: dict[str, str | None] = dict.fromkeys((held.key for held in pending), None)
    for attempt in range(TRIES):
        if not pending:
            break
        if attempt:
            await asyncio.sleep(0.01 * 2**attempt)
        taken, at = await _ask_scheduler(client, pending, promised)
        for held in taken:
            yield held, pending.pop(held), True
        answers = await asyncio.gather(
            *(
                _ask_worker(client, token, address, {held: pending[held] for held in batches})
                for address, batches in at.items()
            )
        )
        for (address, batches), answer in zip(at.items(), answers, strict=True):
            if answer is None:
                for held in batches:
                    del pending[held]
                continue
            for held, never in answer.items():
                if never is None:
                    promised[held.key] = address
                else:  # it has begun there, even if its report of that is still under way
                    held.worker = held.worker or address
                    del pending[held]
                    yield held, never, False


async def _ask_scheduler(
    client: Client, pending: dict[HeldBatch, list[str]], promised: Mapping[str, str | None]
) -> tuple[list[HeldBatch], dict[str, list[HeldBatch]]]:
    """Take back what can be. Returns the batches that are, and those that are with a worker, by its address.

    Without a deadline: the scheduler acts on a question whenever it comes to it, and only its answer says when.
    """
    answers = await client.run_on_scheduler(
        on_scheduler.withdraw, client.id, {held.key: promised[held.key] for held in pending}
    )
    taken: list[HeldBatch] = []
    at: dict[str, list[HeldBatch]] = defaultdict(list)
    for held in list(pending):
        kind, address = answers[held.key]
        if kind == on_scheduler.WITHDRAWN:
            taken.append(held)
        elif kind == on_scheduler.GONE:
            del pending[held]
        elif address is not None:
            at[address].append(held)
    return taken, at


async def _ask_worker(
    client: Client, token: str, address: str, batches: Mapping[HeldBatch, list[str]]
) -> dict[HeldBatch, list[str] | None] | None:
    """Return for each batch the tasks that will not begin, None if the batch will not; nothing if the worker has gone.

    None: it does not answer. A function that holds the interpreter keeps its worker from that.
    """
    try:
        async with asyncio.timeout(ANSWER):
            answer = await client.run(
                stopping.withdraw,
                token,
                {held.number: uids for held, uids in batches.items()},
                workers=[address],
                on_error="ignore",
            )
    except TimeoutError:
        return None
    never = answer.get(address)
    return {} if never is None else {held: never[held.number] for held in batches}


async def take_back(
    client: Client,
    token: str,
    wanted: Mapping[HeldBatch, list[str]],
    withdrawn: Callable[[HeldBatch, Sequence[str], bool], None],
) -> list[str]:
    """Keep tasks from beginning. Returns those that will not; `withdrawn` is called with what `withdraw` yields."""
    uids: list[str] = []
    for held in wanted:
        held.withdrawals += 1
    try:
        async for held, never, is_whole in withdraw(client, token, wanted):
            uids += never
            withdrawn(held, never, is_whole)
    finally:
        for held in wanted:
            held.withdrawals -= 1
    return uids


async def stop_tasks(
    client: Client,
    token: str,
    session: str,
    wanted: Mapping[HeldBatch, Sequence[ComputeTask]],
    withdrawn: Callable[[HeldBatch, Sequence[str], bool], None],
    ends_workers: bool,
) -> dict[str, CancelResult]:
    """Stop tasks: those that wait will never run, executables are stopped where they run, functions with their worker.

    Args:
        client: connected.
        token: names the backend on the cluster.
        session: uid of the session.
        wanted: tasks, by their batch.
        withdrawn: called with what `withdraw` yields.
        ends_workers: whether a worker may be ended with the function that it runs: it runs nothing else.
    """
    uids = {held: [task.uid for task in tasks] for held, tasks in wanted.items()}
    never = await take_back(client, token, uids, withdrawn)
    results = dict.fromkeys(never, CancelResult.NEVER_STARTED)
    left = {held: [task for task in tasks if task.uid not in results] for held, tasks in wanted.items()}
    asked, stopped = await stop_executables(client, token, session, left)
    if ends_workers:
        ended, killed = await _end_functions(client, token, left)
        asked, stopped = asked | ended, stopped | killed
    for task in (task for tasks in left.values() for task in tasks):
        if task.uid not in asked:
            results[task.uid] = CancelResult.CANNOT_STOP
        else:
            results[task.uid] = CancelResult.STOPPED if task.uid in stopped else CancelResult.TOO_LATE
    return results


async def stop_executables(
    client: Client, token: str, session: str, tasks: Mapping[HeldBatch, Sequence[ComputeTask]]
) -> tuple[set[str], set[str]]:
    """Stop those tasks that are executables with a worker. Returns the uids of these, and of those that were stopped.

    Args:
        client: connected.
        token: names the backend on the cluster.
        session: uid of the session.
        tasks: by their batch.
    """
    by_worker: dict[str, dict[int, list[str]]] = defaultdict(dict)
    asked: set[str] = set()
    for held, group in tasks.items():
        uids = [task.uid for task in group if task.kind is EXECUTABLE]
        if uids and held.worker is not None:
            held.stopping.update(uids)
            asked.update(uids)
            by_worker[held.worker][held.number] = uids

    async def stop(worker: str, running: Mapping[int, list[str]]) -> list[str]:
        answer = await client.run(stopping.stop, token, session, running, workers=[worker], on_error="ignore")
        return answer.get(worker) or []

    answers = await asyncio.gather(*(stop(worker, running) for worker, running in by_worker.items()))
    return asked, {uid for answer in answers for uid in answer}


@contextlib.contextmanager
def _expecting_loss(worker: str) -> Iterator[None]:
    """Keep the scheduler, which is in this process, from logging as an error that a worker ends without an answer."""
    logger = logging.getLogger("distributed.scheduler")

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(f"broadcast to {worker} failed")

    logger.addFilter(is_news)
    logging.getLogger("distributed.nanny").addFilter(_is_no_restart)  # it may warn of the new worker much later
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _is_no_restart(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Restarting worker")


async def _end_functions(
    client: Client, token: str, tasks: Mapping[HeldBatch, Sequence[ComputeTask]]
) -> tuple[set[str], set[str]]:
    """End the workers that run these functions. Returns the uids of those that were asked for, and that were ended.

    A worker whose function holds the interpreter does not answer, and is left alone.
    """
    answered: set[str] = set()
    killed: set[str] = set()

    async def end(held: HeldBatch, worker: str, uids: list[str]) -> None:
        held.stopping.update(uids)  # before the loss of the worker is reported
        try:
            with _expecting_loss(worker):
                async with asyncio.timeout(ANSWER):
                    where = {"workers": [worker], "on_error": "ignore"}
                    answer = await client.run(stopping.end_functions, token, {held.number: uids}, **where)
        except TimeoutError:
            held.stopping.difference_update(uids)
            return
        answered.update(uids)
        if worker in answer:  # they had ended
            held.stopping.difference_update(uids)
        else:
            killed.update(uids)

    wanted = {held: [task.uid for task in group if task.kind is FUNCTION] for held, group in tasks.items()}
    await asyncio.gather(*(end(held, held.worker, uids) for held, uids in wanted.items() if uids and held.worker))
    return answered, killed
