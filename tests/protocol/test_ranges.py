"""RangeSet against a plain set of integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftx.protocol.ranges import RangeSet

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=200)
TOP = 24

numbers = st.integers(0, TOP)
spans = st.tuples(numbers, numbers)  # some of them empty or backwards
operations = st.lists(st.tuples(st.sampled_from(["add", "discard"]), spans), max_size=12)


def build(steps: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    """The same steps on both."""
    ranges, model = RangeSet(), set[int]()
    for name, (start, stop) in steps:
        if name == "add":
            ranges.add(start, stop)
            model |= set(range(start, stop))
        else:
            ranges.discard(start, stop)
            model -= set(range(start, stop))
        check(ranges, model)
    return ranges, model


def check(ranges: RangeSet, model: set[int]) -> None:
    """Same members; ranges sorted, not empty, and with a gap between each two."""
    pairs = list(ranges)
    assert [i for start, stop in pairs for i in range(start, stop)] == sorted(model)
    assert all(start < stop for start, stop in pairs)
    assert all(before[1] < after[0] for before, after in zip(pairs, pairs[1:], strict=False))
    assert len(ranges) == len(pairs)
    assert bool(ranges) == bool(model)
    assert ranges.count() == len(model)


@PURE
@given(operations)
def test_add_and_discard(steps: list[tuple[str, tuple[int, int]]]) -> None:
    build(steps)


@PURE
@given(operations, numbers)
def test_contains(steps: list[tuple[str, tuple[int, int]]], index: int) -> None:
    ranges, model = build(steps)
    assert (index in ranges) == (index in model)
    assert -1 not in ranges


@PURE
@given(operations, spans)
def test_covers(steps: list[tuple[str, tuple[int, int]]], span: tuple[int, int]) -> None:
    ranges, model = build(steps)
    start, stop = span
    if start < stop:
        assert ranges.covers(start, stop) == (set(range(start, stop)) <= model)


@PURE
@given(operations, spans)
def test_overlap_and_each(steps: list[tuple[str, tuple[int, int]]], span: tuple[int, int]) -> None:
    ranges, model = build(steps)
    inside = sorted(model & set(range(*span)))
    overlap = ranges.overlap(*span)
    check(RangeSet(overlap), set(inside))
    assert all(start < stop for start, stop in overlap)
    assert list(ranges.each(*span)) == inside


@PURE
@given(operations, st.integers(1, TOP))
def test_first_and_pop_first(steps: list[tuple[str, tuple[int, int]]], most: int) -> None:
    ranges, model = build(steps)
    taken = []
    while ranges:
        start, stop = ranges.first()
        assert start == min(model)
        assert (popped := ranges.pop_first(most)) == (start, min(stop, start + most))
        taken.append(popped)
        model -= set(range(*popped))
        check(ranges, model)
    assert taken == sorted(taken)


@PURE
@given(operations, operations)
def test_update_and_difference_update(
    one: list[tuple[str, tuple[int, int]]], two: list[tuple[str, tuple[int, int]]]
) -> None:
    ranges, model = build(one)
    other, other_model = build(two)
    joined, left = ranges.copy(), ranges.copy()
    joined.update(other)
    left.difference_update(other)
    check(joined, model | other_model)
    check(left, model - other_model)
    check(ranges, model)  # a copy is its own
    assert (ranges == other) == (model == other_model)


@PURE
@given(operations, numbers)
def test_complement(steps: list[tuple[str, tuple[int, int]]], size: int) -> None:
    ranges, model = build(steps)
    check(ranges.complement(size), set(range(size)) - model)


def test_iterating_while_it_changes_is_safe() -> None:
    ranges = RangeSet([(0, 2), (4, 6)])
    ranges.difference_update(ranges)
    assert not ranges
    for span in (several := RangeSet([(0, 1), (2, 3)])):
        several.discard(*span)
    assert not several


@pytest.mark.parametrize("wrong", [[(0, 1)], "(0, 1)", None])
def test_equals_only_its_own_kind(wrong: object) -> None:
    assert RangeSet([(0, 1)]) != wrong


def test_is_not_hashable_and_says_what_it_holds() -> None:
    with pytest.raises(TypeError):
        hash(RangeSet())
    assert repr(RangeSet([(0, 1), (1, 3), (7, 8)])) == "RangeSet([(0, 3), (7, 8)])"


def test_g8_filling_in_order_stays_one_range() -> None:
    ranges = RangeSet()
    for index in range(1000):
        ranges.add(index, index + 1)
        assert len(ranges) == 1
