"""Every error that RHAPSODY raises.

    RhapsodyError
    ├── SettingsError                 an environment variable holds something unusable (also ValueError)
    ├── SessionError                  a session is used as it cannot be (also RuntimeError)
    │   ├── SessionClosedError        the session no longer takes, or no longer runs, this
    │   └── JournalError              a journal cannot be written, or not be read
    ├── TaskError
    │   ├── InvalidTaskError          the description of a task makes no sense (also ValueError)
    │   ├── DuplicateTaskError        a uid, or a task object, that the session already has
    │   ├── UnsupportedError          the backend cannot honour what the task asks for
    │   ├── TaskExecutionError        an executable ended with something else than exit code 0
    │   ├── TaskCanceledError         the task was canceled
    │   ├── TaskTimeoutError          the task took longer than its timeout or deadline
    │   ├── DependencyError           a task on which it depends failed or was canceled
    │   ├── SerializationError        arguments, result or exception could not travel between processes
    │   ├── ProtocolError             the program and a worker have different versions of rhapsody-core
    │   ├── TaskInterruptedError      the task ran when an earlier run was killed, and was not run again
    │   └── WorkerLostError           the process that ran the task is gone
    └── BackendError
        ├── BackendNotFoundError      no backend has this name (also LookupError, ValueError)
        ├── BackendNotInstalledError  a known backend whose distribution is not installed (also ImportError)
        ├── BackendLoadError          a backend that is installed and cannot be imported (also ImportError)
        ├── AmbiguousBackendError     two distributions offer the same name (also LookupError)
        ├── InvalidBackendError       not a backend, or hooks that do not match the specification (also TypeError)
        ├── DuplicateBackendError     two backends of one name in one session (also ValueError)
        ├── BackendConfigurationError the backend's own arguments make no sense (also ValueError)
        ├── BackendStartError         the backend did not start
        ├── BackendLostError          the engine is gone, and with it what it held
        ├── SubmitError               the engine did not take a batch
        └── BackendShutdownError      the backend did not shut down cleanly

Every one of them can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class RhapsodyError(Exception):
    """The root of the tree.

    Args:
        message: what is wrong, of which task and backend, and what to do instead.
        details: kept in `args` after the message.
    """

    def __init__(self, message: str = "", *details: Any) -> None:
        super().__init__(message, *details)


class SettingsError(RhapsodyError, ValueError):
    """An environment variable holds something unusable."""


class SessionError(RhapsodyError, RuntimeError):
    """Something is wrong with how a session is used."""


class SessionClosedError(SessionError):
    """The session is closed, or closed before the task could end."""


class JournalError(SessionError):
    """The journal of a session cannot be written, or not be read."""


class TaskError(RhapsodyError):
    """Something is wrong with a task."""


class InvalidTaskError(TaskError, ValueError):
    """The description of a task makes no sense."""


class DuplicateTaskError(TaskError):
    """The session already has this uid or this task object."""


class UnsupportedError(TaskError):
    """The backend cannot honour what the task asks for."""


class TaskExecutionError(TaskError):
    """An executable ended with something else than exit code 0.

    Attributes:
        uid: the task.
        exit_code: what the process returned; negative for the signal that ended it; 127 if it was not
            found, 126 if it could not be run; None if it was never tried.
        stderr: the end of its standard error.
        paths: the files that hold its standard output and error, where they were captured to files.
    """

    def __init__(
        self, uid: str, exit_code: int | None, stderr: str = "", paths: Sequence[str] = (), reason: str = ""
    ) -> None:
        super().__init__(uid, exit_code, stderr, tuple(paths), reason)
        self.uid = uid
        self.exit_code = exit_code
        self.stderr = stderr
        self.paths = tuple(paths)
        self.reason = reason

    @property
    def task_uid(self) -> str:
        """The task: `uid` by its name in older scripts."""
        return self.uid

    def __str__(self) -> str:
        """Name the task, how it ended, and the last that it said."""
        if self.reason:
            text = f"task {self.uid}: {self.reason}"
        elif self.exit_code is not None and self.exit_code < 0:
            text = f"task {self.uid}: ended by signal {-self.exit_code}"
        else:
            text = f"task {self.uid}: exit code {self.exit_code}"
        if self.stderr.strip():
            text += f"\n{self.stderr.rstrip()[-2000:]}"
        if self.paths:
            text += f"\noutput in {', '.join(self.paths)}"
        return text


class TaskCanceledError(TaskError):
    """The task was canceled."""


class TaskTimeoutError(TaskError):
    """The task took longer than its timeout or deadline, and was stopped.

    Attributes:
        uid: the task.
        limit: which of the two, "timeout" or "deadline".
        seconds: the limit.
        stdout: what an executable had written, where it was kept in memory.
        stderr: likewise.
    """

    def __init__(
        self, uid: str, limit: str, seconds: float, stdout: str | None = None, stderr: str | None = None
    ) -> None:
        super().__init__(uid, limit, seconds, stdout, stderr)
        self.uid = uid
        self.limit = limit
        self.seconds = seconds
        self.stdout = stdout
        self.stderr = stderr

    def __str__(self) -> str:
        """Name the task and the limit, and the last that it said."""
        since = "it started" if self.limit == "timeout" else "its submit"
        text = f"task {self.uid} had not ended {self.seconds:g} seconds after {since} ({self.limit})"
        return f"{text}\n{self.stderr.rstrip()[-2000:]}" if self.stderr and self.stderr.strip() else text


class DependencyError(TaskError):
    """A task on which this one depends failed or was canceled; `__cause__` is the exception of that task.

    Attributes:
        uid: the task that did not run.
        root: the uid of the task that failed first.
        reason: why that one failed.
    """

    def __init__(self, uid: str, root: str, reason: str = "") -> None:
        super().__init__(uid, root, reason)
        self.uid = uid
        self.root = root
        self.reason = reason

    def __str__(self) -> str:
        """Name both tasks, and why the first failed."""
        return f"task {self.uid} did not run, since it depends on task {self.root}, which ended with {self.reason}"


class SerializationError(TaskError):
    """Arguments, a result or an exception could not travel between processes.

    Attributes:
        original_type: the name of the type of the exception that the task raised, where one did.
        original_traceback: the traceback of that exception, as text.
    """

    def __init__(self, message: str, original_type: str = "", original_traceback: str = "") -> None:
        super().__init__(message, original_type, original_traceback)
        self.original_type = original_type
        self.original_traceback = original_traceback

    def __str__(self) -> str:
        """Say what could not travel, and what the task itself had raised."""
        message: str = self.args[0]
        return f"{message}\n{self.original_traceback}".rstrip()


class TaskInterruptedError(TaskError):
    """The task ran when an earlier run of its session was killed, and was not run again: its effects are unknown."""


class ProtocolError(TaskError):
    """What travels between the program and a worker is of another version, or of a kind that one end does not know."""


class WorkerLostError(TaskError):
    """The process that ran the task is gone; whether the task's effects happened is unknown."""


class BackendError(RhapsodyError):
    """Something is wrong with a backend."""


class BackendNotFoundError(BackendError, LookupError, ValueError):
    """No backend has this name."""


class BackendNotInstalledError(BackendError, ImportError):
    """A known backend whose distribution is not installed."""


class BackendLoadError(BackendError, ImportError):
    """A backend that is installed and cannot be imported."""


class AmbiguousBackendError(BackendError, LookupError):
    """Two distributions offer a backend of the same name."""


class InvalidBackendError(BackendError, TypeError):
    """Not a backend, or one whose hooks do not match the specification."""


class DuplicateBackendError(BackendError, ValueError):
    """Two backends of one name in one session."""


class BackendConfigurationError(BackendError, ValueError):
    """The arguments given to a backend make no sense."""


class BackendStartError(BackendError):
    """The backend did not start."""


class BackendLostError(BackendError):
    """The engine is gone, and with it everything that it held."""


class SubmitError(BackendError):
    """The engine did not take a batch: none of it was sent."""


class BackendShutdownError(BackendError):
    """The backend did not shut down cleanly."""


class UnclosedSessionWarning(RuntimeWarning):
    """A session was abandoned without `await session.close()`."""


class RepeatedRandomWarning(RuntimeWarning):
    """Several tasks get copies of one random generator, and so draw the same numbers."""


def describe(value: Any) -> str:
    """Name a value in an error's sentence: short, and without trusting its `repr`."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= 120 else f"{text[:117]}..."
