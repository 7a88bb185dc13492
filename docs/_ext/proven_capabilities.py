"""Writes `reference/proven-capabilities.md` from the `.json` beside it, which holds what the conformance suite found.

To renew it: `python -m pytest tests/conformance tests/plugins --nightly -k "onformance or oncurrent"
--conformance-report docs/reference/proven-capabilities.json`, then `python docs/_ext/proven_capabilities.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from rhapsody.testing.report import matrix

REFERENCE = Path(__file__).resolve().parents[1] / "reference"

_PAGE = """# Proven capabilities

This page is made from what [the conformance suite](../how-to/prove-a-backend.md) found for the backends of the first
party. **proven**: declared, or asked of every backend, and its tests passed. **refused**: not declared, and the tests
passed which hold the backend to that. **in part**: some were not run. **no**: a known failure; the reason is below.
**-**: not tried.

"""


def render() -> str:
    """Return the page."""
    return _PAGE + matrix(json.loads((REFERENCE / "proven-capabilities.json").read_text()))


if __name__ == "__main__":
    (REFERENCE / "proven-capabilities.md").write_text(render())
