"""A receiver: its listener, its sessions, who may be in which, and who makes way for whom.

G9: every connection has a thread of its own from the first byte on, and none waits for another's.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import ftx
from ftx.errors import (
    FtxError,
    InternalError,
    Interrupted,
    Leaving,
    NotFtx,
    NotPaired,
    ProtocolError,
    Refused,
    SomeFailed,
    Superseded,
    Unsupported,
    UsageError,
    WrongCode,
)
from ftx.net import handshake, keys
from ftx.net.identity import fingerprint
from ftx.net.lane import Lane
from ftx.net.listen import Listener
from ftx.net.pairing import Codes, Paired, Pairing
from ftx.net.peers import Peer, Peers
from ftx.options import MAX_LANES, ReceiveOptions
from ftx.protocol import messages as m
from ftx.protocol.messages import Method, Mode, Role
from ftx.storage import disk, paths, unfinished
from ftx.storage.partial import PartialStore
from ftx.transfer import events
from ftx.transfer.crew import Stop
from ftx.transfer.ledger import Ledger
from ftx.transfer.limits import Accounts, narrowed
from ftx.transfer.measure import MeasureSession
from ftx.transfer.pairing import Invitation
from ftx.transfer.receive import ReceiveSession

if TYPE_CHECKING:
    from ftx.net.tls import Credentials

log = logging.getLogger("ftx.registry")

#: Entries that a sender may have outstanding: many, since a long way takes long; fewer in a crowd, which shares (G8).
WINDOW, LEAST_WINDOW, WINDOWS = 4096, 1024, 65_536
TICK_S = 0.1
BUSY_S = 0.01  #: while there is much to tell
PROGRESS_S = 0.25
LEAVE_S = 5.0
#: How often what is unfinished is looked through for what is too old.
EXPIRE_EVERY_S = 3600.0
#: Connections that have not been let in yet; at more, an old one goes (G8, G9).
MAX_STRANGERS = 512
#: An IPv4 address as an IPv6 one (RFC 4291, section 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"
#: Processes that a newer run took over from, as many as are remembered.
MAX_SUPERSEDED = 256
SUPERSEDED = "a newer run of the same job took over"
STOPPED = "the receiver was stopped"
#: All that a peer measures is one job: it does so once at a time.
MEASURING = b"measuring"
MEASURED = "it measured the path, and nothing is kept"
#: What a peer hears whose line means nothing; what is wrong with it is for who can mend it.
MISTAKE = "the receiver cannot tell what it has on file of this side; whoever runs it reads there what is wrong"


def _origin(address: str) -> str:
    """Where a stranger comes from: its IPv4 address, or the network of its IPv6 address.

    Who has one IPv6 address has 2^64 of them, and a flood would come from a new one each time (RFC 6177).
    """
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    return socket.inet_ntop(socket.AF_INET, packed[12:]) if packed.startswith(_MAPPED) else packed[:8].hex()


@dataclass(slots=True)
class _Totals:
    """Sums over sessions: entries, and bytes."""

    files: int = 0
    failed: int = 0
    skipped: int = 0
    offered: int = 0
    received: int = 0
    reused: int = 0
    zeros: int = 0
    saved: int = 0

    def add(self, ledger: Ledger | None) -> None:
        if ledger is None:
            return
        self.files += ledger.files
        self.failed += ledger.failed
        self.skipped += ledger.files_skipped
        self.offered += ledger.bytes_offered
        self.received += ledger.bytes_received
        self.reused += ledger.bytes_held
        self.zeros += ledger.bytes_zeros
        self.saved += ledger.bytes_saved


@dataclass(slots=True)
class _Session:
    """A session and what is told of it."""

    id: str
    address: str
    work: ReceiveSession | MeasureSession
    job: tuple[bytes, bytes]
    process: bytes
    retry_for_s: int
    started_s: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def ledger(self) -> Ledger | None:
        """What it knows of entries; None where it only measures."""
        return self.work.ledger if isinstance(self.work, ReceiveSession) else None


class Receiver:
    """Takes files until it is told to stop, from any number of senders at once.

    Args:
        options: where to put them, from whom, and how.
        on_event: called for every event, from the thread that calls ``run``.
        one_time_key: 32 random bytes, where it is started for one run of a sender: who proves them is let in, and
            nobody else. What an earlier one like it has not let go of yet is waited for.
    """

    def __init__(
        self, options: ReceiveOptions, *, on_event: events.OnEvent | None = None, one_time_key: bytes | None = None
    ) -> None:
        self._options = options
        self._on_event = on_event
        self._one_time_key = one_time_key
        self._events = events.Untold()
        self._peers = Peers(options.config_dir)
        self._accounts = Accounts()
        self._lock = threading.Lock()
        self._strangers: dict[Lane, str] = {}  # and from where, the oldest first
        self._sessions: dict[tuple[bytes, bytes], _Session] = {}
        self._superseded: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()  # (peer, process)
        self._shown: Invitation | None = None
        self._stopping = False
        self._leaving = threading.Event()
        self._interrupted = False  # sessions were under way when it was stopped
        self._first: tuple[bytes, bytes] | None = None
        self._over: tuple[int, str] | None = None  # the first job's end, with --once
        self._give_up_s = 0.0
        self._all = _Totals()  # of all sessions that are over
        self._recent = _Totals()  # of those that are over since nobody was connected

    def run(self, stop: Stop | None = None) -> events.Finished:
        """Listen and receive until ``stop`` is requested (or, with ``once``, the first job is over)."""
        stop = stop or Stop()
        started = time.monotonic()
        self._emit(events.Start(ftx.__version__, m.PROTOCOL_VERSION, "receive"))
        code, message = 0, ""
        try:
            code, message = self._serve(stop)
        except Interrupted as error:
            kept = "; what was under way is kept, and resumes when it is sent again" if self._interrupted else ""
            code, message = error.exit_code, f"stopped{kept}."
        except FtxError as error:
            code, message = error.exit_code, str(error)
        self._pump()
        every = self._all
        finished = events.Finished(
            code,
            message,
            files=every.files,
            failed=every.failed,
            skipped=every.skipped,
            bytes_total=every.offered,
            bytes_sent=every.received,
            bytes_wire=every.received - every.saved,
            bytes_reused=every.reused,
            seconds=time.monotonic() - started,
        )
        self._emit(finished)
        return finished

    def _serve(self, stop: Stop) -> tuple[int, str]:
        options = self._options
        self._identity, lasting = keys.identity(options.config_dir)
        if not lasting:
            where = f"{options.config_dir} ($FTX_CONFIG_DIR) cannot be written to"
            if options.secret_file is None and not options.open and self._one_time_key is None:
                raise UsageError(f"{where}: without a lasting key and without `--secret-file` it lets nobody in")
            self._emit(events.Warn(f"{where}: who trusts this receiver does not know it again, and it cannot pair"))
        if self._one_time_key is not None:
            self._keys = {Method.SSH: self._one_time_key}
        else:
            self._keys = self._secret()
        self._credentials = None if options.plain else self._tls()
        on_file = self._peers.count()
        codes = Codes(options.config_dir)
        self._pairing = (
            Pairing(codes, self._peers.add, self._paired) if lasting and self._one_time_key is None else None
        )
        with disk.destination_errors(os.fsencode(options.dir)):
            where = os.fspath(options.dir.absolute())
        root = paths.Root(options.dir)
        # The earlier one's connections may be silent for so long before it notices that they are dead.
        patience_s = 0.0 if self._one_time_key is None else options.timeout_s + LEAVE_S
        self._store = PartialStore(root, options.reserve, patience_s)
        listener = Listener(options.bind, options.port)
        accept = threading.Thread(
            target=listener.accept, args=(self.connected, lambda: self._stopping), name="ftx-accept", daemon=True
        )
        unfinished.clear_abandoned(root)
        expire = threading.Thread(target=self._expire, args=(paths.Root(options.dir),), name="ftx-expire", daemon=True)
        try:
            accept.start()
            expire.start()
            shown = fingerprint(self._identity.public)
            self._emit(events.Listening(listener.addresses, where, os.getpid(), shown, on_file))
            if options.show_code and lasting:
                self._shown = Invitation(codes, self._emit)
                self._show(self._shown.show)
            reported = 0.0
            while True:
                stop.wait(BUSY_S if self._events.many else TICK_S)
                stop.check()
                self._pump()
                if time.monotonic() - reported >= PROGRESS_S:
                    reported = time.monotonic()
                    self._progress()
                    if self._shown is not None:
                        self._show(self._shown.renew)
                if options.once and (over := self._once()):
                    return over
        finally:
            self._stopping = True
            self._leaving.set()
            if self._shown is not None:
                self._show(self._shown.withdraw)
            self._leave()
            accept.join(1)
            expire.join(1)
            listener.close()
            root.close()

    def _secret(self) -> dict[Method, bytes]:
        """The key in the secret file, if there is one."""
        path, own = self._options.secret_file, self._identity.public
        if path is None:
            return {}
        secret = keys.secret(path, make_for=own)
        if secret.receivers and own not in secret.receivers:
            what = f"its senders refuse this one, unless they have the line {fingerprint(own)}"
            self._emit(events.Warn(f"{path} names another receiver: {what}"))
        return {Method.SECRET: secret.key}

    def _tls(self) -> Credentials:
        from ftx.net import tls  # here: a plain receiver needs none of it

        return tls.listening(self._options.config_dir, self._identity)

    def _expire(self, root: paths.Root) -> None:
        """At the start and now and then: a receiver may never be started again."""
        while True:
            for path in unfinished.expire(root, self._options.expire_s):
                self._events.put(events.Warn("unfinished, not touched for long, and removed now", path))
            if self._leaving.wait(EXPIRE_EVERY_S):
                break
        root.close()

    def _leave(self) -> None:
        """End every session with a word to its sender, within ``LEAVE_S``."""
        with self._lock:
            sessions, strangers = list(self._sessions.values()), list(self._strangers)
        self._interrupted = bool(sessions)
        for lane in strangers:
            lane.shutdown()
        for session in sessions:
            session.work.stop(Leaving(STOPPED))
        deadline = time.monotonic() + LEAVE_S - 0.5
        for session in sessions:
            session.over.wait(max(0.0, deadline - time.monotonic()))

    # --- connections ---

    def connected(self, sock: socket.socket, address: str) -> None:
        """Take a connection, which is the receiver's from here on; any thread, while it listens."""
        lane = Lane(sock, dialer=False)
        lane.deadline_s = time.monotonic() + m.HANDSHAKE_S
        with self._lock:
            self._strangers[lane] = _origin(address)
            too_many = self._crowd_out() if len(self._strangers) > MAX_STRANGERS else None
        if too_many is not None:
            too_many.shutdown()
        try:
            threading.Thread(target=self._greet, args=(lane, address), name="ftx-greet", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left: whoever is connected goes on
            with self._lock:
                self._strangers.pop(lane, None)
            lane.close()
            self._events.put(events.Warn(f"{address}: {error}"))

    def _crowd_out(self) -> Lane:
        """Who makes room: the oldest from where most come, or a flood would drive out whoever is far away."""
        most = Counter(self._strangers.values()).most_common(1)[0][0]
        lane = next(lane for lane, origin in self._strangers.items() if origin == most)
        del self._strangers[lane]
        return lane

    def _greet(self, lane: Lane, address: str) -> None:
        """One connection, from its first byte to its last."""
        try:
            come_in = handshake.listen(
                lane,
                self._identity,
                self._keys,
                self._credentials,
                open_=self._options.open,
                known=self._peers.find if self._one_time_key is None else handshake.nobody,
                pairing=self._pairing,
                address=address,
            )
            if come_in is not None:
                self._session(lane, address, *come_in)
        except FtxError as error:
            if isinstance(error, NotFtx):
                handshake.turn_away(lane)
            elif not error.from_peer:
                handshake.refuse(lane, Refused(MISTAKE) if isinstance(error, UsageError) else error)
            if not self._events.full:  # G8: there is no end to strangers
                self._events.put(events.Warn(f"{address}: {self._told(error)}"))
        except Exception as error:  # a bug must not take the receiver down with it
            log.debug("! a bug in a session", exc_info=True)
            handshake.refuse(lane, InternalError(f"{type(error).__name__}: {error}"))
            self._events.put(events.Warn(f"{address}: a bug in ftx: {type(error).__name__}: {error}"))
        finally:
            with self._lock:
                self._strangers.pop(lane, None)  # only now: one that is being refused costs a thread like the others
            lane.close()

    def _paired(self, peer: Paired) -> None:
        self._events.put(events.Paired(peer.fingerprint, peer.name, peer.address))

    def _show(self, do: Callable[[], None]) -> None:
        """Do something about the code that is shown. Without one the receiver goes on."""
        try:
            do()
        except UsageError as error:
            self._shown = None
            self._emit(events.Warn(str(error)))

    def _told(self, error: FtxError) -> str:
        """What a refusal means to whoever runs the receiver; the stranger is told something else."""
        how = "`ftx pair` shows a code" if self._shown is None else "the code above pairs it"
        if isinstance(error, WrongCode) and not error.from_peer:
            return "it came with a wrong pairing code"
        if isinstance(error, NotPaired) and not error.from_peer:
            return f"not known here, and not let in; {how}"
        return str(error)

    def _session(self, lane: Lane, address: str, peer: bytes, on_file: Peer | None, request: m.Open | m.Attach) -> None:
        if isinstance(request, m.Attach):
            self._attach(lane, peer, request)
            return
        if request.role is not Role.SENDER:
            raise Unsupported("this receiver does not send files")
        if request.lanes < 1:
            raise ProtocolError("OPEN for no lane")
        options, store = self._options, self._store
        with self._lock:
            limits = narrowed(store.root, request.folder, options.policy, on_file, peer, self._accounts)
            self._strangers.pop(lane, None)
        lane.deadline_s = None
        lanes = min(request.lanes, MAX_LANES)
        window = max(LEAST_WINDOW, min(WINDOW, WINDOWS // (len(self._sessions) + 1)))
        work: ReceiveSession | MeasureSession
        if request.mode is Mode.MEASURE:
            work = MeasureSession(lane, store, limits, options, lanes)
            job = peer, MEASURING
        else:
            work = ReceiveSession(
                lane,
                request,
                peer,
                store,
                limits,
                options,
                lanes,
                window,
                self._events,
            )
            job = peer, request.job
        session = _Session(request.session.hex(), address, work, job, request.process, request.retry_for_s)
        self._take_over(lane, session)
        try:
            lane.send(m.Opened(lanes, window))
            lane.order.opened(Role.RECEIVER, request.mode)
            self._events.put(events.SessionUp(session.id, address, lane.encrypted, lanes))
            self._run(session)
        finally:
            if session.ledger is not None:
                session.ledger.give_up()
            with self._lock:  # in one step: it counts as under way or as over, never as both
                del self._sessions[session.job]
                self._all.add(session.ledger)
                self._recent.add(session.ledger)
            session.over.set()

    def _attach(self, lane: Lane, peer: bytes, request: m.Attach) -> None:
        """A further lane of a session that stands, of the same peer."""
        with self._lock:
            wanted = (job for job in self._sessions if job[0] == peer)
            session = next((one for job in wanted if (one := self._sessions[job]).id == request.session.hex()), None)
            if session is None:
                raise Refused("there is no such session")
            self._strangers.pop(lane, None)
        session.work.attach(lane, request.lane)

    def _take_over(self, lane: Lane, session: _Session) -> None:
        """End an older session of the same peer and job, and wait until it has let go of its partials.

        It is a ghost, of a link that broke or a process that was killed; or a run that somebody started twice:
        then the older one is told, and does not come back.
        """
        peer, _ = session.job
        while True:
            with self._lock:
                if self._stopping:
                    raise Leaving(STOPPED)
                if (peer, session.process) in self._superseded:
                    raise Superseded(SUPERSEDED)  # it did not hear it, and is back
                older = self._sessions.get(session.job)
                if older is None:
                    if any(other.id == session.id for (owner, _), other in self._sessions.items() if owner == peer):
                        raise Refused("there is such a session already")
                    if not self._sessions:
                        self._recent = _Totals()
                    self._sessions[session.job] = session
                    return
                if older.process != session.process:
                    self._superseded[peer, older.process] = None
                    while len(self._superseded) > MAX_SUPERSEDED:
                        self._superseded.popitem(last=False)
            older.work.stop(Superseded(SUPERSEDED))
            while not older.over.wait(m.PING_S):
                lane.send(m.Busy(0))

    def _run(self, session: _Session) -> None:
        error: FtxError | None = None
        try:
            session.work.run()
        except FtxError as failure:
            error = failure
        ledger, work = session.ledger, session.work
        if isinstance(work, ReceiveSession) and error is None and work.ledger.failed:
            only = work.ledger.files == 0 and work.ledger.failed == 1
            error = work.failure if only else SomeFailed(f"{work.ledger.failed} could not be received")
        code, message = (error.exit_code, str(error)) if error else (0, "" if ledger else MEASURED)
        self._events.put(
            events.SessionEnd(
                session=session.id,
                peer=session.address,
                code=code,
                message=message,
                bytes_received=work.bytes if isinstance(work, MeasureSession) else work.ledger.bytes_received,
                bytes_reused=ledger.bytes_held if ledger else 0,
                files=ledger.files if ledger else 0,
                seconds=time.monotonic() - session.started_s,
            )
        )
        with self._lock:
            if ledger and self._first in (None, session.job) and not isinstance(error, Superseded):
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

    def _progress(self) -> None:
        """What is under way, with what ended since somebody is connected."""
        with self._lock:
            now = replace(self._recent)
            for session in self._sessions.values():
                now.add(session.ledger)
            if not self._sessions:
                return
        self._emit(
            events.Progress(
                bytes_total=now.offered,
                bytes_done=min(now.received + now.reused + now.zeros, now.offered),
                bytes_sent=now.received,
                bytes_reused=now.reused,
                files_total=None,
                files_done=now.files,
            )
        )

    def _pump(self) -> None:
        for event in self._events.take():
            self._emit(event)

    def _emit(self, event: events.Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
