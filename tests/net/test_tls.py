"""TLS beneath a lane: deadlines, and a peer that takes nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftx.errors import PeerSilent
from ftx.net import tls
from ftx.net.identity import Identity
from ftx.net.lane import Lane

OWN = Identity(b"l" * 32)
NOWHERE = Path("/dev/null/nowhere")


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    """A dialer's and a listener's, encrypted."""
    one, other = socket.socketpair()
    dialer, listener = Lane(one, dialer=True), Lane(other, dialer=False)
    dialer.deadline_s = listener.deadline_s = time.monotonic() + 5
    thread = threading.Thread(target=listener.encrypt, args=tls.listening(NOWHERE, OWN))
    with one, other:
        thread.start()
        dialer.encrypt(tls.dialing())
        thread.join()
        yield dialer, listener


def test_g7_both_see_the_same_certificate(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes
    assert dialer.encrypted and listener.encrypted
    assert dialer.fingerprint == listener.fingerprint != bytes(32)


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


def test_a_deadline_counts_over_all_that_is_taken(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes
    started = time.monotonic()
    listener.deadline_s = started + 0.5
    with taking(dialer, 5000), pytest.raises(PeerSilent):
        listener.send_raw(bytes(8 * 1024 * 1024))
    assert time.monotonic() - started < 1.5


def test_who_gives_up_in_the_middle_may_still_say_why(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes
    listener.deadline_s = time.monotonic() + 0.2
    with pytest.raises(PeerSilent):
        listener.send_raw(bytes(8 * 1024 * 1024))
    listener.deadline_s = time.monotonic() + 5
    with taking(dialer, 1024 * 1024):
        listener.send_raw(b"why")
