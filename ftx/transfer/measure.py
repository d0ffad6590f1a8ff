"""The receiver's half of a session that measures the path and its disk (``protocol.md``, "Measuring").

Nothing of it is kept: what arrives is verified and dropped, or written to a file without a name. What a peer can make
this side do is bounded: ``MEASURE_S`` seconds, and a file of ``MEASURE_BYTES``, within its rights, its quota and the
reserve (G8).

Threads: ``read``, one for each lane, ``sync``, and ``write``, which speaks on lane 1. The caller's thread waits.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque

from ftx.errors import (
    DestinationError,
    FtxError,
    IntegrityError,
    PeerSilent,
    ProtocolError,
    Refused,
    Superseded,
    from_wire,
)
from ftx.net.lane import Lane
from ftx.options import ReceiveOptions
from ftx.protocol import messages as m
from ftx.protocol.manifest import MIB, MIN_CHUNK, DigestName
from ftx.protocol.messages import Type
from ftx.protocol.session import Measuring, next_measuring
from ftx.storage import disk
from ftx.storage.partial import PartialStore
from ftx.storage.paths import Folder, components
from ftx.storage.trial import Trial
from ftx.transfer.crew import Crew
from ftx.transfer.laps import Laps
from ftx.transfer.limits import Limits

TICK_S = 0.1
SYNC_TICK_S = 0.02
LEAVE_S = 4.0
LAST_WORD_S = 0.5
#: A session that was superseded is a ghost, mostly, and its successor waits.
GHOST_S = 0.3
#: The file has this part of what is free at most: sessions that keep what they get have more right to it.
SHARE = 4

_XXH3 = DigestName.XXH3_128.function


class MeasureSession:
    """One session that measures.

    Args:
        lane: opened, the first.
        store: knows what is kept in reserve at the destination.
        limits: what the sender may do there.
        options: the receiver's.
        lanes: how many the sender gets.

    Attributes:
        bytes: of payload that was verified.
    """

    def __init__(self, lane: Lane, store: PartialStore, limits: Limits, options: ReceiveOptions, lanes: int) -> None:
        self.bytes = 0
        self._lane = lane
        self._lanes = {1: lane}
        self._granted = lanes
        self._store = store
        self._limits = limits
        self._fsync = options.fsync
        self._timeout_s = options.timeout_s
        self._state = Measuring.IDLE
        self._step = 0
        self._arrived = 0  # bytes whose DATA has come
        self._announced = 0  # bytes that come before the step that was begun last
        self._changed = threading.Condition()  # covers all of these
        self._laps: list[Laps] = []
        self._trial: Trial | None = None
        self._name = b".ftx trial " + secrets.token_hex(8).encode()  # for the account: no file can be called that
        self._busy = 0
        self._outbox: deque[m.Message] = deque()
        self._out = threading.Condition()
        self._last_word: m.Error | None = None
        self._quiet = threading.Event()
        self._over = False
        self._crew = Crew("ftx-measure", LEAVE_S, self._unblock)

    def run(self) -> None:
        """Measure until both have said BYE.

        Raises:
            FtxError: the cause of the session's end.
        """
        until_s = time.monotonic() + m.MEASURE_S
        try:
            with self._crew as crew:
                crew.start("read", lambda: self._read(self._lane))
                crew.start("sync", self._sync)
                crew.start("write", self._write)
                try:
                    while not crew.wait(TICK_S):
                        self._check_alive()
                        if time.monotonic() >= until_s:
                            raise Refused(f"nobody may measure for more than {m.MEASURE_S} s")
                    self._quiet.wait(LAST_WORD_S)
                    self._lane.drain(m.DRAIN_S)
                except FtxError as error:
                    self._leave(error)
                    raise
        finally:
            self._drop_file()

    def attach(self, lane: Lane, number: int) -> None:
        """Take a further lane into the session and read it to its end, in the calling thread.

        Raises:
            Refused: the session has not granted it, or has it already.
        """
        with self._changed:
            if not 2 <= number <= self._granted or number in self._lanes or self._over:
                raise Refused(f"lane {number} is not to be had")
            self._lanes[number] = lane
        lane.send(m.Attached())
        lane.order.opened(m.Role.RECEIVER, m.Mode.MEASURE)
        lane.deadline_s = None
        self._crew.run(f"read-{number}", lambda: self._read(lane))

    def stop(self, error: FtxError) -> None:
        """End the session from another thread, for this reason: superseded, or the receiver leaves."""
        self._crew.fail(error)

    def _check_alive(self) -> None:
        with self._changed:
            lanes = list(self._lanes.values())
        if min(lane.silent_s for lane in lanes) > self._timeout_s:
            raise PeerSilent(f"the sender has been silent for {self._timeout_s:g} s")

    def _unblock(self) -> None:
        with self._changed:
            self._over = True
            for lane in self._lanes.values():
                lane.shutdown()
            self._changed.notify_all()
        with self._out:
            self._out.notify_all()

    def _leave(self, error: FtxError) -> None:
        """Tell the peer why, unless it knows or cannot hear, and give it time to hear it (G11)."""
        if error.wire == 0 or error.from_peer:
            return
        with self._out:
            self._last_word = m.Error(error.wire, str(error))
            self._out.notify_all()
        if self._quiet.wait(LAST_WORD_S):
            self._lane.drain(GHOST_S if isinstance(error, Superseded) else m.DRAIN_S)

    # --- read ---

    def _read(self, lane: Lane) -> None:
        buffer = memoryview(bytearray(MIN_CHUNK))
        with Laps() as laps:
            with self._changed:
                self._laps.append(laps)
            while True:
                message, _ = lane.receive()
                match message:
                    case m.Data():
                        self._take(lane, message, buffer, laps)
                        continue
                    case m.Step():
                        self._begin(message, laps)
                    case m.Sample():
                        self._sample()
                    case m.Error():
                        raise from_wire(message.code, message.message)
                    case m.Bye():
                        if message != m.Bye(0, 0, 0):
                            raise ProtocolError("BYE counts entries where none were offered")
                        self._crew.end()  # before the answer: whoever has it may close any lane
                        self._say(message)
                        return
                    case _:
                        pass  # a PING: the lane was idle
                laps.start()

    def _take(self, lane: Lane, data: m.Data, buffer: memoryview, laps: Laps) -> None:
        """Verify a chunk, and write it if this step does."""
        with self._changed:
            self._state = next_measuring(self._state, Type.DATA)
            self._arrived += data.length
            late = self._state is Measuring.BEGINNING and self._arrived > self._announced
            if late or data.entry != self._step or not 1 <= data.length <= MIN_CHUNK or data.compressed:
                raise ProtocolError(f"DATA of {data.length} bytes for step {data.entry} makes no sense here")
            trial = self._trial
        payload = lane.payload(data.length, buffer)
        laps.network()
        if _XXH3(payload) != data.digest:
            raise IntegrityError("bytes arrived damaged, which TCP has not noticed")
        laps.work()
        if trial is not None:
            with disk.destination_errors(self._limits.folder):
                self._store.check_reserve()
                trial.append(payload)
            laps.disk()
        with self._changed:
            self.bytes += data.length
            self._changed.notify_all()

    def _begin(self, step: m.Step, laps: Laps) -> None:
        """The next step, when all of the one before is here, and on the disk."""
        with self._changed:
            self._state = next_measuring(self._state, Type.STEP)
            if step.number <= self._step or step.bytes < self._arrived:
                raise ProtocolError(f"step {step.number} behind {step.bytes} bytes makes no sense here")
            self._announced = step.bytes
            self._changed.wait_for(lambda: self._over or self.bytes >= step.bytes)
            if self._over:
                return
        laps.start()
        if (trial := self._trial) is not None:
            with disk.destination_errors(self._limits.folder):
                trial.sync()
            self._drop_file()
            laps.disk()
        room = self._make_file() if step.flags & m.StepFlags.DISK else 0
        with self._changed:
            self._step = step.number
            self._answer(room)

    def _sample(self) -> None:
        with self._changed:
            self._state = next_measuring(self._state, Type.SAMPLE)
            self._answer(self._trial.size if self._trial is not None else 0)

    def _answer(self, room: int) -> None:
        self._state = next_measuring(self._state, Type.MEASURED)
        times = [(laps.waiting_ns, laps.processor_ns, laps.disk_ns) for laps in self._laps]
        self._say(m.Measured(room, time.monotonic_ns(), self.bytes, *map(sum, zip(*times, strict=True))))

    # --- the file ---

    def _make_file(self) -> int:
        """Begin a file; bytes that it may have, 0 if there is no room for one.

        Raises:
            DestinationError: nobody can write there.
        """
        with disk.destination_errors(self._limits.folder), self._folder() as folder:
            room = self._room(folder.fd)
            if room:
                try:
                    self._trial = Trial(folder.fd, room, durable=self._fsync)
                except BaseException:
                    self._let_go()
                    raise
        return room

    def _folder(self) -> Folder:
        """Where files would go, as far as it is there: nothing is made, and no mode is changed (G6)."""
        root, parts = self._limits.root.keeping(math.inf), components(self._limits.folder)
        while True:
            try:
                return root.folder(parts)
            except FileNotFoundError:
                parts = parts[:-1]

    def _room(self, fd: int) -> int:
        """Bytes for the file: of the whole MiB that the largest file, the disk and the quota leave."""
        room = min(m.MEASURE_BYTES, self._limits.max_size, self._store.spare(fd) // SHARE) // MIB * MIB
        account = self._limits.account
        while room > 0 and account is not None:
            try:
                account.grant(self._name, room)
                break
            except DestinationError:
                room = room // 2 // MIB * MIB
        return max(0, room)

    def _drop_file(self) -> None:
        """It was never anybody's but this session's."""
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.close()
            self._let_go()

    def _let_go(self) -> None:
        if self._limits.account is not None:
            self._limits.account.end(self._name)

    def _sync(self) -> None:
        """As a transfer does: what was written goes to the disk while more arrives (G5)."""
        while not self._crew.stopped:
            trial = self._trial
            if trial is None or not trial.due:
                time.sleep(SYNC_TICK_S)
                continue
            with disk.destination_errors(self._limits.folder):
                trial.sync()
            self._busy += 1

    # --- write ---

    def _say(self, message: m.Message) -> None:
        with self._out:
            self._outbox.append(message)
            self._out.notify_all()

    def _write(self) -> None:
        """Send answers as they come, and signs of life."""
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
                    self._lane.send(m.Busy(self._busy) if self._trial is not None else m.Ping())
        finally:
            self._quiet.set()
