"""Takes work back: what waits from the scheduler and the workers, programs that run from the workers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from distributed import Client

from . import remote
from .units import Unit

ANSWER: Final = 5.0  # seconds within which a worker or the scheduler answers a question
TRIES: Final = 6  # a unit may move from worker to worker while it is being withdrawn


async def withdraw(
    client: Client, token: str, wanted: Mapping[Unit, list[str]]
) -> tuple[dict[Unit, list[str]], set[str]]:
    """Keep tasks from beginning.

    A unit that no worker has is taken back from the scheduler, whole. A unit that a worker has is asked for there:
    the worker either keeps single tasks from beginning, or promises not to begin with the unit at all. After such a
    promise the scheduler is asked again, because the unit may have moved in between.

    Args:
        client: whose units they are.
        token: names the backend on the cluster.
        wanted: uids of tasks, by their unit.

    Returns:
        The units that were taken back, with their wanted tasks; and single tasks that will not begin.
    """
    taken: dict[Unit, list[str]] = {}
    single: set[str] = set()
    pending = dict(wanted)
    promised: dict[str, str | None] = dict.fromkeys((unit.key for unit in pending), None)
    for attempt in range(TRIES):
        if not pending:
            break
        if attempt:
            await asyncio.sleep(0.01 * 2**attempt)
        at = await _ask_scheduler(client, pending, promised, taken)
        for address, units in at.items():
            answer = await _ask_worker(client, token, address, {unit: pending[unit] for unit in units})
            for unit, told in answer.items():
                if told is None:
                    promised[unit.key] = address
                else:  # it has begun there, even if its report of that is still under way
                    unit.worker = unit.worker or address
                    single.update(told)
                    del pending[unit]
    return taken, single


async def _ask_scheduler(
    client: Client,
    pending: dict[Unit, list[str]],
    promised: Mapping[str, str | None],
    taken: dict[Unit, list[str]],
) -> dict[str, list[Unit]]:
    """Take back what can be. Returns the units that are with a worker, by its address."""
    async with asyncio.timeout(ANSWER):
        fates = await client.run_on_scheduler(
            remote.withdraw_on_scheduler, client.id, {unit.key: promised[unit.key] for unit in pending}
        )
    at: dict[str, list[Unit]] = defaultdict(list)
    for unit in list(pending):
        word, address = fates[unit.key]
        if word == remote.WITHDRAWN:
            taken[unit] = pending.pop(unit)
        elif word == remote.GONE:
            del pending[unit]
        elif address is not None:
            at[address].append(unit)
    return at


async def _ask_worker(
    client: Client, token: str, address: str, units: Mapping[Unit, list[str]]
) -> dict[Unit, list[str] | None]:
    """Return for each unit the tasks that will not begin; None if the unit will not. Nothing if nobody answers."""
    async with asyncio.timeout(ANSWER):
        answer = await client.run(
            remote.withdraw_on_worker,
            token,
            {unit.number: uids for unit, uids in units.items()},
            workers=[address],
            on_error="ignore",
        )
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
        answer = await client.run(remote.stop_on_worker, token, session, units, workers=[worker], on_error="ignore")
        return answer.get(worker) or []

    answers = await asyncio.gather(*(stop(worker, tasks) for worker, tasks in running.items()))
    return {uid for answer in answers for uid in answer}
