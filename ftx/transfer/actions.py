"""What plan and ledger tell the threads around them to do, what these find, and how an entry ended."""

from __future__ import annotations

from typing import NamedTuple

from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Entry
from ftx.protocol.ranges import RangeSet

#: Why an entry was skipped, where it is not there already.
KEPT = "a different file is there and is kept"


#: A file of so many bytes at most is small: it is wanted whole, and sent in one frame with its FINISH.
SMALL = 64 * 1024


class Say(NamedTuple):
    """Send this message."""

    message: m.Message


class Outcome(NamedTuple):
    """How an entry ended.

    Attributes:
        entry: under the path that it got.
        state: "done", "skipped" or "failed", the words of the JSON event; or "withdrawn".
        code: a wire code, 0 unless it failed.
        message: why, where there is a reason.
        root: its root digest, if it is done.
        durable: a power cut cannot take it back.
        sent: payload bytes that travelled for it in this session, those of chunks sent twice counted twice.
        reused: bytes that the receiver held already.
    """

    entry: Entry
    state: str
    code: int = 0
    message: str = ""
    root: bytes = b""
    durable: bool = False
    sent: int = 0
    reused: int = 0


# --- Jobs: what a sender's writer is to do next --------------------------------------------------------


class SendChunk(NamedTuple):
    """Read the chunk, report it with ``Plan.chunk_read``, send it as DATA."""

    entry: int
    index: int  # type: ignore[assignment]


class SendSmall(NamedTuple):
    """Read each of these small files whole, report all with ``Plan.small_read``, send each as a final DATA."""

    entries: tuple[int, ...]


class HashChunk(NamedTuple):
    """Read the chunk and report it with ``Plan.chunk_read``: the receiver holds it already."""

    entry: int
    index: int  # type: ignore[assignment]


class AnswerDigests(NamedTuple):
    """Read chunks ``[first, stop)``, send their digests."""

    entry: int
    digest: DigestName
    first: int
    stop: int


class CheckSource(NamedTuple):
    """Everything was read: look whether the source is still what was offered, then call ``Plan.checked``."""

    entry: int


Job = Say | SendSmall | SendChunk | HashChunk | AnswerDigests | CheckSource


# --- Actions: what a receiver's threads are to do ------------------------------------------------------


class Look(NamedTuple):
    """See what is on the disk for these entries of one folder and answer with ``Ledger.looked``."""

    entries: tuple[Entry, ...]


class Rehash(NamedTuple):
    """Read these held chunks from the disk, report each with ``Ledger.rehashed``. Not urgent."""

    entry: int
    ranges: tuple[tuple[int, int], ...]


class Compare(NamedTuple):
    """Read the held chunks from ``first`` on, compare with these digests, report with ``Ledger.compared``."""

    entry: int
    digest: DigestName
    first: int
    digests: bytes


class Commit(NamedTuple):
    """Publish these, report each with ``Ledger.committed``, ``Ledger.lost`` or ``Ledger.fail``; with others or alone.

    Void, and to be dropped, for one of which ``Ledger.committing`` says no: a failed sync came between.
    """

    entries: tuple[int, ...]


class Release(NamedTuple):
    """The entry ended otherwise: let go of its partial and keep it."""

    entry: int


Action = Say | Look | Rehash | Compare | Commit | Release


# --- Verdicts: what a look found -----------------------------------------------------------------------


class Leave(NamedTuple):
    """Nothing is to be done for the entry."""

    reason: m.SkipReason


class Reject(NamedTuple):
    """The entry cannot be taken."""

    code: int
    message: str


class Take(NamedTuple):
    """A partial is ready.

    Attributes:
        held: chunks that the journal lists for this very source.
        doubted: chunks that it lists for another version of the source: compared before they count.
        digests: of the chunks that this process has verified already, in an earlier session.
    """

    held: RangeSet
    doubted: RangeSet
    digests: ChunkDigests


class Fresh(NamedTuple):
    """A small file is to be taken, and nothing of it is there."""


FRESH = Fresh()
SAME = Leave(m.SkipReason.SAME)


class Make(NamedTuple):
    """A folder or link is to be made as it was offered, or given the metadata that was: nothing of it travels."""


Verdict = Leave | Reject | Take | Fresh | Make
