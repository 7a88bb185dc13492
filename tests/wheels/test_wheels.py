"""What users install: the wheels of `make dist`, in an environment that has nothing else."""

from __future__ import annotations

import textwrap
import zipfile
from pathlib import Path

import pytest
import rhapsody

from .conftest import MARKS, PACKAGES, install, run

pytestmark = MARKS


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_its_package(package: str, wheels: dict[str, Path]) -> None:
    """A wheel holds its package and its licence, and no tests."""
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
def test_core_wheel_runs_tasks(ending: str, environment: Path, tmp_path: Path) -> None:
    """The core's wheel runs functions and executables on threads and processes."""
    script = tmp_path / "script.py"
    script.write_text(f"{textwrap.dedent(SCRIPT)}\n{textwrap.dedent(ENDINGS[ending])}")
    assert run(environment / "bin" / "python", "-W", "error", script, cwd=tmp_path) == "well\n"
    assert list(tmp_path.iterdir()) == [script]


def test_plugin_wheel_is_found_and_runs(environment: Path, wheels: dict[str, Path], tmp_path: Path) -> None:
    """A plugin's wheel is found by its name and runs a task."""
    command = environment / "bin" / "rhapsody"
    assert "pip install rhapsody-dask" in run(command, "backends", cwd=tmp_path)
    install(environment, wheels["rhapsody_dask"])
    listed = run(command, "backends", "--check", cwd=tmp_path)
    assert any(line.split()[:3] == ["dask", "ready", "rhapsody-dask"] for line in listed.splitlines())
    assert "the backend is well" in run(command, "doctor", "dask", cwd=tmp_path)
