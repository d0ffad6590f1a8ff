"""Users, terminals and file systems that do not keep still."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.cli import process
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName
from ftx.storage.source import Source
from tests.hostile import peer
from tests.support.files import MIB, fill
from tests.support.local import LocalReceiver, local_send
from tests.support.process import Process, Receiver, sender, wait_until
from tests.support.proxy import Call, Dribble, Proxy

XXH3 = DigestName.XXH3_128.function
RENAME_EXCHANGE = 2


# --- A terminal that is closed -------------------------------------------------------------------------


@pytest.fixture
def on_a_terminal() -> Iterator[None]:
    """What is started now, not forked, takes SIGHUP, also where the tests were started to outlive their terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_g11_a_closed_terminal_ends_both_sides_in_good_order(on_a_terminal: None, shm: Path) -> None:
    source = fill(shm / "f", 128 * MIB)
    runs: list[Process] = []

    def close() -> None:
        runs[0].signal(signal.SIGHUP)

    slowly = Dribble(MIB, step=64 * 1024, wait_s=0.005)  # ten seconds for the rest: it is noticed before the end
    with Receiver(shm, forked=False) as receiver, Proxy(receiver.port, up=[Call(MIB, close), slowly]) as proxy:
        with sender(shm, source, proxy.port, "--retry-for", "0", "--lanes", "1", forked=False) as run:
            runs.append(run)
            assert run.wait() == 128 + signal.SIGHUP, run.err
            assert "Run the same command again" in run.finished["message"]
        assert receiver.event("session_end")["message"] == "interrupted"
        receiver.signal(signal.SIGHUP)
        assert receiver.wait() == 128 + signal.SIGHUP


def test_who_is_told_to_outlive_its_terminal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in process._taken()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in process._taken()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_g9_several_sessions_share_the_interpreter() -> None:
    """One that floods takes it for a moment only; one alone is not interrupted for nobody."""
    before = sys.getswitchinterval()
    try:
        intervals = []
        for sessions in (0, 1, 2, 200, 1):
            process.share(sessions)
            intervals.append(round(sys.getswitchinterval(), 6))
        assert intervals == [0.005, 0.005, 0.0005, 0.0005, 0.005]
    finally:
        sys.setswitchinterval(before)


# --- Descriptors ---------------------------------------------------------------------------------------


def test_g9_a_receiver_takes_as_many_descriptors_as_it_may_have(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        receiver = Receiver(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with receiver:
        assert resource.prlimit(receiver.popen.pid, resource.RLIMIT_NOFILE) == (before[1], before[1])


# --- A sender that is asked for much -------------------------------------------------------------------


def test_g9_a_sender_that_hashes_on_a_slow_disk_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two DIGESTS lie many chunks."""
    real = Source.read

    def slowly(self: Source, index: int, buffer: memoryview) -> memoryview:
        wait.wait(0.03)
        return real(self, index, buffer)

    wait = threading.Event()
    monkeypatch.setattr(Source, "read", slowly)
    monkeypatch.setattr(m, "PING_S", 0.05)
    source = fill(tmp_path / "f", 16 * MIB)
    runs: list[Any] = []

    def run(port: int) -> None:
        thread = threading.Thread(target=lambda: runs.append(local_send(tmp_path, source, port, accept_new=True)))
        threads.append(thread)
        thread.start()

    threads: list[threading.Thread] = []
    with peer.receiver(run) as lane:
        lane.send(m.Want(1, 0, ()))
        lane.send(m.AskDigests(1, DigestName.SHA_256, 0, 16))
        pings = 0
        while isinstance(peer.heard(lane, m.Ping, m.Digests), m.Ping):
            pings += 1
        lane.send(m.Refuse((m.RefuseItem(1, 48, "enough"),)))
        lane.send(peer.heard(lane, m.Bye))
        threads[0].join()
    assert pings >= 3
    assert runs[0].code == 7


# --- Links that are swapped in -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("swapped", ["folder", ".ftx"])
def test_g6_a_folder_that_keeps_turning_into_a_link(tmp_path: Path, swapped: str, size: int) -> None:
    """A small file is written in one go and renamed with others, a large one has a partial; it is all zeros here."""
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    outside.chmod(0o700)
    into = tmp_path / "into"
    (into / swapped).mkdir(parents=True, mode=0o700)
    (into / "link").symlink_to(outside)
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    one, other = (os.fsencode(into / name) for name in (swapped, "link"))
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            renameat2(-100, one, -100, other, RENAME_EXCHANGE)

    swapping = threading.Thread(target=swap)
    digest = XXH3(b"x")
    digests = digest if size == 1 else XXH3(bytes(MIB)) * 2
    root = XXH3(digests + size.to_bytes(8, "big"))
    ended = {m.Receipt: 0, m.Refuse: 0}
    with LocalReceiver(tmp_path, open=True) as receiver, peer.sender(receiver.port) as lane:
        swapping.start()
        try:
            for entry in range(1, 400):
                lane.send(m.Folder(b"folder/below", entry, (peer.offered(b"%d" % entry, size),)))
                while type(answer := peer.heard(lane, m.Want, m.WantAll, m.Receipt, m.Refuse)) in (m.Want, m.WantAll):
                    if size == 1:
                        lane.queue_data(m.Data(entry, 0, digest, 1), b"x")
                    else:
                        lane.queue(m.Zeros(entry, (m.Range(0, 2),)))
                    lane.send(m.Finish(entry, root))
                ended[type(answer)] += 1  # type: ignore[index]
        finally:
            over.set()
            swapping.join()
    assert [path for path in outside.rglob("*") if not path.is_dir()] == []
    assert {path.name for path in outside.iterdir()} == {"below"}
    wait_until(lambda: receiver.finished is not None)
    assert sum(ended.values()) == 399
