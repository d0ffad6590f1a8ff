"""TLS 1.3 beneath a lane (G7): contexts, the listener's certificate, and a socket that two threads may use.

No certificate authority: a dialer looks at no name, date or signature in the certificate. What counts is that both
sides have seen the same one, which goes into the transcript that they sign (``protocol.md``, "TLS"). No session is
resumed and no ticket sent: it would wait unread on a lane that only writes, and a reset would destroy what was sent.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from ftx.errors import KeysWorn, LinkLost, NotFtx
from ftx.net.identity import Identity
from ftx.net.keys import read_private, write_private
from ftx.protocol import messages as m

ALPN = "ftx/1"
CERTIFICATE = "certificate"
#: First bytes of TLS records: of a handshake, and of an alert.
HANDSHAKE, ALERT = 0x16, 0x15
RECORD_BYTES = 16 * 1024  #: in a record, at most
RECORD_OVERHEAD = 22  #: bytes of a record around them: header, type, tag (RFC 8446, section 5.2)
#: Received at a time from who is not known yet, and encrypted at a time.
STRANGER_BYTES = 4096
#: A dialer's part of the handshake is some hundred bytes. OpenSSL would keep 128 KiB of it for each stranger (G8).
MAX_HANDSHAKE = 16 * 1024
#: Bytes of answers to a peer that asks for new keys. It has some 150 wait until something is sent (G8).
MAX_OWED = 4096
SEND_BYTES = 256 * 1024
#: What a TLS server that is not ftx answers.
_NOT_FTX = ("NO_APPLICATION_PROTOCOL", "PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "HANDSHAKE_FAILURE")


#: A listener's context, and the SHA-256 of its certificate.
Credentials: TypeAlias = tuple[ssl.SSLContext, bytes]


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.options |= ssl.OP_NO_TICKET
    return context


def dialing() -> ssl.SSLContext:
    """What a dialer needs."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def listening(config: Path, identity: Identity) -> Credentials:
    """What a listener needs. The certificate is kept in the configuration folder, if that can be written to.

    Raises:
        UsageError: others can read it, and with it the private key.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    path, key = config / CERTIFICATE, identity.pem()
    try:
        return _loaded(context, path, key)
    except (OSError, ValueError):  # none yet, damaged, or of another identity
        text = key + _self_signed(identity)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        write_private(path, text)
        return _loaded(context, path, key)
    except OSError:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CERTIFICATE
            write_private(path, text)
            return _loaded(context, path, key)


def _loaded(context: ssl.SSLContext, path: Path, key: bytes) -> Credentials:
    text = read_private(path)  # the private key is in it
    if not text.startswith(key):
        raise ValueError(f"{path} belongs to another identity")
    context.load_cert_chain(path)
    return context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[len(key) :].decode("ascii"))).digest()


def _self_signed(identity: Identity) -> bytes:
    """The certificate in PEM, the same for the same key: nothing in it means anything but the key."""
    from datetime import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ftx")])
    builder = x509.CertificateBuilder(name, name, identity.key.public_key(), serial_number=1)
    builder = builder.not_valid_before(datetime(1970, 1, 1)).not_valid_after(datetime(9999, 12, 31))
    return builder.sign(identity.key, None).public_bytes(Encoding.PEM)


def on_wire(size: int) -> int:
    """Bytes of the connection for ``size`` that are sent at once."""
    return size + -(-size // RECORD_BYTES) * RECORD_OVERHEAD


class NotTls(Exception):
    """The listener answers in clear.

    Attributes:
        said: its first bytes.
    """

    def __init__(self, said: bytes) -> None:
        super().__init__()
        self.said = said


class TlsSocket:
    """What a lane uses of a socket, with TLS over it. One thread may read while another writes.

    One TLS object must not be used by two threads at once. So it works on buffers, under a lock, and what may wait (the
    socket) is called outside it. When a session is broken off a second thread reads, too: they take turns.

    Args:
        sock: connected, blocking.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, listener: bool) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=listener)
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # of whoever reads, since there is one buffer
        self._received = memoryview(bytearray(STRANGER_BYTES))
        self._answered = listener  # by its first byte a dialer tells TLS from what is none
        self._unsent = memoryview(b"")  # encrypted, and not taken by the system yet
        self._taken = 0  # bytes of the caller's that are in it
        self._records = 0  # sent
        self._shaken = MAX_HANDSHAKE if listener else None  # bytes that the handshake may still have; None: any
        self._owed = 0  # bytes that TLS itself has to say, since something was sent

    def handshake(self) -> None:
        """Go on with the handshake, to its end if what is there is enough.

        Raises:
            TimeoutError: call it again. So whoever sends it byte by byte has no more time than others (G9).
            NotTls: the listener answers in clear.
            NotFtx: whoever is there speaks TLS, but not ours.
            LinkLost: it broke.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            self._receive()
            raise TimeoutError from None
        except ssl.SSLError as error:
            with suppress(OSError):
                self._flush()  # the alert that says why
            if any(reason in (error.reason or "") for reason in _NOT_FTX):
                raise NotFtx(f"what is there speaks TLS, but it is not ftx ({error.reason})") from error
            raise LinkLost(f"the connection broke in the TLS handshake ({error.reason})") from error
        self._flush()
        self._shaken = None
        if self._tls.selected_alpn_protocol() != ALPN:
            raise NotFtx("what is there speaks TLS, but it is not ftx")

    def peer_fingerprint(self) -> bytes:
        """SHA-256 of the listener's certificate."""
        return hashlib.sha256(self._tls.getpeercert(binary_form=True) or b"").digest()

    def enlarge(self, size: int) -> None:
        """Receive so many bytes at a time, from a peer that is no stranger any more."""
        self._received = memoryview(bytearray(size))

    def recv_into(self, buffer: memoryview | bytearray) -> int:
        """What is there, one byte at least; 0 at the end.

        Raises:
            TimeoutError: call it again. So whoever sends a record byte by byte has no more time than others (G9).
        """
        view = memoryview(buffer)
        if (count := self._read(view)) is None:
            if not self._receive():
                return 0
            if (count := self._read(view)) is None:
                raise TimeoutError
        return count

    def _read(self, view: memoryview) -> int | None:
        """What is in the records that are there: bytes; 0 at the end; None: no record is whole."""
        done, over = 0, True
        with self._lock:
            before = self._out.pending
            try:
                while done < len(view):
                    count: Any = self._tls.read(len(view) - done, view[done:])
                    if not count:
                        break
                    done += count
            except ssl.SSLWantReadError:
                over = False
            except ssl.SSLEOFError:  # another thread that read has found it
                pass
            self._owed += self._out.pending - before
        if self._owed > MAX_OWED:
            raise ConnectionError("it asks for new keys again and again")
        return done if done or over else None

    def _receive(self) -> bool:
        """Take what the socket has; False at its end."""
        timeout_s = self._sock.gettimeout()
        if not self._turn.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError
        try:
            return self._receive_in_turn()
        finally:
            self._turn.release()

    def _receive_in_turn(self) -> bool:
        count = self._sock.recv_into(self._received)
        if not count:
            with self._lock:
                self._in.write_eof()
            return False
        if self._shaken is not None:
            self._shaken -= count
            if self._shaken < 0:
                raise LinkLost(f"a TLS handshake of more than {MAX_HANDSHAKE} bytes")
        if not self._answered:
            self._answered = True
            if self._received[0] not in (HANDSHAKE, ALERT):
                raise NotTls(bytes(self._received[:count]))
        with self._lock:
            self._in.write(self._received[:count])
        return True

    def sendmsg(self, views: Sequence[memoryview]) -> int:
        """Send of the first of ``views`` as much as is encrypted at once; how much that was.

        Raises:
            TimeoutError: call it again with the same.
            KeysWorn: this connection's keys have protected as much as they may.
        """
        if not self._taken:
            view = views[0][:SEND_BYTES]
            if self._records >= m.MAX_RECORDS:  # Python cannot ask TLS for new keys
                raise KeysWorn("the keys of a connection are used up; a new one goes on")
            with self._lock:
                while self._taken < len(view):
                    self._taken += self._tls.write(view[self._taken :])
            self._records += -(-self._taken // RECORD_BYTES)
        self._flush()
        # Who was given up on in the middle, and is then told why, has other bytes now.
        taken, self._taken = min(self._taken, len(views[0])), 0
        return taken

    def _flush(self) -> None:
        if not self._unsent:
            with self._lock:
                self._unsent = memoryview(self._out.read())
                self._owed = 0
        if self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
            if self._unsent:
                raise TimeoutError  # what is left has the rest of the time

    def settimeout(self, seconds: float | None) -> None:
        self._sock.settimeout(seconds)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self._sock.getsockopt(level, option, size)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()
