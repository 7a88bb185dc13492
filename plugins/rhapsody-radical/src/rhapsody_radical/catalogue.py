"""The machines that RADICAL-Pilot knows, read from its configuration files without importing it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_COMMENT: Final = re.compile(r"^\s*#.*$", re.MULTILINE)
_PREFIX: Final = "resource_"


def user_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder from which RADICAL-Pilot reads the user's own configuration files."""
    home = environment.get("RADICAL_CONFIG_USER_DIR") or environment.get("HOME") or "~"
    return Path(home).expanduser() / ".radical" / "pilot" / "configs"


def installed() -> bool:
    """Whether `radical.pilot` can be imported."""
    try:
        return importlib.util.find_spec("radical.pilot") is not None
    except ModuleNotFoundError:  # nor anything else of radical
        return False


def machines(environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """Return the configuration of every machine, by label (`local.localhost`), the user's own over the shipped."""
    found: dict[str, dict[str, Any]] = {}
    for folder in _folders(environment):
        for path in sorted(folder.glob(f"{_PREFIX}*.json")):
            site = path.stem.removeprefix(_PREFIX)
            for host, configuration in read(path).items():
                found.setdefault(f"{site}.{host}", {}).update(configuration)
    return found


def _folders(environment: Mapping[str, str]) -> Iterator[Path]:
    spec = importlib.util.find_spec("radical.pilot") if installed() else None
    for location in (spec.submodule_search_locations if spec else None) or ():
        yield Path(location) / "configs"
    yield user_folder(environment)


def read(path: Path) -> dict[str, Any]:
    """Read JSON with comment lines; RADICAL-Pilot's own files have them."""
    try:
        content = json.loads(_COMMENT.sub("", path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return {host: value for host, value in content.items() if isinstance(value, dict)}
