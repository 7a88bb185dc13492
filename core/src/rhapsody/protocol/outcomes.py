"""Translates what a worker sent into the outcome that a backend reports, by the kind of the frame."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Final

from rhapsody.errors import TaskExecutionError
from rhapsody.model.outcome import Outcome
from rhapsody.model.states import TaskState
from rhapsody.protocol.command import Finished
from rhapsody.protocol.failures import cannot_load, exception_of
from rhapsody.protocol.frames import FOREIGN, Frame, Raised
from rhapsody.protocol.version import other_frame, unknown_frame


def outcome_of(frame: Frame, ran_on: str | None = None) -> Outcome:
    """Translate a worker's frame into the outcome that a backend reports; one of an unknown kind is FAILED."""
    uid, kind, value, started_at, ended_at, host = frame
    if kind == "value":  # the common one; by position, which takes half as long
        done, place = TaskState.DONE, host or ran_on
        return Outcome(uid, done, value, None, None, None, None, None, None, started_at, ended_at, place)
    decode = DECODERS.get(kind)
    if decode is None:
        return failed(frame, ran_on, unknown_frame(kind))
    return decode(frame, ran_on)


def failed(frame: Frame, ran_on: str | None, error: BaseException) -> Outcome:
    """Return the FAILED outcome of a frame."""
    uid, _, _, started_at, ended_at, host = frame
    return Outcome(
        uid,
        TaskState.FAILED,
        exception=error,
        exit_code=error.exit_code if isinstance(error, TaskExecutionError) else None,  # of sys.exit
        started_at=started_at,
        ended_at=ended_at,
        ran_on=host or ran_on,
    )


def _of_pickle(frame: Frame, ran_on: str | None) -> Outcome:
    uid, _, data, started_at, ended_at, host = frame
    try:
        value = pickle.loads(data)
    except BaseException as error:
        return failed(frame, ran_on, cannot_load(uid, "result", error))
    done, place = TaskState.DONE, host or ran_on
    return Outcome(uid, done, value, None, None, None, None, None, None, started_at, ended_at, place)


def _of_raised(frame: Frame, ran_on: str | None) -> Outcome:
    return failed(frame, ran_on, exception_of(frame[0], Raised(*frame[2])))


def _of_finished(frame: Frame, ran_on: str | None) -> Outcome:
    uid, _, (finished, paths), started_at, ended_at, host = frame
    return outcome_of_command(uid, Finished(*finished), paths, started_at, ended_at, host or ran_on)


def _of_printed(frame: Frame, ran_on: str | None) -> Outcome:
    uid, _, (kind, value, texts), *rest = frame
    outcome = outcome_of((uid, kind, value, *rest), ran_on)
    outcome.stdout, outcome.stderr = texts
    return outcome


def _of_skipped(frame: Frame, ran_on: str | None) -> Outcome:
    return Outcome(frame[0], TaskState.CANCELED)


def _of_foreign(frame: Frame, ran_on: str | None) -> Outcome:
    return Outcome(frame[0], TaskState.FAILED, exception=other_frame(frame[2]), ran_on=ran_on)  # its times are unknown


#: By the kind of the frame; a kind of task that has frames of its own adds to it.
DECODERS: Final[dict[str, Callable[[Frame, str | None], Outcome]]] = {
    "pickle": _of_pickle,
    "raised": _of_raised,
    "finished": _of_finished,
    "printed": _of_printed,
    "skipped": _of_skipped,
    FOREIGN: _of_foreign,
}


def outcome_of_command(
    uid: str,
    finished: Finished,
    paths: tuple[str | None, str | None],
    started: float | None,
    ended: float | None,
    ran_on: str | None,
) -> Outcome:
    """Translate how an executable ended; `paths` are the files of its stdout and stderr."""
    state, exception = TaskState.DONE, None
    if finished.stopped:
        state = TaskState.CANCELED
    elif finished.exit_code != 0:
        state = TaskState.FAILED
        files = [path for path in paths if path]
        exception = TaskExecutionError(uid, finished.exit_code, finished.error_tail, files, finished.problem)
    return Outcome(
        uid,
        state,
        exception=exception,
        stdout=finished.stdout,
        stderr=finished.stderr,
        exit_code=finished.exit_code,
        stdout_path=paths[0],
        stderr_path=paths[1],
        started_at=started,
        ended_at=ended,
        ran_on=ran_on,
    )
