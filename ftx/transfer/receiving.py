"""What a receiver knows of one entry. Pure: ``ledger`` asks and tells, under its lock. Twin of ``sending``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Entry, Grid
from ftx.protocol.ranges import RangeSet, Repeats
from ftx.protocol.session import State


@dataclass(slots=True)
class Receiving:
    """What the ledger knows of one entry. Shells read ``entry`` and ``grid``; all else is the ledger's.

    Attributes:
        folder: that it is in.
        missing: chunks that were wanted and have not begun to arrive.
        unread: held chunks that this process has not read back yet.
        doubted: chunks of another version of the source that have not been compared yet.
        to_ask: chunks whose digests are still to be asked for.
        comparing: Compare actions under way.
        asked: open ASK_DIGESTS: first chunk -> (one past the last, whether it is for doubted chunks).
        held: chunks that were there before this session.
        digests: of the chunks that are there; None before the look.
        writing: chunks and zeros that are being written now.
        root: the sender's root digest; None before FINISH.
        repairs: how often each chunk was wanted again.
        committing: a Commit is under way.
        cancelled: the CANCEL that came meanwhile.
        disagreed: the root digests differed, and no chunk has been found since that explains it.
        final: its DATA stood for FINISH too.
        received: payload bytes.
    """

    entry: Entry
    grid: Grid
    folder: bytes
    state: State = State.OFFERED
    missing: RangeSet = field(default_factory=RangeSet)
    unread: RangeSet = field(default_factory=RangeSet)
    doubted: RangeSet = field(default_factory=RangeSet)
    to_ask: RangeSet = field(default_factory=RangeSet)
    comparing: int = 0
    asked: dict[int, tuple[int, bool]] = field(default_factory=dict)
    held: RangeSet = field(default_factory=RangeSet)
    digests: ChunkDigests | None = None
    writing: int = 0
    root: bytes | None = None
    repairs: Repeats = field(default_factory=lambda: Repeats(m.MAX_REPAIRS))
    committing: bool = False
    cancelled: m.Cancel | None = None
    disagreed: bool = False
    final: bool = False
    received: int = 0


class Small:
    """What the ledger knows of a file of ``SMALL`` bytes at most, while all goes as it mostly does.

    It is wanted whole, comes in one frame and is published. When anything else happens it becomes a ``Receiving``.

    Attributes:
        begun: its DATA is being read or was.
        final: that DATA stood for FINISH too.
        digest: of its chunk; None until it is written.
        root: the sender's and ours; None until both agree.
    """

    __slots__ = ("begun", "committing", "digest", "entry", "final", "folder", "root", "state")

    def __init__(self, entry: Entry, folder: bytes) -> None:
        self.entry = entry
        self.folder = folder
        self.state = State.OFFERED
        self.begun = self.final = self.committing = False
        self.digest: bytes | None = None
        self.root: bytes | None = None

    def grown(self, digest: DigestName) -> Receiving:
        """The same, ready for whatever may happen."""
        grid = Grid.of(self.entry.size)
        receiving = Receiving(self.entry, grid, self.folder, self.state)
        if self.state is State.OFFERED:
            return receiving
        receiving.digests = ChunkDigests(grid, digest)
        receiving.root = self.root
        receiving.committing = self.committing
        receiving.final = self.final
        if self.digest:
            receiving.digests.set(0, self.digest)
            receiving.received = grid.size
        elif self.begun:
            receiving.writing = 1
        elif grid.count:
            receiving.missing.add(0, 1)
        return receiving
