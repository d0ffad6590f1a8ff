"""G5: a sync of the receiver fails and loses what it should have written. It is sent again, and never published."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ftx.storage import disk
from ftx.storage import partial as storage_partial
from ftx.storage import source as storage_source
from ftx.transfer import publish, receive
from ftx.transfer.actions import Commit
from tests.crash.lossy import FailingSync
from tests.storage.support import fail_once
from tests.support.files import MIB, fill, journals, overwrite, partials, same
from tests.support.local import LocalReceiver, local_send

CHUNKS = 6


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync after every chunk or so, and one before the commit."""
    monkeypatch.setattr(publish, "SYNC_BYTES", 1)
    monkeypatch.setattr(publish, "TICK_S", 0.001)


@pytest.mark.parametrize("at", range(1, 8))
def test_g5_what_a_failed_sync_lost_is_sent_again(shm: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    source = fill(shm / "file", CHUNKS * MIB)
    with LocalReceiver(shm) as receiver, FailingSync(at).installed(monkeypatch) as syncs:
        (receiver.into / "file").write_bytes(b"old")
        finished = local_send(shm, source, receiver.port)
        assert finished.code == 0
        assert same(source, receiver.into / "file")
        assert syncs.failed or syncs.syncs < at
        assert (finished.bytes_sent > CHUNKS * MIB) == syncs.failed
    assert journals(receiver.into) == partials(receiver.into) == []


def test_g5_a_sync_that_fails_when_the_commit_is_due_already(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk and FINISH arrive while it runs: the commit that they bring about must not go on without it."""
    source = fill(shm / "file", CHUNKS * MIB)
    due = threading.Event()
    real = receive.ReceiveSession._act

    def acting(session: receive.ReceiveSession, actions: Any) -> None:
        real(session, actions)
        if any(isinstance(action, Commit) for action in actions):
            due.set()

    monkeypatch.setattr(receive.ReceiveSession, "_act", acting)
    failing = FailingSync(1, lambda: due.wait(10) and None)
    with LocalReceiver(shm) as receiver, failing.installed(monkeypatch) as syncs:
        assert local_send(shm, source, receiver.port).code == 0
        assert syncs.failed
        assert due.is_set()
        assert same(source, receiver.into / "file")


def test_g5_a_chunk_is_lost_between_two_sessions_of_one_process(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error came when nobody had the file open, or was told to somebody else: it is read from the disk again."""
    monkeypatch.setattr(storage_source, "TRUSTED_AGE_NS", 0)
    monkeypatch.setattr(storage_partial, "_stamps", lambda fd: (0, 0, 0))  # a loss leaves no trace in them
    monkeypatch.setattr(publish, "SYNC_BYTES", 2**60)
    source = fill(shm / "file", CHUNKS * MIB)
    with LocalReceiver(shm) as receiver:
        with monkeypatch.context() as patch:
            fail_once(patch, "size", at=2)  # the first is that of the journal, the second that of the commit
            assert local_send(shm, source, receiver.port).code == 7
        (partial,) = partials(receiver.into)
        overwrite(partial, 2 * MIB, bytes(MIB))
        finished = local_send(shm, source, receiver.port)
        assert finished.code == 0
        assert same(source, receiver.into / "file")
        assert finished.bytes_sent == MIB


@pytest.mark.parametrize("held", [False, True], ids=["fresh", "resumed"])
def test_g11_a_disk_that_cannot_sync_ends_the_transfer(shm: Path, monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    """Also where nothing was written that could be sent again; and the next run with a good disk goes on."""
    monkeypatch.setattr(storage_source, "TRUSTED_AGE_NS", 0)
    source = fill(shm / "file", CHUNKS * MIB)
    with LocalReceiver(shm) as receiver:
        if held:
            with monkeypatch.context() as patch:
                fail_once(patch, "set_times")
                assert local_send(shm, source, receiver.port).code == 7
        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync_data", _refusing)
            finished = local_send(shm, source, receiver.port)
            assert finished.code in (5, 7)
        assert not (receiver.into / "file").exists()
        assert local_send(shm, source, receiver.port).code == 0
        assert same(source, receiver.into / "file")


def _refusing(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
