"""Pairing: codes in their file, also between processes; SPAKE2 by the document's words; and both halves of it."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import multiprocessing
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import FtxError, LinkLost, ProtocolError, Refused, Unsupported, UsageError, WrongCode
from ftx.net import handshake, pairing
from ftx.net.identity import Identity, fingerprint
from ftx.net.lane import Lane
from ftx.net.pairing import Codes, Exchange, Fate, Paired, Pairing, new_code, normalised
from ftx.net.words import WORDS
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.messages import Method
from ftx.protocol.session import Side
from tests.support.lanes import both, lane_pair

CODE = "4821-amber-tulip"
DIALER, LISTENER, STRANGER = (Identity(seed * 32) for seed in (b"d", b"l", b"s"))


# --- codes ---------------------------------------------------------------------------------------------


def test_the_words() -> None:
    assert len(WORDS) == len(set(WORDS)) == 256
    assert all(re.fullmatch("[a-z]{3,8}", word) for word in WORDS)
    assert list(WORDS) == sorted(WORDS)


def test_a_code_is_four_digits_and_two_different_words() -> None:
    codes = [new_code() for _ in range(200)]
    assert len(set(codes)) == len(codes)
    for code in codes:
        digits, one, other = code.split("-")
        assert re.fullmatch("[0-9]{4}", digits) and one != other and {one, other} <= set(WORDS)
        assert normalised(code) == code


@pytest.mark.parametrize(
    "typed",
    [CODE, "4821 amber tulip", " 4821_Amber--TULIP\r\n", "4821 - amber - tulip", "-4821-amber\ttulip-"],
)  # fmt: skip
def test_what_a_person_types(typed: str) -> None:
    assert normalised(typed) == CODE


# --- the file ------------------------------------------------------------------------------------------


@pytest.fixture
def codes(tmp_path: Path) -> Codes:
    return Codes(tmp_path / "config")


def test_without_a_code(codes: Codes) -> None:
    assert codes.begin() is None
    assert codes.used(CODE, "there", DIALER.public, filed) is None
    assert codes.look(CODE) is Fate.VOID


def test_a_code_pairs_once(codes: Codes) -> None:
    code = codes.make("laptop")
    assert (codes.path.stat().st_mode & 0o777, codes.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert codes.begin() == code
    assert codes.look(code) is Fate.GOOD
    peer = Paired(code, "laptop", fingerprint(DIALER.public), "192.0.2.7")
    assert codes.used(code, "192.0.2.7", DIALER.public, filed) == peer
    assert codes.used(code, "192.0.2.8", STRANGER.public, filed) is None
    assert codes.begin() is None
    assert codes.look(code) == peer
    codes.make()
    assert codes.look(code) == peer  # whoever shows it hears of it, also when another one is shown already


def filed(name: str, _public: bytes) -> str:
    """A ``peers`` file in which there is room for every name."""
    return name


def test_a_code_whose_peer_cannot_be_filed_has_paired_nobody(codes: Codes) -> None:
    """Whoever shows it must not say so; and it is worth nothing any more."""
    code = codes.make("laptop")

    def full(_name: str, _public: bytes) -> str:
        raise OSError(28, os.strerror(28))

    with pytest.raises(UsageError, match="No space"):
        codes.used(code, "there", DIALER.public, full)
    assert not isinstance(codes.look(code), Paired)
    assert codes.begin() is None


def test_who_is_paired_is_told_by_the_name_that_it_has(codes: Codes) -> None:
    code = codes.make("laptop")
    peer = codes.used(code, "there", DIALER.public, lambda name, _: f"{name}-2")
    assert peer is not None and peer.name == "laptop-2"
    assert codes.look(code) == peer


def test_without_a_name_the_address_is_one(codes: Codes) -> None:
    peer = codes.used(codes.make(), "192.0.2.7", DIALER.public, filed)
    assert peer is not None and peer.name == "192.0.2.7"


def test_g7_five_exchanges_and_no_more(codes: Codes) -> None:
    code = codes.make()
    assert [codes.begin() for _ in range(7)] == [code] * m.PAIR_TRIES + [None, None]
    assert codes.look(code) is Fate.GOOD  # the last may still succeed
    assert codes.used(code, "there", DIALER.public, filed) is not None


def test_g7_the_fifth_failure_voids_a_code(codes: Codes) -> None:
    code = codes.make()
    for _ in range(m.PAIR_TRIES):
        assert codes.look(code) is Fate.GOOD
        codes.begin()
        codes.failed(code)
    assert codes.look(code) is Fate.VOID
    assert codes.used(code, "there", DIALER.public, filed) is None
    fresh = codes.make()
    codes.failed(code)  # a late one, of the code before
    assert codes.begin() == fresh


def test_g7_a_try_is_on_the_disk_before_it_is_answered(codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a disk that takes no more, no exchange begins."""
    codes.make()

    def full(_fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space"):
        codes.begin()


@pytest.mark.parametrize("moved_s", [m.CODE_S + 1, -1], ids=["ten minutes later", "a clock that was set back"])
def test_g7_a_code_runs_out(codes: Codes, monkeypatch: pytest.MonkeyPatch, moved_s: float) -> None:
    code = codes.make()
    now = time.time() + moved_s
    monkeypatch.setattr(pairing.time, "time", lambda: now)
    assert codes.begin() is None
    assert codes.used(code, "there", DIALER.public, filed) is None
    assert codes.look(code) is Fate.EXPIRED


def test_a_code_that_another_one_replaced(codes: Codes) -> None:
    first, second = codes.make(), codes.make()
    assert (codes.look(first), codes.look(second)) == (Fate.REPLACED, Fate.GOOD)
    codes.withdraw(first)
    assert codes.begin() == second
    codes.withdraw(second)
    assert (codes.begin(), codes.look(second)) == (None, Fate.VOID)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '["a", 1]', '["a", "b", 1, "", null]', '["a", 1, 1, "", 7]', "\xff"]
)
def test_half_a_file_is_no_code(codes: Codes, text: str) -> None:
    codes.make()
    codes.path.write_bytes(text.encode("latin-1"))
    assert codes.begin() is None
    codes.make()
    assert codes.begin() is not None


def test_g7_a_file_that_others_can_read_is_not_used(codes: Codes) -> None:
    codes.make()
    codes.path.chmod(0o640)
    for step in (codes.make, codes.begin):
        with pytest.raises(UsageError, match="open to others"):
            step()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="nobody can be paired"):
        Codes(tmp_path / "file" / "config").make()


def _race(config: Path, what: str, code: str, go: Any, found: Any) -> None:
    codes = Codes(config)
    go.wait()
    for _ in range(20):
        if what == "begin":
            found.put(codes.begin())
        else:
            found.put(codes.used(code, str(os.getpid()), DIALER.public, filed) is not None)


@pytest.mark.parametrize(("what", "most"), [("begin", m.PAIR_TRIES), ("used", 1)])
def test_g7_processes_count_together(codes: Codes, what: str, most: int) -> None:
    spawn = multiprocessing.get_context("fork")
    code = codes.make()
    go, found = spawn.Event(), spawn.SimpleQueue()
    processes = [spawn.Process(target=_race, args=(codes.path.parent, what, code, go, found)) for _ in range(2)]
    for process in processes:
        process.start()
    go.set()
    results = [found.get() for _ in range(40)]
    for process in processes:
        process.join()
        process.close()
    assert sum(map(bool, results)) == most
    found.close()


def test_g7_who_counts_waits_for_the_others(codes: Codes) -> None:
    code, begun = codes.make(), threading.Event()
    thread = threading.Thread(target=lambda: (codes.begin(), begun.set()))
    with codes.path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        assert not begun.wait(0.2)
    thread.join()
    assert json.loads(codes.path.read_bytes())[:3:2] == [code, 1]


# --- SPAKE2 --------------------------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def _plus(a: Point, b: Point) -> Point:
    """RFC 8032, section 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P


def _times(n: int, point: Point) -> Point:
    result = (0, 1)
    for bit in bin(n % L)[2:]:
        result = _plus(result, result)
        if bit == "1":
            result = _plus(result, point)
    return result


def _encoded(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def _decoded(data: bytes) -> Point:
    number = int.from_bytes(data, "little")
    y, sign = number & (2**255 - 1), number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (P - x if x & 1 != sign else x), y


def _number(code: bytes) -> int:
    """HKDF-SHA256 (RFC 5869) with an empty salt, and the number it stands for."""
    key = hmac.digest(bytes(32), code, "sha256")
    one = hmac.digest(key, b"SPAKE2 pw\1", "sha256")
    return int.from_bytes((one + hmac.digest(key, one + b"SPAKE2 pw\2", "sha256"))[:48], "big") % L


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _vector(name: str) -> bytes:
    """A value of the document's test vectors."""
    text = (Path(__file__).parents[2] / "protocol.md").read_text("utf-8")
    (found,) = re.findall(rf"^{name}:\n  ([0-9a-f]{{64}})$", text, re.MULTILINE)
    return bytes.fromhex(found)


BASE = _decoded(bytes([0x58]) + b"\x66" * 31)
M, N = (_decoded(_vector(f"{name} of the pairing")) for name in "MN")


def _key(*elements_and_shared: bytes) -> bytes:
    parts = (_sha(CODE.encode()), _sha(b"ftx/1 dialer"), _sha(b"ftx/1 listener"), *elements_and_shared)
    return _sha(b"".join(parts))


def test_g12_the_documents_vectors_are_what_its_formulas_say() -> None:
    x, y = (int.from_bytes(bytes(range(first, first + 32)), "big") for first in (0, 1))
    w = _number(CODE.encode())
    assert w == int.from_bytes(_vector("number of the code"), "big")
    ours, theirs = (_plus(_times(n, BASE), _times(w, point)) for n, point in ((x, M), (y, N)))
    assert _encoded(ours) == _vector("element of the dialer")
    assert _encoded(theirs) == _vector("element of the listener")
    assert _key(_encoded(ours), _encoded(theirs), _encoded(_times(x * y, BASE))) == _vector("key of the pairing")


def test_g12_the_document_says_enough_to_be_the_other_side() -> None:
    """A dialer that is made of its formulas alone, against the library's listener."""
    x, w = secrets.randbelow(L), _number(CODE.encode())
    element = _encoded(_plus(_times(x, BASE), _times(w, M)))
    listener = Exchange(Side.LISTENER, CODE)
    shared = _encoded(_times(x, _plus(_decoded(listener.element), _times(L - w, N))))
    assert listener.key(element) == _key(element, listener.element, shared)


def test_g7_another_code_is_another_key() -> None:
    dialer, listener = Exchange(Side.DIALER, CODE), Exchange(Side.LISTENER, "4821-amber-turtle")
    assert dialer.key(listener.element) != listener.key(dialer.element)


def _small_order() -> Iterator[bytes]:
    order_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
    for y in (0, 1, P - 1, P, P + 1, order_8, P - order_8):
        for sign in (0, 1 << 255):
            yield (y | sign).to_bytes(32, "little")


def _outside() -> Iterator[bytes]:
    """Points of the order 2 L, 4 L and 8 L; what is no point; and numbers from p on."""
    order_8 = _decoded(next(key for key in _small_order() if key[31] == 0x7A))
    for n in (1, 2, 4):
        small = (0, 1)
        for _ in range(n):
            small = _plus(small, order_8)
        yield _encoded(_plus(_times(7, BASE), small))
    yield b"\xff" * 32
    yield (2).to_bytes(32, "little")
    yield from ((P + y).to_bytes(32, "little") for y in range(2, 19))


@pytest.mark.parametrize("side", [Side.DIALER, Side.LISTENER], ids=lambda side: side.value)
def test_g7_what_is_no_element_is_refused(side: Side) -> None:
    for element in (*_small_order(), *_outside()):
        with pytest.raises(ProtocolError, match="PAIR"):
            Exchange(side, CODE).key(element)


@pytest.mark.parametrize("side", [Side.DIALER, Side.LISTENER], ids=lambda side: side.value)
def test_g7_a_reflected_element_is_refused(side: Side) -> None:
    exchange = Exchange(side, CODE)
    with pytest.raises(ProtocolError, match="PAIR"):
        exchange.key(exchange.element)


# --- both halves ---------------------------------------------------------------------------------------


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    """A dialer's and a listener's."""
    with lane_pair() as pair:
        yield pair


class Desk:
    """What a listener pairs by, and what came of it."""

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        self.code = codes.make("laptop")
        self.filed: list[tuple[str, bytes]] = []
        self.told: list[Paired] = []
        self.pairing = Pairing(codes, self.file, self.told.append)

    def file(self, name: str, public: bytes) -> str:
        self.filed.append((name, public))
        return name

    def listen(self, lane: Lane, who: Identity = LISTENER) -> Any:
        try:
            return handshake.listen(lane, who, {}, None, open_=False, pairing=self.pairing, address="192.0.2.7")
        except FtxError as error:
            if not error.from_peer:
                handshake.refuse(lane, error)
            raise


@pytest.fixture
def desk(codes: Codes) -> Desk:
    return Desk(codes)


def _pair(lane: Lane, code: str, who: Identity = DIALER) -> bytes:
    try:
        return handshake.pair(lane, who, code, plain=True)
    finally:
        lane.shutdown()


def test_the_right_code(lanes: tuple[Lane, Lane], desk: Desk) -> None:
    paired, heard = both(lambda: _pair(lanes[0], desk.code), lambda: desk.listen(lanes[1]))
    assert (paired, heard) == (LISTENER.public, None)
    assert desk.filed == [("laptop", DIALER.public)]
    assert desk.told == [Paired(desk.code, "laptop", fingerprint(DIALER.public), "192.0.2.7")]


@pytest.mark.parametrize("good", [True, False], ids=["another is good", "none is good"])
def test_g7_a_wrong_code(lanes: tuple[Lane, Lane], desk: Desk, good: bool) -> None:
    """Nobody learns from the answer whether there is a code."""
    if not good:
        desk.codes.withdraw(desk.code)
    told, refused = both(lambda: _pair(lanes[0], CODE), lambda: desk.listen(lanes[1]))
    assert isinstance(told, WrongCode) and told.from_peer and str(told) == pairing.WRONG_CODE
    assert isinstance(refused, WrongCode)
    assert desk.filed == desk.told == []


def test_a_listener_that_does_not_pair(lanes: tuple[Lane, Lane]) -> None:
    def listen() -> None:
        try:
            handshake.listen(lanes[1], LISTENER, {}, None, open_=True)
        except Unsupported as error:
            handshake.refuse(lanes[1], error)
            raise

    told, refused = both(lambda: _pair(lanes[0], CODE), listen)
    assert isinstance(told, Unsupported) and isinstance(refused, Unsupported)


def test_g7_the_peer_is_on_file_before_it_is_told(lanes: tuple[Lane, Lane], codes: Codes) -> None:
    def add(_name: str, _public: bytes) -> str:
        raise OSError(28, os.strerror(28))

    desk = Desk(codes)
    desk.pairing = Pairing(codes, add, desk.told.append)
    told, refused = both(lambda: _pair(lanes[0], desk.code), lambda: desk.listen(lanes[1]))
    assert type(told) is type(refused) is Refused
    assert desk.told == []
    assert codes.begin() is None


Meddle = Callable[[m.Message], m.Message]


def _in_the_middle(dialer: Lane, listener: Lane, up: Meddle, down: Meddle) -> None:
    """Everything is read, changed perhaps, and written anew in both directions, like one who ends TLS in between."""

    def relay(source: Lane, sink: Lane, meddle: Meddle) -> None:
        try:
            while True:
                sink.send(meddle(source.receive()[0]))
        except FtxError:
            sink.shutdown()

    threads = [
        threading.Thread(target=relay, args=way) for way in ((dialer, listener, up), (listener, dialer, down))
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _as(who: Identity) -> Meddle:
    return lambda message: message._replace(identity=who.public) if isinstance(message, m.Hello) else message


def _nonce(message: m.Message) -> m.Message:
    return message._replace(nonce=bytes(32)) if isinstance(message, m.Hello) else message


def _same(message: m.Message) -> m.Message:
    return message


def _signed_by_the_middle(message: m.Message) -> m.Message:
    return message._replace(signature=bytes(64)) if isinstance(message, m.Proof) else message


@pytest.mark.parametrize(
    ("up", "down", "works"),
    [
        (_same, _same, True),
        (_as(STRANGER), _same, False),
        (_same, _as(STRANGER), False),
        (_nonce, _same, False),
        (_same, _nonce, False),
        (_signed_by_the_middle, _same, False),
    ],
    ids=["unchanged", "another dialer", "another listener", "another nonce", "and back", "no signature"],
)
def test_g7_who_changes_a_hello_on_the_way_has_one_guess(
    lanes: tuple[Lane, Lane], desk: Desk, up: Meddle, down: Meddle, works: bool
) -> None:
    one, other = socket.socketpair()
    middle_up, middle_down = Lane(other, dialer=False), Lane(lanes[0].sock, dialer=True)
    dialer = Lane(one, dialer=True)
    dialer.deadline_s = middle_up.deadline_s = middle_down.deadline_s = time.monotonic() + 5
    with one, other:
        middle = threading.Thread(target=_in_the_middle, args=(middle_up, middle_down, up, down))
        middle.start()
        paired, _ = both(lambda: _pair(dialer, desk.code), lambda: _listen_and_close(desk, lanes[1]))
        middle.join()
    if works:
        assert paired == LISTENER.public and desk.filed == [("laptop", DIALER.public)]
    else:
        assert isinstance(paired, FtxError) and desk.filed == []
        state = json.loads(desk.codes.path.read_bytes())
        assert state[:3:2] == [desk.code, 1]  # and it was counted


def _listen_and_close(desk: Desk, lane: Lane) -> None:
    try:
        desk.listen(lane)
    finally:
        lane.shutdown()


Fake = Callable[[bytes, bytes, m.Proof], m.Proof]


def _proof(who: Identity, transcript: bytes, method: int, key: bytes, maker: Side = Side.LISTENER) -> m.Proof:
    signature = who.sign(proof.signed(Side.LISTENER, transcript))
    return m.Proof(signature, (m.ProofItem(method, proof.mac(key, maker, method, transcript)),))


FAKES: dict[str, Fake] = {
    "a random mac": lambda key, script, _: _proof(LISTENER, script, Method.PAIRED, secrets.token_bytes(32)),
    "the dialer's mac": lambda key, script, theirs: _proof(LISTENER, script, Method.PAIRED, key)._replace(
        proofs=theirs.proofs
    ),
    "method 0": lambda key, script, _: _proof(LISTENER, script, Method.OPEN, key),
    "method 1": lambda key, script, _: _proof(LISTENER, script, Method.KNOWN, key),
    "another's signature": lambda key, script, _: _proof(STRANGER, script, Method.PAIRED, key),
}


@pytest.mark.parametrize("fake", FAKES)
def test_g7_a_listener_that_has_not_the_code_is_not_believed(lanes: tuple[Lane, Lane], fake: str) -> None:
    """Some of these know the key; so each thing that is checked is checked alone."""

    def listen() -> None:
        lane = lanes[1]
        _, their_frame = lane.receive()
        our_frame = lane.send(m.Hello(m.MAGIC, 1, 1, secrets.token_bytes(32), LISTENER.public))
        theirs, _ = lane.receive()
        assert isinstance(theirs, m.Pair)
        exchange = Exchange(Side.LISTENER, CODE)
        lane.send(m.Pair(exchange.element))
        proven, _ = lane.receive()
        assert isinstance(proven, m.Proof)
        script = proof.transcript(their_frame, our_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
        lane.send(FAKES[fake](exchange.key(theirs.element), script, proven))

    paired, _ = both(lambda: _pair(lanes[0], CODE), listen)
    assert type(paired) is Refused


def test_g7_the_dialer_proves_first(lanes: tuple[Lane, Lane], desk: Desk) -> None:
    """Behind its PAIR a listener says nothing, so nobody can try codes on what it says."""
    dialer, listener = lanes
    heard: list[m.Message] = []

    def dial() -> None:
        dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), DIALER.public), m.Pair(Exchange(Side.DIALER, CODE).element))
        heard.extend(dialer.receive()[0] for _ in range(2))
        dialer.deadline_s = time.monotonic() + 0.3
        try:
            heard.append(dialer.receive()[0])
        except FtxError:
            dialer.shutdown()

    _, refused = both(dial, lambda: desk.listen(listener))
    assert [type(message) for message in heard] == [m.Hello, m.Pair]
    assert isinstance(refused, LinkLost)


def test_g7_an_exchange_counts_that_was_only_begun(codes: Codes) -> None:
    """Who leaves when it has the listener's element has had its try; the last one voids the code."""
    desk = Desk(codes)

    def dial(lane: Lane) -> None:
        lane.send(m.Hello(m.MAGIC, 1, 1, bytes(32), DIALER.public), m.Pair(Exchange(Side.DIALER, CODE).element))
        lane.receive()
        lane.receive()
        lane.shutdown()

    for number in range(1, m.PAIR_TRIES + 1):
        one, other = socket.socketpair()
        dialer, listener = Lane(one, dialer=True), Lane(other, dialer=False)
        dialer.deadline_s = listener.deadline_s = time.monotonic() + 5
        desk.pairing._next_s = 0.0  # another test is about the pace
        with one, other:
            both(partial(dial, dialer), partial(desk.listen, listener))
        assert codes.look(desk.code) is (Fate.GOOD if number < m.PAIR_TRIES else Fate.VOID)


def test_g7_exchanges_begin_one_a_second(codes: Codes) -> None:
    desk = Desk(codes)
    begun: list[float] = []

    def begin() -> None:
        desk.pairing.begin(time.monotonic() + 10)
        begun.append(time.monotonic())

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begun.sort()
    assert all(later - earlier >= m.PAIR_S * 0.95 for earlier, later in zip(begun, begun[1:], strict=False))


def test_who_gets_no_turn_in_time_is_told(codes: Codes) -> None:
    desk = Desk(codes)
    desk.pairing._turn.acquire()
    with pytest.raises(Refused, match="too many"):
        desk.pairing.begin(time.monotonic() + 0.05)
