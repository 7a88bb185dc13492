"""Backends are found by name whatever else is installed: broken, hostile, twice, too old or too new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rhapsody.api import (
    AmbiguousBackendError,
    BackendConfigurationError,
    BackendLoadError,
    BackendNotFoundError,
    BackendNotInstalledError,
    ComputeTask,
    InvalidBackendError,
    Session,
    available_backends,
    get_backend,
    refresh,
)

SOUND = """
    import asyncio
    from rhapsody.plugin import BackendCapabilities, Capacity, ExecutionBackend, Outcome, TaskState, hookimpl

    class Backend(ExecutionBackend):
        def __init__(self, name="good", colour="red"):
            super().__init__(name)
        @hookimpl
        def rhapsody_init(self, context):
            self.context = context
        @hookimpl
        def rhapsody_submit(self, batch):
            self.context.events.put([Outcome(task.uid, TaskState.DONE, return_value="good") for task in batch.tasks])
        @hookimpl
        def rhapsody_shutdown(self):
            pass
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Give what installs a distribution: a metadata folder and a module, in a folder on the path."""
    site = tmp_path / "site"
    site.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))

    def install(
        distribution: str,
        source: str,
        name: str = "hostile",
        version: str = "1.2.3",
        target: str | None = None,
        entry_points: str | None = None,
    ) -> Path:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{module}.py,,\n")
        (info / "entry_points.txt").write_text(
            entry_points or f"[rhapsody.backends]\n{name} = {target or f'{module}:Backend'}\n"
        )
        return site / f"{module}.py"

    yield install
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(site)):
            del sys.modules[module]


def listed(name: str) -> bool:
    return any(info.name == name for info in available_backends())


# -- what is broken harms nobody else ------------------------------------------------------------------------------

BROKEN = {
    "an ImportError": ("import no_such_engine", "No module named 'no_such_engine'"),
    "a SyntaxError": ("def broken(:", "SyntaxError"),
    "a SystemExit": ("raise SystemExit(3)", "SystemExit"),
    "an error of its own": ("raise RuntimeError('no licence')", "no licence"),
    "a missing attribute": ("x = 1", "has no attribute 'Backend'"),
}


@pytest.mark.parametrize(("source", "says"), BROKEN.values(), ids=BROKEN)
def test_a_backend_that_cannot_be_imported_says_what_and_whose(install: Install, source: str, says: str) -> None:
    install("rhapsody-hostile", source)
    with pytest.raises(BackendLoadError) as caught:
        get_backend("hostile")
    message = str(caught.value)
    for part in ("'hostile'", "rhapsody-hostile 1.2.3", says, "reinstall or upgrade it, or uninstall it"):
        assert part in message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("source", [source for source, _ in BROKEN.values()], ids=BROKEN)
def test_a_broken_backend_is_listed_and_the_others_work(install: Install, source: str) -> None:
    install("rhapsody-hostile", source)
    install("rhapsody-good", SOUND, name="good")
    assert listed("hostile")
    assert listed("good")
    assert get_backend("good").name == "good"
    from rhapsody.backends import ConcurrentExecutionBackend

    assert get_backend("concurrent").name == "concurrent"
    assert ConcurrentExecutionBackend.__name__ == "ConcurrentExecutionBackend"


def test_listing_and_using_others_imports_no_backend(install: Install, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    install("rhapsody-slow", f"open({str(mark)!r}, 'w').close()\nimport time\ntime.sleep(5)", name="slow")
    install("rhapsody-good", SOUND, name="good")
    assert listed("slow")
    get_backend("good")
    get_backend("concurrent")
    with pytest.raises(BackendNotFoundError):
        get_backend("nonesuch")
    assert not mark.exists()


NO_TARGETS = ("", "one two", "module:", ":Backend", "module:Class:more", "1module:Backend", "!!")


@pytest.mark.parametrize("target", NO_TARGETS)
def test_an_entry_point_that_names_nothing_is_told_and_harms_no_other(install: Install, target: str) -> None:
    install("rhapsody-hostile", "", entry_points=f"[rhapsody.backends]\nhostile = {target}\n")
    install("rhapsody-good", SOUND, name="good")
    assert listed("good")
    assert get_backend("good").name == "good"
    import rhapsody.backends

    assert rhapsody.backends.Backend.__module__ == "rhapsody_good"
    with pytest.raises(AttributeError, match=r"rhapsody\.backends has no 'Nonesuch'"):
        _ = rhapsody.backends.Nonesuch
    with pytest.raises((BackendLoadError, InvalidBackendError), match=r"rhapsody-hostile 1\.2\.3"):
        get_backend("hostile")


def test_metadata_without_a_name_or_version_harms_nobody(install: Install) -> None:
    source = install("rhapsody-hostile", SOUND)
    (source.parent / "rhapsody_hostile-1.2.3.dist-info" / "METADATA").unlink()
    install("rhapsody-good", SOUND, name="good")
    assert listed("good")
    assert listed("hostile")
    assert get_backend("hostile").name == "hostile"
    assert get_backend("good").name == "good"


def test_entry_points_that_cannot_be_read_harm_nobody(install: Install) -> None:
    install("rhapsody-hostile", "", entry_points="[rhapsody.backends]\nthis is no entry point\n")
    install("rhapsody-good", SOUND, name="good")
    assert listed("good")
    assert get_backend("good").name == "good"
    assert get_backend("concurrent").name == "concurrent"


# -- what is no backend --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["Backend = 7", "class Backend: pass", "def Backend(): pass"])
def test_what_is_no_backend_class_is_refused(install: Install, source: str) -> None:
    install("rhapsody-hostile", source)
    with pytest.raises(InvalidBackendError) as caught:
        get_backend("hostile")
    for part in ("rhapsody-hostile 1.2.3", "rhapsody_hostile:Backend", "rhapsody.plugin.ExecutionBackend"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("version", "says"),
    [("0", "upgrade its distribution"), ("99", "upgrade rhapsody-core"), ("None", "must declare interface_version")],
    ids=["too old", "too new", "none"],
)
def test_another_version_of_the_interface_is_refused_before_init(install: Install, version: str, says: str) -> None:
    install("rhapsody-hostile", SOUND + f"\n        interface_version = {version}\n")
    with pytest.raises(InvalidBackendError) as caught:
        get_backend("hostile")
    for part in ("rhapsody-hostile 1.2.3", f"version {version}", says):
        assert part in str(caught.value)


HOOKS = {
    "an unknown hook": ("@hookimpl\n        def rhapsody_start(self): pass", "rhapsody_start"),
    "an unknown argument": ("@hookimpl\n        def rhapsody_cancel(self, jobs): pass", "jobs"),
}


@pytest.mark.parametrize(("hook", "says"), HOOKS.values(), ids=HOOKS)
def test_hooks_that_do_not_match_are_refused_where_the_backend_is_attached(
    install: Install, hook: str, says: str
) -> None:
    install("rhapsody-hostile", SOUND + f"\n        {hook}\n")
    backend = get_backend("hostile")
    with pytest.raises(InvalidBackendError) as caught:
        Session(backends=[backend])
    for part in ("rhapsody_hostile.Backend", "rhapsody-hostile 1.2.3", says):
        assert part in str(caught.value)


@pytest.mark.parametrize("hook", ["rhapsody_init", "rhapsody_submit", "rhapsody_shutdown"])
def test_a_missing_required_hook_is_refused_where_the_backend_is_attached(install: Install, hook: str) -> None:
    install("rhapsody-hostile", SOUND.replace(f"@hookimpl\n        def {hook}", f"def {hook}"))
    with pytest.raises(InvalidBackendError) as caught:
        Session(backends=["hostile"])
    for part in ("rhapsody-hostile 1.2.3", f"lacks the required hooks {hook}", "rhapsody.plugin.hookimpl"):
        assert part in str(caught.value)


def test_what_the_class_raises_itself_is_not_hidden(install: Install) -> None:
    install("rhapsody-hostile", SOUND.replace("super().__init__(name)", "raise TypeError('no such queue')"))
    with pytest.raises(TypeError, match="no such queue"):
        get_backend("hostile")


def test_options_that_the_class_does_not_take_are_told(install: Install) -> None:
    install("rhapsody-good", SOUND, name="good")
    with pytest.raises(BackendConfigurationError, match=r"which takes .*colour.*unexpected keyword argument 'shape'"):
        get_backend("good", shape="round")


# -- names ---------------------------------------------------------------------------------------------------------


def test_two_distributions_with_one_name_are_both_told_and_can_be_chosen(install: Install) -> None:
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


def test_a_distribution_that_is_on_the_path_twice_is_one(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install("rhapsody-good", SOUND, name="good").parent
    link = site.parent / "again"
    link.symlink_to(site)
    monkeypatch.syspath_prepend(str(link))
    assert [info.name for info in available_backends()].count("good") == 1
    get_backend("good")


def test_an_alias_answers_to_its_own_name(install: Install) -> None:
    points = "[rhapsody.backends]\ngood = rhapsody_good:Backend\nbetter = rhapsody_good:Backend\n"
    install("rhapsody-good", SOUND, entry_points=points)
    assert get_backend("better").name == "better"
    assert get_backend("good").name == "good"


def test_a_typo_names_the_nearest() -> None:
    with pytest.raises(BackendNotFoundError, match="did you mean concurrent"):
        get_backend("concurent")


def test_a_known_backend_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhapsody import discovery

    points = [point for point in discovery._entry_points(discovery.BACKENDS) if point.name == "concurrent"]
    monkeypatch.setattr(discovery, "_entry_points", lambda group: points)
    with pytest.raises(BackendNotInstalledError, match="pip install rhapsody-dask"):
        get_backend("dask")
    with pytest.raises(ImportError, match="pip install rhapsody-dask"):
        from rhapsody.backends import DaskExecutionBackend  # noqa: F401
    (info,) = [info for info in available_backends() if info.name == "dask"]
    assert (info.installed, info.remedy) == (False, "pip install rhapsody-dask")


# -- what is taken out, and what comes in --------------------------------------------------------------------------


def test_disabled_backends_are_not_there(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_backend_that_is_installed_now_is_found_without_a_restart(install: Install) -> None:
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


def test_a_sound_backend_runs_tasks_beside_a_broken_one(install: Install) -> None:
    import asyncio

    install("rhapsody-good", SOUND, name="good")
    install("rhapsody-hostile", "raise SystemExit(3)")
    assert asyncio.run(_run_good()) == "good"


# -- the command line ----------------------------------------------------------------------------------------------


def rhapsody(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhapsody", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=dict(os.environ))


def test_the_command_line_lists_all_of_it_with_reasons(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_installed_observers_are_told_and_unsound_ones_are_logged_and_left_out(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["Sound", "Unknown", "Coroutine", "Failing", "Missing"]
    points = "\n".join(f"{name} = watching:{name}" for name in names)
    install("watching", OBSERVERS, entry_points=f"[rhapsody.observers]\n{points}\n")
    async with Session() as session:
        pass
    import watching

    assert watching.Sound.told == [session.uid]
    log = caplog.text
    assert [name for name in names if f"watching:{name}" in log] == names[1:]
