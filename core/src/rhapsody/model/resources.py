"""`Resources`: what one task needs of the machine."""

from __future__ import annotations

import math
import operator
import re
from numbers import Real
from typing import Any, Final

import attrs

from rhapsody.errors import InvalidTaskError, describe

_BYTES_OF: Final = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
_AMOUNT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def _whole(value: Any, field: str) -> int:
    """Read a number of things, of which there is at least one; numpy's integers too."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < 1:
        raise InvalidTaskError(f"Resources: {field} must be a whole number from 1, not {describe(value)}")
    return number


def _ranks(value: Any) -> int:
    return _whole(value, "ranks")


def _cores(value: Any) -> int:
    return _whole(value, "cores_per_rank")


def _nodes(value: Any) -> int | None:
    return None if value is None else _whole(value, "nodes")


def _gpus(value: Any) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
    if not math.isfinite(number) or number < 0:
        raise InvalidTaskError(f"Resources: gpus_per_rank must be a number from 0, not {describe(value)}")
    if number > 1 and number % 1:
        raise InvalidTaskError(
            f"Resources: gpus_per_rank must be a whole number, or a fraction below 1 for a share of one GPU, "
            f"not {describe(value)}"
        )
    return number if number % 1 else int(number)


def _bytes(value: Any) -> int | None:
    if not isinstance(value, str):
        return None if value is None else _whole(value, "memory")
    match = _AMOUNT.fullmatch(value)
    factor = _BYTES_OF.get(match[2].lower()) if match is not None else None
    if match is None or factor is None or (amount := int(float(match[1]) * factor)) < 1:
        raise InvalidTaskError(
            f"Resources: memory must be bytes, or text such as '4 GiB' or '500 MB' (from B and kB to TiB), "
            f"not {describe(value)}"
        )
    return amount


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidTaskError(f"Resources: exclusive must be True or False, not {describe(value)}")
    return value


@attrs.frozen(kw_only=True, cache_hash=True)
class Resources:
    """What one task needs of the machine; a backend refuses at submit what it cannot give.

    Attributes:
        ranks: processes that make up the task (MPI ranks).
        cores_per_rank: processor cores for each rank.
        gpus_per_rank: GPUs for each rank; a fraction below 1 is a share of one.
        memory: bytes for the whole task, or text with a suffix ("4 GiB", "500 MB"), which is turned into bytes; None
            leaves it to the backend.
        nodes: machines over which the ranks are spread evenly; None leaves it to the backend.
        exclusive: nothing else runs meanwhile on the machines of the task.

    Raises:
        InvalidTaskError: a value that makes no sense.
    """

    ranks: int = attrs.field(default=1, converter=_ranks)
    cores_per_rank: int = attrs.field(default=1, converter=_cores)
    gpus_per_rank: float = attrs.field(default=0, converter=_gpus)
    memory: int | None = attrs.field(default=None, converter=_bytes)
    nodes: int | None = attrs.field(default=None, converter=_nodes)
    exclusive: bool = attrs.field(default=False, converter=_flag)

    def __attrs_post_init__(self) -> None:
        """Refuse more nodes than there are ranks to put on them."""
        if self.nodes is not None and self.nodes > self.ranks:
            raise InvalidTaskError(
                f"Resources: nodes={self.nodes} needs as many ranks at least, not ranks={self.ranks}"
            )

    @property
    def cores(self) -> int:
        """Processor cores of all ranks."""
        return self.ranks * self.cores_per_rank

    @property
    def gpus(self) -> float:
        """GPUs of all ranks."""
        return self.ranks * self.gpus_per_rank


def in_words(cores: float, gpus: float, memory: float | None) -> str:
    """Return amounts as an error's sentence names them: "4 cores, 1 GPU and 2 GiB of memory"."""
    words = [f"{cores:g} core{'s' * (cores != 1)}"]
    if gpus:
        words.append(f"{gpus:g} GPU{'s' * (gpus != 1)}")
    if memory is not None:
        words.append(f"{_amount(memory)} of memory")
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _amount(size: float) -> str:
    for suffix in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {suffix}"
        size /= 1024
    return f"{size:.4g} TiB"
