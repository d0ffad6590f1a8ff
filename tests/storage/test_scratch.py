"""G5: small files of one session, whose sync together may be given up between their writing and their publishing."""

from __future__ import annotations

import errno
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.errors import DestinationError, NameRefused
from ftx.options import Exists as Policy
from ftx.protocol.manifest import Entry, Kind
from ftx.storage import commit, disk, scratch
from ftx.storage.partial import SyncFailed
from ftx.storage.paths import Root
from ftx.storage.scratch import GROUP_LEAST, Scratch, Whole
from tests.storage.support import MTIME_NS, TAG, XXH3, before_call, fail_once, in_child, names, record
from tests.support.folding import FoldedNames

DATA = b"small"
#: Closed behind each test.
WRITTEN: list[Whole] = []


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Inodes of files that were written and that no sync has covered yet."""
    found: set[int] = set()
    write_at, sync_file, sync_all = disk.write_at, disk.sync_file, disk.sync_file_system

    def written(fd: int, data: bytes, offset: int) -> None:
        write_at(fd, data, offset)
        found.add(os.fstat(fd).st_ino)

    def synced(fd: int) -> None:
        found.discard(os.fstat(fd).st_ino)
        sync_file(fd)

    def all_synced(fd: int) -> None:
        found.clear()
        sync_all(fd)

    monkeypatch.setattr(disk, "write_at", written)
    monkeypatch.setattr(disk, "sync_file", synced)
    monkeypatch.setattr(disk, "sync_file_system", all_synced)
    return found


@pytest.fixture
def folder(root: Root, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scratch]:
    """One sync stands for all, until one takes long: the first does."""
    monkeypatch.setattr(scratch, "_syncs_together", lambda fd: True)
    monkeypatch.setattr(scratch, "GROUP_SLOW_S", -1)
    folder = Scratch(root, durable=True)
    folder.folder()
    yield folder
    while WRITTEN:
        WRITTEN.pop().close()
    folder.close()


def written(folder: Scratch, first: int, count: int) -> list[Whole]:
    wholes = []
    for number in range(first, first + count):
        entry = Entry(number, Kind.FILE, b"file%d" % number, len(DATA), len(DATA), 0o644, MTIME_NS, TAG)
        wholes.append(Whole(folder, entry, XXH3))
        wholes[-1].write(0, DATA)
    WRITTEN.extend(wholes)
    return wholes


@pytest.mark.parametrize("count", [1, GROUP_LEAST - 1, GROUP_LEAST, GROUP_LEAST + 1])
def test_g5_what_was_written_before_the_sync_for_all_was_given_up_is_synced_by_itself(
    root: Root, into: Path, folder: Scratch, unsynced: set[int], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """It was closed at once, since one sync was to stand for all. That was found too slow before its turn came."""
    first = written(folder, 1, GROUP_LEAST)
    assert all(whole.fd < 0 and not whole.synced for whole in first)
    folder.sync(first)
    assert unsynced == set()
    monkeypatch.setattr(folder, "_together", True)
    second = written(folder, 200, count)  # while the slow sync of the first was under way
    monkeypatch.setattr(folder, "_together", False)
    second += written(folder, 300, 2)  # behind it
    rename = disk.rename

    def renamed(old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> None:
        assert os.stat(old, dir_fd=old_folder).st_ino not in unsynced
        rename(old, new, old_folder=old_folder, new_folder=new_folder)

    monkeypatch.setattr(disk, "rename", renamed)
    results = commit.publish_group(root, folder, second, Policy.REPLACE, fsync=True)
    assert [path for _, path in results] == [whole.entry.path for whole in second]
    assert all((into / os.fsdecode(whole.entry.path)).read_bytes() == DATA for whole in second)
    assert unsynced == set()


def test_g5_a_sync_for_all_that_is_given_up_at_the_contents_is_not_trusted_for_the_names(
    root: Root, folder: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives way inside one group: the names of that group are then synced folder by folder."""
    wholes = written(folder, 1, GROUP_LEAST)
    calls = record(monkeypatch, "sync_file_system", "rename", "sync_folder")
    commit.publish_group(root, folder, wholes, Policy.REPLACE, fsync=True)
    assert calls == ["sync_file_system", *["rename"] * GROUP_LEAST, "sync_folder"]


def test_g5_with_many_open_the_others_are_synced_as_they_are_written(
    folder: Scratch, unsynced: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was taken away and is written again is not taken for synced."""
    monkeypatch.setattr(scratch, "MAX_OPEN", 2)
    monkeypatch.setattr(folder, "_together", False)
    wholes = written(folder, 1, 4)
    assert [whole.fd >= 0 for whole in wholes] == [True, True, False, False]
    assert [whole.synced for whole in wholes] == [False, False, True, True]
    assert len(unsynced) == 2
    wholes[3].forget()
    assert not wholes[3].synced
    folder.sync(wholes[:3])
    assert unsynced == set()


@pytest.mark.parametrize(
    ("system", "release", "kind", "trusted"),
    [
        ("Linux", "5.8.0-63-generic", "ext4", True),
        ("Linux", "6.1", "tmpfs", True),
        ("Linux", "5.7.19", "ext4", False),
        ("Linux", "4.20.1", "xfs", False),
        ("Linux", "unknown", "ext4", False),
        ("Linux", "6.1", "nfs4", False),
        ("Linux", "6.1", "fuseblk", False),
        ("Linux", "6.1", "", False),
        ("Darwin", "23.1", "ext4", False),
    ],
)
def test_g5_one_sync_for_all_is_trusted_where_it_tells_what_failed(
    root: Root, monkeypatch: pytest.MonkeyPatch, system: str, release: str, kind: str, trusted: bool
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(disk, "file_system", lambda fd: kind)
    folder = Scratch(root, durable=True)
    folder.folder()
    together = folder.together
    folder.close()
    assert together is trusted


@pytest.mark.parametrize("together", [False, True], ids=["each", "together"])
def test_g1_g5_a_sync_that_fails_publishes_nothing(
    root: Root, folder: Scratch, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Whichever of them it is about."""
    monkeypatch.setattr(folder, "_together", together)
    wholes = written(folder, 1, GROUP_LEAST)
    calls = record(monkeypatch, "rename", "link")
    fail_once(monkeypatch, "sync_file_system" if together else "sync_file", at=1 if together else GROUP_LEAST)
    with pytest.raises(SyncFailed):
        commit.publish_group(root, folder, wholes, Policy.REPLACE, fsync=True)
    assert calls == []


def test_g5_names_are_synced_together_behind_the_last_of_them(
    root: Root, folder: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "GROUP_SLOW_S", 60)
    wholes = written(folder, 1, GROUP_LEAST)
    calls = record(monkeypatch, "sync_file_system", "rename", "sync_folder")
    commit.publish_group(root, folder, wholes, Policy.REPLACE, fsync=True)
    assert calls == ["sync_file_system", *["rename"] * GROUP_LEAST, "sync_file_system"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_g5_where_the_sync_of_the_names_fails_none_of_them_counts(
    root: Root, folder: Scratch, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nor is it tried again, also not for want of space: they have their names already."""
    monkeypatch.setattr(scratch, "GROUP_SLOW_S", 60)
    wholes = written(folder, 1, GROUP_LEAST)
    fail_once(monkeypatch, "sync_file_system", number, at=2)
    results = commit.publish_group(root, folder, wholes, Policy.RENAME, fsync=True)
    assert [whole for whole, _ in results] == wholes
    assert {type(result) for _, result in results} == {DestinationError}
    assert all("may not be on the disk" in str(result) for _, result in results)


def test_g6_who_comes_late_finds_no_folder(root: Root, into: Path) -> None:
    """Who was stuck at the disk while its session ended: a new folder would be nobody's."""
    folder = Scratch(root, durable=False)
    (whole,) = written(folder, 1, 1)
    folder.close()
    with pytest.raises(FileNotFoundError, match="over"):
        whole.write(0, DATA)
    whole.close()
    assert names(into / ".ftx") == []


def test_g5_what_a_folder_was_given_is_synced_with_it(
    root: Root, folder: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode and its time, where it is told to be durable by itself."""
    whole = Whole(folder, Entry(1, Kind.FOLDER, b"sub", 0, 0, 0o750, MTIME_NS, TAG), XXH3)
    calls = record(monkeypatch, "set_mode", "set_times", "sync_folder")
    assert commit.publish_group(root, folder, [whole], Policy.REPLACE, fsync=True) == [(whole, b"sub")]
    assert calls == ["set_mode", "set_times", "sync_folder", "sync_folder"]


def test_a_folder_that_was_cleared_away_before_its_lock_is_not_used(
    root: Root, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever found it without one; another is made."""
    before_call(monkeypatch, "lock", lambda: next((into / ".ftx").iterdir()).rmdir())
    folder = Scratch(root, durable=False)
    usable = os.fstat(folder.folder().fd).st_nlink
    folder.close()
    assert usable
    assert names(into / ".ftx") == []


def test_g1_of_two_folders_that_fold_the_second_is_refused(
    root: Root, into: Path, folder: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither was there when they were looked at: it is found out when they are made."""
    FoldedNames().install(monkeypatch)
    entries = [Entry(number, Kind.FOLDER, name, 0, 0, 0o700 + number, MTIME_NS, TAG)
               for number, name in enumerate((b"Sub", b"sub"))]  # fmt: skip
    wholes = [Whole(folder, entry, XXH3) for entry in entries]
    (_, first), (_, second) = commit.publish_group(root, folder, wholes, Policy.REPLACE, fsync=True)
    assert first == b"Sub"
    assert isinstance(second, NameRefused)
    assert stat.S_IMODE((into / "Sub").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_g5_what_its_owner_may_not_read_is_synced_too(shm: Path) -> None:
    """With a few, each is synced by itself; root may read everything."""
    into = shm / "into"
    into.mkdir()
    os.chown(into, 65534, 65534)

    def work() -> None:
        root = Root(into)
        folder = Scratch(root, durable=True)
        entry = Entry(1, Kind.FILE, b"file", len(DATA), len(DATA), 0o000, MTIME_NS, TAG)
        whole = Whole(folder, entry, XXH3)
        whole.write(0, DATA)
        assert commit.publish_group(root, folder, [whole], Policy.REPLACE, fsync=True) == [(whole, b"file")]

    shm.chmod(0o755)
    assert in_child(work, uid=65534) == 0
    assert (into / "file").read_bytes() == DATA


def test_g9_a_descriptor_is_closed_once(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where closing reports an error, as over a network: its number may be anybody's by then."""
    monkeypatch.setattr(scratch, "_syncs_together", lambda fd: False)
    real, closed = os.close, []

    def close(fd: int) -> None:
        closed.append(fd)
        real(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = Scratch(root, durable=True)
    (whole,) = written(folder, 1, 1)
    fd = whole.fd
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        whole.forget()
        whole.close()
    assert closed == [fd]
    folder.close()


@pytest.mark.parametrize("policy", [Policy.RENAME, Policy.KEEP, Policy.FAIL])
def test_g1_a_folder_that_appears_is_kept_as_it_is(root: Root, into: Path, policy: Policy) -> None:
    """It was not there when it was looked at."""
    session = Scratch(root, durable=False)
    folder = Entry(1, Kind.FOLDER, b"folder", 0, 0, 0o700, MTIME_NS, bytes(16))
    (into / "folder").mkdir()
    (into / "folder").chmod(0o751)
    before = (into / "folder").stat()
    ((_, path),) = commit.publish_group(root, session, [Whole(session, folder, XXH3)], policy, fsync=False)
    session.close()
    after = (into / "folder").stat()
    assert path == b"folder"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
