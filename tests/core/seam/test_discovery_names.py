"""Backends by name: namesakes, aliases, misspellings, and what comes and goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rhapsody.api import (
    AmbiguousBackendError,
    BackendNotFoundError,
    BackendNotInstalledError,
    ComputeTask,
    Session,
    available_backends,
    get_backend,
    refresh,
)
from rhapsody.cli import group
from rhapsody.cli.doctor import environment_problems
from rhapsody.seam.discovery import available_observers

from .conftest import SOUND, Install, listed


def test_namesakes_can_be_chosen(install: Install) -> None:
    """Two distributions with one name are both named, and can be chosen."""
    install("rhapsody-one", SOUND, name="twin")
    install("rhapsody-two", SOUND, name="twin")
    with pytest.raises(AmbiguousBackendError) as caught:
        get_backend("twin")
    assert "rhapsody-one:twin or rhapsody-two:twin" in str(caught.value).replace(
        "rhapsody-two:twin or rhapsody-one:twin", "rhapsody-one:twin or rhapsody-two:twin"
    )
    backend = get_backend("rhapsody-two:twin")
    assert type(backend).__module__ == "rhapsody_two"
    assert backend.name == "twin"


def test_duplicate_on_path_is_one(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that is on the path twice is one."""
    site = install("rhapsody-good", SOUND, name="good").parent
    link = site.parent / "again"
    link.symlink_to(site)
    monkeypatch.syspath_prepend(str(link))
    assert [info.name for info in available_backends()].count("good") == 1
    get_backend("good")


def test_alias_answers_to_its_name(install: Install) -> None:
    """An alias answers to its own name."""
    points = "[rhapsody.backends]\ngood = rhapsody_good:Backend\nbetter = rhapsody_good:Backend\n"
    install("rhapsody-good", SOUND, entry_points=points)
    assert get_backend("better").name == "better"
    assert get_backend("good").name == "good"


def test_typo_names_the_nearest() -> None:
    """A typo is answered with the nearest name."""
    with pytest.raises(BackendNotFoundError, match="did you mean concurrent"):
        get_backend("concurent")


def test_known_backend_names_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known backend that is not installed names what to install."""
    from rhapsody.seam import discovery, metadata

    points = [point for point in metadata.entry_points(metadata.BACKENDS) if point.name == "concurrent"]
    monkeypatch.setattr(discovery, "entry_points", lambda group: points)
    with pytest.raises(BackendNotInstalledError, match="pip install rhapsody-dask"):
        get_backend("dask")
    with pytest.raises(ImportError, match="pip install rhapsody-dask"):
        from rhapsody.backends import DaskExecutionBackend  # noqa: F401
    (info,) = [info for info in available_backends() if info.name == "dask"]
    assert (info.installed, info.remedy) == (False, "pip install rhapsody-dask")


def test_backend_without_wheels_names_its_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose engine has no wheels for this Python says on which Pythons it runs, and no pip command."""
    from rhapsody.seam import discovery

    monkeypatch.setattr(discovery, "entry_points", lambda group: [])
    monkeypatch.setattr(discovery, "NEWEST_PYTHON", {"rhapsody-dragon": (3, 10)})
    said = f"rhapsody-dragon needs Python 3.11 to 3.10, since its engine has no wheels for 3.{sys.version_info.minor}"
    with pytest.raises(BackendNotInstalledError, match=said):
        get_backend("dragon")
    (info,) = [info for info in available_backends() if info.name == "dragon"]
    assert info.remedy == said


def test_disabled_backends_are_absent(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disabled backends are absent."""
    install("rhapsody-good", SOUND, name="good")
    install("rhapsody-hostile", "import no_such_engine")
    monkeypatch.setenv("RHAPSODY_DISABLE_BACKENDS", "hostile, concurrent")
    assert not listed("hostile")
    assert not listed("concurrent")
    assert listed("good")
    with pytest.raises(BackendNotFoundError, match="RHAPSODY_DISABLE_BACKENDS"):
        get_backend("hostile")
    with pytest.raises(BackendNotFoundError, match="RHAPSODY_DISABLE_BACKENDS"):
        get_backend("rhapsody-hostile:hostile")


def test_new_install_needs_no_restart(install: Install) -> None:
    """A backend that is installed now is found without a restart."""
    assert not listed("good")
    install("rhapsody-good", SOUND, name="good")
    refresh()
    assert listed("good")
    assert type(get_backend("good")).__module__ == "rhapsody_good"


async def _run_good() -> object:
    async with Session(backends=["good"]) as session:
        task = ComputeTask(function=print)
        await session.submit_tasks([task])
        return (await task).return_value


def test_sound_backend_beside_broken_one(install: Install) -> None:
    """A sound backend runs tasks beside a broken one."""
    import asyncio

    install("rhapsody-good", SOUND, name="good")
    install("rhapsody-hostile", "raise SystemExit(3)")
    assert asyncio.run(_run_good()) == "good"


def rhapsody(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhapsody", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=dict(os.environ))


def test_cli_lists_everything_with_reasons(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line lists every backend, with reasons."""
    monkeypatch.setenv("RHAPSODY_DISABLE_BACKENDS", "dask,dragon,dragon_v1,dragon_v2,dragon_v3,radical,radical_pilot")
    install("rhapsody-good", SOUND, name="good")
    hostile = {
        "rhapsody-a": ("import no_such_engine", "no_such_engine"),
        "rhapsody-b": ("def broken(:", "SyntaxError"),
        "rhapsody-c": ("raise SystemExit(3)", "SystemExit"),
        "rhapsody-d": ("x = 1", "has no attribute 'Backend'"),
        "rhapsody-e": ("class Backend: pass", "is not a subclass"),
        "rhapsody-f": (SOUND + "\n        interface_version = 99\n", "upgrade rhapsody-core"),
    }
    for distribution, (source, _) in hostile.items():
        install(distribution, source, name=distribution[-1] * 3)
    plain = rhapsody("backends", "--json")
    assert plain.returncode == 0, plain.stderr
    assert {row["name"]: row["status"] for row in json.loads(plain.stdout)} == {
        **dict.fromkeys(["concurrent", "good", *(name[-1] * 3 for name in hostile)], "installed")
    }
    checked = rhapsody("backends", "--json", "--check")
    assert checked.returncode == 1
    rows = {row["name"]: row for row in json.loads(checked.stdout)}
    assert rows["good"]["status"] == rows["concurrent"]["status"] == "ready"
    for distribution, (_, says) in hostile.items():
        row = rows[distribution[-1] * 3]
        assert row["status"] == "broken"
        assert says in row["note"]
        assert distribution in row["note"]
        assert (row["distribution"], row["version"]) == (distribution, "1.2.3")


OBSERVERS = """
    from rhapsody.plugin import hookimpl

    class Sound:
        told = []
        @hookimpl
        def rhapsody_session_opened(self, session):
            self.told.append(session.uid)

    class Unknown:
        @hookimpl
        def rhapsody_session_began(self, session):
            pass

    class Coroutine:
        @hookimpl
        async def rhapsody_session_opened(self, session):
            pass

    class Failing:
        def __init__(self):
            raise ValueError("no room")
"""


async def test_installed_observers(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Installed observers are called; unsound ones are logged and left out."""
    names = ["Sound", "Unknown", "Coroutine", "Failing", "Missing"]
    points = "\n".join(f"{name} = watching:{name}" for name in names)
    install("watching", OBSERVERS, entry_points=f"[rhapsody.observers]\n{points}\n")
    async with Session() as session:
        pass
    import watching  # type: ignore[import-not-found]  # installed above

    assert watching.Sound.told == [session.uid]
    log = caplog.text
    assert [name for name in names if f"watching:{name}" in log] == names[1:]


@pytest.mark.parametrize("disabled", ["watching, loud", "*"])
async def test_disabled_observers(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    """Observers named in RHAPSODY_DISABLE_OBSERVERS are neither called nor examined."""
    install("watching", "raise RuntimeError", entry_points="[rhapsody.observers]\nloud = watching:Loud\n")
    monkeypatch.setenv("RHAPSODY_DISABLE_OBSERVERS", disabled)
    async with Session():
        pass
    assert not caplog.records
    assert not available_observers()


def test_broken_observer_is_listed(install: Install) -> None:
    """An observer that cannot be made is listed with what is wrong."""
    install("watching", "raise RuntimeError('too old')", entry_points="[rhapsody.observers]\nloud = watching:Loud\n")
    (info,) = available_observers()
    assert (info.name, info.distribution, info.problem) == ("loud", "watching", "RuntimeError: too old")
    listed = CliRunner().invoke(group, ["backends", "--observers", "--check"])
    assert listed.exit_code == 1
    assert "RuntimeError: too old" in " ".join(listed.output.split())
    assert [row["remedy"] for row in environment_problems() if "observer" in row["problem"]] == [
        "upgrade or uninstall it, or set RHAPSODY_DISABLE_OBSERVERS=loud"
    ]
