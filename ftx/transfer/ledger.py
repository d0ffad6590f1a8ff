"""What a receiver knows of each entry. Twin of ``plan``.

Pure: messages and results go in, actions come out; one lock, no I/O, no thread, no clock. The shells
(reading, looking, committing threads) carry the actions out and report back.

Rules kept here:

* G1, G4: an entry is given to commit only when every chunk of it was verified on arrival or re-hashed, and
  the root digest over them is the sender's.
* G6, G12: ids rise and are never reused; a late frame for an ended entry is dropped, one for an entry that
  was never offered or a chunk that was never asked for is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ftx.errors import FtxError, IntegrityError, NameRefused, ProtocolError, TooLarge, Unsupported
from ftx.protocol import messages as m
from ftx.protocol.manifest import MAX_FILE_SIZE, ChunkDigests, DigestName, Entry, Grid, Kind, root_of_one
from ftx.protocol.messages import Type
from ftx.protocol.ranges import RangeSet
from ftx.protocol.session import State, next_state
from ftx.transfer.actions import (
    FRESH,
    KEPT,
    SAME,
    SMALL,
    Action,
    Commit,
    Compare,
    Fresh,
    Leave,
    Look,
    Make,
    Outcome,
    Rehash,
    Reject,
    Release,
    Say,
    Take,
    Verdict,
)
from ftx.transfer.receiving import Receiving, Small

#: Chunks that one ASK_DIGESTS asks for when they must be hashed for it, and how many such asks are open.
COMPARE_STEP = 64
COMPARES_OPEN = 4


def _problem(offered: m.Offered, max_size: int) -> FtxError | None:
    """Why an offer cannot be taken, whatever is on the disk."""
    if offered.size > max_size and offered.kind is Kind.FILE:
        return TooLarge(f"{offered.size} bytes, where {max_size} are the most that the receiver takes from this peer")
    if not offered.name or b"/" in offered.name:
        return NameRefused("an entry's name that is not one name")
    if offered.kind is Kind.SYMLINK and (not offered.target or b"\0" in offered.target):
        return NameRefused("a link to what no path can be")
    for tlv in offered.tlvs:
        if tlv.type & m.CRITICAL_TLV:
            return Unsupported(f"it needs the unknown capability {tlv.type:#06x}")
    return None


class Ledger:
    """The receiver's half of one session.

    Args:
        digest: of chunks and roots in this session.
        window: entries that the sender may have outstanding.
        folder: where the session's paths begin, from the destination on; empty for itself.
        tell_all: ``ended`` has every entry, and not only those that failed.
        max_size: bytes of the largest file that is taken.
        compressed: this side has said that it takes compressed payloads.
    """

    def __init__(
        self, digest: DigestName, window: int, folder: bytes = b"", *, tell_all: bool = True,
        max_size: int = MAX_FILE_SIZE, compressed: bool = False,
    ) -> None:  # fmt: skip
        self._lock = threading.Lock()
        self._digest = digest
        self._folder_path = folder
        self._tell_all = tell_all
        self._max_size = max_size
        self._compressed = compressed
        self._window = max(window, m.INITIAL_WINDOW)
        self._live: dict[int, Receiving | Small] = {}
        self._inside: dict[bytes, int] = {}  # folder -> live entries right below it
        self._parked: dict[bytes, list[Entry]] = {}  # folder -> its own entry, which waits for what is inside
        self._highest = 0
        self._ended: list[Outcome] = []
        self.done = self.skipped = self.failed = 0
        self.files = self.files_skipped = 0  # what ended well, without folders, and what of it needed nothing
        self.bytes_received = self.bytes_held = self.bytes_offered = self.bytes_zeros = self.bytes_saved = 0

    # --- what the sender says ---

    def receive(self, message: m.Message, unsaid: int = 0) -> list[Action]:
        """Take in a message of the sender, except DATA and ZEROS, which come with bytes to write.

        Args:
            unsaid: answers that end entries and wait to be sent. The sender cannot have seen them, so these entries
                are still outstanding: who reads no answers cannot offer on and on (G8).

        Raises:
            ProtocolError: it breaks a rule.
        """
        with self._lock:
            match message:
                case m.Folder():
                    return self._folder(message, unsaid)
                case m.Finish():
                    return self._finish(message)
                case m.Digests():
                    return self._digests(message)
                case m.Cancel():
                    return self._cancel(message)
                case m.Bye():
                    return self._bye(message)
                case m.FolderEnd() | m.Ping():
                    return []
                case _:
                    raise ProtocolError(f"{type(message).__name__} is not for a receiver")

    def _folder(self, message: m.Folder, unsaid: int) -> list[Action]:
        if message.first <= self._highest:
            raise ProtocolError(f"entry id {message.first} was used before")
        if message.first + max(1, len(message.entries)) > 2**63:
            raise ProtocolError(f"entry ids from {message.first} on do not fit into their field")
        if len(self._live) + unsaid + len(message.entries) > self._window:
            raise ProtocolError(f"more than {self._window} entries outstanding")
        actions: list[Action] = []
        looks: list[Entry] = []
        folder = b"/".join(filter(None, (self._folder_path, message.path)))
        self._inside[folder] = self._inside.get(folder, 0) + len(message.entries)
        for entry_id, offered in enumerate(message.entries, message.first):
            self._highest = entry_id
            entry = offered.entry(entry_id, folder)
            small = entry.size <= SMALL and entry.kind is Kind.FILE
            problem = _problem(offered, self._max_size)
            if small and problem is None:
                self._live[entry_id] = Small(entry, folder)
                self.bytes_offered += offered.size
                looks.append(entry)
                continue
            grid = Grid.of(0 if problem or offered.kind is not Kind.FILE else offered.size)
            receiving = self._live[entry_id] = Receiving(entry, grid, folder)
            if problem:
                actions += self._refuse(receiving, problem.wire, str(problem))
            elif entry.kind is Kind.FOLDER and self._inside.get(entry.path):
                # Each name that appears in it changes its time, so its own entry comes behind what it has.
                self._parked.setdefault(entry.path, []).append(entry)
            else:
                self.bytes_offered += receiving.grid.size
                looks.append(entry)
        if not message.entries:
            self._outside(folder, 0)
        if looks:
            actions.append(Look(tuple(looks)))
        return actions

    def _outside(self, folder: bytes, count: int) -> list[Action]:
        """So many entries of ``folder`` have ended. Its own entry may be looked at when none is left."""
        left = self._inside[folder] - count
        if left:
            self._inside[folder] = left
            return []
        del self._inside[folder]
        parked = self._parked.pop(folder, None)
        return [Look(tuple(parked))] if parked else []

    def _get(self, entry_id: int) -> Receiving | None:
        """A live entry, with all that there is to know of it; None if it has ended."""
        live = self._live.get(entry_id)
        if isinstance(live, Small):
            live = self._live[entry_id] = live.grown(self._digest)
        return live

    def _step(self, entry_id: int, type_: Type) -> Receiving | None:
        """Move an entry's state on; None if it has ended: a late frame, dropped (G12)."""
        if not 0 < entry_id <= self._highest:
            raise ProtocolError(f"{type_.name} for entry {entry_id}, which was never offered")
        receiving = self._get(entry_id)
        if receiving is not None:
            receiving.state = next_state(entry_id, receiving.state, type_)
        return receiving

    def _finish(self, message: m.Finish) -> list[Action]:
        live = self._live.get(message.entry)
        if isinstance(live, Small) and live.state is State.WANTED and not live.entry.size:
            live.digest = b""
            if self._root_of(live) == message.root:
                return [Commit((self._agreed(live),))]
            live.digest = None
        receiving = self._step(message.entry, Type.FINISH)
        if receiving is None:
            return []
        if len(message.root) != self._digest.size:
            raise ProtocolError(f"a root digest of {len(message.root)} bytes")
        if receiving.root not in (None, message.root):
            raise ProtocolError(f"another root digest for entry {message.entry}")
        receiving.root = message.root
        return self._complete(receiving)

    def _root_of(self, small: Small) -> bytes:
        assert small.digest is not None
        return root_of_one(self._digest, small.digest, small.entry.size)

    def _agreed(self, small: Small) -> int:
        """All of a small file is there, and the sender has said FINISH: it is to be committed."""
        small.state = State.FINISHED
        small.root = self._root_of(small)
        small.committing = True
        return small.entry.id

    def _cancel(self, message: m.Cancel) -> list[Action]:
        receiving = self._step(message.entry, Type.CANCEL)
        if receiving is None:
            return []  # the answer that ends it is on its way already
        # The answer comes from the commit; or behind the look, so that looks are no more than the window has (G8).
        if receiving.committing or receiving.digests is None:
            receiving.cancelled = message
            return []
        return self._refuse(receiving, message.code, message.message)

    def _bye(self, message: m.Bye) -> list[Action]:
        if self._live:
            raise ProtocolError(f"BYE while {len(self._live)} entries are open")
        if (message.done, message.skipped, message.failed) != (self.done, self.skipped, self.failed):
            raise ProtocolError("the two sides count differently at the end")
        return [Say(message)]

    # --- chunks ---

    def begin(self, chunks: Sequence[m.Data]) -> list[Receiving | Small | None]:
        """Chunks have come; where each belongs, None if it is late and to be dropped.

        They are the caller's until it reports ``written`` or ``damaged``.

        Raises:
            ProtocolError: one was never offered or asked for, or has the wrong length.
        """
        places: list[Receiving | Small | None] = []
        with self._lock:
            for data in chunks:
                if data.compressed:
                    data = self._whole(data)
                live = self._live.get(data.entry)
                fresh = isinstance(live, Small) and not live.begun and live.state is State.WANTED
                if isinstance(live, Small) and fresh and data.index == 0 and data.length == live.entry.size > 0:
                    live.begun = True
                    live.final = data.final
                    places.append(live)
                else:
                    places.append(self._begin(data))
        return places

    def _whole(self, data: m.Data) -> m.Data:
        """A compressed DATA as it would be without: with the length of its chunk."""
        if not self._compressed:
            raise ProtocolError("a compressed DATA, which this side has not said it takes")
        live = self._live.get(data.entry)
        if live is None:
            return data  # it is late, as will turn out
        length = (Grid.of(live.entry.size) if isinstance(live, Small) else live.grid).length(data.index)
        if data.length >= length > 0:  # 0: it has no such chunk, as will turn out
            raise ProtocolError(f"chunk {data.index} of entry {data.entry} is compressed and no smaller")
        self.bytes_saved += length - data.length
        return data._replace(length=length)

    def _begin(self, data: m.Data) -> Receiving | None:
        receiving = self._step(data.entry, Type.DATA)
        if receiving is None:
            return None
        if data.index not in receiving.missing:
            raise ProtocolError(f"chunk {data.index} of entry {data.entry} was not asked for")
        if data.length != receiving.grid.length(data.index):
            raise ProtocolError(f"chunk {data.index} of entry {data.entry} has {data.length} bytes")
        if data.final:
            if receiving.grid.count > 1:
                raise ProtocolError(f"a final DATA for entry {data.entry}, which has more than one chunk")
            receiving.final = True
        receiving.missing.discard(data.index, data.index + 1)
        receiving.writing += 1
        return receiving

    def written(self, chunks: Sequence[tuple[Receiving | Small, int, bytes]]) -> list[Action]:
        """Chunks were verified and written: what ``begin`` said of each, its index, its digest."""
        actions: list[Action] = []
        ready: list[int] = []
        with self._lock:
            for where, index, digest in chunks:
                live = self._live.get(where.entry.id)
                if isinstance(live, Small):
                    live.digest = digest
                    self.bytes_received += live.entry.size
                    if live.final:
                        ready.append(self._agreed(live))
                else:
                    actions += self._written(live if isinstance(where, Small) else where, index, digest)
        if ready:
            actions.append(Commit(tuple(ready)))
        return actions

    def _written(self, receiving: Receiving | None, index: int, digest: bytes) -> list[Action]:
        if receiving is None:
            return []  # it has ended meanwhile
        receiving.writing -= 1
        length = receiving.grid.length(index)
        receiving.received += length
        self.bytes_received += length
        assert receiving.digests is not None
        receiving.digests.set(index, digest)
        receiving.held.discard(index, index + 1)
        if receiving.final and receiving.root is None:
            receiving.state = next_state(receiving.entry.id, receiving.state, Type.FINISH)
            receiving.root = receiving.digests.root()
        return self._complete(receiving)

    def damaged(self, where: Receiving | Small, index: int) -> list[Action]:
        """The chunk's payload did not have its digest: it is asked for again (G4)."""
        with self._lock:
            receiving = self._get(where.entry.id) if isinstance(where, Small) else where
            if receiving is None:
                return []
            receiving.writing -= 1
            self.bytes_received += receiving.grid.length(index)
            return self._repair(receiving, [(index, index + 1)])

    def zeros(self, message: m.Zeros) -> tuple[Receiving, list[tuple[int, int]]] | None:
        """Where zeros belong; None if the entry has ended. The caller reports ``zeroed``."""
        with self._lock:
            receiving = self._step(message.entry, Type.ZEROS)
            if receiving is None:
                return None
            ranges = [(item.first, item.first + item.count) for item in message.ranges]
            if not ranges:
                raise ProtocolError(f"ZEROS for no chunk of entry {message.entry}")
            for start, stop in ranges:
                if start >= stop or not receiving.missing.covers(start, stop):
                    raise ProtocolError(f"zeros for chunks {start} to {stop}, which were not asked for")
                receiving.missing.discard(start, stop)
            receiving.writing += 1
            return receiving, ranges

    def zeroed(self, receiving: Receiving, ranges: list[tuple[int, int]]) -> list[Action]:
        """The zeros are in place."""
        with self._lock:
            receiving.writing -= 1
            assert receiving.digests is not None
            for start, stop in ranges:
                receiving.digests.set_zeros(start, stop)
                self.bytes_zeros += receiving.grid.bytes_in(RangeSet([(start, stop)]))
                receiving.held.discard(start, stop)
            return self._complete(receiving)

    # --- what the shells found ---

    def looked(self, found: Sequence[tuple[int, Verdict]]) -> list[Action]:
        """Answer a batch of offers."""
        with self._lock:
            actions: list[Action] = []
            fresh: list[int] = []
            same: list[Small] = []
            for entry_id, verdict in found:
                live = self._live.get(entry_id)
                if verdict is FRESH and isinstance(live, Small):
                    live.state = State.WANTED
                    fresh.append(entry_id)
                elif verdict is SAME and isinstance(live, Small):
                    same.append(live)
                else:
                    actions += self._looked(entry_id, verdict)
            if fresh:
                actions.append(Say(m.WantAll(tuple(fresh))))
            return actions + self._skip(same) if same else actions

    def _skip(self, same: Sequence[Small]) -> list[Action]:
        """These small files are there already: all that ``_looked`` says of each, in one go."""
        self.skipped += len(same)
        folders: dict[bytes, int] = {}
        for live in same:
            self.bytes_held += live.entry.size
            folders[live.folder] = folders.get(live.folder, 0) + 1
            self._count_ended(live, "skipped")
        items = [m.SkipItem(live.entry.id, m.SkipReason.SAME) for live in same]
        said = [Say(m.Skip(tuple(items[at : at + m.MAX_ANSWERS]))) for at in range(0, len(items), m.MAX_ANSWERS)]
        return [*said, *[action for folder, count in folders.items() for action in self._outside(folder, count)]]

    def _looked(self, entry_id: int, verdict: Verdict) -> list[Action]:
        receiving = self._get(entry_id)
        if receiving is None:
            return [Release(entry_id)]
        if receiving.cancelled is not None:
            return self._refuse(receiving, receiving.cancelled.code, receiving.cancelled.message)
        match verdict:
            case Leave():
                receiving.state = next_state(entry_id, receiving.state, Type.SKIP)
                self.skipped += 1
                same = verdict.reason is m.SkipReason.SAME
                if same:
                    receiving.held.add(0, receiving.grid.count)
                    self.bytes_held += receiving.grid.size
                said = Say(m.Skip((m.SkipItem(entry_id, verdict.reason),)))
                return [said, *self._end(receiving, "skipped", message="" if same else KEPT)]
            case Reject():
                return self._refuse(receiving, verdict.code, verdict.message)
            case Fresh():
                nothing = Take(RangeSet(), RangeSet(), ChunkDigests(receiving.grid, self._digest))
                return self._take(receiving, nothing)
            case Take():
                return self._take(receiving, verdict)
            case Make():
                receiving.digests = ChunkDigests(receiving.grid, self._digest)
                receiving.root = receiving.digests.root()
                receiving.committing = True
                return [Commit((entry_id,))]

    def _take(self, receiving: Receiving, found: Take) -> list[Action]:
        receiving.state = next_state(receiving.entry.id, receiving.state, Type.WANT)
        receiving.digests = found.digests
        receiving.doubted = found.doubted.copy()
        receiving.to_ask = found.doubted.copy()
        receiving.held = found.held.copy()
        receiving.unread = found.held.copy()
        receiving.unread.difference_update(found.digests.known)
        held = receiving.grid.bytes_in(found.held)
        self.bytes_held += held
        missing = found.held.copy()
        missing.update(found.doubted)
        # G3: the answer does not wait for anything that is held to be read.
        actions = self._ask_for(receiving, missing.complement(receiving.grid.count), held)
        if receiving.unread:
            actions.append(Rehash(receiving.entry.id, tuple(receiving.unread)))
        return actions + self._ask_digests(receiving)

    def rehashed(self, entry_id: int, index: int, digest: bytes | None) -> list[Action]:
        """A held chunk was read from the disk; None if it could not be read, so it is not held after all."""
        with self._lock:
            receiving = self._get(entry_id)
            if receiving is None or index not in receiving.unread:
                return []
            receiving.unread.discard(index, index + 1)
            if digest is None:
                return self._repair(receiving, [(index, index + 1)])
            assert receiving.digests is not None
            receiving.digests.set(index, digest)
            return self._complete(receiving)

    def compared(self, entry_id: int, found: Sequence[tuple[int, bytes | None]]) -> list[Action]:
        """Doubted chunks were compared: (index, its session digest where it is the sender's chunk, else None)."""
        with self._lock:
            receiving = self._get(entry_id)
            if receiving is None:
                return []
            receiving.comparing -= 1
            differing = RangeSet()
            assert receiving.digests is not None
            for index, digest in found:
                receiving.doubted.discard(index, index + 1)
                if digest is None:
                    differing.add(index, index + 1)
                else:
                    receiving.digests.set(index, digest)
                    receiving.held.add(index, index + 1)
                    self.bytes_held += receiving.grid.length(index)
            actions = self._ask_for(receiving, differing, 0) if differing else []
            return actions + self._ask_digests(receiving) + self._complete(receiving)

    def lost(self, entry_id: int, ranges: RangeSet) -> list[Action]:
        """What was written did not reach the disk (a failed sync): it is wanted again."""
        with self._lock:
            receiving = self._get(entry_id)
            if receiving is None:
                return []
            receiving.committing = False
            if receiving.cancelled:
                return self._refuse(receiving, receiving.cancelled.code, receiving.cancelled.message)
            return self._repair(receiving, ranges)

    def committing(self, entry_ids: Sequence[int]) -> list[int]:
        """Those for which a Commit still holds: what others were to publish was lost meanwhile."""
        with self._lock:
            return [entry_id for entry_id in entry_ids if (live := self._live.get(entry_id)) and live.committing]

    def committed(self, published: Sequence[tuple[int, bytes]], *, durable: bool) -> list[Action]:
        """These are published, under these paths; their receipts may go (G5)."""
        receipts = []
        after: list[Action] = []
        ended: dict[bytes, int] = {}
        flags = int(m.ReceiptFlags.DURABLE) if durable else 0
        with self._lock:
            for entry_id, path in published:
                live = self._live[entry_id]
                assert live.root is not None
                self.done += 1
                if path != live.entry.path:
                    live.entry = live.entry._replace(path=path)
                receipts.append(m.ReceiptItem(entry_id, flags, live.root))
                ended[live.folder] = ended.get(live.folder, 0) + 1
                self._count_ended(live, "done", root=live.root, durable=durable)
            for folder, count in ended.items():
                after += self._outside(folder, count)
        said = [
            Say(m.Receipt(tuple(receipts[at : at + m.MAX_ANSWERS]))) for at in range(0, len(receipts), m.MAX_ANSWERS)
        ]
        return [*said, *after]

    def fail(self, entry_id: int, code: int, message: str) -> list[Action]:
        """The entry cannot be taken any further; its partial is kept."""
        with self._lock:
            receiving = self._get(entry_id)
            return self._refuse(receiving, code, message) if receiving else []

    def get(self, entry_id: int) -> Receiving | None:
        """A live entry; None when it has ended."""
        with self._lock:
            return self._get(entry_id)

    def give_up(self) -> None:
        """The session is over: what has not ended was offered for another one."""
        with self._lock:
            for live in self._live.values():
                if live.entry.kind is Kind.FILE:
                    self.bytes_offered -= live.entry.size

    def coming(self) -> int:
        """Entries that have not ended and wait for nothing but their turn."""
        with self._lock:
            return len(self._live) - sum(map(len, self._parked.values()))

    def ended(self) -> list[Outcome]:
        """How entries ended since the last call; those that are offered anew have not."""
        if not self._ended:  # as it is for nearly every frame
            return []
        with self._lock:
            ended, self._ended = self._ended, []
            return ended

    # --- the one mechanism: what is missing, in doubt, agreed ---

    def _complete(self, receiving: Receiving) -> list[Action]:
        """Commit, if all is there and agreed; compare, if all is there and not agreed (G1, G4)."""
        waiting = receiving.missing or receiving.writing or receiving.unread or receiving.doubted
        if waiting or receiving.asked or receiving.root is None or receiving.committing:
            return []
        if receiving.entry.id not in self._live:
            return []
        digests = receiving.digests
        if digests is None or not digests.complete:
            return []
        if digests.root() == receiving.root:
            receiving.committing = True
            return [Commit((receiving.entry.id,))]
        # What was held before this session is the suspect; if nothing was, everything is. Once all of that
        # agreed chunk by chunk and the root still differs, the sender contradicts itself.
        if receiving.disagreed or not receiving.grid.count:
            return self._refuse(receiving, IntegrityError.wire, "chunks agree and root digests differ")
        receiving.disagreed = True
        receiving.to_ask = receiving.held.copy() or RangeSet([(0, receiving.grid.count)])
        return self._ask_digests(receiving)

    def _ask_digests(self, receiving: Receiving) -> list[Action]:
        """Ask for digests of what is in doubt: a few asks ahead where each means hashing on both sides."""
        actions: list[Action] = []
        for_doubt = bool(receiving.doubted)
        most = COMPARE_STEP if for_doubt else m.MAX_ASKED
        while receiving.to_ask and len(receiving.asked) + receiving.comparing < COMPARES_OPEN:
            start, stop = receiving.to_ask.pop_first(most)
            receiving.asked[start] = (stop, for_doubt)
            # XXH3 finds accidents; that a chunk of another version need not be sent takes SHA-256.
            name = DigestName.SHA_256 if for_doubt else self._digest
            actions.append(Say(m.AskDigests(receiving.entry.id, name, start, stop - start)))
        return actions

    def _digests(self, message: m.Digests) -> list[Action]:
        receiving = self._step(message.entry, Type.DIGESTS)
        if receiving is None:
            return []
        start = message.first
        if start not in receiving.asked:
            raise ProtocolError(f"DIGESTS for entry {message.entry} that were not asked for")
        stop, for_doubt = receiving.asked[start]
        name = DigestName.SHA_256 if for_doubt else self._digest
        count, rest = divmod(len(message.digests), name.size)
        end = start + count
        if message.digest is not name or rest or not start < end <= stop:
            raise ProtocolError(f"DIGESTS for entry {message.entry} do not fit what was asked")
        del receiving.asked[start]
        if end < stop:
            receiving.asked[end] = (stop, for_doubt)
        if for_doubt:
            receiving.comparing += 1
            return [Compare(message.entry, name, start, message.digests), *self._ask_digests(receiving)]
        assert receiving.digests is not None
        differing = RangeSet()
        for at, index in enumerate(range(start, end)):
            theirs = message.digests[at * name.size : (at + 1) * name.size]
            if receiving.digests.get(index) != theirs:
                differing.add(index, index + 1)
        actions: list[Action] = []
        if differing:
            receiving.disagreed = False
            actions = self._repair(receiving, differing)
            if receiving.entry.id not in self._live:
                return actions
        return actions + self._ask_digests(receiving) + self._complete(receiving)

    def _repair(self, receiving: Receiving, ranges: RangeSet | list[tuple[int, int]]) -> list[Action]:
        """Ask for chunks again; a chunk that was repaired too often fails the entry."""
        if receiving.entry.id not in self._live:
            return []
        again = RangeSet(ranges)
        again.difference_update(receiving.missing)  # asked for already, and not here yet
        if not again:
            return self._complete(receiving)
        for start, stop in again:
            if (index := receiving.repairs.add(start, stop)) is not None:
                text = f"chunk {index} was still wrong after it was sent again {m.MAX_REPAIRS} times"
                return self._refuse(receiving, IntegrityError.wire, text)
            assert receiving.digests is not None
            receiving.digests.forget(start, stop)
            self.bytes_held -= receiving.grid.bytes_in(RangeSet(receiving.held.overlap(start, stop)))
            receiving.held.discard(start, stop)
            receiving.unread.discard(start, stop)
        return self._ask_for(receiving, again, 0)

    def _ask_for(self, receiving: Receiving, chunks: RangeSet, held: int) -> list[Action]:
        """WANT these chunks, in as many messages as their limit asks for, one at least."""
        receiving.missing.update(chunks)
        receiving.state = next_state(receiving.entry.id, receiving.state, Type.WANT)
        ranges = [m.Range(start, stop - start) for start, stop in chunks]
        return [
            Say(m.Want(receiving.entry.id, held if at == 0 else 0, tuple(ranges[at : at + m.MAX_RANGES])))
            for at in range(0, max(1, len(ranges)), m.MAX_RANGES)
        ]

    def _refuse(self, receiving: Receiving, code: int, message: str) -> list[Action]:
        entry_id = receiving.entry.id
        receiving.state = next_state(entry_id, receiving.state, Type.REFUSE)
        if code == m.WITHDRAWN:
            self.bytes_offered -= receiving.grid.size
            del self._live[entry_id]
            after = self._outside(receiving.folder, 1)
        else:
            self.failed += 1
            after = self._end(receiving, "failed", code=code, message=message)
        return [Say(m.Refuse((m.RefuseItem(entry_id, code, message),))), Release(entry_id), *after]

    def _end(self, receiving: Receiving | Small, state: str, *, code: int = 0, message: str = "",
             root: bytes = b"", durable: bool = False) -> list[Action]:  # fmt: skip
        self._count_ended(receiving, state, code=code, message=message, root=root, durable=durable)
        return self._outside(receiving.folder, 1)

    def _count_ended(self, receiving: Receiving | Small, state: str, *, code: int = 0, message: str = "",
                     root: bytes = b"", durable: bool = False) -> None:  # fmt: skip
        del self._live[receiving.entry.id]
        if state != "failed" and receiving.entry.kind is not Kind.FOLDER:
            self.files += 1
            self.files_skipped += state == "skipped"
        if self._tell_all or state == "failed":
            if isinstance(receiving, Small):
                sent, reused = (0, receiving.entry.size) if state == "skipped" else (receiving.entry.size, 0)
            else:
                sent, reused = receiving.received, receiving.grid.bytes_in(receiving.held)
            self._ended.append(Outcome(receiving.entry, state, code, message, root, durable, sent, reused))
