"""The backend of the tutorial passes the suite as the page says, and breaks as the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from rhapsody.plugin import BackendCapabilities

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (DOCS / "tutorial" / "first-backend.md").read_text(), re.M | re.S)


def block(start: str) -> str:
    found: str
    (found,) = [text for text in BLOCKS if text.startswith(start)]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The two files that a reader of the tutorial has at its end."""
    (tmp_path / "threaded.py").write_text(f"{block('# threaded.py')}\n\n{block('@hookimpl')}")
    (tmp_path / "test_threaded.py").write_text(block("# test_threaded.py"))
    return tmp_path


def run_pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    return f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_tutorial_backend_passes_suite(folder: Path) -> None:
    """The backend that the tutorial builds passes the conformance suite."""
    output = run_pytest(folder)
    assert "exit status 0" in output, output
    for line in ("functions | proven | 17", "executables | refused | 1", "leaves nothing behind | proven | 6"):
        assert f"| {line} |" in output
    assert "| stops a running function | refused | 2 |" in output


def test_duplicate_reports_are_caught(folder: Path) -> None:
    """The suite's message for results reported twice is the one that the tutorial shows."""
    source = folder / "threaded.py"
    broken = source.read_text().replace("events.put(batch.decode(frames))", "events.put(2 * batch.decode(frames))")
    assert broken != source.read_text()
    source.write_text(broken)
    output = run_pytest(folder, "-k", "test_events_keep_the_contract")
    assert "exit status 1" in output, output
    assert "core had to drop reports of the backend" in output
    assert "which had ended DONE before; report exactly one Outcome for each task of a batch" in output


def test_unclosed_pool_threads_are_named(folder: Path) -> None:
    """The suite names the threads of a pool that is not shut down."""
    source = folder / "threaded.py"
    broken = source.read_text().replace("engine.shutdown(wait=False, cancel_futures=True)", "LEFT.append(engine)")
    assert broken != source.read_text()
    source.write_text(f"{broken}\n\nLEFT = []\n")
    (folder / "test_threaded.py").write_text(f"{block('# test_threaded.py')}    patience = 1.0\n")
    output = run_pytest(folder, "-k", "test_no_thread_is_left")
    assert "exit status 1" in output, output
    assert "ThreadPoolExecutor-" in output


def test_capabilities_are_in_reference() -> None:
    """Every field of BackendCapabilities has a row in the reference."""
    page = (DOCS / "reference" / "capabilities.md").read_text()
    for field in attrs.fields(BackendCapabilities):
        assert f"| `{field.name}` |" in page, f"BackendCapabilities.{field.name} has no line in the reference"


def test_proven_page_matches_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of proven capabilities is what its generator makes from the report."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    from proven_capabilities import render  # type: ignore[import-not-found]  # a folder that Sphinx adds

    assert (DOCS / "reference" / "proven-capabilities.md").read_text() == render(), (
        "run docs/_ext/proven_capabilities.py"
    )
