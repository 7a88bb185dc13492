"""Translates one vocabulary to the keywords of dask-jobqueue for each batch system. Pure: imports nothing of Dask."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs
from rhapsody.errors import BackendConfigurationError

#: By the name of the batch system, the class of dask-jobqueue.
SYSTEMS: Final = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
    "oar": "OARCluster",
}
_WORDS: Final = ("nodes", "cores", "memory", "queue", "walltime")
_RESERVED: Final = {"asynchronous", "loop", "n_workers", "security", "protocol", "shared_temp_directory"}
_TIME: Final = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@attrs.frozen(kw_only=True)
class QueueRequest:
    """A cluster that a batch system is asked for.

    Attributes:
        system: name of the batch system.
        nodes: jobs, of one node each.
        keywords: for the class of dask-jobqueue.
    """

    system: str
    nodes: int
    keywords: Mapping[str, Any]


def request_of(system: str, resources: Mapping[str, Any]) -> QueueRequest:
    """Translate `resources`: nodes, cores and memory of each, queue, walltime; what else there is, is dask-jobqueue's.

    `cores` is for each node, and a worker of one thread runs on each. `memory` is a node's, in bytes or as "120 GB".
    `walltime` is in seconds or "HH:MM:SS", with "D-" before it for days.

    Raises:
        BackendConfigurationError: a missing or an unusable value.
    """
    keywords = {key: value for key, value in resources.items() if key not in _WORDS}
    if reserved := _RESERVED & keywords.keys():
        raise _error(system, f"{min(reserved)!r} is set by the backend; give it security= for certificates of your own")
    nodes, cores = (_count(system, resources, word) for word in ("nodes", "cores"))
    memory = resources.get("memory")
    if not isinstance(memory, str | int) or isinstance(memory, bool) or not memory:
        raise _error(system, f"memory must be that of a node, in bytes or as '120 GB', not {memory!r}")
    keywords |= {"cores": cores, "memory": memory if isinstance(memory, str) else f"{memory} B"}
    keywords.setdefault("processes", cores)
    queue = resources.get("queue")
    if queue is not None:
        if system == "htcondor":
            raise _error(system, "it has no queues; requirements of machines go into job_extra_directives")
        keywords["queue"] = str(queue)
    if resources.get("walltime") is not None:
        seconds = _seconds(system, resources["walltime"])
        if system == "htcondor":
            given = keywords.get("job_extra_directives") or {}
            keywords["job_extra_directives"] = {"allowed_job_duration": f"{seconds}", **given}
        else:
            keywords["walltime"] = _clock(seconds, with_seconds=system != "lsf")
    if system == "htcondor":
        keywords.setdefault("disk", "1 GB")
    return QueueRequest(system=system, nodes=nodes, keywords=keywords)


def check_queue_keywords(request: QueueRequest, known: Iterable[str]) -> None:
    """Refuse keywords that are neither of the vocabulary nor of dask-jobqueue.

    Raises:
        BackendConfigurationError: one that is unknown.
    """
    known = sorted({*known, *_WORDS} - _RESERVED)
    for key in request.keywords:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(_WORDS)}"
            raise _error(request.system, f"{SYSTEMS[request.system]} has no keyword {key!r}: {hint}")


def _count(system: str, resources: Mapping[str, Any], word: str) -> int:
    value = resources.get(word, 1 if word == "nodes" else None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _error(system, f"{word} must be an integer from 1, not {value!r}")
    return value


def _seconds(system: str, walltime: Any) -> int:
    if isinstance(walltime, int | float) and not isinstance(walltime, bool) and walltime > 0:
        return math.ceil(walltime)
    if isinstance(walltime, str) and (match := _TIME.fullmatch(walltime)):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((24 * days + hours) * 60 + minutes) * 60 + seconds
    raise _error(system, f"walltime must be in seconds, or as '01:30:00', not {walltime!r}")


def _clock(seconds: int, *, with_seconds: bool) -> str:
    minutes, rest = divmod(seconds, 60) if with_seconds else (math.ceil(seconds / 60), 0)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{rest:02d}" if with_seconds else text


def _error(system: str, problem: str) -> BackendConfigurationError:
    return BackendConfigurationError(f"resources of dask with cluster={system!r}: {problem}")
