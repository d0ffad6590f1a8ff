"""The receiver's half of a session: carries out what ``ledger`` decides. Holds no listener and no policy.

Threads: ``read`` takes frames and writes chunks, ``look`` sees what is on the disk for each offer, ``commit``
publishes, compares and re-hashes, ``write`` sends answers and signs of life. The caller's thread waits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import assert_never

from ftx.errors import DestinationError, FtxError, PeerSilent, Superseded, Unsupported, from_wire
from ftx.net.lane import Lane
from ftx.options import Exists
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Entry, Kind
from ftx.storage import commit, disk
from ftx.storage.partial import DIRTY_BYTES, SYNC_BYTES, Partial, PartialStore, SyncFailed
from ftx.transfer import events
from ftx.transfer.actions import (
    Action,
    Commit,
    Compare,
    Leave,
    Look,
    Outcome,
    Rehash,
    Reject,
    Release,
    Say,
    Take,
    Verdict,
)
from ftx.transfer.crew import Crew
from ftx.transfer.ledger import Ledger

TICK_S = 0.2
LEAVE_S = 4.0
LAST_WORD_S = 0.5
#: A session that was superseded is a ghost, mostly; its successor waits for the partial meanwhile.
GHOST_S = 0.3
WINDOW = 64  #: entries that a sender may have outstanding

_XXH3 = DigestName.XXH3_128.function


class ReceiveSession:
    """One session of a receiver.

    Args:
        lane: opened, the only one.
        request: the sender's OPEN.
        peer: who sends; partials hang on it.
        store: the partials of the destination.
        policy: what happens to a different file of the same name.
        fsync: wait for the disk before a receipt is given.
        timeout_s: how long the peer may be silent.
        on_event: told of each entry that ended, from the session's threads.

    Attributes:
        failure: of the entry that failed last.
    """

    def __init__(
        self,
        lane: Lane,
        request: m.Open,
        peer: bytes,
        store: PartialStore,
        policy: Exists,
        fsync: bool,
        timeout_s: float,
        on_event: events.OnEvent,
    ) -> None:
        self.ledger = Ledger(request.digest, WINDOW, request.folder)
        self.failure: FtxError | None = None
        self._lane = lane
        self._digest = request.digest
        self._peer = peer
        self._store = store
        self._policy = policy
        self._fsync = fsync
        self._timeout_s = timeout_s
        self._on_event = on_event
        self._partials: dict[int, Partial] = {}
        self._over = False
        self._lock = threading.Lock()
        self._outbox: deque[m.Message] = deque()
        self._out = threading.Condition()
        self._last_word: m.Error | None = None
        self._quiet = threading.Event()
        self._looks: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._work = threading.Condition()
        self._urgent: deque[Commit | Compare] = deque()
        self._rehash: deque[tuple[int, int, int]] = deque()  # (entry, start, stop)
        self._steps = 0  # of the committing thread: what BUSY counts
        self._working = False
        self._settled: set[int] = set()
        self._buffer = memoryview(b"")  # of the reading thread
        self._back = memoryview(b"")  # of the committing thread
        self._crew = Crew("ftx-receive", LEAVE_S, self._unblock)

    def run(self) -> None:
        """Receive until both have said BYE.

        Raises:
            FtxError: the cause of the session's end.
        """
        try:
            with self._crew as crew:
                crew.start("read", self._read)
                crew.start("look", self._look)
                crew.start("commit", self._commit)
                crew.start("write", self._write)
                try:
                    while not crew.wait(TICK_S):
                        self._check_alive()
                    self._quiet.wait(LAST_WORD_S)
                    self._lane.drain(m.DRAIN_S)
                except FtxError as error:
                    self._leave(error)
                    raise
                finally:
                    self._looks.put(None)
        finally:
            with self._lock:
                partials, self._partials = self._partials, {}
                self._over = True
            for partial in partials.values():
                self._store.release(partial, committed=False)

    def stop(self, error: FtxError) -> None:
        """End the session from another thread, for this reason: superseded, or the receiver leaves."""
        self._crew.fail(error)

    def _check_alive(self) -> None:
        if self._lane.silent_s > self._timeout_s:
            raise PeerSilent(f"the sender has been silent for {self._timeout_s:g} s")

    def _unblock(self) -> None:
        """Wake every thread of a session that is over: a ghost must not keep its successor waiting."""
        self._lane.shutdown()
        for waiting in (self._out, self._work):
            with waiting:
                waiting.notify_all()

    def _leave(self, error: FtxError) -> None:
        """Tell the peer why, unless it knows or cannot hear, and give it time to hear it (G11)."""
        if error.wire == 0 or error.from_peer:
            return
        with self._out:
            self._last_word = m.Error(error.wire, str(error))
            self._out.notify_all()
        if self._quiet.wait(LAST_WORD_S):
            self._lane.drain(GHOST_S if isinstance(error, Superseded) else m.DRAIN_S)

    # --- actions ---

    def _act(self, actions: Sequence[Action]) -> None:
        """Hand on what the ledger decided to the threads that do it."""
        for action in actions:
            match action:
                case Say():
                    with self._out:
                        self._outbox.append(action.message)
                        self._out.notify_all()
                case Look():
                    self._looks.put(action.entry)
                case Commit() | Compare():
                    with self._work:
                        self._urgent.append(action)
                        self._work.notify_all()
                case Rehash():
                    with self._work:
                        self._rehash.extend((action.entry, start, stop) for start, stop in action.ranges)
                        self._work.notify_all()
                case Release():
                    self._release(action.entry)
                case _:
                    assert_never(action)
        for outcome in self.ledger.ended():
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        error = from_wire(outcome.code, outcome.message) if outcome.code else None
        self.failure = error or self.failure
        self._on_event(
            events.EntryEnded(
                path=outcome.entry.path,
                state=outcome.state,
                size=outcome.entry.size,
                sent=outcome.sent,
                reused=outcome.reused,
                digest=f"{self._digest.label}:{outcome.root.hex()}" if outcome.root else None,
                code=error.exit_code if error else 0,
                message=outcome.message,
            )
        )

    def _release(self, entry_id: int) -> None:
        self._settled.discard(entry_id)
        with self._lock:
            partial = self._partials.pop(entry_id, None)
        if partial is not None:
            self._store.release(partial, committed=False)

    def _partial(self, entry_id: int) -> Partial | None:
        with self._lock:
            return self._partials.get(entry_id)

    def _fail(self, entry_id: int, error: FtxError) -> None:
        """One entry cannot be taken any further; the others go on."""
        self._act(self.ledger.fail(entry_id, error.wire, str(error)))

    # --- read ---

    def _read(self) -> None:
        """Take frames; write chunks where they belong."""
        while True:
            message, _ = self._lane.receive()
            match message:
                case m.Data():
                    self._data(message)
                case m.Zeros():
                    self._zeros(message)
                case m.Error():
                    raise from_wire(message.code, message.message)
                case m.Folder():
                    with self._out:
                        unsaid = sum(isinstance(said, m.Skip | m.Refuse | m.Receipt) for said in self._outbox)
                    self._act(self.ledger.receive(message, unsaid))
                case _:
                    self._act(self.ledger.receive(message))
                    if isinstance(message, m.Bye):
                        self._crew.end()
                        return

    def _data(self, message: m.Data) -> None:
        receiving = self.ledger.begin(message)
        buffer = self._chunk_buffer(message.length)
        payload = self._lane.payload(message.length, buffer)
        if receiving is None:
            return
        # G4: what was damaged on the way is never written.
        if _XXH3(payload) != message.digest:
            self._act(self.ledger.damaged(receiving, message.index))
            return
        digest = message.digest if self._digest is DigestName.XXH3_128 else self._digest.function(payload)
        partial = self._partial(message.entry)
        if partial is None:
            return
        try:
            with partial.use() as alive, disk.destination_errors(receiving.entry.path):
                if not alive:
                    return
                partial.write(message.index, payload)
                actions = self.ledger.written(receiving, message.index, digest)
        except DestinationError as error:
            self._fail(message.entry, error)
            return
        self._act(actions)
        if self._fsync and partial.dirty >= DIRTY_BYTES:
            self._sync(message.entry, partial)

    def _zeros(self, message: m.Zeros) -> None:
        place = self.ledger.zeros(message)
        partial = self._partial(message.entry)
        if place is None or partial is None:
            return
        receiving, ranges = place
        try:
            with partial.use() as alive, disk.destination_errors(receiving.entry.path):
                if not alive:
                    return
                for start, stop in ranges:
                    partial.write_zeros(start, stop)
                actions = self.ledger.zeroed(receiving, ranges)
        except DestinationError as error:
            self._fail(message.entry, error)
            return
        self._act(actions)

    def _chunk_buffer(self, length: int) -> memoryview:
        if len(self._buffer) < length:
            self._buffer = memoryview(bytearray(length))
        return self._buffer

    # --- look ---

    def _look(self) -> None:
        """See what the disk has for each offer."""
        while (entry := self._looks.get()) is not None and not self._crew.stopped:
            self._act(self.ledger.looked(entry.id, self._verdict(entry)))

    def _verdict(self, entry: Entry) -> Verdict:
        try:
            if entry.kind is not Kind.FILE:
                raise Unsupported(f"{disk.show(entry.path)}: this receiver takes files only so far")
            reason = commit.look(self._store.root, entry, self._policy)
            if reason is m.SkipReason.SAME:
                self._store.clear(self._peer, entry, fsync=self._fsync)
            if reason is not None:
                return Leave(reason)
            partial = self._store.open(self._peer, entry, self._digest)
        except FtxError as error:
            return Reject(error.wire, str(error))
        with self._lock:
            self._partials[entry.id] = partial
            over = self._over
        if over:  # the disk was slow, and nobody waits for it any more
            self._release(entry.id)
        return Take(partial.held, partial.doubted, partial.digests)

    # --- commit ---

    def _commit(self) -> None:
        """Publish first, compare next; when idle re-hash what is held; now and then write down and sync."""
        while True:
            with self._work:
                if self._crew.stopped:
                    return
                if not self._urgent and not self._rehash:
                    self._working = False
                    self._work.wait(TICK_S)
                job = self._urgent.popleft() if self._urgent else None
                chunk = self._next_rehash() if job is None else None
                self._working = job is not None or chunk is not None
            self._steps += 1
            match job:
                case Commit():
                    self._publish(job.entry)
                case Compare():
                    self._compare(job)
                case None if chunk is not None:
                    self._rehash_chunk(*chunk)
            self._upkeep()

    def _next_rehash(self) -> tuple[int, int] | None:
        if not self._rehash:
            return None
        entry_id, start, stop = self._rehash.popleft()
        if start + 1 < stop:
            self._rehash.appendleft((entry_id, start + 1, stop))
        return entry_id, start

    def _upkeep(self) -> None:
        """G2: journals follow their data. G5: dirty bytes are bounded."""
        with self._lock:
            partials = list(self._partials.items())
        for entry_id, partial in partials:
            with partial.use() as alive:
                if not alive:
                    continue
                partial.flush()
                if self._fsync and partial.dirty >= SYNC_BYTES:
                    self._sync(entry_id, partial)

    def _sync(self, entry_id: int, partial: Partial) -> bool:
        """Sync a partial; what a failed sync lost is asked for again (G5)."""
        with partial.use() as alive:
            if not alive:
                return False
            try:
                partial.sync()
            except SyncFailed as failure:
                self._act(self.ledger.lost(entry_id, failure.lost))
                return False
        return True

    def _publish(self, entry_id: int) -> None:
        partial = self._partial(entry_id)
        if partial is None or not self.ledger.committing(entry_id):
            return  # what it was to publish was lost meanwhile
        try:
            with partial.use() as alive:
                if not alive:
                    return
                path = commit.publish(self._store.root, partial, self._policy, fsync=self._fsync)
                actions = self.ledger.committed(entry_id, durable=self._fsync, path=path)
                with self._lock:
                    self._partials.pop(entry_id, None)
                self._act(actions)
                # Only now: a crash before this leaves a journal without a partial, and `clear` ends what is left to do.
                partial.remove_journal()
        except SyncFailed as failure:
            if failure.lost:
                self._act(self.ledger.lost(entry_id, failure.lost))
            else:  # nothing that sending again would mend
                self._fail(entry_id, DestinationError(f"{disk.show(partial.entry.path)}: {failure}"))
            return
        except FtxError as error:
            self._fail(entry_id, error)
            return
        self._store.release(partial, committed=True)

    def _compare(self, job: Compare) -> None:
        """Doubted chunks against the sender's digests: equal ones are kept, the others asked for."""
        partial = self._partial(job.entry)
        if partial is None:
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
                if payload is not None and job.digest.function(payload) == job.digests[at : at + size]:
                    partial.keep(index)
                    found.append((index, self._digest.function(payload)))
                else:
                    found.append((index, None))
                partial.doubted.discard(index, index + 1)
                self._steps += 1
            if not partial.doubted:
                partial.trust()
            actions = self.ledger.compared(job.entry, found)
        self._act(actions)

    def _rehash_chunk(self, entry_id: int, index: int) -> None:
        """G4: what another process wrote counts when it was read from the disk, not because the journal says so."""
        partial = self._partial(entry_id)
        if partial is None:
            return
        with partial.use() as alive:
            if not alive:
                return
            self._settle(entry_id, partial)
            payload = self._read_back(partial, index)
            digest = None if payload is None else self._digest.function(payload)
            actions = self.ledger.rehashed(entry_id, index, digest)
        self._act(actions)

    def _settle(self, entry_id: int, partial: Partial) -> None:
        """To the disk with what is held, and out of memory: the disk is to be read, not the cache (G4)."""
        if entry_id in self._settled:
            return
        self._settled.add(entry_id)
        if self._fsync:
            self._sync(entry_id, partial)
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

    # --- write ---

    def _write(self) -> None:
        """Send answers as they come, all that wait in one go; and signs of life."""
        try:
            while True:
                with self._out:
                    if self._crew.stopped:
                        return
                    if not self._outbox and self._last_word is None:
                        self._out.wait(m.PING_S)
                    messages = list(self._outbox)
                    self._outbox.clear()
                    last = self._last_word
                if messages:
                    self._lane.send(*messages)
                    if isinstance(messages[-1], m.Bye):
                        return
                if last is not None:
                    self._lane.send(last)
                    return
                if time.monotonic() - self._lane.last_sent_s >= m.PING_S:
                    self._lane.send(m.Busy(self._steps) if self._working else m.Ping())
        finally:
            self._quiet.set()
