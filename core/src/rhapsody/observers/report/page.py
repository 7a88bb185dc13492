"""Writes the report as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def page(figures: dict[str, Any]) -> str:
    """Return the page of a run's figures, as `figures` computes them."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")  # no text of a task may end the script
    return template.replace("{{FIGURES}}", data)
