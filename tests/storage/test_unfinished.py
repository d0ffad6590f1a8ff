"""What is left of transfers: listed as it is, removed only by whom it concerns, never while it is in use."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ftx.protocol.manifest import MAX_FILE_SIZE
from ftx.storage import disk, journal, partial, scratch, unfinished
from ftx.storage.partial import PartialStore
from ftx.storage.paths import Root
from ftx.storage.scratch import Scratch
from ftx.storage.unfinished import UnfinishedFile
from tests.storage.support import (
    CHUNK,
    NEEDS_ROOT,
    OTHER_PEER,
    PEER,
    XXH3,
    before_call,
    entry,
    fail_once,
    in_child,
    names,
    record,
    snapshot,
    untouched,
    write,
)

KEY = "0123456789abcdef" * 2
WEEK_S = 7 * 24 * 3600.0


@pytest.fixture(autouse=True)
def journal_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is journaled as it is written."""
    monkeypatch.setattr(partial, "JOURNAL_S", 0)


@pytest.fixture
def own(into: Path) -> Path:
    """``.ftx`` of the destination."""
    folder = into / ".ftx"
    folder.mkdir(mode=0o700)
    return folder


def leave(store: PartialStore, path: bytes = b"a/file", *chunks: int, peer: bytes = PEER, size: int = 3 * CHUNK) -> str:
    """Break off a transfer that has these chunks; its key."""
    left = store.open(peer, entry(path, size), XXH3)
    write(left, *chunks)
    store.release(left, committed=False)
    return left.key.decode()


def listed(root: Root) -> list[UnfinishedFile]:
    return sorted(unfinished.unfinished(root), key=lambda item: item.path)


def set_back(*paths: Path, age_s: float = 2 * WEEK_S) -> None:
    for path in paths:
        then = time.time() - age_s
        os.utime(path, (then, then), follow_symlinks=False)


def set_all_back(folder: Path, age_s: float = 2 * WEEK_S) -> None:
    set_back(*folder.iterdir(), age_s=age_s)


# --- Listing ---------------------------------------------------------------------------------------------------------


def test_without_its_folder_nothing_is_unfinished_and_nothing_is_made(root: Root, into: Path) -> None:
    assert listed(root) == []
    assert unfinished.expire(root, 0) == []
    assert names(into) == []


def test_what_is_listed(root: Root, store: PartialStore) -> None:
    key = leave(store, b"a/file", 0, 3, size=3 * CHUNK + 5)
    leave(store, b"b", peer=OTHER_PEER, size=7)
    first, second = listed(root)
    assert (first.key, first.path, first.size, first.held) == (key.encode(), b"a/file", 3 * CHUNK + 5, CHUNK + 5)
    assert (first.peer, first.running) == (PEER, False)
    assert 0 <= first.age_s < 30
    assert (second.path, second.size, second.held, second.peer) == (b"b", 7, 0, OTHER_PEER)


def test_one_path_of_two_peers_is_two(root: Root, store: PartialStore) -> None:
    leave(store)
    leave(store, peer=OTHER_PEER)
    assert {item.peer for item in listed(root)} == {PEER, OTHER_PEER}


@pytest.mark.parametrize(("journal_age_s", "partial_age_s"), [(1000, 5000), (5000, 1000)])
def test_the_age_is_that_of_the_newer(
    root: Root, store: PartialStore, into: Path, journal_age_s: float, partial_age_s: float
) -> None:
    key = leave(store)
    set_back(into / ".ftx" / f"{key}.journal", age_s=journal_age_s)
    set_back(into / ".ftx" / f"{key}.part", age_s=partial_age_s)
    assert 1000 <= listed(root)[0].age_s < 1030


def test_the_time_of_a_source_that_lies_in_the_future_is_no_age(root: Root, store: PartialStore, into: Path) -> None:
    key = leave(store)
    set_back(into / ".ftx" / f"{key}.journal", age_s=1000)
    set_back(into / ".ftx" / f"{key}.part", age_s=-1000)
    assert 1000 <= listed(root)[0].age_s < 1030


def test_it_is_running_while_a_session_has_it(root: Root, store: PartialStore) -> None:
    open_one = store.open(PEER, entry(), XXH3)
    assert [item.running for item in listed(root)] == [True]

    def in_another_process() -> None:
        assert [item.running for item in listed(root)] == [True]

    assert in_child(in_another_process) == 0
    store.release(open_one, committed=False)
    assert [item.running for item in listed(root)] == [False]


def test_whoever_looks_keeps_no_lock(root: Root, store: PartialStore) -> None:
    leave(store, b"file", 0)
    looking = unfinished.unfinished(root)
    assert next(looking).held == CHUNK
    again = PartialStore(root, reserve=0).open(PEER, entry(), XXH3)
    assert list(again.held) == [(0, 1)]
    again.close()
    looking.close()


def test_looking_changes_nothing(root: Root, store: PartialStore, into: Path) -> None:
    leave(store, b"a/file", 0)
    before = {path.name: path.stat() for path in (into / ".ftx").iterdir()}
    listed(root)
    for name, info in before.items():
        now = (into / ".ftx" / name).stat()
        assert (now.st_mtime_ns, now.st_ctime_ns, now.st_size) == (info.st_mtime_ns, info.st_ctime_ns, info.st_size)


def test_one_beside_its_target(root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "same_mount", lambda one, other: False)
    key = leave(store, b"a/file", 1)
    assert names(into / "a") == [f".ftx-{key}.part"]
    (item,) = listed(root)
    assert (item.path, item.held) == (b"a/file", CHUNK)
    assert unfinished.discard(root, item)
    assert names(into / "a") == names(into / ".ftx") == []

    leave(store, b"a/file", 1)
    set_all_back(into / ".ftx")
    assert unfinished.expire(root, WEEK_S) == []  # the partial itself is young
    set_all_back(into / "a")
    assert unfinished.expire(root, WEEK_S) == [b"a/file"]
    assert names(into / "a") == names(into / ".ftx") == []


def test_what_a_crash_left_of_a_commit_is_not_unfinished(root: Root, store: PartialStore, into: Path) -> None:
    linked, renamed = leave(store, b"linked", 0), leave(store, b"renamed", 0)
    (into / "linked").hardlink_to(into / ".ftx" / f"{linked}.part")
    (into / ".ftx" / f"{renamed}.part").rename(into / "renamed")
    assert listed(root) == []
    set_all_back(into / ".ftx")
    assert sorted(unfinished.expire(root, WEEK_S)) == [b"linked", b"renamed"]
    assert names(into) == [".ftx", "linked", "renamed"]
    assert names(into / ".ftx") == []


def test_a_journal_that_cannot_be_read_does_not_hide_the_others(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, b"one")
    leave(store, b"two")
    fail_once(monkeypatch, "read_at")
    found = []
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        for item in unfinished.unfinished(root):
            found.append(item)
    assert len(found) == 1


def test_one_that_ends_meanwhile_is_left_out(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = leave(store)
    before_call(monkeypatch, "open_at", (into / ".ftx" / f"{key}.journal").unlink)
    assert listed(root) == []


# --- Discarding ------------------------------------------------------------------------------------------------------


def test_discarded_it_begins_afresh(root: Root, store: PartialStore, into: Path) -> None:
    leave(store, b"file", 0, 1)
    leave(store, b"other", 0)
    assert unfinished.discard(root, listed(root)[0])
    assert [item.path for item in listed(root)] == [b"other"]
    again = store.open(PEER, entry(), XXH3)
    assert list(again.held) == []
    assert not again.digests.known
    again.close()


def test_one_in_use_is_kept(root: Root, store: PartialStore, into: Path) -> None:
    leave(store, b"file", 0)
    (item,) = listed(root)
    open_one = store.open(PEER, entry(), XXH3)
    assert not unfinished.discard(root, item)
    assert in_child(lambda: bool(unfinished.discard(root, item)) and os._exit(2)) == 0
    assert len(names(into / ".ftx")) == 2
    store.release(open_one, committed=False)
    assert unfinished.discard(root, item)
    assert names(into / ".ftx") == []
    assert not unfinished.discard(root, item)


def test_one_whose_name_another_transfer_has_got_is_kept(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was committed and begun again between our open and our lock."""
    key = leave(store, b"file", 0)
    (item,) = listed(root)
    old = into / ".ftx" / f"{key}.journal"

    def replaced() -> None:
        content = old.read_bytes()
        old.unlink()
        (into / "keeps the inode").write_bytes(b"")
        old.write_bytes(content)

    before_call(monkeypatch, "lock", replaced)
    assert not unfinished.discard(root, item)
    assert names(into / ".ftx") == [f"{key}.journal", f"{key}.part"]


def test_an_error_is_told(root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(store)
    (item,) = listed(root)
    fail_once(monkeypatch, "unlink", errno.EROFS)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        unfinished.discard(root, item)
    assert unfinished.discard(root, item)


# --- Expiry ----------------------------------------------------------------------------------------------------------


def test_what_nobody_touched_expires(root: Root, store: PartialStore, into: Path) -> None:
    old, young = leave(store, b"old", 0), leave(store, b"young", 0)
    for key, age_s in ((old, WEEK_S + 10), (young, WEEK_S - 100)):
        set_back(into / ".ftx" / f"{key}.journal", into / ".ftx" / f"{key}.part", age_s=age_s)
    assert unfinished.expire(root, WEEK_S) == [b"old"]
    assert names(into / ".ftx") == [f"{young}.journal", f"{young}.part"]


def test_what_is_in_use_never_expires(root: Root, store: PartialStore, into: Path) -> None:
    """Sessions of the same process, which goes on after it."""
    open_one = store.open(PEER, entry(), XXH3)
    folder = Scratch(root, durable=False)
    kept = folder.folder()
    set_all_back(into / ".ftx")
    before = snapshot(into)
    assert unfinished.expire(root, 0) == []
    assert snapshot(into).keys() == before.keys()
    assert os.fstat(kept.fd).st_nlink
    write(open_one, 0)
    store.release(open_one, committed=False)
    folder.close()
    assert unfinished.expire(root, 0) == [b"file"]


def test_one_that_was_touched_before_it_could_be_locked_stays(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = leave(store)
    set_all_back(into / ".ftx")
    before_call(monkeypatch, "lock", (into / ".ftx" / f"{key}.journal").touch)
    assert unfinished.expire(root, WEEK_S) == []
    assert len(names(into / ".ftx")) == 2


def test_one_from_the_future_stays(root: Root, store: PartialStore, into: Path) -> None:
    """The clock was set back, or is wrong now."""
    leave(store)
    set_all_back(into / ".ftx", age_s=-WEEK_S)
    assert unfinished.expire(root, 1) == []
    assert [item.age_s for item in listed(root)] == [0.0]


def test_a_young_one_is_not_even_asked_for_its_lock(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to be opened."""
    leave(store)
    calls = record(monkeypatch, "lock")
    assert unfinished.expire(root, WEEK_S) == []
    assert calls == []


@pytest.mark.parametrize("content", [b"", b"ftxj", b"x" * 5000], ids=["empty", "torn", "foreign"])
def test_a_damaged_journal_expires_with_its_partial(root: Root, own: Path, content: bytes) -> None:
    (own / f"{KEY}.journal").write_bytes(content)
    (own / f"{KEY}.part").write_bytes(b"held")
    assert listed(root) == []
    assert unfinished.expire(root, WEEK_S) == []
    set_back(own / f"{KEY}.journal")
    assert unfinished.expire(root, WEEK_S) == []  # the partial is young
    set_back(own / f"{KEY}.part")
    assert unfinished.expire(root, WEEK_S) == [f".ftx/{KEY}.journal".encode()]
    assert names(own) == []


def test_a_partial_without_a_journal_expires(root: Root, own: Path) -> None:
    (own / f"{KEY}.part").write_bytes(b"held")
    assert listed(root) == []
    assert unfinished.expire(root, WEEK_S) == []
    assert names(own) == [f"{KEY}.part"]
    set_all_back(own)
    assert unfinished.expire(root, WEEK_S) == [f".ftx/{KEY}.part".encode()]
    assert names(own) == []


def test_a_partial_without_a_journal_that_a_transfer_takes_up_now_stays(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = leave(store, b"file")
    (into / ".ftx" / f"{key}.journal").unlink()
    set_all_back(into / ".ftx")
    opened = []
    before_call(monkeypatch, "open_at", lambda: opened.append(store.open(PEER, entry(), XXH3)))
    assert unfinished.expire(root, WEEK_S) == []
    assert names(into / ".ftx") == [f"{key}.journal", f"{key}.part"]
    assert opened[0].fd >= 0
    store.release(opened[0], committed=False)


def test_a_partial_without_a_journal_that_a_transfer_has_taken_up_stays(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = leave(store, b"file")
    (into / ".ftx" / f"{key}.journal").unlink()
    set_all_back(into / ".ftx")
    before_call(monkeypatch, "open_at", lambda: leave(store, b"file", 0))
    assert unfinished.expire(root, WEEK_S) == []
    assert [item.held for item in listed(root)] == [CHUNK]


def test_an_abandoned_folder_goes_with_what_is_in_it(root: Root, own: Path, outside: Path) -> None:
    folder = own / f"{KEY}.new"
    folder.mkdir()
    (folder / "1").write_bytes(b"small")
    (folder / "2").symlink_to(outside / "secret")
    (folder / "3").symlink_to(outside / "folder")
    with untouched(outside):
        assert unfinished.expire(root, WEEK_S) == [f".ftx/{KEY}.new".encode()]
    assert names(own) == []


def test_g5_an_abandoned_folder_goes_when_what_was_renamed_from_it_is_durable(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is found to be there already when it is sent again. Partials are nobody's to end here."""
    key = leave(store)
    (into / ".ftx" / f"{KEY}.new").mkdir()
    (into / ".ftx" / f"{KEY}.new" / "1").write_bytes(b"small")
    calls = record(monkeypatch, "sync_everything", "unlink", "remove_folder")
    unfinished.clear_abandoned(root)
    assert calls == ["sync_everything", "unlink", "remove_folder"]
    assert sorted(names(into / ".ftx")) == [f"{key}.journal", f"{key}.part"]


def test_the_folder_of_a_session_goes_when_its_process_is_gone(root: Root, into: Path) -> None:
    def killed() -> None:
        Scratch(root, durable=False).folder()
        os._exit(0)

    assert in_child(killed) == 0
    assert [name[-4:] for name in names(into / ".ftx")] == [scratch.SUFFIX.decode()]
    set_all_back(into / ".ftx")
    assert len(unfinished.expire(root, WEEK_S)) == 1
    assert names(into / ".ftx") == []


def test_an_error_leaves_one_for_the_next_time(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, b"one")
    leave(store, b"two")
    set_all_back(into / ".ftx")
    fail_once(monkeypatch, "unlink")
    first = unfinished.expire(root, WEEK_S)
    assert len(first) == 1
    assert sorted(first + unfinished.expire(root, WEEK_S)) == [b"one", b"two"]


def test_g8_one_run_removes_so_many(root: Root, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "MAX_REMOVED", 3)
    for number in range(5):
        (own / f"{number:032x}.journal").write_bytes(b"")
    set_all_back(own)
    assert [len(unfinished.expire(root, WEEK_S)) for _ in range(3)] == [3, 2, 0]


# --- Hostile ---------------------------------------------------------------------------------------------------------


def plant_links(own: Path, outside: Path, suffix: str) -> None:
    (own / (KEY + suffix)).symlink_to(outside / "secret")


def plant_hard_link(own: Path, outside: Path, suffix: str) -> None:
    if suffix == ".journal":
        (own / (KEY + suffix)).hardlink_to(outside / "secret")
    else:
        (own / (KEY + suffix)).symlink_to(outside / "folder")


def plant_fifo(own: Path, outside: Path, suffix: str) -> None:
    os.mkfifo(own / (KEY + suffix))


def plant_folder(own: Path, outside: Path, suffix: str) -> None:
    (own / (KEY + suffix) / "folder").mkdir(parents=True)


@pytest.mark.parametrize("suffix", [".journal", ".part", ".new"])
@pytest.mark.parametrize("plant", [plant_links, plant_hard_link, plant_fifo, plant_folder], ids=lambda it: it.__name__)
def test_g6_what_is_not_a_file_of_its_own_is_left_alone(
    root: Root, own: Path, outside: Path, plant: Callable[[Path, Path, str], None], suffix: str
) -> None:
    plant(own, outside, suffix)
    before = names(own)
    set_back(own / (KEY + suffix))
    with untouched(outside):
        assert listed(root) == []
        assert unfinished.expire(root, 0) == []
    assert names(own) == before


def test_g6_a_link_in_the_place_of_the_partial_stays(
    root: Root, store: PartialStore, into: Path, outside: Path
) -> None:
    key = leave(store)
    file = into / ".ftx" / f"{key}.part"
    file.unlink()
    file.symlink_to(outside / "secret")
    set_all_back(into / ".ftx")
    with untouched(outside):
        assert listed(root) == []
        assert unfinished.expire(root, WEEK_S) == [b"a/file"]
    assert names(into / ".ftx") == [f"{key}.part"]


@pytest.mark.parametrize(
    "name",
    ["notes", "x.journal", f"{KEY[1:]}.part", f"{KEY.upper()}.part", f"{KEY}.journal~", f"{KEY}.Part", "probe-\u00e9"],
)
def test_what_has_none_of_its_names_is_left_alone(root: Root, own: Path, name: str) -> None:
    (own / name).write_bytes(b"")
    set_all_back(own)
    assert listed(root) == []
    assert unfinished.expire(root, 0) == []
    assert names(own) == [name]


@pytest.mark.parametrize("path", [b"../outside/secret", b"/etc/passwd", b"", b".ftx/x", b"a//b"])
def test_g6_a_journal_about_a_path_that_leads_outside(root: Root, own: Path, outside: Path, path: bytes) -> None:
    header = journal.JournalHeader.of(PEER, entry(), XXH3, 1)
    (own / f"{KEY}.journal").write_bytes(journal.encode_header(replace(header, path=path)))
    (own / f"{KEY}.part").write_bytes(b"")
    (outside / f".ftx-{KEY}.part").write_bytes(b"")
    set_all_back(own)
    with untouched(outside):
        assert listed(root) == []
        assert unfinished.expire(root, WEEK_S) == [f".ftx/{KEY}.journal".encode()]


def test_g6_no_partial_is_looked_for_behind_a_link(root: Root, own: Path, into: Path, outside: Path) -> None:
    header = journal.JournalHeader.of(PEER, entry(b"away/folder/file"), XXH3, 1)
    (own / f"{KEY}.journal").write_bytes(journal.encode_header(header))
    (outside / "folder" / f".ftx-{KEY}.part").write_bytes(b"")
    (into / "away").symlink_to(outside)
    set_all_back(own)
    with untouched(outside):
        assert listed(root) == []
        assert unfinished.expire(root, WEEK_S) == [b"away/folder/file"]


def test_g6_another_file_in_the_place_of_the_journal_between_look_and_open(
    root: Root, store: PartialStore, into: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = leave(store)
    (item,) = listed(root)
    name = into / ".ftx" / f"{key}.journal"

    def swapped() -> None:
        name.unlink()
        name.hardlink_to(outside / "secret")

    before_call(monkeypatch, "open_at", swapped)
    with untouched(outside):
        assert listed(root) == []
    name.unlink()
    name.write_bytes(b"")
    before_call(monkeypatch, "open_at", swapped)
    with untouched(outside):
        assert not unfinished.discard(root, item)
    assert names(into / ".ftx") == [f"{key}.journal", f"{key}.part"]


def test_g8_of_a_huge_damaged_journal_only_the_beginning_is_read(
    root: Root, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / f"{KEY}.part").write_bytes(b"")
    with (own / f"{KEY}.journal").open("wb") as file:
        file.truncate(2**40)
    asked = []
    real = disk.read_at

    def counted(fd: int, buffer: memoryview, offset: int) -> int:
        asked.append(len(buffer))
        return real(fd, buffer, offset)

    monkeypatch.setattr(disk, "read_at", counted)
    assert listed(root) == []
    assert sum(asked) < 10_000


def test_g8_a_journal_about_an_impossible_size(root: Root, own: Path) -> None:
    header = journal.JournalHeader.of(PEER, entry(size=MAX_FILE_SIZE + 1), XXH3, 1)
    (own / f"{KEY}.journal").write_bytes(journal.encode_header(header))
    (own / f"{KEY}.part").write_bytes(b"")
    assert listed(root) == []


def test_what_stands_in_an_abandoned_folder_and_is_not_ours_keeps_it(root: Root, own: Path) -> None:
    folder = own / f"{KEY}.new"
    (folder / "folder").mkdir(parents=True)
    (folder / "1").write_bytes(b"small")
    set_back(folder)
    assert unfinished.expire(root, WEEK_S) == []
    assert names(folder) == ["folder"]


def test_a_folder_that_is_open_to_others_is_not_read(root: Root, store: PartialStore, into: Path) -> None:
    leave(store)
    set_all_back(into / ".ftx")
    (into / ".ftx").chmod(0o755)
    with pytest.raises(PermissionError):
        listed(root)
    assert unfinished.expire(root, 0) == []
    assert len(names(into / ".ftx")) == 2


def test_g6_the_folder_itself_is_no_link(root: Root, store: PartialStore, into: Path, outside: Path) -> None:
    leave(store)
    set_all_back(into / ".ftx")
    (into / ".ftx").rename(outside / "real")
    (into / ".ftx").symlink_to(outside / "real")
    with untouched(outside):
        with pytest.raises(OSError, match="."):
            listed(root)
        assert unfinished.expire(root, 0) == []


@NEEDS_ROOT
def test_files_of_another_user_are_left_alone(root: Root, own: Path) -> None:
    header = journal.JournalHeader.of(PEER, entry(), XXH3, 1)
    (own / f"{KEY}.journal").write_bytes(journal.encode_header(header))
    (own / f"{KEY}.part").write_bytes(b"")
    for path in own.iterdir():
        os.chown(path, 12345, 12345)
    set_all_back(own)
    assert listed(root) == []
    assert unfinished.expire(root, 0) == []
    assert len(names(own)) == 2


def test_whoever_looks_at_it_while_it_is_opened_does_not_make_it_busy(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = leave(store, b"file", 0)
    fd = os.open(into / ".ftx" / f"{key}.journal", os.O_RDONLY)
    lets_go = threading.Timer(0.05, os.close, [fd])

    def looks() -> None:
        fcntl.flock(fd, fcntl.LOCK_SH)
        lets_go.start()

    before_call(monkeypatch, "lock", looks)
    again = PartialStore(root, reserve=0).open(PEER, entry(), XXH3)
    lets_go.join()
    assert list(again.held) == [(0, 1)]
    again.close()


def test_one_that_is_discarded_while_it_is_opened_begins_afresh(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, b"file", 0)
    (item,) = listed(root)
    opened = []

    def opens() -> None:
        opened.append(PartialStore(root, reserve=0).open(PEER, entry(), XXH3))

    opening = threading.Thread(target=opens)

    def meets_the_lock() -> None:
        opening.start()
        time.sleep(0.05)

    before_call(monkeypatch, "unlink", meets_the_lock)
    assert unfinished.discard(root, item)
    opening.join()
    assert list(opened[0].held) == []
    assert opened[0].fd >= 0
    assert [left.running for left in listed(root)] == [True]
    opened[0].close()
