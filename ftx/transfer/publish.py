"""The receiver's committing thread: publish, compare with the sender's digests, read back what is held.

G5: a receipt is given behind the last sync, and for what that sync covered.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from ftx.errors import DestinationError, FtxError, LinkLost, NoSpace
from ftx.options import Exists
from ftx.protocol.manifest import DigestName
from ftx.protocol.ranges import RangeSet
from ftx.storage import commit, disk
from ftx.storage.partial import SYNC_BYTES, Partial, SyncFailed
from ftx.storage.scratch import Whole
from ftx.transfer.actions import Action, Commit, Compare, Rehash
from ftx.transfer.ledger import Ledger
from ftx.transfer.room import Room
from ftx.transfer.underway import UnderWay

TICK_S = 0.2
GROUP = 512  #: entries that are published together, at most
#: While more entries are outstanding than wait to be published, so many are waited for, so long.
GATHER, GATHER_S = 256, 0.01


class Publisher:
    """Works for one session, in one thread.

    Args:
        ledger: told of everything that was found and done.
        act: carries out what the ledger decides.
        stopped: whether the session is over.

    Attributes:
        steps: that it has taken; what BUSY counts.
        working: it has something to do.
    """

    def __init__(
        self,
        ledger: Ledger,
        under_way: UnderWay,
        room: Room,
        policy: Exists,
        digest: DigestName,
        act: Callable[[Sequence[Action]], None],
        stopped: Callable[[], bool],
        *,
        fsync: bool,
    ) -> None:
        self._ledger = ledger
        self._under_way = under_way
        self._room = room
        self._policy = policy
        self._digest = digest
        self._act = act
        self._stopped = stopped
        self._fsync = fsync
        self.steps = 0
        self.working = False
        self._work = threading.Condition()
        self._urgent: deque[int | Compare] = deque()  # entries to be published, chunks to be compared
        self._gathering = False
        self._rehash: deque[tuple[int, int, int]] = deque()  # (entry, start, stop)
        self._back = memoryview(b"")

    def add(self, actions: Sequence[Commit | Compare | Rehash]) -> None:
        """Have this done."""
        with self._work:
            for action in actions:
                match action:
                    case Commit():
                        self._urgent.extend(action.entries)
                    case Compare():
                        self._urgent.append(action)
                    case Rehash():
                        self._rehash.extend((action.entry, start, stop) for start, stop in action.ranges)
            if not self._gathering or len(self._urgent) >= GATHER:  # waking a thread for each would cost more
                self._work.notify_all()

    def wake(self) -> None:
        """The session is over."""
        with self._work:
            self._work.notify_all()

    def _fail(self, entry_id: int, error: FtxError) -> None:
        """One entry cannot be taken any further; the others go on."""
        self._act(self._ledger.fail(entry_id, error.wire, str(error)))

    def run(self) -> None:
        """Publish first, compare next; when idle re-hash what is held; now and then write down and sync."""
        while True:
            with self._work:
                if self._stopped():
                    return
                if not self._urgent and not self._rehash:
                    self.working = False
                    self._work.wait(TICK_S)
                if 0 < len(self._urgent) < min(GATHER, self._ledger.coming()):
                    self._gathering = True
                    self._work.wait(GATHER_S)
                    self._gathering = False
                group = self._next_commits()
                compare = self._urgent.popleft() if self._urgent and not group else None
                chunk = self._next_rehash() if not group and compare is None else None
                self.working = bool(group) or compare is not None or chunk is not None
            self.steps += 1
            if group:
                self._publish_all(group)
            elif isinstance(compare, Compare):
                self._compare(compare)
            elif chunk is not None:
                self._rehash_chunk(*chunk)
            self._upkeep()

    def _next_commits(self) -> list[int]:
        """The entries that wait to be published, as far as nothing else is before them."""
        group: list[int] = []
        while self._urgent and len(group) < GROUP and isinstance(entry_id := self._urgent[0], int):
            self._urgent.popleft()
            group.append(entry_id)
        return group

    def _next_rehash(self) -> tuple[int, int] | None:
        if not self._rehash:
            return None
        entry_id, start, stop = self._rehash.popleft()
        if start + 1 < stop:
            self._rehash.appendleft((entry_id, start + 1, stop))
        return entry_id, start

    def _upkeep(self) -> None:
        """G2: journals follow their data. G5: dirty bytes are bounded."""
        for entry_id, partial in self._under_way.partials():
            with partial.use() as alive:
                if not alive:
                    continue
                partial.flush()
                if self._fsync and partial.dirty >= SYNC_BYTES:
                    self.sync(entry_id, partial)

    def sync(self, entry_id: int, partial: Partial) -> bool:
        """Sync a partial; what a failed sync lost is asked for again (G5)."""
        with partial.use() as alive:
            if not alive:
                return False
            try:
                partial.sync()
            except SyncFailed as failure:
                self._lost(entry_id, failure)
                return False
        return True

    def _lost(self, entry_id: int, failure: SyncFailed) -> None:
        """What a failed sync lost is asked for again (G5); once there is room, if that is why it failed."""
        error = disk.destination_error(b"", failure.error)
        if isinstance(error, NoSpace):
            with suppress(NoSpace):
                self._room.wait(error, b"", lambda: None)
        self._act(self._ledger.lost(entry_id, failure.lost))

    def _publish_all(self, entry_ids: Sequence[int]) -> None:
        """Publish what was written in one go together, and every other entry by itself."""
        wholes: list[Whole] = []
        for entry_id in self._ledger.committing(entry_ids):
            partial = self._under_way.get(entry_id)
            if isinstance(partial, Whole):
                wholes.append(partial)
            elif partial is not None:
                self._publish(entry_id, partial)
        if wholes:
            self._publish_group(wholes)

    def _publish_group(self, wholes: Sequence[Whole]) -> None:
        """Publish what was written in one go. What finds no room waits for it; what was published is not touched."""
        scratch, root = self._under_way.scratch, self._under_way.root
        left = list(wholes)
        actions: list[Action] = []
        published: list[tuple[int, bytes]] = []

        def publish() -> None:
            nonlocal left
            results = commit.publish_group(root, scratch, left, self._policy, fsync=self._fsync)
            left = []
            full: NoSpace | None = None
            for whole, result in results:
                if isinstance(result, bytes):
                    published.append((whole.entry.id, result))
                elif isinstance(result, NoSpace):
                    full = result
                    left.append(whole)
                else:
                    actions.extend(self._ledger.fail(whole.entry.id, result.wire, str(result)))
            if full is not None:
                raise full

        try:
            self._room.use(wholes[0].entry.path, publish)
        except NoSpace as error:
            for whole in left:
                actions += self._ledger.fail(whole.entry.id, error.wire, str(error))
        except LinkLost:
            pass  # while it waited for room: what was published is told all the same
        except SyncFailed as failure:
            for whole in left:
                if whole.chunks:
                    self._lost(whole.entry.id, SyncFailed(RangeSet([(0, whole.chunks)]), failure.error))
                else:
                    self._fail(whole.entry.id, DestinationError(f"{disk.show(whole.entry.path)}: {failure}"))
        self._under_way.published([entry_id for entry_id, _ in published])
        self._act(self._ledger.committed(published, durable=self._fsync) + actions)

    def _publish(self, entry_id: int, partial: Partial) -> None:
        try:
            with partial.use() as alive:
                if not alive:
                    return
                path = b""

                def publish() -> None:
                    nonlocal path
                    path = commit.publish(self._under_way.root, partial, self._policy, fsync=self._fsync)

                self._room.use(partial.entry.path, publish)
                actions = self._ledger.committed([(entry_id, path)], durable=self._fsync)
                self._under_way.pop(entry_id)
                self._act(actions)
                # Only now: a crash before this leaves a journal without a partial, and `clear` ends what is left to do.
                partial.remove_journal()
        except SyncFailed as failure:
            if failure.lost:
                self._lost(entry_id, failure)
            else:  # nothing that sending again would mend
                self._fail(entry_id, DestinationError(f"{disk.show(partial.entry.path)}: {failure}"))
            return
        except DestinationError as error:
            self._fail(entry_id, error)
            return
        self._under_way.let_go(partial, committed=True)

    def _compare(self, job: Compare) -> None:
        """Doubted chunks against the sender's digests: equal ones are kept, the others asked for."""
        partial = self._under_way.get(job.entry)
        if not isinstance(partial, Partial):
            return
        size = job.digest.size
        found: list[tuple[int, bytes | None]] = []
        with partial.use() as alive:
            if not alive:
                return
            self._settle(job.entry, partial)
            for at in range(0, len(job.digests), size):
                index = job.first + at // size
                payload = self._read_back(partial, index)
                same = payload is not None and job.digest.function(payload) == job.digests[at : at + size]
                partial.compared(index, same=same)
                found.append((index, self._digest.function(payload) if payload is not None and same else None))
                self.steps += 1
            if not partial.doubted:
                partial.trust()
            actions = self._ledger.compared(job.entry, found)
        self._act(actions)

    def _rehash_chunk(self, entry_id: int, index: int) -> None:
        """G4: what another process wrote counts when it was read from the disk, not because the journal says so."""
        partial = self._under_way.get(entry_id)
        if not isinstance(partial, Partial):
            return
        with partial.use() as alive:
            if not alive:
                return
            self._settle(entry_id, partial)
            payload = self._read_back(partial, index)
            digest = None if payload is None else self._digest.function(payload)
            actions = self._ledger.rehashed(entry_id, index, digest)
        self._act(actions)

    def _settle(self, entry_id: int, partial: Partial) -> None:
        """To the disk with what is held, and out of memory: the disk is to be read, not the cache (G4)."""
        if partial.settled:
            return
        partial.settled = True
        if self._fsync:
            self.sync(entry_id, partial)
        disk.drop_cache(partial.fd)

    def _read_back(self, partial: Partial, index: int) -> memoryview | None:
        """A chunk from the disk; None if it cannot be read, which is as good as not held."""
        if len(self._back) < partial.grid.chunk:
            self._back = memoryview(bytearray(partial.grid.chunk))
        try:
            payload = partial.read(index, self._back)
        except OSError:
            return None
        return payload if len(payload) == partial.grid.length(index) else None
