"""Connecting: names, addresses, deadlines."""

from __future__ import annotations

import errno
import socket
import time

import pytest

from ftx.errors import Interrupted, NetworkError, UnknownHost
from ftx.net import dial
from ftx.transfer.crew import Stop


def _nothing() -> None:
    pass


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connect(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        sock = dial.connect(host, server.getsockname()[1], 5, _nothing)
        with sock:
            assert sock.getblocking()
            assert sock.getpeername()[:2] == server.getsockname()[:2]


def test_a_name_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses does not keep the other from being tried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [(*stream, ("127.0.0.1", _closed_port())), (*stream, ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: found)
        with dial.connect("somewhere", port, 5, _nothing) as sock:
            assert sock.getpeername()[1] == port


def test_an_address_of_a_family_that_the_machine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [(999, socket.SOCK_STREAM, 6, "", ()), (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: list(found))
        with dial.connect("somewhere", port, 5, _nothing) as sock:
            assert sock.getpeername()[1] == port
        del found[1]
        with pytest.raises(NetworkError, match="not supported"):
            dial.connect("somewhere", port, 5, _nothing)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "no..such", "x" * 64])
def test_unknown_host(host: str) -> None:
    with pytest.raises(UnknownHost, match=host):
        dial.connect(host, 1, 5, _nothing)


def test_closed_port() -> None:
    port = _closed_port()
    with pytest.raises(NetworkError, match=f"port {port}.*refused"):
        dial.connect("127.0.0.1", port, 5, _nothing)


def _never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are neither taken nor refused."""
    monkeypatch.setattr(socket.socket, "connect_ex", lambda _self, _address: errno.EINPROGRESS)
    monkeypatch.setattr(dial.select, "select", lambda _r, _w, _x, wait_s: time.sleep(wait_s) or ([], [], []))


@pytest.mark.alone
def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    _never(monkeypatch)
    started = time.monotonic()
    with pytest.raises(NetworkError, match="no answer within 0.3 s"):
        dial.connect("127.0.0.1", 1, 0.3, _nothing)
    assert time.monotonic() - started < 2


def test_stop_ends_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    _never(monkeypatch)
    stop = Stop()
    stop.request(2)
    with pytest.raises(Interrupted):
        dial.connect("127.0.0.1", 1, 30, stop.check)


@pytest.mark.alone
def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: time.sleep(1) or [])
    started = time.monotonic()
    with pytest.raises(NetworkError, match="name server"):
        dial.connect("somewhere", 1, 0.2, _nothing)
    assert time.monotonic() - started < 0.9
