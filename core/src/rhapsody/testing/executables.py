"""The part of the suite about executables."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

from rhapsody.errors import TaskExecutionError
from rhapsody.model.states import TaskState
from rhapsody.model.task import ComputeTask
from rhapsody.testing._base import SuitePart, conforms
from rhapsody.testing.assertions import check, must_be
from rhapsody.testing.rig import Rig
from rhapsody.testing.watch import is_alive

__tracebackhide__ = True  # frames of the suite

_MEBIBYTE = 2**20


class ExecutableTests(SuitePart):
    """What holds for executables on every backend that runs them."""

    @conforms("executables", needs="executables")
    async def test_executable_has_exit_code_0(self, rig: Rig) -> None:
        """`true` is DONE with exit code 0."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "true"])
        must_be(task, TaskState.DONE, "an executable that returns 0")
        check(task.exit_code == 0, f"its exit_code is {task.exit_code!r}; set Outcome.exit_code")

    @conforms("standard streams", needs="executables")
    async def test_executable_has_both_streams(self, rig: Rig) -> None:
        """Both streams arrive, each by itself, with nothing added or lost."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "echo out; echo err >&2; printf é"])
        must_be(task, TaskState.DONE, "an executable that writes to both streams")
        check(task.stdout == "out\né", f"it wrote 'out\\né' to stdout, and task.stdout is {task.stdout!r}")
        check(
            task.stderr == "err\n",
            f"it wrote 'err\\n' to stderr, and task.stderr is {task.stderr!r}; set Outcome.stderr",
        )

    @conforms("standard streams", needs="executables")
    async def test_an_executable_reads_its_stdin(self, rig: Rig) -> None:
        """`cat` writes what the task gives as stdin; without one it reads nothing and ends."""
        fed, hungry = ComputeTask(executable="cat", stdin="two\nlines"), ComputeTask(executable="cat")
        await rig.finish([fed, hungry])
        check(fed.stdout == "two\nlines", f"`cat` was given 'two\\nlines' as stdin, and wrote {fed.stdout!r}")
        check(hungry.stdout == "", f"`cat` was given no stdin, and wrote {hungry.stdout!r}")

    @conforms("standard streams", needs="executables")
    async def test_large_output_blocks_nothing(self, rig: Rig) -> None:
        """Pipes that nobody drains would stop the executable for good."""
        script = f"head -c {_MEBIBYTE} /dev/zero | tr '\\0' o; head -c {_MEBIBYTE} /dev/zero | tr '\\0' e >&2; echo end"
        task = await rig.one(executable="/bin/sh", arguments=["-c", script])
        must_be(task, TaskState.DONE, "an executable that writes 1 MiB to each stream")
        for name, text, letter in (("stdout", task.stdout, "o"), ("stderr", task.stderr, "e")):
            check(text is not None and text[:1000] == letter * 1000, f"the start of 1 MiB of {name} is not there")
        check((task.stdout or "").endswith("end\n"), "the end of 1 MiB of stdout is not there")

    @conforms("standard streams", needs="executables")
    async def test_captured_output_is_in_the_session(self, rig: Rig) -> None:
        """With `capture_stdio` the streams are files in the session's folder."""
        script = "echo out; echo err >&2"
        task = await rig.one(executable="/bin/sh", arguments=["-c", script], capture_stdio=True)
        must_be(task, TaskState.DONE, "an executable with capture_stdio")
        life = await rig.shared()
        for name, path, text in (("stdout", task.stdout_path, "out\n"), ("stderr", task.stderr_path, "err\n")):
            check(path is not None, f"task.{name}_path is None, though capture_stdio was asked for")
            file = Path(path or "")
            check(
                file.is_relative_to(life.session.sandbox),
                f"{name} is captured to {file}, outside of the session's folder",
            )
            check(file.is_file(), f"{name} was to be captured to {file}, which is not there")
            check(file.read_text() == text, f"{file} holds {file.read_text()!r}, and the executable wrote {text!r}")

    @conforms("standard streams", needs="executables")
    async def test_streams_may_be_files(self, rig: Rig) -> None:
        """`stdin`, `stdout` and `stderr` may be paths: absolute ones, or from the task's `cwd`; also one for both."""
        folder = rig.new_folder()
        (folder / "in").write_text("what it reads")
        script = ["-c", "cat; echo err >&2"]
        apart = ComputeTask(
            "/bin/sh", arguments=script, cwd=folder, stdin=Path("in"), stdout=Path("out"), stderr=folder / "new" / "err"
        )
        both = ComputeTask("/bin/sh", arguments=script, stdout=folder / "both", stderr=folder / "both")
        await rig.finish([apart, both])
        for task in (apart, both):
            must_be(task, TaskState.DONE, "an executable whose streams are files")
            check(task.stdout is None and task.stderr is None, "streams that went to files are None; set their paths")
        paths = [apart.stdout_path, apart.stderr_path, both.stdout_path, both.stderr_path]
        wanted = [str(folder / name) for name in ("out", "new/err", "both", "both")]
        check(paths == wanted, f"streams should go to {wanted}, and their paths are {paths}; {_FILES}")
        for path, text in zip(wanted, ("what it reads", "err\n", "err\n"), strict=False):
            found = Path(path).read_text() if Path(path).exists() else None
            check(found == text, f"the executable wrote {text!r} to {path}, and it holds {found!r}; {_FILES}")

    @conforms("executables", needs="executables")
    async def test_arguments_arrive_as_they_are(self, rig: Rig) -> None:
        """No shell takes spaces, quotes or dollars apart, and an empty argument stays."""
        arguments = ["two words", "it's", '"quoted"', "$HOME", "*", "", "ünï", "back\\slash"]
        task = await rig.one(executable="printf", arguments=["[%s]", *arguments])
        wanted = "".join(f"[{argument}]" for argument in arguments)
        check(task.stdout == wanted, f"the arguments {arguments} arrived as {task.stdout!r}; pass a list, use no shell")

    @conforms("executables", needs="executables")
    async def test_executable_has_its_environment(self, rig: Rig) -> None:
        """`environment` adds variables, `cwd` is where the executable runs."""
        folder = rig.new_folder()
        task = await rig.one(
            executable="/bin/sh",
            arguments=["-c", 'echo "$COLOUR"; test -n "$PATH" && pwd -P'],
            environment={"COLOUR": "dark blue"},
            cwd=str(folder),
        )
        must_be(task, TaskState.DONE, "an executable with an environment and a folder")
        wanted = f"dark blue\n{folder.resolve()}\n"
        check(
            task.stdout == wanted,
            f"a task with environment={{'COLOUR': 'dark blue'}} and cwd={str(folder)!r} wrote {task.stdout!r}, and not "
            f"{wanted!r}; the variables are added to the worker's own",
        )

    @conforms("executables", needs="executables")
    async def test_environment_stays_with_its_task(self, rig: Rig) -> None:
        """A task has the worker's variables; what another set, or where another ran, is nothing to it."""
        folder = rig.new_folder()
        asking = ComputeTask(executable="env", environment={"COLOUR": "dark blue"}, cwd=str(folder))
        plain = [ComputeTask(executable="/bin/sh", arguments=["-c", "pwd -P; env"]) for _ in range(8)]
        await rig.finish([asking])
        await rig.finish(plain)
        names = {line.partition("=")[0] for line in (asking.stdout or "").splitlines()}
        missing = {name for name in ("PATH", "HOME") if name in os.environ} - names
        check(
            not missing,
            f"a task with an environment of its own lacks {', '.join(sorted(missing))}; its variables are added to the "
            f"worker's own, and replace none but their namesakes",
        )
        for task in plain:
            where, *lines = (task.stdout or "").splitlines() or [""]
            check(
                where != str(folder.resolve()),
                "a task without cwd ran in the folder of the task before it; a worker stays in its own folder",
            )
            check(
                "COLOUR=dark blue" not in lines,
                "a task has the environment of the task before it; a worker's own environment stays as it is",
            )

    @conforms("executables", needs="executables")
    async def test_a_shell_command_runs_in_a_shell(self, rig: Rig) -> None:
        """With `shell` the executable is a command line."""
        task = await rig.one(executable="echo one; echo two | tr a-z A-Z", shell=True)
        check(task.stdout == "one\nTWO\n", f"the command line wrote {task.stdout!r}, and not 'one\\nTWO\\n'")

    @conforms("exit codes", needs="executables")
    async def test_other_exit_code_is_a_failure(self, rig: Rig) -> None:
        """The task is FAILED, and its error has the code and the end of stderr."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "echo the reason >&2; exit 3"])
        must_be(task, TaskState.FAILED, "an executable that returns 3")
        check(task.exit_code == 3, f"it returned 3, and task.exit_code is {task.exit_code!r}")
        error = task.exception
        check(
            isinstance(error, TaskExecutionError) and error.exit_code == 3 and "the reason" in error.stderr,
            f"its exception is {error!r}; it must be TaskExecutionError(uid, 3, stderr), as TaskBatch.decode makes it",
        )

    @conforms("exit codes", needs="executables")
    async def test_signal_is_a_negative_exit_code(self, rig: Rig) -> None:
        """The exit code is the negative number of the signal."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "kill -KILL $$"])
        must_be(task, TaskState.FAILED, "an executable that SIGKILL ends")
        check(
            task.exit_code == -signal.SIGKILL,
            f"SIGKILL ended it, and task.exit_code is {task.exit_code!r}; it must be -9 (some engines report 137)",
        )

    @conforms("exit codes", needs="executables")
    async def test_missing_executable_fails(self, rig: Rig) -> None:
        """The error names the executable; others go on."""
        missing = ComputeTask(executable="/nowhere/at/all")
        good = ComputeTask(executable="/bin/sh", arguments=["-c", "true"])
        await rig.finish([missing, good])
        must_be(missing, TaskState.FAILED, "an executable that does not exist")
        check(
            "/nowhere/at/all" in str(missing.exception),
            f"its error does not name the executable: {missing.exception}",
        )
        must_be(good, TaskState.DONE, "a task beside an executable that does not exist")

    @conforms("executables", needs="executables")
    async def test_leftovers_end_with_executable(self, rig: Rig) -> None:
        """What an executable leaves running in its process group ends when it does."""
        file = rig.new_folder() / "pid"
        script = f"exec >/dev/null 2>&1 </dev/null; sleep 300 & echo $! > {shlex.quote(str(file))}"
        task = await rig.one(executable="/bin/sh", arguments=["-c", script])
        must_be(task, TaskState.DONE, "an executable that leaves a child in the background")
        left = int(file.read_text())
        await rig.until(
            lambda: not is_alive(left),
            "an executable has ended, and the child that it left in the background runs on; signal its process group, "
            "as run_batch does, or end what carries its mark",
        )

    @conforms("executables", needs="executables")
    async def test_output_belongs_to_its_executable(self, rig: Rig) -> None:
        """Forty executables at once write their own numbers."""
        batch = [ComputeTask(executable="echo", arguments=[number]) for number in range(40)]
        await rig.finish(batch)
        wrong = [number for number, task in enumerate(batch) if task.stdout != f"{number}\n"]
        check(not wrong, f"the executables {wrong[:5]} of 40 have the output of another; match results by uid")


_FILES = "use stdin_path, stdout_path and stderr_path of command_of(task, context.sandbox)"
