"""What the machine lacks is an error before a start costs time, each with its own remedy."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rhapsody.errors import BackendStartError
from rhapsody_dragon import startup_checks

from .conftest import outside

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None,
    reason="a namespace of its own is made by root, with unshare(1) and ip(8)",
)

CHECK = """
from rhapsody.errors import BackendStartError
from rhapsody_dragon.startup_checks import check_machine
try:
    check_machine()
except BackendStartError as error:
    print(error)
"""

#: Starts a runtime, and a process on it.
START = """
from rhapsody_dragon import runtime
held = runtime.acquire(lambda what: None)
from dragon.native.process import Process
process = Process(target="/bin/true", args=[])
process.start()
print("joined", process.join(timeout=30))
runtime.release(held)
"""


def run(script: str, *around: str) -> str:
    done = subprocess.run(
        [*around, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        env=outside(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def limited(limit: str) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit {limit}; exec "$@"', "sh")


def test_a_sound_machine_passes() -> None:
    """Nothing is said."""
    assert run(CHECK) == ""


@pytest.mark.parametrize(
    ("limit", "named", "remedy"),
    [("-v 6000000", "5.72 GiB", "ulimit -v unlimited"), ("-n 32", "32 open files", "ulimit -n")],
)
def test_a_limit_of_the_shell_is_named(limit: str, named: str, remedy: str) -> None:
    """With the command that raises it."""
    said = run(CHECK, *limited(limit))
    assert named in said
    assert remedy in said.partition("Remedy: ")[2]


def test_doctor_names_what_is_missing() -> None:
    """`rhapsody doctor` prints what the machine lacks, and its remedy."""
    command = [*limited("-v 6000000"), sys.executable, "-m", "rhapsody", "doctor", "dragon"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=outside())
    assert done.returncode == 1
    assert "5.72 GiB" in done.stdout
    assert "ulimit -v unlimited" in done.stdout.partition("Remedy: ")[2]


def test_a_small_dev_shm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the size that is needed, and how a container gets it."""
    state = os.statvfs("/dev/shm")
    small = os.statvfs_result((4096, 4096, 16384, 16384, 16384, *tuple(state)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(BackendStartError, match=r"0\.06 GiB free, and Dragon needs 4\.09 GiB.*--shm-size=6g"):
        startup_checks.check_machine()
    monkeypatch.setenv("DRAGON_DEFAULT_SEG_SZ", str(2**24))
    monkeypatch.setenv("DRAGON_INF_SEG_SZ", str(2**24))
    with pytest.raises(BackendStartError, match=r"needs 1\.09 GiB"):
        startup_checks.check_machine()


def test_an_unresolved_host_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dragon would search for it until the deadline."""
    monkeypatch.setattr("socket.gethostname", lambda: "nowhere.invalid")
    with pytest.raises(BackendStartError, match=r"'nowhere\.invalid', has no address") as failed:
        startup_checks.check_machine()
    assert "/etc/hosts" in str(failed.value)


def test_a_python_without_dragon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Pythons that there are wheels for."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendStartError, match=r"wheels for Python 3\.10 to 3\.13"):
        startup_checks.check_installed()


@needs_namespaces
def test_a_containers_dev_shm_fails_at_once() -> None:
    """64 MiB is what a container has unless it is asked for more."""
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    assert "--shm-size=6g" in run(CHECK, "unshare", "-m", "sh", "-c", mount, "sh")


@pytest.mark.nightly
@needs_namespaces
def test_the_loopback_alone_will_do() -> None:
    """A laptop without a network runs Dragon."""
    assert run(START, "unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh") == "joined 0\n"


@pytest.mark.parametrize(("telemetry", "level"), [(True, "3"), (False, "0")])
def test_telemetry_is_off_if_asked(
    telemetry: bool, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And is what the environment says otherwise."""
    monkeypatch.delenv("DRAGON_GS_QD", raising=False)
    monkeypatch.setenv("DRAGON_TELEMETRY_LEVEL", "3")
    assert startup_checks.launcher_environment(tmp_path, telemetry)["DRAGON_TELEMETRY_LEVEL"] == level


def test_a_runtime_has_nothing_of_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its number, token and folder are its own."""
    for name in ("DRAGON_RT_UID", "DRAGON_ATTACH_TOKEN", "DRAGON_ATTACH_DIR"):
        monkeypatch.setenv(name, "another's")
    assert "another's" not in startup_checks.launcher_environment(tmp_path, True).values()
