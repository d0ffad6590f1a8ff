"""Whole trees from one side to the other: whatever is in them, whatever is in the way, whatever breaks off."""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ftx import api
from ftx.options import Exists
from ftx.storage.source import Source
from ftx.transfer import events, look
from ftx.transfer.underway import UnderWay
from tests.support.files import MIB, fill, journals, partials, settled
from tests.support.local import LocalReceiver
from tests.support.process import Process, Receiver, send, sender
from tests.support.proxy import Call, Proxy
from tests.support.trees import (
    NAMES,
    assert_same,
    below,
    change_tree,
    files_in,
    nothing_to_do,
    random_tree,
    size_of,
    snapshot,
    unlock,
)

SEEDS = range(12)
NOBODY = 65534
LONG_AGO_NS = 1_234_567_890_123_456_789
#: Frames beside the payload, for each entry and for each session.
FRAMES = 600
OVERHEAD = 32 * 1024

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user, or makes devices")


@pytest.fixture
def base(shm: Path) -> Iterator[Path]:
    """A folder in memory that can be removed, whatever modes the things in it have."""
    yield shm
    unlock(shm)


@pytest.fixture
def tree(base: Path) -> Path:
    """A small tree: two files, a link, a folder with a file, an empty folder."""
    top = base / "tree"
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "one").write_bytes(b"first")
    (top / "two").write_bytes(b"second")
    (top / "sub" / "three").write_bytes(b"third")
    (top / "sub" / "deeper" / "four").write_bytes(b"fourth")
    (top / "link").symlink_to("sub/three")
    return top


FILES = 5  #: in ``tree``, with its link


def run(base: Path, port: int, *paths: Path | bytes | str, **options: Any) -> api.Finished:
    """``api.send`` of some paths to this machine; without retries unless told otherwise."""
    on_event = options.pop("on_event", None)
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "retry_for_s": 0.0,
        "timeout_s": 10.0,
        "config_dir": base / "config",
    }
    return api.send(paths, api.SendOptions(**defaults | options), on_event=on_event)


def slash(path: Path) -> bytes:
    """The path with the slash that means its contents."""
    return os.fsencode(path) + b"/"


def command(base: Path, *arguments: str | bytes | Path, **more: Any) -> Process:
    """``ftx send`` with these arguments, to its end."""
    with Process(base, "send", *arguments, **more) as process:
        process.wait()
    return process


def entries(found: list[Any]) -> dict[bytes, events.EntryEnded]:
    """How each entry ended, by path."""
    return {event.path: event for event in found if isinstance(event, events.EntryEnded)}


def failed(found: list[Any]) -> dict[bytes, int]:
    """The entries that failed, with their exit codes."""
    return {path: event.code for path, event in entries(found).items() if event.state == "failed"}


# --- where it goes -------------------------------------------------------------------------------------


def test_a_folder_goes_below_the_destination(base: Path, tree: Path) -> None:
    with Receiver(base) as receiver:
        sent = send(base, tree, receiver.port)
        assert sent.wait() == 0, sent.err
        assert list(below(receiver.into)) == [b"tree", *(b"tree/" + path for path in below(tree))]
        assert_same(tree, receiver.into / "tree")


def test_a_trailing_slash_means_the_contents(base: Path, tree: Path) -> None:
    with Receiver(base) as receiver:
        sent = send(base, slash(tree), receiver.port)
        assert sent.wait() == 0, sent.err
        assert list(below(receiver.into)) == list(below(tree))
        assert_same(tree, receiver.into, top=False)


def test_a_dot_at_the_end_means_the_contents(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, slash(tree) + b".").code == 0
        assert_same(tree, receiver.into, top=False)


def test_the_destination_itself_is_not_the_senders_to_change(base: Path, tree: Path) -> None:
    tree.chmod(0o700)
    os.utime(tree, ns=(0, LONG_AGO_NS))
    with LocalReceiver(base) as receiver:
        receiver.into.chmod(0o755)
        assert run(base, receiver.port, slash(tree)).code == 0
        info = receiver.into.stat()
        assert stat.S_IMODE(info.st_mode) == 0o755
        assert info.st_mtime_ns != LONG_AGO_NS


def test_into_a_folder_of_the_remote(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        for path, place in ((tree, "a/b c/tree"), (slash(tree), "a/b c")):
            assert run(base, receiver.port, path, folder="a/b c").code == 0
            assert (receiver.into / place / "sub" / "three").read_bytes() == b"third"


def test_a_relative_path(base: Path, tree: Path) -> None:
    """Only its last name counts at the destination."""
    with Receiver(base) as receiver:
        assert command(base, "--port", str(receiver.port), "tree/sub", "tree/../tree/one", "127.0.0.1").wait() == 0
        assert list(below(receiver.into)) == [b"one", b"sub", b"sub/deeper", b"sub/deeper/four", b"sub/three"]


def test_several_paths(base: Path, tree: Path) -> None:
    """Files, a folder and a folder's contents in one run."""
    fill(base / "file", MIB + 1)
    (base / "more").mkdir()
    (base / "more" / "inside").write_bytes(b"x")
    with Receiver(base) as receiver:
        sent = command(base, "--port", str(receiver.port), "file", tree, "more/", "127.0.0.1")
        assert sent.wait() == 0, sent.err
        assert_same(tree, receiver.into / "tree")
        top = {path for path in below(receiver.into) if b"/" not in path}
        assert top == {b"file", b"inside", b"tree"}
        assert sent.finished["files"] == FILES + 2


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        ("tree/one other/one", "one"),
        ("tree x/tree", "tree"),
        ("tree tree", "tree"),
        ("tree tree/../tree", "tree"),
        ("tree/ other/", "one"),
        ("tree/ other/one", "one"),
        ("tree/one tree/two other/ tree/link", "one"),
        ("x/tree x/", "tree"),
    ],
)
def test_G11_two_paths_that_land_on_one_name(base: Path, tree: Path, paths: str, name: str) -> None:
    """Refused before anything is sent."""
    for folder in (base / "other", base / "x" / "tree"):
        folder.mkdir(parents=True)
        (folder / "one").write_bytes(b"another")
    with LocalReceiver(base) as receiver:
        before = sorted(os.listdir(receiver.into))
        finished = run(base, receiver.port, *(f"{base}/{path}" for path in paths.split()))
        assert finished.code == 2, finished.message
        assert name in finished.message
        assert sorted(os.listdir(receiver.into)) == before
    assert not list(below(receiver.into))
    assert not receiver.of_type(events.SessionUp)


def test_G11_two_paths_that_land_on_one_name_on_the_command_line(base: Path, tree: Path) -> None:
    """Nobody is called."""
    sent = command(base, "--port", "1", "tree", tree / "one", "./tree", "127.0.0.1")
    assert sent.wait() == 2, sent.err
    assert "tree" in sent.finished["message"]


def test_a_path_that_is_missing_fails_alone(base: Path, tree: Path) -> None:
    with Receiver(base) as receiver:
        sent = command(base, "--port", str(receiver.port), tree, "missing", tree / "one", "127.0.0.1")
        assert sent.wait() == 9, sent.err
        assert_same(tree, receiver.into / "tree")
        assert (receiver.into / "one").read_bytes() == b"first"
        (event,) = [event for event in sent.of_type("entry") if event["state"] == "failed"]
        assert (event["path"], event["code"]) == ("missing", 6)
        assert (sent.finished["files"], sent.finished["failed"]) == (FILES + 1, 1)


def test_nothing_but_missing_paths_has_their_code(base: Path) -> None:
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, base / "missing", base / "gone")
        assert (finished.code, finished.failed) == (6, 2), finished.message
        assert not list(below(receiver.into))


@pytest.mark.parametrize("contents", [False, True], ids=["LINK", "LINK/"])
def test_a_link_on_the_command_line_is_followed(base: Path, tree: Path, contents: bool) -> None:
    """As scp does it."""
    (base / "shortcut").symlink_to("tree")
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, slash(base / "shortcut") if contents else base / "shortcut").code == 0
        place = receiver.into if contents else receiver.into / "shortcut"
        assert not place.is_symlink()
        assert_same(tree, place, top=not contents)


def test_a_link_to_nowhere_on_the_command_line(base: Path) -> None:
    (base / "dangling").symlink_to("missing")
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, base / "dangling").code == 6
        assert not list(below(receiver.into))


# --- what is in it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("contents", [False, True], ids=["DIR", "DIR/"])
def test_an_empty_folder(base: Path, contents: bool) -> None:
    source = base / "empty"
    source.mkdir(mode=0o751)
    os.utime(source, ns=(0, LONG_AGO_NS))
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, slash(source) if contents else source)
        assert (finished.code, finished.files, finished.failed) == (0, 0, 0), finished.message
        if contents:
            assert not list(below(receiver.into))
        else:
            assert_same(source, receiver.into / "empty")


def test_folders_in_folders_and_nothing_else(base: Path) -> None:
    top = base / "top"
    for place in ("a/b/c", "a/d", "e"):
        (top / place).mkdir(parents=True)
    with LocalReceiver(base) as receiver:
        for again in range(2):
            finished = run(base, receiver.port, top)
            assert (finished.code, finished.files, finished.bytes_total) == (0, 0, 0), again
            assert_same(top, receiver.into / "top")


def test_links_are_sent_as_links(base: Path) -> None:
    """Whatever they point to: a file, a folder, nothing, themselves, outside; with times of their own."""
    top = base / "top"
    (top / "folder").mkdir(parents=True)
    (top / "file").write_bytes(b"x")
    targets = [b"file", b"folder", b"missing", b"loop", b"..", b"/", b"/etc/passwd", b"\xff\n", b"t" * 4095, b"./file/"]
    for number, target in enumerate(targets):
        link = os.fsencode(top) + b"/%d" % number
        os.symlink(target, link)
        os.utime(link, ns=(0, LONG_AGO_NS + number), follow_symlinks=False)
    (top / "loop").symlink_to("loop")
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, top)
        assert (finished.code, finished.files, finished.failed) == (0, len(targets) + 2, 0), finished.message
        assert_same(top, receiver.into / "top")
        found: list[api.Event] = []
        again = run(base, receiver.port, top, on_event=found.append)
        assert (again.code, again.skipped) == (0, len(targets) + 2)
        assert {event.state for event in entries(found).values()} == {"skipped"}


def test_a_link_that_points_elsewhere_now(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        (tree / "link").unlink()
        (tree / "link").symlink_to("two")
        finished = run(base, receiver.port, tree)
        assert (finished.code, finished.skipped) == (0, FILES - 1)
        assert_same(tree, receiver.into / "tree")


def test_modes_of_files_and_folders(base: Path) -> None:
    top = base / "top"
    top.mkdir()
    for mode in (0o777, 0o755, 0o700, 0o555, 0o500, 0o1777, 0o2755, 0o4711, 0o7777):
        folder = top / f"folder-{mode:o}"
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
        (folder / "file").chmod(mode)
        folder.chmod(mode)
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, top).code == 0
        theirs = snapshot(receiver.into / "top")
        for path, node in snapshot(top).items():
            assert theirs[path].mode == node.mode & 0o777, path


def test_G6_setuid_setgid_and_sticky_of_a_folder_are_not_carried(base: Path) -> None:
    top = base / "top"
    top.mkdir()
    top.chmod(0o7755)
    with LocalReceiver(base) as receiver:
        for _ in range(2):
            assert run(base, receiver.port, top).code == 0
            assert stat.S_IMODE((receiver.into / "top").stat().st_mode) == 0o755


def test_a_mode_alone_is_brought_up_to_date(base: Path, tree: Path) -> None:
    """Of a file and of a folder; nothing is sent for it."""
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        (tree / "one").chmod(0o751)
        (tree / "sub").chmod(0o711)
        (tree / "empty").chmod(0o700)
        finished = run(base, receiver.port, tree)
        assert (finished.code, finished.skipped, finished.bytes_sent) == (0, FILES, 0)
        assert_same(tree, receiver.into / "tree")


@pytest.mark.parametrize("mtime_ns", [0, 1, LONG_AGO_NS, -1_500_000_001, 2**32 * 10**9 + 999_999_999])
def test_times_to_the_nanosecond(base: Path, tree: Path, mtime_ns: int) -> None:
    paths = [tree / os.fsdecode(path) for path in below(tree)]
    for number, path in enumerate([*reversed(paths), tree]):
        os.utime(path, ns=(0, mtime_ns + number * 10**9), follow_symlinks=False)
    ours = snapshot(tree)
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        assert snapshot(receiver.into / "tree") == ours
        assert run(base, receiver.port, tree).skipped == FILES


def test_a_folders_time_when_a_later_run_adds_to_it(base: Path, tree: Path) -> None:
    """The new name changes the time at the destination; it is set again, also up to the top."""
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        for folder in ("sub/deeper", "sub", "."):
            (tree / folder / "new").write_bytes(b"more")
            os.utime(tree / folder, ns=(0, LONG_AGO_NS))
        assert run(base, receiver.port, tree).code == 0
        assert (receiver.into / "tree" / "sub" / "deeper").stat().st_mtime_ns == LONG_AGO_NS
        assert_same(tree, receiver.into / "tree")


def test_a_folders_time_that_was_changed_at_the_destination(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        os.utime(receiver.into / "tree" / "sub")
        (receiver.into / "tree" / "empty").chmod(0o700)
        assert run(base, receiver.port, tree).code == 0
        assert_same(tree, receiver.into / "tree")


def test_names(base: Path) -> None:
    """Of files, folders and links."""
    top = os.fsencode(base) + b"/\xfftop"
    for number, name in enumerate(NAMES):
        name %= number
        os.makedirs(top + b"/" + name + b"/below")
        for path in (b"/" + name + b"/below/" + name, b"/" + name + b"/file"):
            with open(top + path, "wb") as file:  # noqa: PTH123  bytes
                file.write(name)
        os.symlink(name, top + b"/" + name + b"/link")
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, top)
        assert (finished.code, finished.files) == (0, 3 * len(NAMES)), finished.message
        assert_same(top, os.fsencode(receiver.into) + b"/\xfftop")


def test_a_folder_with_a_leading_dash_on_the_command_line(base: Path, tree: Path) -> None:
    tree.rename(base / "--port")
    with Receiver(base) as receiver:
        sent = command(base, "--port", str(receiver.port), "--", "--port", "127.0.0.1")
        assert sent.wait() == 0, sent.err
        assert_same(base / "--port", receiver.into / "--port")


def _deep(top: Path, depth: int, name: bytes) -> None:
    """Folders in folders, made one from the other: the whole path is longer than a system call takes."""
    os.mkdir(top)
    fd = os.open(top, os.O_RDONLY)
    for level in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        if level % 100 == 99:
            os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def test_a_very_deep_tree(shm: Path) -> None:
    top = shm / "top"
    try:
        _deep(top, 300, b"abc")
        with LocalReceiver(shm) as receiver:
            finished = run(shm, receiver.port, top)
            assert (finished.code, finished.files) == (0, 3), finished.message
            assert_same(top, receiver.into / "top")
            again = run(shm, receiver.port, top)
            assert (again.code, again.skipped) == (0, 3)
    finally:
        subprocess.run(["rm", "-rf", top, shm / "into"], check=True)


@pytest.mark.parametrize("exists", ["keep", "replace"])
@pytest.mark.parametrize(
    ("depth", "stack"), [(320, 300), pytest.param(1005, 1000, marks=pytest.mark.long)], ids=["low-stack", "python's"]
)
def test_what_changes_below_more_folders_than_a_stack_is_deep(shm: Path, exists: str, depth: int, stack: int) -> None:
    """Each folder is looked at when the one in it has its answer. Time goes with the square of the depth."""
    top, usual = shm / "top", sys.getrecursionlimit()
    try:
        _deep(top, depth, b"d")
        sys.setrecursionlimit(stack)
        with LocalReceiver(shm, exists=api.Exists(exists)) as receiver:
            assert run(shm, receiver.port, top).code == 0
            fill(top / "/".join(["d"] * (depth // 2)) / "late", 10)
            finished = run(shm, receiver.port, top)
            assert finished.code == 0, finished.message
            assert finished.files - finished.skipped == 1
    finally:
        sys.setrecursionlimit(usual)
        subprocess.run(["rm", "-rf", top, shm / "into"], check=True)


def test_G11_a_tree_deeper_than_a_path_can_be(shm: Path) -> None:
    """What is too deep fails alone."""
    top = shm / "top"
    try:
        _deep(top, 90, b"n" * 50)
        (top / "file").write_bytes(b"x")
        found: list[api.Event] = []
        with LocalReceiver(shm) as receiver:
            finished = run(shm, receiver.port, top, on_event=found.append)
            assert finished.code == 9, finished.message
            assert finished.files == 1
            assert failed(found)
            assert (receiver.into / "top" / "file").read_bytes() == b"x"
            assert (receiver.into / "top" / "/".join(["n" * 50] * 70)).is_dir()
    finally:
        subprocess.run(["rm", "-rf", top, shm / "into"], check=True)


def test_many_files(base: Path) -> None:
    """More than are ever outstanding; in one folder and in many."""
    top = base / "top"
    for number in range(40):
        (top / f"{number}").mkdir(parents=True)
    for number in range(1500):
        (top / (f"{number}.top" if number % 2 else f"{number % 40}/{number}.txt")).write_bytes(b"%d" % number)
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, top)
        assert (finished.code, finished.files) == (0, 1500), finished.message
        assert_same(top, receiver.into / "top")
        again = run(base, receiver.port, top)
        assert (again.code, again.skipped, again.bytes_sent) == (0, 1500, 0)


# --- what cannot be sent -------------------------------------------------------------------------------


def test_special_files_are_passed_over(base: Path, tree: Path) -> None:
    """Reported, not waited for, and no failure."""
    specials = [b"tree/fifo", b"tree/sub/socket"]
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sub" / "socket"))
    if os.geteuid() == 0:
        specials.append(b"tree/null")
        os.mknod(tree / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    found: list[api.Event] = []
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, tree, on_event=found.append)
        assert (finished.code, finished.failed) == (0, 0), finished.message
        for special in specials:
            ended = entries(found)[special]
            assert ended.state == "skipped"
            assert ended.message
            assert not (receiver.into / special.decode()).exists()
        assert nothing_to_do(tree, receiver.into / "tree") == []


def test_a_name_that_ftx_keeps_for_itself_is_left_out(base: Path, tree: Path) -> None:
    """At any depth, as a file and as a folder; the others go on."""
    (tree / ".ftx").mkdir()
    (tree / ".ftx" / "secret").write_bytes(b"x")
    (tree / "sub" / ".FTX").write_bytes(b"x")
    (tree / "sub" / ".ftx-1.part").write_bytes(b"x")
    (tree / "sub" / ".ftx-1.party").write_bytes(b"x")
    found: list[api.Event] = []
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, tree, on_event=found.append)
        assert (finished.code, finished.failed) == (0, 0), finished.message
        reported = {event.path for event in found if isinstance(event, events.Warn)}
        reported |= {path for path, event in entries(found).items() if event.state == "skipped"}
        assert reported == {b"tree/.ftx", b"tree/sub/.FTX", b"tree/sub/.ftx-1.part"}
        arrived = set(below(receiver.into / "tree"))
        kept = {b".ftx", b".ftx/secret", b"sub/.FTX", b"sub/.ftx-1.part"}
        assert arrived == set(below(tree)) - kept


def test_a_destination_can_be_a_source(base: Path, tree: Path) -> None:
    """Its own ``.ftx`` is not sent on."""
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        assert (receiver.into / ".ftx").is_dir()
        with LocalReceiver(base, dir=base / "onwards") as next_one:
            assert run(base, next_one.port, slash(receiver.into)).code == 0
            assert_same(tree, next_one.into / "tree")


@needs_root
@pytest.mark.parametrize("what", ["one", "sub", "sub/deeper"])
def test_G11_what_cannot_be_read_fails_alone(base: Path, tree: Path, what: str) -> None:
    base.chmod(0o755)
    theirs = base / "nobody"
    theirs.mkdir()
    (tree / what).chmod(0)
    with Receiver(base, "--secret-file", base / "key") as receiver:
        shutil.copy(base / "key", theirs / "key")
        for path in (theirs, theirs / "key"):
            os.chown(path, NOBODY, NOBODY)
        config = {"FTX_CONFIG_DIR": str(theirs)}
        sent = send(base, tree, receiver.port, "--secret-file", theirs / "key", uid=NOBODY, environ=config)
        assert sent.wait() == 9, sent.err
        wrong = {event["path"]: event["code"] for event in sent.of_type("entry") if event["state"] == "failed"}
        assert wrong == {f"tree/{what}": 6}
        assert sent.finished["failed"] == 1
        assert "Permission denied" in sent.err
        ours = {path for path in below(tree) if not path.startswith(os.fsencode(what))}
        assert set(below(receiver.into / "tree")) - {os.fsencode(what)} == ours


def test_G11_what_vanishes_fails_alone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, and gone when it is its turn."""
    top = base / "top"
    top.mkdir()
    for number in range(1500):
        (top / f"{number:04d}").write_bytes(b"x")
    found: list[api.Event] = []

    real = Source.read_small

    def read_small(source: Source, *args: Any) -> Any:
        if source.name == b"0000":
            (top / "1499").unlink()  # it is not offered before this is done
        return real(source, *args)

    with LocalReceiver(base) as receiver:
        with monkeypatch.context() as patch:
            patch.setattr(Source, "read_small", read_small)
            finished = run(base, receiver.port, top, on_event=found.append)
        assert finished.code == 9, finished.message
        assert failed(found) == {b"top/1499": 6}
        assert (finished.files, finished.failed) == (1499, 1)
        # The folder's time is the one that it had when it was listed.
        assert_same(top, receiver.into / "top", top=False)
        assert run(base, receiver.port, top).code == 0
        assert_same(top, receiver.into / "top")


def test_who_does_not_ask_for_all_is_told_of_what_failed_alone(base: Path) -> None:
    top = base / "top"
    (top / "folder").mkdir(parents=True)
    (base / "into" / "top" / "a").mkdir(parents=True)  # where a file is to go
    for name in ("a", "b", "folder/c"):
        (top / name).write_bytes(b"x")
    found: list[api.Event] = []
    with LocalReceiver(base, tell_all=False) as receiver:
        finished = run(base, receiver.port, top, on_event=found.append, tell_all=False)
        assert (finished.code, finished.files, finished.failed) == (9, 2, 1)
    for told in (found, receiver.events):
        assert {path: event.code for path, event in entries(told).items()} == {b"top/a": 7}
        assert any(isinstance(event, events.Finished) for event in told)


@pytest.mark.parametrize("lanes", [1, 3])
def test_g8_few_partials_are_open_at_a_time(base: Path, monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    """However many files are offered; and what is small does not wait for them."""
    monkeypatch.setattr(look, "MAX_PARTIALS", 2)
    most = 0
    add = UnderWay.add

    def added(under_way: UnderWay, *args: Any) -> None:
        nonlocal most
        add(under_way, *args)
        most = max(most, under_way.count)

    monkeypatch.setattr(UnderWay, "add", added)
    top = base / "top"
    top.mkdir()
    for number in range(9):
        fill(top / f"large{number}", MIB + number, number)
        fill(top / f"small{number}", number, number)
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, top, lanes=lanes).code == 0
        assert_same(top, receiver.into / "top")
        assert receiver.of_type(events.Paused) == []  # there is room enough
    assert most == 2


def test_what_is_left_out_or_kept_is_counted_apart(base: Path) -> None:
    top = base / "top"
    (top / ".ftx").mkdir(parents=True)
    os.mkfifo(top / "fifo")
    for name in ("kept", "new"):
        (top / name).write_bytes(b"x")
    (base / "into" / "top").mkdir(parents=True)
    (base / "into" / "top" / "kept").write_bytes(b"other")
    with LocalReceiver(base, exists=Exists.KEEP) as receiver:
        finished = run(base, receiver.port, top)
    assert finished.code == 0
    assert (finished.files, finished.skipped, finished.kept, finished.left_out) == (2, 1, 1, 2)


@needs_root
def test_read_only_folders_arrive_at_who_is_not_root(base: Path) -> None:
    """Also what is in them, and what a later run adds."""
    base.chmod(0o777)
    top = base / "top"
    (top / "locked" / "below").mkdir(parents=True)
    (top / "locked" / "file").write_bytes(b"x")
    (top / "locked" / "below" / "file").write_bytes(b"x")
    for folder in (top / "locked" / "below", top / "locked"):
        folder.chmod(0o555)
    with Receiver(base, "--secret-file", base / "key", uid=NOBODY) as receiver:
        for again in range(2):
            sent = send(base, top, receiver.port, "--secret-file", base / "key")
            assert sent.wait() == 0, sent.err
            assert_same(top, receiver.into / "top")
            (top / "locked" / "below" / f"more {again}").write_bytes(b"x")


# --- a second run --------------------------------------------------------------------------------------


def test_a_second_run_reads_no_data(base: Path, tree: Path) -> None:
    """Size and time decide: contents that changed under them are not looked at."""
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        for name, old in (("one", b"first"), ("sub/three", b"third")):
            info = (tree / name).stat()
            (tree / name).write_bytes(old.swapcase())
            os.utime(tree / name, ns=(0, info.st_mtime_ns))
        again = run(base, receiver.port, tree)
        assert (again.code, again.files, again.skipped, again.bytes_sent) == (0, FILES, FILES, 0)
        assert again.bytes_reused == again.bytes_total == size_of(snapshot(tree))
        assert (receiver.into / "tree" / "one").read_bytes() == b"first"
        assert (receiver.into / "tree" / "sub" / "three").read_bytes() == b"third"


def test_a_second_run_opens_no_file(base: Path, tree: Path) -> None:
    """A file that was read has another time of access; one that was only looked at has not."""
    for path in (tree / "one", tree / "sub" / "three"):
        os.utime(path, ns=(1, LONG_AGO_NS))
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        for path in (tree / "one", tree / "sub" / "three"):
            os.utime(path, ns=(1, LONG_AGO_NS))
        assert run(base, receiver.port, tree).skipped == FILES
        assert (tree / "one").stat().st_atime_ns == (tree / "sub" / "three").stat().st_atime_ns == 1


def test_what_is_there_and_not_in_the_source_stays(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        (receiver.into / "tree" / "sub" / "other").write_bytes(b"theirs")
        (tree / "one").unlink()
        assert run(base, receiver.port, tree).code == 0
        assert (receiver.into / "tree" / "sub" / "other").read_bytes() == b"theirs"
        assert (receiver.into / "tree" / "one").read_bytes() == b"first"
        assert_same(tree, receiver.into / "tree", delete=False)


@pytest.mark.parametrize("policy", ["replace", "keep", "rename", "fail"])
def test_policy(base: Path, tree: Path, policy: str) -> None:
    """Folders merge; of the files in them the policy holds for each that is there already and differs."""
    into = base / "into" / "tree"
    (into / "sub").mkdir(parents=True)
    (into / "sub" / "theirs").write_bytes(b"theirs")
    (into / "one").write_bytes(b"older")
    (into / "sub" / "three").write_bytes(b"older")
    (into / "link").symlink_to("two")
    found: list[api.Event] = []
    with LocalReceiver(base, exists=Exists(policy)) as receiver:
        first = run(base, receiver.port, tree, on_event=found.append)
        again = run(base, receiver.port, tree)
        assert first.code == again.code == (9 if policy == "fail" else 0), first.message
    assert (into / "two").read_bytes() == b"second"
    assert (into / "sub" / "deeper" / "four").read_bytes() == b"fourth"
    assert (into / "sub" / "theirs").read_bytes() == b"theirs"
    assert (into / "empty").is_dir()
    new = policy == "replace"
    assert (into / "one").read_bytes() == (b"first" if new else b"older")
    assert (into / "sub" / "three").read_bytes() == (b"third" if new else b"older")
    assert (into / "link").readlink() == Path("sub/three" if new else "two")
    beside = {path for path in below(into) if path.endswith(b".1")}
    assert beside == ({b"one.1", b"sub/three.1", b"link.1"} if policy == "rename" else set())
    if beside:
        assert (into / "one.1").read_bytes() == b"first"
        assert (into / "link.1").readlink() == Path("sub/three")
    assert not [path for path in below(into) if path.endswith(b".2")]
    for finished in (first, again):
        assert finished.failed == (3 if policy == "fail" else 0)
        assert finished.files + finished.failed == FILES
    assert first.skipped == (3 if policy == "keep" else 0)
    assert again.skipped == (FILES - 3 if policy == "fail" else FILES)
    assert set(failed(found).values()) <= {7}


# --- in the way ----------------------------------------------------------------------------------------


@pytest.fixture
def outside(base: Path) -> Path:
    """A folder beside the destination that nobody may touch."""
    folder = base / "outside"
    (folder / "deeper").mkdir(parents=True)
    (folder / "three").write_bytes(b"not to be touched")
    for path in (folder / "three", folder / "deeper", folder):
        os.utime(path, ns=(0, LONG_AGO_NS))
    return folder


def _in_the_way(base: Path, tree: Path, receiver: LocalReceiver, spoilt: set[bytes], *, top: bool = True) -> None:
    """A run in which exactly these entries are refused, and all others arrive, ``top`` with the tree's own folder."""
    found: list[api.Event] = []
    finished = run(base, receiver.port, tree, on_event=found.append)
    assert finished.code == 9, finished.message
    refused = failed(found)
    assert set(refused.values()) == {7}
    assert {path.removeprefix(b"tree/") for path in refused} == spoilt
    assert all(entries(found)[path].message for path in refused)
    ours, theirs = snapshot(tree), snapshot(receiver.into / "tree")
    for path in spoilt | ({b""} if not top else set()):
        del ours[path]
    # The time of the folder that has something else in it is right all the same.
    assert {path: theirs[path] for path in ours} == ours
    lost = sum(snapshot(tree)[path].kind != "folder" for path in spoilt)
    assert finished.files == FILES - lost
    assert lost <= finished.failed <= len(spoilt)


SUB = {b"sub", b"sub/three", b"sub/deeper", b"sub/deeper/four"}


def test_G11_a_file_in_the_way_of_a_folder(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        (receiver.into / "tree").mkdir()
        (receiver.into / "tree" / "sub").write_bytes(b"a file")
        (receiver.into / "tree" / "empty").write_bytes(b"a file")
        _in_the_way(base, tree, receiver, SUB | {b"empty"})
        assert (receiver.into / "tree" / "sub").read_bytes() == b"a file"
        assert (receiver.into / "tree" / "empty").read_bytes() == b"a file"


def test_G11_a_folder_in_the_way_of_a_file_and_of_a_link(base: Path, tree: Path) -> None:
    with LocalReceiver(base) as receiver:
        for name in ("one", "link", "sub/deeper/four"):
            (receiver.into / "tree" / name / "inside").mkdir(parents=True)
        _in_the_way(base, tree, receiver, {b"one", b"link", b"sub/deeper/four"})
        assert (receiver.into / "tree" / "one" / "inside").is_dir()
        assert (receiver.into / "tree" / "link" / "inside").is_dir()


@pytest.mark.parametrize("policy", ["replace", "keep", "rename"])
def test_G6_a_link_in_the_way_of_a_folder(base: Path, tree: Path, outside: Path, policy: str) -> None:
    """It is refused and not followed, neither for what is in the folder nor for its mode and time."""
    before = snapshot(outside)
    with LocalReceiver(base, exists=Exists(policy)) as receiver:
        (receiver.into / "tree").mkdir()
        (receiver.into / "tree" / "sub").symlink_to(outside)
        (receiver.into / "tree" / "empty").symlink_to(outside / "deeper")
        # Who does not replace leaves a folder that is there as it is.
        _in_the_way(base, tree, receiver, SUB | {b"empty"}, top=policy == "replace")
        assert (receiver.into / "tree" / "sub").readlink() == outside
        assert (receiver.into / "tree" / "empty").is_symlink()
    assert snapshot(outside) == before


def test_G6_a_link_deeper_down(base: Path, tree: Path, outside: Path) -> None:
    before = snapshot(outside)
    with LocalReceiver(base) as receiver:
        (receiver.into / "tree" / "sub").mkdir(parents=True)
        (receiver.into / "tree" / "sub" / "deeper").symlink_to("../../../outside")
        _in_the_way(base, tree, receiver, {b"sub/deeper", b"sub/deeper/four"})
    assert snapshot(outside) == before


def test_G6_a_link_in_the_way_of_the_whole_tree(base: Path, tree: Path, outside: Path) -> None:
    before = snapshot(outside)
    with LocalReceiver(base) as receiver:
        (receiver.into / "tree").symlink_to(outside)
        finished = run(base, receiver.port, tree)
        assert (finished.code, finished.files) == (7, 0), finished.message
        assert list(below(receiver.into)) == [b"tree"]
    assert snapshot(outside) == before


def test_G6_a_link_in_the_way_of_files_and_links_is_replaced(base: Path, tree: Path, outside: Path) -> None:
    before = snapshot(outside)
    with LocalReceiver(base) as receiver:
        (receiver.into / "tree" / "sub").mkdir(parents=True)
        for name in ("one", "link", "sub/three"):
            (receiver.into / "tree" / name).symlink_to(outside / "three")
        assert run(base, receiver.port, tree).code == 0
        assert_same(tree, receiver.into / "tree")
    assert snapshot(outside) == before


def test_G6_a_link_to_a_folder_takes_the_place_of_a_folders_name(base: Path, tree: Path, outside: Path) -> None:
    """What was a folder is a link now, and the other way round: neither is taken for the other."""
    before = snapshot(outside)
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, tree).code == 0
        shutil.rmtree(tree / "sub")
        (tree / "sub").symlink_to(outside)
        found: list[api.Event] = []
        assert run(base, receiver.port, tree, on_event=found.append).code == 9
        assert failed(found) == {b"tree/sub": 7}
        assert (receiver.into / "tree" / "sub" / "three").read_bytes() == b"third"
    assert snapshot(outside) == before


# --- JSON ----------------------------------------------------------------------------------------------


def test_json_events(base: Path, tree: Path) -> None:
    """Paths are relative to the destination; what is no text comes as bytes too; the numbers add up."""
    odd = os.fsencode(tree) + b"/sub/\xff\xfe"
    with open(odd, "wb") as file:  # noqa: PTH123  bytes
        file.write(b"odd")
    with Receiver(base) as receiver:
        sent = send(base, tree, receiver.port, host="127.0.0.1:in/side")
        assert sent.wait() == 0, sent.err
        receiver.event("session_end")
        for side in (sent, receiver):
            ended = side.of_type("entry")
            assert all(event["path"].startswith("in/side/tree") or side is sent for event in ended)
            kinds = {event["path"].removeprefix("in/side/"): event.get("kind") for event in ended}
            assert kinds["tree/one"] == kinds["tree/sub/deeper/four"] == "file"
            assert kinds["tree/link"] == "link"
            assert {kinds[path] for path in ("tree", "tree/sub", "tree/empty") if path in kinds} <= {"folder"}
            coded = [base64.b64decode(event["path_b64"]) for event in ended if "path_b64" in event]
            assert [path.removeprefix(b"in/side/") for path in coded] == [b"tree/sub/\xff\xfe"]
            assert {event["state"] for event in ended} == {"done"}
        finished = sent.finished
        assert (finished["files"], finished["failed"], finished["skipped"]) == (FILES + 1, 0, 0)
        total = size_of(snapshot(tree))
        assert (finished["bytes_total"], finished["bytes_sent"], finished["bytes_reused"]) == (total, total, 0)
        again = send(base, tree, receiver.port, host="127.0.0.1:in/side")
        of_files = [event for event in again.of_type("entry") if event["kind"] != "folder"]
        assert len(of_files) == FILES + 1
        assert {event["state"] for event in of_files} == {"skipped"}
        assert (again.finished["files"], again.finished["skipped"]) == (FILES + 1, FILES + 1)
        receiver.stop()


def test_a_run_without_json_sums_up_in_a_line(base: Path, tree: Path) -> None:
    with Receiver(base) as receiver:
        sent = send(base, tree, receiver.port, json_lines=False)
        assert sent.wait() == 0, sent.err
        assert f"{FILES} files done" in sent.err
        assert not sent.out


# --- any tree ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "lanes"), [(seed, 1) for seed in SEEDS] + [(seed, 4) for seed in SEEDS[::3]])
def test_any_tree(base: Path, seed: int, lanes: int) -> None:
    """It arrives, and two judges find nothing to do; a second run sends nothing."""
    top = random_tree(base / "tree", seed)
    ours = snapshot(top)
    with LocalReceiver(base) as receiver:
        finished = run(base, receiver.port, top, lanes=lanes)
        assert (finished.code, finished.failed) == (0, 0), finished.message
        assert finished.files == len(files_in(ours))
        assert finished.bytes_total == size_of(ours)
        assert_same(top, receiver.into / "tree")
        with Proxy(receiver.port) as proxy:
            again = run(base, proxy.port, top, lanes=lanes)
            assert (again.code, again.bytes_sent) == (0, 0)
            assert again.files == again.skipped == len(files_in(ours))
            assert proxy.up <= OVERHEAD + len(ours) * FRAMES
        assert_same(top, receiver.into / "tree")
        assert snapshot(top) == ours
        assert not partials(receiver.into) and not journals(receiver.into)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_change(base: Path, seed: int) -> None:
    """Only what changed is sent."""
    lanes = 4 if seed % 3 == 2 else 1
    top = random_tree(base / "tree", seed, edges=1)
    with LocalReceiver(base) as receiver:
        assert run(base, receiver.port, top, lanes=lanes).code == 0
        for step in range(3):
            before = files_in(snapshot(top))
            change_tree(top, 10 * seed + step)
            after = files_in(snapshot(top))
            stamps = {path: (node.kind, node.mtime_ns, node.size, node.content) for path, node in before.items()}
            changed = {
                path: node
                for path, node in after.items()
                if (node.kind, node.mtime_ns, node.size, node.content) != stamps.get(path)
            }
            found: list[api.Event] = []
            finished = run(base, receiver.port, top, lanes=lanes, on_event=found.append)
            assert (finished.code, finished.failed) == (0, 0), finished.message
            assert (finished.files, finished.skipped) == (len(after), len(after) - len(changed))
            assert finished.bytes_sent <= size_of(changed)
            done = {event.path.removeprefix(b"tree/") for event in entries(found).values() if event.state == "done"}
            assert done & after.keys() == changed.keys()
            assert_same(top, receiver.into / "tree", delete=False)


# --- broken off ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heavy() -> Iterator[Path]:
    """A tree of some 60 MiB in large, middling and small files, whose times are old enough to be trusted."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ftx-trees-", dir=memory))
    try:
        top = random_tree(folder / "tree", 99, edges=4)
        top.chmod(0o755)
        (top / "large").mkdir()
        (top / "many").mkdir()
        for number in range(8):
            fill(top / "large" / f"{number}", 5 * MIB + number, seed=number)
        for number in range(300):
            fill(top / "many" / f"{number}", 20_000 + number, seed=number)
        settled(fill(top / "large" / "last", 8 * MIB))
        yield top
    finally:
        unlock(folder)
        shutil.rmtree(folder)


def _nothing_half_done(source: Path, copy: Path) -> None:
    """G1: whatever has its name is whole."""
    if copy.exists():
        ours = snapshot(source)
        for path, node in files_in(snapshot(copy)).items():
            assert node == ours[path], path


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("victim", ["sender", "receiver", "both"])
def test_G1_G2_sigkill(base: Path, heavy: Path, victim: str, lanes: int) -> None:
    """The same command again completes the tree; little is sent twice, as the proxy counts it."""
    total = size_of(snapshot(heavy))
    at = random.Random(f"{victim} {lanes}").randrange(24 * MIB, 40 * MIB) // (1 if lanes == 1 else lanes)
    options = ("--lanes", str(lanes), "--retry-for", "0")
    first: Future[Process] = Future()

    def kill() -> None:
        if victim != "receiver":
            first.result().kill()
        if victim != "sender":
            receiver.kill()

    with Receiver(base) as receiver, Proxy(receiver.port, up=[Call(at, kill)], on=None) as proxy:
        with sender(base, heavy, proxy.port, *options) as process:
            first.set_result(process)
            assert process.wait() == (3 if victim == "receiver" else -signal.SIGKILL)
            proxy.up_faults = []
        _nothing_half_done(heavy, receiver.into / "tree")
        with Receiver(base) if victim != "sender" else receiver as survivor:
            proxy.target = ("127.0.0.1", survivor.port)
            second = sender(base, heavy, proxy.port, *options)
            with second:
                assert second.wait() == 0, second.err
            assert_same(heavy, survivor.into / "tree")
            assert not partials(survivor.into) and not journals(survivor.into)
        print(f"{victim}, {lanes} lanes, at {at / MIB:.0f} MiB: {(proxy.up - total) / MIB:.1f} MiB more than the tree")
        assert proxy.up <= total + 24 * MIB
        finished = second.finished
        assert finished["bytes_reused"] + finished["bytes_sent"] <= total
        assert finished["files"] == len(files_in(snapshot(heavy)))


@pytest.mark.parametrize("seed", range(3))
def test_G1_G2_sigkill_of_any_tree(base: Path, seed: int) -> None:
    """At any byte, several times, until it is done."""
    rng = random.Random(f"kill {seed}")
    top = random_tree(base / "tree", seed, edges=4)
    total = size_of(snapshot(top))
    with Receiver(base) as receiver, Proxy(receiver.port, on=None) as proxy:
        for _ in range(2):
            started: Future[Process] = Future()
            at = rng.randrange(200, total // 3)
            proxy.up_faults = [Call(at, lambda started=started: started.result().kill())]
            with sender(base, top, proxy.port, "--lanes", "1", "--retry-for", "0") as process:
                started.set_result(process)
                assert process.wait() in (0, -signal.SIGKILL)  # nothing may be left to do
            _nothing_half_done(top, receiver.into / "tree")
        proxy.up_faults = []
        last = send(base, top, proxy.port, "--lanes", "1")
        assert last.wait() == 0, last.err
        assert_same(top, receiver.into / "tree")
        assert proxy.up <= total * 2 + OVERHEAD + 3 * FRAMES * len(snapshot(top))


# --- lanes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes(base: Path, heavy: Path, lanes: int) -> None:
    """As many connections as were asked for, or fewer; both sides say how many."""
    with Receiver(base) as receiver, Proxy(receiver.port) as proxy:
        sent = send(base, heavy, proxy.port, "--lanes", str(lanes))
        assert sent.wait() == 0, sent.err
        assert_same(heavy, receiver.into / "tree")
        assert len(proxy.links) == sent.event("session")["lanes"] == receiver.event("session")["lanes"]
        assert 1 <= len(proxy.links) <= lanes
        # The first carries bulk until there are others, and no more.
        busy = [link for link in proxy.links[1:] if link.up.count > MIB]
        assert bool(busy) == (lanes > 1)
        assert lanes == 1 or proxy.links[0].up.count < sum(link.up.count for link in busy)


def test_lanes_of_one_file(base: Path) -> None:
    source = fill(base / "file", 40 * MIB + 17)
    with Receiver(base) as receiver, Proxy(receiver.port) as proxy:
        sent = send(base, source, proxy.port, "--lanes", "3")
        assert sent.wait() == 0, sent.err
        assert snapshot(base)[b"file"] == snapshot(base)[b"into/file"]
        assert len(proxy.links) == 3
        assert sum(link.up.count for link in proxy.links[1:]) > 20 * MIB


@pytest.mark.parametrize("number", ["0", "65", "-1", "many"])
def test_G11_how_many_lanes(base: Path, tree: Path, number: str) -> None:
    sent = send(base, tree, 1, "--lanes", number)
    assert sent.wait() == 2
    assert "lanes" in sent.err


class _Once:
    """A fault of many connections that breaks only the first which comes to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.happened = False

    def __call__(self) -> None:
        with self._lock:
            if self.happened:
                return
            self.happened = True
        raise ConnectionAbortedError


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_G2_one_lane_breaks(base: Path, heavy: Path, lanes: int) -> None:
    """The session ends, the next one goes on, and little is sent twice."""
    cut = _Once()
    total = size_of(snapshot(heavy))
    with LocalReceiver(base) as receiver, Proxy(receiver.port, up=[Call(5 * MIB, cut)], on=None) as proxy:
        found: list[api.Event] = []
        finished = run(base, proxy.port, heavy, lanes=lanes, retry_for_s=30.0, on_event=found.append)
        assert finished.code == 0, finished.message
        assert cut.happened
        assert [event for event in found if isinstance(event, events.Retry)]
        assert_same(heavy, receiver.into / "tree")
        assert proxy.up <= total + 24 * MIB
        assert finished.files == len(files_in(snapshot(heavy)))
        assert finished.failed == 0
        assert not partials(receiver.into) and not journals(receiver.into)


@pytest.mark.parametrize("seed", [1, 2])
def test_G2_lanes_break_again_and_again(base: Path, seed: int) -> None:
    """Every connection breaks after some bytes; as long as bytes move, it never gives up."""
    top = random_tree(base / "tree", 100 + seed, edges=3)
    at = random.Random(f"cut {seed}").randrange(3 * MIB // 2, 3 * MIB)

    def cut() -> None:
        raise ConnectionAbortedError

    with LocalReceiver(base) as receiver, Proxy(receiver.port, up=[Call(at, cut)], on=None) as proxy:
        finished = run(base, proxy.port, top, lanes=seed, retry_for_s=20.0)
        assert finished.code == 0, finished.message
        assert_same(top, receiver.into / "tree")


def test_G10_a_file_that_changes_in_a_tree(base: Path) -> None:
    """It is offered anew, behind its folder; the folder's time is right in the end."""
    top = base / "top"
    (top / "sub").mkdir(parents=True)
    for number, size in enumerate((6, 6, 6, 40)):
        fill(top / "sub" / f"{number}", size * MIB, seed=number)

    def change() -> None:
        fill(top / "sub" / "3", 5 * MIB, seed=77)

    # It changes when all others are done, so its folder waits for nothing else; and long before it is read to its end.
    with LocalReceiver(base) as receiver, Proxy(receiver.port, up=[Call(20 * MIB, change)]) as proxy:
        finished = run(base, proxy.port, top, lanes=1)
        assert finished.code == 0, finished.message
        assert (finished.files, finished.failed) == (4, 0)
        assert_same(top, receiver.into / "top")
