"""One incomplete file: reopened, doubted, lost, locked, placed, and what a failed sync does to it."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ftx.errors import Busy, DestinationError, NameRefused, NoSpace
from ftx.options import Exists as Policy
from ftx.protocol.manifest import ZERO_TAG, DigestName
from ftx.protocol.ranges import RangeSet
from ftx.storage import commit, disk, journal, partial
from ftx.storage.partial import Partial, PartialStore, SyncFailed
from ftx.storage.paths import Root
from tests.storage.support import (
    CHUNK,
    MTIME_NS,
    NEEDS_ROOT,
    OTHER_PEER,
    PEER,
    XXH3,
    allocated,
    before_call,
    chunk,
    content,
    entry,
    fail_once,
    in_child,
    known,
    names,
    read_back,
    ready,
    record,
    write,
)

FOUR = 4 * CHUNK


@pytest.fixture(autouse=True)
def journal_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is journaled as it is written; the tests of how far the journal may lag undo this."""
    monkeypatch.setattr(partial, "JOURNAL_S", 0)


def another_process(root: Root) -> PartialStore:
    """A store that remembers nothing: what the next process would have."""
    return PartialStore(root, reserve=0)


def held_by_the_next_process(root: Root, *, what: object = None) -> list[tuple[int, int]]:
    store = another_process(root)
    found = store.open(PEER, what or entry(), XXH3)  # type: ignore[arg-type]
    held = list(found.held)
    store.release(found, committed=False)
    return held


def journal_of(of: Partial, into: Path) -> Path:
    return into / ".ftx" / os.fsdecode(of.journal_name)


# --- A new one -------------------------------------------------------------------------------------------------------


def test_a_new_partial_holds_nothing_and_has_its_size(store: PartialStore, into: Path) -> None:
    new = store.open(PEER, entry(b"a/file"), XXH3)
    file = into / ".ftx" / os.fsdecode(new.name)
    assert (list(new.held), list(new.doubted)) == ([], [])
    assert file.stat().st_size == 3 * CHUNK
    assert allocated(file) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal_of(new, into).stat().st_mode) == 0o600
    store.release(new, committed=False)


def test_its_name_is_that_of_the_document(store: PartialStore, into: Path) -> None:
    new = store.open(PEER, entry(b"a/file"), XXH3)
    key = hashlib.sha256(PEER + b"a/file").hexdigest()[:32]
    assert names(into / ".ftx") == [f"{key}.journal", f"{key}.part"]
    store.release(new, committed=False)


def test_a_file_of_no_bytes(root: Root, store: PartialStore, into: Path) -> None:
    new = store.open(PEER, entry(size=0), XXH3)
    assert new.grid.count == 0
    commit.publish(root, new, Policy.REPLACE, fsync=True)
    store.release(new, committed=True)
    assert (into / "file").read_bytes() == b""


# --- Resume ----------------------------------------------------------------------------------------------------------


def test_g2_what_was_written_is_held_by_the_next_process(root: Root, store: PartialStore) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0, 2)
    store.release(first, committed=False)
    again = another_process(root).open(PEER, entry(), XXH3)
    assert list(again.held) == [(0, 1), (2, 3)]
    assert read_back(again) == chunk(0) + bytes(CHUNK) + chunk(2)
    again.close()


def test_g4_nothing_is_believed_because_the_journal_lists_it(root: Root, store: PartialStore) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0, 1)
    first.sync()
    store.release(first, committed=False)
    again = another_process(root).open(PEER, entry(), XXH3)
    assert known(again.digests) == []
    again.close()


def _write_and_die(root: Root) -> None:
    doomed = another_process(root).open(PEER, entry(), XXH3)
    write(doomed, 0, 2)
    os._exit(0)


def test_g2_what_a_killed_process_wrote_is_held(root: Root) -> None:
    assert in_child(lambda: _write_and_die(root)) == 0
    assert held_by_the_next_process(root) == [(0, 1), (2, 3)]


def test_g2_a_journal_lags_behind_by_a_few_bytes_at_most(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time passes: what a killed process costs is bounded."""
    monkeypatch.setattr(partial, "JOURNAL_S", 3600)
    monkeypatch.setattr(partial, "JOURNAL_BYTES", 2 * CHUNK)
    what = entry(size=8 * CHUNK)

    def work() -> None:
        write(another_process(root).open(PEER, what, XXH3), 0, 1, 2, 3, 4, 5, 6)
        os._exit(0)

    assert in_child(work) == 0
    assert held_by_the_next_process(root, what=what) == [(0, 6)]


def test_g2_a_journal_lags_behind_by_a_moment_at_most(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few bytes come."""
    monkeypatch.setattr(partial, "JOURNAL_S", 0.2)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    slow = another_process(root).open(PEER, entry(), XXH3)
    write(slow, 0)
    size = disk.size(slow._journal_fd)
    now += 0.21
    write(slow, 1)
    assert disk.size(slow._journal_fd) == size + journal.RECORD_SIZE
    slow.close()


def test_g2_the_numbers_are_those_of_the_document() -> None:
    text = (Path(__file__).parents[2] / "protocol.md").read_text()
    assert f"at most {partial.JOURNAL_BYTES >> 20} MiB or 0.2 seconds" in text


def test_g4_the_journal_never_runs_ahead_of_the_data(store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk whose write failed is not listed, and it is written before it is listed."""
    first = store.open(PEER, entry(), XXH3)
    targets: list[int] = []
    real = disk.write_at

    def note(fd: int, data: bytes, offset: int) -> None:
        targets.append(fd)
        real(fd, data, offset)

    monkeypatch.setattr(disk, "write_at", note)
    write(first, 0)
    assert targets == [first.fd, first._journal_fd]
    fail_once(monkeypatch, "write_at", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        first.write(1, chunk(1))
    first.flush()
    assert first._journal.read() == (first.header, RangeSet([(0, 1)]))
    store.release(first, committed=False)


# --- Another version of the source ------------------------------------------------------------------------------------

BEFORE = entry(size=3 * CHUNK + 100)  # four chunks, all of them there

ANOTHER = {
    "tag": (BEFORE._replace(tag=b"u" * 16), [(0, 4)]),
    "zero-tag": (BEFORE._replace(tag=ZERO_TAG), [(0, 4)]),
    "mtime": (BEFORE._replace(mtime_ns=MTIME_NS + 1), [(0, 4)]),
    "grown-in-the-last-chunk": (BEFORE._replace(size=3 * CHUNK + 200), [(0, 3)]),
    "grown-by-a-byte": (BEFORE._replace(size=3 * CHUNK + 101), [(0, 3)]),
    "grown-to-the-edge": (BEFORE._replace(size=4 * CHUNK), [(0, 3)]),
    "grown": (BEFORE._replace(size=6 * CHUNK), [(0, 3)]),
    "shrunk-in-the-last-chunk": (BEFORE._replace(size=3 * CHUNK + 50), [(0, 3)]),
    "shrunk-to-the-edge": (BEFORE._replace(size=3 * CHUNK), [(0, 3)]),
    "shrunk": (BEFORE._replace(size=CHUNK + 1), [(0, 1)]),
    "shrunk-to-one-chunk": (BEFORE._replace(size=5), []),
    "emptied": (BEFORE._replace(size=0), []),
    "larger-chunks": (BEFORE._replace(size=65_536 * CHUNK + 1, allocated=0), []),
}


@pytest.mark.parametrize(("now", "doubted"), ANOTHER.values(), ids=ANOTHER.keys())
def test_g10_chunks_of_another_version_are_doubted(
    root: Root, store: PartialStore, now: object, doubted: list[tuple[int, int]]
) -> None:
    store.release(ready(store, BEFORE), committed=False)
    for _ in range(2):  # and they stay so for the run after that
        again = another_process(root).open(PEER, now, XXH3)  # type: ignore[arg-type]
        assert list(again.held) == []
        assert list(again.doubted) == doubted
        assert disk.size(again.fd) == again.entry.size
        again.close()


def test_g4_chunks_under_another_digest_are_doubted(root: Root, store: PartialStore) -> None:
    store.release(ready(store, BEFORE), committed=False)
    again = another_process(root).open(PEER, BEFORE, DigestName.SHA_256)
    assert (list(again.held), list(again.doubted)) == ([], [(0, 4)])
    again.close()


def test_g4_a_source_too_young_to_be_trusted_is_doubted_every_time(root: Root, store: PartialStore) -> None:
    young = BEFORE._replace(tag=ZERO_TAG)
    store.release(ready(store, young), committed=False)
    for later in (store, another_process(root)):
        again = later.open(PEER, young, XXH3)
        assert (list(again.held), list(again.doubted)) == ([], [(0, 4)])
        assert known(again.digests) == []
        later.release(again, committed=False)


def test_g2_what_was_compared_counts_once_nothing_is_doubted(root: Root, store: PartialStore) -> None:
    now = BEFORE._replace(tag=b"u" * 16)
    store.release(ready(store, BEFORE), committed=False)
    again = another_process(root).open(PEER, now, XXH3)
    again.compared(0, same=True)
    again.compared(2, same=True)
    write(again, 1, seed=1)
    again.doubted.discard(0, 3)
    again.flush()
    # Cut short here, everything is compared again …
    third = in_child(lambda: _expect_doubted(root, now, [(0, 4)], again))
    assert third == 0
    again.doubted.discard(3, 4)
    again.trust()
    again.close()
    # … and from here on it is held.
    assert held_by_the_next_process(root, what=now) == [(0, 3)]


def _expect_doubted(root: Root, now: object, expected: list[tuple[int, int]], parent: Partial) -> None:
    found = journal.decode(os.pread(parent._journal_fd, 10_000, 0))
    assert found is not None
    header, listed = found
    assert header == parent.header.doubted()
    assert list(listed) == expected


@pytest.mark.parametrize("call", ["write_at", "truncate"])
def test_g2_a_journal_that_could_not_be_rewritten_is_the_next_time(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    now = BEFORE._replace(tag=b"u" * 16)
    store.release(ready(store, BEFORE), committed=False)
    again = another_process(root).open(PEER, now, XXH3)
    again.compared(0, same=True)
    again.doubted.discard(0, 4)
    fail_once(monkeypatch, call)
    again.trust()
    write(again, 1)
    again.close()
    assert held_by_the_next_process(root, what=now) == [(0, 2)]


def test_g2_a_journal_that_cannot_be_written_holds_up_nothing(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a hint; what it could not take it takes the next time."""
    first = store.open(PEER, entry(), XXH3)
    calls = fail_once(monkeypatch, "write_at", errno.EIO, at=2)
    write(first, 0)
    assert len(calls) == 2
    write(first, 1)
    store.release(first, committed=False)
    assert held_by_the_next_process(root) == [(0, 2)]


# --- What is not about this partial -----------------------------------------------------------------------------------


def test_g4_another_peer_or_another_path_has_another_partial(root: Root, store: PartialStore) -> None:
    store.release(ready(store, entry()), committed=False)
    for peer, path in [(OTHER_PEER, b"file"), (PEER, b"file2"), (PEER, b"a/file")]:
        other = another_process(root).open(peer, entry(path), XXH3)
        assert (list(other.held), list(other.doubted)) == ([], [])
        other.close()


@pytest.mark.parametrize("field", ["peer", "path"])
def test_g4_a_journal_of_another_peer_or_path_counts_for_nothing(
    root: Root, store: PartialStore, into: Path, field: str
) -> None:
    """Also where it lies under this name: copied, or a collision of names."""
    first = ready(store, entry())
    other = replace(first.header, **{field: b"o" * 32})
    first._journal.rewrite(other, RangeSet([(0, 3)]))
    store.release(first, committed=True)
    again = another_process(root).open(PEER, entry(), XXH3)
    assert (list(again.held), list(again.doubted)) == ([], [])
    again.close()


def _replaced(into: Path, file: Path) -> None:
    data = file.read_bytes()
    other = file.with_name("other")
    other.write_bytes(data)
    other.chmod(0o600)
    other.rename(file)


TAMPERED: dict[str, Callable[[Path, Path], None]] = {
    "partial-gone": lambda file, journal: file.unlink(),
    "partial-replaced": lambda file, journal: _replaced(journal, file),
    "journal-gone": lambda file, journal: journal.unlink(),
    "journal-empty": lambda file, journal: os.truncate(journal, 0),
    "journal-torn": lambda file, journal: os.truncate(journal, 50),
    "journal-of-zeros": lambda file, journal: journal.write_bytes(bytes(500)) and None,
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_g4_without_its_own_journal_a_partial_holds_nothing(
    root: Root, store: PartialStore, into: Path, tamper: Callable[[Path, Path], None]
) -> None:
    first = ready(store, entry())
    first.sync()
    store.release(first, committed=False)
    tamper(into / ".ftx" / os.fsdecode(first.name), journal_of(first, into))
    for later in (store, another_process(root)):
        again = later.open(PEER, entry(), XXH3)
        assert (list(again.held), list(again.doubted)) == ([], [])
        assert known(again.digests) == []
        later.release(again, committed=False)


def test_a_journal_without_an_end_is_read_up_to_a_limit(root: Root, store: PartialStore, into: Path) -> None:
    first = ready(store, entry())
    store.release(first, committed=False)
    os.truncate(journal_of(first, into), 10**12)
    assert held_by_the_next_process(root) == [(0, 3)]


# --- Its file, after a crash in the middle of a commit ---------------------------------------------------------------


def test_a_partial_is_this_users_alone_again_after_a_commit_that_failed(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(store, entry(mode=0o666))
    fail_once(monkeypatch, "rename")
    with pytest.raises(DestinationError):
        commit.publish(root, first, Policy.REPLACE, fsync=True)
    store.release(first, committed=False)
    again = another_process(root).open(PEER, entry(), XXH3)
    assert stat.S_IMODE(os.fstat(again.fd).st_mode) == 0o600
    assert list(again.held) == [(0, 3)]
    again.close()


@NEEDS_ROOT
@pytest.mark.parametrize(("mode", "held"), [(0o444, [(0, 3)]), (0o400, [(0, 3)]), (0o244, []), (0o000, [])])
def test_g2_a_crash_after_the_mode_of_a_source_that_may_not_be_written_to(
    shm: Path, mode: int, held: list[tuple[int, int]]
) -> None:
    """Everybody but root needs the right to write. One that cannot even be read is begun anew."""
    shm.chmod(0o711)
    into = shm / "into"
    into.mkdir()
    os.chown(into, 65534, 65534)
    what = entry(mode=mode)

    def crash() -> None:
        root = Root(into)
        doomed = ready(another_process(root), what)
        doomed.flush()
        disk.set_mode(doomed.fd, what.mode)
        os._exit(0)

    def again() -> None:
        root = Root(into)
        assert held_by_the_next_process(root, what=what) == held

    assert in_child(crash, uid=65534) == 0
    assert in_child(again, uid=65534) == 0


@NEEDS_ROOT
def test_g11_a_folder_that_may_not_be_written_to_is_called_so(shm: Path) -> None:
    shm.chmod(0o711)
    into = shm / "into"
    into.mkdir()
    (into / "sub").mkdir()
    os.chown(into, 65534, 65534)

    def work() -> None:
        store = another_process(Root(into))
        disk.same_mount = lambda one, other: False  # type: ignore[assignment]
        with pytest.raises(DestinationError, match="not writable"):
            store.open(PEER, entry(b"sub/file"), XXH3)
        with pytest.raises(DestinationError, match="not writable"):
            store.open(PEER, entry(b"sub/new/file"), XXH3)

    assert in_child(work, uid=65534) == 0


@pytest.mark.parametrize("policy", [Policy.RENAME, Policy.FAIL, Policy.KEEP])
def test_g1_a_crash_between_link_and_unlink_leaves_the_published_file_alone(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    """The partial is the published file then, under a second name: the next version must not be written into it."""
    first = ready(store, entry())
    fail_once(monkeypatch, "unlink")
    with pytest.raises(DestinationError):
        commit.publish(root, first, policy, fsync=True)
    store.release(first, committed=False)
    assert (into / "file").stat().st_nlink == 2
    now = entry(tag=b"u" * 16, size=2 * CHUNK)
    again = another_process(root).open(PEER, now, XXH3)
    assert (list(again.held), list(again.doubted)) == ([], [])
    write(again, 0, seed=1)
    again.close()
    assert (into / "file").read_bytes() == content(entry())
    assert stat.S_IMODE((into / "file").stat().st_mode) == 0o644


@NEEDS_ROOT
def test_g1_a_second_name_of_a_read_only_file_keeps_its_mode(shm: Path) -> None:
    shm.chmod(0o711)
    into = shm / "into"
    into.mkdir()
    os.chown(into, 65534, 65534)

    def work() -> None:
        root = Root(into)
        store = another_process(root)
        first = ready(store, entry(mode=0o444))
        with pytest.MonkeyPatch.context() as patch:
            fail_once(patch, "unlink")
            with pytest.raises(DestinationError):
                commit.publish(root, first, Policy.FAIL, fsync=False)
        store.release(first, committed=False)
        again = another_process(root).open(PEER, entry(tag=b"u" * 16), XXH3)
        assert (list(again.held), list(again.doubted)) == ([], [])
        assert stat.S_IMODE((into / "file").stat().st_mode) == 0o444

    assert in_child(work, uid=65534) == 0


# --- Sessions of one process ------------------------------------------------------------------------------------------


def test_g2_what_this_process_verified_and_synced_is_not_read_again(store: PartialStore) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0, 1)
    first.sync()
    store.release(first, committed=False)
    again = store.open(PEER, entry(), XXH3)
    assert known(again.digests) == [(0, 2)]
    assert again.digests.get(1) == XXH3.function(chunk(1))
    store.release(again, committed=False)


def test_g4_what_somebody_wrote_to_between_two_sessions_is_read_again(store: PartialStore, into: Path) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0, 1)
    first.sync()
    store.release(first, committed=False)
    (file,) = into.glob(".ftx/*.part")
    time.sleep(0.02)  # the next tick of the file system's clock
    with file.open("r+b") as damaged:
        damaged.write(b"damage")
    again = store.open(PEER, entry(), XXH3)
    assert list(again.held) == [(0, 2)]
    assert known(again.digests) == []
    store.release(again, committed=False)


def test_g5_what_was_not_synced_when_its_session_broke_is_read_again(store: PartialStore) -> None:
    """Its writing back may have failed in between, and the system tells that once at most."""
    first = store.open(PEER, entry(size=FOUR), XXH3)
    write(first, 0, 1)
    first.sync()
    write(first, 2)
    store.release(first, committed=False)
    again = store.open(PEER, entry(size=FOUR), XXH3)
    assert list(again.held) == [(0, 3)]
    assert known(again.digests) == [(0, 2)]
    store.release(again, committed=False)


def test_g5_after_a_failed_sync_everything_is_read_again(store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.open(PEER, entry(size=FOUR), XXH3)
    write(first, 0, 1)
    first.sync()
    write(first, 2)
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed):
        first.sync()
    store.release(first, committed=False)
    again = store.open(PEER, entry(size=FOUR), XXH3)
    assert list(again.held) == [(0, 2)]
    assert known(again.digests) == []
    store.release(again, committed=False)


def test_g4_what_was_verified_of_another_version_is_forgotten(store: PartialStore) -> None:
    first = ready(store, entry())
    first.sync()
    store.release(first, committed=False)
    for now in (entry(tag=b"u" * 16), entry(size=FOUR), entry(mtime_ns=MTIME_NS + 1)):
        again = store.open(PEER, now, XXH3)
        assert known(again.digests) == []
        again.close()
        store._open.clear()


def test_g8_only_a_few_are_remembered(store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(partial.REMEMBERED + 5):
        store.release(store.open(PEER, entry(b"%d" % number), XXH3), committed=False)
    assert len(store._memory) == partial.REMEMBERED
    assert not store._open


def test_a_committed_one_is_forgotten(root: Root, store: PartialStore) -> None:
    first = ready(store, entry())
    commit.publish(root, first, Policy.REPLACE, fsync=True)
    first.remove_journal()
    store.release(first, committed=True)
    assert not store._memory
    again = store.open(PEER, entry(), XXH3)
    assert not again.held
    store.release(again, committed=False)


# --- Locks -----------------------------------------------------------------------------------------------------------


def test_g9_one_path_is_written_by_one_session_at_a_time(store: PartialStore) -> None:
    first = store.open(PEER, entry(), XXH3)
    for peer in (PEER, OTHER_PEER):
        with pytest.raises(Busy):
            store.open(peer, entry(), XXH3)
    other = store.open(PEER, entry(b"other"), XXH3)
    store.release(other, committed=False)
    store.release(first, committed=False)
    store.release(store.open(OTHER_PEER, entry(), XXH3), committed=False)


def test_another_process_has_it(root: Root, store: PartialStore) -> None:
    """Through the lock on the journal; neither of the two files is touched by the one who is turned away."""
    first = store.open(PEER, entry(), XXH3)
    write(first, 0)

    def work() -> None:
        with pytest.raises(Busy):
            another_process(root).open(PEER, entry(size=5), XXH3)

    assert in_child(work) == 0
    assert disk.size(first.fd) == 3 * CHUNK
    store.release(first, committed=False)
    assert held_by_the_next_process(root) == [(0, 1)]


def test_g2_another_process_is_waited_for_by_one_that_is_patient(root: Root, store: PartialStore) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0)
    patient = PartialStore(root, reserve=0, patience_s=20)
    release = threading.Timer(0.6, store.release, [first], {"committed": False})
    release.start()
    again = patient.open(PEER, entry(), XXH3)
    assert list(again.held) == [(0, 1)]
    patient.release(again, committed=False)
    release.join()


def test_a_killed_process_lets_go(root: Root) -> None:
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        doomed = another_process(root).open(PEER, entry(), XXH3)
        write(doomed, 0)
        os.write(ours, b"x")
        signal.pause()
    try:
        os.read(theirs, 1)
        store = another_process(root)
        with pytest.raises(Busy):
            store.open(PEER, entry(), XXH3)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(theirs)
        os.close(ours)
    again = store.open(PEER, entry(), XXH3)
    assert list(again.held) == [(0, 1)]
    again.close()


def test_one_that_is_committed_while_we_wait_for_its_lock(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal that was locked has lost its name by then: ours is another one."""
    first = store.open(PEER, entry(), XXH3)
    path = journal_of(first, into)
    store.release(first, committed=True)
    before_call(monkeypatch, "lock", path.unlink)
    again = store.open(PEER, entry(), XXH3)
    assert path.stat().st_ino == os.fstat(again._journal_fd).st_ino
    store.release(again, committed=False)


@pytest.mark.parametrize(
    "call",
    ["open_folder", "same_mount", "open_at", "lock", "look", "size", "truncate", "write_at", "free_space"],
)
@pytest.mark.parametrize("at", [1, 2])
def test_g11_an_open_that_failed_leaves_nothing_behind(
    store: PartialStore, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    """No lock, no descriptor, and the path is free: the next session goes on."""
    store.release(ready(store, entry()), committed=False)
    with monkeypatch.context() as patch:
        calls = fail_once(patch, call, at=at)
        try:
            store.release(store.open(PEER, entry(allocated=10**9), XXH3), committed=False)
            assert len(calls) < at
        except DestinationError as error:
            assert error.exit_code == 7
    again = store.open(PEER, entry(), XXH3)
    store.release(again, committed=False)


@pytest.mark.parametrize("name", [b"../x", b"", b".ftx/x"])
def test_g6_a_name_that_is_refused_is_not_busy(store: PartialStore, name: bytes) -> None:
    with pytest.raises(NameRefused):
        store.open(PEER, entry(name), XXH3)
    assert not store._open


# --- In use while it is closed ----------------------------------------------------------------------------------------


def test_g6_its_descriptors_stay_open_while_somebody_writes(store: PartialStore, into: Path) -> None:
    """A descriptor that is closed under a write is somebody else's by then."""
    first = store.open(PEER, entry(), XXH3)
    with first.use() as alive:
        assert alive
        store.release(first, committed=False)
        assert not first.closed.is_set()
        others = [os.open(into, os.O_RDONLY) for _ in range(4)]
        write(first, 0)
        for fd in others:
            os.close(fd)
    assert first.closed.is_set()
    with first.use() as alive:
        assert not alive
    first.close()
    again = store.open(PEER, entry(), XXH3)
    assert list(again.held) == [(0, 1)]
    store.release(again, committed=False)


def test_a_new_session_waits_until_the_old_ones_writer_returned(store: PartialStore) -> None:
    first = store.open(PEER, entry(), XXH3)
    inside, go_on = threading.Event(), threading.Event()

    def write_slowly() -> None:
        with first.use():
            inside.set()
            go_on.wait()
            write(first, 1)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    inside.wait()
    store.release(first, committed=False)
    threading.Timer(0.05, go_on.set).start()
    again = store.open(PEER, entry(), XXH3)
    assert list(again.held) == [(1, 2)]
    store.release(again, committed=False)
    writer.join()


def test_g11_a_writer_that_never_returns_makes_it_busy(store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "CLOSE_S", 0.01)
    first = store.open(PEER, entry(), XXH3)
    with first.use():
        store.release(first, committed=False)
        with pytest.raises(Busy):
            store.open(PEER, entry(), XXH3)
    store.release(store.open(PEER, entry(), XXH3), committed=False)


# --- Syncs -----------------------------------------------------------------------------------------------------------


def test_dirty_bytes_are_counted_until_a_sync(store: PartialStore) -> None:
    first = store.open(PEER, BEFORE, XXH3)
    assert first.dirty == 0
    write(first, 0, 3)
    assert first.dirty == CHUNK + 100
    first.sync()
    assert first.dirty == 0
    store.release(first, committed=False)


def test_g5_what_was_written_since_the_last_good_sync_is_lost(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.open(PEER, entry(size=6 * CHUNK), XXH3)
    write(first, 0, 1)
    first.sync()
    write(first, 2, 4)
    calls = record(monkeypatch, "drop_cache")
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed) as caught:
        first.sync()
    assert list(caught.value.lost) == [(2, 3), (4, 5)]
    assert caught.value.error.errno == errno.EIO
    assert calls == ["drop_cache"]
    assert first.dirty == 0
    # The journal says so at once, and again when the next process reads it.
    assert first._journal.read() == (first.header, RangeSet([(0, 2)]))
    store.release(first, committed=False)
    assert held_by_the_next_process(root, what=entry(size=6 * CHUNK)) == [(0, 2)]


def test_g5_a_good_sync_does_not_bring_back_what_a_failed_one_lost(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports an error once, and the data looks fine in memory for ever after."""
    first = ready(store, entry())
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed):
        first.sync()
    for rewritten in ((), (0,), (2,)):
        write(first, *rewritten)
        with pytest.raises(SyncFailed) as caught:
            commit.publish(root, first, Policy.REPLACE, fsync=True)
        assert 1 in caught.value.lost
        assert not (into / "file").exists()
    write(first, 1)
    commit.publish(root, first, Policy.REPLACE, fsync=True)
    store.release(first, committed=True)
    assert (into / "file").read_bytes() == content(entry())


def _sync_that_fails(patch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    def failing(fd: int) -> None:
        patch.undo()
        meanwhile()
        raise OSError(errno.EIO, "Input/output error")

    patch.setattr(disk, "sync_data", failing)


def test_g5_what_is_written_during_a_sync_that_fails_is_lost_too(
    store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0)
    with monkeypatch.context() as patch:
        _sync_that_fails(patch, lambda: write(first, 1))
        with pytest.raises(SyncFailed) as caught:
            first.sync()
    assert list(caught.value.lost) == [(0, 2)]
    first.flush()
    assert first._journal.read() == (first.header, RangeSet())
    store.release(first, committed=False)


@pytest.mark.parametrize("zeros", [False, True])
def test_g5_a_sync_that_fails_while_a_chunk_is_under_way_loses_it(
    store: PartialStore, monkeypatch: pytest.MonkeyPatch, zeros: bool
) -> None:
    """It is in the cache and not noted as written yet; the failed sync may have taken it away."""
    first = store.open(PEER, entry(), XXH3)
    write(first, 0, 1)
    first.sync()
    real, lost = disk.write_at, []

    def write_then_fail(fd: int, data: bytes, offset: int) -> None:
        real(fd, data, offset)
        if fd == first.fd and not lost:
            with pytest.MonkeyPatch.context() as patch:
                fail_once(patch, "sync_data")
                with pytest.raises(SyncFailed) as caught:
                    first.sync()
            lost.extend(caught.value.lost)

    monkeypatch.setattr(disk, "write_at", write_then_fail)
    first.write_zeros(1, 2) if zeros else write(first, 1)
    assert lost == [(1, 2)]
    first.flush()
    assert first._journal.read() == (first.header, RangeSet([(0, 1)]))
    with pytest.raises(SyncFailed):
        first.seal()
    write(first, 1)
    first.seal()
    store.release(first, committed=False)


def test_g5_a_sync_that_succeeds_while_a_chunk_is_under_way_may_not_have_seen_it(
    store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.open(PEER, entry(), XXH3)
    before_call(monkeypatch, "write_at", first.sync)
    write(first, 1)
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed) as caught:
        first.sync()
    assert list(caught.value.lost) == [(1, 2)]
    store.release(first, committed=False)


def test_g5_zeros_over_old_data_are_lost_as_any_other_bytes(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = entry(tag=b"u" * 16)
    first = store.open(PEER, entry(), XXH3)
    write(first, 1)
    store.release(first, committed=False)
    again = another_process(root).open(PEER, now, XXH3)
    again.write_zeros(0, 1)
    assert again.dirty == 0  # a hole
    again.write_zeros(1, 2)
    assert again.dirty == CHUNK
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed) as caught:
        again.sync()
    assert list(caught.value.lost) == [(1, 2)]
    again.close()


def test_g2_what_is_doubted_outlives_a_failed_sync(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = BEFORE._replace(tag=b"u" * 16)
    first = store.open(PEER, BEFORE, XXH3)
    write(first, 0, 1)
    store.release(first, committed=False)
    again = another_process(root).open(PEER, now, XXH3)
    write(again, 2, seed=1)
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed):
        again.sync()
    again.close()
    third = another_process(root).open(PEER, now, XXH3)
    assert list(third.doubted) == [(0, 2)]
    third.close()


@pytest.mark.parametrize("call", ["write_at", "truncate"])
def test_g5_a_sync_and_a_journal_that_fail_together(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What is lost is told all the same, and the journal is made right as soon as it can be."""
    first = ready(store, entry())
    with monkeypatch.context() as patch:
        fail_once(patch, "sync_data")
        fail_once(patch, call)
        with pytest.raises(SyncFailed) as caught:
            first.sync()
    assert list(caught.value.lost) == [(0, 3)]
    write(first, 1)
    first.flush()
    assert first._journal.read() == (first.header, RangeSet([(1, 2)]))
    store.release(first, committed=False)


def test_a_sync_that_fails_when_nothing_was_written_loses_nothing(
    store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(store, entry())
    first.sync()
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed) as caught:
        first.sync()
    assert not caught.value.lost
    first.seal()
    store.release(first, committed=False)


# --- Holes -----------------------------------------------------------------------------------------------------------


def test_holes_are_kept(root: Root, store: PartialStore, into: Path) -> None:
    what = entry(size=64 * CHUNK, allocated=2 * CHUNK)
    first = store.open(PEER, what, XXH3)
    first.write_zeros(0, 20)
    write(first, 20)
    first.write_zeros(21, 63)
    write(first, 63)
    commit.publish(root, first, Policy.REPLACE, fsync=True)
    store.release(first, committed=True)
    assert (into / "file").stat().st_size == 64 * CHUNK
    assert allocated(into / "file") <= 2 * CHUNK + 64 * 1024
    assert list(first._marked) == [(0, 64)]


def test_g4_zeros_overwrite_what_was_there(root: Root, store: PartialStore, into: Path) -> None:
    """Holes next to data, and data that does not begin or end with a chunk."""
    what = entry(size=4 * CHUNK + 100)
    first = store.open(PEER, what, XXH3)
    write(first, 1, 4)
    os.pwrite(first.fd, b"x" * 5000, 3 * CHUNK - 2000)
    first.write_zeros(0, 5)
    assert read_back(first) == bytes(what.size)
    assert allocated(into / ".ftx" / os.fsdecode(first.name)) < 3 * CHUNK
    store.release(first, committed=False)


def test_g4_zeros_touch_nothing_beside_them(store: PartialStore) -> None:
    first = ready(store, BEFORE)
    first.write_zeros(1, 2)
    assert read_back(first) == chunk(0, BEFORE) + bytes(CHUNK) + chunk(2, BEFORE) + chunk(3, BEFORE)
    store.release(first, committed=False)


def test_a_system_that_cannot_tell_holes_writes_zeros(store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "SEEK_DATA")
    first = ready(store, entry())
    first.write_zeros(0, 3)
    assert read_back(first) == bytes(3 * CHUNK)
    store.release(first, committed=False)


# --- Space -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(disk, "free_space", lambda fd: size)


def test_the_reserve_is_left(root: Root, free: Callable[[int], None]) -> None:
    store = PartialStore(root, reserve=1000)
    free(3 * CHUNK + 999)
    with pytest.raises(NoSpace, match="1000 are kept in reserve"):
        store.open(PEER, entry(), XXH3)
    free(3 * CHUNK + 1000)
    store.release(store.open(PEER, entry(), XXH3), committed=False)


def test_holes_need_no_space(root: Root, free: Callable[[int], None]) -> None:
    free(CHUNK)
    store = PartialStore(root, reserve=0)
    store.release(store.open(PEER, entry(size=2**40, allocated=CHUNK), XXH3), committed=False)


def test_what_is_held_already_needs_no_space(root: Root, store: PartialStore, free: Callable[[int], None]) -> None:
    first = store.open(PEER, entry(), XXH3)
    write(first, 0, 1)
    first.sync()
    store.release(first, committed=False)
    free(CHUNK + 64 * 1024)
    store.release(store.open(PEER, entry(), XXH3), committed=False)


def test_a_full_disk_does_not_keep_out_what_needs_nothing(root: Root, free: Callable[[int], None]) -> None:
    free(0)
    store = PartialStore(root, reserve=10**9)
    store.release(store.open(PEER, entry(size=0), XXH3), committed=False)


def test_g11_a_disk_that_fills_up_says_so(root: Root, into: Path, mount: Callable[..., None]) -> None:
    """What was written stays, and goes on when there is room again."""
    small = into / "small"
    small.mkdir()
    mount("-t", "tmpfs", "-o", "size=2560k", "none", at=small)
    own = Root(small)
    store = another_process(own)
    first = store.open(PEER, entry(allocated=0), XXH3)
    write(first, 0, 1)
    with pytest.raises(NoSpace), disk.destination_errors(b"file"):
        first.write(2, chunk(2))
    store.release(first, committed=False)
    with pytest.raises(NoSpace):
        store.open(PEER, entry(), XXH3)
    assert held_by_the_next_process(own, what=entry(allocated=0)) == [(0, 2)]
    own.close()


# --- Where a rename would cross a file system ------------------------------------------------------------------------


@pytest.fixture(params=["bind", "tmpfs"])
def crossing(request: pytest.FixtureRequest, into: Path, tmp_path: Path, mount: Callable[..., None]) -> Path:
    """A folder below the destination that is on another mount."""
    at = into / "mnt"
    at.mkdir()
    if request.param == "bind":
        other = tmp_path / "other"
        other.mkdir()
        mount("--bind", other, at=at)
    else:
        mount("-t", "tmpfs", "none", at=at)
    return at


@pytest.mark.parametrize("policy", Policy)
def test_a_partial_lies_beside_its_target_where_a_rename_would_cross_a_mount(
    root: Root, store: PartialStore, into: Path, crossing: Path, policy: Policy
) -> None:
    what = entry(b"mnt/sub/file")
    first = store.open(PEER, what, XXH3)
    key = hashlib.sha256(PEER + what.path).hexdigest()[:32]
    assert names(crossing / "sub") == [f".ftx-{key}.part"]
    assert names(into / ".ftx") == [f"{key}.journal"]
    write(first, 0)
    store.release(first, committed=False)
    again = another_process(root).open(PEER, what, XXH3)
    assert list(again.held) == [(0, 1)]
    write(again, 1, 2)
    assert commit.publish(root, again, policy, fsync=True) == what.path
    again.remove_journal()
    again.close()
    assert names(crossing / "sub") == ["file"]
    assert names(into / ".ftx") == []
    assert (crossing / "sub" / "file").read_bytes() == content(what)


def test_same_mount_tells_bind_mounts_of_one_device_apart(into: Path, crossing: Path) -> None:
    (into / "folder").mkdir()
    fds = [os.open(path, os.O_RDONLY) for path in (into, into / "folder", crossing)]
    assert disk.same_mount(fds[0], fds[1])
    assert not disk.same_mount(fds[0], fds[2])
    with pytest.raises(OSError, match="cross-device"):
        (into / "folder").rename(crossing / "folder")
    for fd in fds:
        os.close(fd)


def test_without_proc_the_device_decides(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fds = [os.open(path, os.O_RDONLY) for path in (into, into.parent)]

    def no_proc(*arguments: object, **more: object) -> int:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_proc)
        assert disk.same_mount(*fds)
    for fd in fds:
        os.close(fd)
