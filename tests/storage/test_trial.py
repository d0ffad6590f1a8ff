"""A file that is only there to be measured: bounded, and never seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ftx.protocol.manifest import MIB
from ftx.storage import disk, trial
from ftx.storage.trial import Trial
from ftx.storage.unfinished import BESIDE_PREFIX

CHUNK = os.urandom(MIB)


@pytest.fixture
def folder(shm: Path) -> Iterator[int]:
    fd = os.open(shm, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["without a name", "with a name for a moment"])
def unnamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to a file that nobody sees."""
    if request.param != "without a name":

        def none(*, folder: int) -> int:
            raise OSError(95, "no such files here")

        monkeypatch.setattr(disk, "open_unnamed", none)


@pytest.mark.usefixtures("unnamed")
def test_g8_it_never_has_a_name_nor_more_than_its_size(shm: Path, folder: int) -> None:
    with closing(Trial(folder, 3 * MIB)) as file:
        for _ in range(10):
            file.append(CHUNK)
            assert not list(shm.iterdir())
        assert os.fstat(file._fd).st_size == 3 * MIB
        assert disk.allocated(file._fd) <= 3 * MIB


def test_the_name_that_it_may_have_for_a_moment_is_never_sent(
    shm: Path, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at that very moment leaves it behind."""
    monkeypatch.setattr(disk, "open_unnamed", lambda *, folder: os.open("/nowhere/at all", 0))
    monkeypatch.setattr(disk, "unlink", lambda name, *, folder: None)
    Trial(folder, MIB).close()
    (left,) = os.listdir(folder)
    assert left.encode().startswith(BESIDE_PREFIX) and left.endswith(trial.BESIDE_SUFFIX.decode())


def test_g5_what_is_dirty_is_bounded_as_in_a_transfer(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(disk, "sync_data", syncs.append)
    monkeypatch.setattr(trial, "SYNC_BYTES", 2 * MIB)
    monkeypatch.setattr(trial, "DIRTY_BYTES", 4 * MIB)
    with closing(Trial(folder, 100 * MIB)) as file:
        file.append(CHUNK)
        assert not file.due
        file.append(CHUNK)
        assert file.due and not syncs
        file.append(CHUNK)
        file.append(CHUNK)
        assert len(syncs) == 1 and not file.due


def test_without_fsync_nothing_is_synced(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(disk, "sync_data", syncs.append)
    monkeypatch.setattr(trial, "DIRTY_BYTES", MIB)
    with closing(Trial(folder, 10 * MIB, durable=False)) as file:
        file.append(CHUNK)
        file.append(CHUNK)
        file.sync()
        assert not syncs and not file.due


def test_what_was_filled_is_read(folder: int) -> None:
    with closing(Trial(folder, 40 * MIB)) as file:
        assert file.fill(CHUNK, 10) == 32 * MIB
        buffer = memoryview(bytearray(MIB))
        assert file.read(31 * MIB, buffer) == MIB
        assert buffer == CHUNK
    assert file.read(0, buffer) == 0  # it is closed: whoever comes late gets nothing


def test_filling_ends_in_time(folder: int) -> None:
    with closing(Trial(folder, 40 * MIB)) as file:
        assert file.fill(CHUNK, 0) == 0
