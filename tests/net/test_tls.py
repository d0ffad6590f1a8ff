"""TLS beneath a lane: whose certificate it is, who is told no, and what two threads may do at once."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import FtxError, KeysWorn, LinkLost, NotFtx, PeerSilent, Refused
from ftx.net import handshake, tls
from ftx.net.handshake import Trust
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.net.tls import CERTIFICATE, Credentials
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import Method, Role
from tests.support.files import MIB, fill, same
from tests.support.lanes import both, lane_pair
from tests.support.local import LocalReceiver, local_send

DIALER, LISTENER, RELAY = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
SECRET = {Method.SECRET: b"k" * 32}
THERE = Trust("there")
OPEN = m.Open(bytes(16), bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 1, 0, DigestName.XXH3_128, b"")


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return tls.listening(tmp_path, LISTENER)


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    with lane_pair() as pair:
        yield pair


@pytest.fixture
def encrypted(lanes: tuple[Lane, Lane], credentials: Credentials) -> tuple[Lane, Lane]:
    dialer, listener = lanes
    assert both(lambda: dialer.encrypt(tls.dialing()), lambda: listener.encrypt(*credentials)) == (None, None)
    return lanes


# --- The certificate -----------------------------------------------------------------------------------


def test_the_certificate_is_made_once_and_is_private(tmp_path: Path) -> None:
    _, first = tls.listening(tmp_path, LISTENER)
    text = (tmp_path / CERTIFICATE).read_bytes()
    _, second = tls.listening(tmp_path, LISTENER)
    assert first == second
    assert (tmp_path / CERTIFICATE).read_bytes() == text
    assert (tmp_path / CERTIFICATE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [CERTIFICATE]


@pytest.mark.parametrize("damage", [b"", b"junk", "another identity's", "cut"], ids=str)
def test_a_certificate_that_is_of_no_use_is_made_anew(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / CERTIFICATE
    _, fingerprint = tls.listening(tmp_path, LISTENER)
    whole = path.read_bytes()
    if damage == "another identity's":
        path.unlink()
        tls.listening(tmp_path, RELAY)
    else:
        path.write_bytes(whole[:-100] if damage == "cut" else damage)
    assert tls.listening(tmp_path, LISTENER)[1] == fingerprint
    assert path.read_bytes() == whole


def test_without_a_place_for_it_there_is_one_for_this_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, fingerprint = tls.listening(tmp_path / "file" / "config", LISTENER)
    assert fingerprint == tls.listening(tmp_path, LISTENER)[1]


def test_both_sides_have_seen_the_same(encrypted: tuple[Lane, Lane], credentials: Credentials) -> None:
    dialer, listener = encrypted
    assert dialer.encrypted and listener.encrypted
    assert dialer.fingerprint == listener.fingerprint == credentials[1] != bytes(32)


# --- Who is told no ------------------------------------------------------------------------------------


def listen(lane: Lane, credentials: Credentials | None, **options: Any) -> Any:
    try:
        return handshake.listen(lane, LISTENER, SECRET, credentials, open_=False, **options)
    except FtxError as error:
        if not error.from_peer:
            handshake.refuse(lane, error)
        lane.close()
        raise


def dial(lane: Lane, *, plain: bool) -> Any:
    try:
        handshake.dial(lane, DIALER, SECRET, THERE, plain=plain)
    except FtxError:
        lane.close()
        raise
    return lane.send(
        m.Open(bytes(16), bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 1, 0, DigestName.XXH3_128, b"")
    )


@pytest.mark.parametrize("plain_dialer", [True, False], ids=["plain dialer", "plain listener"])
def test_g7_neither_side_goes_on_in_the_mode_of_the_other(
    lanes: tuple[Lane, Lane], credentials: Credentials, plain_dialer: bool
) -> None:
    told, refused = both(
        lambda: dial(lanes[0], plain=plain_dialer), lambda: listen(lanes[1], credentials if plain_dialer else None)
    )
    text = handshake.PLAIN_THERE if plain_dialer else handshake.PLAIN_HERE
    assert isinstance(told, Refused) and told.from_peer and str(told) == text
    assert isinstance(refused, Refused) and str(refused) == text


def server(tmp_path: Path, *alpn: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A TLS server that is not ours."""
    tls.listening(tmp_path, RELAY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(tmp_path / CERTIFICATE)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def shake(lane: Lane, context: ssl.SSLContext) -> None:
    """A handshake by the standard library, and then the end."""
    assert isinstance(lane.sock, socket.socket)
    with suppress(OSError):
        context.wrap_socket(lane.sock.dup(), server_side=True).close()
    lane.close()


@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1"), ("ftx/2",)], ids=["none", "the web's", "another version"])
def test_g7_another_protocol_over_tls_is_not_ftx(lanes: tuple[Lane, Lane], tmp_path: Path, alpn: Any) -> None:
    context = server(tmp_path, *alpn)
    told, _ = both(lambda: lanes[0].encrypt(tls.dialing()), lambda: shake(lanes[1], context))
    assert isinstance(told, NotFtx)


def test_g7_no_older_tls_is_spoken(lanes: tuple[Lane, Lane], tmp_path: Path) -> None:
    context = server(tmp_path, tls.ALPN, version=ssl.TLSVersion.TLSv1_2)
    told, _ = both(lambda: lanes[0].encrypt(tls.dialing()), lambda: shake(lanes[1], context))
    assert isinstance(told, NotFtx)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
def test_a_stranger_is_told_what_this_is_in_words_it_can_read(
    lanes: tuple[Lane, Lane], credentials: Credentials, plain: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    heard: list[bytes] = []

    def browse() -> None:
        assert isinstance(lanes[0].sock, socket.socket)
        sock = lanes[0].sock.dup()
        with sock if plain else context.wrap_socket(sock) as over:
            over.sendall(b"GET / HTTP/1.1\r\n\r\n")
            heard.append(over.recv(1000))
        lanes[0].shutdown()

    def answer() -> None:
        try:
            handshake.listen(lanes[1], LISTENER, {}, credentials, open_=False)
        except NotFtx:
            handshake.turn_away(lanes[1])
            raise

    _, refused = both(browse, answer)
    assert isinstance(refused, NotFtx)
    assert heard == [handshake.NOT_FTX]


def test_g7_a_relay_with_a_certificate_of_its_own_is_found(credentials: Credentials, tmp_path: Path) -> None:
    """It passes on all that both say, decrypted and encrypted again; neither side takes the other for the right one."""
    (tmp_path / "relay").mkdir()
    own = tls.listening(tmp_path / "relay", RELAY)

    def forward(source: Lane, sink: Lane) -> None:
        buffer = memoryview(bytearray(65536))
        with suppress(OSError, FtxError):
            while piece := take(source, buffer):
                sink.send_raw(bytes(piece))
        source.shutdown()
        sink.shutdown()

    def relay(inner: Lane, outer: Lane) -> None:
        inner.encrypt(*own)
        outer.encrypt(tls.dialing())
        threads = [threading.Thread(target=forward, args=ends) for ends in ((inner, outer), (outer, inner))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with lane_pair() as (dialer, inner), lane_pair() as (outer, listener):
        middle = threading.Thread(target=relay, args=(inner, outer))
        middle.start()
        told, refused = both(lambda: dial(dialer, plain=False), lambda: listen(listener, credentials))
        for lane in (dialer, listener):
            lane.shutdown()
        middle.join()
    assert isinstance(refused, Refused) and "could not prove" in str(refused)
    assert isinstance(told, Refused | LinkLost)


def test_g7_an_answer_in_clear_is_no_session(lanes: tuple[Lane, Lane]) -> None:
    """Whoever strips TLS on the way gets no HELLO."""
    dialer, listener = lanes

    def strip() -> bytes:
        listener.first_byte()
        listener.send(m.Hello(m.MAGIC, 1, 1, bytes(32), LISTENER.public))
        assert isinstance(listener.sock, socket.socket)
        said = b""
        while m.MAGIC not in said and (data := listener.sock.recv(65536)):
            said += data
        listener.close()
        return said

    told, said = both(lambda: dial(dialer, plain=False), strip)
    assert isinstance(told, FtxError)
    assert said[0] == tls.HANDSHAKE
    assert m.MAGIC not in said and DIALER.public not in said


# --- What travels --------------------------------------------------------------------------------------


def take(lane: Lane, buffer: memoryview) -> memoryview:
    """What has come, one byte at least."""
    while True:
        with suppress(TimeoutError):  # no record is whole yet
            return buffer[: lane.sock.recv_into(buffer)]


def test_both_directions_at_once(encrypted: tuple[Lane, Lane]) -> None:
    """A lane's reader and its writer work on one TLS object; what they say is more than any buffer holds."""
    payload = os.urandom(8 * MIB)
    found: list[bytes] = []

    def read(lane: Lane) -> None:
        got, buffer = bytearray(), memoryview(bytearray(100_000))
        while len(got) < len(payload):
            got += take(lane, buffer[: len(payload) - len(got)])
        found.append(bytes(got))

    threads = [threading.Thread(target=lane.send_raw, args=(payload,)) for lane in encrypted]
    threads += [threading.Thread(target=read, args=(lane,)) for lane in encrypted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [payload, payload]


def test_g11_a_second_thread_may_read_what_is_left(encrypted: tuple[Lane, Lane]) -> None:
    """When a session is broken off, its reader may still be at it: neither disturbs the other."""
    payload, found = os.urandom(4 * MIB), []

    def read() -> None:
        buffer, got = memoryview(bytearray(10_000)), 0
        with suppress(LinkLost):
            while count := len(take(encrypted[0], buffer)):
                got += count
        found.append(got)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    encrypted[1].send_raw(payload)
    encrypted[1].close()
    for thread in threads:
        thread.join()
    assert sum(found) == len(payload)


def test_the_end_of_a_connection_is_its_end(encrypted: tuple[Lane, Lane]) -> None:
    encrypted[1].close()
    with pytest.raises(LinkLost, match="closed"):
        encrypted[0].receive()


def test_a_write_that_takes_long_is_gone_on_with(encrypted: tuple[Lane, Lane]) -> None:
    """A deadline passes in the middle of it: nothing is sent twice, and nothing is left out."""
    sock, buffer = encrypted[0].sock, memoryview(bytearray(MIB))
    payload, got = memoryview(os.urandom(4 * MIB)), bytearray()
    sock.settimeout(0.001)
    left, late = payload, 0
    while left:
        try:
            left = left[sock.sendmsg([left]) :]
        except TimeoutError:
            late += 1
            got += take(encrypted[1], buffer)
    while len(got) < len(payload):
        got += take(encrypted[1], buffer)
    assert late and got == payload


def test_g7_keys_are_not_used_beyond_what_they_bear(
    encrypted: tuple[Lane, Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "MAX_RECORDS", 3)
    for _ in range(3):
        encrypted[0].send_raw(b"x")
    with pytest.raises(KeysWorn):
        encrypted[0].send_raw(b"x")


def test_g2_a_session_whose_keys_are_worn_goes_on_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for who does not retry: nothing is wrong."""
    source = fill(tmp_path / "f", 24 * MIB)
    monkeypatch.setattr(m, "MAX_RECORDS", 700)  # of 16 KiB each
    seen: list[Any] = []
    with LocalReceiver(tmp_path) as receiver:
        assert local_send(tmp_path, source, receiver.port, on_event=seen.append, lanes=1).code == 0
        assert same(source, receiver.into / "f")
    kinds = [event.type for event in seen]
    assert kinds.count("session") >= 3 and "retry" not in kinds


# --- Who takes nothing ---------------------------------------------------------------------------------


@contextmanager
def taking(lane: Lane, size: int) -> Iterator[None]:
    """So many bytes are taken off the wire every 50 ms."""
    over = threading.Event()
    assert isinstance(lane.sock, tls.TlsSocket)
    sock = lane.sock._sock

    def take() -> None:
        while not over.wait(0.05):
            sock.recv(size, socket.MSG_DONTWAIT)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.alone
def test_a_deadline_counts_over_all_that_is_taken(encrypted: tuple[Lane, Lane]) -> None:
    dialer, listener = encrypted
    started = time.monotonic()
    listener.deadline_s = started + 0.5
    with taking(dialer, 5000), pytest.raises(PeerSilent):
        listener.send_raw(bytes(8 * MIB))
    assert time.monotonic() - started < 1.5


def test_who_gives_up_in_the_middle_may_still_say_why(encrypted: tuple[Lane, Lane]) -> None:
    dialer, listener = encrypted
    listener.deadline_s = time.monotonic() + 0.2
    with pytest.raises(PeerSilent):
        listener.send_raw(bytes(8 * MIB))
    listener.deadline_s = time.monotonic() + 5
    with taking(dialer, MIB):
        listener.send_raw(b"why")
