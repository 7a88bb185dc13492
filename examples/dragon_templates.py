"""Executables whose processes Dragon places: a template for one process, and a job of several processes.

    python examples/dragon_templates.py

Each is a job with native Dragon processes of its own; see docs/how-to/dragon.md.
"""

import asyncio

from rhapsody.api import ComputeTask, Session
from rhapsody.backends import get_backend


async def main() -> None:
    async with Session(backends=[get_backend("dragon")]) as session:
        one = ComputeTask(
            executable="/bin/sh",
            arguments=["-c", "echo in $PWD with $COLOUR"],
            backend_options={"process_template": {"cwd": "/", "env": {"COLOUR": "green"}}, "timeout": 60},
        )
        job = ComputeTask(
            executable="echo",
            arguments=["a job of one rank"],
            backend_options={"process_templates": [(1, {"cwd": "/"})], "pmi": None},
        )
        await session.submit_tasks([one, job])
        for task in (one, job):
            print((await task).stdout.strip())


asyncio.run(main())
