"""A peer that measures, and does not keep to what was agreed."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from ftx.errors import IntegrityError, LinkLost, PeerSilent, ProtocolError, Refused, Superseded
from ftx.net import handshake
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol.manifest import MIB, DigestName
from ftx.protocol.messages import Mode, Role
from ftx.protocol.session import Measuring
from ftx.storage import disk
from ftx.transfer import events, measure
from tests.hostile import peer
from tests.support.files import fill, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until

PAYLOAD = b"noise" * 200
DIGEST = DigestName.XXH3_128.function(PAYLOAD)


@contextmanager
def measuring(port: int, own: Identity | None = None, lanes: int = 1) -> Iterator[list[Lane]]:
    """The lanes of a session that measures, right behind OPENED and ATTACHED."""
    own = own or Identity(secrets.token_bytes(32))
    session = secrets.token_bytes(16)
    found: list[Lane] = []
    try:
        for number in range(1, lanes + 1):
            lane = Lane(peer.connected(port), dialer=True)
            found.append(lane)
            lane.deadline_s = time.monotonic() + peer.PATIENCE_S
            handshake.dial(lane, own, {}, peer.ANYONE, plain=False)
            if number > 1:
                handshake.attach(lane, m.Attach(session, number), Role.SENDER)
                continue
            lane.order.opened(Role.SENDER, Mode.MEASURE)
            ids = session, secrets.token_bytes(16), secrets.token_bytes(32)
            request = m.Open(*ids, Role.SENDER, Mode.MEASURE, lanes, 0, DigestName.XXH3_128, b"")
            handshake.open_session(lane, request, peer.PATIENCE_S)
        yield found
    finally:
        for lane in found:
            lane.close()


@pytest.fixture
def receiver(shm: Path) -> Iterator[LocalReceiver]:
    with LocalReceiver(shm, open=True, timeout_s=10.0) as receiver:
        yield receiver
        assert not list(receiver.into.iterdir())


def answer(lane: Lane) -> m.Measured:
    message = peer.heard(lane, m.Measured, m.Error)
    assert isinstance(message, m.Measured), message
    return message


def refusal(lane: Lane) -> tuple[int, str]:
    message = peer.heard(lane, m.Error)
    assert isinstance(message, m.Error)
    return message.code, message.message


def data(lane: Lane, step: int, payload: bytes = PAYLOAD, digest: bytes | None = None) -> None:
    lane.queue_data(m.Data(step, 0, digest or DigestName.XXH3_128.function(payload), len(payload)), payload)
    lane.flush()


def begin(lane: Lane, number: int = 1, flags: int = 0, count: int = 0) -> m.Measured:
    lane.send(m.Step(number, flags, count))
    return answer(lane)


def no_step(lane: Lane) -> None:
    data(lane, 1)


def no_step_at_all(lane: Lane) -> None:
    data(lane, 0)


def no_step_to_sample(lane: Lane) -> None:
    lane.send(m.Sample())


def another_step(lane: Lane) -> None:
    begin(lane)
    data(lane, 2)


def step_before(lane: Lane) -> None:
    begin(lane)
    begin(lane, 2)
    data(lane, 1)


def too_long(lane: Lane) -> None:
    begin(lane)
    data(lane, 1, bytes(MIB + 1))


def too_short(lane: Lane) -> None:
    begin(lane)
    data(lane, 1, b"")


def step_again(lane: Lane) -> None:
    begin(lane)
    lane.send(m.Step(1, 0, 0))


def step_zero(lane: Lane) -> None:
    lane.send(m.Step(0, 0, 0))


def fewer_bytes(lane: Lane) -> None:
    begin(lane)
    data(lane, 1)
    lane.send(m.Step(2, 0, len(PAYLOAD) - 1))


def bye_that_counts(lane: Lane) -> None:
    begin(lane)
    lane.send(m.Bye(1, 0, 0))


WRONG = [no_step, no_step_at_all, no_step_to_sample, another_step, step_before, too_long, too_short, step_again,
         step_zero, fewer_bytes, bye_that_counts]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_g12_what_makes_no_sense_ends_it(receiver: LocalReceiver, wrong: Callable[[Lane], None]) -> None:
    with measuring(receiver.port) as (lane,):
        with suppress(LinkLost):  # it is ended in the middle of what it says
            wrong(lane)
        assert refusal(lane)[0] == ProtocolError.wire


@pytest.mark.parametrize("message", [m.Folder(b"", 1, ()), m.Finish(1, b""), m.Digests(1, DigestName.SHA_256, 0, b"")],
                         ids=lambda message: type(message).__name__)  # fmt: skip
def test_what_belongs_to_a_transfer_is_out_of_order(receiver: LocalReceiver, message: m.Message) -> None:
    with measuring(receiver.port) as (lane,):
        lane.order.opened(Role.SENDER)  # so that this side says it
        lane.send(message)
        assert "out of order" in refusal(lane)[1]


def test_a_transfer_is_not_measured(receiver: LocalReceiver) -> None:
    with peer.sender(receiver.port) as lane:
        lane.order.opened(Role.SENDER, Mode.MEASURE)
        lane.send(m.Step(1, 0, 0))
        assert "out of order" in refusal(lane)[1]


def test_g4_what_arrives_damaged_counts_for_nothing(receiver: LocalReceiver) -> None:
    with measuring(receiver.port) as (lane,):
        begin(lane)
        data(lane, 1, digest=bytes(16))
        assert refusal(lane)[0] == IntegrityError.wire
    wait_until(lambda: receiver.of_type(events.SessionEnd))
    assert receiver.of_type(events.SessionEnd)[0].bytes_received == 0


def test_g8_more_than_was_announced_ends_it(receiver: LocalReceiver) -> None:
    with measuring(receiver.port, lanes=2) as (lane, bulk):
        begin(lane)
        data(bulk, 1)
        lane.send(m.Step(2, 0, 2 * len(PAYLOAD)))  # lane 2 owes one more
        wait_until(lambda: sessions()[0]._state is Measuring.BEGINNING)
        data(bulk, 1, PAYLOAD + b"!")
        assert refusal(lane)[0] == ProtocolError.wire


def sessions() -> list[measure.MeasureSession]:
    return list(LIVE)


LIVE: list[measure.MeasureSession] = []


@pytest.fixture(autouse=True)
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sessions of this test."""
    run = measure.MeasureSession.run

    def noted(self: measure.MeasureSession) -> None:
        LIVE.append(self)
        run(self)

    monkeypatch.setattr(measure.MeasureSession, "run", noted)
    yield
    LIVE.clear()


def test_a_step_waits_for_what_was_sent_before_it(receiver: LocalReceiver) -> None:
    """Lanes overtake each other."""
    with measuring(receiver.port, lanes=2) as (lane, bulk):
        begin(lane)
        lane.send(m.Step(2, 0, len(PAYLOAD)))
        wait_until(lambda: sessions()[0]._state is Measuring.BEGINNING)
        data(bulk, 1)
        assert answer(lane).bytes == len(PAYLOAD)
        data(bulk, 2)
        lane.send(m.Step(3, 0, 2 * len(PAYLOAD)))
        assert answer(lane).bytes == 2 * len(PAYLOAD)
        lane.send(m.Bye(0, 0, 0))
        assert peer.heard(lane, m.Bye) == m.Bye(0, 0, 0)


def test_g8_it_writes_over_its_own_file(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much a peer sends, its file has its room, and no more."""
    monkeypatch.setattr(m, "MEASURE_BYTES", 2 * MIB)
    largest = 0
    write_at = disk.write_at

    def noted(fd: int, payload: bytes, offset: int) -> None:
        nonlocal largest
        largest = max(largest, offset + len(payload))
        write_at(fd, payload, offset)

    with LocalReceiver(shm, open=True) as receiver:
        monkeypatch.setattr(disk, "write_at", noted)
        with measuring(receiver.port) as (lane,):
            assert begin(lane, 1, m.StepFlags.DISK).room == 2 * MIB
            for _ in range(9):
                data(lane, 1, bytes(MIB // 2))
            assert begin(lane, 2, 0, 9 * MIB // 2).bytes == 9 * MIB // 2
            assert not list(receiver.into.iterdir())
    assert largest == 2 * MIB


@pytest.mark.parametrize("lazy", ["silent", "owing", "busy"])
def test_g9_who_never_ends_is_ended(shm: Path, monkeypatch: pytest.MonkeyPatch, lazy: str) -> None:
    monkeypatch.setattr(m, "MEASURE_S", 0.5)
    with LocalReceiver(shm, open=True) as receiver, measuring(receiver.port) as (lane,):
        begin(lane, 1, m.StepFlags.DISK)
        stop = threading.Event()

        def send() -> None:
            with suppress(LinkLost, PeerSilent):  # it was ended
                while not stop.is_set():
                    data(lane, 1)

        worker = threading.Thread(target=send)
        if lazy == "owing":
            lane.send(m.Step(2, 0, 2**40))
        elif lazy == "busy":
            worker.start()
        try:
            code, message = refusal(lane)
        finally:
            stop.set()
            lane.shutdown()
            if lazy == "busy":
                worker.join()
        assert code == Refused.wire and "nobody may measure" in message
        assert not list(receiver.into.iterdir())


def test_a_peer_measures_once_at_a_time(receiver: LocalReceiver) -> None:
    """Whatever it calls its job."""
    own = Identity(secrets.token_bytes(32))
    with measuring(receiver.port, own) as (first,):
        begin(first, 1, m.StepFlags.DISK)
        with measuring(receiver.port, own) as (second,):
            assert refusal(first)[0] == Superseded.wire
            begin(second, 1, m.StepFlags.DISK)


def test_g9_a_transfer_goes_on_beside_it(shm: Path) -> None:
    source = fill(shm / "file", 3 * MIB)
    with LocalReceiver(shm, open=True) as receiver, measuring(receiver.port) as (lane,):
        begin(lane, 1, m.StepFlags.DISK)
        data(lane, 1)
        assert local_send(shm, source, receiver.port).code == 0
        assert same(source, receiver.into / "file")
        assert begin(lane, 2, 0, len(PAYLOAD)).bytes == len(PAYLOAD)


def test_a_lane_that_is_not_to_be_had(receiver: LocalReceiver) -> None:
    own = Identity(secrets.token_bytes(32))
    with measuring(receiver.port, own, lanes=2) as (lane, _):
        session = bytes.fromhex(receiver_session(receiver))
        for number in (2, 3):
            with closing(Lane(peer.connected(receiver.port), dialer=True)) as another:
                another.deadline_s = time.monotonic() + peer.PATIENCE_S
                handshake.dial(another, own, {}, peer.ANYONE, plain=False)
                with pytest.raises(Refused, match="not to be had"):
                    handshake.attach(another, m.Attach(session, number), Role.SENDER)
        begin(lane)


def receiver_session(receiver: LocalReceiver) -> str:
    wait_until(lambda: receiver.of_type(events.SessionUp))
    session: str = receiver.of_type(events.SessionUp)[-1].session
    return session
