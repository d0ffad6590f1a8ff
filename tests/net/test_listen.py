"""Listening sockets."""

from __future__ import annotations

import socket
import threading

import pytest

from ftx.errors import NetworkError
from ftx.net import listen
from ftx.net.listen import Listener


def test_one_port_for_all_addresses() -> None:
    listener = Listener((), 0)
    try:
        hosts = [host for host, _ in listener.addresses]
        assert hosts[0] == "0.0.0.0"
        assert len({port for _, port in listener.addresses}) == 1
        assert hosts in (["0.0.0.0", "::"], ["0.0.0.0"])
    finally:
        listener.close()


def test_bind() -> None:
    listener = Listener(("127.0.0.1", "::1"), 0)
    try:
        assert [host for host, _ in listener.addresses] == ["127.0.0.1", "::1"]
    finally:
        listener.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "no..such"])
def test_an_address_that_cannot_be_had(host: str) -> None:
    """Nothing stays open either."""
    with pytest.raises(NetworkError, match=f"cannot listen on {host}"):
        Listener(("127.0.0.1", host), 0)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(NetworkError, match="in use"):
        Listener(("127.0.0.1",), server.getsockname()[1])


def test_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection comes with its address, blocking; it ends when told."""
    monkeypatch.setattr(listen, "TICK_S", 0.01)
    listener = Listener(("127.0.0.1",), 0)
    stopped = threading.Event()
    got: list[tuple[socket.socket, str]] = []
    full = threading.Event()

    def handle(sock: socket.socket, address: str) -> None:
        got.append((sock, address))
        if len(got) == 3:
            full.set()

    thread = threading.Thread(target=listener.accept, args=(handle, stopped.is_set))
    thread.start()
    clients = [socket.create_connection(listener.addresses[0]) for _ in range(3)]
    try:
        assert full.wait(5)
        assert {address for _, address in got} == {"127.0.0.1"}
        assert all(sock.getblocking() for sock, _ in got)
    finally:
        stopped.set()
        thread.join()
        for sock in (*clients, *(sock for sock, _ in got)):
            sock.close()
        listener.close()
