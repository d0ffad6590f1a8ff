"""A whole receiver, and the sender that dials it, where threads and the world outside come in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import LinkLost, SourceChanged, UnknownHost
from ftx.protocol.manifest import Pin
from ftx.storage import disk
from ftx.storage.source import Source
from ftx.transfer import dialer, events, receive, registry
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send

MIB = 1024 * 1024


# --- What a receiver tells -----------------------------------------------------------------------------


def test_g11_an_entry_that_its_sender_gave_up_is_reported_and_is_the_runs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "check", lambda _self: Pin.CHANGED)
    with LocalReceiver(tmp_path, once=True) as receiver:
        assert local_send(tmp_path, fill(tmp_path / "f", MIB), receiver.port).code == SourceChanged.exit_code
        wait_for(lambda: receiver.finished is not None)
    (entry,) = receiver.of_type(events.EntryEnded)
    assert (entry.path, entry.state, entry.code) == (b"f", "failed", SourceChanged.exit_code)
    assert receiver.finished is not None
    assert (receiver.finished.code, receiver.finished.failed) == (SourceChanged.exit_code, 1)


# --- Its own disk --------------------------------------------------------------------------------------


def test_g9_a_slow_disk_is_not_taken_for_a_silent_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = iter([1.5])
    real = disk.sync_data

    def sync(fd: int) -> None:
        time.sleep(next(slow, 0))
        real(fd)

    monkeypatch.setattr(disk, "sync_data", sync)
    monkeypatch.setattr(receive, "DIRTY_BYTES", 1)  # the reading thread itself waits for it
    with LocalReceiver(tmp_path, timeout_s=0.5) as receiver:
        assert local_send(tmp_path, fill(tmp_path / "f", 4 * MIB), receiver.port).code == 0


# --- Connections ---------------------------------------------------------------------------------------


def test_g8_the_oldest_of_too_many_strangers_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_STRANGERS", 2)
    with LocalReceiver(tmp_path) as receiver:
        first, *others = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(3)]
        first.settimeout(5)
        assert first.recv(1) == b""
        for sock in (first, *others):
            sock.close()


def test_g9_a_receiver_without_a_thread_left_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start
    failures = iter([True])

    def start(thread: threading.Thread) -> None:
        if thread.name == "ftx-greet" and next(failures, False):
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    source = fill(tmp_path / "f", MIB)
    with LocalReceiver(tmp_path) as receiver:
        assert local_send(tmp_path, source, receiver.port).code == 3
        assert local_send(tmp_path, source, receiver.port).code == 0


# --- Retrying ------------------------------------------------------------------------------------------


def retrying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: Callable[[int], None], retry_for_s: float
) -> Any:
    """A run whose sessions are calls of ``sessions`` with their number; the links of all of them stand."""
    count = 0

    def session(self: dialer.SendRun, *_args: object) -> None:
        nonlocal count
        count += 1
        self._established = True
        sessions(count)

    monkeypatch.setattr(dialer.SendRun, "_session", session)
    return local_send(tmp_path, fill(tmp_path / "f", MIB), 1, retry_for_s=retry_for_s)


def test_a_name_that_is_out_of_reach_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that changes its network: first the link breaks, then no name resolves."""

    def session(number: int) -> None:
        if number < 3:
            raise (LinkLost("the link broke"), UnknownHost("no name server"))[number - 1]

    assert retrying(tmp_path, monkeypatch, session, 60).code == 0


def test_a_night_of_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(dialer.Stop, "wait", lambda _self, wait_s: waits.append(wait_s))

    def session(number: int) -> None:
        if number < 2000:
            raise LinkLost("the link broke")

    assert retrying(tmp_path, monkeypatch, session, 86_400).code == 0
    assert max(waits) <= dialer.LONGEST_WAIT_S * 1.25


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_g8_where_nobody_looks_at_what_is_told_nothing_more_is_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of the receiver's events that stands still holds sessions up, and not memory."""
    monkeypatch.setattr(events, "MAX_UNTOLD", 10)
    most, looking = 0, threading.Event()
    put = events.Untold.put

    def counted(untold: events.Untold, event: events.Event) -> None:
        nonlocal most
        put(untold, event)
        most = max(most, len(untold._events))

    monkeypatch.setattr(events.Untold, "put", counted)
    monkeypatch.setattr(registry, "WINDOW", 64)
    monkeypatch.setattr(registry, "LEAST_WINDOW", 64)
    (tmp_path / "tree").mkdir()
    for number in range(500):
        (tmp_path / "tree" / f"{number}").write_bytes(b"x")
    stuck = LocalReceiver(tmp_path)
    told = stuck._on_event

    def on_event(event: events.Event) -> None:
        told(event)
        if isinstance(event, events.EntryEnded):
            looking.wait()

    stuck._on_event = on_event  # type: ignore[method-assign]
    with stuck as receiver:
        sending = threading.Thread(target=local_send, args=(tmp_path, tmp_path / "tree", receiver.port))
        sending.start()
        wait_for(lambda: most >= 10)
        time.sleep(0.3)
        held = most
        looking.set()
        sending.join()
    assert held < 200
    assert len(receiver.of_type(events.EntryEnded)) == 501
