"""The package of the same import name is installed as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import rhapsody


def run(program: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_names_the_cure(tmp_path: Path) -> None:
    """`import rhapsody` warns, with the cure, where its folder has files of the other package."""
    package = tmp_path / "rhapsody"
    shutil.copytree(Path(rhapsody.__file__).parent, package)
    assert "rhapsody-py" not in run("import rhapsody", tmp_path)
    (package / "api").mkdir()
    assert "pip uninstall rhapsody-py rhapsody-core" in run("import rhapsody", tmp_path)


def test_doctor_names_the_cure(tmp_path: Path) -> None:
    """`rhapsody doctor` has it among the problems of the environment."""
    program = "from rhapsody.cli.doctor import environment_problems; print(*environment_problems())"
    assert "rhapsody-py" not in run(program, tmp_path)
    metadata = tmp_path / "rhapsody_py-0.6.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: rhapsody-py\nVersion: 0.6.0\n")
    assert "pip uninstall rhapsody-py rhapsody-core" in run(program, tmp_path)


def test_overwritten_commands_name_the_cure(tmp_path: Path) -> None:
    """Where the other package was installed last, and has overwritten what a command imports, the command says so."""
    package = tmp_path / "rhapsody"
    shutil.copytree(Path(rhapsody.__file__).parent, package)
    (package / "api").mkdir()
    (package / "api" / "__init__.py").touch()
    (package / "__init__.py").write_text("__version__ = '0.6.0'")
    (package / "backends" / "base.py").write_text("class BaseBackend: pass")
    program = "from rhapsody.cli import main; main(['doctor'])"
    text = run(f"import sys\ntry:\n    {program}\nexcept SystemExit as end:\n    print('code', end.code)", tmp_path)
    assert "pip uninstall rhapsody-py rhapsody-core" in text
    assert "code 1" in text
