"""Takes work back: what waits from the scheduler and the workers, programs that run from the workers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Final

from distributed import Client

from . import on_scheduler, on_worker
from .units import Unit
from .workers import ANSWER

TRIES: Final = 6  # a unit may move from worker to worker while it is being withdrawn


async def withdraw(
    client: Client, token: str, wanted: Mapping[Unit, list[str]]
) -> AsyncIterator[tuple[Unit, list[str], bool]]:
    """Keep tasks from beginning.

    A unit that no worker has is taken back from the scheduler, whole. A unit that a worker has is asked for there:
    the worker either keeps single tasks from beginning, or promises not to begin with the unit at all. After such a
    promise the scheduler is asked again, because the unit may have moved in between. A worker that does not answer is
    not asked again; should it hear the question later, its reports will tell what became of the tasks.

    Args:
        client: whose units they are.
        token: names the backend on the cluster.
        wanted: uids of tasks, by their unit.

    Yields:
        A unit, its wanted tasks that will not begin, and whether the unit was taken back whole: each as soon as it is
        so, for nobody else will report it.
    """
    pending = dict(wanted)
    promised: dict[str, str | None] = dict.fromkeys((unit.key for unit in pending), None)
    for attempt in range(TRIES):
        if not pending:
            break
        if attempt:
            await asyncio.sleep(0.01 * 2**attempt)
        taken, at = await _ask_scheduler(client, pending, promised)
        for unit in taken:
            yield unit, pending.pop(unit), True
        answers = await asyncio.gather(
            *(
                _ask_worker(client, token, address, {unit: pending[unit] for unit in units})
                for address, units in at.items()
            )
        )
        for (address, units), answer in zip(at.items(), answers, strict=True):
            if answer is None:
                for unit in units:
                    del pending[unit]
                continue
            for unit, told in answer.items():
                if told is None:
                    promised[unit.key] = address
                else:  # it has begun there, even if its report of that is still under way
                    unit.worker = unit.worker or address
                    del pending[unit]
                    yield unit, told, False


async def _ask_scheduler(
    client: Client, pending: dict[Unit, list[str]], promised: Mapping[str, str | None]
) -> tuple[list[Unit], dict[str, list[Unit]]]:
    """Take back what can be. Returns the units that are, and those that are with a worker, by its address.

    Without a deadline: the scheduler acts on a question whenever it comes to it, and only its answer tells of that.
    """
    fates = await client.run_on_scheduler(
        on_scheduler.withdraw, client.id, {unit.key: promised[unit.key] for unit in pending}
    )
    taken: list[Unit] = []
    at: dict[str, list[Unit]] = defaultdict(list)
    for unit in list(pending):
        word, address = fates[unit.key]
        if word == on_scheduler.WITHDRAWN:
            taken.append(unit)
        elif word == on_scheduler.GONE:
            del pending[unit]
        elif address is not None:
            at[address].append(unit)
    return taken, at


async def _ask_worker(
    client: Client, token: str, address: str, units: Mapping[Unit, list[str]]
) -> dict[Unit, list[str] | None] | None:
    """Return for each unit the tasks that will not begin, None if the unit will not; nothing if the worker has gone.

    None: it does not answer. A function that holds the interpreter keeps its worker from that.
    """
    try:
        async with asyncio.timeout(ANSWER):
            answer = await client.run(
                on_worker.withdraw,
                token,
                {unit.number: uids for unit, uids in units.items()},
                workers=[address],
                on_error="ignore",
            )
    except TimeoutError:
        return None
    told = answer.get(address)
    return {} if told is None else {unit: told[unit.number] for unit in units}


async def stop_executables(
    client: Client, token: str, session: str, running: Mapping[str, Mapping[int, list[str]]]
) -> set[str]:
    """Stop programs. Returns the uids of the tasks whose program was running.

    Args:
        client: connected.
        token: names the backend on the cluster.
        session: uid of the session.
        running: by address of a worker and number of a unit, the uids of its tasks.
    """

    async def stop(worker: str, units: Mapping[int, list[str]]) -> list[str]:
        answer = await client.run(on_worker.stop, token, session, units, workers=[worker], on_error="ignore")
        return answer.get(worker) or []

    answers = await asyncio.gather(*(stop(worker, tasks) for worker, tasks in running.items()))
    return {uid for answer in answers for uid in answer}
