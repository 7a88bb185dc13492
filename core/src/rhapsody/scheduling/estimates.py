"""What is known of how long the calls of a function take."""

from __future__ import annotations

from typing import Final

import attrs

MEMORY: Final = 300  # calls: the weight of the past in what is known of a function
_SLOW: Final = 50  # batches: how slowly what the engine charges is believed to have grown


@attrs.define
class Known:
    """What is known of one function: how many seconds its calls take, how much they vary, and how many there were."""

    mean: float
    variance: float = 0.0
    calls: int = 1


def least(old: float | None, new: float) -> float:
    """Believe a smaller charge at once, a larger one slowly: a delay is the machine's, the least is the engine's."""
    return new if old is None or new < old else slowly(old, new)


def slowly(old: float, new: float) -> float:
    """Move an estimate of what the engine charges towards a new measurement."""
    return old + (new - old) / _SLOW
