"""What core gives to a backend."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from rhapsody import __version__
from rhapsody.plugin import BackendContext


def context_of(folder: Path) -> BackendContext:
    return BackendContext(backend="b", session="s", work_dir=folder, loop=asyncio.get_running_loop())


async def test_another_core_is_warned_of_once(tmp_path: Path) -> None:
    """A RuntimeWarning on the loop names both versions, once, from whichever thread it was found."""
    context = context_of(tmp_path)
    thread = threading.Thread(target=context.compare_core, args=("9.8.7", "on its workers"))
    thread.start()
    thread.join()
    with pytest.warns(RuntimeWarning, match=f"'b': rhapsody-core {__version__} here and 9.8.7 on its workers"):
        await asyncio.sleep(0)
    context.compare_core("9.8.7", "on its workers")
    await asyncio.sleep(0)  # a second warning would be an error


async def test_the_same_core_is_not_warned_of(tmp_path: Path) -> None:
    """Workers of this installation are nothing to be warned of."""
    context_of(tmp_path).compare_core(__version__, "on its workers")
    await asyncio.sleep(0)  # a warning would be an error
