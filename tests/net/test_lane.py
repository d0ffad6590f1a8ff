"""Lanes over a socket pair: however the bytes are cut, the same messages come out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ftx.errors import LinkLost, NotFtx, PeerSilent, ProtocolError, Unsupported
from ftx.net import lane as lane_module
from ftx.net.lane import LARGE_PAYLOAD, QUEUE_BYTES, Lane
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import Role

HELLO = m.Hello(m.MAGIC, 1, 1, bytes(32), bytes(32))
OPEN = m.Open(
    bytes(16), bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 1, 0, DigestName.XXH3_128, b"folder"
)  # fmt: skip
Pair = tuple[Lane, socket.socket]


@pytest.fixture
def raw() -> Iterator[Pair]:
    """A listener's lane and the raw end of its dialer."""
    ours, theirs = socket.socketpair()
    lane = Lane(ours, dialer=False)
    lane.deadline_s = time.monotonic() + 10
    with ours, theirs:
        yield lane, theirs


@pytest.fixture
def opened(raw: Pair) -> Pair:
    """The same, after the handshake: the peer is the sender."""
    lane, theirs = raw
    theirs.sendall(b"".join(codec.encode(message) for message in (HELLO, m.Proof(b"", ()), OPEN)))
    lane.send(HELLO, m.Proof(b"", ()), m.Opened(1, 64))
    for _ in range(3):
        lane.receive()
    lane.order.opened(Role.RECEIVER)
    theirs.recv(65536)
    return lane, theirs


def _data(index: int, payload: bytes) -> bytes:
    return codec.encode_data(1, index, DigestName.XXH3_128.function(payload), len(payload)) + payload


def test_one_byte_at_a_time(raw: Pair) -> None:
    lane, theirs = raw
    stream = b"".join(codec.encode(message) for message in (HELLO, m.Proof(b"", ()), OPEN))

    def dribble() -> None:
        for byte in stream:
            theirs.send(bytes([byte]))

    thread = threading.Thread(target=dribble)
    thread.start()
    assert [lane.receive()[0] for _ in range(3)] == [HELLO, m.Proof(b"", ()), OPEN]
    thread.join()


def test_many_small_frames_in_one_piece(opened: Pair) -> None:
    lane, theirs = opened
    sent = [m.Ping() if number % 3 else m.Finish(number, b"r" * 16) for number in range(2000)]
    thread = threading.Thread(target=theirs.sendall, args=(b"".join(codec.encode(message) for message in sent),))
    thread.start()
    assert [lane.receive()[0] for _ in sent] == sent
    thread.join()


@pytest.mark.parametrize("size", [1, 100, 4096, 64 * 1024, 256 * 1024 - 48, 256 * 1024, 300_000, 1024 * 1024])
def test_payloads_across_the_edge_of_the_buffer(opened: Pair, size: int) -> None:
    """Whatever was read ahead, payloads are whole and frames behind them begin where they begin."""
    lane, theirs = opened
    payloads = [bytes([index + 1]) * (size - index % 2 or 1) for index in range(6)]
    stream = b"".join(codec.encode(m.Ping()) + _data(index, payload) for index, payload in enumerate(payloads))
    thread = threading.Thread(target=theirs.sendall, args=(stream,))
    thread.start()
    buffer = memoryview(bytearray(1024 * 1024))
    for index, payload in enumerate(payloads):
        assert lane.receive()[0] == m.Ping()
        message, _ = lane.receive()
        assert isinstance(message, m.Data)
        assert (message.index, message.length) == (index, len(payload))
        assert bytes(lane.payload(message.length, buffer)) == payload
    thread.join()


@pytest.mark.parametrize("cut", [0, 1, 47, 48, 49, 100])
def test_what_has_arrived_is_taken_without_waiting(opened: Pair, cut: int) -> None:
    """Small chunks behind each other, the last without its end: its payload's or its head's."""
    lane, theirs = opened
    payloads = [bytes([index]) * 60 for index in range(5)]
    stream = b"".join(_data(index, payload) for index, payload in enumerate(payloads))
    end = len(stream) - cut
    theirs.sendall(stream[:end])
    buffer = memoryview(bytearray(60))
    message, _ = lane.receive()
    assert isinstance(message, m.Data)
    taken = [(message.index, lane.payload(message.length, buffer))]
    while (following := lane.arrived()) is not None:
        taken.append((following[0].index, following[1]))
    whole = 5 if cut == 0 else 4
    # All at once, and only now: none has moved.
    assert [(index, bytes(payload)) for index, payload in taken] == list(enumerate(payloads))[:whole]
    theirs.sendall(stream[end:] + codec.encode(m.Ping()))
    if cut:
        message, _ = lane.receive()
        assert isinstance(message, m.Data)
        assert bytes(lane.payload(message.length, buffer)) == payloads[4]
    assert lane.receive()[0] == m.Ping()


def test_g4_what_arrived_damaged_ends_the_link(opened: Pair) -> None:
    lane, theirs = opened
    second = bytearray(_data(1, b"second"))
    second[codec.HEADER_SIZE] ^= 1
    theirs.sendall(_data(0, b"first") + second)
    message, _ = lane.receive()
    assert isinstance(message, m.Data)
    lane.payload(message.length, memoryview(bytearray(5)))
    with pytest.raises(LinkLost):
        lane.arrived()


@pytest.fixture
def sender(opened: Pair) -> Lane:
    """The other end of ``opened``, as a lane."""
    _, theirs = opened
    sender = Lane(theirs, dialer=True)
    for message in (HELLO, m.Proof(b"", ()), OPEN):
        sender.order.send(codec.TYPE_OF[type(message)])
    sender.order.opened(Role.SENDER)
    return sender


def data_of(entry: int, payload: bytes, *, final: bool = False) -> m.Data:
    return m.Data(entry, 3, DigestName.XXH3_128.function(payload), len(payload), final)


def received(lane: Lane) -> tuple[m.Message, bytes]:
    """The next message, and its payload if it is DATA."""
    message, _ = lane.receive()
    if not isinstance(message, m.Data):
        return message, b""
    return message, bytes(lane.payload(message.length, memoryview(bytearray(message.length))))


@pytest.mark.parametrize("size", [0, 1, 1000, LARGE_PAYLOAD - 1, LARGE_PAYLOAD, 2 * 1024 * 1024])
@pytest.mark.parametrize("final", [False, True], ids=["", "final"])
def test_what_is_queued_is_what_receive_reads(opened: Pair, sender: Lane, size: int, final: bool) -> None:
    """Data, small or large, and messages in any order, each behind what was queued before."""
    lane, _ = opened
    payload = (bytes(range(256)) * 8192)[:size]
    data = data_of(7, payload, final=final)
    finish = m.Finish(7, b"r" * 16)

    def send() -> None:
        sender.queue(m.Ping())
        sender.queue_data(data, payload)
        sender.queue(finish)
        sender.queue_data(data, payload)
        sender.send(m.Ping())
        sender.queue_data(data, payload)
        sender.flush()

    thread = threading.Thread(target=send)
    thread.start()
    both = (data, payload)
    assert [received(lane) for _ in range(6)] == [(m.Ping(), b""), both, (finish, b""), both, (m.Ping(), b""), both]
    thread.join()


def test_a_payload_is_taken_when_it_is_queued(opened: Pair, sender: Lane) -> None:
    """Its buffer is read into again at once."""
    lane, _ = opened
    buffer = bytearray(b"a" * 100)
    data = data_of(7, bytes(buffer))
    sender.queue_data(data, memoryview(buffer))
    buffer[:] = b"b" * 100
    sender.flush()
    assert received(lane) == (data, b"a" * 100)


def test_what_is_small_waits_for_the_rest_and_a_large_payload_for_nobody(opened: Pair, sender: Lane) -> None:
    lane, _ = opened
    lane.sock.setblocking(False)
    sender.queue(m.Ping())
    sender.queue_data(data_of(1, b"x"), b"x")
    with pytest.raises(BlockingIOError):
        lane.sock.recv(1, socket.MSG_PEEK)
    large = b"y" * LARGE_PAYLOAD
    sender.queue_data(data_of(2, large), large)
    lane.sock.setblocking(True)
    assert [type(received(lane)[0]) for _ in range(3)] == [m.Ping, m.Data, m.Data]


def test_g8_what_is_queued_is_bounded(opened: Pair, sender: Lane) -> None:
    lane, _ = opened
    lane.deadline_s = time.monotonic() + 10
    payload = b"x" * 1000
    count = 2 * QUEUE_BYTES // len(payload)
    thread = threading.Thread(target=lambda: [received(lane) for _ in range(2 * count)])
    thread.start()
    for _ in range(count):
        sender.queue_data(data_of(1, payload), payload)
        sender.queue(m.Ping())
        assert len(sender._queued) < QUEUE_BYTES + len(payload) + 100
    sender.flush()
    thread.join()


@pytest.mark.alone
def test_a_deadline_counts_over_all_bytes(raw: Pair) -> None:
    """A peer that dribbles gains nothing by it."""
    lane, theirs = raw
    lane.deadline_s = time.monotonic() + 0.3
    over = threading.Event()

    def dribble() -> None:
        for byte in codec.encode(HELLO):
            theirs.send(bytes([byte]))
            if over.wait(0.05):
                return

    thread = threading.Thread(target=dribble)
    started = time.monotonic()
    thread.start()
    with pytest.raises(PeerSilent):
        lane.receive()
    over.set()
    thread.join()
    assert time.monotonic() - started < 1


def test_a_deadline_for_a_peer_that_takes_nothing(opened: Pair) -> None:
    lane, _ = opened
    lane.deadline_s = time.monotonic() + 0.2
    with pytest.raises(PeerSilent):
        while True:
            lane.send(*[m.Ping()] * 1000)


@pytest.mark.alone
def test_a_check_ends_the_waiting(raw: Pair) -> None:
    class Stopped(Exception):
        pass

    lane, _ = raw
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 0.15:
            raise Stopped

    lane.check = check
    with pytest.raises(Stopped):
        lane.receive()
    assert time.monotonic() - began < 2


def test_signs_of_life(opened: Pair) -> None:
    """Whole frames and large pieces of one are; a few bytes of a body that never ends are not."""
    lane, theirs = opened
    lane.last_received_s = 0.0
    theirs.sendall(codec.encode(m.Ping()))
    lane.receive()
    assert lane.last_received_s > 0
    stream = _data(0, bytes(100_000))
    theirs.sendall(stream[: codec.DATA_PREFIX])
    message, _ = lane.receive()
    assert isinstance(message, m.Data)
    for piece, alive in ((lane_module.ALIVE_BYTES // 2, False), (lane_module.ALIVE_BYTES, True)):
        theirs.sendall(bytes(piece))
        lane.deadline_s = time.monotonic() + 0.1
        lane.last_received_s = 0.0
        with pytest.raises(PeerSilent):
            lane.payload(message.length, memoryview(bytearray(message.length)))
        assert (lane.last_received_s > 0) is alive


def test_g9_silence_is_counted_while_somebody_listens(opened: Pair) -> None:
    """Time that this side spends elsewhere, at a slow disk say, is no silence of the peer's."""
    lane, theirs = opened
    theirs.sendall(codec.encode(m.Ping()))
    lane.receive()
    time.sleep(0.3)
    assert lane.silent_s < 0.1
    began = time.monotonic()
    for _ in range(2):
        lane.deadline_s = time.monotonic() + 0.2
        with pytest.raises(PeerSilent):
            lane.receive()
    assert 0.3 < lane.silent_s <= time.monotonic() - began
    theirs.sendall(codec.encode(m.Ping()))
    lane.deadline_s = None
    lane.receive()
    assert lane.silent_s < 0.1


def test_the_peer_goes(raw: Pair) -> None:
    lane, theirs = raw
    theirs.sendall(codec.encode(HELLO)[:30])
    theirs.close()
    with pytest.raises(LinkLost, match="closed the connection"):
        lane.receive()


def test_G4_a_damaged_frame_is_a_lost_link(raw: Pair) -> None:
    lane, theirs = raw
    frame = bytearray(codec.encode(HELLO))
    frame[40] ^= 1
    theirs.sendall(frame)
    with pytest.raises(LinkLost, match="frame check"):
        lane.receive()


def test_G8_a_length_is_checked_before_anything_is_allocated(opened: Pair) -> None:
    lane, theirs = opened
    theirs.sendall(codec.HEADER.pack(m.Type.PING, 0, 0, 2**32 - 1, 0))
    with pytest.raises(ProtocolError, match="the most"):
        lane.receive()


def test_G12_unknown_optional_frames_are_passed_over(opened: Pair) -> None:
    lane, theirs = opened
    theirs.sendall(codec.encode_grease(5, b"whatever") + codec.encode(m.Ping()))
    assert lane.receive()[0] == m.Ping()


def test_G12_unknown_critical_frames_are_refused(opened: Pair) -> None:
    lane, theirs = opened
    frame = bytearray(codec.encode_grease(5, b""))
    frame[1] |= m.CRITICAL
    frame[8:16] = codec.xxhash.xxh3_64_digest(bytes(frame[:8]))
    theirs.sendall(frame)
    with pytest.raises(Unsupported):
        lane.receive()


def test_out_of_order_in_either_direction(raw: Pair) -> None:
    lane, theirs = raw
    with pytest.raises(ProtocolError):
        lane.send(m.Opened(1, 64))
    theirs.sendall(codec.encode(m.Ping()))
    with pytest.raises((ProtocolError, NotFtx)):
        lane.receive()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"\0" * 20, b"\xff"])
def test_first_bytes_of_something_else(raw: Pair, first: bytes) -> None:
    """Told at once, without waiting for a whole header."""
    lane, theirs = raw
    theirs.sendall(first)
    with pytest.raises(NotFtx):
        lane.receive()


def test_shutdown_unblocks_a_reader(raw: Pair) -> None:
    lane, _ = raw
    lane.deadline_s = None
    timer = threading.Timer(0.05, lane.shutdown)
    timer.start()
    with pytest.raises(LinkLost):
        lane.receive()
    timer.join()


def test_g11_draining_lets_the_last_word_arrive() -> None:
    """A socket that is closed with bytes unread sends RST, and what it said last may never arrive."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        lane = Lane(server.accept()[0], dialer=False)
    with theirs:
        theirs.sendall(bytes(100_000))
        theirs.shutdown(socket.SHUT_WR)
        lane.send(m.Error(64, "because"))
        lane.drain(5)
        lane.close()
        heard = b""
        while piece := theirs.recv(65536):
            heard += piece
        assert heard.endswith(b"because")


@pytest.mark.alone
def test_drain_is_bounded(raw: Pair) -> None:
    """By time for one who says nothing, by bytes for one who never stops."""
    lane, theirs = raw
    started = time.monotonic()
    lane.drain(0.1)
    assert time.monotonic() - started < 1

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(bytes(65536))

    thread = threading.Thread(target=flood)
    thread.start()
    lane.drain(20)
    lane.close()
    thread.join()
    assert time.monotonic() - started < 5
