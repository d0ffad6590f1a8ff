"""Measures the path to a receiver with the lanes of a transfer: without a disk, with the receiver's, and then ours.

Each step has more lanes than the one before, until more bring nothing.
"""

from __future__ import annotations

import os
import queue
import secrets
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import ftx
from ftx.errors import FtxError, Interrupted, NotPaired, SourceError, Unproven
from ftx.net.lane import Lane
from ftx.options import BenchOptions
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.manifest import MIB, MIN_CHUNK, DigestName
from ftx.protocol.messages import Mode, Role
from ftx.storage import disk
from ftx.storage.trial import Trial
from ftx.transfer import events
from ftx.transfer.call import Caller, Confirm, Join
from ftx.transfer.crew import Crew, Stop
from ftx.transfer.steps import BenchSession, Noise, data_lanes, next_lanes
from ftx.transfer.verdict import Figures, fewest, judge, more_help

if TYPE_CHECKING:
    from ftx.transfer.pairing import Code

TICK_S = 0.05
LEAVE_S = 0.5
#: What the sender's disk is measured with, and for how long that is written at most.
TRIAL_BYTES = 256 * MIB
TRIAL_S = 1.5
#: A job is known by its source arguments, which are absolute paths, and what for. This is none of them.
JOB = b"bench"

_XXH3 = DigestName.XXH3_128.function


class BenchRun:
    """One call of ``ftx bench``."""

    def __init__(
        self, options: BenchOptions, emit: events.OnEvent, stop: Stop, confirm: Confirm | None, code: Code | None
    ) -> None:
        self._options = options
        self._emit = emit
        self._stop = stop
        self._caller = Caller(options, emit, stop, confirm, code)
        self._established = False
        self._round_trip_s = 0.0  # while nothing else moved
        self._path: list[Figures] = []
        self._disk: list[Figures] = []
        self._source: float | None = None

    def run(self) -> events.BenchFinished:
        """Measure everything; the last event."""
        started = time.monotonic()
        self._emit(events.Start(ftx.__version__, m.PROTOCOL_VERSION, "bench"))
        code, message = 0, ""
        try:
            self._caller.prepare()
            self._session()
            self._own_disk()
        except Interrupted as error:
            code, message = error.exit_code, f"{error}. Nothing is left on either side."
        except FtxError as error:
            code, message = error.exit_code, self._caller.explain(error, established=self._established)
        seconds = time.monotonic() - started - self._caller.asked_s
        if code:
            finished = events.BenchFinished(code, message, seconds=seconds)
        else:
            verdict = judge(self._path, self._disk, self._source)
            finished = events.BenchFinished(
                code,
                message,
                seconds=seconds,
                limit=verdict.limit.value,
                rate=round(verdict.rate),
                lanes=verdict.lanes,
                one_lane=round(self._path[0].rate),
                path=round(fewest(self._path).rate),
                more_help=more_help(self._path),
                round_trip_s=self._round_trip_s,
            )
        self._emit(finished)
        return finished

    def _session(self) -> None:
        """The session that measures; again if the two had to be made acquainted first."""
        folder = os.fsencode(self._options.folder)
        request = m.Open(
            session=bytes(16),
            process=secrets.token_bytes(16),
            job=proof.job_id([JOB], folder),
            role=Role.SENDER,
            mode=Mode.MEASURE,
            lanes=1,
            retry_for_s=0,
            digest=DigestName.XXH3_128,
            folder=b"" if self._options.ssh else folder,  # its far side was started in the folder
        )
        lanes = self._options.lanes
        while True:
            try:
                with ExitStack() as stack:
                    lane, opened, _, join = self._caller.open(stack, request, lambda _: (lanes, lanes))
                    return self._measure(lane, opened, join)
            except (NotPaired, Unproven) as error:
                if not self._caller.acquainted(error):
                    raise

    def _measure(self, lane: Lane, opened: m.Opened, join: Join) -> None:
        self._established = True
        self._round_trip_s = lane.round_trip_s
        session = BenchSession(lane, join, self._stop, self._options.timeout_s)
        session.run(lambda: self._steps(session, opened.lanes))

    def _steps(self, session: BenchSession, most: int) -> None:
        lanes: int | None = 1
        room = True
        while lanes is not None:
            self._step(session, lanes, disk=False)
            if room and not (room := self._step(session, lanes, disk=True)):
                self._emit(events.Warn("the receiver has no room for a file to measure its disk with"))
            if not more_help(self._path):
                return
            lanes = next_lanes(lanes, most)

    def _step(self, session: BenchSession, lanes: int, *, disk: bool) -> bool:
        found = session.step(lanes, self._options.step_s, disk=disk)
        if found is None:
            return False
        figures, told = found
        (self._disk if disk else self._path).append(figures)
        self._emit(told)
        return True

    def _own_disk(self) -> None:
        """With as many readers as the best step has lanes that carry data."""
        readers = data_lanes(fewest(self._path).lanes)
        try:
            count, seconds = read_rate(self._options.dir, readers, self._options.step_s, self._stop)
        except SourceError as error:
            self._emit(events.Warn(f"the disk of this side is not measured: {error}"))
            return
        self._source = count / seconds
        self._emit(events.Measured("sender_disk", readers, count, round(seconds, 3), round(self._source)))


def read_rate(folder: Path, readers: int, seconds: float, stop: Stop) -> tuple[int, float]:
    """Bytes that the disk of ``folder`` gives to so many threads, which read and hash as a sender does; and seconds.

    Raises:
        SourceError: it cannot be measured there.
        Interrupted: it was stopped.
    """
    path = os.fsencode(folder)
    with disk.source_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            trial = Trial(fd, min(TRIAL_BYTES, disk.free_space(fd) // 2))
        finally:
            os.close(fd)
    crew = Crew("ftx-bench-disk", LEAVE_S, lambda: None)
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    filled: queue.SimpleQueue[None] = queue.SimpleQueue()
    found: list[tuple[int, float]] = []  # of each reader: bytes, and when it had them

    def fill() -> None:
        with disk.source_errors(path):
            end = trial.fill(Noise().chunk(MIN_CHUNK), min(seconds, TRIAL_S))
        for at in range(0, end, MIN_CHUNK):
            places.put(at)
        filled.put(None)

    def read() -> None:
        buffer, count = memoryview(bytearray(MIN_CHUNK)), 0
        until = time.monotonic() + seconds
        with suppress(queue.Empty):
            while not crew.stopped and time.monotonic() < until:
                at = places.get_nowait()
                with disk.source_errors(path):
                    count += trial.read(at, buffer)
                _XXH3(buffer)
        found.append((count, time.monotonic()))
        if len(found) == readers:
            crew.end()

    try:
        with crew:
            crew.start("fill", fill)
            while filled.empty():
                crew.wait(TICK_S)
                stop.check()
            began = time.monotonic()
            for number in range(readers):
                crew.start(f"read-{number}", read)
            while not crew.wait(TICK_S):
                stop.check()
    finally:
        trial.close()
    counts, ends = zip(*found, strict=True)
    if not sum(counts):
        raise SourceError(f"{disk.show(path)}: there is no room for a file to measure its disk with")
    return sum(counts), max(ends) - began


def run(
    options: BenchOptions, emit: events.OnEvent, stop: Stop, confirm: Confirm | None, code: Code | None
) -> events.BenchFinished:
    """Measure the path; see ``api.bench``."""
    return BenchRun(options, emit, stop, confirm, code).run()
