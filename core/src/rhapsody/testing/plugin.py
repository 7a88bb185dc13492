"""The pytest plugin: marks the tests of the suite, and ends the run with a table of what each backend has proven.

pytest loads this at every start, in every environment where rhapsody-core is installed: it imports nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rhapsody.backends.base import ExecutionBackend
    from rhapsody.testing.rig import Rig

_KEY = "rhapsody_conformance"  # of the property that a test of the suite carries into its report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer a file for the results."""
    group = parser.getgroup("rhapsody")
    group.addoption(
        "--conformance-report",
        metavar="FILE",
        help="write what the RHAPSODY conformance suite found to FILE, as JSON; results of other backends in it stay",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's marker, and collect its results."""
    config.addinivalue_line(
        "markers",
        "rhapsody_restart: a conformance test that starts the backend's engine anew (deselect while you work)",
    )
    config.pluginmanager.register(_Results(), "rhapsody_conformance_results")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a test of the suite carry what it proves into its report."""
    owner: Any = getattr(item, "cls", None)
    name = getattr(item, "originalname", item.name)
    for kind in getattr(owner, "__mro__", ()):  # the author may have put an xfail over the suite's own
        about = getattr(vars(kind).get(name), "_rhapsody_conformance", None)
        if about is not None:
            owned = {"backend": owner.title or owner.__name__, "many": owner.many}
            item.user_properties.append((_KEY, {**about, **owned, "test": name}))
            return


@pytest.fixture(scope="class")
def rhapsody_rig(
    request: pytest.FixtureRequest,
    new_backend: Callable[[], ExecutionBackend],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rig]:
    """Give the conformance suite what drives the author's backend: one loop and one session for a class of tests."""
    from rhapsody.testing.rig import marked_rig

    suite: Any = request.cls
    with marked_rig(new_backend, tmp_path_factory.mktemp("conformance"), suite.patience) as rig:
        yield rig


class _Results:
    """Gathers the reports of the suite's tests."""

    def __init__(self) -> None:
        self._found: list[tuple[dict[str, str], str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep how a test of the suite ended: its call, or whatever of it did not pass."""
        about = dict(report.user_properties).get(_KEY)
        if isinstance(about, dict) and (report.when == "call" or report.outcome != "passed"):
            from rhapsody.testing.report import verdict

            self._found.append((about, *verdict(report)))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        """Print the table, and write the file."""
        if not self._found:
            return
        from rhapsody.testing import report
        from rhapsody.testing.suite import BackendConformanceTests

        results = report.summarize(self._found, report.tests_of(BackendConformanceTests))
        for backend, rows in results.items():
            terminalreporter.write_sep("-", f"RHAPSODY conformance of {backend}")
            terminalreporter.write_line(report.table(rows))
        path = config.getoption("--conformance-report")
        if path:
            report.write(path, results)
