"""`ExecutionBackend`: what every backend has in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from rhapsody.adapters.asyncflow import EngineState, Standalone, TaskStatesMap
from rhapsody.errors import UnsupportedError
from rhapsody.seam.backend import AttachableBackend
from rhapsody.seam.capabilities import Batching

if not TYPE_CHECKING:  # a type checker should know which names there are

    def __getattr__(name: str) -> Any:
        """Return what an old name is now."""
        from rhapsody.compat import old_name

        return old_name(__name__, name)


class ExecutionBackend(AttachableBackend):
    """The base class of backends.

    A backend implements the hooks of `rhapsody.hookspecs` as methods marked `rhapsody.plugin.hookimpl`; it hands
    batches to its engine and reports what came back. A session drives it. Workflow engines that drive a backend by
    itself use `submit_tasks`, `cancel_task`, `register_callback` and `shutdown`, which stand on the same runner (see
    `rhapsody.adapters.asyncflow`).

    Args:
        name: the name under which tasks choose the backend.
        batching: how tasks are grouped: a `Batching`, True or False, the seconds of work in a batch, or a
            mapping of `Batching`'s fields.
        max_in_flight: tasks that the engine holds at the same time, at most: those that run and those that wait there.
            The others wait in the backlog, where they can be canceled at once and are overtaken by urgent ones. None:
            as many as the engine takes.

    Attributes:
        interface_version: of the backend interface that the class was written for.
        capabilities: what the backend can do.
        deadlines: how long the runner waits for its hooks.
        supports_implicit_data_linking: whether a workflow engine may link what one task has written to another.
        supports_explicit_data_linking: whether it may link files by name.

    Raises:
        BackendConfigurationError: an unusable name, batching or max_in_flight.
    """

    supports_implicit_data_linking: bool = False
    supports_explicit_data_linking: bool = False

    def __init__(
        self,
        name: str,
        *,
        batching: Batching | Mapping[str, Any] | bool | float | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        super().__init__(name, batching=batching, max_in_flight=max_in_flight)
        self._standalone = Standalone(self)

    def _link_files(self, links: bool) -> None:
        """Declare whether the files of a workflow engine's tasks can be linked: this program sees all of them."""
        self.supports_implicit_data_linking = self.supports_explicit_data_linking = links
        self._standalone.links_files = links

    def __await__(self) -> Generator[Any, None, Self]:
        """Start the engine; the session or workflow engine that gets the backend takes it over.

        A backend that is not awaited starts with its session, or with the first submit of its workflow engine.

        Raises:
            BackendStartError: the engine did not start.
        """
        yield from self._standalone.start().__await__()
        return self

    @classmethod
    async def create(cls, *args: Any, **options: Any) -> Self:
        """Make a backend from the arguments of its class, and start its engine."""
        return await cls(*args, **options)

    async def __aenter__(self) -> Self:
        """Start the engine."""
        return await self

    async def __aexit__(self, *_: object) -> None:
        """Shut the engine down, where no session has done so."""
        await self.shutdown()

    # -- driven without a session: what workflow engines call ------------------------------------------------

    def register_callback(self, callback: Callable[[dict[str, Any], str], Any]) -> None:
        """Have `callback(task, state)` called on the loop's thread when a task runs, and when it has ended."""
        self._standalone.callback = callback

    def get_task_states_map(self) -> type[TaskStatesMap]:
        """Return the names of the states that callbacks receive."""
        return TaskStatesMap

    def state(self) -> EngineState:
        """Return what the engine does: IDLE, INITIALIZED, RUNNING or SHUTDOWN; may be awaited, for older callers."""
        return self._standalone.state()

    async def submit_tasks(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Run tasks described by dicts; results are written into the same dicts before the callback is called.

        A task that is refused is FAILED, with the reason in its `exception` and `stderr`, and so are all of them where
        the backend does not start: engines end their loop at an exception, and every other task with it.
        """
        await self._standalone.submit(tasks)

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task; a function that cannot be stopped is CANCELED all the same, and its late end dropped.

        Returns:
            Whether the task was canceled; False where it had ended.

        Raises:
            SessionError: the backend is in a session, which cancels its own tasks.
        """
        return await self._standalone.cancel(uid)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Mapping[str, Any]) -> None:
        """Link what one task has left in its folder into that of another.

        Raises:
            UnsupportedError: the backend declares that it links no files.
        """
        if not self.supports_implicit_data_linking:
            self._refuse_link(dst_task)
        self._standalone.folders().link_all(src_task, dst_task)

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Mapping[str, Any] | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> dict[str, str]:
        """Link a file into the folder of a task.

        Args:
            src_task: whose file it is; None where it is at `file_path`.
            dst_task: that reads it.
            file_name: its name in both folders.
            file_path: where it is, unless it is another task's.

        Returns:
            `source`, `target` and `action`.

        Raises:
            UnsupportedError: the backend declares that it links no files.
        """
        if not self.supports_explicit_data_linking:
            self._refuse_link(dst_task or {})
        return self._standalone.folders().link(src_task, dst_task or {}, file_name or "", file_path)

    def _refuse_link(self, task: Mapping[str, Any]) -> NoReturn:
        raise UnsupportedError(
            f"task {task.get('uid')!r}: backend {self.name!r} links no files between tasks; name them by path, or pass "
            f"their path as what a task returns"
        )

    async def shutdown(self) -> None:
        """Stop what still runs and release the engine; may be called at any time, and again.

        Raises:
            SessionError: the backend is in a session, which shuts it down when it is closed.
            BackendShutdownError: the engine did not shut down cleanly.
        """
        await self._standalone.shutdown()
