"""Medians and spreads of a few samples on a machine that is never quite still."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


@dataclass(frozen=True)
class Spread:
    """What several measurements of one thing say.

    Attributes:
        median: the middle one; of an even number, the mean of the two in the middle.
        low, high: the slow tenth and the fast tenth; of fewer than ten, the least and the largest.
    """

    median: float
    low: float
    high: float

    @property
    def range(self) -> tuple[float, float]:
        """(low, high)."""
        return (self.low, self.high)


def spread(values: Sequence[float]) -> Spread:
    """Return median and spread of at least one value, in any order."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return Spread(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth])
