"""Backends are found whatever else is installed: broken, incomplete, too old or too new."""

from __future__ import annotations

from pathlib import Path

import pytest
from rhapsody.api import (
    BackendConfigurationError,
    BackendLoadError,
    BackendNotFoundError,
    InvalidBackendError,
    Session,
    get_backend,
)

from .conftest import SOUND, Install, listed

BROKEN = {
    "an ImportError": ("import no_such_engine", "No module named 'no_such_engine'"),
    "a SyntaxError": ("def broken(:", "SyntaxError"),
    "a SystemExit": ("raise SystemExit(3)", "SystemExit"),
    "an error of its own": ("raise RuntimeError('no licence')", "no licence"),
    "a missing attribute": ("x = 1", "has no attribute 'Backend'"),
}


@pytest.mark.parametrize(("source", "says"), BROKEN.values(), ids=BROKEN)
def test_failed_import_names_the_culprit(install: Install, source: str, says: str) -> None:
    """A backend that cannot be imported says what failed, and in whose distribution."""
    install("rhapsody-hostile", source)
    with pytest.raises(BackendLoadError) as caught:
        get_backend("hostile")
    message = str(caught.value)
    for part in ("'hostile'", "rhapsody-hostile 1.2.3", says, "reinstall or upgrade it, or uninstall it"):
        assert part in message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("source", [source for source, _ in BROKEN.values()], ids=BROKEN)
def test_broken_backend_harms_no_other(install: Install, source: str) -> None:
    """A broken backend is listed, and the others work."""
    install("rhapsody-hostile", source)
    install("rhapsody-good", SOUND, name="good")
    assert listed("hostile")
    assert listed("good")
    assert get_backend("good").name == "good"
    from rhapsody.backends import ConcurrentExecutionBackend

    assert get_backend("concurrent").name == "concurrent"
    assert ConcurrentExecutionBackend.__name__ == "ConcurrentExecutionBackend"


def test_listing_imports_no_backend(install: Install, tmp_path: Path) -> None:
    """Listing backends and using others imports no backend."""
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
def test_dangling_entry_point_is_reported(install: Install, target: str) -> None:
    """An entry point that names nothing is reported and harms no other."""
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


def test_incomplete_metadata_is_harmless(install: Install) -> None:
    """Metadata without a name or version harms nobody."""
    source = install("rhapsody-hostile", SOUND)
    (source.parent / "rhapsody_hostile-1.2.3.dist-info" / "METADATA").unlink()
    install("rhapsody-good", SOUND, name="good")
    assert listed("good")
    assert listed("hostile")
    assert get_backend("hostile").name == "hostile"
    assert get_backend("good").name == "good"


def test_unreadable_entry_points(install: Install) -> None:
    """Entry points that cannot be read harm nobody."""
    install("rhapsody-hostile", "", entry_points="[rhapsody.backends]\nthis is no entry point\n")
    install("rhapsody-good", SOUND, name="good")
    assert listed("good")
    assert get_backend("good").name == "good"
    assert get_backend("concurrent").name == "concurrent"


@pytest.mark.parametrize("source", ["Backend = 7", "class Backend: pass", "def Backend(): pass"])
def test_non_backend_class_is_refused(install: Install, source: str) -> None:
    """What is no backend class is refused."""
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
def test_interface_version_is_checked(install: Install, version: str, says: str) -> None:
    """Another version of the interface is refused before init."""
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
def test_mismatched_hooks_are_refused(install: Install, hook: str, says: str) -> None:
    """Hooks that do not match are refused where the backend is attached."""
    install("rhapsody-hostile", SOUND + f"\n        {hook}\n")
    backend = get_backend("hostile")
    with pytest.raises(InvalidBackendError) as caught:
        Session(backends=[backend])
    for part in ("rhapsody_hostile.Backend", "rhapsody-hostile 1.2.3", says):
        assert part in str(caught.value)


@pytest.mark.parametrize("hook", ["rhapsody_init", "rhapsody_submit", "rhapsody_shutdown"])
def test_missing_hook_is_refused(install: Install, hook: str) -> None:
    """A missing required hook is refused where the backend is attached."""
    install("rhapsody-hostile", SOUND.replace(f"@hookimpl\n        def {hook}", f"def without_{hook}"))
    with pytest.raises(InvalidBackendError) as caught:
        Session(backends=["hostile"])
    for part in ("rhapsody-hostile 1.2.3", f"lacks the required hooks {hook}", "rhapsody.plugin.hookimpl"):
        assert part in str(caught.value)


def test_constructors_error_is_shown(install: Install) -> None:
    """What the class raises itself is not hidden."""
    install("rhapsody-hostile", SOUND.replace("super().__init__(name)", "raise TypeError('no such queue')"))
    with pytest.raises(TypeError, match="no such queue"):
        get_backend("hostile")


def test_unknown_options_are_named(install: Install) -> None:
    """Options that the class does not take are named, with those that it takes."""
    install("rhapsody-good", SOUND, name="good")
    with pytest.raises(BackendConfigurationError, match=r"which takes .*colour.*unexpected keyword argument 'shape'"):
        get_backend("good", shape="round")
