"""What gets its name, when, and what of it is durable by then."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import DestinationError, Exists, IsFolder, NoSpace
from ftx.options import Exists as Policy
from ftx.protocol.messages import SkipReason
from ftx.storage import commit, disk
from ftx.storage.partial import Partial, PartialStore, SyncFailed
from ftx.storage.paths import Root
from tests.storage.support import (
    CHUNK,
    MTIME_NS,
    OTHER_PEER,
    PEER,
    before_call,
    content,
    entry,
    fail_once,
    look,
    names,
    ready,
    record,
    snapshot,
)

OLD = b"the old file"
SYNCS = ("sync_data", "set_times", "set_mode", "sync_file", "rename", "link", "unlink", "sync_folder")
NOT_REPLACING = [Policy.KEEP, Policy.RENAME, Policy.FAIL]


def put(path: Path, data: bytes = OLD, *, mtime_ns: int = MTIME_NS - 10**9, mode: int = 0o644) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def publish(store: PartialStore, partial: Partial, policy: Policy, *, fsync: bool = True) -> bytes:
    """As a session does: the journal goes last."""
    name = commit.publish(store.root, partial, policy, fsync=fsync)
    partial.remove_journal()
    store.release(partial, committed=True)
    return name


# --- Looking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("path", [b"file", b"a/b/file"])
def test_where_nothing_is_everything_goes(root: Root, into: Path, policy: Policy, path: bytes) -> None:
    assert look(root, entry(path), policy) is None
    assert names(into) == []


@pytest.mark.parametrize("policy", Policy)
def test_the_same_file_is_left_alone(root: Root, into: Path, policy: Policy) -> None:
    what = entry(b"file", 100)
    put(into / "file", content(what), mtime_ns=MTIME_NS)
    assert look(root, what, policy) is SkipReason.SAME


@pytest.mark.parametrize(
    "change", [{"size": 101}, {"mtime_ns": MTIME_NS + 1}, {"mtime_ns": MTIME_NS - 1}], ids=["size", "newer", "older"]
)
def test_another_size_or_time_is_another_file(root: Root, into: Path, change: dict[str, Any]) -> None:
    put(into / "file", bytes(100), mtime_ns=MTIME_NS)
    what = entry(b"file", 100)._replace(**change)
    assert look(root, what, Policy.REPLACE) is None
    assert look(root, what, Policy.RENAME) is None
    assert look(root, what, Policy.KEEP) is SkipReason.KEPT
    with pytest.raises(Exists):
        look(root, what, Policy.FAIL)
    assert (into / "file").read_bytes() == bytes(100)


def test_the_mode_of_the_same_file_is_brought_up_to_date(root: Root, into: Path) -> None:
    file = put(into / "file", bytes(100), mtime_ns=MTIME_NS, mode=0o600)
    for policy in NOT_REPLACING:
        assert look(root, entry(b"file", 100, mode=0o640), policy) is SkipReason.SAME
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert look(root, entry(b"file", 100, mode=0o640), Policy.REPLACE) is SkipReason.SAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_mtime_ns == MTIME_NS


def test_g6_the_same_file_gets_no_setuid(root: Root, into: Path) -> None:
    file = put(into / "file", bytes(100), mtime_ns=MTIME_NS)
    assert look(root, entry(b"file", 100, mode=0o7644), Policy.REPLACE) is SkipReason.SAME
    assert look(root, entry(b"file", 100, mode=0o6755), Policy.REPLACE) is SkipReason.SAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


def test_what_was_renamed_before_is_found_again(root: Root, into: Path) -> None:
    put(into / "file")
    put(into / "file.1")
    put(into / "file.2", bytes(100), mtime_ns=MTIME_NS)
    put(into / "file.4", bytes(101), mtime_ns=MTIME_NS)
    assert look(root, entry(b"file", 100), Policy.RENAME) is SkipReason.SAME
    assert look(root, entry(b"file", 101), Policy.RENAME) is None  # behind a gap


def test_g11_a_name_that_gets_too_long_by_a_number(root: Root, store: PartialStore, into: Path) -> None:
    put(into / ("n" * 255))
    with pytest.raises(DestinationError, match="too long"):
        look(root, entry(b"n" * 255), Policy.RENAME)


@pytest.mark.parametrize("call", ["open_folder", "look"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_g11_a_look_that_fails(root: Root, into: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    (into / "a").mkdir()
    fail_once(monkeypatch, call, number)
    with pytest.raises(DestinationError) as caught:
        look(root, entry(b"a/file"), Policy.REPLACE)
    assert caught.value.exit_code == 7


# --- Publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("path", [b"file", b"a/b/file"])
@pytest.mark.parametrize("fsync", [True, False], ids=["fsync", "no-fsync"])
def test_a_new_file(root: Root, store: PartialStore, into: Path, policy: Policy, path: bytes, fsync: bool) -> None:
    what = entry(path, mode=0o640)
    assert publish(store, ready(store, what), policy, fsync=fsync) == path
    file = into / os.fsdecode(path)
    info = file.stat()
    assert file.read_bytes() == content(what)
    assert (info.st_mtime_ns, info.st_nlink, stat.S_IMODE(info.st_mode)) == (MTIME_NS, 1, 0o640)
    assert names(into / ".ftx") == []
    assert look(root, what, policy) is SkipReason.SAME


def test_g1_the_old_file_is_there_until_the_new_one_is(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call of the whole transfer; and whoever has it open goes on reading it."""
    file = put(into / "file")
    seen: list[bytes] = []
    for name in ("open_at", "write_at", "truncate", *SYNCS):
        before = getattr(disk, name)

        def watching(*args: Any, real: Callable[..., Any] = before, **kwargs: Any) -> Any:
            seen.append(file.read_bytes())
            return real(*args, **kwargs)

        monkeypatch.setattr(disk, name, watching)
    with file.open("rb") as reader:
        publish(store, ready(store, entry()), Policy.REPLACE)
        assert reader.read() == OLD
    new = content(entry())
    assert set(seen) == {OLD, new}
    assert seen == sorted(seen, key=lambda data: data == new)  # once new, never old again


@pytest.mark.parametrize("mode", [0o6755, 0o2755, 0o4755, 0o1777, 0o7777, 0o10644, 0o100644, 2**32 - 1])
def test_g6_a_peer_sets_permission_bits_and_no_others(store: PartialStore, into: Path, mode: int) -> None:
    publish(store, ready(store, entry(mode=mode)), Policy.REPLACE)
    assert stat.S_IMODE((into / "file").stat().st_mode) == mode & 0o777


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, MTIME_NS, 2**32 * 10**9, 999_999_999])
def test_times_arrive_to_the_nanosecond(store: PartialStore, into: Path, mtime_ns: int) -> None:
    publish(store, ready(store, entry(mtime_ns=mtime_ns)), Policy.REPLACE)
    assert (into / "file").stat().st_mtime_ns == mtime_ns


def test_a_time_that_no_file_system_has_is_no_crash(root: Root, store: PartialStore) -> None:
    for mtime_ns in (2**63 - 1, -(2**63)):
        partial = ready(store, entry(mtime_ns=mtime_ns, size=1))
        try:
            publish(store, partial, Policy.REPLACE)
        except DestinationError:
            store.release(partial, committed=False)


# --- The order -------------------------------------------------------------------------------------------------------


def test_g1_g5_contents_then_metadata_then_name_then_folder(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(into / "file")
    partial = ready(store, entry())
    calls = record(monkeypatch, *SYNCS)
    publish(store, partial, Policy.REPLACE)
    assert calls == ["sync_data", "set_times", "set_mode", "sync_file", "rename", "sync_folder", "unlink"]


@pytest.mark.parametrize("policy", NOT_REPLACING)
def test_g1_g5_the_same_order_without_replacing(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    partial = ready(store, entry())
    calls = record(monkeypatch, *SYNCS)
    publish(store, partial, policy)
    assert calls == ["sync_data", "set_times", "set_mode", "sync_file", "link", "unlink", "sync_folder", "unlink"]


def test_g5_new_folders_are_durable_up_to_the_root(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = ready(store, entry(b"a/b/file"))
    calls = record(monkeypatch, *SYNCS)
    publish(store, partial, Policy.REPLACE)
    assert calls[-5:] == ["rename", "sync_folder", "sync_folder", "sync_folder", "unlink"]


def test_g5_it_is_the_folder_of_the_name_that_is_synced(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = ready(store, entry(b"a/file"))
    synced: dict[str, list[str]] = {}
    monkeypatch.setattr(
        disk, "sync_folder", lambda fd: synced.update({os.readlink(f"/proc/self/fd/{fd}"): names(into / "a")})
    )
    publish(store, partial, Policy.REPLACE)
    assert synced == {str(into / "a"): ["file"], str(into): ["file"]}


def test_without_fsync_nothing_is_waited_for(root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = ready(store, entry(b"a/file"))
    calls = record(monkeypatch, *SYNCS)
    publish(store, partial, Policy.REPLACE, fsync=False)
    assert calls == ["set_times", "set_mode", "rename", "unlink"]


# --- What goes wrong before and after the rename ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["size", "set_times", "set_mode", "sync_file", "open_folder", "rename"])
def test_g1_what_fails_before_the_rename_leaves_the_old_file(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    (into / "a").mkdir()
    put(into / "a" / "file")
    partial = ready(store, entry(b"a/file"))
    fail_once(monkeypatch, call, number)
    with pytest.raises(NoSpace if number == errno.ENOSPC else DestinationError) as caught:
        commit.publish(root, partial, Policy.REPLACE, fsync=True)
    assert caught.value.exit_code == 7
    assert (into / "a" / "file").read_bytes() == OLD
    # And nothing is spoilt: the same partial may be published yet.
    publish(store, partial, Policy.REPLACE)
    assert (into / "a" / "file").read_bytes() == content(entry())


def test_g1_a_sync_that_fails_publishes_nothing(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(into / "file")
    partial = ready(store, entry())
    fail_once(monkeypatch, "sync_data")
    with pytest.raises(SyncFailed) as caught:
        commit.publish(root, partial, Policy.REPLACE, fsync=True)
    assert list(caught.value.lost) == [(0, 3)]
    assert (into / "file").read_bytes() == OLD
    store.release(partial, committed=False)


def test_g5_a_folder_that_cannot_be_synced_is_an_error(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is there, but a power cut could take it back; the journal stays for who comes next."""
    partial = ready(store, entry())
    fail_once(monkeypatch, "sync_folder")
    with pytest.raises(DestinationError):
        commit.publish(root, partial, Policy.REPLACE, fsync=True)
    store.release(partial, committed=False)
    assert (into / "file").read_bytes() == content(entry())
    assert names(into / ".ftx") == [os.fsdecode(partial.journal_name)]


def test_a_file_system_that_need_not_sync_folders(
    root: Root, store: PartialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = ready(store, entry())
    real = os.fsync

    def picky(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr(os, "fsync", picky)
    publish(store, partial, Policy.REPLACE)


@pytest.mark.parametrize("size", [0, 3 * CHUNK - 1, 3 * CHUNK + 1])
def test_g1_a_partial_that_somebody_else_cut_or_stretched_is_not_published(
    root: Root, store: PartialStore, into: Path, size: int
) -> None:
    put(into / "file")
    partial = ready(store, entry())
    os.truncate(into / ".ftx" / os.fsdecode(partial.name), size)
    with pytest.raises(DestinationError, match="somebody else"):
        commit.publish(root, partial, Policy.REPLACE, fsync=True)
    assert (into / "file").read_bytes() == OLD
    store.release(partial, committed=False)


def test_g11_a_partial_that_somebody_else_took_away(root: Root, store: PartialStore, into: Path) -> None:
    put(into / "file")
    partial = ready(store, entry())
    (into / ".ftx" / os.fsdecode(partial.name)).unlink()
    for policy in (Policy.REPLACE, Policy.RENAME):
        with pytest.raises(DestinationError):
            commit.publish(root, partial, policy, fsync=True)
    assert names(into) == [".ftx", "file"]
    assert (into / "file").read_bytes() == OLD
    store.release(partial, committed=False)


def test_a_folder_that_went_away_is_made_again(root: Root, store: PartialStore, into: Path) -> None:
    partial = ready(store, entry(b"a/b/file"))
    (into / "a" / "b").rmdir()
    (into / "a").rmdir()
    publish(store, partial, Policy.REPLACE)
    assert (into / "a" / "b" / "file").read_bytes() == content(entry())


# --- Policies, and files that appear between look and publish --------------------------------------------------------


def _appear(patch: pytest.MonkeyPatch, call: str, *paths: Path) -> None:
    before_call(patch, call, lambda: [put(path) for path in paths])


def test_replace_takes_the_place_of_whatever_appears(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = ready(store, entry())
    _appear(monkeypatch, "rename", into / "file")
    assert publish(store, partial, Policy.REPLACE) == b"file"
    assert (into / "file").read_bytes() == content(entry())


@pytest.mark.parametrize("policy", [Policy.KEEP, Policy.FAIL])
def test_g1_a_file_that_appears_is_kept(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    """A look and then a rename would take its place."""
    partial = ready(store, entry())
    _appear(monkeypatch, "link", into / "file")
    with pytest.raises(Exists, match="appeared"):
        commit.publish(root, partial, policy, fsync=True)
    assert (into / "file").read_bytes() == OLD
    assert names(into / ".ftx") == sorted(map(os.fsdecode, (partial.name, partial.journal_name)))
    store.release(partial, committed=False)


def test_g1_rename_puts_it_beside(root: Root, store: PartialStore, into: Path) -> None:
    put(into / "file")
    put(into / "file.1", b"the one before")
    assert look(root, entry(), Policy.RENAME) is None
    assert publish(store, ready(store, entry()), Policy.RENAME) == b"file.2"
    assert (into / "file").read_bytes() == OLD
    assert (into / "file.1").read_bytes() == b"the one before"
    assert (into / "file.2").read_bytes() == content(entry())
    assert look(root, entry(), Policy.RENAME) is SkipReason.SAME


def test_g1_rename_goes_on_to_the_next_number_if_one_appears(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(into / "file")
    put(into / "file.1")
    partial = ready(store, entry())
    _appear(monkeypatch, "link", into / "file.2")
    assert publish(store, partial, Policy.RENAME) == b"file.3"
    assert {(into / name).read_bytes() for name in ("file", "file.1", "file.2")} == {OLD}


def test_g1_rename_where_the_name_became_free(root: Root, store: PartialStore, into: Path) -> None:
    put(into / "file")
    partial = ready(store, entry())
    (into / "file").unlink()
    assert publish(store, partial, Policy.RENAME) == b"file"


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "full"])
def test_a_folder_that_appears_is_kept(
    root: Root, store: PartialStore, into: Path, policy: Policy, empty: bool
) -> None:
    partial = ready(store, entry())
    (into / "file").mkdir()
    if not empty:
        put(into / "file" / "x")
    before = snapshot(into / "file")
    if policy is Policy.RENAME:
        assert publish(store, partial, policy) == b"file.1"
    else:
        with pytest.raises(IsFolder if policy is Policy.REPLACE else Exists):
            commit.publish(root, partial, policy, fsync=True)
        store.release(partial, committed=False)
    assert snapshot(into / "file").keys() == before.keys()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
@pytest.mark.parametrize("policy", NOT_REPLACING)
def test_g11_a_file_system_without_hard_links_says_what_to_do(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy, number: int
) -> None:
    partial = ready(store, entry())
    fail_once(monkeypatch, "link", number)
    with pytest.raises(DestinationError, match="no hard links, so only `--exists replace`"):
        commit.publish(root, partial, policy, fsync=True)
    assert names(into) == [".ftx"]
    store.release(partial, committed=False)


# --- Ending what a crash began ----------------------------------------------------------------------------------------


def _crash_after(store: PartialStore, call: str, policy: Policy, patch: pytest.MonkeyPatch) -> Partial:
    """A commit that got as far as just before ``call``; its process is gone."""
    partial = ready(store, entry(b"a/file"))
    with patch.context() as inner:
        fail_once(inner, call)
        with pytest.raises(DestinationError):
            commit.publish(store.root, partial, policy, fsync=True)
    store.release(partial, committed=False)
    return partial


@pytest.mark.parametrize(
    ("policy", "call"), [(Policy.REPLACE, "sync_folder"), (Policy.RENAME, "unlink"), (Policy.FAIL, "sync_folder")]
)
def test_g5_what_is_there_already_is_made_durable_before_its_journal_goes(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy, call: str
) -> None:
    """The crash may have come between the rename and the sync of its folder."""
    _crash_after(store, call, policy, monkeypatch)
    assert look(root, entry(b"a/file"), policy) is SkipReason.SAME
    later = PartialStore(root, reserve=0)
    calls = record(monkeypatch, *SYNCS)
    later.clear(PEER, entry(b"a/file"), fsync=True)
    assert calls[:2] == ["sync_folder", "sync_folder"]
    assert set(calls[2:]) == {"unlink"}
    assert names(into / ".ftx") == []
    assert (into / "a" / "file").read_bytes() == content(entry())
    assert (into / "a" / "file").stat().st_nlink == 1


def test_g5_a_name_that_cannot_be_made_durable_is_not_called_committed(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = _crash_after(store, "sync_folder", Policy.REPLACE, monkeypatch)
    with monkeypatch.context() as patch:
        fail_once(patch, "sync_folder")
        with pytest.raises(DestinationError):
            store.clear(PEER, entry(b"a/file"), fsync=True)
    assert names(into / ".ftx") == [os.fsdecode(partial.journal_name)]
    store.clear(PEER, entry(b"a/file"), fsync=True)
    assert names(into / ".ftx") == []


def test_nothing_is_waited_for_where_nothing_was_left(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record(monkeypatch, *SYNCS, "make_folder")
    store.clear(PEER, entry(), fsync=True)
    assert names(into) == []
    publish(store, ready(store, entry()), Policy.REPLACE)
    calls.clear()
    store.clear(PEER, entry(), fsync=True)
    assert calls == []


def test_without_fsync_what_is_left_goes_at_once(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _crash_after(store, "sync_folder", Policy.REPLACE, monkeypatch)
    calls = record(monkeypatch, *SYNCS)
    store.clear(PEER, entry(b"a/file"), fsync=False)
    assert set(calls) == {"unlink"}
    assert names(into / ".ftx") == []


def test_what_others_have_left_or_have_under_way_is_not_cleared(root: Root, store: PartialStore, into: Path) -> None:
    store.release(ready(store, entry(), OTHER_PEER), committed=False)
    store.release(ready(store, entry(b"other")), committed=False)
    under_way = ready(PartialStore(root, reserve=0), entry())
    before = names(into / ".ftx")
    store.clear(PEER, entry(), fsync=True)
    assert names(into / ".ftx") == before
    under_way.close()


def test_what_cannot_be_taken_away_holds_up_nothing(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _crash_after(store, "sync_folder", Policy.REPLACE, monkeypatch)
    fail_once(monkeypatch, "unlink", errno.EACCES, at=3)
    store.clear(PEER, entry(b"a/file"), fsync=True)
    store.clear(PEER, entry(b"a/file"), fsync=True)
    assert names(into / ".ftx") == []


def test_a_partial_beside_its_target_is_cleared_too(
    root: Root, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "same_mount", lambda one, other: False)
    _crash_after(store, "unlink", Policy.RENAME, monkeypatch)
    assert len(names(into / "a")) == 2
    store.clear(PEER, entry(b"a/file"), fsync=True)
    assert names(into / "a") == ["file"]
    assert names(into / ".ftx") == []
