"""Sets of half-open ranges of chunk indexes: what is wanted, held, asked for.

What was lost is a range added back, and what was sent a range taken out, so one small type carries
resume, repair and delta.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """A set of integers, kept as sorted, disjoint, non-touching half-open ranges ``(start, stop)``.

    Each operation costs a binary search and the ranges it touches, so a set that is filled or emptied in
    order stays one range and costs O(1). Memory is in the number of ranges, never of integers.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Put in every integer of ``[start, stop)``; an empty range changes nothing."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)  # the first range that ends at or after our start
        last = bisect_right(self._starts, stop)  # one past the last that begins at or before our stop
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def discard(self, start: int, stop: int) -> None:
        """Take out every integer of ``[start, stop)`` that is there."""
        if start >= stop:
            return
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return
        left, right = self._starts[first], self._stops[last - 1]
        kept = [(left, start)] if left < start else []
        if stop < right:
            kept.append((stop, right))
        self._starts[first:last] = [a for a, _ in kept]
        self._stops[first:last] = [b for _, b in kept]

    def update(self, other: Iterable[tuple[int, int]]) -> None:
        """Put in every range of ``other``."""
        for start, stop in other:
            self.add(start, stop)

    def difference_update(self, other: Iterable[tuple[int, int]]) -> None:
        """Take out every range of ``other``."""
        for start, stop in other:
            self.discard(start, stop)

    def first(self) -> tuple[int, int]:
        """The first range. The set is not empty."""
        return self._starts[0], self._stops[0]

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of ``[start, stop)``, which is not empty, is in the set."""
        at = bisect_right(self._starts, start)
        return at > 0 and stop <= self._stops[at - 1]

    def pop_first(self, most: int) -> tuple[int, int]:
        """Take out and return up to ``most`` integers from the front, as one range. The set is not empty."""
        start = self._starts[0]
        stop = min(self._stops[0], start + most)
        if stop == self._stops[0]:
            del self._starts[0], self._stops[0]
        else:
            self._starts[0] = stop
        return start, stop

    def overlap(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of the set inside ``[start, stop)``."""
        if start >= stop:
            return []
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(first, last)]

    def each(self, start: int, stop: int) -> Iterator[int]:
        """Every integer of the set inside ``[start, stop)``."""
        for first, last in self.overlap(start, stop):
            yield from range(first, last)

    def complement(self, size: int) -> RangeSet:
        """What ``[0, size)`` has and the set does not."""
        result = RangeSet([(0, size)])
        result.difference_update(self)
        return result

    def copy(self) -> RangeSet:
        result = RangeSet()
        result._starts = self._starts[:]
        result._stops = self._stops[:]
        return result

    def count(self) -> int:
        """How many integers are in the set."""
        return sum(self._stops) - sum(self._starts)

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._starts, index)
        return at > 0 and index < self._stops[at - 1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __len__(self) -> int:
        """The number of ranges (not of integers)."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"


class Repeats:
    """How often each integer was counted, up to ``most`` times: one set of ranges for each time (G8)."""

    __slots__ = ("_most", "_times")

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: list[RangeSet] = []  # the first has what was counted once or more, the second twice or more, …

    def add(self, start: int, stop: int) -> int | None:
        """Count ``[start, stop)`` once more; the first integer that was counted ``most`` times before, if any."""
        more = RangeSet([(start, stop)])
        for times in self._times:
            before = RangeSet(found for a, b in more for found in times.overlap(a, b))
            times.update(more)
            more = before
        if not more:
            return None
        if len(self._times) == self._most:
            return more.first()[0]
        self._times.append(more)
        return None
