"""A whole run of a sender: sessions one after the other until everything is committed or nothing helps.

Back-off counts progress and not attempts: as long as bytes move between breaks it never gives up. A link
that never stood is not retried: a wrong port or a receiver that was not started is a mistake to report.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ftx
from ftx.errors import (
    FtxError,
    Interrupted,
    NetworkError,
    ProtocolError,
    Refused,
    SomeFailed,
    UnknownHost,
    Unproven,
    from_wire,
)
from ftx.net import dial, handshake, peers
from ftx.net.lane import Lane
from ftx.options import SendOptions
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.messages import Role
from ftx.storage.source import Source
from ftx.transfer import events
from ftx.transfer.actions import Outcome
from ftx.transfer.crew import Stop
from ftx.transfer.plan import Plan
from ftx.transfer.send import SendSession

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
PROGRESS_S = 0.25
AGAIN = "Run the same command again: it resumes."


@dataclass(slots=True)
class _Item:
    """One source of the run, over all its sessions."""

    source: Source
    sent: int = 0
    reused: int | None = None  # what the receiver held before this run sent anything
    missing: int | None = None  # the least that it missed when a session began
    ended: events.EntryEnded | None = None
    failure: FtxError | None = None


class SendRun:
    """One call of ``ftx send``."""

    def __init__(
        self,
        paths: Sequence[bytes],
        options: SendOptions,
        emit: events.OnEvent,
        stop: Stop,
        confirm: Callable[[str], bool] | None,
    ) -> None:
        self._paths = paths
        self._options = options
        self._emit = emit
        self._stop = stop
        self._confirm = confirm
        self._accept_open = options.accept_new
        self._items: dict[Source, _Item] = {}
        self._plan: Plan | None = None
        self._established = False
        self._reported_s = 0.0
        self._sent_before = 0  # in the sessions before this one
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
        finally:
            for source in self._items:
                source.close()
        ended = [item.ended.state for item in self._items.values() if item.ended]
        sent, reused = self._moved()
        finished = events.Finished(
            code,
            message,
            files=len(ended) - ended.count("failed"),
            failed=ended.count("failed"),
            skipped=ended.count("skipped"),
            bytes_total=self._bytes_total(),
            bytes_sent=sent,
            bytes_reused=reused,
            seconds=time.monotonic() - started,
        )
        self._emit(finished)
        return finished

    def _explain(self, error: FtxError) -> str:
        """What happened, what was kept, what to do (G11)."""
        text = str(error)
        if error.from_peer and not isinstance(error, Refused):
            text = f"the receiver says: {text}"
        if isinstance(error, NetworkError) and not isinstance(error, UnknownHost) and not self._established:
            return f"{text}. Is `ftx receive` running there, on this port?"
        if self._established and error.retry:
            return f"{text}. What has arrived is kept there. {AGAIN}"
        return text

    def _send(self) -> None:
        options = self._options
        identity = peers.identity(options.config_dir)
        keys = peers.keys(options.config_dir, options.secret_file, listener=False)
        for path in self._paths:
            source = Source(path, identity, options.digest)
            self._items[source] = _Item(source)
        folder = os.fsencode(options.folder)
        request = m.Open(
            session=bytes(16),
            process=secrets.token_bytes(16),
            job=proof.job_id([os.path.abspath(path) for path in self._paths], folder),
            role=Role.SENDER,
            mode=m.Mode.TRANSFER,
            lanes=1,
            retry_for_s=int(options.retry_for_s),
            digest=options.digest,
            folder=folder,
        )
        self._until_done(request, keys, identity)
        failures = [item.failure for item in self._items.values() if item.failure]
        if failures:
            raise failures[0] if len(self._items) == 1 else SomeFailed(f"{len(failures)} could not be sent")

    def _until_done(self, request: m.Open, keys: dict[m.Method, bytes], identity: bytes) -> None:
        """Sessions until one ends well, with back-off in between."""
        attempt, progress_s = 0, time.monotonic()
        before: tuple[int, int] | None = None  # what the first session moved is known when the second begins
        while True:
            try:
                return self._session(request, keys, identity)
            except Unproven:
                # A person takes longer to answer than a listener waits, so the question is asked between two links.
                if self._confirm is None or not self._confirm(self._options.host):
                    raise
                self._accept_open = True
                continue
            except FtxError as error:
                if not (error.retry and self._established):
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
            for item in self._items.values():
                if item.ended is None:
                    item.source.pin()  # what was read of it counts only if it is still the same file

    def _session(self, request: m.Open, keys: dict[m.Method, bytes], identity: bytes) -> None:
        options = self._options
        lane = Lane(dial.connect(options.host, options.port, options.timeout_s, self._stop.check), dialer=True)
        lane.check = self._stop.check
        try:
            lane.deadline_s = time.monotonic() + options.timeout_s
            handshake.dial(lane, keys, identity, accept_open=self._accept_open)
            lane.deadline_s = time.monotonic() + options.timeout_s
            request = replace(request, session=secrets.token_bytes(16))
            lane.order.opened(Role.SENDER)
            opened = handshake.open_session(lane, request, options.timeout_s)
            if opened.lanes != request.lanes:
                raise ProtocolError(f"{opened.lanes} lanes granted where {request.lanes} were asked for")
            lane.deadline_s = None
            self._established = True
            self._emit(events.SessionUp(request.session.hex(), f"{options.host}:{options.port}", False, opened.lanes))
            self._transfer(lane, opened)
        except ProtocolError as error:
            if not error.from_peer:
                handshake.refuse(lane, error)
            raise
        finally:
            lane.close()

    def _transfer(self, lane: Lane, opened: m.Opened) -> None:
        self._sent_before = self._moved()[0]
        self._plan = plan = Plan(self._options.digest)
        plan.opened(opened.window)
        sources = [item.source for item in self._items.values() if item.ended is None]
        session = SendSession(lane, plan, sources, self._ended, self._options.timeout_s)
        try:
            session.run(self._stop, self._tick)
        finally:
            self._plan = None
            for source, sent, held, missing in session.unfinished():
                item = self._items[source]
                item.sent += sent
                item.reused = held if item.reused is None else item.reused
                if missing is not None:
                    item.missing = missing if item.missing is None else min(item.missing, missing)

    # --- what to tell ---

    def _bytes_total(self) -> int:
        return sum(item.source.grid.size for item in self._items.values())

    def _moved(self) -> tuple[int, int]:
        """Payload bytes sent in this run, and bytes that the receiver held before it."""
        sent = sum(item.sent for item in self._items.values())
        reused = sum(item.reused or 0 for item in self._items.values())
        return sent, reused

    def _progress(self) -> tuple[int, int]:
        """What has arrived, as the receiver says: what was only sent may have gone nowhere."""
        items = self._items.values()
        missing = sum(item.source.grid.size if item.missing is None else item.missing for item in items)
        return missing, sum(item.ended is not None for item in items)

    def _tick(self) -> None:
        now = time.monotonic()
        plan = self._plan
        if plan is None or now - self._reported_s < PROGRESS_S:
            return
        self._reported_s = now
        reused = self._moved()[1]
        ended = [item for item in self._items.values() if item.ended]
        first = all(item.reused is None for item in self._items.values())
        total = self._bytes_total()
        done = plan.bytes_held + plan.bytes_sent + plan.bytes_zeros
        self._emit(
            events.Progress(
                bytes_total=total,
                bytes_done=min(done, total),
                bytes_sent=self._sent_before + plan.bytes_sent,
                bytes_reused=plan.bytes_held if first else reused,
                files_total=len(self._items),
                files_done=len(ended),
            )
        )

    def _ended(self, source: Source, outcome: Outcome | FtxError) -> None:
        """A source is done with: committed, skipped or failed."""
        item = self._items[source]
        digest: str | None = None
        if isinstance(outcome, FtxError):
            item.failure, state = outcome, "failed"
        else:
            state = outcome.state
            # What this session did not send was there before: from this run's sessions, or before the run. The
            # first session knows better, unless it broke before it had compared what it found.
            item.reused = max(item.reused or 0, outcome.reused - item.sent)
            item.sent += outcome.sent
            if state == "failed":
                item.failure = from_wire(outcome.code, outcome.message)
            if state == "done" and not outcome.durable and not self._warned:
                self._warned = True
                self._emit(events.Warn("the receiver does not wait for its disk: a power cut there may undo this"))
            if outcome.root:
                digest = f"{self._options.digest.label}:{outcome.root.hex()}"
        item.ended = events.EntryEnded(
            path=source.offered.name,
            state=state,
            size=source.grid.size,
            sent=item.sent,
            reused=item.reused or 0,
            digest=digest,
            code=item.failure.exit_code if item.failure else 0,
            message=str(item.failure) if item.failure else "" if isinstance(outcome, FtxError) else outcome.message,
        )
        self._emit(item.ended)


def run(
    paths: Sequence[bytes],
    options: SendOptions,
    emit: events.OnEvent,
    stop: Stop,
    confirm: Callable[[str], bool] | None,
) -> events.Finished:
    """Send ``paths`` and wait until they are committed; see ``api.send``."""
    return SendRun(paths, options, emit, stop, confirm).run()
