"""G7, G8: whatever strangers say, it ends in an error that this project knows, never in a bug.

Each case is made by a random generator with its seed in the test's id: what fails fails again.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import FtxError
from ftx.net import handshake, keys, pairing, tls
from ftx.net.handshake import Trust
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.net.pairing import Exchange
from ftx.protocol import codec, proof
from ftx.protocol import messages as m
from ftx.protocol import ssh as start
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import Method, Role
from ftx.protocol.session import Side
from ftx.transfer import events
from tests.hostile import keyed, peer
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send

#: Seeds of each day, and of a long run; each makes some hundred cases of bytes, or some ten connections.
FEW, MANY = range(4), range(4, 200)
seeds = pytest.mark.parametrize("seed", [*FEW, *(pytest.param(seed, marks=pytest.mark.long) for seed in MANY)])
DIALER, LISTENER = Identity(b"d" * 32), Identity(b"l" * 32)
KEYS = {Method.SECRET: b"k" * 32}
CODE = "0000-acorn-actor"
OPEN = m.Open(bytes(16), bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 1, 0, DigestName.XXH3_128, b"")
TRUST = Trust("there", anyone=True)


# --- What is said --------------------------------------------------------------------------------------


def resealed(frame: bytes) -> bytes:
    """With a length and a check that fit, so that what is behind them is looked at."""
    if len(frame) < codec.HEADER_SIZE:
        return frame
    start, body = frame[:4] + (len(frame) - codec.HEADER_SIZE).to_bytes(4, "big"), frame[codec.HEADER_SIZE :]
    return start + codec.xxhash.xxh3_64_digest(start + body) + body


def bent(rng: random.Random, data: bytes) -> bytes:
    """Some bytes of it changed, taken out, put in or doubled."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + 1] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
            case 2:
                del found[at : at + rng.randrange(1, 40)]
            case 3:
                found[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                found[at:at] = found[at : at + rng.randrange(1, 40)]
            case _:
                found[at : at + 8] = rng.choice((2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "big")
    return bytes(found)


def any_frame(rng: random.Random) -> bytes:
    """Of any type, also of none; seldom one that has a meaning."""
    type_ = rng.choice((*codec.LAYOUTS, m.Type.DATA, rng.randrange(256)))
    body = rng.randbytes(rng.choice((0, 1, 8, 24, 40, 75, 200)))
    head = codec.HEADER.pack(type_, rng.choice((0, 1, 3, 255)), rng.choice((0, 0, 65535)), len(body), 0)
    return resealed(head + body)


def said(rng: random.Random, side: Side, their_hello: bytes, fingerprint: bytes | None, own_hello: bytes) -> bytes:
    """What this side says behind its HELLO in a handshake that is kept to."""
    frames = (own_hello, their_hello) if side is Side.DIALER else (their_hello, own_hello)
    over_tls = fingerprint is not None
    transcript = proof.transcript(*frames, encrypted=over_tls, fingerprint=fingerprint or proof.NO_FINGERPRINT)
    identity = DIALER if side is Side.DIALER else LISTENER
    methods = rng.choice(((), (Method.SECRET,), (Method.PAIRED, Method.SECRET), (0, 1, 2, 250)))
    items = [m.ProofItem(one, proof.mac(KEYS[Method.SECRET], side, Method.SECRET, transcript)) for one in methods]
    if side is Side.LISTENER:
        items = items[:1] or [m.ProofItem(0, bytes(32))]
    messages: list[m.Message] = [m.Proof(identity.sign(proof.signed(side, transcript)), tuple(items))]
    if rng.random() < 0.3:
        element = rng.choice((Exchange(side, CODE).element, bytes(32), b"\1" + bytes(31), rng.randbytes(32)))
        messages.insert(0, m.Pair(element))
    if side is Side.DIALER:
        messages.append(rng.choice((OPEN, OPEN, m.Attach(bytes(16), rng.randrange(256)))))
    else:
        messages.append(m.Opened(1, 64))
    return b"".join(map(codec.encode, messages))


HELLOS = {side: codec.encode(m.Hello(m.MAGIC, 1, 1, bytes(32), who.public))
          for side, who in ((Side.DIALER, DIALER), (Side.LISTENER, LISTENER))}  # fmt: skip


def talk(rng: random.Random, sock: socket.socket | ssl.SSLSocket, side: Side, fingerprint: bytes | None) -> None:
    """One side of a handshake, of which something is wrong; in the pieces in which it likes to say it."""
    own = HELLOS[side]
    if rng.random() < 0.3:
        own = rng.choice((bent(rng, own), resealed(bent(rng, own)), any_frame(rng), rng.randbytes(rng.randrange(300))))
    with suppress(OSError):
        sock.settimeout(5 if own == HELLOS[side] else 0.1)  # else there may be no answer
        sock.sendall(own)
        theirs = sock.recv(65536)
        size = codec.HEADER_SIZE + int.from_bytes(theirs[4:8], "big")
        behind = said(rng, side, theirs[:size], fingerprint, own)
        match rng.randrange(5):
            case 0:
                behind = bent(rng, behind)
            case 1:
                behind = resealed(bent(rng, behind))
            case 2:
                behind = any_frame(rng) + behind
            case 3:
                behind = b"".join(any_frame(rng) for _ in range(rng.randrange(1, 90))) + behind
            case _:
                behind = behind[: rng.randrange(len(behind))]
        at = rng.randrange(len(behind) + 1)
        sock.sendall(behind[:at])
        sock.sendall(behind[at:])
        sock.settimeout(0.02)
        sock.recv(65536)


# --- The codec -----------------------------------------------------------------------------------------


def frames() -> list[bytes]:
    """One of each type of the handshake, and some others."""
    item = m.ProofItem(2, bytes(32))
    tlvs = (m.Tlv(0x0123, b"later"),)
    messages: list[Any] = [
        m.Hello(m.MAGIC, 1, 2, bytes(32), bytes(32), tlvs),
        m.Proof(bytes(64), (item, item), tlvs),
        m.Pair(bytes(32), tlvs),
        OPEN,
        m.Opened(1, 64, tlvs),
        m.Attach(bytes(16), 2),
        m.Folder(b"a/d", 7, (peer.offered(b"b", 3), peer.offered(b"c", 4)._replace(target=b"t", tlvs=tlvs))),
        m.Want(7, 3, (m.Range(0, 2), m.Range(5, 1))),
        m.Refuse((m.RefuseItem(7, 50, "full"),)),
        m.Receipt((m.ReceiptItem(7, 0, bytes(32)),)),
        m.Digests(7, DigestName.SHA_256, 64, bytes(64)),
        m.WantAll((7, 8, 9)),
        m.Error(65, "a newer run"),
    ]
    datas = [codec.encode_data(7, 0, bytes(16), 3), codec.encode_data(7, 0, bytes(16), 3, compressed=True) + b"abc"]
    return [*map(codec.encode, messages), *datas, codec.encode_grease(1, b"x")]


@seeds
def test_g8_the_codec_takes_any_bytes(seed: int) -> None:
    rng = random.Random(f"codec {seed}")
    good = frames()
    decoded = 0
    for _ in range(3000):
        data = rng.choice((bent(rng, rng.choice(good)), any_frame(rng)))
        if rng.random() < 0.8:
            data = resealed(data)
        if len(data) < codec.HEADER_SIZE:
            continue
        with suppress(FtxError):
            header = codec.decode_header(data)
            codec.decode_body(header, data[codec.HEADER_SIZE : codec.HEADER_SIZE + codec.body_size(header)])
            decoded += 1
        with suppress(FtxError):
            codec.data_in(bytearray(data), 0, len(data))
        with suppress(FtxError):
            codec.check_first_bytes(data)
    assert decoded > 50  # not all of it is stopped at the door


@seeds
def test_the_lines_over_ssh_take_any_bytes(seed: int) -> None:
    rng = random.Random(f"ssh {seed}")
    lines = [
        start.encode_request(start.Request(b"a/\xff", 30.0)),
        start.encode_answer(start.Answer(1, "ed25519:x", bytes(32), "192.0.2.7")).removeprefix(b"\n" + start.SSH_MARK),
        start.encode_failure(7, "no").removeprefix(b"\n" + start.SSH_MARK),
        b'{"version":1,"folder":"\\ud800","timeout_s":1e999}',
        b'{"version":1,"port":1e400,"fingerprint":0,"key":"00"}',
        b"[" * 20000,
        b'{"version":1,"code":' + b"9" * 5000 + b"}",
    ]
    for _ in range(2000):
        line = rng.choice(lines)
        line = bent(rng, line) if rng.random() < 0.9 else line
        for decode in (start.decode_request, start.decode_answer):
            with suppress(FtxError):
                decode(line)


# --- The two halves ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def credentials() -> tls.Credentials:
    return tls.listening(peer.NOWHERE, LISTENER)


@contextmanager
def half(work: Callable[[Lane], object], *, dialer: bool) -> Iterator[tuple[socket.socket, list[BaseException]]]:
    """One side of a handshake, by ftx: the other end of its connection, and what escaped beside what is documented."""
    ours, theirs = socket.socketpair()
    escaped: list[BaseException] = []
    lane = Lane(ours, dialer=dialer)
    lane.deadline_s = time.monotonic() + 5

    def run() -> None:
        try:
            work(lane)
        except FtxError as error:
            handshake.refuse(lane, error)
        except BaseException as error:
            escaped.append(error)
        finally:
            lane.close()

    thread = threading.Thread(target=run, name="half")
    thread.start()
    try:
        with theirs:
            theirs.settimeout(5)
            yield theirs, escaped
    finally:
        thread.join()
    assert not escaped, escaped


class Desk:
    """Pairs whoever has the code, as often as it comes."""

    def begin(self, deadline_s: float) -> str:
        return CODE

    def failed(self, code: str) -> None:
        pass

    def paired(self, code: str, address: str, public: bytes) -> None:
        pass


@seeds
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_g7_a_listener_takes_any_bytes(credentials: tls.Credentials, over_tls: bool, seed: int) -> None:
    rng = random.Random(f"listener {seed} {over_tls}")
    desk: Any = Desk()

    def listen(lane: Lane) -> None:
        handshake.listen(lane, LISTENER, KEYS, credentials if over_tls else None, open_=True, pairing=desk)

    for _ in range(30):
        with half(listen, dialer=False) as (sock, _):
            if not over_tls or rng.random() < 0.1:
                talk(rng, sock, Side.DIALER, None)
            elif rng.random() < 0.3:
                talk_tls(rng, sock)
            else:
                with tls.dialing().wrap_socket(sock) as encrypted:
                    talk(rng, encrypted, Side.DIALER, credentials[1])


def talk_tls(rng: random.Random, sock: socket.socket) -> None:
    """A TLS handshake of which something is wrong."""
    hello = keyed.client_hello()
    with suppress(OSError):
        sock.sendall(b"\x16" + bent(rng, hello)[1:])
        sock.settimeout(0.02)
        sock.recv(65536)
        sock.sendall(bent(rng, keyed.record(rng.choice((20, 21, 22, 23, 24)), rng.randbytes(rng.randrange(200)))))
        sock.recv(65536)


@seeds
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("pairs", [False, True], ids=["sends", "pairs"])
def test_g7_a_dialer_takes_any_bytes(credentials: tls.Credentials, over_tls: bool, pairs: bool, seed: int) -> None:
    rng = random.Random(f"dialer {seed} {over_tls} {pairs}")

    def dial(lane: Lane) -> None:
        if pairs:
            handshake.pair(lane, DIALER, CODE, plain=not over_tls)
        else:
            handshake.dial(lane, DIALER, rng.choice(({}, KEYS)), TRUST, plain=not over_tls)
            lane.order.opened(Role.SENDER)
            handshake.open_session(lane, OPEN, 1.0)

    for _ in range(15):
        with half(dial, dialer=True) as (sock, _), suppress(OSError):
            if over_tls and rng.random() < 0.2:
                sock.recv(65536)
                hello = bent(rng, HELLOS[Side.LISTENER])
                sock.sendall(rng.choice((any_frame(rng), hello, b"\x16" + rng.randbytes(99))))
            elif over_tls:
                with credentials[0].wrap_socket(sock, server_side=True) as encrypted:
                    talk(rng, encrypted, Side.LISTENER, credentials[1])
            else:
                talk(rng, sock, Side.LISTENER, None)


# --- A receiver ----------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
def test_g7_a_receiver_takes_any_bytes_at_its_port(
    shm: Path, monkeypatch: pytest.MonkeyPatch, plain: bool, seed: int
) -> None:
    """It calls nothing of that a bug in itself, and serves the next one who may come in."""
    for name, seconds in (("PAIR_S", 0.01), ("DRAIN_S", 0.05), ("HANDSHAKE_S", 5)):
        monkeypatch.setattr(m, name, seconds)
    rng = random.Random(f"receiver {seed} {plain}")
    pairing.Codes(shm / "config").make()
    with LocalReceiver(shm, plain=plain) as receiver:
        fingerprint = None if plain else tls.listening(shm / "config", keys.identity(shm / "config")[0])[1]
        for _ in range(30):
            with closing(peer.connected(receiver.port)) as sock:
                if rng.random() < 0.2:
                    with suppress(OSError):
                        sock.sendall(rng.choice((any_frame(rng), rng.randbytes(rng.randrange(1, 600)), b"\x16")))
                elif plain or rng.random() < 0.2:
                    talk(rng, sock, Side.DIALER, None)
                elif rng.random() < 0.4:
                    talk_tls(rng, sock)
                else:
                    with tls.dialing().wrap_socket(sock) as encrypted:
                        talk(rng, encrypted, Side.DIALER, fingerprint)
        assert local_send(shm, fill(shm / "f", 1000), receiver.port, plain=plain).code == 0
    assert not [one for one in receiver.of_type(events.Warn) if "a bug in ftx" in one.message]
