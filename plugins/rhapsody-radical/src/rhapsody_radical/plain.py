"""What travels to the process that holds RADICAL-Pilot's client: values in the types that JSON has."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

#: What such a value may hold, in words.
MAY_HOLD: Final = "text, paths, numbers, True, False, None, and lists and mappings of them"


def plain(value: Any) -> Any:
    """Return a value in the types that JSON has, where there is one."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def why_not(value: Any) -> Exception | None:
    """Return why a value cannot travel; None if it can."""
    try:
        json.dumps(plain(value), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        return error
    return None
