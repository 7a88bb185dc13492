"""The part of the suite about executables."""

from __future__ import annotations

import signal
from pathlib import Path

from ..errors import TaskExecutionError
from ..states import TaskState
from ..task import ComputeTask
from ._base import SuitePart, conforms
from .rig import Rig, check, must_be

_MEBIBYTE = 2**20


class ExecutableTests(SuitePart):
    """What holds for programs on every backend that runs them."""

    @conforms("executables", needs="executables")
    async def test_an_executable_runs_and_its_exit_code_is_0(self, rig: Rig) -> None:
        """`true` is DONE with exit code 0."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "true"])
        must_be(task, TaskState.DONE, "an executable that returns 0")
        check(task.exit_code == 0, f"its exit_code is {task.exit_code!r}; set Outcome.exit_code")

    @conforms("standard streams", needs="executables")
    async def test_an_executable_has_its_own_stdout_and_stderr(self, rig: Rig) -> None:
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
    async def test_a_megabyte_on_both_streams_blocks_nothing(self, rig: Rig) -> None:
        """Pipes that nobody drains would stop the program for good."""
        script = f"head -c {_MEBIBYTE} /dev/zero | tr '\\0' o; head -c {_MEBIBYTE} /dev/zero | tr '\\0' e >&2; echo end"
        task = await rig.one(executable="/bin/sh", arguments=["-c", script])
        must_be(task, TaskState.DONE, "an executable that writes 1 MiB to each stream")
        for name, text, letter in (("stdout", task.stdout, "o"), ("stderr", task.stderr, "e")):
            check(text is not None and text[:1000] == letter * 1000, f"the start of 1 MiB of {name} is not there")
        check((task.stdout or "").endswith("end\n"), "the end of 1 MiB of stdout is not there")

    @conforms("standard streams", needs="executables")
    async def test_captured_output_goes_to_files_of_the_session(self, rig: Rig) -> None:
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
            check(file.read_text() == text, f"{file} holds {file.read_text()!r}, and the program wrote {text!r}")

    @conforms("executables", needs="executables")
    async def test_arguments_arrive_as_they_are(self, rig: Rig) -> None:
        """No shell takes spaces, quotes or dollars apart, and an empty argument stays."""
        arguments = ["two words", "it's", '"quoted"', "$HOME", "*", "", "ünï", "back\\slash"]
        task = await rig.one(executable="printf", arguments=["[%s]", *arguments])
        wanted = "".join(f"[{argument}]" for argument in arguments)
        check(task.stdout == wanted, f"the arguments {arguments} arrived as {task.stdout!r}; pass a list, use no shell")

    @conforms("executables", needs="executables")
    async def test_environment_and_folder_are_the_tasks_own(self, rig: Rig) -> None:
        """`environment` adds variables, `cwd` is where the program runs."""
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
    async def test_a_shell_command_runs_in_a_shell(self, rig: Rig) -> None:
        """With `shell` the executable is a command line."""
        task = await rig.one(executable="echo one; echo two | tr a-z A-Z", shell=True)
        check(task.stdout == "one\nTWO\n", f"the command line wrote {task.stdout!r}, and not 'one\\nTWO\\n'")

    @conforms("exit codes", needs="executables")
    async def test_another_exit_code_than_0_is_a_failure(self, rig: Rig) -> None:
        """The task is FAILED, and its error tells the code and the end of stderr."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "echo the reason >&2; exit 3"])
        must_be(task, TaskState.FAILED, "an executable that returns 3")
        check(task.exit_code == 3, f"it returned 3, and task.exit_code is {task.exit_code!r}")
        error = task.exception
        check(
            isinstance(error, TaskExecutionError) and error.exit_code == 3 and "the reason" in error.stderr,
            f"its exception is {error!r}; it must be TaskExecutionError(uid, 3, stderr), as TaskBatch.decode makes it",
        )

    @conforms("exit codes", needs="executables")
    async def test_an_executable_that_a_signal_ends_tells_which(self, rig: Rig) -> None:
        """The exit code is the negative number of the signal."""
        task = await rig.one(executable="/bin/sh", arguments=["-c", "kill -KILL $$"])
        must_be(task, TaskState.FAILED, "an executable that SIGKILL ends")
        check(
            task.exit_code == -signal.SIGKILL,
            f"SIGKILL ended it, and task.exit_code is {task.exit_code!r}; it must be -9 (some engines report 137)",
        )

    @conforms("exit codes", needs="executables")
    async def test_an_executable_that_is_not_there_fails(self, rig: Rig) -> None:
        """The task says which program; others go on."""
        missing = ComputeTask(executable="/nowhere/at/all")
        good = ComputeTask(executable="/bin/sh", arguments=["-c", "true"])
        await rig.finish([missing, good])
        must_be(missing, TaskState.FAILED, "an executable that does not exist")
        check(
            "/nowhere/at/all" in str(missing.exception),
            f"its error does not name the program: {missing.exception}",
        )
        must_be(good, TaskState.DONE, "a task beside an executable that does not exist")

    @conforms("executables", needs="executables")
    async def test_every_output_belongs_to_its_own_executable(self, rig: Rig) -> None:
        """Forty programs at once write their own numbers."""
        batch = [ComputeTask(executable="echo", arguments=[number]) for number in range(40)]
        await rig.finish(batch)
        wrong = [number for number, task in enumerate(batch) if task.stdout != f"{number}\n"]
        check(not wrong, f"the executables {wrong[:5]} of 40 have the output of another; match results by uid")
