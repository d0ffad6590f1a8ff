"""G6, G9, G11: a disk call that does not return while its session ends, and the session after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx import api
from ftx.errors import Busy
from ftx.protocol import messages as m
from ftx.storage import disk
from ftx.transfer import events, receive
from tests.hostile import peer
from tests.support.files import MIB, fill, journals, partials, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until


class Stuck:
    """The ``at``-th call of ``disk.NAME`` waits until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, at: int = 1) -> None:
        self.inside, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self._patch, self._name, self._at = patch, name, at
        self._calls = 0

    def __enter__(self) -> Stuck:
        real = getattr(disk, self._name)

        def stuck(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            if self._calls != self._at:
                return real(*args, **kwargs)
            self.inside.set()
            self.go_on.wait()
            try:
                return real(*args, **kwargs)
            finally:
                self.done.set()

        self._patch.setattr(disk, self._name, stuck)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()


@pytest.fixture(autouse=True)
def leaves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "LEAVE_S", 0.05)


@pytest.fixture
def source(shm: Path) -> Path:
    return fill(shm / "file", 3 * MIB)


@pytest.fixture
def receiver(shm: Path) -> Iterator[LocalReceiver]:
    with LocalReceiver(shm) as receiver:
        yield receiver


def send_until_stuck(shm: Path, source: Path, receiver: LocalReceiver, stuck: Stuck) -> None:
    """A sender that gives up as soon as the receiver's disk is stuck; its session is over then."""
    stop = api.Stop()
    watcher = threading.Thread(target=lambda: stuck.inside.wait(10) and stop.request(2))
    watcher.start()
    assert local_send(shm, source, receiver.port, stop=stop).code == 130
    watcher.join()
    wait_until(lambda: receiver.of_type(events.SessionEnd))


def test_g6_a_commit_that_outlives_its_session_keeps_its_descriptors(
    shm: Path, source: Path, receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get the numbers of closed ones, and a late commit would set their times and modes, or rename there."""
    (receiver.into / "file").write_bytes(b"old")
    with Stuck(monkeypatch, "sync_data") as stuck:
        send_until_stuck(shm, source, receiver, stuck)
        victims = [shm / f"victim-{number}" for number in range(40)]
        before = []
        descriptors = []
        for victim in victims:
            victim.write_bytes(b"victim")
            victim.chmod(0o751)
            before.append(victim.stat())
            descriptors.append(os.open(victim, os.O_RDWR))
        assert (receiver.into / "file").read_bytes() == b"old"
    assert stuck.done.wait(10)
    finished = local_send(shm, source, receiver.port)
    assert finished.code == 0
    assert same(source, receiver.into / "file")
    for victim, info, fd in zip(victims, before, descriptors, strict=True):
        os.close(fd)
        now = victim.stat()
        assert (now.st_mode, now.st_mtime_ns) == (info.st_mode, info.st_mtime_ns)
    assert local_send(shm, source, receiver.port).code == 0
    assert partials(receiver.into) == journals(receiver.into) == []


@pytest.mark.parametrize("call", ["open_folder", "same_mount", "lock", "truncate", "free_space"])
def test_g9_a_look_that_outlives_its_session_leaves_the_path_free(
    shm: Path, source: Path, receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with Stuck(monkeypatch, call) as stuck:
        send_until_stuck(shm, source, receiver, stuck)
    for thread in threading.enumerate():
        if thread.name in ("ftx-receive-read", "ftx-receive-look"):
            thread.join()
    assert local_send(shm, source, receiver.port).code == 0
    assert same(source, receiver.into / "file")


@pytest.mark.parametrize("call", ["sync_file", "rename", "set_mode"])
def test_g5_a_small_file_whose_session_is_over_is_not_published(
    shm: Path, receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Or the next session's version, which has its receipt, would be replaced by an older one."""
    source = shm / "file"
    source.write_bytes(b"old")
    with Stuck(monkeypatch, call) as stuck:
        send_until_stuck(shm, source, receiver, stuck)
        source.write_bytes(b"newer")
        finished = local_send(shm, source, receiver.port)
        # What is in the middle of its rename keeps its path: it cannot be called back.
        assert finished.code == (Busy.exit_code if call == "rename" else 0), finished.message
    assert stuck.done.wait(10)
    for thread in threading.enumerate():
        if thread.name in ("ftx-receive-read", "ftx-receive-commit"):
            thread.join(10)
    if call == "rename":
        assert local_send(shm, source, receiver.port).code == 0
    assert (receiver.into / "file").read_bytes() == b"newer"


def test_g9_a_session_ends_while_the_free_space_is_looked_at(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small file under way, which gives its path back."""
    with LocalReceiver(shm, open=True) as receiver, peer.sender(receiver.port) as lane:
        lane.send(m.Folder(b"", 1, (peer.offered(b"a", 5),)))
        peer.heard(lane, m.WantAll)
        with Stuck(monkeypatch, "free_space") as stuck:
            lane.send(m.Folder(b"", 2, (peer.offered(b"b", 5)._replace(allocated=5),)))
            assert stuck.inside.wait(10)
            lane.sock.close()
            wait_until(lambda: receiver.of_type(events.SessionEnd))


def test_g9_a_write_that_outlives_its_session_is_waited_for(
    shm: Path, source: Path, receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next session gets the partial when the old one's writer has returned, and not an error."""
    with Stuck(monkeypatch, "write_at", at=3) as stuck:  # the journal's header, a chunk, a chunk
        send_until_stuck(shm, source, receiver, stuck)
        later = threading.Timer(0.1, stuck.go_on.set)
        later.start()
        assert local_send(shm, source, receiver.port).code == 0
        later.join()
    assert same(source, receiver.into / "file")
