"""Asks whether a child has ended or was halted, and does not reap it, so that its number stays its own."""

from __future__ import annotations

import os
import subprocess
import sys

if sys.platform == "darwin":  # which has waitid from Python 3.13 only
    import psutil

    def has_ended(process: subprocess.Popen[bytes]) -> bool:
        """Whether a child has ended."""
        return process.returncode is not None or _status(process.pid) == psutil.STATUS_ZOMBIE

    def is_halted(process: subprocess.Popen[bytes]) -> bool:
        """Whether a child was halted by SIGSTOP."""
        return bool(_status(process.pid) == psutil.STATUS_STOPPED)

    def _status(pid: int) -> str:
        try:
            return str(psutil.Process(pid).status())
        except psutil.NoSuchProcess:
            return str(psutil.STATUS_ZOMBIE)

else:

    def has_ended(process: subprocess.Popen[bytes]) -> bool:
        """Whether a child has ended."""
        return process.returncode is not None or _is(process.pid, os.WEXITED)

    def is_halted(process: subprocess.Popen[bytes]) -> bool:
        """Whether a child was halted by SIGSTOP."""
        return _is(process.pid, os.WSTOPPED)

    def _is(pid: int, state: int) -> bool:
        return os.waitid(os.P_PID, pid, state | os.WNOHANG | os.WNOWAIT) is not None
