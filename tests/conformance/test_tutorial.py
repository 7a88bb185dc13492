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


def test_the_backend_of_the_tutorial_passes_the_suite(folder: Path) -> None:
    told = run_pytest(folder)
    assert "exit status 0" in told, told
    for line in ("functions | proven | 4", "executables | refused | 1", "leaves nothing behind | proven | 5"):
        assert f"| {line} |" in told
    assert "| stops a running function | refused | 1 |" in told


def test_the_suite_says_what_the_tutorial_says_when_results_are_reported_twice(folder: Path) -> None:
    source = folder / "threaded.py"
    broken = source.read_text().replace("events.put(batch.decode(frames))", "events.put(2 * batch.decode(frames))")
    assert broken != source.read_text()
    source.write_text(broken)
    told = run_pytest(folder, "-k", "test_every_report_keeps_the_contract")
    assert "exit status 1" in told, told
    assert "core had to drop reports of the backend" in told
    assert "which had ended DONE before; report exactly one Outcome for each task of a batch" in told


def test_the_suite_names_the_threads_of_a_pool_that_is_not_shut_down(folder: Path) -> None:
    source = folder / "threaded.py"
    broken = source.read_text().replace("engine.shutdown(wait=False, cancel_futures=True)", "LEFT.append(engine)")
    assert broken != source.read_text()
    source.write_text(f"{broken}\n\nLEFT = []\n")
    (folder / "test_threaded.py").write_text(f"{block('# test_threaded.py')}    patience = 1.0\n")
    told = run_pytest(folder, "-k", "test_no_thread_is_left")
    assert "exit status 1" in told, told
    assert "ThreadPoolExecutor-" in told


def test_every_capability_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "capabilities.md").read_text()
    for field in attrs.fields(BackendCapabilities):
        assert f"| `{field.name}` |" in page, f"BackendCapabilities.{field.name} has no line in the reference"


def test_the_page_of_proven_capabilities_is_made_from_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    from proven_capabilities import render

    assert (DOCS / "reference" / "proven-capabilities.md").read_text() == render(), (
        "run docs/_ext/proven_capabilities.py"
    )
