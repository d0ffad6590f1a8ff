"""Frames and payloads over one socket: one reading and one writing thread at most.

A chunk's payload goes from the socket into the buffer that is hashed and written, and from the buffer that
was hashed into the socket, without a copy in between. Every frame is held to ``session.LANE``, both ways.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ftx.errors import LinkLost, PeerSilent, ProtocolError, Refused
from ftx.net import tcp
from ftx.net.pace import Pace
from ftx.protocol import codec, proof
from ftx.protocol import messages as m
from ftx.protocol.manifest import Buffer
from ftx.protocol.messages import Type
from ftx.protocol.session import LaneOrder

if TYPE_CHECKING:
    import ssl

    from ftx.net.tls import TlsSocket

T = TypeVar("T")

log = logging.getLogger("ftx.lane")

READ_BYTES = 256 * 1024
#: After a large payload another one is likely: only its head is read ahead, the rest goes where it belongs.
HEAD_BYTES = 4096
#: What a dialer may send before OPEN or ATTACH is few and small (G8, G9): a HELLO, a PROOF, PINGs, unknown frames.
MAX_GREETING = 64
LARGE_PAYLOAD = 64 * 1024
#: What is small is sent together, so many bytes at a time.
QUEUE_BYTES = 256 * 1024
#: Inside a frame so many bytes are a sign of life. With fewer, a length that was damaged on the way would make
#: every PING part of a body that never ends, and the link would seem alive for ever.
ALIVE_BYTES = 4096
TICK_S = 0.1


class Lane:
    """One connection of a session.

    Args:
        sock: connected; the lane owns it from here on.
        dialer: whether this side dialled.
        pace: how fast it may send, shared with others; None: as fast as it goes.

    Attributes:
        pace: see there.
        last_received_s: monotonic time of the last sign of life: a whole frame, or ``ALIVE_BYTES`` of one.
        last_sent_s: monotonic time of the last byte sent.
        deadline_s: monotonic time by which whatever is called must be done; None for no limit.
        encrypted: TLS is beneath it.
        fingerprint: SHA-256 of the listener's certificate, ``NO_FINGERPRINT`` without TLS.
        greeted: what answered is ftx, by its first bytes.
        zstd: the peer has said that it takes compressed payloads.
        sending_s: seconds spent in sending so far: mostly those in which the link took nothing.
        check: called a few times a second while a deadline holds; may raise to end what is waited for.
    """

    def __init__(self, sock: socket.socket, *, dialer: bool, pace: Pace | None = None) -> None:
        self.sock: socket.socket | TlsSocket = sock
        self.encrypted = False
        self.fingerprint = proof.NO_FINGERPRINT
        self.order = LaneOrder(dialer=dialer)
        self._dialer = dialer
        self.last_received_s = self.last_sent_s = time.monotonic()
        self.deadline_s: float | None = None
        self.check: Callable[[], None] | None = None
        self.pace = pace
        self._on_wire: Callable[[int], int] = int  # bytes of the connection for so many of ours
        self._over = threading.Event()
        self._queued = bytearray()
        self._queued_bulk = False  # there is DATA in it
        self._buffer = bytearray(HEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._strange = True  # the peer has not finished its handshake
        self._frames = 0  # that it has sent so far
        self._start = self._end = 0
        self._read_ahead = READ_BYTES
        self._unfinished = 0  # bytes received since the last sign of life
        self._away_s = 0.0  # time since then in which nobody waited for bytes
        self._left_s: float | None = self.last_received_s  # since when nobody waits; None while somebody does
        self.greeted = False
        self.zstd = False
        self.sending_s = 0.0
        self._limited = False
        self._tells = log.isEnabledFor(logging.DEBUG)  # asked once: there may be millions of frames
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # it is reset already: whoever uses it is told
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    # --- TLS ---

    def first_byte(self) -> bytes:
        """The peer's first, which stays to be read; it tells TLS from plain.

        Raises:
            LinkLost, PeerSilent: there is none.
        """
        assert isinstance(self.sock, socket.socket)
        first = self._wait_for(self.sock.recv, 1, socket.MSG_PEEK)
        if not first:
            raise LinkLost("the peer closed the connection")
        return first

    def encrypt(self, context: ssl.SSLContext, fingerprint: bytes | None = None) -> None:
        """Put TLS beneath this lane, before anything else is said (G7).

        Args:
            fingerprint: a listener's own; a dialer takes that of the certificate it sees.

        Raises:
            LinkLost, PeerSilent, NotFtx: it did not come about.
            Refused: with the text of the plain ERROR with which a listener answered that speaks no TLS.
            ProtocolError: it answered in clear with something else.
        """
        from ftx.net import tls  # here: a plain run needs none of it

        assert isinstance(self.sock, socket.socket)
        plain, self.sock = self.sock, tls.TlsSocket(self.sock, context, listener=not self._dialer)
        try:
            self._wait_for(self.sock.handshake)
        except tls.NotTls as answer:
            self.sock = plain
            self._view[: len(answer.said)] = answer.said
            self._end = len(answer.said)
            message, _ = self.receive()
            if isinstance(message, m.Error):
                # Anybody on the way can say so. It asks for no code, and for no other run.
                raise Refused(message.message, from_peer=True) from None
            raise ProtocolError("it answers in clear where TLS was begun") from None
        self.encrypted = True
        self._on_wire = tls.on_wire
        self.fingerprint = fingerprint or self.sock.peer_fingerprint()

    def _wait_for(self, call: Callable[..., T], *args: Any) -> T:
        """What ``call`` gives, within the deadline."""
        while True:
            self._limit()
            try:
                return call(*args)
            except TimeoutError:
                continue  # the deadline tells whether it is over
            except OSError as error:
                raise LinkLost(f"the connection broke ({error.strerror or error})") from error

    # --- receiving ---

    def receive(self) -> tuple[m.Message, bytes]:
        """The next message, and its frame as it was on the wire. Unknown optional frames are passed over.

        After ``Data``, ``payload`` must be called before the next ``receive``.

        Raises:
            LinkLost: the connection ended or broke, or a frame was damaged.
            PeerSilent: nothing came before ``deadline_s``.
            NotFtx: the first bytes are not ftx's.
            ProtocolError: what came breaks a rule.
        """
        while True:
            if self._strange:
                self._meet()
            if not self.greeted:
                self._fill(1)
                while (have := self._end - self._start) < codec.HEADER_SIZE + len(m.MAGIC):
                    codec.check_first_bytes(bytes(self._view[self._start : self._end]))
                    self._fill(have + 1)
                codec.check_first_bytes(bytes(self._view[self._start : self._end]))
                self.greeted = True
            self._fill(codec.HEADER_SIZE)
            header = codec.decode_header(self._view[self._start : self._end])
            size = codec.HEADER_SIZE + codec.body_size(header)
            if self._strange and size > codec.HEADER_SIZE + m.MAX_UNKNOWN_BODY:
                raise ProtocolError(f"a frame of {header.length} bytes in the handshake")
            self._fill(size)
            frame = bytes(self._view[self._start : self._start + size])
            self._start += size
            message = codec.decode_body(header, frame[codec.HEADER_SIZE :])
            self._alive()
            if isinstance(message, m.Unknown):
                log.debug("< (unknown optional frame of type %#04x)", message.type)
                continue
            self.order.receive(Type(header.type))
            if self._tells:
                log.debug("< %s", message)
            return message, frame

    def arrived(self) -> tuple[m.Data, memoryview] | None:
        """Behind a DATA: the next message, if it is another one that has arrived with its payload; and that.

        Else None, and it is ``receive``'s. Nothing is waited for and nothing moves in the buffer: payloads before it
        stay valid.

        Raises:
            LinkLost: the frame was damaged.
        """
        data = codec.data_in(self._buffer, self._start, self._end)
        if data is None:
            return None
        # It is in order, as the one before it was: DATA changes no phase.
        start = self._start + codec.DATA_PREFIX
        self._start = start + data.length
        if self._tells:
            log.debug("< %s", data)
        return data, self._view[start : self._start]

    def _meet(self) -> None:
        """Before each frame of a handshake: who has not finished it gets little memory and little time (G8, G9)."""
        if not self.order.peer_greets:
            self._strange = False
            self._enlarge(READ_BYTES)
            if not isinstance(self.sock, socket.socket):
                self.sock.enlarge(READ_BYTES // 2)
            return
        self._frames += 1
        # A listener may have to wait long before OPENED, and says BUSY all the while.
        if self._frames > MAX_GREETING and not self._dialer:
            raise ProtocolError(f"more than {MAX_GREETING} frames before OPEN")

    def payload(self, length: int, buffer: memoryview) -> memoryview:
        """The ``length`` bytes behind a DATA message, in ``buffer`` or where they arrived; valid until ``receive``."""
        if length < LARGE_PAYLOAD:
            self._fill(length)  # and what is behind it
        have = self._end - self._start
        if have >= length:
            view = self._view[self._start : self._start + length]
            self._start += length
            return view
        view = buffer[:length]
        view[:have] = self._view[self._start : self._end]
        self._start = self._end = 0
        at = have
        while at < length:
            at += self._receive_into(view[at:])
        self._alive()
        self._read_ahead = HEAD_BYTES if length >= LARGE_PAYLOAD else READ_BYTES
        return view

    def _fill(self, wanted: int) -> None:
        """Have ``wanted`` bytes in the buffer, and more if they are there."""
        if self._end - self._start >= wanted:
            return
        if self._start:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        if wanted > len(self._buffer):
            # Only a body within its type's limit comes here, so this is bounded too.
            self._enlarge(wanted)
        while self._end < wanted:
            most = max(self._end + self._read_ahead, wanted)
            self._end += self._receive_into(self._view[self._end : most])
        self._read_ahead = READ_BYTES

    @property
    def silent_s(self) -> float:
        """Seconds without a sign of life; those in which nobody here waited for one (a slow disk) do not count."""
        return (self._left_s or time.monotonic()) - self.last_received_s - self._away_s

    @property
    def round_trip_s(self) -> float:
        """Seconds to the peer and back, at best, as TCP has measured it; 0 where the system does not tell."""
        return tcp.round_trip_s(self.sock)

    def _enlarge(self, size: int) -> None:
        self._buffer = self._buffer + bytes(max(0, size - len(self._buffer)))
        self._view = memoryview(self._buffer)

    def _receive_into(self, view: memoryview) -> int:
        if self._left_s is not None:
            self._away_s += time.monotonic() - self._left_s
            self._left_s = None
        count = self._wait_for(self.sock.recv_into, view)
        if count == 0:
            raise LinkLost("the peer closed the connection")
        self._left_s = time.monotonic()
        self._unfinished += count
        if self._unfinished >= ALIVE_BYTES:
            self._alive()
        return count

    def _alive(self) -> None:
        # In this order: another thread asks for ``silent_s``, and must not see the time at the disk as silence.
        self.last_received_s = self._left_s = time.monotonic()
        self._away_s = 0.0
        self._unfinished = 0

    # --- sending ---

    def send(self, *messages: m.Message) -> bytes:
        """Send messages other than DATA, behind what is queued; their frames as they are on the wire."""
        data = b"".join([self._frame(message) for message in messages])
        self._queued += data
        self.flush()
        return data

    def queue(self, message: m.Message) -> None:
        """Send a message other than DATA with what follows; ``flush`` must come before anything is waited for."""
        self._queued += self._frame(message)
        if len(self._queued) >= QUEUE_BYTES:
            self.flush()

    def _frame(self, message: m.Message) -> bytes:
        self.order.send(codec.TYPE_OF[type(message)])
        if self._tells:
            log.debug("> %s", message)
        return codec.encode(message)

    def queue_data(self, data: m.Data, payload: Buffer) -> None:
        """Send one chunk: a small one like ``queue``, a large one at once and without a copy."""
        self.order.send(Type.DATA)
        if self._tells:
            log.debug("> %s", data)
        self._queued += codec.encode_data(
            data.entry, data.index, data.digest, data.length, final=data.final, compressed=data.compressed
        )
        self._queued_bulk = True
        if data.length < LARGE_PAYLOAD:
            self._queued += payload
            if len(self._queued) >= QUEUE_BYTES:
                self.flush()
        else:
            self.flush(payload)

    def flush(self, payload: Buffer = b"") -> None:
        """Send what is queued, and ``payload`` behind it."""
        queued, self._queued = self._queued, bytearray()
        bulk, self._queued_bulk = self._queued_bulk, False
        self._send_all([queued, payload], bulk=bulk)

    def send_grease(self) -> None:
        """Send an optional frame that nobody knows, so that skipping one keeps working everywhere (G12)."""
        self._send_all([codec.encode_grease(secrets.randbelow(16), secrets.token_bytes(secrets.randbelow(16)))])

    def send_raw(self, data: bytes) -> None:
        """Send what is no frame, to a peer that knows none."""
        self._send_all([data])

    def _send_all(self, buffers: Sequence[Buffer], *, bulk: bool = False) -> None:
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        if not views:
            return
        begun_s = time.monotonic()
        may = 0  # bytes that have their time
        while views:
            self._limit()
            if self.pace is not None and not may:
                may = self._turn(self.pace, len(views[0]), bulk=bulk)
            try:
                sent = self.sock.sendmsg([views[0][:may]] if may else views)
            except TimeoutError:
                continue
            except OSError as error:
                raise LinkLost(f"the connection broke ({error.strerror or error})") from error
            self.last_sent_s = time.monotonic()
            may = max(0, may - sent)
            while views and sent >= len(views[0]):
                sent -= len(views[0])
                del views[0]
            if sent:
                views[0] = views[0][sent:]
        self.sending_s += self.last_sent_s - begun_s

    @property
    def indebted(self) -> bool:
        """More was sent than its rate allows, and more should not be made to be sent."""
        return self.pace is not None and self.pace.indebted(time.monotonic())

    def _turn(self, pace: Pace, wanted: int, *, bulk: bool) -> int:
        """Wait until something may be sent, which is counted; how many bytes of ``wanted``."""
        if not bulk:
            pace.count(self._on_wire(wanted), time.monotonic())
            return wanted
        count = min(wanted, pace.step)
        while wait_s := pace.ask(self._on_wire(count), time.monotonic()):
            if self._over.wait(wait_s):
                raise LinkLost("the session is over")
        return count

    def _limit(self) -> None:
        """One deadline over any number of calls: a peer that dribbles gains nothing by it."""
        if self.deadline_s is not None:
            left = self.deadline_s - time.monotonic()
            if left <= 0:
                raise PeerSilent("the peer says nothing")
            if self.check is not None:
                self.check()
                left = min(left, TICK_S)
            self.sock.settimeout(left)
        elif self._limited:
            self.sock.settimeout(None)
        self._limited = self.deadline_s is not None

    # --- the end ---

    def shutdown(self) -> None:
        """Unblock whoever is reading or writing; safe from any thread."""
        self._over.set()
        with suppress(OSError):  # it is gone already
            self.sock.shutdown(socket.SHUT_RDWR)

    def drain(self, seconds: float) -> None:
        """After the last word: read and discard for a while, so that closing does not destroy it on its way (G11)."""
        deadline = time.monotonic() + seconds
        left = m.DRAIN_BYTES
        scratch = bytearray(64 * 1024)
        try:
            while left > 0 and (rest := deadline - time.monotonic()) > 0:
                self.sock.settimeout(rest)
                try:
                    count = self.sock.recv_into(scratch)
                except TimeoutError:
                    continue
                if count == 0:
                    return
                left -= count
        except OSError:
            pass  # the peer has heard it, or never will

    def close(self) -> None:
        self.sock.close()
