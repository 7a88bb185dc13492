"""How an engine that runs executables by itself says how one ended."""

from __future__ import annotations

from rhapsody.errors import InvalidBackendError, describe
from rhapsody.model.outcome import Outcome
from rhapsody.model.task import ComputeTask
from rhapsody.protocol.command import Finished
from rhapsody.protocol.outcomes import outcome_of_command
from rhapsody.worker.capture import ERROR_TAIL, Captured, tail_of

Paths = tuple[str | None, str | None]


def outcome_of(
    task: ComputeTask,
    exit_code: int | None,
    stdout: str | bytes | None = None,
    stderr: str | bytes | None = None,
    *,
    problem: str = "",
    stopped: bool = False,
    paths: Paths = (None, None),
    started_at: float | None = None,
    ended_at: float | None = None,
    ran_on: str | None = None,
    native_id: str | None = None,
    logs: str | None = None,
) -> Outcome:
    """Translate how an executable ended into the outcome that a backend reports.

    Args:
        task: the executable task.
        exit_code: 0 is DONE, everything else FAILED with TaskExecutionError. Negative for the signal that ended it: an
            engine that says 128 + N for signal N has to know that it was one, for an executable may return 137 too.
            None: it could not be started, as where there is no such file or folder.
        stdout: what it wrote; bytes are decoded as UTF-8, undecodable ones replaced. Of more than 16 MiB the first and
            the last 8 MiB are kept. None where it went to a file.
        stderr: likewise; its last 4 KiB are in the error.
        problem: why it could not be started, or was ended by the engine: it is the error's sentence.
        stopped: whether it ended because it was canceled: the outcome is CANCELED.
        paths: the files of its stdout and stderr, where it captures them: `Command.stdout_path` and `stderr_path`.
        started_at: seconds since the epoch, as is `ended_at`.
        ended_at: likewise.
        ran_on: host and process.
        native_id: what the engine calls the job.
        logs: where the engine's own log of the job is.

    Raises:
        InvalidBackendError: an exit code that is no number.
    """
    if exit_code is not None and type(exit_code) is not int:
        raise InvalidBackendError(
            f"the exit code of task {task.uid} must be a number or None, not {describe(exit_code)}"
        )
    if exit_code is None and not problem and not stopped:
        problem = f"could not start {str(task.executable)!r}"
    out, err = _text(stdout), _text(stderr)
    tail = "" if exit_code == 0 else (err if err is not None else tail_of(paths[1]))[-ERROR_TAIL:]
    outcome = outcome_of_command(
        task.uid, Finished(exit_code, out, err, stopped, problem, tail), paths, started_at, ended_at, ran_on
    )
    outcome.native_id, outcome.logs = native_id, logs
    return outcome


def _text(stream: str | bytes | None) -> str | None:
    if stream is None:
        return None
    captured = Captured()
    captured.feed(stream.encode("utf-8", "replace") if isinstance(stream, str) else stream)
    return captured.text()
