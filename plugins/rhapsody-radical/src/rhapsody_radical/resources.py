"""What the user asks of the pilot: read, checked and completed. Pure: the machines are passed in."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs
from rhapsody.errors import BackendConfigurationError, describe

from .plain import MAY_HOLD, plain, why_not

LOCAL: Final = "local.localhost"
DEFAULT_RUNTIME: Final = 30  # minutes

# The fields of RADICAL-Pilot's PilotDescription that a user may give, and the types that make sense.
FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "resource": (str,),
    "access_schema": (str,),
    "runtime": (int,),
    "sandbox": (str, os.PathLike),
    "cores": (int,),
    "gpus": (int,),
    "nodes": (int,),
    "backup_nodes": (int,),
    "memory": (int,),
    "queue": (str,),
    "job_name": (str,),
    "project": (str,),
    "input_staging": (list, tuple),
    "output_staging": (list, tuple),
    "prepare_env": (Mapping,),
    "enable_ep": (bool,),
    "reconfig_src": (str,),
}
# Its other fields, and why they are not the user's to give.
NOT_YOURS: Final[dict[str, str]] = {
    "uid": "there is one pilot, and the backend names it",
    "exit_on_error": "a pilot that fails never ends your process; it fails the backend",
    "cleanup": "what the pilot leaves stays in the session's sandbox, for you to keep or remove",
    "app_comm": "tasks talk to the session through their results",
    "services": "submit services as tasks",
}
_AT_LEAST: Final = {"runtime": 1, "cores": 1, "nodes": 1, "gpus": 0, "backup_nodes": 0, "memory": 0}


@attrs.frozen(kw_only=True)
class PilotRequest:
    """One pilot, ready to be asked for.

    Attributes:
        description: fields of PilotDescription.
        slots: tasks of one core that run at the same time.
        local: it runs on this machine.
        shared_files: this process sees the pilot's files, so that functions and whole outputs can travel by file.
        node_memory: MB of each of its nodes; 0 where RADICAL-Pilot does not know.
    """

    description: Mapping[str, Any]
    slots: int
    local: bool
    shared_files: bool
    node_memory: int = 0


def read_resources(resources: Mapping[str, Any] | None, machines: Mapping[str, Mapping[str, Any]]) -> PilotRequest:
    """Check what the user asks for, and fill in what is missing.

    Args:
        resources: fields of PilotDescription; `runtime` is in minutes, `memory` in MB.
        machines: the configuration of every machine that RADICAL-Pilot knows, by label.

    Raises:
        BackendConfigurationError: an unknown key or machine (with the nearest names), or a value that makes no sense.
    """
    if resources is not None and not isinstance(resources, Mapping):
        raise BackendConfigurationError(f"radical: resources must be a mapping, not {describe(resources)}")
    given = {key: value for key, value in (resources or {}).items() if value is not None}
    _check(given)
    given = plain(given)
    label = given.setdefault("resource", LOCAL)
    if label not in machines:
        raise BackendConfigurationError(
            f"radical: RADICAL-Pilot knows no machine {label!r}{nearest(label, machines)}; describe a machine of your "
            "own in ~/.radical/pilot/configs/resource_SITE.json"
        )
    machine = machines[label]
    schema = _schema(label, machine, given)
    endpoint = str(schema.get("filesystem_endpoint", machine.get("filesystem_endpoint", "")))
    local = label.startswith("local.") and str(schema.get("job_manager_endpoint", "")).startswith("fork:")
    given.setdefault("runtime", DEFAULT_RUNTIME)
    slots = _size(label, machine, given, local)
    return PilotRequest(
        description={**given, "exit_on_error": False},
        slots=slots,
        local=local,
        shared_files=endpoint.startswith("file:"),
        node_memory=int(machine.get("mem_per_node") or 0),
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a clause that names the nearest known names; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _check(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key in NOT_YOURS:
            raise BackendConfigurationError(f"radical: resources cannot set {key!r}: {NOT_YOURS[key]}")
        kinds = FIELDS.get(key) if isinstance(key, str) else None
        if kinds is None:
            raise BackendConfigurationError(
                f"radical: resources have no {describe(key)}{nearest(str(key), FIELDS)}; "
                f"they are a pilot's: {', '.join(FIELDS)}"
            )
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise BackendConfigurationError(f"radical: {key} must be {wanted}, not {describe(value)}")
        if (problem := why_not(value)) is not None:
            raise BackendConfigurationError(
                f"radical: {key} cannot travel to RADICAL-Pilot ({problem}); it may hold {MAY_HOLD}"
            )
        if isinstance(value, int) and value < _AT_LEAST.get(key, value):
            raise BackendConfigurationError(f"radical: {key} must be at least {_AT_LEAST[key]}, not {value}")


def _schema(label: str, machine: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    schemas: Mapping[str, Any] = machine.get("schemas") or {}
    name = given.get("access_schema", machine.get("default_schema"))
    if "access_schema" in given and name not in schemas:
        raise BackendConfigurationError(
            f"radical: {label} has no access_schema {name!r}{nearest(name, schemas)}; it has {', '.join(schemas)}"
        )
    schema = schemas.get(name)
    return schema if isinstance(schema, Mapping) else {}


def _size(label: str, machine: Mapping[str, Any], given: dict[str, Any], local: bool) -> int:
    """Settle how large the pilot is, and return how many cores that makes."""
    if "nodes" in given:
        for key in ("cores", "gpus"):
            if key in given:
                raise BackendConfigurationError(f"radical: give nodes or {key}, not both: a node has its own {key}")
        return int(given["nodes"]) * int(machine.get("cores_per_node") or 1)
    if "backup_nodes" in given:
        raise BackendConfigurationError("radical: backup_nodes need nodes")
    if "cores" not in given:
        if not local:
            raise BackendConfigurationError(f"radical: say how large the pilot on {label} shall be: cores or nodes")
        given["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(given["cores"])
