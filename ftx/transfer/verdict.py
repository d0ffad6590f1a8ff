"""What limits a transfer, told from what was measured. Pure: no clock, no disk, no network.

A part that is the limit is the one that never waits. The threads that carry the data say where their time went: one
that waits for the network is not the limit, whatever its machine is. So a side's processor limits where its threads
are on one, or in the queue for one, nearly all the time; the receiver's disk where writing makes the same path slower;
the sender's disk where it reads slower than the rest of the way is. If nobody is at work all the time, the network
limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

#: Threads that are so busy with something are held up by it. A chunk is in one hand at a time, so no share reaches 1.
BUSY = 0.75
#: Both sides together: so each waited for the other in turn, and next to never for what is between them.
IN_TURN = 1.1
#: Waiting for the disk for so long, while writing makes the path slower: the disk is why.
AT_DISK = 0.15
#: A rate that differs by less is the same: two looks at one path differ by as much.
SAME = 0.9
SLOWER = 0.85


class Limit(Enum):
    """What limits a transfer."""

    NETWORK = "network"
    SENDER_DISK = "sender_disk"
    RECEIVER_DISK = "receiver_disk"
    SENDER_PROCESSOR = "sender_processor"
    RECEIVER_PROCESSOR = "receiver_processor"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one step has measured. Shares are of the time of the threads that carry the data, from 0 to 1.

    Attributes:
        lanes: of the session.
        rate: bytes a second that were verified by the receiver; and written, if it wrote.
        sender_processor, receiver_processor: on a processor, or in the queue for one.
        receiver_disk: waiting for the disk.
    """

    lanes: int
    rate: float
    sender_processor: float
    receiver_processor: float
    receiver_disk: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What limits, and how fast a transfer is then.

    Attributes:
        rate: bytes a second.
        lanes: the fewest that come up to it.
    """

    limit: Limit
    rate: float
    lanes: int


def judge(path: Sequence[Figures], disk: Sequence[Figures], source: float | None) -> Verdict:
    """What limits a transfer.

    Args:
        path: without a disk; one at least.
        disk: the receiver writes what arrives; none where it cannot.
        source: bytes a second that the sender's disk reads; None where that was not measured.
    """
    best = fewest(path)
    verdict = Verdict(_of_path(best), best.rate, best.lanes)
    if disk:
        written = fewest(disk)
        limit = _of_disk(written)
        # Where neither the disk nor a processor explains it, the network was slower then: it varies.
        if written.rate < best.rate * SLOWER and limit is not Limit.NETWORK:
            verdict = Verdict(limit, written.rate, written.lanes)
    if source is not None and source < verdict.rate * SAME:
        # So many as bring what the disk can read; more only cost.
        enough = [figures for figures in disk or path if figures.rate >= source]
        return Verdict(Limit.SENDER_DISK, source, enough[0].lanes if enough else verdict.lanes)
    return verdict


def fewest(steps: Sequence[Figures]) -> Figures:
    """The step with the fewest lanes that is as good as the best."""
    most = max(figures.rate for figures in steps)
    return next(figures for figures in steps if figures.rate >= most * SAME)


def more_help(steps: Sequence[Figures]) -> bool:
    """Whether the last step, which had the most lanes, was better than every one before."""
    *before, last = steps
    return last.rate * SAME > max((figures.rate for figures in before), default=0.0)


def _of_path(figures: Figures) -> Limit:
    ours, theirs = figures.sender_processor, figures.receiver_processor
    if max(ours, theirs) < BUSY and ours + theirs < IN_TURN:
        return Limit.NETWORK
    return Limit.SENDER_PROCESSOR if ours >= theirs else Limit.RECEIVER_PROCESSOR


def _of_disk(figures: Figures) -> Limit:
    limit = _of_path(figures)
    busiest = max(figures.sender_processor, figures.receiver_processor)
    if figures.receiver_disk >= AT_DISK and (limit is Limit.NETWORK or figures.receiver_disk >= busiest):
        return Limit.RECEIVER_DISK
    return limit
