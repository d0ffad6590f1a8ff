"""The receiver's half of a session: carries out what ``ledger`` decides. Holds no listener and no policy.

Threads: ``read`` takes frames, looks at what is small and writes chunks, one for each lane; ``look`` opens what may
take long; ``commit`` publishes, compares and re-hashes, ``write`` sends answers and signs of life. The caller's thread
waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import groupby
from operator import methodcaller
from typing import Any, assert_never

from ftx.errors import DestinationError, FtxError, NoSpace, PeerSilent, Refused, Superseded, from_wire
from ftx.net.lane import Lane
from ftx.options import ReceiveOptions
from ftx.protocol import compression
from ftx.protocol import messages as m
from ftx.protocol.manifest import Buffer, DigestName, Entry, Kind
from ftx.storage import disk
from ftx.storage.partial import DIRTY_BYTES, Partial, PartialStore
from ftx.storage.scratch import Scratch, Whole
from ftx.transfer import events
from ftx.transfer.actions import (
    SMALL,
    Action,
    Commit,
    Compare,
    Look,
    Outcome,
    Rehash,
    Release,
    Say,
)
from ftx.transfer.crew import Crew
from ftx.transfer.ledger import Ledger
from ftx.transfer.limits import Limits
from ftx.transfer.look import Looker
from ftx.transfer.publish import Publisher
from ftx.transfer.receiving import Receiving, Small
from ftx.transfer.room import Room
from ftx.transfer.underway import UnderWay

TICK_S = 0.2
UNTOLD_S = 0.01
LEAVE_S = 4.0
LAST_WORD_S = 0.5
#: A session that was superseded is a ghost, mostly; its successor waits for the partial meanwhile.
GHOST_S = 0.3
ANSWERS = (m.Skip, m.Refuse, m.Receipt)

_XXH3 = DigestName.XXH3_128.function

#: A chunk that has come: where it belongs, what was said of it, its bytes.
Chunk = tuple[Receiving | Small, m.Data, Buffer]


class ReceiveSession:
    """One session of a receiver.

    Args:
        lane: opened, the first.
        request: the sender's OPEN.
        peer: who sends; partials hang on it.
        store: the partials of the destination.
        limits: what it may do there.
        options: the receiver's.
        lanes: how many the sender gets.
        window: entries that it may have outstanding.
        untold: gets an event for each entry that ended.

    Attributes:
        failure: of the entry that failed last.
    """

    def __init__(
        self,
        lane: Lane,
        request: m.Open,
        peer: bytes,
        store: PartialStore,
        limits: Limits,
        options: ReceiveOptions,
        lanes: int,
        window: int,
        untold: events.Untold,
    ) -> None:
        self.ledger = Ledger(
            request.digest, window, limits.folder, tell_all=options.tell_all, max_size=limits.max_size,
            compressed=compression.available(),
        )  # fmt: skip
        self.failure: FtxError | None = None
        self._lane = lane
        self._lanes = {1: lane}
        self._digest = request.digest
        self._digest_label = f"{request.digest.label}:"
        self._fsync = fsync = options.fsync
        self._timeout_s = options.timeout_s
        self._granted = lanes
        self._untold = untold
        self._over = False
        self._lock = threading.Lock()
        self._outbox: deque[m.Message] = deque()
        self._out = threading.Condition()
        self._last_word: m.Error | None = None
        self._quiet = threading.Event()
        self._store = store
        self._under_way = UnderWay(store, Scratch(store.root, durable=fsync), limits.root, limits.account)
        self._room = Room(store, request.retry_for_s, self._say, untold.put)
        self._looker = Looker(
            self._under_way, self._room, peer, limits.folder, limits.policy, request.digest, fsync=fsync
        )
        self._publisher = Publisher(
            self.ledger, self._under_way, self._room, limits.policy, request.digest, self._act,
            lambda: self._crew.stopped, fsync=fsync,
        )  # fmt: skip
        self._crew = Crew("ftx-receive", LEAVE_S, self._unblock, self._under_way.scratch.close)

    def run(self) -> None:
        """Receive until both have said BYE.

        Raises:
            FtxError: the cause of the session's end.
        """
        try:
            with self._crew as crew:
                crew.start("read", lambda: self._read(_Reader(self._lane)))
                crew.start("look", self._look)
                crew.start("commit", self._publisher.run)
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
                    self._looker.end()
        finally:
            self._under_way.close()

    def attach(self, lane: Lane, number: int) -> None:
        """Take a further lane into the session and read it to its end, in the calling thread.

        Raises:
            Refused: the session has not granted it, or has it already.
        """
        with self._lock:
            if not 2 <= number <= self._granted or number in self._lanes or self._over:
                raise Refused(f"lane {number} is not to be had")
            self._lanes[number] = lane
        lane.send(m.Attached())
        lane.order.opened(m.Role.RECEIVER)
        lane.deadline_s = None
        self._crew.run(f"read-{number}", lambda: self._read(_Reader(lane)))

    def stop(self, error: FtxError) -> None:
        """End the session from another thread, for this reason: superseded, or the receiver leaves."""
        self._crew.fail(error)

    def _check_alive(self) -> None:
        with self._lock:
            lanes = list(self._lanes.values())
        if min(lane.silent_s for lane in lanes) > self._timeout_s:
            raise PeerSilent(f"the sender has been silent for {self._timeout_s:g} s")

    def _unblock(self) -> None:
        """Wake every thread of a session that is over: a ghost must not keep its successor waiting."""
        self._room.close()
        with self._lock:
            self._over = True
            for lane in self._lanes.values():
                lane.shutdown()
        with self._out:
            self._out.notify_all()
        self._publisher.wake()

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
        work: list[Commit | Compare | Rehash] = []
        left = deque(actions)
        while left:
            action = left.popleft()
            match action:
                case Commit() | Compare() | Rehash():
                    work.append(action)
                case Say():
                    self._say(action.message)
                case Look():
                    if found := self._looker.look(action.entries):
                        left.extend(self.ledger.looked(found))  # more to look at, for each folder that this ends
                case Release():
                    self._under_way.release(action.entry)
                case _:
                    assert_never(action)
        if work:
            self._publisher.add(work)
        for outcome in self.ledger.ended():
            self._tell(outcome)

    def _say(self, message: m.Message) -> None:
        """Have lane 1's writer send it."""
        with self._out:
            self._outbox.append(message)
            self._out.notify_all()

    def _tell(self, outcome: Outcome) -> None:
        error = from_wire(outcome.code, outcome.message) if outcome.code else None
        self.failure = error or self.failure
        has_digest = outcome.root and outcome.entry.kind is Kind.FILE
        self._untold.put(
            events.EntryEnded(
                path=outcome.entry.path,
                kind=outcome.entry.kind.label,
                state=outcome.state,
                size=outcome.entry.size,
                sent=outcome.sent,
                reused=outcome.reused,
                digest=self._digest_label + outcome.root.hex() if has_digest else None,
                code=error.exit_code if error else 0,
                message=outcome.message,
            )
        )

    def _fail(self, entry_id: int, error: FtxError) -> None:
        """One entry cannot be taken any further; the others go on."""
        self._act(self.ledger.fail(entry_id, error.wire, str(error)))

    # --- read ---

    def _read(self, reader: _Reader) -> None:
        """Take frames of one lane; write chunks where they belong."""
        lane = reader.lane
        while True:
            while self._untold.full and not self._crew.stopped:
                time.sleep(UNTOLD_S)
            message, _ = lane.receive()
            match message:
                case m.Data():
                    self._chunks(reader.chunks(message))
                case m.Zeros():
                    self._zeros(message)
                case m.Error():
                    raise from_wire(message.code, message.message)
                case m.Folder():
                    with self._out:
                        unsaid = sum(len(said.items) for said in self._outbox if isinstance(said, ANSWERS))
                    with self._under_way.scratch.turn:
                        self._act(self.ledger.receive(message, unsaid))
                case m.Bye():
                    actions = self.ledger.receive(message)
                    self._crew.end()  # before the answer: whoever has it may close any lane
                    self._act(actions)
                    return
                case _:
                    self._act(self.ledger.receive(message))

    def _chunks(self, chunks: Sequence[tuple[m.Data, memoryview]]) -> None:
        """Verify and write what has arrived, and tell the ledger of all of it at once."""
        left: list[tuple[Chunk, DestinationError | None]] = []
        actions: list[Action] = []
        written: list[tuple[Receiving | Small, int, bytes]] = []
        # A large one may be followed by small ones, which are written here and now; alone it is no burst.
        small = any(data.length <= SMALL for data, _ in chunks)
        with self._under_way.scratch.turn if small else nullcontext():
            full = self._full()
            for (data, arrived), where in zip(chunks, self.ledger.begin([data for data, _ in chunks]), strict=True):
                if where is None:
                    continue
                whole = self._under_way.get(data.entry) if isinstance(where, Small) else None
                if full is not None or not isinstance(whole, Whole):
                    left.append(((where, data, arrived), full))
                    continue
                if (chunk := _intact(where, data, arrived)) is None:
                    actions += self.ledger.damaged(where, data.index)
                    continue
                try:
                    whole.write(data.index, chunk)
                except OSError as error:
                    left.append(((where, data, arrived), disk.destination_error(where.entry.path, error)))
                else:
                    written.append((where, data.index, self._kept_digest(data, chunk)))
            self._act(actions + self.ledger.written(written))
            actions, written = [], []
        try:
            for (where, data, payload), problem in left:
                if (chunk := _intact(where, data, payload)) is None:
                    actions += self.ledger.damaged(where, data.index)
                    continue
                try:
                    if self._put(where.entry, methodcaller("write", data.index, chunk), problem):
                        written.append((where, data.index, self._kept_digest(data, chunk)))
                except DestinationError as failure:
                    actions += self.ledger.fail(data.entry, failure.wire, str(failure))
            actions += self.ledger.written(written)
        finally:
            self._act(actions)  # also when the session ends meanwhile: what failed is told
        for (_, data, _), _ in left:
            partial = self._under_way.get(data.entry)
            if self._fsync and isinstance(partial, Partial) and partial.dirty >= DIRTY_BYTES:
                self._publisher.sync(data.entry, partial)

    def _kept_digest(self, data: m.Data, payload: Buffer) -> bytes:
        """A chunk's digest by the session's name for it."""
        return data.digest if self._digest is DigestName.XXH3_128 else self._digest.function(payload)

    def _full(self) -> DestinationError | None:
        """Why nothing may be written now without waiting."""
        try:
            with disk.destination_errors(b""):
                self._store.check_reserve()
        except DestinationError as error:
            return error
        return None

    def _put(
        self, entry: Entry, write: Callable[[Partial | Whole], None], error: DestinationError | None = None
    ) -> bool:
        """Write where ``entry`` is, once there is room; unless something else went wrong before. False if it has ended.

        Raises:
            DestinationError: it cannot be written.
            LinkLost: the session is over.
        """
        if error is not None and not isinstance(error, NoSpace):
            raise error
        return self._room.use(entry.path, self._under_way.do, entry.id, write)

    def _zeros(self, message: m.Zeros) -> None:
        place = self.ledger.zeros(message)
        if place is None:
            return
        receiving, ranges = place

        def write(one: Partial | Whole) -> None:
            for start, stop in ranges:
                one.write_zeros(start, stop)

        try:
            if self._put(receiving.entry, write):
                self._act(self.ledger.zeroed(receiving, ranges))
        except DestinationError as error:
            self._fail(message.entry, error)

    # --- look ---

    def _look(self) -> None:
        self._looker.run(lambda found: self._act(self.ledger.looked(found)), lambda: self._crew.stopped)

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
                    messages = _merged(self._outbox)
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
                    self._lane.send(m.Busy(self._publisher.steps) if self._publisher.working else m.Ping())
        finally:
            self._quiet.set()


def _intact(where: Receiving | Small, data: m.Data, payload: Buffer) -> Buffer | None:
    """The chunk that has come, decompressed if need be; None if it was damaged on the way (G4)."""
    chunk: Buffer | None = payload
    if data.compressed:
        length = where.entry.size if isinstance(where, Small) else where.grid.length(data.index)
        chunk = compression.decompress(payload, length)
    return None if chunk is None or _XXH3(chunk) != data.digest else chunk


class _Reader:
    """One lane's reading thread: its lane, and a buffer for payloads."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._buffer = memoryview(b"")

    def chunks(self, first: m.Data) -> list[tuple[m.Data, memoryview]]:
        """A chunk whose DATA was received, and those that have arrived behind it; valid until the next ``receive``."""
        lane = self.lane
        if len(self._buffer) < first.length:
            self._buffer = memoryview(bytearray(first.length))
        chunks = [(first, lane.payload(first.length, self._buffer))]
        while (following := lane.arrived()) is not None:
            chunks.append(following)
        return chunks


def _merged(messages: Iterable[m.Message]) -> list[m.Message]:
    """Answers of one kind that follow each other as one message: many small files cost few frames."""
    merged: list[m.Message] = []
    for kind, run in groupby(messages, type):
        if kind not in ANSWERS:
            merged += run
            continue
        items = [item for message in run for item in message.items]  # type: ignore[union-attr]
        make: Any = kind
        merged += [make(tuple(items[at : at + m.MAX_ANSWERS])) for at in range(0, len(items), m.MAX_ANSWERS)]
    return merged
