"""The sender's half of a session: carries out what ``plan`` decides. Never dials.

Threads: ``scan`` offers what the feed gives, ``write`` takes jobs from the plan (it reads, hashes and sends), one
for each lane, ``read`` puts answers and receipts into the plan and touches no file. The caller's thread waits and
reports.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import compress as chosen
from typing import assert_never

from ftx.errors import (
    FtxError,
    Interrupted,
    Leaving,
    LinkLost,
    NetworkError,
    PeerSilent,
    ProtocolError,
    SourceChanged,
    SourceError,
    from_wire,
)
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Pin, root_of_one, zero_digest, zeros
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk
from ftx.storage.scan import FolderRead, Found, Odd
from ftx.storage.source import Source
from ftx.transfer.actions import SMALL, AnswerDigests, CheckSource, HashChunk, Job, Outcome, Say, SendChunk, SendSmall
from ftx.transfer.call import Join
from ftx.transfer.compress import Compressor
from ftx.transfer.crew import Crew, Stop
from ftx.transfer.feed import Feed, Item
from ftx.transfer.lanes import Tuner
from ftx.transfer.offers import Offers
from ftx.transfer.plan import SMALL_STEP, Offer, Plan

log = logging.getLogger("ftx.send")

TICK_S = 0.1
UNTOLD_S = 0.01
LEAVE_S = 1.0
LAST_WORD_S = 0.3
#: Entries are offered so many at a time, if there are as many: a batch of one for every receipt would cost more.
BATCH_LEAST = 32
BATCH_SHARE = 4  #: or this part of the window, if that is more
#: Ended entries that wait to be reported; at more, answers are not read until somebody looks (G8).
MAX_UNTOLD = 4096


class SendSession:
    """One session of a sender.

    Args:
        lane: opened, the first.
        lanes: how many there are at first.
        join: makes the others.
        tuner: says when there are to be more.
        plan: fresh.
        feed: what to send; each source is tried ``MAX_OFFERS`` times if it keeps changing.
        on_outcome: called by the caller's thread for each source that ended, and for what is not sent at all.
        timeout_s: how long the peer may be silent.
        compress: the receiver takes compressed chunks, and may get some.
    """

    def __init__(
        self,
        lane: Lane,
        lanes: int,
        join: Join,
        tuner: Tuner,
        plan: Plan,
        feed: Feed,
        on_outcome: Callable[[Item | Odd, Outcome | None], None],
        timeout_s: float,
        *,
        compress: bool = False,
    ) -> None:
        self._lane = lane
        self._lanes = [lane]
        self._at_first = self._begun = lanes
        self._tuned_s = 0.0
        self._join = join
        self._tuner = tuner
        self.plan = plan
        self._batch_least = max(BATCH_LEAST, plan.window // BATCH_SHARE)
        self._feed = feed
        self._on_outcome = on_outcome
        self._timeout_s = timeout_s
        self._compress = compress
        self._compressors: list[Compressor] = []
        self._offers = Offers(plan)
        self._outcomes: deque[tuple[Item | Odd, Outcome | None]] = deque()
        self._wake = threading.Condition()  # covers the offers, too; never held while anything is waited for
        self._last_word: m.Error | None = None
        self._quiet = threading.Event()  # lane 1's writer has said its last
        self._crew = Crew("ftx-send", LEAVE_S, self._unblock)

    def run(self, stop: Stop, on_tick: Callable[[], None]) -> None:
        """Send everything; returns after both have said BYE.

        Raises:
            FtxError: the cause of the session's end.
        """
        try:
            with self._crew as crew:
                crew.start("read", self._read)
                crew.start("write", lambda: self._write(self._lane))
                for number in range(2, self._at_first + 1):
                    self._begin_lane(number)
                crew.start("scan", self._scan)
                try:
                    while not crew.wait(TICK_S):
                        stop.check()
                        self._check_alive()
                        self._tune()
                        self._report()
                        on_tick()
                except FtxError as error:
                    self._leave(error)
                    raise
        finally:
            self._keep_unfinished()
            self._report()  # only now: a receipt may have come while the others left
            on_tick()
            for lane in self._lanes[1:]:
                lane.close()

    @property
    def saved(self) -> int:
        """Bytes that did not have to travel because chunks were compressed."""
        return sum(compressor.saved for compressor in self._compressors)

    def compressor(self, lane: Lane) -> Compressor | None:
        """What compresses a lane's chunks, where that is wanted."""
        if not (self._compress and lane.zstd):
            return None
        made = Compressor(lane, max(1, self._begun - 1))
        self._compressors.append(made)
        return made

    def _tune(self) -> None:
        """A few times a second, however often there is something to report."""
        now_s = time.monotonic()
        if now_s < self._tuned_s + TICK_S:
            return
        self._tuned_s = now_s
        with self._wake:
            lanes = tuple(self._lanes)
        for _ in range(self._tuner.look(now_s, lanes)):
            self._begun += 1
            try:
                self._begin_lane(self._begun)
            except Leaving as error:
                log.debug("! %s", error)
                return

    def _begin_lane(self, number: int) -> None:
        self._crew.start(f"write-{number}", lambda: self._write_bulk(number))

    def _keep_unfinished(self) -> None:
        """What was under way is offered again in the next session."""
        # A thread that is stuck at a slow disk finds out that it is late, and offers and reports nothing any more.
        with self._wake:
            unfinished = self._offers.close()
        self._feed.put_back(unfinished)
        for item in unfinished:
            item.source.rest()

    def _check_alive(self) -> None:
        if self._lane.silent_s > self._timeout_s:
            raise PeerSilent(f"the receiver has been silent for {self._timeout_s:g} s")

    def _check_going_on(self) -> None:
        if self._crew.stopped:
            raise LinkLost("the session is over")

    def _report(self) -> None:
        while self._outcomes:
            self._on_outcome(*self._outcomes.popleft())

    def _tell(self, item: Item | Odd, outcome: Outcome | None = None) -> None:
        """Have it reported by the caller's thread. Never waits: an outcome must not be lost when the session ends."""
        self._outcomes.append((item, outcome))

    def _let_tell(self) -> None:
        """Before anything more can end: wait for the caller's thread if it has fallen far behind (G8)."""
        if len(self._outcomes) >= MAX_UNTOLD // 4:
            self._crew.wake()
        while len(self._outcomes) >= MAX_UNTOLD:
            self._check_going_on()
            time.sleep(UNTOLD_S)

    def _unblock(self) -> None:
        """Wake every thread of a session that is over."""
        with self._wake:
            for lane in self._lanes:
                lane.shutdown()
            self._wake.notify_all()

    def _leave(self, error: FtxError) -> None:
        """Tell the peer why, unless it knows or cannot hear (G11)."""
        if error.wire == 0 or error.from_peer:
            return
        with self._wake:
            self._last_word = m.Error(error.wire, str(error))
            self._wake.notify_all()
        if self._quiet.wait(LAST_WORD_S):
            # Whoever is told to leave leaves soon; the peer may then hear it from its reader or not at all.
            self._lane.drain(LAST_WORD_S if isinstance(error, Interrupted) else m.DRAIN_S)

    # --- scan ---

    def _scan(self) -> None:
        """Offer what there is, folder by folder, as the window allows; and anew what has changed meanwhile."""
        at_end = False
        while (room := self._wait_for_room(at_end=at_end)) > 0:
            with self._wake:
                again = self._offers.again()
            if again is not None:
                self._offer([again])
                continue
            self._let_tell()
            match self._feed.take(room, self._have):
                case None if self._offers.closed:
                    return
                case None:
                    at_end = True
                    with self._wake:
                        self.plan.scan_done()
                        self._wake.notify_all()
                case FolderRead(path, whole):
                    self._say(m.FolderEnd(path, m.FolderFlags.WHOLE if whole else 0))
                case Odd():
                    pass  # told already
                case list() as items:
                    self._offer(items)

    def _have(self, found: list[Item] | Found) -> bool:
        """Take over what the feed found; False if this session is over, and it is the next one's."""
        with self._wake:
            if not self._offers.have(found if isinstance(found, list) else ()):
                return False
            if isinstance(found, Odd):
                self._tell(found)
            return True

    def _wait_for_room(self, *, at_end: bool) -> int:
        """How many entries may be offered now, once that is worth while; 0 when the session is over."""
        with self._wake:
            while not self._crew.stopped:
                room = 0 if self._lane.indebted else self.plan.room()
                if room and self._offers.again() is not None:
                    return room
                if not at_end and room >= self._batch_least:
                    return room
                self._wake.wait(TICK_S)
        return 0

    def _offer(self, items: Sequence[Item]) -> None:
        """Offer these, each as it is now. What cannot be read has failed."""
        ready: list[tuple[Item, Source, Offer]] = []
        failed: list[tuple[Item, Outcome]] = []
        looked_at: list[Source] = []
        for item in items:
            source = item.source
            try:
                if item.stale:
                    source = source.renewed()
                offered = source.offered
                if offered.size <= SMALL:
                    ready.append((item, source, (offered, None, None)))
                    continue
                looked_at.append(source)
                ready.append((item, source, (offered, source.holes(), source.digests)))
            except SourceError as error:
                source.rest()
                entry = source.offered.entry(0, source.folder)
                failed.append((item, Outcome(entry, "failed", error.wire, str(error))))
        with self._wake:
            in_time = self._offers.offer(items, ready)
            for item, outcome in failed if in_time else ():
                self._tell(item, outcome)
            self._wake.notify_all()
        for source in () if in_time else looked_at:
            source.rest()

    def _say(self, message: m.Message) -> None:
        """Have lane 1 send it."""
        with self._wake:
            self.plan.say(message)
            self._wake.notify_all()

    # --- read ---

    def _read(self) -> None:
        """Put what the receiver says into the plan."""
        while not self.plan.finished:
            self._let_tell()
            message, _ = self._lane.receive()
            if isinstance(message, m.Error):
                raise from_wire(message.code, message.message)
            with self._wake:
                ended = self._offers.receive(message)
                self._outcomes.extend(ended)
                self._wake.notify_all()
            for item, _ in ended:
                item.source.rest()
        self._crew.end()

    # --- write ---

    def _write(self, lane: Lane) -> None:
        """Lane 1: control frames, and chunks as long as no other lane takes them."""
        try:
            self._work(lane)
            if self._last_word is not None:
                lane.send(self._last_word)
        finally:
            self._quiet.set()

    def _write_bulk(self, number: int) -> None:
        try:
            lane = self._join(number, self._check_going_on)
        except (NetworkError, ProtocolError) as error:
            if number <= self._at_first:
                raise
            log.debug("! lane %d did not come about: %s", number, error)
            return  # it would only have been faster
        with self._wake:
            self._lanes.append(lane)
            if self._crew.stopped:
                lane.shutdown()
        self._work(lane)

    def _work(self, lane: Lane) -> None:
        """Take jobs from the plan until there are no more; what is small goes out together."""
        writer = _Writer(lane, self, control=lane is self._lane)
        while not self._over:
            job = self._next(writer)
            if job is None:
                lane.flush()
                with self._wake:
                    job = self._next(writer)  # under the lock, so that no call to wake is lost
                    if job is None and not self._over:
                        self._wake.wait(m.PING_S)
            if job is not None:
                writer.do(job)
            elif time.monotonic() - lane.last_sent_s >= m.PING_S and not self.plan.said_bye:
                lane.send(m.Ping())

    @property
    def _over(self) -> bool:
        """There is nothing more to do for a writer."""
        return self.plan.finished or self._crew.stopped or self._last_word is not None

    def _next(self, writer: _Writer) -> Job | None:
        # At a low rate a chunk is long on its way: one on lane 1, before the others have joined, would keep all else.
        lanes = len(self._lanes) if self._lane.pace is None else self._at_first
        return self.plan.next(control=writer.control, bulk=not writer.control or lanes == 1)

    def sources(self, entry_ids: Sequence[int]) -> list[Source | None]:
        """What was offered as these entries; None for one that the receiver has ended meanwhile."""
        with self._wake:
            return [self._offers.source(entry_id) for entry_id in entry_ids]

    def said(self) -> None:
        """There may be something for another lane's writer to do."""
        with self._wake:
            self._wake.notify_all()

    def failed(self, entry_id: int, error: SourceError) -> None:
        """A source failed while it was read."""
        with self._wake:
            self._offers.failed(entry_id, error)
            self._wake.notify_all()


class _Writer:
    """Carries out the jobs of one lane.

    Attributes:
        control: it is lane 1.
    """

    def __init__(self, lane: Lane, session: SendSession, *, control: bool) -> None:
        self.control = control
        self._lane = lane
        self._session = session
        self._plan = session.plan
        self._compressor = session.compressor(lane)
        self._buffer = memoryview(bytearray(0))

    def do(self, job: Job) -> None:
        if isinstance(job, Say):
            self._lane.queue(job.message)
            return
        if isinstance(job, SendSmall):
            self._send_small(job)
            return
        (source,) = self._session.sources([job.entry])
        if source is None:
            return
        try:
            self._do_with(source, job)
        except SourceError as error:
            self._session.failed(job.entry, error)
        if self._session.sources([job.entry]) == [None]:
            source.rest()  # it has ended meanwhile, and nobody else will let go of it

    def _say(self, message: m.Message) -> None:
        """Control frames go on lane 1, whichever lane's work they come from."""
        if self.control:
            self._lane.queue(message)
        else:
            self._plan.say(message)
            self._session.said()

    def _keep_alive(self) -> None:
        """Reading alone may take long."""
        if time.monotonic() - self._lane.last_sent_s >= m.PING_S:
            self._lane.send(m.Ping())

    def _do_with(self, source: Source, job: SendChunk | HashChunk | AnswerDigests | CheckSource) -> None:
        plan = self._plan
        if len(self._buffer) < source.grid.chunk:
            self._buffer = memoryview(bytearray(source.grid.chunk))
        match job:
            case SendChunk():
                self._send_chunk(source, job)
            case HashChunk():
                self._lane.flush()
                self._read_chunk(source, job.entry, job.index)
                plan.job_over(job.entry)
                self._keep_alive()
            case AnswerDigests():
                self._lane.flush()
                answer = bytearray()
                for index in range(job.first, job.stop):
                    payload, _ = self._read_chunk(source, job.entry, index)
                    answer += job.digest.function(payload)
                    self._keep_alive()
                self._say(m.Digests(job.entry, job.digest, job.first, bytes(answer)))
                plan.job_over(job.entry)
            case CheckSource():
                self._keep_alive()
                pin = source.check()
                holes = source.holes() if pin is Pin.REREAD else RangeSet()
                source.rest()
                if not plan.checked(job.entry, pin, holes):
                    assert pin is Pin.CHANGED
                    raise SourceChanged(f"{disk.show(source.path)}: it changed while it was being sent")
                if not self.control:
                    self._session.said()  # FINISH waits for lane 1
            case _:
                assert_never(job)

    def _send_small(self, job: SendSmall) -> None:
        if len(self._buffer) < SMALL_STEP * SMALL:
            self._buffer = memoryview(bytearray(SMALL_STEP * SMALL))
        if self._compressor is not None:
            self._compressor.begin()
        function = self._plan.digest.function
        begun = self._plan.small_begun(job.entries)
        read: list[tuple[int, bytes, memoryview]] = []
        at = 0
        for entry_id, source in zip(begun, self._session.sources(begun), strict=True):
            if source is None:
                continue
            try:
                payload = source.read_small(self._buffer[at:])
            except SourceError as error:
                self._session.failed(entry_id, error)
                continue
            at += len(payload)
            read.append((entry_id, function(payload) if payload else b"", payload))
            if time.monotonic() - self._lane.last_sent_s >= m.PING_S:  # nothing must wait for a slow disk
                self._queue_small(read)
                self._keep_alive()
                read = []
        self._queue_small(read)
        if self._compressor is not None:
            self._compressor.sent(at)

    def _queue_small(self, read: Sequence[tuple[int, bytes, memoryview]]) -> None:
        """Send small files that were read, with their FINISH: (entry, digest, contents)."""
        name, compressor = self._plan.digest, self._compressor
        compress = compressor.compress if compressor is not None and compressor.on else None
        # Noted before it is sent: its receipt may be here before the call that sends it returns.
        wanted = self._plan.small_read([(entry_id, digest) for entry_id, digest, _ in read])
        for entry_id, digest, payload in chosen(read, wanted):
            if not payload:
                self._say(m.Finish(entry_id, root_of_one(name, b"", 0)))
                continue
            transit = digest if name is DigestName.XXH3_128 else DigestName.XXH3_128.function(payload)
            if compress is not None and (less := compress(payload)) is not None:
                self._lane.queue_data(m.Data(entry_id, 0, transit, len(less), final=True, compressed=True), less)
            else:
                self._lane.queue_data(m.Data(entry_id, 0, transit, len(payload), final=True), payload)

    def _send_chunk(self, source: Source, job: SendChunk) -> None:
        compressor = self._compressor
        if compressor is not None:
            compressor.begin()
        payload, digest = self._read_chunk(source, job.entry, job.index)
        length, name = len(payload), self._plan.digest
        # Equal digests only make it likely: what is not sent must be known to be zeros (G4).
        is_zero = not payload[0] and digest == zero_digest(name, length) and payload == zeros(length)
        # Counted before it is sent: its receipt may be here before the call that sends it returns.
        self._plan.chunk_sent(job.entry, job.index, zeros=is_zero)
        if is_zero:
            self._say(m.Zeros(job.entry, (m.Range(job.index, 1),)))
            return
        transit = digest if name is DigestName.XXH3_128 else DigestName.XXH3_128.function(payload)
        if compressor is not None and compressor.on and (less := compressor.compress(payload)) is not None:
            self._lane.queue_data(m.Data(job.entry, job.index, transit, len(less), compressed=True), less)
        else:
            self._lane.queue_data(m.Data(job.entry, job.index, transit, length), payload)
        if compressor is not None:
            compressor.sent(length)

    def _read_chunk(self, source: Source, entry_id: int, index: int) -> tuple[memoryview, bytes]:
        """A chunk and its digest, noted in the plan."""
        payload = source.read(index, self._buffer)
        digest = self._plan.digest.function(payload)
        self._plan.chunk_read(entry_id, index, digest)
        return payload, digest
