"""Runs the tasks of a batch, one after the other, and stops them one by one."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping
from typing import Any

from rhapsody.protocol.frames import encode_frame
from rhapsody.protocol.version import WIRE_VERSION, other_batch
from rhapsody.worker import executables
from rhapsody.worker.control import BatchControl
from rhapsody.worker.functions import AsyncFunctions
from rhapsody.worker.place import where
from rhapsody.worker.runners import Run, refusing, runner_of, unknown, with_variables
from rhapsody.worker.seeding import reseed_after_fork

_controls: dict[tuple[str, str], BatchControl] = {}  # by session and uid: tasks of batches that run here


def run_batch(
    payload: bytes,
    report: Callable[[bytes], Any] | None = None,
    claim: Callable[[str], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run the tasks of a batch, one after the other, in the calling thread.

    Args:
        payload: what `TaskBatch.encode` returned.
        report: called with each task's frame as the task ends, before the next one starts. If it raises, the
            engine is unable to carry reports: this frame and all later ones are in the returned bytes.
        claim: asked with each task's uid just before the task starts. False leaves the task out: it does not run,
            and has no frame. An engine that may run a batch twice, or must know what had started, decides here.
        environment: variables that every task of the batch gets, such as devices that only the worker can name. A
            task's own come before them.

    Returns:
        The frames that were not reported; `TaskBatch.decode` reads both. A batch of another wire version, or a task
        of a kind that this worker does not know, has frames of a ProtocolError.

    Raises:
        ProtocolError: a batch that does not even say which tasks it has.
    """
    reseed_after_fork()
    version, core, session, items, common = _read(payload)
    unreported: list[bytes] = []
    control = BatchControl()  # for `stop`, which may come from any thread
    mine = dict.fromkeys(((session, item[0]) for item in items), control)
    _controls.update(mine)
    try:
        with AsyncFunctions() as loops:
            if version == WIRE_VERSION:
                runs = {kind: _run_of(kind, core, session, *fields, loops) for kind, fields in common.items()}
            else:
                runs = {kind: refusing(other_batch(version, core)) for _, kind, _ in items}
            for uid, kind, body in items:
                if claim is not None and not claim(uid):
                    continue
                if not control.claim(uid):
                    now = time.time()
                    frame = (uid, "skipped", None, now, now, where())
                else:
                    frame = runs[kind](uid, with_variables(kind, body, environment) if environment else body)
                data = encode_frame(frame)
                if report is not None:
                    try:
                        report(data)
                        continue
                    except Exception:  # the frame is not lost: it goes back with the result
                        report = None
                unreported.append(data)
    finally:
        for key in mine:
            _controls.pop(key, None)
    return b"".join(unreported)


def stop(session: str, uid: str, grace: float = executables.GRACE) -> str | None:
    """Stop a task of a batch that this process runs; from any thread of it.

    A running executable's process group gets SIGTERM, and SIGKILL after `grace` seconds; this blocks until then.

    Returns:
        "skipped": the task had not started, and will not. "stopped": it was a running executable. In both cases its
        frame says so too. None: it has ended, is a running function, or is not in this process.
    """
    key = (session, uid)
    control = _controls.get(key)
    if control is not None and control.withdraw([uid]):
        return "skipped"
    return "stopped" if executables.stop([key], grace) else None


def _read(payload: bytes) -> tuple[int, str, str, list[tuple[str, str, Any]], dict[str, tuple[str | None, Any]]]:
    """Return the wire version, rhapsody-core's version, the session, and for each task its uid, its kind and its body.

    Of a batch of another version only what every version has is read; see `protocol.version`.
    """
    fields = pickle.loads(payload)
    version, core = fields[:2]
    if version == WIRE_VERSION:
        return fields  # type: ignore[no-any-return]  # what this version's `encode_tasks` writes
    try:
        if type(version) is not int:
            raise TypeError
        return version, core, fields[2], [(item[0], "", None) for item in fields[3]], {}
    except Exception as error:
        raise other_batch(version, core) from error


def _run_of(kind: str, core: str, session: str, module: str | None, common: Any, loops: AsyncFunctions) -> Run:
    runner = runner_of(kind, module)
    return unknown(kind, core) if runner is None else runner(session, common, loops)
