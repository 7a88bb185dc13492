"""Every backend of `mutants.py` is caught by the test that it names, with a message that says what to mend."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from . import mutants

CASES = {kind.__name__: (kind.caught_by, kind.says) for kind in mutants.MUTANTS}  # type: ignore[attr-defined]
SIDE_BY_SIDE = 6


def run(ids: list[str], folder: Path) -> dict[str, str]:
    """Run tests of mutants in one pytest; return what was said, by mutant."""
    folder.mkdir()
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--timeout=60",
        f"--rootdir={folder}", "-c", os.devnull, f"--junitxml={folder / 'junit.xml'}", "-o", "junit_logging=no", *ids,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580, cwd=folder)
    assert (folder / "junit.xml").exists(), done.stdout + done.stderr
    found: dict[str, str] = {}
    for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
        name = case.attrib["classname"].rpartition(".")[2]
        problems = [*case.findall("failure"), *case.findall("error")]
        found[name] = found.get(name, "") + "\n".join(
            f"{problem.attrib.get('message', '')}\n{problem.text}" for problem in problems
        )
    return found


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the one test of each mutant, side by side, since most wait; return what was said, by mutant."""
    folder = tmp_path_factory.mktemp("mutants")
    files = {kind.__name__: sys.modules[kind.__module__].__file__ for kind in mutants.MUTANTS}
    ids = [f"{files[name]}::{name}::{caught_by}" for name, (caught_by, _) in CASES.items()]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        runs = [threads.submit(run, ids[n::SIDE_BY_SIDE], folder / str(n)) for n in range(SIDE_BY_SIDE)]
        return {name: said for one in runs for name, said in one.result().items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_suite_catches(name: str, messages: dict[str, str]) -> None:
    """The suite fails the broken backend in the named test, with a message that says what to mend."""
    caught_by, says = CASES[name]
    message = messages[name]
    assert message, f"{caught_by} passes for the mutant {name}"
    assert "ConformanceError" in message, f"{caught_by} fails for {name}, but not by itself:\n{message[:2000]}"
    flat = " ".join(message.split())
    assert says in flat, f"{caught_by} does not say to the author of {name} {says!r}:\n{flat[:2000]}"


def test_mutants_cover_the_suite() -> None:
    """There are at least twenty broken backends, caught by at least twenty different tests."""
    assert len(CASES) >= 20
    caught_by = {test for test, _ in CASES.values()}
    assert len(caught_by) >= 20
