"""A process that guards RADICAL-Pilot's client, and lets nothing of it survive.

`python -m rhapsody_radical.keeper OWNER LIFELINE SID -- COMMAND...`

RADICAL-Pilot daemonizes some thirty processes, which are orphans once their parent is gone, and which overwrite their
environments. So its client, the command, runs below this process, a `rhapsody.worker.Subreaper`, which ends all
of it when the client ends or when its owner dies, and then removes what is left among temporary files. What a task of a
pilot on this machine leaves in the background ends with that task, which RADICAL-Pilot does not see to.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from rhapsody.worker import Subreaper

_TASK: Final = "RP_TASK_ID"  # which RADICAL-Pilot sets for each task, and no daemon of its own has
_CLIENT_GRACE: Final = 15.0  # seconds that the client has to cancel its pilot after its owner ended


def remove_temporary_files(sid: str) -> None:
    """Remove what RADICAL-Pilot leaves of a session in the folder for temporary files."""
    temporary = Path(tempfile.gettempdir())
    shutil.rmtree(temporary / sid, ignore_errors=True)
    for path in temporary.glob("rp.agent_cfg.*"):
        with contextlib.suppress(OSError):  # another user's, or already gone
            if sid.encode() in path.read_bytes():
                path.unlink()


def main() -> None:
    """Guard the command named on the command line."""
    owner, lifeline, sid, _, *command = sys.argv[1:]
    try:
        Subreaper().run(command, owner=int(owner), lifeline=int(lifeline), grace=_CLIENT_GRACE, job=_TASK)
    finally:
        remove_temporary_files(sid)


if __name__ == "__main__":
    main()
