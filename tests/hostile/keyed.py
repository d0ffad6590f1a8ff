"""A TLS client that makes its records itself, and so says what no library lets it say."""

from __future__ import annotations

import hmac
import socket
import ssl
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ftx.net import tls
from tests.hostile import peer

HANDSHAKE, DATA = 22, 23


def client_hello() -> bytes:
    """What a dialer says first."""
    out = ssl.MemoryBIO()
    try:
        tls.dialing().wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a handshake without an answer")


def record(kind: int, body: bytes) -> bytes:
    """One that is not encrypted."""
    return struct.pack("!BHH", kind, 0x0303, len(body)) + body


class Keyed:
    """A connection whose TLS handshake is over.

    Args:
        base: folder of the test, for the file in which the keys are told.

    Attributes:
        sock: what is under it; what the listener says is not understood.
    """

    def __init__(self, base: Path, port: int) -> None:
        context = tls.dialing()
        context.set_ciphers("AESGCM")
        log = base / "keys"
        context.keylog_filename = str(log)
        self.sock: socket.socket = peer.connected(port)
        back, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = context.wrap_bio(back, out)
        while True:
            try:
                connection.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(out.read())
                back.write(self.sock.recv(65536))
        self.sock.sendall(out.read())
        (self._cipher, *_) = connection.cipher() or ("",)
        told = [line.split() for line in log.read_text().splitlines()]
        self._renew(next(bytes.fromhex(words[2]) for words in told if words[0] == "CLIENT_TRAFFIC_SECRET_0"))
        log.unlink()

    def _expanded(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446, section 7.1), of one block."""
        label = b"tls13 " + label
        info = struct.pack("!HB", size, len(label)) + label + b"\0\1"
        return hmac.digest(self._secret, info, "sha384" if "SHA384" in self._cipher else "sha256")[:size]

    def _renew(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(self._expanded(b"key", 32 if "256" in self._cipher.partition("SHA")[0] else 16))
        self._nonce = int.from_bytes(self._expanded(b"iv", 12), "big")
        self._records = 0

    def said(self, body: bytes, kind: int = DATA) -> bytes:
        """A record, encrypted."""
        head = struct.pack("!BHH", DATA, 0x0303, len(body) + 17)
        nonce = (self._nonce ^ self._records).to_bytes(12, "big")
        self._records += 1
        return head + self._key.encrypt(nonce, body + bytes([kind]), head)

    def asks_for_keys(self) -> bytes:
        """A KeyUpdate that is to be answered with another one."""
        update = self.said(b"\x18\0\0\1\1", HANDSHAKE)
        self._renew(self._expanded(b"traffic upd", len(self._secret)))
        return update
