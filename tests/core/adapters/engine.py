"""A workflow engine as a backend sees it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from rhapsody.plugin import ExecutionBackend


class Engine:
    """What a workflow engine does with a backend."""

    def __init__(self, backend: ExecutionBackend) -> None:
        self.backend = backend
        self.reports: list[tuple[Any, str]] = []
        self.ended: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        self.inside = False
        self.thread = threading.get_ident()
        backend.register_callback(self.report)

    def report(self, task: dict[str, Any], state: str) -> None:
        assert not self.inside, "called from inside submit_tasks"
        assert threading.get_ident() == self.thread
        self.reports.append((task.get("uid"), state))
        if state in self.backend.get_task_states_map().terminal_states:
            self.ended[task.get("uid")].set_result(task)

    async def submit(self, *tasks: dict[str, Any]) -> None:
        for task in tasks:
            self.ended[task.get("uid")] = asyncio.get_running_loop().create_future()
        submission = asyncio.ensure_future(self._submit(list(tasks)))
        await submission

    async def _submit(self, tasks: list[dict[str, Any]]) -> None:
        coroutine = self.backend.submit_tasks(tasks)
        self.inside = True  # a callback before the first await would be inside the call
        try:
            await coroutine
        finally:
            self.inside = False

    async def run(self, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
        await self.submit(*tasks)
        return await asyncio.wait_for(asyncio.gather(*(self.ended[task.get("uid")] for task in tasks)), 60)


def function(uid: str, call: Any, *args: Any, **more: Any) -> dict[str, Any]:
    return {"uid": uid, "function": call, "args": args, "kwargs": {}, "executable": None, "name": "f", **more}


def executable(uid: str, program: str, *arguments: Any, **more: Any) -> dict[str, Any]:
    return {"uid": uid, "executable": program, "arguments": list(arguments), "function": None, **more}
