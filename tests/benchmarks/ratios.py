"""What is made of the times of several rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some values, and how far they lie apart."""

    median: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """
    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    return Spread(median(values), min(values), max(values), len(values))


def paired(times: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Times by round, each divided by the base's time of the same round. Above 1: the base was faster."""
    return [seconds / base[number] for number, seconds in sorted(times.items()) if number in base]
