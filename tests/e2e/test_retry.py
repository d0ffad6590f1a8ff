"""The sender's own retry, and a new run that takes over from an old one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ftx import api
from ftx.errors import Refused
from ftx.net import handshake
from ftx.transfer import events
from tests.support.files import MIB, fill, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import Process, Receiver, send, sender
from tests.support.proxy import Call, Cut, Freeze, HalfClose, Proxy, Stall

SIZE = 48 * MIB


def test_G2_a_cut_link_is_mended_in_the_same_run(shm: Path) -> None:
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[Cut(20 * MIB)]) as proxy:
        sent = send(shm, source, proxy.port, "--retry-for", "30")
        assert sent.wait() == 0, sent.err
        assert [event["attempt"] for event in sent.of_type("retry")] == [1]
        assert len(sent.of_type("session")) == len(proxy.links) == 2
        assert same(source, receiver.into / "file")
        assert proxy.up <= SIZE + 24 * MIB


def test_many_cuts_in_one_run(shm: Path) -> None:
    """As long as bytes move between breaks it never gives up, however short ``retry_for_s`` is."""
    source = fill(shm / "file", SIZE)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[Cut(12 * MIB, reset=False)], on=None) as proxy:
        finished = local_send(shm, source, proxy.port, retry_for_s=1.0)
        assert finished.code == 0, finished.message
        assert len(proxy.links) >= 4
        assert same(source, receiver.into / "file")


def test_a_restarted_receiver(shm: Path) -> None:
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(20 * MIB, receiver.kill)]
        with sender(shm, source, proxy.port, "--retry-for", "30") as process:
            process.event("retry")
            with Receiver(shm) as second:
                proxy.target = ("127.0.0.1", second.port)
                assert process.wait() == 0, process.err
                assert same(source, second.into / "file")
        assert process.finished["bytes_total"] == SIZE


def test_a_receiver_that_was_stopped_and_started_again(shm: Path) -> None:
    """Its last word says that it leaves; the sender waits for it to come back."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(20 * MIB, lambda: receiver.signal(15)), Stall(20 * MIB)]
        with sender(shm, source, proxy.port, "--retry-for", "30") as process:
            assert "stopped" in process.event("retry")["reason"]
            assert receiver.wait() == 143
            with Receiver(shm) as second:
                proxy.target = ("127.0.0.1", second.port)
                assert process.wait() == 0, process.err
                assert same(source, second.into / "file")


def test_0_does_not_retry(shm: Path) -> None:
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[Cut(20 * MIB)]) as proxy:
        sent = send(shm, source, proxy.port, "--retry-for", "0")
        assert sent.wait() == 3
        assert not sent.of_type("retry")
        assert len(proxy.links) == 1
        message = sent.finished["message"]
        assert "kept" in message and "again" in message


@pytest.mark.alone
def test_it_gives_up_when_nothing_moves(shm: Path) -> None:
    source = fill(shm / "file", MIB)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[Cut(2000)], on=None) as proxy:
        started = time.monotonic()
        finished = local_send(shm, source, proxy.port, retry_for_s=1.0)
        assert finished.code == 3
        assert 1.0 <= time.monotonic() - started < 6.0
        assert len(proxy.links) >= 3


def test_a_link_that_never_stood_is_not_retried(shm: Path) -> None:
    """A wrong port is a mistake to report, not to wait for."""
    source = fill(shm / "file", MIB)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[Cut(10)], on=None) as proxy:
        assert local_send(shm, source, proxy.port, retry_for_s=60.0).code == 3
        assert len(proxy.links) == 1


@pytest.mark.alone
def test_a_silent_peer_is_a_broken_link(shm: Path) -> None:
    """Nothing passes any more, and nothing says so: after ``timeout_s`` the link counts as dead."""
    source = fill(shm / "file", SIZE)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[Freeze(20 * MIB)]) as proxy:
        started = time.monotonic()
        finished = local_send(shm, source, proxy.port, timeout_s=1.5, retry_for_s=20.0)
        assert finished.code == 0, finished.message
        assert time.monotonic() - started < 10
        assert len(proxy.links) == 2
        assert same(source, receiver.into / "file")


def test_a_half_closed_link(shm: Path) -> None:
    source = fill(shm / "file", SIZE)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[HalfClose(20 * MIB)]) as proxy:
        assert local_send(shm, source, proxy.port, retry_for_s=20.0).code == 0
        assert same(source, receiver.into / "file")


def test_the_same_job_started_twice(shm: Path) -> None:
    """The newer run takes over; the older is told, with exit code 8, and does not come back."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[Stall(20 * MIB)]) as proxy:
        with sender(shm, source, proxy.port, "--retry-for", "60") as older:
            older.event("session")
            newer = send(shm, source, receiver.port, "--retry-for", "60")
            assert newer.wait() == 0, newer.err
            assert older.wait() == 8
            assert "newer run" in older.finished["message"]
            assert not older.of_type("retry")
        assert len(proxy.links) == 1
        assert same(source, receiver.into / "file")


def test_a_superseded_run_that_did_not_hear_it_does_not_take_over_in_turn(shm: Path) -> None:
    source = fill(shm / "file", SIZE)
    codes: list[int] = []
    with LocalReceiver(shm) as receiver:
        # Nothing reaches the older run any more; it comes back when its link is cut, while the newer is at work.
        with (
            Proxy(receiver.port, up=[Freeze(20 * MIB)]) as old,
            Proxy(receiver.port) as new,
        ):
            older = threading.Thread(
                target=lambda: codes.append(local_send(shm, source, old.port, timeout_s=2.0, retry_for_s=30.0).code)
            )
            back = threading.Event()
            older.start()
            new.up_faults = [Call(4 * MIB, lambda: back.wait(20))]
            try:
                while not old.links or old.up < 20 * MIB:
                    time.sleep(0.005)
                newer: list[int] = []
                second = threading.Thread(
                    target=lambda: newer.append(local_send(shm, source, new.port, timeout_s=20.0).code)
                )
                second.start()
                older.join(20)
                assert codes == [8]
            finally:
                back.set()
                older.join()
                second.join()
        assert newer == [0]
        assert same(source, receiver.into / "file")


@pytest.mark.alone
def test_a_ghost_is_evicted_at_once(shm: Path) -> None:
    """A killed sender's connection stays open and silent, as a lost router leaves it; the next run does not wait."""
    source = fill(shm / "file", SIZE)
    started: Future[Process] = Future()
    faults = [Call(20 * MIB, lambda: started.result().kill()), Freeze(20 * MIB)]
    with Receiver(shm) as receiver, Proxy(receiver.port, up=faults) as proxy:
        with sender(shm, source, proxy.port) as first:
            started.set_result(first)
            assert first.wait() == -9
        again = send(shm, source, receiver.port)
        assert again.wait() == 0, again.err
        assert again.finished["seconds"] < 2.0
        assert again.finished["bytes_reused"] >= 16 * MIB
        assert receiver.event("session_end")["code"] == 8
        assert same(source, receiver.into / "file")


def test_another_job_to_the_same_path_is_refused_busy(shm: Path) -> None:
    """Not the same job, so nobody is evicted: the later one is refused, for that entry alone."""
    source = fill(shm / "file", SIZE)
    (shm / "elsewhere").mkdir()
    other = fill(shm / "elsewhere" / "file", SIZE, seed=1)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:
        there, over = threading.Event(), threading.Event()
        proxy.up_faults = [Call(20 * MIB, lambda: there.set() or over.wait(30))]
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(local_send(shm, source, proxy.port).code))
        thread.start()
        try:
            assert there.wait(20)
            refused = local_send(shm, other, receiver.port)
            assert (refused.code, refused.failed) == (7, 1)
            assert "another transfer" in refused.message
        finally:
            over.set()
            thread.join()
        assert codes == [0]
        assert same(source, receiver.into / "file")


def test_g2_a_lane_that_its_session_does_not_know_any_more_is_a_broken_link(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver lost lane 1 and the sender has not heard it yet: no reason to give up."""
    source = fill(shm / "file", SIZE)
    attach, refusals = handshake.attach, iter([Refused("there is no such session")])

    def refused(*args: Any) -> None:
        for refusal in refusals:
            raise refusal
        attach(*args)

    monkeypatch.setattr(handshake, "attach", refused)
    found: list[api.Event] = []
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, source, receiver.port, retry_for_s=10.0, lanes=2, on_event=found.append)
        assert finished.code == 0, finished.message
        assert same(source, receiver.into / "file")
    (retry,) = (event for event in found if isinstance(event, events.Retry))
    assert "lane 2" in retry.reason


def test_a_file_that_took_two_sessions_counts_once(shm: Path) -> None:
    """In the receiver's sums too, which go over its sessions."""
    source = fill(shm / "file", SIZE)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[Cut(20 * MIB)]) as proxy:
        assert local_send(shm, source, proxy.port, retry_for_s=10.0).code == 0
    assert receiver.finished is not None
    assert receiver.finished.bytes_total == SIZE
