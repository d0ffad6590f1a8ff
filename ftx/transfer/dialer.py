"""A whole run of a sender: sessions one after the other until everything is committed or nothing helps.

Back-off counts progress and not attempts: as long as bytes move between breaks it never gives up. A link
that never stood is not retried: a wrong port or a receiver that was not started is a mistake to report.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ftx
from ftx.errors import (
    FtxError,
    Interrupted,
    KeysWorn,
    NotPaired,
    SomeFailed,
    Unproven,
    UsageError,
    from_wire,
)
from ftx.net.lane import Lane
from ftx.net.pace import Pace
from ftx.options import Compress, SendOptions
from ftx.protocol import compression, proof
from ftx.protocol import messages as m
from ftx.protocol.manifest import Kind
from ftx.protocol.messages import Role
from ftx.storage import disk, scan
from ftx.storage.scan import Odd
from ftx.storage.source import Place
from ftx.transfer import events
from ftx.transfer.actions import KEPT, Outcome
from ftx.transfer.call import Caller, Confirm, Join
from ftx.transfer.crew import Stop
from ftx.transfer.feed import Feed, Item
from ftx.transfer.lanes import Tuner, how_many
from ftx.transfer.plan import Plan
from ftx.transfer.send import SendSession

if TYPE_CHECKING:
    from ftx.transfer.pairing import Code

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
PROGRESS_S = 0.25
AGAIN = "Run the same command again: it resumes."


@dataclass(slots=True)
class _Totals:
    """Sums over what has ended in this run. Folders are entries, but nobody counts them among files."""

    files: int = 0
    failed: int = 0
    skipped: int = 0
    size: int = 0
    sent: int = 0
    reused: int = 0
    kept: int = 0
    left_out: int = 0
    saved: int = 0  # by compressing, also of what has not ended


class SendRun:
    """One call of ``ftx send``."""

    def __init__(
        self,
        paths: Sequence[bytes],
        options: SendOptions,
        emit: events.OnEvent,
        stop: Stop,
        confirm: Confirm | None,
        code: Code | None,
    ) -> None:
        self._paths = paths
        self._options = options
        self._emit = emit
        self._stop = stop
        pace = None if options.bwlimit is None else Pace(options.bwlimit)  # of all its sessions
        self._caller = Caller(options, emit, stop, confirm, code, pace)
        self._feed = Feed(iter(()))
        self._ended = _Totals()
        self._failure: FtxError | None = None  # the most serious of an entry
        self._plan: Plan | None = None
        self._established = False
        self._reported_s = 0.0
        self._paused: str | None = None
        self._moved_then = (0, 0)  # what had moved when it paused
        self._warned = False

    def run(self) -> events.Finished:
        """Send everything; the last event."""
        started = time.monotonic()
        self._emit(events.Start(ftx.__version__, m.PROTOCOL_VERSION, "send"))
        code, message = 0, ""
        try:
            self._send()
        except Interrupted as error:
            kept = f" What has arrived is kept there. {AGAIN}" if self._established else " Nothing was sent."
            code, message = error.exit_code, f"{error}.{kept}"
        except FtxError as error:
            code, message = error.exit_code, self._explain(error)
        total = self._ended
        finished = events.Finished(
            code,
            message,
            files=total.files,
            failed=total.failed,
            skipped=total.skipped,
            bytes_total=self._bytes_total(),
            bytes_sent=self._moved()[0],
            bytes_reused=self._moved()[1],
            bytes_wire=self._moved()[0] - total.saved,
            seconds=time.monotonic() - started - self._caller.asked_s,
            kept=total.kept,
            left_out=total.left_out,
        )
        self._emit(finished)
        return finished

    def _explain(self, error: FtxError) -> str:
        """What happened, what was kept, what to do (G11)."""
        text = self._caller.explain(error, established=self._established)
        if self._established and error.retry:
            return f"{text}. What has arrived is kept there. {AGAIN}"
        return text

    def _send(self) -> None:
        options = self._options
        self._caller.prepare()
        self._check_sources()
        places: list[Place] = []
        walk = scan.walk(self._paths, self._caller.identity.tag_key, options.digest, places)

        def close() -> None:
            walk.close()
            for place in places:
                place.close()

        self._feed = Feed(walk, close)
        folder = os.fsencode(options.folder)
        request = m.Open(
            session=bytes(16),
            process=secrets.token_bytes(16),
            job=proof.job_id([_absolute(path) for path in self._paths], folder),
            role=Role.SENDER,
            mode=m.Mode.TRANSFER,
            lanes=1,
            retry_for_s=int(options.retry_for_s),
            digest=options.digest,
            folder=b"" if options.ssh else folder,  # its far side was started in the folder
        )
        try:
            self._until_done(request)
        finally:
            self._feed.close()
        if self._failure is not None:
            failed, others = self._ended.failed, self._ended.files
            if others:
                there = "1 is" if others == 1 else f"{others} are"
                raise SomeFailed(
                    f"{failed} could not be sent, {there} there. Each was reported; when that is mended, run it again"
                )
            raise self._all_failed()

    def _all_failed(self) -> FtxError:
        """Nothing but failures: the most serious one says how it ends."""
        failure, failed = self._failure, self._ended.failed
        assert failure is not None
        return failure if failed == 1 else type(failure)(f"all {failed} failed; the most serious: {failure}")

    def _check_sources(self) -> None:
        """What can be said before anybody is called: nothing can be sent, or two paths would land on one name."""
        failures: list[FtxError] = []
        good: list[bytes] = []
        for path in self._paths:
            try:
                scan.check(path)
                good.append(path)
            except FtxError as error:
                failures.append(error)
        if not good:
            for path, failure in zip(self._paths, failures, strict=True):
                self._odd_ended(Odd(scan.name_of(path) or path, str(failure), failure))
            raise self._all_failed()
        taken: dict[bytes, bytes] = {}
        for path in good if len(good) > 1 else ():
            for name in scan.top_names(path):
                if name in taken:
                    one, other = disk.show(taken[name]), disk.show(path)
                    raise UsageError(f"two paths would become {disk.show(name)} at the destination: {one} and {other}")
                taken[name] = path

    def _until_done(self, request: m.Open) -> None:
        """Sessions until one ends well, with back-off in between."""
        attempt, progress_s = 0, time.monotonic()
        before: tuple[int, int] | None = None  # what the first session moved is known when the second begins
        while True:
            try:
                return self._session(request)
            except (NotPaired, Unproven) as error:
                if not self._caller.acquainted(error):
                    raise
                continue
            except KeysWorn:
                continue  # nothing is wrong: whoever does not retry goes on too
            except FtxError as error:
                if not (error.retry and (self._established or self._caller.greeted)):
                    raise
                now, after = time.monotonic(), self._progress()
                if after != before:
                    attempt, progress_s, before = 0, now, after
                if now - progress_s >= self._options.retry_for_s:
                    raise
                # Doubled so often only: a night of attempts would double it beyond what a float holds.
                wait_s = min(FIRST_WAIT_S * 2 ** min(attempt, 16), LONGEST_WAIT_S) * random.uniform(0.75, 1.25)
                attempt += 1
                self._emit(events.Retry(str(error), round(wait_s, 3), attempt))
            self._stop.wait(wait_s)
            self._stop.check()

    def _session(self, request: m.Open) -> None:
        with ExitStack() as stack:
            lane, opened, lanes, join = self._caller.open(
                stack, request, lambda first: how_many(self._options, first.round_trip_s)
            )
            self._established = True
            self._transfer(lane, opened, lanes, join)

    def _transfer(self, lane: Lane, opened: m.Opened, lanes: int, join: Join) -> None:
        self._plan = plan = Plan(self._options.digest)
        plan.opened(opened.window)
        tuner = Tuner(self._options, lanes, opened.lanes, self._emit)
        session = SendSession(
            lane, lanes, join, tuner, plan, self._feed, self._entry_ended, self._options.timeout_s,
            compress=compression.available() and self._options.compress is Compress.AUTO,
        )  # fmt: skip
        try:
            session.run(self._stop, self._tick)
        finally:
            self._ended.saved += session.saved
            self._plan = None
            self._paused = None

    # --- what to tell ---

    def _bytes_total(self) -> int:
        return self._ended.size + sum(item.source.grid.size for item in self._feed.waiting())

    def _moved(self) -> tuple[int, int]:
        """Payload bytes sent in this run, and bytes that the receiver held before it, but for what is under way."""
        waiting = self._feed.waiting()
        sent = self._ended.sent + sum(item.sent for item in waiting)
        reused = self._ended.reused + sum(item.reused or 0 for item in waiting)
        return sent, reused

    def _progress(self) -> tuple[int, int]:
        """What has arrived, as the receiver says: what was only sent may have gone nowhere."""
        waiting = self._feed.waiting()
        missing = sum(item.source.grid.size if item.missing is None else item.missing for item in waiting)
        return missing, self._ended.files + self._ended.failed

    def _tick(self) -> None:
        now = time.monotonic()
        plan = self._plan
        if plan is None:
            return
        self._note_pause(plan.pause_reason)
        if now - self._reported_s < PROGRESS_S:
            return
        self._reported_s = now
        state = plan.live()
        self._emit(
            events.Progress(
                bytes_total=self._ended.size + state.size if state.all_offered else None,
                bytes_done=self._ended.size + state.sent + state.held + state.zeros,
                bytes_sent=self._ended.sent + state.sent,
                bytes_reused=self._ended.reused + state.held,
                files_total=self._ended.files + self._ended.failed + state.files if state.all_offered else None,
                files_done=self._ended.files,
            )
        )

    def _note_pause(self, reason: str | None) -> None:
        moved = self._ended.files, self._ended.sent + (self._plan.live().sent if self._plan else 0)
        if reason is not None and self._paused is None:
            self._emit(events.Paused(reason))
            self._paused, self._moved_then = reason, moved
        elif reason is None and self._paused is not None and moved != self._moved_then:
            # Only now: a receiver that gives up says RESUME too, and refuses what has no room.
            self._emit(events.Resumed(self._paused))
            self._paused = None

    def _entry_ended(self, item: Item | Odd, outcome: Outcome | None) -> None:
        """An entry is done with: committed, skipped or failed; or it is not sent at all."""
        if isinstance(item, Odd):
            self._odd_ended(item)
            return
        assert outcome is not None
        source, state = item.source, outcome.state
        # What this session did not send was there before: from this run's sessions, or before the run. The
        # first session knows better, unless it broke before it had compared what it found.
        reused = max(item.reused or 0, outcome.reused - item.sent)
        sent = item.sent + outcome.sent
        error = from_wire(outcome.code, outcome.message) if state == "failed" else None
        if state == "done" and not outcome.durable and not self._warned:
            self._warned = True
            self._emit(events.Warn("the receiver does not wait for its disk: a power cut there may undo this"))
        offered = source.offered
        kind = offered.kind
        self._count(state, offered.size, sent, reused, error, file=kind is not Kind.FOLDER)
        self._ended.kept += outcome.message == KEPT
        if error is None and not self._options.tell_all:
            return
        has_digest = outcome.root and kind is Kind.FILE
        self._emit(
            events.EntryEnded(
                path=source.target_path,
                kind=kind.label,
                state=state,
                size=source.offered.size,
                sent=sent,
                reused=reused,
                digest=f"{self._options.digest.label}:{outcome.root.hex()}" if has_digest else None,
                code=error.exit_code if error else 0,
                message=str(error) if error else outcome.message,
            )
        )

    def _odd_ended(self, odd: Odd) -> None:
        if odd.error is not None:
            self._count("failed", 0, 0, 0, odd.error, file=True)
            code, state = odd.error.exit_code, "failed"
        else:
            self._ended.left_out += 1
            code, state = 0, "skipped"
        if odd.error is not None or self._options.tell_all:
            self._emit(events.EntryEnded(odd.path, "other", state, 0, 0, 0, None, code, odd.message))

    def _count(self, state: str, size: int, sent: int, reused: int, error: FtxError | None, *, file: bool) -> None:
        total = self._ended
        total.size += size
        total.sent += sent
        total.reused += reused
        if error is not None:
            total.failed += 1
            if self._failure is None or error.rank < self._failure.rank:
                self._failure = error
        elif file:
            total.files += 1
            total.skipped += state == "skipped"


def _absolute(path: bytes) -> bytes:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        return path  # the folder that this was started in is gone, and so is what is below it


def run(
    paths: Sequence[bytes],
    options: SendOptions,
    emit: events.OnEvent,
    stop: Stop,
    confirm: Confirm | None,
    code: Code | None,
) -> events.Finished:
    """Send ``paths`` and wait until they are committed; see ``api.send``."""
    return SendRun(paths, options, emit, stop, confirm, code).run()
