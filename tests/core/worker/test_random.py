"""Random numbers of tasks: none are repeated unasked, and a seed repeats them all."""

from __future__ import annotations

import random
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from rhapsody.api import ComputeTask, InvalidTaskError, RepeatedRandomWarning, Session, seeded
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing.travel import script

MANY = {"target": 60}  # seconds: every task in one batch
EACH = {"max_tasks": 1}

DRAWS = """
import random
import numpy
from rhapsody.testing.tasks import same

generator = numpy.random.default_rng(3)

def with_global(_):
    return float(generator.random())

def with_rng(_, rng):
    return float(rng.random())

def with_modules(_):
    return random.random(), float(numpy.random.rand())
"""


def local(kind: str = "processes", workers: int = 2, batching: Any = None) -> Session:
    return Session(backends=[ConcurrentExecutionBackend(executor=kind, max_workers=workers, batching=batching)])


async def drawn(session: Session, function: Any, count: int = 30, **options: Any) -> list[Any]:
    async with session:
        return [value async for value in session.map(function, *options.pop("args", [range(count)]), **options)]


async def values(session: Session, *functions: Any) -> list[Any]:
    async with session:
        tasks = [ComputeTask(function=function) for function in functions]
        await session.submit_tasks(tasks)
        await session.wait_tasks(timeout=60)
        return [task.result().return_value for task in tasks]


@pytest.mark.parametrize("function", [random.random, np.random.rand], ids=["random", "numpy"])
async def test_module_functions_differ_in_tasks(function: Any) -> None:
    """Functions of `random` and `numpy.random` draw from the worker's generator, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = await values(local(), *[function] * 40)
    assert len(set(found)) == 40


async def test_forked_workers_draw_differently() -> None:
    """Workers that were forked from the program share no stream of numpy's with it or each other."""
    np.random.rand()  # the module's is the matter
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        backend = ConcurrentExecutionBackend(executor=pool, batching=EACH)
        found = await values(Session(backends=[backend]), *[np.random.rand] * 40)
    assert len({*found, np.random.rand()}) == 41


async def test_copied_generators_are_warned_of() -> None:
    """A method of a generator, a global one of the script, one that tasks share: each says so once, with the cure."""
    rng = np.random.default_rng(1)
    with script(DRAWS) as main:
        for function, args in (
            (np.random.default_rng(1).normal, [range(4)]),
            (random.Random(1).uniform, [range(4), range(4)]),
            (main.with_global, [range(4)]),
            (main.same, [[rng] * 4]),
        ):
            with pytest.warns(RepeatedRandomWarning, match="seed=.*spawn") as caught:
                await drawn(local(), function, args=args)
            assert len(caught) == 1


async def test_one_copy_of_a_generator_is_no_repetition() -> None:
    """One task with a generator, and tasks with one each, are not warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rng = np.random.default_rng(1)
        await values(local(), rng.normal)
        await drawn(local(), print_nothing, args=[rng.spawn(5)])


def print_nothing(_: Any) -> None:
    """Be given something."""


@pytest.mark.parametrize("name", ["with_rng", "with_modules", "normal", "random", "rand", "gauss"])
async def test_a_seed_repeats_whatever_runs_it(name: str) -> None:
    """The same numbers in threads and processes, one worker and several, one task in a batch and all; all different."""
    with script(DRAWS) as main:
        functions = {
            "normal": np.random.default_rng(9).normal,
            "random": random.random,
            "rand": np.random.rand,
            "gauss": random.Random(4).gauss,
        }
        function = functions.get(name) or getattr(main, name)
        options: dict[str, Any] = {"args": [[2] * 12]} if name not in ("random",) else {"args": [[]]}
        if name == "gauss":
            options["args"] = [[2.0] * 12, [1.0] * 12]
        if name == "random":  # it takes no argument
            found = [
                await values(session, *(seeded(random.random, 5, number) for number in range(12)))
                for session in (local("threads"), local(), local(workers=1, batching=MANY))
            ]
        else:
            sessions = (local("threads"), local(), local(workers=1, batching=MANY), local(batching=EACH))
            found = [list(map(str, await drawn(session, function, seed=5, **options))) for session in sessions]
            assert list(map(str, await drawn(local("threads"), function, seed=6, **options))) != found[0]
        assert all(each == found[0] for each in found)
        assert len(set(found[0])) == 12


async def test_streams_are_numpy_s_spawned_ones() -> None:
    """Stream 3 of seed 42 is the fourth that numpy's SeedSequence spawns."""
    with script(DRAWS) as main:
        found = await drawn(local("threads"), main.with_rng, 5, seed=42)
    spawned = np.random.SeedSequence(42).spawn(5)
    assert found == [np.random.default_rng(child).random() for child in spawned]


async def test_a_seed_leaves_the_program_s_numbers_alone() -> None:
    """In threads the generators of the modules are the program's, and go on as they would have."""
    random.seed(1)
    np.random.seed(1)  # as above
    wanted = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    with script(DRAWS) as main:
        await drawn(local("threads"), main.with_modules, seed=3)
    assert (random.random(), np.random.rand()) == wanted


@pytest.mark.parametrize("seed", [-1, 1.5, "x", True, []])
def test_a_seed_that_makes_no_sense_is_refused(seed: Any) -> None:
    """A seed is a whole number that is not negative, or several."""
    with pytest.raises(InvalidTaskError, match="not negative"):
        seeded(random.random, seed, 0)


def test_an_async_function_needs_rng_for_a_seed() -> None:
    """Its turns would mix with those of others."""

    async def draw() -> float:
        return random.random()

    with pytest.raises(InvalidTaskError, match="argument named rng"):
        seeded(draw, 1, 0)
