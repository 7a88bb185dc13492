import asyncio
import contextlib
import itertools
import subprocess
import sys
import textwrap
import threading

import pytest
from rhapsody.api import ComputeTask, Session, SessionError, TaskState
from rhapsody.backends import ConcurrentExecutionBackend


def double(value):
    return 2 * value


def add(one, other):
    return one + other


def fail_at_three(value):
    if value == 3:
        raise LookupError("three")
    return value


def local(**options):
    return Session([ConcurrentExecutionBackend(max_workers=2, **options)])


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_map_keeps_order(executor):
    """map yields results in order, whatever order they end in."""

    async def main():
        async with local(executor=executor) as session:
            return [value async for value in session.map(double, range(3000), in_flight=64)]

    assert asyncio.run(main()) == [2 * value for value in range(3000)]


def test_map_takes_several_iterables():
    """map takes as many iterables as the function has arguments and ends with the shortest."""

    async def main():
        async with local() as session:
            return [value async for value in session.map(add, itertools.count(), [10, 20, 30])]

    assert asyncio.run(main()) == [10, 21, 32]


def test_map_of_nothing_yields_nothing():
    """map of nothing yields nothing."""

    async def main():
        async with local() as session:
            return [value async for value in session.map(double, [])]

    assert asyncio.run(main()) == []


def test_map_raises_in_turn():
    """map raises the exception of a call in its turn."""

    async def main():
        seen = []
        async with local() as session:
            with pytest.raises(LookupError, match="three"):  # noqa: PT012  # the loop is what raises
                async for value in session.map(fail_at_three, range(10)):
                    seen.append(value)
        return seen

    assert asyncio.run(main()) == [0, 1, 2]


def test_map_bounds_what_is_in_flight():
    """map takes no more of an endless iterable than may be in flight."""

    async def main():
        taken = itertools.count()
        furthest = 0

        def source():
            nonlocal furthest
            for number in taken:
                furthest = number
                yield number

        async with local() as session, contextlib.aclosing(session.map(double, source(), in_flight=40)) as results:
            for expected in range(100):
                assert await anext(results) == 2 * expected
                assert furthest <= expected + 40

    asyncio.run(main())


def test_leaving_map_cancels_the_rest():
    """Leaving map early cancels the calls that are left."""

    async def main():
        release = threading.Event()
        ran = []

        def hold(value):
            ran.append(value)
            if value:
                release.wait(30)
            return value

        async with local() as session:
            async with contextlib.aclosing(session.map(hold, range(50))) as results:
                assert await anext(results) == 0
            release.set()
            await session.wait_tasks(timeout=30)
        return ran

    assert len(asyncio.run(main())) < 50


def test_as_completed_yields_every_task():
    """as_completed yields every task as it ends, however it ends."""

    async def main():
        tasks = [ComputeTask(function=fail_at_three, args=(value,)) for value in range(10)]
        async with local() as session:
            await session.submit_tasks(tasks[:5])
            ended = [task async for task in session.as_completed(tasks)]
        assert {task.uid for task in ended} == {task.uid for task in tasks}
        assert len(ended) == 10
        return [task.state for task in tasks]

    states = asyncio.run(main())
    assert states.count(TaskState.FAILED) == 1
    assert states.count(TaskState.DONE) == 9


def test_as_completed_yields_by_end():
    """as_completed yields a short task before a long one that was submitted first."""

    async def main():
        release = threading.Event()
        async with local() as session:
            long, short = ComputeTask(function=release.wait, args=(30,)), ComputeTask(function=double, args=(1,))
            results = session.as_completed([long, short])
            first = await anext(results)
            release.set()
            return first is short, await anext(results) is long

    assert asyncio.run(main()) == (True, True)


def test_as_completed_submits_on_demand():
    """as_completed submits new tasks of a generator only as there is room."""

    async def main():
        made = []

        def tasks():
            for value in range(200):
                made.append(value)
                yield {"function": double, "args": (value,)}

        seen = 0
        async with local() as session:
            async for task in session.as_completed(tasks(), in_flight=20):
                assert task.state is TaskState.DONE
                assert len(made) <= seen + 20
                seen += 1
        return seen

    assert asyncio.run(main()) == 200


def test_as_completed_refuses_foreign_tasks():
    """as_completed refuses a task of another session."""

    async def main():
        release = threading.Event()
        async with local() as one, local() as other:
            task = ComputeTask(function=release.wait, args=(30,))
            await one.submit_tasks([task])
            with pytest.raises(SessionError, match="not a task of session"):
                await anext(other.as_completed([task]))
            release.set()

    asyncio.run(main())


def test_leaving_as_completed_spares_tasks():
    """Leaving as_completed early leaves the tasks alone."""

    async def main():
        tasks = [ComputeTask(function=double, args=(value,)) for value in range(100)]
        async with local() as session, contextlib.aclosing(session.as_completed(tasks)) as ended:
            await anext(ended)
        return {task.state for task in tasks}

    assert asyncio.run(main()) == {TaskState.DONE}


@pytest.mark.parametrize("in_flight", [0, -1, True, 2.5, None])
def test_in_flight_must_be_positive(in_flight):
    """in_flight must be a positive whole number."""

    async def main():
        async with local() as session:
            with pytest.raises(SessionError, match="in_flight"):
                await anext(session.map(double, [1], in_flight=in_flight))
            with pytest.raises(SessionError, match="in_flight"):
                await anext(session.as_completed([], in_flight=in_flight))

    asyncio.run(main())


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("form", ["map", "as_completed"])
def test_a_long_stream_does_not_add_to_memory(executor, form):
    """A fresh process streams 60,000 tasks twice; the second time must not take more than the first."""
    script = f"""
        import asyncio, resource
        from rhapsody.api import ComputeTask, Session
        from rhapsody.backends import ConcurrentExecutionBackend

        def double(value):
            return 2 * value

        def stream(session, count):
            if {form!r} == "map":
                return session.map(double, range(count), in_flight=2000)
            tasks = (ComputeTask(function=double, args=(value,)) for value in range(count))
            return session.as_completed(tasks, in_flight=2000)

        async def main():
            async with Session([ConcurrentExecutionBackend(max_workers=2, executor={executor!r})]) as session:
                peaks = []
                for count in (15_000, 45_000):
                    seen = 0
                    async for _ in stream(session, count):
                        seen += 1
                    assert seen == count
                    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                print(peaks[1] - peaks[0])

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8  # MiB; 45,000 tasks that were kept would take 45
