"""What limits a transfer, for figures as they come from paths of each kind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ftx.transfer.verdict import Figures, Limit, Verdict, fewest, judge, more_help

MIB = 1024 * 1024


def step(lanes: int, rate: float, sender: float = 0.2, receiver: float = 0.2, disk: float = 0.0) -> Figures:
    """Figures of one step, ``rate`` in MiB a second."""
    return Figures(lanes, rate * MIB, sender, receiver, disk)


CASES: dict[str, tuple[Sequence[Figures], Sequence[Figures], float | None, Limit, float, int]] = {
    "a network that one lane fills": (
        [step(1, 24, 0.1, 0.1), step(3, 24.5, 0.1, 0.1)],
        [step(1, 24, 0.1, 0.1, 0.05), step(3, 24, 0.1, 0.1, 0.05)],
        500, Limit.NETWORK, 24, 1,
    ),
    "a long way, on which one lane is held up by its window": (
        [step(1, 5, 0.02, 0.02), step(3, 10, 0.04, 0.03), step(4, 15, 0.05, 0.05)],
        [step(1, 5), step(3, 10), step(4, 15)],
        500, Limit.NETWORK, 15, 4,
    ),
    "a network that was slower while the disk was measured": (
        [step(1, 100, 0.3, 0.3)], [step(1, 40, 0.3, 0.3, 0.05)], 500, Limit.NETWORK, 100, 1,
    ),
    "a slow disk at the receiver": (
        [step(1, 110, 0.3, 0.3), step(3, 112, 0.3, 0.3)],
        [step(1, 40, 0.1, 0.1, 0.8), step(3, 42, 0.1, 0.1, 0.5)],
        500, Limit.RECEIVER_DISK, 40, 1,
    ),
    "a slow disk whose last sync one of many lanes waits for": (
        [step(3, 112, 0.3, 0.3)], [step(3, 42, 0.2, 0.1, 0.2)], 500, Limit.RECEIVER_DISK, 42, 3,
    ),
    "a disk that is slower than processors which are busy, too": (
        [step(1, 900, 0.9, 0.8)], [step(1, 100, 0.8, 0.1, 0.85)], 5000, Limit.RECEIVER_DISK, 100, 1,
    ),
    "writing that costs the receiver's processor": (
        [step(1, 900, 0.5, 0.7)], [step(1, 600, 0.4, 0.8, 0.19)], 5000, Limit.RECEIVER_PROCESSOR, 600, 1,
    ),
    "a slow disk at the sender": (
        [step(1, 110, 0.3, 0.3)], [step(1, 100, 0.3, 0.3, 0.3)], 50, Limit.SENDER_DISK, 50, 1,
    ),
    "a slow disk at the sender, for which some lanes suffice": (
        [step(1, 20), step(3, 40), step(5, 80)], [step(1, 20), step(3, 40), step(5, 80)], 30, Limit.SENDER_DISK, 30, 3,
    ),
    "the slower of two slow disks": (
        [step(1, 110)], [step(1, 40, disk=0.8)], 20, Limit.SENDER_DISK, 20, 1,
    ),
    "a processor of the receiver": (
        [step(1, 400, 0.5, 0.95), step(3, 410, 0.3, 0.98)], [step(1, 390, 0.5, 0.9, 0.05)], 5000,
        Limit.RECEIVER_PROCESSOR, 400, 1,
    ),
    "a processor of the sender": (
        [step(1, 400, 0.97, 0.6)], [step(1, 390, 0.95, 0.5, 0.1)], 5000, Limit.SENDER_PROCESSOR, 400, 1,
    ),
    "two sides that wait for each other in turn": (
        [step(1, 190, 0.6, 0.66)], [step(1, 70, 0.47, 0.68, 0.27)], 900, Limit.RECEIVER_PROCESSOR, 70, 1,
    ),
    "both on one machine, of which the sender does more": (
        [step(1, 400, 0.97, 0.9)], [], None, Limit.SENDER_PROCESSOR, 400, 1,
    ),
    "one core for each lane, of which there are more": (
        [step(1, 300, 0.95, 0.7), step(3, 600, 0.9, 0.7), step(4, 1100, 0.4, 0.4)], [], None, Limit.NETWORK, 1100, 4,
    ),
    "no room at the receiver, nothing known of the sender's disk": (
        [step(1, 24, 0.1, 0.1)], [], None, Limit.NETWORK, 24, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_limits(case: str) -> None:
    path, disk, source, limit, rate, lanes = CASES[case]
    found = judge(path, disk, None if source is None else source * MIB)
    assert found == Verdict(limit, rate * MIB, lanes)


def test_the_fewest_lanes_that_are_as_good_as_the_best() -> None:
    assert fewest([step(1, 50), step(3, 95), step(5, 100), step(9, 99)]).lanes == 3
    assert fewest([step(1, 50)]).lanes == 1


def test_more_lanes_help_while_the_last_step_is_clearly_the_best() -> None:
    assert more_help([step(1, 50)])
    assert more_help([step(1, 50), step(3, 60)])
    assert not more_help([step(1, 50), step(3, 54)])
    assert not more_help([step(1, 50), step(3, 100), step(5, 60)])
