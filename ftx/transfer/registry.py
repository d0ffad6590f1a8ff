"""A receiver: its listener, its sessions, who may be in which, and who makes way for whom.

G9: every connection has a thread of its own from the first byte on, and none waits for another's.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import ftx
from ftx.errors import (
    FtxError,
    InternalError,
    Interrupted,
    Leaving,
    ProtocolError,
    SomeFailed,
    Superseded,
    Unsupported,
)
from ftx.net import handshake, peers
from ftx.net.lane import Lane
from ftx.net.listen import Listener
from ftx.options import ReceiveOptions
from ftx.protocol import messages as m
from ftx.protocol.manifest import Entry
from ftx.protocol.messages import Role
from ftx.storage import paths
from ftx.storage.partial import PartialStore
from ftx.transfer import events
from ftx.transfer.crew import Stop
from ftx.transfer.receive import WINDOW, ReceiveSession

TICK_S = 0.1
PROGRESS_S = 0.25
LEAVE_S = 5.0
#: Connections that have not been let in yet; at more, the oldest goes (G8, G9).
MAX_STRANGERS = 512


@dataclass(slots=True)
class _Session:
    """A session and what is told of it."""

    id: str
    address: str
    work: ReceiveSession
    job: tuple[bytes, bytes]
    retry_for_s: int
    started_s: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    failure: FtxError | None = None  # of the entry that failed last


class Receiver:
    """Takes files until it is told to stop, from any number of senders at once.

    Args:
        options: where to put them, from whom, and how.
        on_event: called for every event, from the thread that calls ``run``.
    """

    def __init__(self, options: ReceiveOptions, *, on_event: events.OnEvent | None = None) -> None:
        self._options = options
        self._on_event = on_event
        self._events: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._strangers: OrderedDict[Lane, None] = OrderedDict()
        self._sessions: dict[tuple[bytes, bytes], _Session] = {}
        self._stopping = False
        self._first: tuple[bytes, bytes] | None = None
        self._over: tuple[int, str] | None = None  # the first job's end, with --once
        self._give_up_s = 0.0
        self._totals = [0, 0, 0]  # done, failed, skipped
        self._bytes = [0, 0, 0]  # offered, received, reused, of sessions that are over

    def run(self, stop: Stop | None = None) -> events.Finished:
        """Listen and receive until ``stop`` is requested (or, with ``once``, the first job is over)."""
        stop = stop or Stop()
        started = time.monotonic()
        self._emit(events.Start(ftx.__version__, m.PROTOCOL_VERSION, "receive"))
        code, message = 0, ""
        try:
            code, message = self._serve(stop)
        except Interrupted as error:
            code, message = error.exit_code, "stopped; what was under way is kept, and resumes when it is sent again."
        except FtxError as error:
            code, message = error.exit_code, str(error)
        self._pump()
        done, failed, skipped = self._totals
        total, received, reused = self._bytes
        finished = events.Finished(
            code, message, done + skipped, failed, skipped, total, received, reused, time.monotonic() - started
        )
        self._emit(finished)
        return finished

    def _serve(self, stop: Stop) -> tuple[int, str]:
        options = self._options
        self._keys = peers.keys(options.config_dir, options.secret_file, listener=True)
        root = paths.Root(options.dir)
        self._store = PartialStore(root, options.reserve)
        listener = Listener(options.bind, options.port)
        accept = threading.Thread(
            target=listener.accept, args=(self._connected, lambda: self._stopping), name="ftx-accept", daemon=True
        )
        try:
            accept.start()
            self._emit(events.Listening(listener.addresses, os.fspath(options.dir.absolute()), os.getpid()))
            reported = 0.0
            while True:
                stop.wait(TICK_S)
                stop.check()
                self._pump()
                if time.monotonic() - reported >= PROGRESS_S:
                    reported = time.monotonic()
                    self._progress()
                if options.once and (over := self._once()):
                    return over
        finally:
            self._stopping = True
            self._leave()
            accept.join(1)
            listener.close()
            root.close()

    def _leave(self) -> None:
        """End every session with a word to its sender, within ``LEAVE_S``."""
        with self._lock:
            sessions, strangers = list(self._sessions.values()), list(self._strangers)
        for lane in strangers:
            lane.shutdown()
        for session in sessions:
            session.work.stop(Leaving("the receiver was stopped"))
        deadline = time.monotonic() + LEAVE_S - 0.5
        for session in sessions:
            session.over.wait(max(0.0, deadline - time.monotonic()))

    # --- connections ---

    def _connected(self, sock: socket.socket, address: str) -> None:
        lane = Lane(sock, dialer=False)
        lane.deadline_s = time.monotonic() + m.HANDSHAKE_S
        with self._lock:
            self._strangers[lane] = None
            oldest = next(iter(self._strangers)) if len(self._strangers) > MAX_STRANGERS else None
        if oldest is not None:
            oldest.shutdown()
        threading.Thread(target=self._greet, args=(lane, address), name="ftx-greet", daemon=True).start()

    def _greet(self, lane: Lane, address: str) -> None:
        """One connection, from its first byte to its last."""
        try:
            try:
                greeting, request = handshake.listen(lane, self._keys, open_=self._options.open)
            finally:
                with self._lock:
                    self._strangers.pop(lane, None)
            self._session(lane, address, greeting, request)
        except FtxError as error:
            if not error.from_peer:
                handshake.refuse(lane, error)
            text = f"{address}: {error}"
            self._events.put(events.Warn(text))
        except Exception as error:  # a bug must not take the receiver down with it
            handshake.refuse(lane, InternalError(f"{type(error).__name__}: {error}"))
            self._events.put(events.Warn(f"{address}: a bug in ftx: {type(error).__name__}: {error}"))
        finally:
            lane.close()

    def _session(self, lane: Lane, address: str, greeting: handshake.Greeting, request: m.Open | m.Attach) -> None:
        if isinstance(request, m.Attach):
            raise ProtocolError("this receiver grants one lane, and the session has it")
        if request.role is not Role.SENDER:
            raise Unsupported("this receiver does not send files")
        paths.components(request.folder)
        lane.deadline_s = None
        session = _Session(
            id=request.session.hex(),
            address=address,
            work=None,  # type: ignore[arg-type] # set in the next line: the two know each other
            job=(greeting.peer, request.job),
            retry_for_s=request.retry_for_s,
        )
        session.work = self._work(lane, greeting, request, session)
        self._take_over(lane, session)
        try:
            lane.send(m.Opened(1, WINDOW))
            lane.order.opened(Role.RECEIVER)
            self._events.put(events.SessionUp(session.id, address, False, 1))
            self._run(session)
        finally:
            with self._lock:
                if self._sessions.get(session.job) is session:
                    del self._sessions[session.job]
            session.over.set()

    def _work(self, lane: Lane, greeting: handshake.Greeting, request: m.Open, session: _Session) -> ReceiveSession:
        options = self._options
        return ReceiveSession(
            lane,
            request,
            greeting.peer,
            self._store,
            options.exists,
            options.fsync,
            options.timeout_s,
            lambda *what: self._entry_ended(session, *what),
        )

    def _take_over(self, lane: Lane, session: _Session) -> None:
        """End an older session of the same peer and job, and wait until it has let go of its partials.

        It is a ghost, of a link that broke or a process that was killed; or a run that somebody started twice:
        then the older one is told, and does not come back.
        """
        while True:
            with self._lock:
                older = self._sessions.get(session.job)
                if older is None:
                    self._sessions[session.job] = session
                    return
            older.work.stop(Superseded("a newer run of the same job took over"))
            while not older.over.wait(m.PING_S):
                lane.send(m.Busy(0))

    def _run(self, session: _Session) -> None:
        error: FtxError | None = None
        try:
            session.work.run()
        except FtxError as failure:
            error = failure
        ledger = session.work.ledger
        if error is None and ledger.failed:
            only = ledger.done + ledger.skipped == 0 and ledger.failed == 1 and session.failure
            error = session.failure if only else SomeFailed(f"{ledger.failed} could not be received")
        with self._lock:
            for at, number in enumerate((ledger.done, ledger.failed, ledger.skipped)):
                self._totals[at] += number
            for at, number in enumerate((ledger.bytes_offered, ledger.bytes_received, ledger.bytes_held)):
                self._bytes[at] += number
        code, message = (error.exit_code, str(error)) if error else (0, "")
        self._events.put(
            events.SessionEnd(
                session=session.id,
                peer=session.address,
                code=code,
                message=message,
                bytes_received=ledger.bytes_received,
                bytes_reused=ledger.bytes_held,
                files=ledger.done + ledger.skipped,
                seconds=time.monotonic() - session.started_s,
            )
        )
        with self._lock:
            if self._first in (None, session.job) and not isinstance(error, Superseded):
                self._first = session.job
                self._over = (code, message)
                back = error is not None and error.retry and not error.from_peer
                self._give_up_s = time.monotonic() + session.retry_for_s if back else 0.0

    def _once(self) -> tuple[int, str] | None:
        """With ``--once``: how the first job ended, when it is over for good."""
        with self._lock:
            under_way = self._first in self._sessions or self._first is None
            if self._over is None or under_way or time.monotonic() < self._give_up_s:
                return None
            return self._over

    # --- what to tell ---

    def _entry_ended(
        self, session: _Session, entry: Entry, state: str, sent: int, reused: int, root: bytes, error: FtxError | None
    ) -> None:
        if error is not None:
            session.failure = error
        name = session.work.digest_name
        self._events.put(
            events.EntryEnded(
                path=entry.path,
                state=state,
                size=entry.size,
                sent=sent,
                reused=reused,
                digest=f"{name}:{root.hex()}" if root else None,
                code=error.exit_code if error else 0,
                message=str(error) if error else "",
            )
        )

    def _progress(self) -> None:
        with self._lock:
            ledgers = [session.work.ledger for session in self._sessions.values()]
            total, received, reused = self._bytes
            files, _, skipped = self._totals
        if not ledgers:
            return
        offered = total + sum(ledger.bytes_offered for ledger in ledgers)
        moved = received + sum(ledger.bytes_received for ledger in ledgers)
        held = reused + sum(ledger.bytes_held for ledger in ledgers)
        self._emit(
            events.Progress(
                bytes_total=offered,
                bytes_done=min(moved + held, offered),
                bytes_sent=moved,
                bytes_reused=held,
                files_total=None,
                files_done=files + skipped + sum(ledger.done + ledger.skipped for ledger in ledgers),
            )
        )

    def _pump(self) -> None:
        while True:
            try:
                self._emit(self._events.get_nowait())
            except queue.Empty:
                return

    def _emit(self, event: events.Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
