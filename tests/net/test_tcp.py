"""What TCP tells of a real connection, and what it takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.errors import UsageError
from ftx.net import dial, tcp

FOLDER = Path("/proc/sys/net/ipv4")
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="only Linux tells")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            yield one, other


def allowed() -> list[str]:
    return (FOLDER / "tcp_allowed_congestion_control").read_text().split()


def test_what_arrives_is_acknowledged_and_what_does_not_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    one.sendall(b"x" * 1000)
    other.recv(1000, socket.MSG_WAITALL)
    before = tcp.seen(one)
    assert before is not None
    one.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += one.send(b"x" * 65536)
    after = tcp.seen(one)
    assert after is not None
    assert before.segments >= 1
    assert before.unsent == before.repeated == 0
    assert after.segments > before.segments
    assert 0 < after.unsent < sent
    assert after.acked + after.unsent <= 1001 + sent
    assert 0 < after.shortest_s <= after.round_trip_s < 10
    assert tcp.round_trip_s(one) > 0


class Older:
    """The same connection under a kernel whose ``struct tcp_info`` is shorter."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._sock, self._size = sock, size

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        return self._sock.getsockopt(level, option, min(size, self._size))

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        self._sock.setsockopt(level, option, value)


@pytest.mark.parametrize("size", [8, 71, 72, 104, 159])
def test_an_older_kernel_tells_less(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    older = Older(pair[0], size)
    assert tcp.seen(older) is None
    assert (tcp.round_trip_s(older) > 0) is (size >= 72)


def test_what_is_no_tcp_tells_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert (tcp.seen(one), tcp.round_trip_s(one), tcp.congestion(one)) == (None, 0.0, "")


def test_a_connection_gets_its_congestion_control(pair: tuple[socket.socket, socket.socket]) -> None:
    for name in allowed():
        tcp.check(name)
        tcp.choose(pair[0], name)
        assert tcp.congestion(pair[0]) == name


def test_it_is_set_before_the_connection_is_made() -> None:
    name = allowed()[0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with dial.connect("127.0.0.1", port, 10, lambda: None, name) as sock:
            assert tcp.congestion(sock) == name
        with pytest.raises(UsageError, match="nosuch"):
            dial.connect("127.0.0.1", port, 10, lambda: None, "nosuch")


def test_one_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError) as refused:
        tcp.check("nosuch")
    has = (FOLDER / "tcp_available_congestion_control").read_text().split()
    assert str(refused.value) == f"this kernel has no congestion control 'nosuch'; it has {', '.join(has)}"


def test_a_system_without_the_choice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_CONGESTION")
    with pytest.raises(UsageError, match="this system lets no program choose"):
        tcp.check("reno")
