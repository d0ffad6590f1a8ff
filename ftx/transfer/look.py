"""What a receiver has already of what it is offered, and where the rest is to be written."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack, nullcontext
from typing import TypeGuard

from ftx.errors import DestinationError, FtxError, NoSpace
from ftx.options import Exists
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Entry, Grid, Kind
from ftx.storage import disk
from ftx.storage.look import Target
from ftx.storage.partial import Partial, key_of
from ftx.storage.paths import components
from ftx.storage.scratch import Whole
from ftx.transfer.actions import FRESH, SAME, SMALL, Leave, Make, Reject, Take, Verdict
from ftx.transfer.room import Room
from ftx.transfer.underway import UnderWay

TICK_S = 0.05
#: Partials that one session has open, with three descriptors each (G8); further offers wait.
MAX_PARTIALS = 64
#: Not an answer: the entry is looked at again when others have ended.
LATER = Reject(0, "not now")


class Looker:
    """Looks at the destination for one session.

    Args:
        under_way: gets what is opened.
        room: where to wait for space.
        peer: who sends; partials hang on it.
        top: the folder that OPEN names.
        policy: what happens to a different file of the same name.
        digest: of chunks.
        fsync: names that are found must be durable.
    """

    def __init__(
        self, under_way: UnderWay, room: Room, peer: bytes, top: bytes, policy: Exists, digest: DigestName, *,
        fsync: bool,
    ) -> None:  # fmt: skip
        self._under_way = under_way
        self._room = room
        self._store = under_way.store
        self._root = under_way.root
        self._account = under_way.account
        self._peer = peer
        self._top = top
        self._policy = policy
        # For a name that is free: thousands of looks for one offer, maybe. Or through all that is in a folder.
        self._searches = policy is Exists.RENAME or self._account is not None
        self._digest = digest
        self._fsync = fsync
        self._offers: queue.SimpleQueue[Sequence[Entry] | None] = queue.SimpleQueue()
        self._later: list[Sequence[Entry]] = []  # batches that wait
        self._full: NoSpace | None = None  # what the last of them that found no room was told

    def look(self, entries: Sequence[Entry]) -> list[tuple[int, Verdict]]:
        """See what the disk has for these entries of one folder; what is not to be told at once is ``run``'s to answer.

        Nearly all that is small is told here, in the thread that has received the offers: another one would cost more.
        """
        if self._searches:
            self._offers.put(entries)
            return []
        now: list[tuple[int, Verdict]] = []
        later: list[Entry] = []
        for entry, (_, verdict) in zip(entries, self.verdicts(entries, at_once=True), strict=True):
            if self._must_wait(verdict):
                later.append(entry)
            else:
                now.append((entry.id, verdict))
        if later:
            self._offers.put(later)
        return now

    def end(self) -> None:
        """The session is over: ``run`` is to return."""
        self._offers.put(None)

    def run(self, answer: Callable[[list[tuple[int, Verdict]]], None], stopped: Callable[[], bool]) -> None:
        """See to what ``look`` left, until ``end`` is called.

        A pause holds every entry of the session. So what finds no room waits behind all others, and the session
        pauses when nothing else is left to do. What would take too many descriptors waits until others have ended.
        """
        while not stopped():
            try:
                entries = self._offers.get(timeout=TICK_S if self._later else None)
            except queue.Empty:
                if self._full is None:
                    if self._under_way.count <= MAX_PARTIALS // 2:
                        self._look_again(answer)
                elif self._under_way.empty:
                    try:
                        # What needs nothing is answered also where there is no room at all.
                        self._room.wait(self._full, b"", self._look_until_room, answer, reserve=False)
                    except NoSpace:
                        self._look_again(answer)  # nobody makes room: the answer is no, if anybody waits for one
                continue
            if entries is None:
                return
            self._look(entries, answer)

    def _look(self, entries: Sequence[Entry], answer: Callable[[list[tuple[int, Verdict]]], None]) -> None:
        now: list[tuple[int, Verdict]] = []
        later: list[Entry] = []
        for entry, (_, verdict) in zip(entries, self.verdicts(entries), strict=True):
            if self._must_wait(verdict):
                later.append(entry)
                if verdict is not LATER:
                    self._full = NoSpace(verdict.message)
            else:
                now.append((entry.id, verdict))
        if now:
            answer(now)
        if later:
            self._later.append(later)

    def _must_wait(self, verdict: Verdict) -> TypeGuard[Reject]:
        """Whether this is no answer yet: a later look may find room, or fewer open."""
        if not isinstance(verdict, Reject):
            return False
        return verdict is LATER or (verdict.code == NoSpace.wire and self._room.patient)

    def _look_again(self, answer: Callable[[list[tuple[int, Verdict]]], None]) -> None:
        """At all that waits."""
        again, self._later, self._full = self._later, [], None
        for entries in again:
            self._look(entries, answer)

    def _look_until_room(self, answer: Callable[[list[tuple[int, Verdict]]], None]) -> None:
        """In a pause: at all that waits, and at what comes meanwhile.

        Raises:
            NoSpace: there is nothing to do but to wait on.
        """
        self._look_again(answer)
        while not self._offers.empty():
            if (entries := self._offers.get()) is None:
                self._offers.put(None)
                break
            self._look(entries, answer)
        if self._full is not None and self._under_way.empty:
            raise self._full

    def verdicts(self, entries: Sequence[Entry], *, at_once: bool = False) -> list[tuple[int, Verdict]]:
        """What there is for each of these entries of one folder, by their ids.

        Args:
            at_once: LATER for what needs more than a look: a partial may be in use, or be opened, for long.
        """
        with ExitStack() as stack:
            with nullcontext() if self._searches else self._under_way.scratch.turn:
                try:
                    if self._top:
                        self._make_top()
                    with disk.destination_errors(entries[0].path):
                        left = self._store.left()
                    target = stack.enter_context(Target(self._root, entries[0].path.rpartition(b"/")[0]))
                except FtxError as error:
                    return [(entry.id, Reject(error.wire, str(error))) for entry in entries]
                reasons = [self._reason(target, entry) for entry in entries]
                small = self._claimed(target, entries, reasons, left)
            if len(small) == len(entries):
                self._under_way.add_small(small)
                return [(entry.id, FRESH) for entry in entries]
            if not left and all([reason is m.SkipReason.SAME for reason in reasons]):
                return [(entry.id, SAME) for entry in entries]
            found: list[tuple[int, Verdict]] = []
            try:
                for entry, reason in zip(entries, reasons, strict=True):
                    if entry.id in small:
                        found.append((entry.id, FRESH))
                        continue
                    verdict = self._verdict(target, entry, reason, left, small, at_once=at_once)
                    found.append((entry.id, verdict))
            finally:
                self._under_way.add_small(small)
            return found

    def _claimed(
        self, target: Target, entries: Sequence[Entry], reasons: Sequence[object], left: Set[bytes]
    ) -> dict[int, Whole]:
        """The small files among these that nothing stands in the way of: all at once, as nearly always, or none."""
        fresh = [
            entry
            for entry, reason in zip(entries, reasons, strict=True)
            if reason is None and entry.size <= SMALL and entry.kind is Kind.FILE
        ]
        if left or not fresh or self._account is not None:
            return {}
        try:
            if not target.takes_renames(fresh[0].path) or not self._store.claim_all(fresh):
                return {}
        except FtxError:
            return {}
        scratch = self._under_way.scratch
        return {entry.id: Whole(scratch, entry, self._digest, claimed=True) for entry in fresh}

    def _make_top(self) -> None:
        """The folder that OPEN names is nobody's entry: it is made as this user makes folders."""
        with disk.destination_errors(self._top), self._root.folder(components(self._top), make=True, mode=0o777):
            self._top = b""

    def _reason(self, target: Target, entry: Entry) -> m.SkipReason | FtxError | None:
        """Why nothing is to be done for one entry, or nothing can be."""
        try:
            return target.look(entry, self._policy)
        except FtxError as error:
            return error

    def _verdict(
        self, target: Target, entry: Entry, reason: m.SkipReason | FtxError | None, left: Set[bytes],
        small: dict[int, Whole], *, at_once: bool,
    ) -> Verdict:  # fmt: skip
        """What is to be done for one entry.

        Args:
            left: the keys of partials that are there.
            small: gets what is to be written in one go.
        """
        if isinstance(reason, FtxError):
            return Reject(reason.wire, str(reason))
        try:
            has_partial = bool(left) and key_of(self._peer, entry.path) in left
            if reason is not None:
                if has_partial and reason is m.SkipReason.SAME:
                    if at_once:
                        return LATER
                    self._store.clear(self._peer, entry, fsync=self._fsync, root=self._root)
                return SAME if reason is m.SkipReason.SAME else Leave(reason)
            partial = self._open(target, entry, has_partial=has_partial, at_once=at_once)
        except FtxError as error:
            return Reject(error.wire, str(error))
        if isinstance(partial, Whole):
            small[entry.id] = partial
            if entry.kind is not Kind.FILE:
                return Make()
            if entry.size <= SMALL:
                return FRESH
        elif partial is None:
            return LATER
        else:
            self._under_way.add(entry.id, partial)
        return Take(partial.held, partial.doubted, partial.digests)

    def _open(self, target: Target, entry: Entry, *, has_partial: bool, at_once: bool) -> Partial | Whole | None:
        """Where an entry is to be written; None if it must wait.

        What is small needs no journal: nothing of it is worth resuming.
        """
        if entry.kind is Kind.FOLDER:
            if self._account is not None and not target.has(entry):
                self._account.grant(entry.path, 0)
            return Whole(self._under_way.scratch, entry, self._digest)
        small = entry.size <= SMALL or entry.kind is Kind.SYMLINK or Grid.of(entry.size).count <= 1
        if not small or has_partial or not target.takes_renames(entry.path):
            if at_once or self._under_way.count >= MAX_PARTIALS:
                return None
            if entry.kind is Kind.SYMLINK:
                raise DestinationError(f"{disk.show(entry.path)}: a link on another file system than the destination")
            return self._store.open(self._peer, entry, self._digest, root=self._root, account=self._account)
        self._store.claim(entry.path, entry.allocated, self._account)
        try:
            if self._account is not None:  # what the sender says of its holes is not believed
                self._account.grant(entry.path, entry.size)
        except DestinationError:
            self._store.unclaim([entry.path])
            raise
        return Whole(self._under_way.scratch, entry, self._digest, claimed=True)
