"""A small peer of the ftx protocol, version 1: both roles, one lane. The words are those of protocol.md.

`send` dials and sends one file; `receive` accepts one connection and takes the files of its session. Both return the
totals of BYE. Both take `private`, the 32 bytes of a private key; `trace`, a list that gets (side, name, fields) of
each frame; `tamper(side, name, frame)`, which may change the bytes of a frame on its way; side is "said" or "heard";
and `plain`, for a connection without TLS.
"""

import base64
import contextlib
import datetime
import fcntl
import functools
import hashlib
import hmac
import os
import random
import re
import secrets
import select
import socket
import ssl
import stat
import struct
import tempfile
import time
import unicodedata
from collections import Counter, deque
from pathlib import Path

import xxhash
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

XXH3_128, SHA_256 = 1, 2
OPEN, KNOWN, SECRET, PAIRED = 0, 1, 2, 4
PORT, SENDER, RECEIVER = 7389, bytes(range(0x20, 0x40)), bytes(range(0xD0, 0xF0))  # the keys of the worked example
CRITICAL, FINAL, DURABLE, MAX_REPAIRS, WINDOW, AT_ONCE = 0x01, 0x02, 0x01, 3, 64, 64
HEADER = ">4sHH32sQq16sIB3xQH"  # of the journal, up to the path
VALUES = {"Role": (1, 2), "Mode": (0,), "Kind": (1, 2, 3), "Digest": (1, 2), "Reason": (1, 2)}
NUMBERS = {"u8": ">B", "u16": ">H", "u32": ">I", "u64": ">Q", "i64": ">q"} | dict.fromkeys(VALUES, ">B")
# A kind is a number, `16` (so many bytes), `u16:255` (at most so many bytes) or `u8*32*Tlv` (at most so many records).
RECORDS = {
    "Tlv": "type=u16 value=u16:1024",
    "EntryId": "entry=u64",
    "ProofItem": "method=u8 mac=32",
    "SkipItem": "entry=u64 reason=Reason",
    "Range": "first=u64 count=u64",
    "RefuseItem": "entry=u64 code=u16 message=u16:1024",
    "ReceiptItem": "entry=u64 flags=u8 root=u8:32",
    "Offered": "kind=Kind name=u16:255 size=u64 allocated=u64 mode=u32 mtime_ns=i64 tag=16 target=u16:4096 "
    "tlvs=u8*32*Tlv",
}
MESSAGES = {  # name: (type, longest body, layout)
    "HELLO": (0x01, 4096, "magic=4 version_min=u16 version_max=u16 nonce=32 identity=32 tlvs=u8*32*Tlv"),
    "PROOF": (0x02, 4096, "signature=u16:128 proofs=u8*4*ProofItem tlvs=u8*32*Tlv"),
    "OPEN": (0x03, 8192, "session=16 process=16 job=32 role=Role mode=Mode lanes=u8 retry_for_s=u32 digest=Digest "
             "folder=u16:4096 tlvs=u8*32*Tlv"),
    "OPENED": (0x04, 4096, "lanes=u8 window=u32 tlvs=u8*32*Tlv"),
    "ATTACH": (0x05, 1024, "session=16 lane=u8"),
    "ATTACHED": (0x06, 1024, ""),
    "PAIR": (0x07, 4096, "element=32 tlvs=u8*32*Tlv"),
    "FOLDER": (0x10, 262144, "path=u16:4096 first=u64 entries=u16*1024*Offered"),
    "FOLDER_END": (0x11, 8192, "path=u16:4096 flags=u8"),
    "SKIP": (0x12, 16384, "items=u16*1024*SkipItem"),
    "WANT": (0x13, 262144, "entry=u64 held=u64 ranges=u16*4096*Range"),
    "REFUSE": (0x14, 65536, "items=u16*1024*RefuseItem"),
    "ASK_DIGESTS": (0x15, 64, "entry=u64 digest=Digest first=u64 count=u32"),
    "DIGESTS": (0x16, 262144, "entry=u64 digest=Digest first=u64 digests=u32:131072"),
    "WANT_ALL": (0x18, 16384, "entries=u16*1024*EntryId"),
    "DATA": (0x20, 32 + (16 << 20), "entry=u64 index=u64 digest=16 payload=rest"),
    "ZEROS": (0x21, 65568, "entry=u64 ranges=u16*4096*Range"),
    "FINISH": (0x22, 64, "entry=u64 root=u8:32"),
    "RECEIPT": (0x23, 131072, "items=u16*1024*ReceiptItem"),
    "CANCEL": (0x24, 2048, "entry=u64 code=u16 message=u16:1024"),
    "PING": (0x30, 0, ""),
    "BUSY": (0x31, 8, "counter=u64"),
    "PAUSE": (0x32, 2048, "code=u16 message=u16:1024"),
    "RESUME": (0x33, 0, ""),
    "BYE": (0x3E, 24, "done=u64 skipped=u64 failed=u64"),
    "ERROR": (0x3F, 2048, "code=u16 message=u16:1024"),
}  # fmt: skip
NAMES = {number: name for name, (number, _, _) in MESSAGES.items()}
SAID_BY_SENDER = {"FOLDER", "FOLDER_END", "DIGESTS", "DATA", "ZEROS", "FINISH", "CANCEL", "PING", "BYE"}
SAID_BY_RECEIVER = {"SKIP", "WANT", "WANT_ALL", "REFUSE", "ASK_DIGESTS", "RECEIPT", "PING", "BUSY", "PAUSE", "RESUME"}


class BrokenLink(Exception):
    """The stream ended without BYE or ERROR, was damaged or silent, or the peer is something else than ftx."""


class SessionError(Exception):
    """The session ends with an error code that was found here."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class PeerError(SessionError):
    """The peer said ERROR."""


def require(holds, message, code=2):
    """Ends the session unless a rule of the document holds."""
    if not holds:
        raise SessionError(code, message)


# --- Fields, frames, digests, grid ---


def encode(layout, fields):
    """The bytes of a body or record."""
    out = b""
    for name, kind in (part.split("=") for part in layout.split()):
        value, (size, *record) = fields[name], kind.replace(":", "*").split("*")
        if len(record) == 2:
            out += struct.pack(NUMBERS[size], len(value)) + b"".join(encode(RECORDS[record[1]], one) for one in value)
        elif record:
            out += struct.pack(NUMBERS[size], len(value)) + value
        else:
            out += struct.pack(NUMBERS[kind], value) if kind in NUMBERS else value
    return out


def decode(layout, body, at=0):
    """The fields of a body or record, and where it ends."""
    fields = {}

    def take(count):
        nonlocal at
        require(count <= len(body) - at, "a body is too short")
        at += count
        return bytes(body[at - count : at])

    for name, kind in (part.split("=") for part in layout.split()):
        size, *record = kind.replace(":", "*").split("*")
        if size in NUMBERS:
            (value,) = struct.unpack(NUMBERS[size], take(struct.calcsize(NUMBERS[size])))
            require(value in VALUES.get(kind, (value,)), f"{value} is no {kind}")
        else:
            value = take(int(size) if size != "rest" else len(body) - at)
        if record:
            require(value <= int(record[0]), f"{name} is above its limit")
            count, value = value, take(value) if len(record) == 1 else []
            for _ in range(count if len(record) == 2 else 0):
                one, at = decode(RECORDS[record[1]], body, at)
                value.append(one)
        fields[name] = value
    return fields, at


def check_of(raw):
    """The check of a frame. In DATA it covers 32 bytes of the body."""
    return xxhash.xxh3_64_digest(raw[:8] + (raw[16:48] if raw[0] == 0x20 else raw[16:]))


def raw_frame(number, body, flags=CRITICAL):
    """A frame of any type."""
    raw = struct.pack(">BBHIQ", number, flags, 0, len(body), 0) + body
    return raw[:8] + check_of(raw) + body


def frame(name, **fields):
    """A frame of version 1."""
    flags = (name not in ("PING", "BUSY")) | (FINAL if fields.get("final") else 0)
    return raw_frame(MESSAGES[name][0], encode(MESSAGES[name][2], fields), flags)


def parse(raw):
    """The fields of a frame of version 1, which must end with its last field."""
    fields, end = decode(MESSAGES[NAMES[raw[0]]][2], raw, 16)
    require(end == len(raw), "a body is too long")
    return fields | {"final": True} if NAMES[raw[0]] == "DATA" and raw[1] & FINAL else fields


def critical_tlvs(fields):
    """Text that names the critical TLVs: none is known."""
    kinds = [tlv["type"] for tlv in fields.get("tlvs", ()) if tlv["type"] & 0x8000]
    return ", ".join(f"unknown critical TLV 0x{kind:04x}" for kind in kinds)


def digest_of(digest, data):
    """A digest by its number."""
    return xxhash.xxh3_128_digest(data) if digest == XXH3_128 else hashlib.sha256(data).digest()


def root_of(digest, chunks, size):
    """The root digest over the digests of all chunks."""
    return digest_of(digest, b"".join(chunks[index] for index in range(grid(size)[1])) + struct.pack(">Q", size))


def grid(size):
    """Chunk size and number of chunks of a file of this size."""
    chunk = 1 << 20
    while chunk < 16 << 20 and size > chunk * 65536:
        chunk *= 2
    return chunk, -(-size // chunk)


def span(size, index):
    """Length and offset of a chunk."""
    chunk, _ = grid(size)
    return min(chunk, size - index * chunk), index * chunk


def to_ranges(indexes):
    """Indexes as Range records."""
    ranges = []
    for index in sorted(indexes):
        if ranges and sum(ranges[-1].values()) == index:
            ranges[-1]["count"] += 1
        else:
            ranges.append({"first": index, "count": 1})
    return ranges


def from_ranges(ranges, size):
    """The indexes in Range records, which must lie inside the grid."""
    count = grid(size)[1]
    for one in ranges:
        require(0 < one["count"] <= count and one["first"] <= count - one["count"], "a range outside the grid")
    return [index for one in ranges for index in range(one["first"], one["first"] + one["count"])]


# --- TLS ---


@functools.cache
def certificate_of(private):
    """A certificate for a private key, always the same: both in PEM, and the certificate's DER."""
    return certificate(Ed25519PrivateKey.from_private_bytes(private), None)


def certificate(key, algorithm, name="ftx", years=(2000, 2100), change=lambda der: der):
    """A certificate that was signed with its own key, and then changed."""
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    first, last = (datetime.datetime(year, 1, 1) for year in years)
    builder = x509.CertificateBuilder(who, who, key.public_key(), 1, first, last)
    der = change(builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER))
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*kinds) + ssl.DER_cert_to_PEM_cert(der).encode(), der


class Tls:
    """TLS between a lane and its socket, as the listener if there is a certificate. A record bears `piece` bytes."""

    def __init__(self, shown=None, *, alpn=("ftx/1",), version=ssl.TLSVersion.TLSv1_3, piece=1 << 24):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if shown else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = version
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(alpn)
        if shown:
            context.num_tickets = 0
            with tempfile.NamedTemporaryFile() as file:
                file.write(shown[0])
                file.flush()
                context.load_cert_chain(file.name)
        self.shown, self.piece, self.done, self.closed = shown, piece, False, False
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.link = context.wrap_bio(self.came, self.goes, server_side=bool(shown))

    def heard(self, records):
        """The bytes in records that came. Also begins the handshake, and goes on with it."""
        self.came.write(records)
        out = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.done:
                self.link.do_handshake()
                self.done = True
            while not self.closed:
                piece = self.link.read(1 << 18)
                out += piece
                self.closed = not piece  # a close_notify
        return out

    def said(self, raw):
        """Puts bytes into records."""
        for at in range(0, len(raw), self.piece):
            self.link.write(raw[at : at + self.piece])

    def fingerprint(self):
        """SHA-256 of the listener's certificate."""
        return hashlib.sha256(self.shown[1] if self.shown else self.link.getpeercert(binary_form=True)).digest()


# --- The lane ---


class Lane:
    """One connection. It reads while it writes, and says PING or BUSY in time.

    It is `plain`, or speaks TLS with the options `tls`. When it is `corked`, frames travel together if they can; with
    `notify` its end is a close_notify.
    """

    def __init__(
        self, sock, timeout_s=30.0, tamper=None, trace=None, plain=False, tls=None, corked=False, notify=False
    ):
        self.sock, self.timeout_s, self.idle, self.counter = sock, timeout_s, None, 0
        self.plain, self.options, self.corked, self.notify = plain, tls or {}, corked, notify
        self.tls, self.cork, self.untouched = None, bytearray(), True
        self.tamper, self.trace = tamper or (lambda side, name, raw: raw), [] if trace is None else trace
        self.said_at = self.heard_at = time.monotonic()
        self.came, self.going, self.ended = bytearray(), bytearray(), False
        sock.setblocking(False)

    def turn(self, wait_s):
        """Writes what can go, reads what has come."""
        try:
            reads, writes = [] if self.ended else [self.sock], [self.sock] if self.going else []
            readable, writable, _ = select.select(reads, writes, [], wait_s)
            if readable:
                came = self.sock.recv(1 << 18)
                self.ended, self.heard_at = not came, time.monotonic()
                self.take(came)
            if writable:
                del self.going[: self.sock.send(self.going[: 1 << 18])]
        except OSError:
            self.ended = True
            self.going.clear()
        if time.monotonic() - self.heard_at > self.timeout_s:
            raise BrokenLink("the peer is silent")

    def take(self, came):
        """Takes what has come off the wire. A dialer that has begun TLS looks whether the answer is in clear."""
        if self.tls and self.untouched and not self.tls.shown and came[:1] not in (b"", b"\x15", b"\x16"):
            self.tls = None
        self.untouched = False
        try:
            self.came += self.tls.heard(came) if self.tls else came
            self.ended = self.ended or bool(self.tls and self.tls.closed)
        finally:
            if self.tls:
                self.going += self.tls.goes.read()

    def shake_hands(self, deadline, first=b""):
        """The handshake of TLS."""
        try:
            if first:
                self.take(first)
            while self.tls and not self.tls.done:
                if self.ended or time.monotonic() > deadline:
                    raise BrokenLink("no end of the TLS handshake")
                self.flush()
                self.sock.settimeout(max(0.01, deadline - time.monotonic()))
                came = self.sock.recv(1 << 18)
                self.sock.setblocking(False)
                self.ended, self.heard_at = not came, time.monotonic()
                self.take(came)
            self.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self.sock.send(self.going)
            raise BrokenLink(f"no TLS: {error}") from None

    def begin_as_dialer(self):
        """TLS, or nothing in plain mode."""
        if self.plain:
            return
        self.tls = Tls(**self.options)
        self.going += self.tls.heard(b"") + self.tls.goes.read()
        self.shake_hands(time.monotonic() + self.timeout_s)
        if not self.tls:
            self.hear({"HELLO"})
            raise BrokenLink("the listener went on in clear")
        if self.tls.link.selected_alpn_protocol() != "ftx/1":
            raise BrokenLink("the peer is something else than ftx: another ALPN protocol")

    def begin_as_listener(self, private, deadline):
        """Looks at the first byte: TLS, or a HELLO in plain mode."""
        while not self.came:
            if self.ended or time.monotonic() > deadline:
                raise BrokenLink("nothing came")
            self.turn(0.1)
        require(self.came[0] != (0x16 if self.plain else 0x01), "one side is in plain mode, the other is not", 64)
        if not self.plain and self.came[0] == 0x16:
            first, self.came = bytes(self.came), bytearray()
            self.tls = Tls(**{"shown": certificate_of(private)} | self.options)
            self.shake_hands(deadline, first)

    def transcript_of(self, dialer_hello, listener_hello):
        """The transcript of this connection."""
        transport = (1, self.tls.fingerprint()) if self.tls else ()
        return transcript_of(dialer_hello, listener_hello, *transport)

    def flush(self):
        """Sends what is to be sent."""
        while self.going:
            self.turn(0.5)

    def write(self, raw):
        """Sends bytes."""
        self.cork += raw
        if not self.corked:
            self.uncork()

    def uncork(self):
        """Sends what was gathered."""
        raw, self.cork = bytes(self.cork), bytearray()
        if not raw:
            return
        if self.tls:
            self.tls.said(raw)
            raw = self.tls.goes.read()
        self.going += raw
        while self.going:
            self.turn(0.5)
        self.said_at = time.monotonic()

    def say(self, name, **fields):
        """Sends a frame; returns its bytes as they went out."""
        self.trace.append(("said", name, fields))
        raw = self.tamper("said", name, frame(name, **fields))
        self.write(raw)
        return raw[: 16 + int.from_bytes(raw[4:8], "big")]

    def grease(self):
        """Sends a frame whose type never means anything."""
        self.write(raw_frame(random.randint(0xE0, 0xEF), secrets.token_bytes(random.randint(0, 64)), 0))

    def keep_alive(self, name):
        """Says PING or BUSY if nothing was said for a second."""
        if name and time.monotonic() - self.said_at > 1:
            self.counter += 1
            self.say(name, **({"counter": self.counter} if name == "BUSY" else {}))

    def hear(self, names, wait_s=None, deadline=float("inf")):
        """The next frame but PING and BUSY, as (name, fields, bytes); None if it does not come in `wait_s`."""
        until = deadline if wait_s is None else time.monotonic() + wait_s
        self.uncork()
        while True:
            raw = self._frame("HELLO" in names)
            if raw:
                heard = self._look(raw, names)
                if heard[0] in ("PING", "BUSY", "unknown"):
                    continue
                return heard
            if self.ended or time.monotonic() > deadline:
                raise BrokenLink("the stream ended" if self.ended else "the handshake took too long")
            self.keep_alive(self.idle)
            self.turn(min(0.2, max(0, until - time.monotonic())))
            if not self.came and time.monotonic() >= until and wait_s is not None:
                return None

    def _frame(self, is_first):
        """The next frame, if it is there as a whole."""
        if is_first and self.came and self.came[0] not in (0x01, 0x3F):
            raise BrokenLink(f"the peer is something else than ftx: {bytes(self.came[:8])!r}")
        if len(self.came) < 16:
            return None
        number, length = self.came[0], int.from_bytes(self.came[4:8], "big")
        require(length <= (MESSAGES[NAMES[number]][1] if number in NAMES else 65536), "a body above its limit")
        if len(self.came) < 16 + length:
            return None
        raw = bytes(self.came[: 16 + length])
        del self.came[: 16 + length]
        return raw

    def _look(self, raw, names):
        """Checks a frame that came; returns (name, fields, bytes)."""
        name = NAMES.get(raw[0], "unknown")
        raw = self.tamper("heard", name, raw)
        if raw[8:16] != check_of(raw):
            raise BrokenLink("a frame was damaged")
        fields = parse(raw) if name in MESSAGES else {"type": raw[0], "flags": raw[1]}
        self.trace.append(("heard", name, fields))
        if name == "ERROR":
            raise PeerError(fields["code"], fields["message"].decode(errors="replace"))
        require(name != "unknown" or not raw[1] & CRITICAL, f"unknown critical frame 0x{raw[0]:02x}", 4)
        require(not critical_tlvs(fields), critical_tlvs(fields), 4)
        require(name in names or name == "unknown" and "HELLO" not in names, f"{name} must not come here")
        return name, fields, raw

    def drain(self):
        """Reads and discards, until the end of the stream, 256 KiB or 2 seconds."""
        most, until = len(self.came) + (256 << 10), time.monotonic() + 2
        while not self.ended and len(self.came) < most and time.monotonic() < until:
            self.turn(0.1)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        with self.sock:
            if isinstance(error, SessionError) and not isinstance(error, PeerError):
                self.say("ERROR", code=error.code, message=error.message.encode()[:1024])
                self.uncork()
                self.drain()
            if self.notify and self.tls and self.tls.done:
                with contextlib.suppress(ssl.SSLError):
                    self.tls.link.unwrap()
                self.going += self.tls.goes.read()
                self.flush()


# --- The handshake ---


def transcript_of(dialer_hello, listener_hello, transport=0, fingerprint=bytes(32)):
    """The 32 bytes that stand for both HELLOs."""
    parts = map(with_length, (dialer_hello, listener_hello, fingerprint))
    return hashlib.sha256(b"ftx/1 transcript" + bytes([transport]) + b"".join(parts)).digest()


def with_length(part):
    """u32(length of part) || part."""
    return struct.pack(">I", len(part)) + part


def public_of(private):
    """The public key, which is the identity of who has the private one."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def signature_of(private, maker, transcript):
    """The signature of `maker`."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(b"ftx/1 signature " + maker + b"\0" + transcript)


def is_signed(signature, identity, maker, transcript):
    """Whether a signature is that of `maker`, who claims to be `identity`."""
    try:
        text = b"ftx/1 signature " + maker + b"\0" + transcript
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def mac_of(key, maker, method, transcript):
    """The proof that `maker` holds `key`."""
    return hmac.digest(key, b"ftx/1 proof " + maker + b"\0" + bytes([method]) + transcript, "sha256")


def peer_id_of(identity):
    """What partials hang on."""
    return hashlib.sha256(b"ftx/1 peer" + identity).digest()


def job_id_of(*parts):
    """What makes two sessions the same job."""
    return hashlib.sha256(b"ftx/1 job" + b"".join(map(with_length, parts))).digest()


def fingerprint_of(identity):
    """A public key as people read it."""
    return "ed25519:" + base64.urlsafe_b64encode(identity).decode().rstrip("=")


def host_name(host, port):
    """The name of a listener in `known_hosts`."""
    return host if port == PORT else f"[{host}]:{port}"


def on_file(known_hosts, name):
    """The fingerprint in a file `known_hosts` that counts for a name; None if there is none."""
    lines = known_hosts.read_text().splitlines() if known_hosts and known_hosts.exists() else []
    words = [line.split() for line in lines]
    return ([words[1] for words in words if words[:1] == [name]] or [None])[-1]


def say_hello(lane, private, versions):
    """Sends HELLO; returns its bytes."""
    low, high = versions
    fields = {"magic": b"ftx\0", "version_min": low, "version_max": high, "nonce": secrets.token_bytes(32)}
    return lane.say("HELLO", **fields, identity=public_of(private), tlvs=[])


def hear_hello(lane, versions, deadline=float("inf")):
    """Takes HELLO, which must have a version in common; returns its bytes and fields."""
    _, fields, raw = lane.hear({"HELLO"}, deadline=deadline)
    if fields["magic"] != b"ftx\0":
        raise BrokenLink("the peer is something else than ftx")
    low, high = fields["version_min"], fields["version_max"]
    require(max(low, versions[0]) <= min(high, versions[1]), f"this side knows versions {versions}", 3)
    return raw, fields


def meet_as_dialer(lane, private, versions):
    """Both HELLOs; returns the listener's identity and the transcript."""
    lane.begin_as_dialer()
    mine = say_hello(lane, private, versions)
    theirs, hello = hear_hello(lane, versions)
    return hello["identity"], lane.transcript_of(mine, theirs)


def meet_as_listener(lane, private, versions, deadline):
    """Both HELLOs; returns the dialer's identity and the transcript."""
    lane.begin_as_listener(private, deadline)
    theirs, hello = hear_hello(lane, versions, deadline)
    return hello["identity"], lane.transcript_of(theirs, say_hello(lane, private, versions))


def greet_as_dialer(lane, private, secret, versions):
    """HELLO and PROOF, until the listener's PROOF is checked; returns its identity and the method."""
    identity, transcript = meet_as_dialer(lane, private, versions)
    proofs = [{"method": SECRET, "mac": mac_of(secret, b"dialer", SECRET, transcript)}] if secret else []
    lane.say("PROOF", signature=signature_of(private, b"dialer", transcript), proofs=proofs, tlvs=[])
    _, fields, _ = lane.hear({"PROOF"})
    require(len(fields["proofs"]) == 1, "a listener's PROOF has one item")
    signed = is_signed(fields["signature"], identity, b"listener", transcript)
    require(signed, "the listener is not whom its HELLO names", 64)
    method, mac = fields["proofs"][0].values()
    right = method in (OPEN, KNOWN)
    if method == SECRET and secret:
        right = hmac.compare_digest(mac, mac_of(secret, b"listener", method, transcript))
    require(right, "the listener does not prove that it holds the key", 64)
    return identity, method


def trust(identity, method, private, secret, receivers, name, known_hosts, accept_new):
    """Ends the session unless this is the listener that the user means. The user's yes puts it on file."""
    filed, fingerprint = on_file(known_hosts, name), fingerprint_of(identity)
    require(filed in (None, fingerprint), f"{name} was {filed} and is {fingerprint}", 64)
    require(fingerprint in (receivers or [fingerprint]), f"{fingerprint} is not in the secret file", 64)
    if method == SECRET or identity == public_of(private):
        return
    require(not secret, "the listener does not hold the secret", 64)
    if not filed:
        require(accept_new, f"{name} is not known: {fingerprint}", 64)
        if known_hosts:
            with known_hosts.open("a") as file:
                file.write(f"{name} {fingerprint}\n")


def greet_as_listener(lane, private, secret, known, is_open, versions):
    """HELLO and PROOF, until OPEN; returns its fields and the peer id."""
    deadline = time.monotonic() + 10
    identity, transcript = meet_as_listener(lane, private, versions, deadline)
    _, fields, _ = lane.hear({"PROOF"}, deadline=deadline)
    signed = is_signed(fields["signature"], identity, b"dialer", transcript)
    require(signed, "the dialer is not whom its HELLO names", 64)
    macs = [item["mac"] for item in fields["proofs"] if item["method"] == SECRET]
    right = mac_of(secret, b"dialer", SECRET, transcript) if secret else b""
    method, mac = KNOWN if identity in (public_of(private), *known) else OPEN, bytes(32)
    if any(hmac.compare_digest(right, one) for one in macs):
        method, mac = SECRET, mac_of(secret, b"listener", SECRET, transcript)
    require(method != OPEN or is_open, "not allowed in", 66)
    signature = signature_of(private, b"listener", transcript)
    lane.say("PROOF", signature=signature, proofs=[{"method": method, "mac": mac}], tlvs=[])
    _, fields, _ = lane.hear({"OPEN", "PING"}, deadline=deadline)
    require(fields["role"] == 1, "this listener serves no pulls", 4)
    return fields, peer_id_of(identity)


# --- The sender ---


class SourceChanged(Exception):
    """The source is not what was offered."""


def tag_of(private, inode, ctime_ns):
    """The tag of a source that is not young."""
    secret = hashlib.sha256(b"ftx/1 source tags" + private).digest()
    return hashlib.sha256(b"ftx source tag" + secret + struct.pack(">Qq", inode, ctime_ns)).digest()[:16]


class Sender:
    """The sender of one file, which is entry 1."""

    def __init__(self, lane, file, private, digest, final):
        self.lane, self.file, self.private, self.digest, self.final = lane, file, private, digest, final
        self.pin, self.state, self.paused, self.root = os.fstat(file.fileno()), "offered", False, None
        self.size, self.digests = self.pin.st_size, {XXH3_128: {}, SHA_256: {}}
        self.plan, self.asks, self.sent, self.unread = deque(), deque(), Counter(), list(range(grid(self.size)[1]))
        self.totals = {"done": 0, "skipped": 0, "failed": 0}
        self.young = max(self.pin.st_mtime_ns, self.pin.st_ctime_ns) > time.time_ns() - 2 * 10**9

    def offer(self, name, bare):
        """FOLDER with the one file, or with `bare`, a folder or link. The tag of a young file is zero."""
        self.size, self.root = (0, root_of(self.digest, {}, 0)) if bare else (self.size, None)
        tag = tag_of(self.private, self.pin.st_ino, self.pin.st_ctime_ns)
        fields = {"tag": bytes(16) if self.young else tag, "target": b"", "tlvs": []}
        fields |= {"kind": 1, "name": name, "size": self.size, "allocated": min(self.pin.st_blocks * 512, self.size)}
        fields |= {"mode": self.pin.st_mode & 0o777, "mtime_ns": self.pin.st_mtime_ns}
        self.lane.say("FOLDER", path=b"", first=1, entries=[fields | (bare or {})])

    def run(self):
        """Works until the receiver ends the entry; then BYE."""
        while self.state != "ended":
            work = self.work()
            heard = self.lane.hear(SAID_BY_RECEIVER, wait_s=0 if work else None)
            try:
                if heard:
                    self.take(*heard[:2])
                elif work:
                    work()
            except SourceChanged:
                self.state = "cancelled"
                self.lane.say("CANCEL", entry=1, code=34, message=b"the source changed")
        self.lane.say("BYE", **self.totals)
        _, answer, _ = self.lane.hear({"BYE", "PING", "BUSY"})
        require(answer == self.totals, "the totals differ")
        return self.totals

    def work(self):
        """The most urgent piece of work."""
        if self.state not in ("wanted", "finished"):
            return None
        if self.plan and not self.paused:
            return self.send_chunk
        if self.asks:
            return self.answer_ask
        if self.unread:
            return lambda: self.read(self.unread[0])
        return self.finish if self.state == "wanted" and not self.plan else None

    def read(self, index, digest=None):
        """A chunk; notes its digests, which must be the same whenever it is read."""
        data = os.pread(self.file.fileno(), *span(self.size, index))
        for kind in {XXH3_128, self.digest, digest or self.digest}:
            if self.digests[kind].setdefault(index, digest_of(kind, data)) != digest_of(kind, data):
                raise SourceChanged
        if index in self.unread:
            self.unread.remove(index)
        return data

    def send_chunk(self):
        """The next chunk of the plan, as DATA or ZEROS."""
        index = self.plan.popleft()
        payload = self.read(index)
        self.sent[index] += 1
        if payload.strip(b"\0"):
            final = self.final and grid(self.size)[1] == 1 and self.state == "wanted"
            if final:
                self.look_again()
            digest = digest_of(XXH3_128, payload)
            self.lane.say("DATA", entry=1, index=index, digest=digest, payload=payload, final=final)
        else:
            self.lane.say("ZEROS", entry=1, ranges=[{"first": index, "count": 1}])

    def answer_ask(self):
        """The next digests that were asked for."""
        digest, indexes = self.asks.popleft()
        for index in indexes[:AT_ONCE]:
            self.read(index, digest)
        digests = b"".join(self.digests[digest][index] for index in indexes[:AT_ONCE])
        self.lane.say("DIGESTS", entry=1, digest=digest, first=indexes[0], digests=digests)
        if indexes[AT_ONCE:]:
            self.asks.appendleft((digest, indexes[AT_ONCE:]))

    def finish(self):
        """The last look, and FINISH."""
        self.look_again()
        self.lane.say("FINISH", entry=1, root=self.root)

    def look_again(self):
        """The last look. A file that was young when it was opened is read a second time."""
        for index in range(grid(self.size)[1] if self.young else 0):
            self.read(index)
        now = os.fstat(self.file.fileno())
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (self.size, self.pin.st_mtime_ns, self.pin.st_ctime_ns):
            raise SourceChanged
        self.root, self.state = root_of(self.digest, self.digests[self.digest], self.size), "finished"

    def take(self, name, fields):
        """What the receiver says."""
        if name in ("PAUSE", "RESUME"):
            self.paused = name == "PAUSE"
            return
        for item in fields.get("items", fields.get("entries", [fields])):
            require(item["entry"] == 1, "an entry that was not offered")
            if self.state == "ended":
                continue
            if name == "WANT":
                self.take_want(from_ranges(item["ranges"], self.size))
            elif name == "WANT_ALL":
                self.take_want(list(range(grid(self.size)[1])))
            elif name == "ASK_DIGESTS":
                require(self.state != "offered", "ASK_DIGESTS before WANT")
                require(0 < item["count"] <= 4096 and len(self.asks) < 16, "an ask outside the limits")
                self.asks.append((item["digest"], from_ranges([item], self.size)))
            else:
                self.take_end(name, item)

    def take_want(self, wanted):
        """Puts chunks into the plan."""
        require(all(self.sent[index] <= MAX_REPAIRS for index in wanted), "a chunk is wanted too often")
        require(not set(wanted) & set(self.plan), "a chunk is wanted twice")
        self.plan.extend(wanted)
        self.state = "wanted" if self.state == "offered" else self.state

    def take_end(self, name, item):
        """SKIP, REFUSE or RECEIPT ends the entry."""
        require(name != "SKIP" or self.state in ("offered", "cancelled"), "SKIP behind WANT")
        require(name != "REFUSE" or item["code"] != 0, "REFUSE code 0 does not answer a CANCEL")
        require(name != "RECEIPT" or self.root is not None and item["root"] == self.root, "a receipt of another root")
        self.state = "ended"
        self.totals[{"RECEIPT": "done", "SKIP": "skipped", "REFUSE": "failed"}[name]] = 1


def send(host, port, path, *, private=SENDER, secret=None, receivers=(), known_hosts=None, accept_new=False,
         folder=b"", process=None, retry_for_s=0, digest=XXH3_128, versions=(1, 1), final=False, bare=None,
         **link):  # fmt: skip
    """Dials and sends one file in one session, `final` if it is small; or `bare`, a folder or link.

    `receivers` are the fingerprints in the secret file. `known_hosts` is the path of such a file, `accept_new` the
    user's yes to a listener that is not in it. `link` is what Lane takes.
    """
    path = Path(path).absolute()
    fields = {"session": secrets.token_bytes(16), "process": process or secrets.token_bytes(16), "role": 1}
    fields |= {"job": job_id_of(os.fsencode(path), folder)}
    fields |= {"mode": 0, "lanes": 1, "retry_for_s": retry_for_s, "digest": digest, "folder": folder, "tlvs": []}
    with path.open("rb") as file, Lane(socket.create_connection((host, port)), **link) as lane:
        identity, method = greet_as_dialer(lane, private, secret, versions)
        trust(identity, method, private, secret, receivers, host_name(host, port), known_hosts, accept_new)
        lane.say("OPEN", **fields)
        lane.idle = "PING"
        lane.grease()
        sender = Sender(lane, file, private, digest, final)
        sender.offer(os.fsencode(path.name), bare)
        _, opened, _ = lane.hear({"OPENED", "BUSY"})
        require(opened["lanes"] == 1, "OPENED grants lanes that were not asked for")
        return sender.run()


# --- The receiver ---


def is_reserved(name):
    """Whether a file system may take a name for one of the receiver's own."""
    text = unicodedata.normalize("NFKC", name.decode(errors="replace")).casefold()
    text = "".join(char for char in text if unicodedata.category(char) != "Cf").rstrip(". ")
    return text == ".ftx" or text.startswith(".ftx-") and text.endswith(".part")


def is_path(path):
    """Whether a path keeps the rules; an empty one is the root of the destination."""
    parts = path.split(b"/") if path else []
    bad = any(part in (b"", b".", b"..") or b"\0" in part or len(part) > 255 or is_reserved(part) for part in parts)
    return not bad and len(path) <= 4096


@contextlib.contextmanager
def folders(root, parts, make, mode=0o777):
    """The open folders from the root down. No link is followed."""
    with contextlib.ExitStack() as stack:
        opened = [root]
        for part in parts:
            with contextlib.suppress(FileExistsError):
                if make:
                    os.mkdir(part, mode, dir_fd=opened[-1])
            opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
            stack.callback(os.close, opened[-1])
        yield opened


class Refused(Exception):
    """An entry cannot be taken: code and message."""


class Arrival:
    """An entry at the receiver, with its partial and its journal, as in Appendix A of the document."""

    def __init__(self, lane, where, digest, entry, offered):
        self.root, self.box, self.peer, self.path = where
        self.lane, self.digest, self.entry, self.offered, self.size = lane, digest, entry, offered, offered["size"]
        self.missing, self.digests, self.repairs, self.finished, self.final = set(), {}, Counter(), None, False
        self.ask, self.to_ask, self.doubts = None, deque(), []
        self.key = hashlib.sha256(self.peer + self.path).hexdigest()[:32]
        self.part = self._open(".part")
        self.journal = self._open(".journal")

    def _open(self, end):
        return os.open(self.key + end, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=self.box)

    def close(self):
        """Leaves partial and journal."""
        os.close(self.part)
        os.close(self.journal)

    def begin(self):
        """The first WANT, at once; then asks about chunks of another version."""
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(53, "another session writes to this path") from None
        everything = set(range(grid(self.size)[1]))
        held, doubted = self.load()
        os.ftruncate(self.part, self.size)
        self.unread, self.doubts = set(held), [sorted(held), sorted(everything)][not held :]
        self.want(everything - held - doubted, sum(span(self.size, index)[0] for index in held))
        self.ask_for(SHA_256, doubted)

    def load(self):
        """Chunks that the journal lists: held, and doubted. Leaves a journal that records can be put behind."""
        fields = (b"ftxj", 1, 0, self.peer, self.size, self.offered["mtime_ns"], self.offered["tag"])
        fields += (grid(self.size)[0], self.digest, os.fstat(self.part).st_ino, len(self.path))
        header = struct.pack(HEADER, *fields) + self.path
        self.seed, end = xxhash.xxh3_64_intdigest(header), len(header) + 8
        old = os.pread(self.journal, os.fstat(self.journal).st_size, 0)
        indexes, was, good = set(), fields, end if len(old) >= end else 0
        if good:
            was, seed = struct.unpack_from(HEADER, old), int.from_bytes(old[end - 8 : end], "big")
            same = (was[0], was[3], was[7], was[9:], old[end - 8 - len(self.path) : end - 8])
            same = same == (b"ftxj", self.peer, fields[7], fields[9:], self.path)
            while same and seed == xxhash.xxh3_64_intdigest(old[: end - 8]) and len(old) >= good + 24:
                first, count, check = struct.unpack_from(">QQQ", old, good)
                chunks = grid(was[4])[1]
                if check != xxhash.xxh3_64_intdigest(old[good : good + 16], seed) or not first + count <= chunks:
                    break
                indexes.update(range(first, first + count))
                good += 24
        if old[:end] == header + struct.pack(">Q", self.seed) and any(self.offered["tag"]):
            os.ftruncate(self.journal, good)
            return indexes, set()
        os.ftruncate(self.journal, 0)
        os.pwrite(self.journal, header + struct.pack(">Q", self.seed), 0)
        chunks = grid(self.size)[1]
        return set(), {one for one in indexes if one < chunks and span(was[4], one) == span(self.size, one)}

    def note(self, index):
        """Puts a chunk into the journal."""
        record = struct.pack(">QQ", index, 1)
        check = struct.pack(">Q", xxhash.xxh3_64_intdigest(record, self.seed))
        os.pwrite(self.journal, record + check, os.fstat(self.journal).st_size)

    def want(self, indexes, held=0):
        """WANT, at most 4096 ranges in each."""
        self.missing |= indexes
        ranges = to_ranges(indexes)
        for start in range(0, len(ranges) or 1, 4096):
            self.lane.say("WANT", entry=self.entry, held=0 if start else held, ranges=ranges[start : start + 4096])

    def want_again(self, index):
        """Repair: WANT of a chunk that was wrong."""
        self.repairs[index] += 1
        if self.repairs[index] > MAX_REPAIRS:
            raise Refused(16, f"chunk {index} stays damaged")
        self.want({index})

    def ask_for(self, digest, indexes):
        """Asks for digests, one ask at a time."""
        for one in to_ranges(indexes):
            ends = range(one["first"], sum(one.values()), 4096)
            self.to_ask.extend((digest, at, min(4096, sum(one.values()) - at)) for at in ends)
        if not self.ask and self.to_ask:
            digest, first, count = self.to_ask.popleft()
            self.ask = [digest, first, first + count]
            self.lane.say("ASK_DIGESTS", entry=self.entry, digest=digest, first=first, count=count)

    def read(self, index):
        """A chunk of the partial."""
        self.lane.keep_alive("BUSY")
        return os.pread(self.part, *span(self.size, index))

    def arrive(self, index, payload):
        """A verified chunk: written, then noted."""
        if payload.strip(b"\0") or self.read(index) != payload:
            os.pwrite(self.part, payload, span(self.size, index)[1])
        self.digests[index] = digest_of(self.digest, payload)
        self.missing.remove(index)
        self.note(index)

    def take(self, name, fields):
        """What the sender says. Returns the name of the total in which the entry has ended."""
        if name == "DATA":
            index, payload = fields["index"], fields["payload"]
            require(index in self.missing and len(payload) == span(self.size, index)[0], "a chunk that is not wanted")
            require(not fields.get("final") or grid(self.size)[1] == 1, "final DATA for one of several chunks")
            self.final = self.final or fields.get("final", False)
            if digest_of(XXH3_128, payload) == fields["digest"]:
                self.arrive(index, payload)
                if self.final and not self.finished:
                    self.finished = root_of(self.digest, self.digests, self.size)
            else:
                self.want_again(index)
        elif name == "ZEROS":
            for index in from_ranges(fields["ranges"], self.size):
                require(index in self.missing, "zeros that are not wanted")
                self.arrive(index, bytes(span(self.size, index)[0]))
        elif name == "DIGESTS":
            self.compare(fields["digest"], fields["first"], fields["digests"])
        elif name == "FINISH":
            require(self.finished in (None, fields["root"]), "another root than before")
            require(len(fields["root"]) == len(digest_of(self.digest, b"")), "a root of another digest")
            self.finished = fields["root"]
        else:
            require(fields["code"] == 0 or 32 <= fields["code"] < 48, "CANCEL with a code of another group")
            raise Refused(fields["code"], fields["message"].decode(errors="replace"))
        return self.settle() if self.finished and not self.missing and not self.ask else None

    def compare(self, digest, first, digests):
        """DIGESTS: keeps what is equal, wants what differs."""
        length = len(digest_of(digest, b""))
        count = len(digests) // length
        fits = self.ask and self.ask[:2] == [digest, first] and 0 < count <= self.ask[2] - first
        require(fits and count * length == len(digests), "DIGESTS that were not asked for")
        for index in range(first, first + count):
            data, at = self.read(index), (index - first) * length
            if digest_of(digest, data) != digests[at : at + length]:
                self.want_again(index)
            elif index not in self.digests:
                self.digests[index] = digest_of(self.digest, data)
                self.note(index)
        self.ask[1] += count
        if self.ask[1] == self.ask[2]:
            self.ask = None
            self.ask_for(digest, ())

    def settle(self):
        """All chunks are there: reads back what this session did not write, and compares the roots."""
        for index in sorted(self.unread - set(self.digests)):
            self.digests[index] = digest_of(self.digest, self.read(index))
        if root_of(self.digest, self.digests, self.size) == self.finished:
            return self.commit()
        if not self.doubts:
            raise Refused(16, "the roots differ, and no chunk does")
        self.ask_for(self.digest, self.doubts.pop(0))
        return None

    def commit(self):
        """Metadata, sync, rename, sync of the folders, receipt."""
        os.fchmod(self.part, self.offered["mode"] & 0o777)
        os.utime(self.part, ns=(self.offered["mtime_ns"], self.offered["mtime_ns"]))
        os.fsync(self.part)
        *parts, name = self.path.split(b"/")
        with folders(self.root, parts, True) as opened:
            os.rename(self.key + ".part", name, src_dir_fd=self.box, dst_dir_fd=opened[-1])
            for one in reversed(opened):
                os.fsync(one)
        items = [{"entry": self.entry, "flags": DURABLE, "root": self.finished}]
        self.lane.say("RECEIPT", items=items)
        os.unlink(self.key + ".journal", dir_fd=self.box)
        return "done"


class Receiver:
    """The receiver of a session."""

    def __init__(self, lane, folder, opening, peer):
        self.lane, self.opening, self.peer, self.highest, self.entries = lane, opening, peer, 0, {}
        self.totals, self.stack = {"done": 0, "skipped": 0, "failed": 0}, contextlib.ExitStack()
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.stack.callback(os.close, self.root)
        self.box = self.stack.enter_context(folders(self.root, [b".ftx"], True, 0o700))[-1]
        self.stack.callback(lambda: [arrival.close() for arrival in self.entries.values()])

    def run(self):
        """Takes what comes until BYE; returns the totals."""
        with self.stack:
            while True:
                name, fields, _ = self.lane.hear(SAID_BY_SENDER)
                if name == "BYE":
                    require(not self.entries and fields == self.totals, "BYE with open entries or other totals")
                    self.lane.say("BYE", **self.totals)
                    self.lane.uncork()
                    self.lane.drain()
                    return self.totals
                if name == "FOLDER":
                    require(self.highest < fields["first"], "an id that was used")
                    require(len(self.entries) + len(fields["entries"]) <= WINDOW, "more than the window")
                    for self.highest, offered in enumerate(fields["entries"], fields["first"]):
                        self.answer(self.highest, self.offer, fields["path"], offered)
                elif name != "FOLDER_END":
                    require(1 <= fields["entry"] <= self.highest, "an entry that was not offered")
                    if fields["entry"] in self.entries:
                        self.answer(fields["entry"], self.entries[fields["entry"]].take, name, fields)

    def answer(self, entry, step, *args):
        """One step of an entry, which may end it."""
        try:
            ended = step(*args)
        except (Refused, OSError) as error:
            code, text = error.args if isinstance(error, Refused) else (48, str(error))
            self.lane.say("REFUSE", items=[{"entry": entry, "code": code, "message": text.encode()[:1024]}])
            ended = "failed" if code else "withdrawn"
        if ended:
            self.totals |= {ended: self.totals[ended] + 1} if ended in self.totals else {}
            if entry in self.entries:
                self.entries.pop(entry).close()

    def offer(self, path, offered):
        """The first answer to an offer."""
        path = b"/".join(part for part in (self.opening["folder"], path, offered["name"]) if part)
        for bad, code, text in (
            (offered["kind"] != 1, 4, "files only"),
            (critical_tlvs(offered), 4, critical_tlvs(offered)),
            (not offered["name"] or b"/" in offered["name"] or not is_path(path), 51, "the name is refused"),
            (offered["size"] > 1 << 44, 54, "too large"),
        ):
            if bad:
                raise Refused(code, text)
        *parts, name = path.split(b"/")
        with contextlib.suppress(FileNotFoundError), folders(self.root, parts, False) as opened:
            there = os.stat(name, dir_fd=opened[-1], follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                raise Refused(52, "a folder has this name")
            if (there.st_size, there.st_mtime_ns) == (offered["size"], offered["mtime_ns"]):
                self.lane.say("SKIP", items=[{"entry": self.highest, "reason": 1}])
                return "skipped"
        where = (self.root, self.box, self.peer, path)
        arrival = Arrival(self.lane, where, self.opening["digest"], self.highest, offered)
        self.entries[self.highest] = arrival
        return arrival.begin()


def receive(listener, folder, *, private=RECEIVER, secret=None, known=(), is_open=False, versions=(1, 1), **link):
    """Accepts one connection and takes the files of its session. `known` are identities; `link` is what Lane takes."""
    with Lane(listener.accept()[0], **link) as lane:
        opening, peer = greet_as_listener(lane, private, secret, known, is_open, versions)
        require(is_path(opening["folder"]), "the folder is refused", 51)
        lane.say("OPENED", lanes=1, window=WINDOW, tlvs=[])
        lane.idle = "PING"
        lane.grease()
        return Receiver(lane, folder, opening, peer).run()


# --- Pairing ---

FIELD = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, FIELD) % FIELD
NEUTRAL = (0, 1, 1, 0)  # a point is (X, Y, Z, T) with x = X/Z, y = Y/Z and xy = T/Z
M = bytes.fromhex("15cfd18e385952982b6a8f8c7854963b58e34388c8e6dae891db756481a02312")
N = bytes.fromhex("f04f2e7eb734b2a8f8b472eaf9c3c632576ac64aea650b496a8a20ff00e583c3")


def point_of(raw):
    """The point of the curve with an encoding of 32 bytes, as in RFC 8032; None if there is none."""
    number = int.from_bytes(raw, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= FIELD:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    if x * x % FIELD != square:
        x = x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    if x * x % FIELD != square or not x and sign:
        return None
    x = FIELD - x if x & 1 != sign else x
    return x, y, 1, x * y % FIELD


def bytes_of(point):
    """The encoding of a point."""
    inverse = pow(point[2], -1, FIELD)
    x, y = point[0] * inverse % FIELD, point[1] * inverse % FIELD
    return (y | (x & 1) << 255).to_bytes(32, "little")


def plus(one, other):
    """The sum of two points."""
    a, b = (one[1] - one[0]) * (other[1] - other[0]), (one[1] + one[0]) * (other[1] + other[0])
    c, d = 2 * D * one[3] * other[3], 2 * one[2] * other[2]
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % FIELD, g * h % FIELD, f * g % FIELD, e * h % FIELD


def times(number, point):
    """A multiple of a point."""
    out = NEUTRAL
    for bit in bin(number)[2:]:
        out = plus(out, out)
        out = plus(out, point) if bit == "1" else out
    return out


BASE = point_of((4 * pow(5, -1, FIELD) % FIELD).to_bytes(32, "little"))


def is_element(raw, own=None):
    """Whether PAIR may bring these bytes to a side that has sent `own`."""
    point = point_of(raw)
    neutral = bytes_of(NEUTRAL)
    return bool(point) and raw not in (neutral, own) and bytes_of(times(ORDER, point)) == neutral


def code_of(typed):
    """The bytes of a code as a person has typed it."""
    text = "".join(char.lower() if "A" <= char <= "Z" else char for char in typed)
    return re.sub(r"[\s_-]+", "-", text).strip("-").encode()


def number_of(code):
    """The number w that stands for the bytes of a code."""
    key, out, block = hmac.digest(bytes(32), code, "sha256"), b"", b""
    for count in (1, 2):
        block = hmac.digest(key, block + b"SPAKE2 pw" + bytes([count]), "sha256")
        out += block
    return int.from_bytes(out[:48], "big") % ORDER


def element_of(code, number, blind):
    """The element of the side whose point is `blind` (M or N) and whose random number is `number`."""
    return bytes_of(plus(times(number, BASE), times(number_of(code), point_of(blind))))


def pairing_key(code, number, blind, dialer_element, listener_element):
    """The key, for the side whose peer has the point `blind`."""
    theirs = listener_element if blind == N else dialer_element
    unblinded = plus(point_of(theirs), times(ORDER - number_of(code), point_of(blind)))
    shared = bytes_of(times(number, unblinded))
    names = [hashlib.sha256(part).digest() for part in (code, b"ftx/1 dialer", b"ftx/1 listener")]
    return hashlib.sha256(b"".join(names) + dialer_element + listener_element + shared).digest()


def take_proof(lane, identity, maker, key, transcript, wrong, deadline=float("inf")):
    """Takes the PROOF behind PAIR, which must be of method 4."""
    _, fields, _ = lane.hear({"PROOF"}, deadline=deadline)
    require(is_signed(fields["signature"], identity, maker, transcript), "a signature that does not hold", 64)
    require(maker == b"dialer" or len(fields["proofs"]) == 1, "a listener's PROOF has one item")
    macs = [item["mac"] for item in fields["proofs"] if item["method"] == PAIRED]
    right = mac_of(key, maker, PAIRED, transcript)
    require(any(hmac.compare_digest(right, mac) for mac in macs), "the code is another one", wrong)


def give_proof(lane, private, maker, key, transcript):
    """Says the PROOF behind PAIR."""
    proofs = [{"method": PAIRED, "mac": mac_of(key, maker, PAIRED, transcript)}]
    lane.say("PROOF", signature=signature_of(private, maker, transcript), proofs=proofs, tlvs=[])


def pair(host, port, typed, *, private=SENDER, known_hosts=None, number=None, **link):
    """Dials and pairs by a code; returns the listener's identity, and puts it on file. `link` is what Lane takes."""
    code, x = code_of(typed), secrets.randbelow(ORDER) if number is None else number
    with Lane(socket.create_connection((host, port)), **link) as lane:
        identity, transcript = meet_as_dialer(lane, private, (1, 1))
        mine = element_of(code, x, M)
        lane.say("PAIR", element=mine, tlvs=[])
        _, fields, _ = lane.hear({"PAIR"})
        require(is_element(fields["element"], mine), "no element")
        key = pairing_key(code, x, N, mine, fields["element"])
        give_proof(lane, private, b"dialer", key, transcript)
        take_proof(lane, identity, b"listener", key, transcript, 64)
    if known_hosts:
        name = host_name(host, port)
        lines = known_hosts.read_text().splitlines(True) if known_hosts.exists() else []
        lines = [line for line in lines if line.split()[:1] != [name]]
        known_hosts.write_text("".join(lines) + f"{name} {fingerprint_of(identity)}\n")
    return identity


def let_pair(listener, typed, *, private=RECEIVER, number=None, **link):
    """Accepts one connection that pairs by a code; returns the dialer's identity. `link` is what Lane takes."""
    code, y = code_of(typed), secrets.randbelow(ORDER) if number is None else number
    with Lane(listener.accept()[0], **link) as lane:
        deadline = time.monotonic() + 10
        identity, transcript = meet_as_listener(lane, private, (1, 1), deadline)
        _, fields, _ = lane.hear({"PAIR"}, deadline=deadline)
        mine = element_of(code, y, N)
        require(is_element(fields["element"], mine), "no element")
        lane.say("PAIR", element=mine, tlvs=[])
        key = pairing_key(code, y, M, fields["element"], mine)
        take_proof(lane, identity, b"dialer", key, transcript, 67, deadline)
        give_proof(lane, private, b"listener", key, transcript)
        lane.uncork()
        lane.drain()
        return identity
