"""A small batch system, as a stranger might meet one: `python spool_queue.py FOLDER SLOTS`.

It knows nothing of RHAPSODY. A file NAME.job, one argument a line, is a job; at most SLOTS run at a time, in the order
of their names. NAME.end has the exit code of a job that has ended, and NAME.log what it printed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def serve(folder: Path, slots: int) -> None:
    running: dict[Path, subprocess.Popen[bytes]] = {}
    while True:
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                job.with_suffix(".new").write_text(str(process.returncode))
                job.with_suffix(".new").rename(job.with_suffix(".end"))
        for job in sorted(folder.glob("*.job"))[: slots - len(running)]:
            started = job.rename(job.with_suffix(".run"))
            with job.with_suffix(".log").open("wb") as log:
                command = started.read_text().splitlines()
                running[job] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        time.sleep(0.01)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
