"""The sender's half of a session: carries out what ``plan`` decides. Never dials.

Threads: ``scan`` offers, ``write`` takes jobs from the plan (it reads, hashes and sends), ``read`` puts
answers and receipts into the plan and touches no file. The caller's thread waits and reports.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

from ftx.errors import FtxError, Interrupted, PeerSilent, SourceChanged, SourceError, from_wire
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Pin, zero_digest, zeros
from ftx.storage import disk
from ftx.storage.source import Source
from ftx.transfer.actions import AnswerDigests, CheckSource, HashChunk, Job, Outcome, Say, SendChunk
from ftx.transfer.crew import Crew, Stop
from ftx.transfer.plan import Plan

TICK_S = 0.1
LEAVE_S = 1.0
LAST_WORD_S = 0.3


class SendSession:
    """One session of a sender.

    Args:
        lane: opened, the only one.
        plan: fresh.
        sources: what to send; each is tried ``MAX_OFFERS`` times if it keeps changing.
        on_outcome: called by the caller's thread for each source that ended.
        timeout_s: how long the peer may be silent.
    """

    def __init__(
        self,
        lane: Lane,
        plan: Plan,
        sources: Sequence[Source],
        on_outcome: Callable[[Source, Outcome | FtxError], None],
        timeout_s: float,
    ) -> None:
        self._lane = lane
        self.plan = plan
        self._on_outcome = on_outcome
        self._timeout_s = timeout_s
        self._to_offer: queue.SimpleQueue[Source | None] = queue.SimpleQueue()
        for source in sources:
            self._to_offer.put(source)
        self._first = len(sources)
        self._sources: dict[int, Source] = {}
        self._offers: dict[Source, int] = {}
        self._outcomes: queue.SimpleQueue[tuple[Source, Outcome | FtxError]] = queue.SimpleQueue()
        self._wake = threading.Condition()
        self._last_word: m.Error | None = None
        self._quiet = threading.Event()  # the writer has said its last
        self._buffer = memoryview(bytearray(0))

    def run(self, stop: Stop, on_tick: Callable[[], None]) -> None:
        """Send everything; returns after both have said BYE.

        Raises:
            FtxError: the cause of the session's end.
        """
        try:
            with Crew("ftx-send", LEAVE_S, self._unblock) as crew:
                crew.start("read", lambda: self._read(crew))
                crew.start("write", lambda: self._write(crew))
                crew.start("scan", lambda: self._scan(crew))
                try:
                    while not crew.wait(TICK_S):
                        stop.check()
                        self._check_alive()
                        self._report()
                        on_tick()
                except FtxError as error:
                    self._leave(error)
                    raise
                finally:
                    self._to_offer.put(None)
        finally:
            self._report()  # only now: a receipt may have come while the others left
            on_tick()

    def unfinished(self) -> Iterator[tuple[Source, int, int, int | None]]:
        """After a session that broke: each source that was under way, bytes sent of it, bytes held and missing."""
        for entry_id, source in self._sources.items():
            yield source, *self.plan.moved(entry_id), self.plan.missing(entry_id)

    def _check_alive(self) -> None:
        if self._lane.silent_s > self._timeout_s:
            raise PeerSilent(f"the receiver has been silent for {self._timeout_s:g} s")

    def _report(self) -> None:
        while True:
            try:
                self._on_outcome(*self._outcomes.get_nowait())
            except queue.Empty:
                return

    def _unblock(self) -> None:
        """Wake every thread of a session that is over."""
        self._lane.shutdown()
        with self._wake:
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

    def _scan(self, crew: Crew) -> None:
        first = self._first
        if not first:
            self._done_scanning()
        while (source := self._to_offer.get()) is not None and not crew.stopped:
            self._offer(source, crew)
            if first:
                first -= 1
                if not first:
                    self._done_scanning()

    def _done_scanning(self) -> None:
        with self._wake:
            self.plan.folder_end(m.FolderEnd(b"", 0, 0, 0))
            self.plan.scan_done()
            self._wake.notify_all()

    def _offer(self, source: Source, crew: Crew) -> None:
        again = self._offers.get(source, 0)
        self._offers[source] = again + 1
        try:
            if again:
                source.pin()
            holes = source.holes()
        except SourceError as error:
            self._outcomes.put((source, error))
        except OSError as error:
            self._outcomes.put((source, SourceError(f"{disk.show(source.path)}: {error.strerror}")))
        else:
            with self._wake:
                while self.plan.room() < 1 and not crew.stopped:
                    self._wake.wait(TICK_S)
                (entry_id,) = self.plan.offer(b"", [(source.offered, holes, source.digests)])
                self._sources[entry_id] = source
        with self._wake:
            if again:
                self.plan.offered_again()
            self._wake.notify_all()

    # --- read ---

    def _read(self, crew: Crew) -> None:
        """Put what the receiver says into the plan."""
        while not self.plan.finished:
            message, _ = self._lane.receive()
            if isinstance(message, m.Error):
                raise from_wire(message.code, message.message)
            ended = self.plan.receive(message)
            with self._wake:
                for outcome in ended:
                    source = self._sources.pop(outcome.entry.id)
                    if outcome.state == "withdrawn":
                        self._to_offer.put(source)
                    else:
                        self._outcomes.put((source, outcome))
                self._wake.notify_all()
        crew.end()

    # --- write ---

    def _write(self, crew: Crew) -> None:
        """Take jobs from the plan until there are no more."""
        try:
            while not self.plan.finished:
                with self._wake:
                    if crew.stopped or self._last_word is not None:
                        break
                    job = self.plan.next(control=True, bulk=True)
                    if job is None:
                        self._wake.wait(m.PING_S)
                        if time.monotonic() - self._lane.last_sent_s < m.PING_S:
                            continue
                        job = Say(m.Ping())
                self._do(job)
            if self._last_word is not None:
                self._lane.send(self._last_word)
        finally:
            self._quiet.set()

    def _do(self, job: Job) -> None:
        match job:
            case Say():
                if not (isinstance(job.message, m.Ping) and self.plan.said_bye):
                    self._lane.send(job.message)
                return
            case SendChunk() | HashChunk() | AnswerDigests() | CheckSource():
                with self._wake:
                    source = self._sources.get(job.entry)
                if source is None:
                    return  # the receiver ended the entry meanwhile
                try:
                    self._do_with(source, job)
                except SourceError as error:
                    self._source_failed(source, job.entry, error)
            case _:
                assert_never(job)
        self._keep_alive()

    def _keep_alive(self) -> None:
        """Reading alone may take long."""
        if time.monotonic() - self._lane.last_sent_s > m.PING_S:
            self._lane.send(m.Ping())

    def _do_with(self, source: Source, job: SendChunk | HashChunk | AnswerDigests | CheckSource) -> None:
        plan = self.plan
        if len(self._buffer) < source.grid.chunk:
            self._buffer = memoryview(bytearray(source.grid.chunk))
        match job:
            case SendChunk():
                payload, digest = self._read_chunk(source, job.entry, job.index)
                length = len(payload)
                # Equal digests only make it likely: what is not sent must be known to be zeros (G4).
                is_zero = digest == zero_digest(source.digests.name, length) and payload == zeros(length)
                # Counted before it is sent: its receipt may be here before the call that sends it returns.
                plan.chunk_sent(job.entry, job.index, zeros=is_zero)
                if is_zero:
                    self._lane.send(m.Zeros(job.entry, (m.Range(job.index, 1),)))
                else:
                    transit = digest
                    if source.digests.name is not DigestName.XXH3_128:
                        transit = DigestName.XXH3_128.function(payload)
                    self._lane.send_data(m.Data(job.entry, job.index, transit, length), payload)
            case HashChunk():
                self._read_chunk(source, job.entry, job.index)
                plan.job_over(job.entry)
            case AnswerDigests():
                answer = bytearray()
                for index in range(job.first, job.stop):
                    payload, _ = self._read_chunk(source, job.entry, index)
                    answer += job.digest.function(payload)
                    self._keep_alive()
                self._lane.send(m.Digests(job.entry, job.digest, job.first, bytes(answer)))
                plan.job_over(job.entry)
            case CheckSource():
                if not plan.checked(job.entry, pin := source.check()):
                    assert pin is Pin.CHANGED
                    raise SourceChanged(f"{disk.show(source.path)}: it changed while it was being sent")
            case _:
                assert_never(job)

    def _read_chunk(self, source: Source, entry_id: int, index: int) -> tuple[memoryview, bytes]:
        """A chunk and its digest, noted in the plan."""
        payload = source.read(index, self._buffer)
        digest = source.digests.name.function(payload)
        self.plan.chunk_read(entry_id, index, digest)
        return payload, digest

    def _source_failed(self, source: Source, entry_id: int, error: SourceError) -> None:
        if isinstance(error, SourceChanged) and self._offers[source] < m.MAX_OFFERS:
            self.plan.cancel(entry_id, m.WITHDRAWN, str(error))
        else:
            self.plan.cancel(entry_id, error.wire, str(error))
