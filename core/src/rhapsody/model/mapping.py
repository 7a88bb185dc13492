"""A task read and written as a mapping: `task["stdout"]`, `"uid" in task`, `dict(task)`, `task["cwd"] = "/tmp"`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from rhapsody.errors import InvalidTaskError, describe
from rhapsody.model.options import FILE_FIELDS
from rhapsody.model.policies import POLICY_FIELDS, Policies
from rhapsody.model.states import TaskState

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class AsMapping:
    """What a task has of a mapping: its public fields by name, and what it keeps as `metadata`."""

    __slots__ = ()

    uid: str
    state: TaskState
    policies: Policies | None

    @property
    def priority(self) -> int:
        """The priority that the task was given; 0 where it was given none."""
        return 0 if self.policies is None else self.policies.priority

    @property
    def tag(self) -> str | None:
        """The tag that the task was given."""
        return None if self.policies is None else self.policies.tag

    @property
    def idempotent(self) -> bool:
        """Whether the task was marked as one that may run twice."""
        return self.policies is not None and self.policies.idempotent

    @property
    def cache(self) -> bool:
        """Whether the result of the task is kept for later ones of the same content."""
        return self.policies is not None and self.policies.cache

    @property
    def input_files(self) -> Sequence[str]:
        """The files that the task reads, as it was given them."""
        return () if self.policies is None else self.policies.input_files

    @property
    def output_files(self) -> Sequence[str]:
        """The files that the task writes, as it was given them."""
        return () if self.policies is None else self.policies.output_files

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the task was given beside its fields."""
        return _NOTHING if self.policies is None else self.policies.metadata

    def _names(self) -> tuple[Sequence[str], Sequence[str]]:
        """Return the names of the fields that are set one by one, and of the others."""
        raise NotImplementedError

    def _take(self, given: Mapping[str, Any]) -> None:
        """Set policies and what is no field."""
        raise NotImplementedError

    def validate(self) -> None:
        """Check the description again, after its fields were changed.

        Raises:
            InvalidTaskError: it makes no sense.
        """
        raise NotImplementedError

    def __getitem__(self, field: str) -> Any:
        """Read a field by name."""
        if isinstance(field, str) and not field.startswith("_") and hasattr(type(self), field):
            return getattr(self, field)
        return self.metadata[field]

    def __setitem__(self, field: str, value: Any) -> None:
        """Change the description before the task is submitted.

        Raises:
            InvalidTaskError: the task was submitted, the field is a result, or the value makes no sense; the field is
                as it was.
        """
        if self.state is not TaskState.NEW:
            raise InvalidTaskError(f"task {describe(self.uid)} was submitted; its {field} cannot be changed any more")
        plain, others = self._names()
        if field in others and field not in POLICY_FIELDS and field not in FILE_FIELDS:
            raise InvalidTaskError(f"task {describe(self.uid)}: its {field} is a result, which only its session writes")
        if field not in plain:
            held = {} if self.policies is None else {name: getattr(self.policies, name) for name in POLICY_FIELDS}
            self._take({**held, field: value})
            return
        before = getattr(self, field)
        setattr(self, field, value)
        try:
            self.validate()
        except InvalidTaskError:
            setattr(self, field, before)
            raise

    def __contains__(self, field: object) -> bool:
        """Whether the task has such a field."""
        return field in self.keys()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the fields."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return the number of fields."""
        return len(self.keys())

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields."""
        plain, others = self._names()
        return (*plain, *others, *self.metadata)

    def values(self) -> list[Any]:
        """Return what the fields hold."""
        return [self[field] for field in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Return the names of the fields, with what they hold."""
        return [(field, self[field]) for field in self.keys()]

    def get(self, field: str, default: Any = None) -> Any:
        """Read a field by name; `default` where the task has no such field or it is None."""
        try:
            value = self[field]
        except KeyError:
            return default
        return default if value is None else value
