"""G6: what a sender of trees may call things. Nothing it says, and nothing it does meanwhile, leads outside."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ftx import api
from ftx.errors import DestinationError, IsFolder, NameRefused, ProtocolError
from ftx.net import handshake
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.options import Exists
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Kind
from ftx.protocol.messages import Role
from tests.foreign import foreign_peer
from tests.hostile import peer
from tests.support.local import LocalReceiver
from tests.support.trees import below, snapshot

MTIME_NS = 1_234_567_890_123_456_789
ROOT_OF_NOTHING = DigestName.XXH3_128.function(bytes(8))
OUTSIDE = b"outside"
#: Names that nobody else uses. A receiver that is led astray leaves them in one of these folders.
X, Y = b"ftx-was-here-x", b"ftx-was-here-y"
ASTRAY = (b"/", b"/tmp")
WORDS = {Kind.FILE: "file", Kind.FOLDER: "folder", Kind.SYMLINK: "link"}

#: Single components that no peer may use, anywhere.
BAD_COMPONENTS = {
    "dot": b".",
    "up": b"..",
    "nul": b"a\0b",
    "nul alone": b"\0",
    "nul behind": b"fine\0",
    "own": b".ftx",
    "own, upper": b".FTX",
    "own, mixed": b".fTx",
    "own, dot": b".ftx.",
    "own, space": b".ftx ",
    "own, dots and spaces": b".ftx. . .",
    "own, fullwidth": "．ｆｔｘ".encode(),
    "own, mathematical": ".𝐟𝓽𝖝".encode(),
    "own, circled": ".Ⓕⓣⓧ".encode(),
    "own, zero width": ".f\u200btx".encode(),
    "own, byte order mark": "\ufeff.ftx".encode(),
    "own, variation selector": ".ftx\ufe0f".encode(),
    "own, soft hyphen and dot": ".f\u00adtx.".encode(),
    "own, short name": b"FTX~1",
    "own, another short name": b"ftx~42",
    "partial": b".ftx-x.part",
    "partial, upper": b".FTX-X.PART",
    "partial, dot": b".ftx-x.part.",
    "partial, nothing between": b".ftx-.part",
    "partial, fullwidth": ".ftx-x．part".encode(),
}
#: Relative paths of several components that no peer may use, beside those with a bad component.
BAD_PATHS = {
    "absolute": b"/tmp",
    "root": b"/",
    "absolute, twice": b"//tmp",
    "up and out": b"../outside",
    "up, up": b"../..",
    "down and up": b"a/..",
    "down, up and out": b"a/../../outside",
    "empty component": b"a//b",
    "slash behind": b"a/",
    "slashes behind": b"a///",
    "slash before": b"/a",
    "dot before": b"./a",
    "dot between": b"a/./b",
    "long component": b"n" * 256,
    "long component behind": b"a/" + b"n" * 256,
    "own folder's contents": b".ftx/x",
    "own folder deeper down": b"a/.ftx/b",
}
BAD_NAMES = BAD_COMPONENTS | {
    "empty": b"",
    "slash": b"/",
    "absolute": b"/tmp/" + X,
    "slash before": b"/" + X,
    "slash behind": b"a/",
    "slash between": b"a/b",
    "up and out": b"../outside/x",
    "own folder's contents": b".ftx/x",
}
BAD_FOLDERS = (
    BAD_PATHS
    | {key: b"a/" + name + b"/b" for key, name in BAD_COMPONENTS.items()}
    | {key + ", alone": name for key, name in BAD_COMPONENTS.items()}
    | {key + ", last": b"a/" + name for key, name in BAD_COMPONENTS.items()}
)
#: Names that look odd, and are nothing but names.
HARMLESS = {
    "three dots": b"...",
    "dots before": b"..x",
    "dots behind": b"x..",
    "like own": b".ftxx",
    "own without dot": b"ftx",
    "own in the middle": b"x.ftx",
    "like a partial": b".ftx-0",
    "another part": b"x.part",
    "a longer part": b".ftx-x.partial",
    "backslashes": b"..\\..\\outside",
    "fullwidth dots": "．．".encode(),
    "escaped": b"%2e%2e%2foutside",
    "overlong dot and slash": b"\xc0\xae\xc0\xae\xc0\xafoutside",
    "two dots, zero width": "..\u200b".encode(),
    "drive": b"C:",
    "home": b"~root",
    "variable": b"$HOME",
    "option": b"-rf",
    "glob": b"*",
    "newline": b"a\nb",
    "escape": b"\x1b[2J",
    "not UTF-8": b"\xff\xfe",
    "space": b" ",
    "longest": b"n" * 255,
}


@pytest.fixture
def receiver(shm: Path) -> Iterator[LocalReceiver]:
    """One that takes from anybody and replaces; beside its folder lies another one, with a file in it."""
    outside = shm / os.fsdecode(OUTSIDE)
    outside.mkdir(mode=0o750)
    (outside / "file").write_bytes(b"not to be touched")
    for path in (outside / "file", outside):
        os.utime(path, ns=(0, MTIME_NS))
    before = snapshot(outside)
    with LocalReceiver(shm, open=True, exists=Exists.REPLACE) as local:
        beside = sorted(os.listdir(shm))
        yield local
        assert snapshot(outside) == before
        assert sorted(os.listdir(shm)) == beside
    assert not _led_astray()


def _led_astray() -> list[bytes]:
    """What lies where only a receiver without bounds would put it. It is taken away."""
    found = [path for place in ASTRAY for name in (X, Y) if os.path.lexists(path := os.path.join(place, name))]
    for path in found:
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    return found


class Peer:
    """A sender that offers what it likes, one entry at a time, and counts as the document says."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.ids = 0
        self.totals = {m.Receipt: 0, m.Skip: 0, m.Refuse: 0}

    def offer(self, path: bytes, *offered: m.Offered) -> list[int]:
        """The answers to the entries of a batch: 0 for one that is committed or there, else a wire code."""
        first = self.ids + 1
        self.ids += len(offered)
        self.lane.send(m.Folder(path, first, offered))
        answers: dict[int, int] = {}
        while len(answers) < len(offered):
            match message := peer.heard(self.lane, m.Skip, m.Want, m.WantAll, m.Refuse, m.Receipt, m.Error):
                case m.Error():
                    raise AssertionError(f"the session ended: {message}")
                case m.Want():
                    self._finish(message.entry, offered[message.entry - first])
                case m.WantAll():
                    for entry in message.entries:
                        self._finish(entry, offered[entry - first])
                case m.Refuse():
                    answers |= {item.entry: item.code for item in message.items}
                case m.Skip() | m.Receipt():
                    answers |= {item.entry: 0 for item in message.items}
            if isinstance(message, m.Skip | m.Refuse | m.Receipt):
                self.totals[type(message)] += len(message.items)
        return [answers[first + place] for place in range(len(offered))]

    def _finish(self, entry: int, offered: m.Offered) -> None:
        """All that is wanted of an empty file. Nothing is ever wanted of a folder or link."""
        assert offered.kind is Kind.FILE
        self.lane.send(m.Finish(entry, ROOT_OF_NOTHING))

    def bye(self) -> None:
        done, skipped, refused = self.totals.values()
        self.lane.send(said := m.Bye(done, skipped, refused))
        assert peer.heard(self.lane, m.Bye, m.Error) == said


@contextmanager
def session(port: int, folder: bytes = b"") -> Iterator[Peer]:
    """A session whose OPEN names ``folder``, right behind it."""
    with closing(Lane(peer.connected(port), dialer=True)) as lane:
        handshake.dial(lane, Identity(secrets.token_bytes(32)), {}, peer.ANYONE, plain=False)
        lane.order.opened(Role.SENDER)
        opening = {"session": secrets.token_bytes(16), "process": secrets.token_bytes(16), "role": Role.SENDER,
                   "job": secrets.token_bytes(32), "mode": m.Mode.TRANSFER, "lanes": 1, "retry_for_s": 0,
                   "digest": DigestName.XXH3_128, "folder": folder, "tlvs": []}  # fmt: skip
        lane.order.send(m.Type.OPEN)
        lane.send_raw(foreign_peer.frame("OPEN", **opening))  # it says what ours would not
        yield Peer(lane)


def offered(kind: Kind, name: bytes, target: bytes = b"") -> m.Offered:
    """An empty file, a folder, or a link, which leads outside unless told otherwise."""
    target = (target or b"../outside") if kind is Kind.SYMLINK else b""
    return m.Offered(kind, name, 0, 0, 0o755, MTIME_NS, b"tag" + bytes(13), target)


def ids(table: dict[str, bytes]) -> Callable[..., pytest.MarkDecorator]:
    return pytest.mark.parametrize("name", table.values(), ids=table.keys())


kinds = pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)


# --- bad names in every place --------------------------------------------------------------------------


@ids(BAD_FOLDERS)
def test_g6_in_open(receiver: LocalReceiver, name: bytes) -> None:
    """The session ends."""
    with session(receiver.port, name) as hostile:
        message = peer.heard(hostile.lane, m.Error, m.Opened)
        assert isinstance(message, m.Error)
        assert message.code == NameRefused.wire
    assert not list(below(receiver.into))


def test_g6_in_open_and_longer_than_it_may_be(receiver: LocalReceiver) -> None:
    with session(receiver.port, b"abc/" * 1023 + b"abcde") as hostile:
        message = peer.heard(hostile.lane, m.Error, m.Opened)
        assert isinstance(message, m.Error)
        assert message.code == ProtocolError.wire
    assert not list(below(receiver.into))


@kinds
def test_g6_as_a_name(receiver: LocalReceiver, kind: Kind) -> None:
    """Each is refused alone: what is in the same batch is taken."""
    with session(receiver.port) as hostile:
        for place, (what, name) in enumerate(BAD_NAMES.items()):
            good = b"good %d" % place
            answers = hostile.offer(b"", offered(kind, name), offered(Kind.FILE, good), offered(kind, name))
            assert answers == [NameRefused.wire, 0, NameRefused.wire], what
        hostile.bye()
    assert set(below(receiver.into)) == {b"good %d" % place for place in range(len(BAD_NAMES))}


@kinds
@pytest.mark.parametrize("folder", [b"", b"in"], ids=["at the top", "below OPEN's folder"])
def test_g6_as_a_path(receiver: LocalReceiver, kind: Kind, folder: bytes) -> None:
    """Every entry of the batch is refused, and the next batch is taken."""
    with session(receiver.port, folder) as hostile:
        for place, (what, path) in enumerate(BAD_FOLDERS.items()):
            answers = hostile.offer(path, offered(kind, X), offered(kind, Y))
            assert answers == [NameRefused.wire, NameRefused.wire], what
            assert hostile.offer(b"fine", offered(kind, b"good %d" % place)) == [0], what
        hostile.bye()
    top = folder + b"/fine/" if folder else b"fine/"
    good = {top + b"good %d" % place for place in range(len(BAD_FOLDERS))}
    assert {path for path in below(receiver.into) if path.startswith(top)} == good
    assert set(below(receiver.into)) - good <= {folder, top[:-1]}


@kinds
@pytest.mark.parametrize("path", [b"there/", b"there//", b"there/.", b"there/./", b"/", b"//"], ids=bytes.decode)
@pytest.mark.parametrize("folder", [b"", b"there"], ids=["at the top", "below OPEN's folder"])
def test_g6_a_folder_that_is_there_and_a_slash(receiver: LocalReceiver, kind: Kind, path: bytes, folder: bytes) -> None:
    """Joined carelessly, the name behind it is one at the root of the file system."""
    (receiver.into / "there" / "there").mkdir(parents=True)
    with session(receiver.port, folder) as hostile:
        assert hostile.offer(path, offered(kind, X), offered(kind, Y)) == [NameRefused.wire] * 2
        # Here only: whoever looks at /tmp instead finds a folder in the way.
        assert hostile.offer(path, offered(Kind.FILE, b"tmp")) == [NameRefused.wire]
        hostile.bye()
    assert set(below(receiver.into)) == {b"there", b"there/there"}


@kinds
def test_g6_a_path_that_is_too_long_when_it_is_joined(receiver: LocalReceiver, kind: Kind) -> None:
    """Each part of it is legal."""
    deep = b"d/" * 2000 + b"d"
    with session(receiver.port, b"in") as hostile:
        name = b"n" * (m.MAX_PATH - len(b"in/" + deep + b"/") + 1)
        assert hostile.offer(deep, offered(kind, name), offered(kind, name + b"n")) == [NameRefused.wire] * 2
        assert hostile.offer(b"", offered(kind, b"good")) == [0]
        hostile.bye()
    assert set(below(receiver.into)) == {b"in", b"in/good"}


def test_g6_at_the_end_of_a_folder(receiver: LocalReceiver) -> None:
    """It has no answer, and does nothing."""
    with session(receiver.port) as hostile:
        assert hostile.offer(b"", offered(Kind.FOLDER, b"sub")) == [0]
        for path in [*BAD_FOLDERS.values(), b"missing", b"sub/missing", b"abc/" * 1023 + b"abcd"]:
            for flags in (0, m.FolderFlags.WHOLE, 0xFF):
                hostile.lane.send(m.FolderEnd(path, flags))
        assert hostile.offer(b"sub", offered(Kind.FILE, b"good")) == [0]
        hostile.bye()
    assert set(below(receiver.into)) == {b"sub", b"sub/good"}


LONG = {
    "name": ("FOLDER", "entries", 256),
    "path": ("FOLDER", "path", 4097),
    "target": ("FOLDER", "entries", 4097),
    "path of FOLDER_END": ("FOLDER_END", "path", 4097),
}


@pytest.mark.parametrize("what", LONG)
def test_g6_fields_longer_than_they_may_be(receiver: LocalReceiver, what: str) -> None:
    """They break the layout: the session ends."""
    name, field, length = LONG[what]
    entry = {"kind": Kind.SYMLINK, "name": b"x", "size": 0, "allocated": 0, "mode": 0o755, "mtime_ns": 0,
             "tag": bytes(16), "target": b"t", "tlvs": []}  # fmt: skip
    fields = {"path": b"", "flags": 0} if name == "FOLDER_END" else {"path": b"", "first": 1, "entries": [entry]}
    if field == "path":
        fields["path"] = b"n" * length
    else:
        entry[what] = b"n" * length
    with session(receiver.port) as hostile:
        hostile.lane.send_raw(foreign_peer.frame(name, **fields))
        message = peer.heard(hostile.lane, m.Error)
        assert isinstance(message, m.Error)
        assert message.code == ProtocolError.wire
    assert not list(below(receiver.into))


@kinds
def test_g6_names_that_only_look_dangerous(receiver: LocalReceiver, kind: Kind) -> None:
    """They are taken, as names and in paths, and lie where they belong."""
    with session(receiver.port) as hostile:
        for what, name in HARMLESS.items():
            assert hostile.offer(b"names", offered(kind, name)) == [0], what
            assert hostile.offer(b"paths/" + name, offered(kind, b"x")) == [0], what
        hostile.bye()
    found = {path: node.kind for path, node in snapshot(receiver.into).items()}
    for name in HARMLESS.values():
        assert found[b"names/" + name] == found[b"paths/" + name + b"/x"] == WORDS[kind]
    assert len(found) == 3 + 3 * len(HARMLESS)


# --- links ---------------------------------------------------------------------------------------------

#: Where a link may point; relative ones from a folder of the destination.
TARGETS = {
    "up": b"../outside",
    "up and down": b"sub/../../outside",
    "absolute": b"",  # put in by the test
    "through the folder above": b"../into/../outside",
    "to itself": b"link",
    "to the destination": b".",
    "to what ftx keeps": b".ftx",
}


@pytest.mark.parametrize("where", TARGETS)
def test_g6_a_link_that_came_is_never_followed(receiver: LocalReceiver, where: str) -> None:
    """It may point anywhere; but nothing goes through it, and no mode or time is set behind it."""
    target = TARGETS[where] or os.fsencode(receiver.into.parent / "outside")
    with session(receiver.port) as hostile:
        assert hostile.offer(b"", offered(Kind.SYMLINK, b"link", target)) == [0]
        behind = [offered(kind, kind.name.encode()) for kind in Kind]
        assert hostile.offer(b"link", *behind) == [DestinationError.wire] * 3
        assert hostile.offer(b"link/deeper", *behind) == [DestinationError.wire] * 3
        (answer,) = hostile.offer(b"", offered(Kind.FOLDER, b"link"))
        assert answer in (DestinationError.wire, IsFolder.wire)
        hostile.lane.send(m.FolderEnd(b"link", m.FolderFlags.WHOLE))
        assert hostile.offer(b"", offered(Kind.FILE, b"good")) == [0]
        hostile.bye()
    assert set(below(receiver.into)) == {b"link", b"good"}
    assert os.readlink(os.fsencode(receiver.into) + b"/link") == target
    with session(receiver.port, b"link") as hostile:
        message = peer.heard(hostile.lane, m.Error, m.Opened)
        if isinstance(message, m.Opened):
            assert hostile.offer(b"", *behind) == [DestinationError.wire] * 3
            hostile.bye()
    assert set(below(receiver.into)) == {b"link", b"good"}


def test_g6_a_link_that_came_is_replaced_and_not_written_through(receiver: LocalReceiver) -> None:
    with session(receiver.port) as hostile:
        assert hostile.offer(b"", offered(Kind.SYMLINK, b"link", b"../outside/file")) == [0]
        assert hostile.offer(b"", offered(Kind.FILE, b"link")) == [0]
        assert hostile.offer(b"", offered(Kind.SYMLINK, b"link", b"../outside/other")) == [0]
        assert hostile.offer(b"", offered(Kind.SYMLINK, b"link", b"../outside/file")) == [0]
        hostile.bye()
    assert (receiver.into / "link").readlink() == Path("../outside/file")


def test_g6_a_folder_is_not_replaced_by_a_link(receiver: LocalReceiver) -> None:
    """Neither full nor empty: what follows would go through it."""
    with session(receiver.port) as hostile:
        assert hostile.offer(b"full", offered(Kind.FILE, b"x")) == [0]
        assert hostile.offer(b"", offered(Kind.FOLDER, b"empty")) == [0]
        for name in (b"full", b"empty"):
            (answer,) = hostile.offer(b"", offered(Kind.SYMLINK, name))
            assert answer in (DestinationError.wire, IsFolder.wire)
            assert hostile.offer(name, offered(Kind.FILE, b"y")) == [0]
        hostile.bye()
    assert set(below(receiver.into)) == {b"full", b"full/x", b"full/y", b"empty", b"empty/y"}


@pytest.mark.parametrize("target", [b"\0", b"a\0b", b"t" * 4096], ids=["nul", "nul inside", "too long"])
def test_g6_targets_that_no_link_can_have(receiver: LocalReceiver, target: bytes) -> None:
    """Refused alone."""
    with session(receiver.port) as hostile:
        bad, good = hostile.offer(b"", offered(Kind.SYMLINK, b"link", target), offered(Kind.FILE, b"good"))
        assert (48 <= bad < 64, good) == (True, 0)
        hostile.bye()
    assert set(below(receiver.into)) == {b"good"}


def test_g6_an_empty_target(receiver: LocalReceiver) -> None:
    nothing = m.Offered(Kind.SYMLINK, b"link", 0, 0, 0o777, MTIME_NS, bytes(16), b"")
    with session(receiver.port) as hostile:
        bad, good = hostile.offer(b"", nothing, offered(Kind.FILE, b"good"))
        assert (48 <= bad < 64, good) == (True, 0)
        hostile.bye()
    assert set(below(receiver.into)) == {b"good"}


# --- odd, and harmless ---------------------------------------------------------------------------------


def test_g6_modes_of_folders_are_masked(receiver: LocalReceiver) -> None:
    with session(receiver.port) as hostile:
        for number, mode in enumerate((0o7777, 0o4755, 0xFFFFFFFF, 0o2000 | 0o700, 0)):
            folder = m.Offered(Kind.FOLDER, b"%d" % number, 2**64 - 1, 2**64 - 1, mode, MTIME_NS, bytes(16), b"ignored")
            assert hostile.offer(b"", folder) == [0]
            assert (receiver.into / f"{number}").stat().st_mode & 0o7777 == mode & 0o777
        hostile.bye()


@kinds
@pytest.mark.parametrize("mtime_ns", [-(2**63), 2**63 - 1, -1], ids=["first", "last", "before 1970"])
def test_g9_times_that_no_clock_shows(receiver: LocalReceiver, kind: Kind, mtime_ns: int) -> None:
    """Taken or refused alone, as the file system can."""
    odd = m.Offered(kind, b"odd", 0, 0, 0o755, mtime_ns, bytes(16), b"t" if kind is Kind.SYMLINK else b"")
    with session(receiver.port) as hostile:
        _, good = hostile.offer(b"", odd, offered(Kind.FILE, b"good"))
        assert good == 0
        hostile.bye()


def test_g9_one_name_over_and_over(receiver: LocalReceiver) -> None:
    """As each kind in turn, in one batch and one after the other: never more than one of them is there."""
    with session(receiver.port) as hostile:
        for _ in range(5):
            for kind in Kind:
                hostile.offer(b"", offered(kind, b"x"))
            hostile.offer(b"x", offered(Kind.FILE, b"inside"))
        hostile.bye()
    assert set(below(receiver.into)) <= {b"x", b"x/inside"}


def test_g6_g9_a_folder_before_its_contents(receiver: LocalReceiver) -> None:
    """Not the order that the document asks for, and no harm: the contents arrive."""
    with session(receiver.port) as hostile:
        answers = hostile.offer(b"", offered(Kind.FOLDER, b"a"), offered(Kind.FILE, b"b"), offered(Kind.FOLDER, b"a"))
        assert answers == [0, 0, 0]
        assert hostile.offer(b"a", offered(Kind.FILE, b"x"), offered(Kind.FOLDER, b"y")) == [0, 0]
        hostile.bye()
    assert set(below(receiver.into)) == {b"a", b"b", b"a/x", b"a/y"}


@pytest.mark.parametrize("kind", [Kind.FOLDER, Kind.SYMLINK], ids=lambda kind: kind.name)
def test_g4_data_for_what_has_none(receiver: LocalReceiver, kind: Kind) -> None:
    """A folder or link has no chunks: whoever sends one breaks a rule, or is late and passed over."""
    with session(receiver.port) as hostile:
        hostile.lane.send(m.Folder(b"", 1, (offered(kind, kind.name.encode()),)))
        digest = DigestName.XXH3_128.function(b"payload")
        data = foreign_peer.frame("DATA", entry=1, index=0, digest=digest, payload=b"payload")
        hostile.lane.send_raw(data)
        hostile.lane.send(m.Finish(1, ROOT_OF_NOTHING))
        message = peer.heard(hostile.lane, m.Receipt, m.Skip, m.Error)
        assert not isinstance(message, m.Error) or message.code == ProtocolError.wire
    found = snapshot(receiver.into)
    assert {path: node.kind for path, node in found.items() if path} in ({}, {kind.name.encode(): WORDS[kind]})


# --- links that come and go ----------------------------------------------------------------------------

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def _exchange(one: Path, other: Path) -> None:
    """Each takes the other's name, in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        pytest.skip("needs renameat2")
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS):
            pytest.skip("a file system that cannot exchange two names")
        raise OSError(number, os.strerror(number))


class Swapping:
    """A thread that puts a link in the place of a folder and takes it away again, over and over."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder = folder
        self.link = folder.with_name("aside")
        self.link.symlink_to(target)
        _exchange(folder, self.link)
        _exchange(folder, self.link)
        self.swaps = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swapping", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(0.0002):
            _exchange(self.folder, self.link)
            self.swaps += 1
        if self.swaps % 2:
            _exchange(self.folder, self.link)

    def __enter__(self) -> Swapping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.link.unlink()


@pytest.mark.parametrize("depth", ["sub", "sub/deeper"])
def test_g6_links_swapped_in_during_the_run(shm: Path, depth: str) -> None:
    """Whatever the moment: what was to go into the folder goes there or is refused, and nothing goes outside."""
    top, into, outside = shm / "tree", shm / "into", shm / "outside"
    for number in range(6):
        (top / depth / f"{number}").mkdir(parents=True)
        for name in range(15):
            (top / depth / f"{number}" / f"{name}").write_bytes(b"%d" % name)
            (top / depth / f"{number}-{name}").write_bytes(b"%d" % name)
        (top / depth / f"link {number}").symlink_to("nowhere")
        # Without these folders in it, what is behind the link would only be missing there.
        (outside / f"{number}").mkdir(parents=True)
    (top / "beside").write_bytes(b"x")
    (into / "tree" / depth).mkdir(parents=True)
    before = snapshot(outside)
    with LocalReceiver(shm) as receiver:
        options = api.SendOptions(host="127.0.0.1", port=receiver.port, config_dir=shm / "config", retry_for_s=0.0)
        swaps = 0
        for attempt in range(4):
            with Swapping(into / "tree" / depth, outside) as swapping:
                finished = api.send([top], options)
                # Each attempt has all of it to do again.
                (top / "beside").write_bytes(b"%d" % attempt)
                for path in top.rglob("*"):
                    os.utime(path, ns=(0, MTIME_NS + attempt), follow_symlinks=False)
            swaps += swapping.swaps
            assert snapshot(outside) == before
            assert finished.code in (0, 9), finished.message
        assert swaps > 20
        assert api.send([top], options).code == 0
        assert snapshot(into / "tree") == snapshot(top)
        assert snapshot(outside) == before
