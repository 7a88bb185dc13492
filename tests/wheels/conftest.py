"""The wheels of `make dist`, built once, and an environment that has nothing but the core's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"
PACKAGES = ("rhapsody_core", "rhapsody_dask", "rhapsody_dragon", "rhapsody_radical")

#: Of every module here.
MARKS = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (UV.exists() and shutil.which("make")), reason="needs make and the environment it makes"),
]


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command with no setting of this environment's, and return what it printed."""
    settings = {
        name: value for name, value in os.environ.items() if not name.startswith(("RHAPSODY_", "PYTHON", "VIRTUAL_"))
    }
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=settings, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels, by package."""
    folder = tmp_path_factory.mktemp("dist")
    run("make", "--old-file=install", "dist", f"DIST={folder}")
    assert len(list(folder.glob("*.tar.gz"))) == len(PACKAGES), "a source distribution for each"
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Path:
    """A new environment with the wheel of the core."""
    folder = tmp_path_factory.mktemp("environment")
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    install(folder, wheels["rhapsody_core"])
    return folder


def install(environment: Path, wheel: Path) -> None:
    """Install a wheel with its dependencies."""
    python = environment / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt", wheel)
