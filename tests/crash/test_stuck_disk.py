"""G6, G9, G11: a disk call that does not return while its session ends, and the session after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx import api
from ftx.storage import disk
from ftx.transfer import events, receive
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
