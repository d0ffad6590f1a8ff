"""G6: hostile names, links, pipes and devices against everything that takes a name from a peer."""

from __future__ import annotations

import math
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftx.errors import DestinationError, Exists, FtxError, IsFolder, NameRefused
from ftx.options import Exists as Policy
from ftx.protocol.messages import MAX_NAME, MAX_PATH
from ftx.storage import commit, disk, paths
from ftx.storage.partial import PartialStore
from ftx.storage.paths import Root, components, file_components, is_reserved
from ftx.storage.scratch import Scratch, Whole
from tests.storage.support import (
    MTIME_NS,
    NEEDS_ROOT,
    PEER,
    XXH3,
    before_call,
    content,
    entry,
    fail_once,
    in_child,
    look,
    names,
    ready,
    record,
    snapshot,
    untouched,
)

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=300)

OWN = {
    "own": b".ftx",
    "own-below": b".ftx/x",
    "own-deep": b"a/b/.ftx/x",
    "own-upper": b".FTX",
    "own-mixed": b".Ftx/x",
    "own-dot": b".ftx.",
    "own-space": b".ftx ",
    "own-dots-and-spaces": b".ftx. . /x",
    "own-fullwidth": ".ｆｔｘ".encode(),
    "own-fullwidth-upper": ".ＦＴＸ".encode(),
    "own-fullwidth-dot": "．ftx".encode(),
    "own-circled": ".Ⓕⓣⓧ".encode(),
    "own-mathematical": ".𝐟𝓽𝖝".encode(),
    "own-zero-width-space": ".f\u200btx".encode(),
    "own-zero-width-joiner": ".ftx\u200d".encode(),
    "own-byte-order-mark": "\ufeff.ftx".encode(),
    "own-soft-hyphen": ".f\u00adtx".encode(),
    "own-variation-selector": ".ftx\ufe0f".encode(),
    "own-variation-selector-17": ".f\U000e0100tx".encode(),
    "own-grapheme-joiner": ".f\u034ftx".encode(),
    "own-hangul-filler": ".ft\u3164x".encode(),
    "own-tag": ".ftx\U000e0041".encode(),
    "own-everything": "．\u200bＦ\ufe0fT\u00adⓧ. .".encode(),
    "own-short-name": b"FTX~1",
    "own-short-name-2": b"a/ftx~12/x",
    "partial": b".ftx-0123456789abcdef.part",
    "partial-below": b"a/.ftx-0.part",
    "partial-upper": b".FTX-0.PART",
    "partial-dot": b".ftx-0.part.",
}
HOSTILE = OWN | {
    "up": b"..",
    "up-first": b"../x",
    "up-inside": b"a/../../outside/secret",
    "up-last": b"a/..",
    "root": b"/",
    "absolute": b"/etc/passwd",
    "double-slash": b"//x",
    "dot": b".",
    "dot-first": b"./x",
    "dot-inside": b"a/./x",
    "empty-component": b"a//x",
    "trailing-slash": b"a/",
    "nul": b"a\0b",
    "nul-first": b"\0",
    "long-name": b"n" * (MAX_NAME + 1),
    "long-folder": b"n" * (MAX_NAME + 1) + b"/x",
    "long-path": b"abc/" * (MAX_PATH // 4) + b"x",
}
#: Names that look odd and lead nowhere else.
HARMLESS = {
    "three-dots": b"...",
    "dots-before": b"..x",
    "dots-behind": b"x..",
    "like-own": b".ftxx",
    "without-dot": b"ftx",
    "own-in-the-middle": b"x.ftx",
    "like-a-partial": b".ftx-0",
    "another-part": b"x.part",
    "tilde": b"~root",
    "backslash": b"..\\..\\outside",
    "drive": b"C:",
    "option": b"-rf",
    "newline": b"a\nb",
    "not-utf8": b"\xff\xfe/\x80",
    "space": b" / ",
    "variation-selector": "❤\ufe0f".encode(),
    "longest-name": b"n" * MAX_NAME,
    "deep": b"d/" * 100 + b"x",
}


def ids(table: dict[str, bytes]) -> Callable[..., pytest.MarkDecorator]:
    return pytest.mark.parametrize("name", table.values(), ids=table.keys())


Operation = Callable[[Root, bytes], object]


def _publish(root: Root, name: bytes) -> None:
    """A partial whose entry says another name than it was opened under."""
    store = PartialStore(root, reserve=0)
    partial = ready(store, entry(b"harmless", 10))
    partial.entry = partial.entry._replace(path=name)
    try:
        commit.publish(root, partial, Policy.REPLACE, fsync=False)
    finally:
        partial.close()


def _publish_group(root: Root, name: bytes) -> None:
    """The same of what is written in one go. What is above the name may be made before that is looked at."""
    folder = Scratch(root, durable=False)
    try:
        whole = Whole(folder, entry(b"harmless", 10), XXH3)
        whole.write(0, content(whole.entry))
        whole.entry = whole.entry._replace(path=name)
        ((_, result),) = commit.publish_group(root, folder, [whole], Policy.REPLACE, fsync=False)
        if isinstance(result, FtxError):
            raise result
    finally:
        folder.close()


OPERATIONS: dict[str, Operation] = {
    "folder": lambda root, name: root.folder(components(name)),
    "make-folder": lambda root, name: root.folder(components(name), make=True),
    "look": lambda root, name: look(root, entry(name), Policy.REPLACE),
    "open": lambda root, name: PartialStore(root, reserve=0).open(PEER, entry(name), XXH3),
    "clear": lambda root, name: PartialStore(root, reserve=0).clear(PEER, entry(name), fsync=True),
    "publish": _publish,
}
OF_FILES = {name: operation for name, operation in OPERATIONS.items() if "folder" not in name}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
each_file_operation = pytest.mark.parametrize("operation", OF_FILES.values(), ids=OF_FILES.keys())


# --- Names -----------------------------------------------------------------------------------------------------------


@each_operation
@ids(HOSTILE)
def test_g6_a_hostile_name_is_refused(root: Root, into: Path, outside: Path, operation: Operation, name: bytes) -> None:
    with untouched(outside), pytest.raises(NameRefused):
        operation(root, name)
    assert names(into) in ([], [".ftx"])


@pytest.mark.parametrize("name", [b"", b"..", b"a/..", b"../x", b"a/", b"/", b".ftx", b"a/.FTX", b".ftx/x", b"a/b\0"])
def test_g6_nothing_of_a_group_gets_a_hostile_name(root: Root, into: Path, outside: Path, name: bytes) -> None:
    with untouched(outside), pytest.raises(NameRefused):
        _publish_group(root, name)
    assert [path for path in into.rglob("*") if not path.is_dir()] == []


@each_file_operation
def test_g6_a_file_has_a_name(root: Root, into: Path, operation: Operation) -> None:
    before = snapshot(into)
    with pytest.raises(NameRefused):
        operation(root, b"")
    assert {name for name in snapshot(into) if not name.startswith(".ftx")} == set(before)


@ids(HARMLESS)
def test_an_odd_name_is_taken_as_it_is(root: Root, store: PartialStore, into: Path, name: bytes) -> None:
    what = entry(name, 10)
    assert look(root, what, Policy.REPLACE) is None
    partial = ready(store, what)
    assert commit.publish(root, partial, Policy.REPLACE, fsync=False) == name
    store.release(partial, committed=True)
    with open(os.path.join(os.fsencode(into), name), "rb") as file:  # noqa: PTH123 - a path of bytes
        assert file.read() == content(what)


def test_the_root_itself_has_no_components() -> None:
    assert components(b"") == ()


@PURE
@given(st.binary(max_size=60) | st.text("a./ftxFTX~-\u200b\ufe0f．", max_size=12).map(lambda text: text.encode()))
@example(b"a" * MAX_PATH)
def test_g6_what_is_accepted_stays_below_the_root(name: bytes) -> None:
    try:
        parts = file_components(name)
    except NameRefused:
        return
    assert b"/".join(parts) == name
    assert os.path.normpath(b"/root/" + name) == b"/root/" + name
    for part in parts:
        assert 0 < len(part) <= MAX_NAME
        assert part not in (b".", b"..")
        assert not {0, ord("/")} & set(part)


@pytest.mark.parametrize("name", OWN.values(), ids=OWN.keys())
def test_g6_own_names_are_reserved_in_every_spelling(name: bytes) -> None:
    assert any(is_reserved(part) for part in name.split(b"/"))


@pytest.mark.parametrize("name", HARMLESS.values(), ids=HARMLESS.keys())
def test_other_names_are_not_reserved(name: bytes) -> None:
    assert not any(is_reserved(part) for part in name.split(b"/"))


# --- Links on the way ------------------------------------------------------------------------------------------------

PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "link-outside": lambda at, outside: at.symlink_to(outside / "folder"),
    "link-up": lambda at, outside: at.symlink_to("../outside"),
    "link-inside": lambda at, outside: at.symlink_to("."),
    "link-to-nothing": lambda at, outside: at.symlink_to(outside / "new"),
    "file": lambda at, outside: at.write_bytes(b"file"),
    "pipe": lambda at, outside: os.mkfifo(at),
}
each_plant = pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())


@each_plant
@pytest.mark.parametrize("name", [b"sub/x", b"real/sub/x", b"sub/new/x"])
@each_operation
def test_g6_nothing_goes_through_what_is_not_a_folder(
    root: Root, into: Path, outside: Path, operation: Operation, plant: Callable[[Path, Path], None], name: bytes
) -> None:
    (into / "real").mkdir()
    plant(into / "sub", outside)
    plant(into / "real" / "sub", outside)
    with untouched(outside):
        try:
            with disk.destination_errors(name):
                operation(root, name)
        except DestinationError:
            assert operation is not OPERATIONS["clear"]
        else:
            assert operation is OPERATIONS["clear"]  # there is no journal, so there is nothing to do


@pytest.mark.parametrize("plant", ["link-outside", "link-up", "link-to-nothing"])
@pytest.mark.parametrize("policy", Policy)
def test_g6_a_link_swapped_in_after_the_partial_was_opened(
    root: Root, store: PartialStore, into: Path, outside: Path, plant: str, policy: Policy
) -> None:
    partial = ready(store, entry(b"sub/secret", 10))
    (into / "sub").rmdir()
    PLANTS[plant](into / "sub", outside)
    with untouched(outside), pytest.raises(DestinationError, match="not a folder"):
        commit.publish(root, partial, policy, fsync=True)
    store.release(partial, committed=False)


def test_g6_the_root_is_held_and_not_looked_up_again(
    root: Root, store: PartialStore, into: Path, outside: Path
) -> None:
    """Whoever moves the destination away and puts a link there moves what is written, and gets nothing elsewhere."""
    partial = ready(store, entry(b"sub/secret", 10))
    into.rename(into.with_name("moved"))
    into.symlink_to(outside)
    with untouched(outside):
        assert look(root, partial.entry, Policy.REPLACE) is None
        commit.publish(root, partial, Policy.REPLACE, fsync=True)
    store.release(partial, committed=True)
    assert (into.with_name("moved") / "sub" / "secret").read_bytes() == content(partial.entry)


# --- What is not a file under the final name --------------------------------------------------------------------------


def _socket(at: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        fd = os.open(at.parent, os.O_RDONLY)  # a socket's address is short, and the path of a test is not
        try:
            sock.bind(f"/proc/self/fd/{fd}/{at.name}")
        finally:
            os.close(fd)


def _device(at: Path) -> None:
    try:
        os.mknod(at, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("cannot make a device")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": lambda at: os.mkfifo(at, 0o600),
    "socket": _socket,
    "device": _device,
}


@pytest.mark.parametrize("plant", SPECIAL.values(), ids=SPECIAL.keys())
@pytest.mark.parametrize("policy", Policy)
def test_g6_a_pipe_a_socket_or_a_device_is_not_replaced(
    root: Root, into: Path, plant: Callable[[Path], None], policy: Policy
) -> None:
    plant(into / "file")
    before = (into / "file").lstat()
    with pytest.raises(DestinationError, match="device, socket or FIFO"):
        look(root, entry(), policy)
    assert (into / "file").lstat() == before


@pytest.mark.parametrize("policy", Policy)
def test_a_folder_is_not_replaced(root: Root, into: Path, policy: Policy) -> None:
    (into / "file").mkdir()
    with pytest.raises(IsFolder):
        look(root, entry(), policy)


LINKS = {"to-a-file": "secret", "to-a-folder": "folder", "to-nothing": "new"}


@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS.keys())
def test_g6_a_link_under_the_final_name_is_replaced_and_not_followed(
    root: Root, store: PartialStore, into: Path, outside: Path, target: str
) -> None:
    (into / "file").symlink_to(outside / target)
    what = entry(b"file", 6000)
    with untouched(outside):
        assert look(root, what, Policy.REPLACE) is None
        partial = ready(store, what)
        commit.publish(root, partial, Policy.REPLACE, fsync=True)
        store.release(partial, committed=True)
    assert not (into / "file").is_symlink()
    assert (into / "file").read_bytes() == content(what)


@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS.keys())
def test_g6_a_link_swapped_in_between_look_and_publish(
    root: Root, store: PartialStore, into: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    for policy, expected in [
        (Policy.KEEP, Exists),
        (Policy.FAIL, Exists),
        (Policy.RENAME, None),
        (Policy.REPLACE, None),
    ]:
        partial = ready(store, entry(b"file", 6000))
        before_call(monkeypatch, "set_mode", lambda: (into / "file").symlink_to(outside / target))
        with untouched(outside):
            if expected:
                with pytest.raises(expected):
                    commit.publish(root, partial, policy, fsync=True)
            else:
                commit.publish(root, partial, policy, fsync=True)
        store.release(partial, committed=True)
        (into / "file").unlink()


def test_g6_a_link_to_the_same_content_is_not_the_same_file(root: Root, into: Path, outside: Path) -> None:
    """Its size and time are those of the link, and its mode is not touched through it."""
    what = entry(b"file", 6000, mode=0o600)
    os.utime(outside / "secret", ns=(MTIME_NS, MTIME_NS))
    (into / "file").symlink_to(outside / "secret")
    with untouched(outside):
        assert look(root, what, Policy.REPLACE) is None


@pytest.mark.parametrize("plant", ["link", "pipe"])
def test_g6_a_name_that_changes_while_its_mode_is_brought_up_to_date(
    root: Root, into: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    """A pipe there must not hold anybody up, and a link not lead to another file."""
    what = entry(b"file", 6, mode=0o640)
    file = into / "file"
    file.write_bytes(b"secret")
    os.utime(file, ns=(MTIME_NS, MTIME_NS))
    file.chmod(0o600)

    def swap() -> None:
        file.unlink()
        if plant == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(outside / "folder" / "file")

    before_call(monkeypatch, "open_at", swap)
    with untouched(outside):
        if plant == "link":
            with pytest.raises(DestinationError):
                look(root, what, Policy.REPLACE)
        else:
            look(root, what, Policy.REPLACE)


# --- .ftx and what is in it ------------------------------------------------------------------------------------------


def _own_link(into: Path, outside: Path) -> None:
    (into / ".ftx").symlink_to(outside / "folder")


def _own_file(into: Path, outside: Path) -> None:
    (into / ".ftx").write_bytes(b"")


def _own_pipe(into: Path, outside: Path) -> None:
    os.mkfifo(into / ".ftx")


def _own_readable(into: Path, outside: Path) -> None:
    (into / ".ftx").mkdir()
    (into / ".ftx").chmod(0o750)


def _own_writable_by_others(into: Path, outside: Path) -> None:
    (into / ".ftx").mkdir()
    (into / ".ftx").chmod(0o702)


def _own_of_another_user(into: Path, outside: Path) -> None:
    (into / ".ftx").mkdir(0o700)
    try:
        os.chown(into / ".ftx", 12345, 12345)
    except PermissionError:
        pytest.skip("needs root")


@pytest.mark.parametrize(
    "plant", [_own_link, _own_file, _own_pipe, _own_readable, _own_writable_by_others, _own_of_another_user]
)
def test_g6_an_own_folder_that_is_not_its_own_is_not_used(
    root: Root, store: PartialStore, into: Path, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(into, outside)
    before = snapshot(into)
    with untouched(outside):
        with pytest.raises(DestinationError):
            store.open(PEER, entry(), XXH3)
        store.clear(PEER, entry(), fsync=True)
    assert snapshot(into).keys() == before.keys()


def test_g6_the_own_folder_is_for_this_user_alone(root: Root, into: Path) -> None:
    before = os.umask(0)
    try:
        with root.own_folder():
            assert stat.S_IMODE((into / ".ftx").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_second_session_that_makes_the_own_folder_is_no_error(
    root: Root, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_call(monkeypatch, "make_folder", lambda: (into / ".ftx").mkdir(0o700))
    with root.own_folder():
        pass


IN_OWN: dict[str, Callable[[Path, Path], None]] = {
    "link-to-a-file": lambda at, outside: at.symlink_to(outside / "secret"),
    "link-to-a-folder": lambda at, outside: at.symlink_to(outside / "folder"),
    "link-to-nothing": lambda at, outside: at.symlink_to(outside / "new"),
    "hard-link": lambda at, outside: at.hardlink_to(outside / "secret"),
    "pipe": lambda at, outside: os.mkfifo(at, 0o600),
    "socket": lambda at, outside: _socket(at),
    "folder": lambda at, outside: at.mkdir(),
}


@pytest.fixture(params=["partial", "journal", "partial beside"])
def planted_at(
    request: pytest.FixtureRequest, store: PartialStore, into: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where ftx will look for a partial or a journal; nothing is there yet."""
    beside = request.param == "partial beside"
    if beside:
        monkeypatch.setattr(disk, "same_mount", lambda one, other: False)
    partial = store.open(PEER, entry(), XXH3)
    partial.close()
    own = into / ".ftx"
    at = own / os.fsdecode(partial.journal_name if request.param == "journal" else partial.name)
    if beside:
        at = into / os.fsdecode(partial.name)
    for path in (at, *own.iterdir()):
        path.unlink(missing_ok=True)
    yield at


@pytest.mark.parametrize("plant", IN_OWN.values(), ids=IN_OWN.keys())
def test_g6_what_is_planted_as_a_partial_or_a_journal_is_not_written_through(
    root: Root, into: Path, outside: Path, planted_at: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(planted_at, outside)
    store = PartialStore(root, reserve=0)
    with untouched(outside):
        try:
            partial = store.open(PEER, entry(), XXH3)
        except DestinationError:
            pass
        else:  # it was taken away, and a new one made
            assert planted_at.stat().st_nlink == 1
            assert not partial.held and not partial.doubted
            store.release(partial, committed=False)
        with suppress(DestinationError):
            store.clear(PEER, entry(), fsync=True)


@NEEDS_ROOT
def test_g6_a_partial_beside_its_target_that_somebody_else_made_is_not_used(
    root: Root, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that others may write to: they would go on writing to it after it was verified."""
    monkeypatch.setattr(disk, "same_mount", lambda one, other: False)
    store = PartialStore(root, reserve=0)
    partial = store.open(PEER, entry(), XXH3)
    store.release(partial, committed=True)
    at = into / os.fsdecode(partial.name)
    os.chown(at, 12345, 12345)
    at.chmod(0o666)
    with pytest.raises(DestinationError):
        store.open(PEER, entry(), XXH3)


# --- Folders ---------------------------------------------------------------------------------------------------------


def test_g6_a_look_makes_nothing(root: Root, into: Path) -> None:
    assert look(root, entry(b"a/b/c"), Policy.REPLACE) is None
    assert names(into) == []


def test_folders_are_made_as_they_are_needed(root: Root, into: Path) -> None:
    with root.folder((b"a", b"b"), make=True):
        assert (into / "a" / "b").is_dir()
    with root.folder((b"a", b"b", b"c"), make=True), root.folder((b"a", b"b", b"c")):
        pass
    with pytest.raises(FileNotFoundError):
        root.folder((b"a", b"x"))


def test_another_session_that_makes_the_same_folder_is_no_error(
    root: Root, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_call(monkeypatch, "make_folder", lambda: (into / "a").mkdir())
    with root.folder((b"a",), make=True):
        pass


def test_g6_another_who_puts_a_link_where_a_folder_is_to_be_made(
    root: Root, into: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_call(monkeypatch, "make_folder", lambda: (into / "a").symlink_to(outside))
    with untouched(outside), pytest.raises(OSError, match="Not a directory|symbolic links"):
        root.folder((b"a", b"b"), make=True)


def test_a_failure_on_the_way_down_leaves_no_descriptor(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_once(monkeypatch, "open_folder", at=5)  # two calls for each folder that is made
    with pytest.raises(OSError, match="Input/output"):
        root.folder((b"a", b"b", b"c"), make=True)


def _folders_synced(root: Root, parts: tuple[bytes, ...], patch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the folders that one sync makes durable, in order."""
    seen = []
    real = disk.sync_folder

    def note(fd: int) -> None:
        seen.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root.path))
        real(fd)

    with patch.context() as inner, root.folder(parts, make=True) as folder:
        inner.setattr(disk, "sync_folder", note)
        root.sync(parts, folder)
    return seen


def test_g5_every_folder_up_to_the_root_is_synced(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _folders_synced(root, (b"a", b"b", b"c"), monkeypatch) == ["a/b/c", ".", "a", "a/b"]
    # Once that is so, only the folder that gets a new name matters.
    assert _folders_synced(root, (b"a", b"b", b"c"), monkeypatch) == ["a/b/c"]
    assert _folders_synced(root, (b"a", b"b", b"d"), monkeypatch) == ["a/b/d", "a/b"]
    assert _folders_synced(root, (), monkeypatch) == ["."]


def test_g5_folders_that_a_killed_run_made_are_synced_too(
    root: Root, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (into / "a" / "b").mkdir(parents=True)
    assert _folders_synced(root, (b"a", b"b"), monkeypatch) == ["a/b", ".", "a"]


def test_g5_a_folder_whose_sync_failed_is_synced_again(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    with root.folder((b"a", b"b"), make=True) as folder:
        fail_once(monkeypatch, "sync_folder", at=2)
        with pytest.raises(OSError, match="Input/output"):
            root.sync((b"a", b"b"), folder)
    assert _folders_synced(root, (b"a", b"b"), monkeypatch) == ["a/b", ".", "a"]


def test_g8_what_is_remembered_of_folders_is_bounded(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_DURABLE", 4)
    monkeypatch.setattr(disk, "sync_folder", lambda fd: None)
    for number in range(20):
        parts = (b"%d" % number, b"x")
        with root.folder(parts, make=True) as folder:
            root.sync(parts, folder)
        assert len(root._held.durable) <= 4


# --- The root itself -------------------------------------------------------------------------------------------------


def test_g5_a_root_that_is_made_is_durable_folder_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(disk, "sync_folder", lambda fd: seen.append((os.readlink(f"/proc/self/fd/{fd}"), names(base))))
    base = tmp_path / "base"
    base.mkdir()
    Root(base / "a" / "b").close()
    assert seen == [
        (str(tmp_path), []),  # base was there, and whoever made it may have been killed a moment later
        (str(base), ["a"]),
        (str(base / "a"), ["a"]),
    ]


@pytest.mark.parametrize("what", ["file", "link-to-nothing", "below-a-file"])
def test_g11_a_root_that_cannot_be_had(tmp_path: Path, what: str) -> None:
    path = tmp_path / "into"
    if what == "link-to-nothing":
        path.symlink_to(tmp_path / "new" / "new")
    else:
        path.write_bytes(b"")
    with pytest.raises(DestinationError):
        Root(path / "x" if what == "below-a-file" else path)


def test_a_root_may_be_a_link_because_its_user_chose_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    root = Root(tmp_path / "link")
    with root.folder((b"a",), make=True):
        assert (tmp_path / "real" / "a").is_dir()
    root.close()


@NEEDS_ROOT
def test_a_root_in_a_folder_that_may_not_be_read(shm: Path) -> None:
    into = shm / "closed" / "into"
    into.mkdir(parents=True)
    os.chown(into, 65534, 65534)
    into.parent.chmod(0o711)
    shm.chmod(0o711)
    assert in_child(lambda: Root(into).close(), uid=65534) == 0


def test_a_closed_root_leads_nowhere(into: Path) -> None:
    """A thread that was stuck in a system call comes back to no folder, and never to another's descriptor."""
    root = Root(into)
    root.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        root.folder(())


def test_errors_name_the_path_and_the_reason() -> None:
    for number, kind, text in [
        (28, FtxError, "no space left"),
        (122, FtxError, "no space left"),
        (13, DestinationError, "not writable"),
        (30, DestinationError, "not writable"),
        (40, DestinationError, "not a folder"),
        (20, DestinationError, "not a folder"),
        (21, IsFolder, "a folder has this name"),
        (5, DestinationError, "Input/output error"),
    ]:
        with pytest.raises(kind, match=f"^a/b: .*{text}") as caught, disk.destination_errors(b"a/b"):
            raise OSError(number, os.strerror(number))
        assert caught.value.exit_code == 7


def test_g9_nobody_waits_while_folders_are_synced(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another session makes folders meanwhile; what is made then is synced the next time."""
    parts = (b"a", b"b")
    free: list[bool] = []

    def sync_folder(fd: int) -> None:
        free.append(root._held.lock.acquire(blocking=False))
        if free[-1]:
            root._held.lock.release()
        with root.folder((b"a", b"%d" % len(free)), make=True):
            pass

    with root.folder(parts, make=True) as folder, monkeypatch.context() as patch:
        patch.setattr(disk, "sync_folder", sync_folder)
        root.sync(parts, folder)
    assert free == [True, True, True]
    assert _folders_synced(root, parts, monkeypatch) == ["a/b", ".", "a"]


def test_g9_a_deep_path_is_walked_once(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (b"d",) * 200
    with root.folder(parts, make=True) as folder:
        calls = record(monkeypatch, "open_folder")
        root.sync(parts, folder)
    assert len(calls) < len(parts)


@NEEDS_ROOT
@pytest.mark.parametrize("mode", [0o311, 0o000, 0o444])
def test_a_folder_that_its_owner_may_not_open_is_entered(shm: Path, mode: int) -> None:
    """Its source is so, and so is it when it is complete; the next night something is to go into it again."""
    into = shm / "into"
    (into / "closed" / "below").mkdir(parents=True)
    for path in (into, into / "closed", into / "closed" / "below"):
        os.chown(path, 65534, 65534)
    (into / "closed").chmod(mode)
    shm.chmod(0o755)

    def work() -> None:
        with Root(into).folder((b"closed", b"below")):
            pass

    assert in_child(work, uid=65534) == 0


@NEEDS_ROOT
def test_g6_another_users_folder_is_not_opened_up(shm: Path) -> None:
    into = shm / "into"
    (into / "closed" / "below").mkdir(parents=True)
    os.chown(into, 65534, 65534)
    (into / "closed").chmod(0o700)
    shm.chmod(0o755)

    def work() -> None:
        with pytest.raises(PermissionError):
            Root(into).folder((b"closed", b"below"))

    assert in_child(work, uid=65534) == 0
    assert (into / "closed").stat().st_mode & 0o777 == 0o700


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("depth", "path", "opened"),
    [
        (math.inf, "mine/closed/below", None),
        (1, "mine/closed/below", "mine/closed"),
        (1, "mine/closed/new", "mine/closed"),
        (2, "mine/closed/new", None),
        (0, "mine", None),
        (2, "mine/shut", None),
        (1, "mine/shut", "mine/shut"),
        (1, "mine/new", None),
        (math.inf, "mine/new", None),
    ],
)
def test_g6_what_is_kept_keeps_its_mode(shm: Path, depth: float, path: str, opened: str | None) -> None:
    """Folders that are closed to their owner are opened up, but only below those that are kept."""
    into = shm / "into"
    (into / "mine" / "closed" / "below").mkdir(parents=True)
    (into / "mine" / "shut").mkdir()
    modes = {
        "mine/closed/below": 0o700,
        "mine/shut": 0,
        "mine/closed": 0o400,
        "mine": 0o555,
        "": 0o555 if depth else 0o444,
    }
    for folder, mode in modes.items():
        os.chown(into / folder, 65534, 65534)
        (into / folder).chmod(mode)
    shm.chmod(0o755)
    before = {name: (into / name).stat().st_mode for name in ("", "mine", "mine/closed", "mine/shut")}

    def work() -> None:
        root = Root(into, make=False).keeping(depth)
        if opened is None:
            with pytest.raises(PermissionError):
                root.folder(tuple(os.fsencode(path).split(b"/")), make=True)
        else:
            root.folder(tuple(os.fsencode(path).split(b"/")), make=True)

    assert in_child(work, uid=65534) == 0
    changed = [name for name, mode in before.items() if (into / name).stat().st_mode != mode]
    assert changed == ([opened] if opened else [])


@NEEDS_ROOT
@pytest.mark.parametrize("depth", [1, math.inf])
def test_g6_a_folder_that_is_kept_is_not_made_writable(shm: Path, depth: float) -> None:
    into = shm / "into"
    (into / "mine").mkdir(parents=True)
    for folder in (into, into / "mine"):
        os.chown(folder, 65534, 65534)
    (into / "mine").chmod(0o555)
    shm.chmod(0o755)

    def work() -> None:
        with Root(into, make=False).keeping(depth).folder((b"mine",)) as folder:
            folder.make_writable()

    assert in_child(work, uid=65534) == 0
    assert (into / "mine").stat().st_mode & 0o777 == 0o555


def test_g5_all_views_of_a_root_know_what_is_durable(root: Root, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that one of them makes is made durable by any that puts something there."""
    view = root.keeping(math.inf)
    with view.folder((b"a",), make=True) as folder:
        view.sync((b"a",), folder)
    root.folder((b"a", b"b"), make=True).__exit__(None, None, None)
    synced: list[int] = []
    real = disk.sync_folder
    monkeypatch.setattr(disk, "sync_folder", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    with view.folder((b"a", b"b")) as folder:
        view.sync((b"a", b"b"), folder)
    assert (into / "a").stat().st_ino in synced


def test_a_view_of_a_root_that_is_closed_is_closed(into: Path) -> None:
    root = Root(into)
    view = root.keeping(0)
    root.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        view.folder(())
