"""What users install: the wheels of `make dist`, in an environment that has nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import rhapsody

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"
PACKAGES = ("rhapsody_core", "rhapsody_dask", "rhapsody_dragon", "rhapsody_radical")

pytestmark = [
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


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels, by package."""
    folder = tmp_path_factory.mktemp("dist")
    run("make", "--old-file=install", "dist", f"DIST={folder}")
    assert len(list(folder.glob("*.tar.gz"))) == len(PACKAGES), "a source distribution for each"
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Path:
    """A new environment with the wheel of the core."""
    folder = tmp_path_factory.mktemp("environment")
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    _install(folder, wheels["rhapsody_core"])
    return folder


def _install(environment: Path, wheel: Path) -> None:
    python = environment / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt", wheel)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_its_package_its_licence_and_no_tests(package: str, wheels: dict[str, Path]) -> None:
    names = zipfile.ZipFile(wheels[package]).namelist()
    own = package if package != "rhapsody_core" else "rhapsody"
    assert f"{own}/py.typed" in names
    assert f"{package}-{rhapsody.__version__}.dist-info/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {own, f"{package}-{rhapsody.__version__}.dist-info"}


SCRIPT = """
    import asyncio, sys
    from pathlib import Path
    import rhapsody
    from rhapsody.api import ComputeTask, Session
    from rhapsody.backends import ConcurrentExecutionBackend

    assert Path(rhapsody.__file__).is_relative_to(sys.prefix)

    def double(n):
        return 2 * n

    async def main():
        processes = ConcurrentExecutionBackend("processes", executor="processes", max_workers=2)
        async with Session(backends=["concurrent", processes]) as session:
            for backend in session.backends:
                functions = [ComputeTask(function=double, args=(n,), backend=backend) for n in range(10)]
                program = ComputeTask(executable="echo", arguments=["hello"], backend=backend)
                await session.submit_tasks([*functions, program])
                await session.wait_tasks()
                assert [task.return_value for task in functions] == [2 * n for n in range(10)]
                assert program.stdout == "hello\\n"
        print("well")
"""


ENDINGS = {
    "a plain script": """
        if __name__ == "__main__":
            asyncio.run(main())
    """,
    "a loop of the caller's own": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_core_s_wheel_runs_functions_and_programs_on_threads_and_processes(
    ending: str, environment: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{textwrap.dedent(SCRIPT)}\n{textwrap.dedent(ENDINGS[ending])}")
    assert run(environment / "bin" / "python", "-W", "error", script, cwd=tmp_path) == "well\n"
    assert list(tmp_path.iterdir()) == [script]


def test_a_plugin_s_wheel_is_found_by_its_name_and_runs_a_task(
    environment: Path, wheels: dict[str, Path], tmp_path: Path
) -> None:
    command = environment / "bin" / "rhapsody"
    assert "pip install rhapsody-dask" in run(command, "backends", cwd=tmp_path)
    _install(environment, wheels["rhapsody_dask"])
    listed = run(command, "backends", "--check", cwd=tmp_path)
    assert any(line.split()[:3] == ["dask", "ready", "rhapsody-dask"] for line in listed.splitlines())
    assert "the backend is well" in run(command, "doctor", "dask", cwd=tmp_path)
