"""Awaits hooks with a limit of time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

CANCEL_GRACE: Final = 10.0  # seconds that a canceled hook has to return before it is abandoned


async def bounded(result: Awaitable[None] | None, seconds: float) -> None:
    """Await what a hook returned, but no longer than this: also where the hook does not listen to being canceled.

    Raises:
        Overdue: it takes longer.
    """
    if result is None:
        return
    hook = asyncio.ensure_future(result)
    hook.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also if it ends later
    try:
        await asyncio.wait([hook], timeout=seconds)
    except asyncio.CancelledError:
        hook.cancel()
        await asyncio.wait([hook], timeout=CANCEL_GRACE)
        raise
    if not hook.done():
        hook.cancel()
        await asyncio.wait([hook], timeout=CANCEL_GRACE)
        raise Overdue
    hook.result()


class Overdue(Exception):
    """A hook took longer than its deadline."""
