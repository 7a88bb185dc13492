"""The marker of hook implementations; `rhapsody.plugin` exports it."""

from __future__ import annotations

from typing import Final

import pluggy

PROJECT: Final = "rhapsody"
hookimpl: Final = pluggy.HookimplMarker(PROJECT)
