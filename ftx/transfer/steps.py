"""The sender's half of a session that measures, step by step. Never dials. Twin of ``measure``.

A step sends what nothing on the way can compress or has seen before, for a few seconds. What counts is what the
receiver says that it has verified, by its own clock.

Threads: ``write``, one for each lane, ``read`` for what the receiver says. The caller's thread leads.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ftx.errors import FtxError, PeerSilent, ProtocolError, from_wire
from ftx.net import tcp
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol.manifest import MIN_CHUNK, DigestName, zeros
from ftx.protocol.messages import Type
from ftx.protocol.session import Measuring, next_measuring
from ftx.transfer import events
from ftx.transfer.call import Join
from ftx.transfer.crew import Crew, Stop
from ftx.transfer.laps import Laps
from ftx.transfer.verdict import Figures

TICK_S = 0.05
LEAVE_S = 0.5
LAST_WORD_S = 0.2
#: Before what is measured a step comes up to speed for this part of its time.
WARM = 0.5
#: A chunk is as long as a lane needs some time for: so a slow one tells how it goes, too.
LEAST_CHUNK = 64 * 1024
SHORT_S, LONG_S = 0.02, 0.2

_XXH3 = DigestName.XXH3_128.function


def data_lanes(lanes: int) -> int:
    """How many lanes of a session carry data: as in a transfer all but the first, unless that is alone."""
    return max(1, lanes - 1)


def next_lanes(lanes: int, most: int) -> int | None:
    """How many lanes come next: twice as many that carry data, as far as there are."""
    more = min(2 * data_lanes(lanes) + 1, most)
    return more if data_lanes(more) > data_lanes(lanes) else None


class _Counted(NamedTuple):
    """What this side has counted over all its lanes."""

    clock_ns: int
    processor_ns: int
    sent_again: int
    packets: int


class Noise:
    """Chunks that are all different and cannot be compressed: a key stream, which costs less than a copy does."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        key, start = secrets.token_bytes(16), secrets.token_bytes(16)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
        self._buffer = memoryview(bytearray(MIN_CHUNK))

    def chunk(self, length: int) -> memoryview:
        """The next; valid until the one behind it."""
        view = self._buffer[:length]
        self._stream.update_into(zeros(length), view)
        return view


class BenchSession:
    """One session that measures.

    Args:
        lane: opened, the first.
        join: makes the others.
        stop: asked now and then.
        timeout_s: how long the peer may be silent.
    """

    def __init__(self, lane: Lane, join: Join, stop: Stop, timeout_s: float) -> None:
        self._lane = lane
        self._lanes = [lane]
        self._join = join
        self._stop = stop
        self._timeout_s = timeout_s
        self._state = Measuring.IDLE
        self._number = 0
        self._wake = threading.Condition()  # covers what follows
        self._running: frozenset[Lane] = frozenset()  # lanes that send
        self._sending = 0  # lanes that have a chunk in hand
        self._sent = 0
        self._outbox: deque[m.Message] = deque()
        self._laps: list[Laps] = []
        self._said_bye = False
        self._last_word: m.Error | None = None
        self._quiet = threading.Event()
        self._answers: queue.SimpleQueue[m.Measured] = queue.SimpleQueue()
        self._crew = Crew("ftx-bench", LEAVE_S, self._unblock)

    def run(self, work: Callable[[], None]) -> None:
        """Do ``work``, which calls ``step``, and part in peace.

        Raises:
            FtxError: the cause of the session's end.
        """
        try:
            with self._crew as crew:
                crew.start("read", self._read)
                crew.start("write", lambda: self._write(self._lane))
                try:
                    work()
                    self._said_bye = True
                    self._say(m.Bye(0, 0, 0))
                    while not crew.wait(TICK_S):
                        self._check()
                except FtxError as error:
                    self._leave(error)
                    raise
        finally:
            for lane in self._lanes[1:]:
                lane.close()

    def step(self, lanes: int, seconds: float, *, disk: bool) -> tuple[Figures, events.Measured] | None:
        """Measure with so many lanes; None if there is no room at the receiver for what it would write."""
        self._join_up_to(lanes)
        begun = self._begin(m.StepFlags.DISK if disk else 0)
        if disk and not begun.room:
            return None
        self._run(self._lanes[lanes - data_lanes(lanes) : lanes])
        before = begun
        if not disk:
            self._pause(seconds * WARM)
            before = self._ask(m.Sample())
        ours = self._counted()
        self._pause(seconds)
        if not disk:
            after, counted = self._ask(m.Sample()), self._counted()
            self._run([])
        else:  # until all of it is on the disk
            counted = self._counted()
            self._run([])
            after = self._begin(0)
        return _measured(lanes, before, after, ours, counted, disk=disk, round_trip_s=self._lane.round_trip_s)

    def _begin(self, flags: int) -> m.Measured:
        self._number += 1
        return self._ask(m.Step(self._number, flags, self._sent))

    def _run(self, lanes: list[Lane]) -> None:
        """Have these lanes send, and no others; return when the others have sent what they had in hand."""
        with self._wake:
            self._running = frozenset(lanes)
            self._wake.notify_all()
        while not lanes and self._sending:
            self._pause(TICK_S / 10)

    def _join_up_to(self, lanes: int) -> None:
        while len(self._lanes) < lanes:
            number = len(self._lanes) + 1
            lane = self._join(number, self._check)
            with self._wake:
                self._lanes.append(lane)
            self._crew.start(f"write-{number}", lambda lane=lane: self._write(lane))  # type: ignore[misc]

    def _counted(self) -> _Counted:
        processor = sum(laps.processor_ns for laps in self._laps)
        seen = [one for lane in self._lanes if (one := tcp.seen(lane.sock)) is not None]
        again, sent = sum(one.repeated for one in seen), sum(one.segments for one in seen)
        return _Counted(time.monotonic_ns(), processor, again, sent)

    # --- waiting ---

    def _ask(self, question: m.Step | m.Sample) -> m.Measured:
        with self._wake:
            self._state = next_measuring(self._state, Type.STEP if isinstance(question, m.Step) else Type.SAMPLE)
        self._say(question)
        while True:
            self._check()
            try:
                return self._answers.get(timeout=TICK_S)
            except queue.Empty:
                continue

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._crew.wait(min(left, TICK_S))
            self._check()

    def _check(self) -> None:
        self._stop.check()
        self._crew.wait(0)
        if self._lane.silent_s > self._timeout_s:
            raise PeerSilent(f"the receiver has been silent for {self._timeout_s:g} s")

    def _unblock(self) -> None:
        with self._wake:
            for lane in self._lanes:
                lane.shutdown()
            self._wake.notify_all()

    def _leave(self, error: FtxError) -> None:
        """Tell the peer why, unless it knows or cannot hear (G11). It may have to hear it from the end of the lanes."""
        if error.wire == 0 or error.from_peer:
            return
        with self._wake:
            self._last_word = m.Error(error.wire, str(error))
            self._wake.notify_all()
        if self._quiet.wait(LAST_WORD_S):
            self._lane.drain(LAST_WORD_S)

    # --- read ---

    def _read(self) -> None:
        while True:
            message, _ = self._lane.receive()
            match message:
                case m.Measured():
                    with self._wake:
                        self._state = next_measuring(self._state, Type.MEASURED)
                    self._answers.put(message)
                case m.Error():
                    raise from_wire(message.code, message.message)
                case m.Bye():
                    if not self._said_bye:
                        raise ProtocolError("BYE from the receiver before ours")
                    self._crew.end()
                    return
                case _:
                    pass  # it is alive

    # --- write ---

    def _say(self, message: m.Message) -> None:
        with self._wake:
            self._outbox.append(message)
            self._wake.notify_all()

    def _write(self, lane: Lane) -> None:
        """What is to be said, on lane 1; else chunks, as long as this lane is to send."""
        control = lane is self._lane
        noise, length = Noise(), LEAST_CHUNK
        try:
            with Laps() as laps:
                with self._wake:
                    self._laps.append(laps)
                while True:
                    with self._wake:
                        messages = list(self._outbox) if control else []
                        if control:
                            self._outbox.clear()
                        last, over = self._last_word, self._crew.stopped
                        number = self._number
                        sends = lane in self._running and not messages and last is None and not over
                        self._sending += sends
                    if over or (last is not None and not control):
                        return
                    if last is not None:
                        lane.send(last)
                        return
                    if messages:
                        lane.send(*messages)
                    elif sends:
                        try:
                            length = self._send_chunk(lane, noise.chunk(length), number, laps)
                        finally:
                            with self._wake:
                                self._sending -= 1
                    else:
                        self._idle(lane, control=control)
                        laps.start()
        finally:
            if control:
                self._quiet.set()

    def _send_chunk(self, lane: Lane, payload: memoryview, number: int, laps: Laps) -> int:
        """Send it; how long the next one is to be."""
        began, length = time.monotonic(), len(payload)
        lane.queue_data(m.Data(number, 0, _XXH3(payload), length), payload)
        lane.flush()
        laps.network()
        with self._wake:
            self._sent += length
        took_s = time.monotonic() - began
        if took_s < SHORT_S:
            return min(2 * length, MIN_CHUNK)
        return max(length // 2, LEAST_CHUNK) if took_s > LONG_S else length

    def _idle(self, lane: Lane, *, control: bool) -> None:
        if time.monotonic() - lane.last_sent_s >= m.PING_S and not (control and self._said_bye):
            lane.send(m.Ping())
        with self._wake:
            if not (control and self._outbox) and lane not in self._running and self._last_word is None:
                self._wake.wait(m.PING_S)


def _measured(
    lanes: int, before: m.Measured, after: m.Measured, ours: _Counted, counted: _Counted, *, disk: bool,
    round_trip_s: float,
) -> tuple[Figures, events.Measured]:  # fmt: skip
    """What lies between two looks at either side."""
    carrying = data_lanes(lanes)
    moved, theirs_ns = after.bytes - before.bytes, max(1, after.clock_ns - before.clock_ns)
    packets = counted.packets - ours.packets

    def share(spent_ns: int, wall_ns: int) -> float:
        return round(min(1.0, max(0, spent_ns) / (max(1, wall_ns) * carrying)), 3)

    figures = Figures(
        lanes,
        moved / (theirs_ns / 1e9),
        sender_processor=share(counted.processor_ns - ours.processor_ns, counted.clock_ns - ours.clock_ns),
        receiver_processor=share(after.processor_ns - before.processor_ns, theirs_ns),
        receiver_disk=share(after.disk_ns - before.disk_ns, theirs_ns),
    )
    return figures, events.Measured(
        step="receiver_disk" if disk else "path",
        lanes=lanes,
        bytes=moved,
        seconds=round(theirs_ns / 1e9, 3),
        rate=round(figures.rate),
        round_trip_s=round_trip_s,
        sent_again=round((counted.sent_again - ours.sent_again) / packets, 5) if packets > 0 else None,
        sender_processor=figures.sender_processor,
        receiver_processor=figures.receiver_processor,
        receiver_waiting=share(after.waiting_ns - before.waiting_ns, theirs_ns),
        receiver_disk=figures.receiver_disk,
    )
