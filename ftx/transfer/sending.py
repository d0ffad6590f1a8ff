"""What a sender knows of one entry. Pure: ``plan`` asks and tells, under its lock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Entry, Grid
from ftx.protocol.ranges import RangeSet, Repeats
from ftx.protocol.session import State
from ftx.transfer.actions import AnswerDigests


class Need(Enum):
    """What an entry needs next, the most urgent first (G3). The last look costs nothing, and lets go of a source."""

    CHECK = "check"
    SEND = "send"
    ANSWER = "answer"
    HASH = "hash"


@dataclass(slots=True)
class Sending:
    """What the plan knows of one entry."""

    entry: Entry
    grid: Grid
    digests: ChunkDigests
    holes: RangeSet
    state: State = State.OFFERED
    wanted: RangeSet = field(default_factory=RangeSet)
    unread: RangeSet = field(default_factory=RangeSet)
    asks: deque[AnswerDigests] = field(default_factory=deque)
    repairs: Repeats = field(default_factory=lambda: Repeats(m.MAX_REPAIRS))
    sent_once: RangeSet = field(default_factory=RangeSet)
    working: int = 0
    checking: bool = False
    withdrawn: bool = False
    reread: bool = False
    filed: Need | None = None
    sent: int = 0
    held: int = 0
    zeros: int = 0
    missing: int | None = None

    def need(self, *, paused: bool) -> Need | None:
        """The most urgent thing to do for this entry; None when it waits for the receiver or for a job."""
        if self.wanted and not paused:
            return Need.SEND
        if self.asks:
            # One lane at a time, so that the answers to one ask keep their order.
            return None if self.working else Need.ANSWER
        if self.state is not State.WANTED or self.wanted:
            return None
        if self.unread:
            return Need.HASH
        ready = not self.working and not self.checking and self.digests.complete
        return Need.CHECK if ready else None


class Small:
    """What the plan knows of a small file while all goes as it mostly does: twin of ``receiving.Small``.

    Attributes:
        digest: of its chunk, once it was read; its FINISH has been said then.
    """

    __slots__ = ("digest", "entry", "state")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.state = State.OFFERED
        self.digest: bytes | None = None

    def grown(self, digest: DigestName) -> Sending:
        """The same, ready for whatever may happen."""
        grid = Grid.of(self.entry.size)
        sending = Sending(self.entry, grid, ChunkDigests(grid, digest), RangeSet(), self.state)
        sending.unread.add(0, grid.count)
        if self.digest:
            sending.digests.set(0, self.digest)
            sending.unread = RangeSet()
            sending.sent_once.add(0, 1)
            sending.sent = grid.size
        elif self.state is State.WANTED:
            sending.wanted.add(0, grid.count)
        return sending
