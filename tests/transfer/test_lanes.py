"""How many lanes there are, and when bbr: what is decided on simulated paths."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ftx.net.tcp import Seen
from ftx.options import SendOptions
from ftx.transfer.lanes import FAR_LANES, MOST_LANES, Growth, Losses, how_many

LOOK_S = 0.1
MB = 1_000_000


class Path:
    """A path on which each lane gets ``each`` bytes a second, all together ``whole``, and writers give ``given``.

    Args:
        shortest_s: the round trip without a queue.
        queue_s: the longest that waits before a path that is full.
    """

    def __init__(
        self, each: float, whole: float, *, given: float = 1e12, shortest_s: float = 0.08, queue_s: float = 0.0
    ) -> None:
        self.each, self.whole, self.given = each, whole, given
        self.shortest_s, self.queue_s = shortest_s, queue_s
        self.acked: list[float] = []

    def look(self, lanes: int) -> list[Seen]:
        """The lanes a little later; lane 1 carries nothing where there are others."""
        self.acked += [0.0] * (lanes - len(self.acked))
        bulk = range(1, lanes) if lanes > 1 else range(1)
        could = len(bulk) * self.each
        rate = min(could, self.whole, self.given)
        for number in bulk:
            self.acked[number] += LOOK_S * rate / len(bulk)
        waits = rate < self.given
        round_trip_s = self.shortest_s + (self.queue_s if could >= self.whole else 0.0)
        return [
            Seen(round_trip_s, self.shortest_s, 1000, 0, int(acked), MB if waits and number in bulk else 0)
            for number, acked in enumerate(self.acked)
        ]


def grown(path: Path, lanes: int, most: int = MOST_LANES, seconds: float = 60.0, joining: int = 5) -> list[int]:
    """How many lanes there were, one after the other; each addition joins after so many looks."""
    growth = Growth(lanes, most)
    found, due = [lanes], [0] * lanes
    for at in range(round(seconds / LOOK_S)):
        joined = sum(look <= at for look in due)
        more = growth.more(1000.0 + at * LOOK_S, path.look(joined))
        due += [at + joining] * more
        if more:
            found.append(len(due))
    return found


def test_lanes_are_doubled_while_each_is_slow_by_itself() -> None:
    assert grown(Path(MB, 100 * MB), 4) == [4, 7, 8]
    assert grown(Path(MB, 100 * MB), 1) == [1, 3, 5, 8]
    assert grown(Path(MB, 100 * MB), 1, most=64) == [1, 3, 5, 9, 17, 33, 64]


def test_no_more_than_were_granted() -> None:
    assert grown(Path(MB, 100 * MB), 4, most=4) == [4]
    assert grown(Path(MB, 100 * MB), 1, most=2) == [1, 2]


def test_an_addition_that_brought_nothing_was_the_last() -> None:
    assert grown(Path(MB, 3 * MB), 4, most=64) == [4, 7]
    assert grown(Path(MB, 5 * MB), 4, most=64) == [4, 7, 13]


def test_a_path_that_is_full_gets_no_more() -> None:
    assert grown(Path(100 * MB, 25 * MB, queue_s=0.06), 4) == [4]


def test_a_slow_disk_or_processor_gets_no_more() -> None:
    assert grown(Path(MB, 100 * MB, given=2 * MB), 4) == [4]


def test_on_one_machine_one_lane_stays_one() -> None:
    assert grown(Path(1000 * MB, 1e12, shortest_s=0.000_05), 1) == [1]


def test_lanes_that_never_come_are_waited_for_and_no_more_are_asked_for() -> None:
    assert grown(Path(MB, 100 * MB), 4, joining=10**6) == [4, 7]


def test_no_decision_before_the_first_lanes_have_found_their_speed() -> None:
    assert grown(Path(MB, 100 * MB), 4, seconds=1.9) == [4]
    assert grown(Path(MB, 100 * MB), 4, seconds=2.3) == [4, 7]


@pytest.mark.parametrize(
    ("options", "round_trip_s", "lanes"),
    [
        ({}, 0.0, (1, MOST_LANES)),
        ({}, 0.004, (1, MOST_LANES)),
        ({}, 0.005, (FAR_LANES, MOST_LANES)),
        ({"lanes": 2}, 0.08, (2, 2)),
        ({"lanes": 64}, 0.0, (64, 64)),
        ({"bwlimit": 10 * MB}, 0.08, (FAR_LANES, FAR_LANES)),
        ({"bwlimit": 10 * MB, "lanes": 3}, 0.0, (3, 3)),
    ],
)
def test_how_many_at_first_and_at_most(options: dict[str, int], round_trip_s: float, lanes: tuple[int, int]) -> None:
    assert how_many(SendOptions(host="nas", **options), round_trip_s) == lanes


# --- loss ---


def found(
    lost: Callable[[int], int], *, looks: int = 100, segments: int = 100, round_trip_s: float = 0.082,
    shortest_s: float = 0.08, lanes: int = 3,
) -> int | None:  # fmt: skip
    """At which look loss was found; ``lost``: segments repeated at a look, by each lane."""
    losses, repeated = Losses(), [0] * lanes
    for at in range(looks):
        repeated = [count + lost(at) for count in repeated]
        seen = [Seen(round_trip_s, shortest_s, (at + 1) * segments, count, 0, 0) for count in repeated]
        if losses.found(seen):
            return at
    return None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.001, 0.005, 0.02])
def test_loss_is_found_within_seconds(share: float, seed: int) -> None:
    rng = random.Random(seed)
    at = found(lambda _: sum(rng.random() < share for _ in range(100)))
    assert at is not None
    assert at < 80


def test_one_burst_is_an_accident() -> None:
    assert found(lambda at: 300 if 10 <= at < 14 else 0) is None


def test_a_rare_loss_is_let_pass() -> None:
    assert found(lambda at: at % 50 == 0, looks=2000) is None


def test_what_a_full_queue_drops_is_no_loss_of_the_path() -> None:
    assert found(lambda _: 3, round_trip_s=0.12) is None


def test_near_by_nothing_is_changed() -> None:
    assert found(lambda _: 3, round_trip_s=0.001, shortest_s=0.001) is None


def test_lanes_that_join_later_are_looked_at_too() -> None:
    losses = Losses()
    for at in range(1, 4):
        assert not losses.found([Seen(0.08, 0.08, at * 100, at, 0, 0)])
    assert not losses.found([Seen(0.08, 0.08, 300, 3, 0, 0), Seen(0.08, 0.08, 10, 1, 0, 0)])
    assert losses.found([Seen(0.08, 0.08, 300, 3, 0, 0), Seen(0.08, 0.08, 10, 2, 0, 0)])
