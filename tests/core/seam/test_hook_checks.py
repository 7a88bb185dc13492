"""Hooks that core refuses when a backend or an observer is attached."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from rhapsody.api import InvalidBackendError, Session
from rhapsody.hookspecs import BackendHooks
from rhapsody.plugin import hookimpl
from rhapsody.seam.checks import AWAITED

from ..puppet import Puppet

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("hook", ["rhapsody_validate", "rhapsody_batch", "rhapsody_monitor"])
def test_async_hook_must_be_awaitable(hook: str) -> None:
    """A coroutine function is refused for a hook that is not awaited."""

    async def never_awaited(self: Puppet) -> None: ...

    backend = type("Async", (Puppet,), {hook: hookimpl(never_awaited)})()
    with pytest.raises(InvalidBackendError, match=rf"Async has {hook} as a coroutine function.*make it a plain method"):
        Session(backends=[backend])


def test_async_generator_hook_is_refused() -> None:
    """An async generator is refused for every hook but the monitor."""

    class Streams(Puppet):
        @hookimpl
        async def rhapsody_validate(self) -> AsyncIterator[None]:
            yield None

    with pytest.raises(InvalidBackendError, match="Streams has rhapsody_validate"):
        Session(backends=[Streams()])


@pytest.mark.parametrize("hook", ["rhapsody_session_opened", "rhapsody_tasks_changed", "rhapsody_session_closed"])
def test_async_observer_hook_is_refused(hook: str) -> None:
    """A coroutine function is refused for the hooks of observers."""

    async def never_awaited(self: object) -> None: ...

    observer = type("Async", (), {hook: hookimpl(never_awaited)})()
    with pytest.raises(InvalidBackendError, match=f"has {hook} as a coroutine function"):
        Session().observe(observer)


def test_awaited_hooks_match_the_spec() -> None:
    """The hooks that are awaited are those whose specification allows an awaitable."""
    returns = {name: str(hook.__annotations__["return"]) for name, hook in vars(BackendHooks).items() if callable(hook)}
    assert {name for name, returned in returns.items() if "Awaitable" in returned} == set(AWAITED)
