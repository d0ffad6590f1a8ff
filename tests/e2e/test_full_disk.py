"""A full disk pauses a transfer and does not end it: G2 and G11 where there is no room.

The destination is a small file system in memory, filled by the test at an exact byte of the transfer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.transfer import events
from tests.support.files import MIB, fill, journals, partials, same
from tests.support.local import LocalReceiver, local_send
from tests.support.meter import Meter
from tests.support.process import Process, Receiver, send, sender, wait_until
from tests.support.trees import assert_same

DISK = 24 * MIB
SIZE = 18 * MIB
#: What somebody else writes there during the transfer: some 9 MiB are left for it.
OTHER = 14 * MIB
#: Frames beside the payload.
OVERHEAD = 64 * 1024

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


@pytest.fixture
def into(shm: Path) -> Iterator[Path]:
    """A destination of ``DISK`` bytes."""
    folder = shm / "into"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class _Other:
    """A file of somebody else, that takes room and gives it back."""

    def __init__(self, into: Path) -> None:
        self._path = into / "somebody else's"

    def take(self, size: int = OTHER) -> None:
        fill(self._path, size)
        time.sleep(0.1)  # the free space is looked at every 50 ms

    def give(self) -> None:
        self._path.unlink()


@pytest.fixture
def other(into: Path) -> _Other:
    return _Other(into)


def _pauses(process: Process) -> list[str]:
    return [event["type"] for event in list(process.events) if event["type"] in ("paused", "resumed")]


def _free(into: Path) -> int:
    info = os.statvfs(into)
    return info.f_bavail * info.f_frsize


def _tree(path: Path, count: int, size: int) -> Path:
    path.mkdir()
    for number in range(count):
        fill(path / f"{number:04}", size, seed=number)
    return path


# --- what cannot fit -----------------------------------------------------------------------------------


def test_G11_an_offer_that_cannot_fit_is_refused_at_once(shm: Path, into: Path) -> None:
    """For that entry alone, with how much is needed; nothing travels."""
    top = shm / "top"
    top.mkdir()
    fill(top / "large", DISK + MIB)
    fill(top / "small", MIB)
    told: list[events.Event] = []
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, top / "large", receiver.port, on_event=told.append)
        assert finished.code == 7
        assert f"{DISK + MIB} bytes are needed" in finished.message
        assert finished.bytes_sent == 0
        finished = local_send(shm, top, receiver.port, on_event=told.append)
        assert (finished.code, finished.failed) == (9, 1)
        ended = {event.path: event.code for event in told if isinstance(event, events.EntryEnded)}
        assert ended == {b"large": 7, b"top/large": 7, b"top/small": 0, b"top": 0}
        assert not receiver.of_type(events.Paused) and not [one for one in told if isinstance(one, events.Paused)]
        assert same(top / "small", into / "top" / "small")
        assert _free(into) > DISK - 2 * MIB


def test_G11_what_would_touch_the_reserve_is_refused_at_once(shm: Path, into: Path) -> None:
    with LocalReceiver(shm, reserve=8 * MIB) as receiver:
        finished = local_send(shm, fill(shm / "file", SIZE), receiver.port)
        assert finished.code == 7
        assert f"{SIZE} bytes are needed" in finished.message
        assert f"{8 * MIB} are kept in reserve" in finished.message
        assert local_send(shm, fill(shm / "file", 14 * MIB), receiver.port).code == 0


def test_G9_space_is_set_aside_for_the_first_of_two_jobs(shm: Path, into: Path) -> None:
    """The second is refused at once, though the first has hardly begun; the first is not disturbed."""
    one, two = fill(shm / "one", SIZE), fill(shm / "two", SIZE)
    codes: list[int] = []
    with LocalReceiver(shm) as receiver:

        def second() -> None:
            codes.append(local_send(shm, two, receiver.port).code)

        with Meter(receiver.port, 2 * MIB, second) as meter:
            assert local_send(shm, one, meter.port).code == 0
        assert codes == [7]
        assert not receiver.of_type(events.Paused)
        assert same(one, into / "one")


# --- a disk that fills all the same --------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 4])
def test_G2_it_goes_on_when_there_is_room(shm: Path, into: Path, other: _Other, lanes: int) -> None:
    """In the same session, and no byte is sent twice. Both sides say why they wait, and when they go on."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port, "--lanes", str(lanes)) as process:
            for side in (process, receiver):
                assert "no space left" in side.event("paused")["reason"]
            assert process.popen.poll() is None
            other.give()
            assert process.wait() == 0, process.err
        assert same(source, into / "file")
        assert _pauses(process)[0] == _pauses(receiver)[0] == "paused"
        assert _pauses(process)[-1] == _pauses(receiver)[-1] == "resumed"
        assert len(process.of_type("session")) == 1 and not process.of_type("retry")
        assert process.finished["bytes_sent"] == SIZE
        assert meter.up <= SIZE + OVERHEAD
        assert not partials(into)


def test_G2_it_waits_longer_than_a_silent_peer_may(shm: Path, into: Path, other: _Other) -> None:
    """A pause is not silence, on neither side."""
    source = fill(shm / "file", SIZE)
    with (
        Receiver(shm, "--timeout", "2") as receiver,
        Meter(receiver.port, 4 * MIB, other.take) as meter,
        sender(shm, source, meter.port, "--timeout", "2") as process,
    ):
        process.event("paused")
        time.sleep(3.5)
        other.give()
        assert process.wait() == 0, process.err
        assert not process.of_type("retry")
        assert same(source, into / "file")


@pytest.mark.parametrize(("count", "size"), [(900, 20_000), (30, 600_000)], ids=["small", "middling"])
def test_G2_a_tree_goes_on_when_there_is_room(shm: Path, into: Path, other: _Other, count: int, size: int) -> None:
    top = _tree(shm / "tree", count, size)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, top, meter.port) as process:
            process.event("paused")
            receiver.event("paused")
            other.give()
            assert process.wait() == 0, process.err
        assert_same(top, into / "tree")
        assert not process.of_type("retry")
        assert process.finished["bytes_sent"] == count * size
        assert meter.up <= count * (size + 300) + OVERHEAD


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_reserve_is_kept(shm: Path, into: Path, other: _Other, lanes: int) -> None:
    """Also when somebody else uses it up: each lane may end the chunk that it had begun, and that is all."""
    source = fill(shm / "file", 14 * MIB)
    left: list[int] = []

    def take() -> None:
        other.take()
        left.append(_free(into))

    with Receiver(shm, "--reserve", "8M") as receiver, Meter(receiver.port, 4 * MIB, take) as meter:
        with sender(shm, source, meter.port, "--lanes", str(lanes)) as process:
            assert "reserve" in process.event("paused")["reason"]
            time.sleep(1.2)  # it looks every 0.5 s
            assert _free(into) >= left[0] - lanes * MIB
            other.give()
            assert process.wait() == 0, process.err
        assert same(source, into / "file")
        assert meter.up <= 14 * MIB + OVERHEAD


def test_G9_a_pause_is_one_jobs_own(shm: Path, into: Path, other: _Other) -> None:
    """Another sender, whose file still fits or is there already, is not held up."""
    source = fill(shm / "file", SIZE)
    there = fill(shm / "there", 1000)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        assert send(shm, there, receiver.port).wait() == 0
        with sender(shm, source, meter.port) as process:
            process.event("paused")
            again = send(shm, there, receiver.port)
            assert again.wait() == 0, again.err
            assert again.finished["skipped"] == 1
            (shm / "empty").touch()
            assert send(shm, shm / "empty", receiver.port).wait() == 0
            assert process.popen.poll() is None
            other.give()
            assert process.wait() == 0, process.err
        assert same(source, into / "file")


# --- no room for what is offered -----------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 4])
def test_G2_the_link_breaks_in_a_pause(shm: Path, into: Path, other: _Other, lanes: int) -> None:
    """The next session pauses as well, and goes on with what is held."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port, "--lanes", str(lanes)) as process:
            process.event("paused")
            time.sleep(0.5)  # the journal follows by 0.2 s
            meter.cut()
            assert "bytes are needed" in process.event("paused", 1)["reason"]
            receiver.event("paused", 1)
            time.sleep(1.2)  # it looks every 0.5 s
            assert process.popen.poll() is None
            other.give()
            assert process.wait() == 0, process.err
        assert len(process.of_type("retry")) == 1 and len(process.of_type("session")) == 2
        assert receiver.event("session_end", 1)["bytes_reused"] >= 3 * MIB
        assert _pauses(process)[-1] == "resumed"
        assert same(source, into / "file")
        assert not partials(into)


def test_G2_the_link_breaks_in_a_pause_of_a_tree(shm: Path, into: Path, other: _Other) -> None:
    top = _tree(shm / "tree", 900, 20_000)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, top, meter.port) as process:
            process.event("paused")
            meter.cut()
            process.event("paused", 1)
            other.give()
            assert process.wait() == 0, process.err
        assert_same(top, into / "tree")


def test_G11_what_finds_no_room_waits_behind_all_that_does(shm: Path, into: Path, other: _Other) -> None:
    """It holds up nothing; and when nobody makes room it fails alone."""
    top = _tree(shm / "tree", 5, MIB)
    large = fill(top / "0000 large", SIZE)
    other.take()
    with Receiver(shm) as receiver:
        with sender(shm, top, receiver.port, "--retry-for", "2") as process:
            assert f"{SIZE} bytes are needed" in process.event("paused")["reason"]
            assert len([one for one in process.of_type("entry") if one["state"] == "done"]) == 5
            assert process.wait() == 9, process.err
        assert (process.finished["failed"], _pauses(process)) == (1, ["paused"])
        with sender(shm, top, receiver.port) as process:
            process.event("paused")
            other.give()
            assert process.wait() == 0, process.err
        assert same(large, into / "tree" / large.name)
        assert process.finished["bytes_sent"] == SIZE


def test_G11_who_does_not_retry_is_refused_at_once(shm: Path, into: Path, other: _Other) -> None:
    other.take()
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, fill(shm / "file", SIZE), receiver.port)
        assert finished.code == 7 and "bytes are needed" in finished.message
        assert not receiver.of_type(events.Paused)


# --- nobody makes room ---------------------------------------------------------------------------------


def test_G11_nobody_makes_room(shm: Path, into: Path, other: _Other) -> None:
    """It gives up after ``--retry-for`` and says what was kept; the same command goes on with that later."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port, "--retry-for", "2") as process:
            assert process.wait() == 7, process.err
        assert "no space left" in process.finished["message"]
        assert process.of_type("paused") and not process.of_type("retry")
        assert receiver.event("session_end")["code"] == 7
        assert partials(into) and journals(into)
        meter.up = 0
        other.give()
        again = send(shm, source, meter.port)
        assert again.wait() == 0, again.err
        assert again.finished["bytes_reused"] >= 3 * MIB
        assert again.finished["bytes_reused"] + again.finished["bytes_sent"] == SIZE
        assert meter.up <= again.finished["bytes_sent"] + OVERHEAD
        assert same(source, into / "file")


def test_G11_nobody_makes_room_and_nobody_says_that_there_is_some(shm: Path, into: Path, other: _Other) -> None:
    """``resumed`` means that there is room again; a run that gives up has not resumed."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port, "--retry-for", "1") as process:
            assert process.wait() == 7, process.err
        receiver.event("session_end")
        assert (_pauses(process), _pauses(receiver)) == (["paused"], ["paused"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_G11_a_sender_is_interrupted_in_a_pause(shm: Path, into: Path, other: _Other, number: int, code: int) -> None:
    """At once; and the next run finds nothing busy. Nothing has failed, and nobody says so."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port) as process:
            process.event("paused")
            process.signal(number)
            assert process.wait(10.0) == code
        assert receiver.event("session_end")["code"] == 3
        assert not receiver.of_type("entry")
        other.give()
        again = send(shm, source, receiver.port)
        assert again.wait() == 0, again.err
        assert again.finished["bytes_reused"] >= 3 * MIB
        assert same(source, into / "file")


def test_G11_a_receiver_leaves_in_a_pause(shm: Path, into: Path, other: _Other) -> None:
    """Within its 5 seconds, and the sender goes on when it is back."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port, "--retry-for", "60") as process:
            process.event("paused")
            receiver.signal(signal.SIGTERM)
            assert receiver.wait(8.0) == 143
            assert "stopped" in process.event("retry")["reason"]
            other.give()
            with Receiver(shm) as second:
                meter.target = second.port
                assert process.wait() == 0, process.err
        assert same(source, into / "file")


@pytest.mark.parametrize("victim", ["sender", "receiver"])
def test_G2_a_kill_in_a_pause(shm: Path, into: Path, other: _Other, victim: str) -> None:
    """Whoever is killed: it goes on at once with what is there."""
    source = fill(shm / "file", SIZE)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, source, meter.port, "--retry-for", "60") as process:
            process.event("paused")
            time.sleep(0.5)  # the journal follows by 0.2 s
            (process if victim == "sender" else receiver).kill()
            other.give()
            with Receiver(shm) if victim == "receiver" else receiver as second:
                meter.target = second.port
                with process if victim == "receiver" else sender(shm, source, meter.port) as going_on:
                    assert going_on.wait() == 0, going_on.err
                assert second.event("session_end", int(victim == "sender"))["bytes_reused"] >= 3 * MIB
        assert same(source, into / "file")
        assert not partials(into) and not journals(into)


def test_G2_a_killed_tree_in_a_pause(shm: Path, into: Path, other: _Other) -> None:
    top = _tree(shm / "tree", 900, 20_000)
    with Receiver(shm) as receiver, Meter(receiver.port, 4 * MIB, other.take) as meter:
        with sender(shm, top, meter.port) as process:
            process.event("paused")
            process.kill()
        other.give()
        again = send(shm, top, receiver.port)
        assert again.wait() == 0, again.err
        assert again.finished["skipped"] > 100
        assert_same(top, into / "tree")
        # What the killed run had written and not published yet is gone.
        wait_until(lambda: not list(into.glob(".ftx/*.new")))
