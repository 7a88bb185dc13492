"""`rhapsody backends`."""

from __future__ import annotations

from pathlib import Path

from .conftest import HEALTHY, Environment, install, listed, rhapsody


def test_backends_marks_the_default(environment: Environment) -> None:
    """`backends` lists the local backend as the default."""
    row = listed(environment)["concurrent"]
    assert (row["status"], row["distribution"], row["default"]) == ("installed", "rhapsody-core", True)


def test_backends_marks_environments_choice(environment: Environment) -> None:
    """`backends` marks the backend that the environment names."""
    install(environment, "healthy", HEALTHY)
    rows = listed(environment | {"RHAPSODY_BACKEND": "healthy"})
    assert [name for name, row in rows.items() if row["default"]] == ["healthy"]


def test_backends_names_the_pip_command() -> None:
    """`backends` gives the command that installs what is missing."""
    from rhapsody.cli.backends import describe
    from rhapsody.seam.discovery import BackendInfo

    missing = BackendInfo(
        name="dask", distribution="rhapsody-dask", installed=False, remedy="pip install rhapsody-dask"
    )
    row = describe(missing, check=True)
    assert (row["status"], row["note"]) == ("missing", "pip install rhapsody-dask")


def test_backends_imports_nothing(environment: Environment) -> None:
    """`backends` imports nothing unless asked to check."""
    install(environment, "loud", "raise RuntimeError('imported')")
    assert listed(environment)["loud"]["status"] == "installed"


def test_backends_check_gives_reasons(environment: Environment) -> None:
    """`backends --check` gives the reason of a broken backend and lists the others."""
    install(environment, "broken", "import a_module_that_nobody_has")
    done = rhapsody("backends", "--check", environment=environment, check=False)
    assert done.returncode == 1
    assert "a_module_that_nobody_has" in done.stdout
    assert "broken-distribution 1.2.3" in done.stdout
    assert listed(environment, "--check")["concurrent"]["status"] == "ready"


def test_backends_separates_namesakes(environment: Environment) -> None:
    """`backends` gives each of two that share a name the name to ask for."""
    install(environment, "healthy", HEALTHY)
    other = Path(environment["PYTHONPATH"]) / "other-1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (other / "entry_points.txt").write_text("[rhapsody.backends]\nhealthy = healthy_backend:Backend\n")
    rows = listed(environment, "--check")
    assert rows["other:healthy"]["status"] == rows["healthy-distribution:healthy"]["status"] == "ready"


def test_backends_shows_people_a_table(environment: Environment) -> None:
    """`backends` shows a table to a person."""
    text = rhapsody("backends", environment=environment).stdout
    assert any(line.split()[:4] == ["concurrent", "*", "installed", "rhapsody-core"] for line in text.splitlines())
