"""The only way below a root. G6: no name that a peer sends leads outside the folder it was given.

Every name passes ``components``; every step goes by a folder's descriptor with ``O_NOFOLLOW``, so a link
that was planted before, or is swapped in during the run, is refused and never followed.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import threading
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ftx.errors import NameRefused
from ftx.protocol.messages import MAX_NAME, MAX_PATH
from ftx.storage import disk

#: Where partials and journals live, at the root of every destination.
OWN_FOLDER = b".ftx"
#: Folders that a process remembers to be durable.
MAX_DURABLE = 1024
#: Partials that cannot live there, because a rename from there would cross a file system.
BESIDE_PREFIX = b".ftx-"
BESIDE_SUFFIX = b".part"

_DOTS = frozenset({b".", b".."})
#: The second name that the FAT family gives to ``.ftx``.
_SHORT_NAME = re.compile(r"ftx~[0-9]+")
#: What a file system that folds may overlook, besides format characters: of Unicode's Default_Ignorable_Code_Point
#: (DerivedCoreProperties.txt) those that are none.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


def components(path: bytes) -> tuple[bytes, ...]:
    """The components of a relative path from a peer; none for the root itself.

    Raises:
        NameRefused: absolute, too long, or a component that is empty, ``.``, ``..``, too long, has a NUL, or
            is a name that ftx keeps for itself.
    """
    if len(path) > MAX_PATH:
        raise NameRefused(f"a path of {len(path)} bytes, where {MAX_PATH} are the most")
    if not path:
        return ()
    parts = tuple(path.split(b"/"))
    for part in parts:
        check_name(part, path)
    return parts


def check_name(part: bytes, path: bytes) -> None:
    """One component of ``path``.

    Raises:
        NameRefused: as ``components``.
    """
    if not part or part in _DOTS or b"/" in part:
        raise NameRefused(f"{disk.show(path)}: not a relative path of plain names")
    if len(part) > MAX_NAME:
        raise NameRefused(f"{disk.show(path)}: a name of {len(part)} bytes, where {MAX_NAME} are the most")
    if b"\0" in part:
        raise NameRefused("a name with a NUL byte")
    if is_reserved(part):
        raise NameRefused(f"{disk.show(path)}: names like .ftx are kept for ftx itself")


def file_components(path: bytes) -> tuple[bytes, ...]:
    """The components of a file's path, one at least.

    Raises:
        NameRefused: as ``components``, and for the root itself.
    """
    parts = components(path)
    if not parts:
        raise NameRefused("a file without a name")
    return parts


def is_reserved(name: bytes) -> bool:
    """Whether a file system may take ``name`` for one of ftx's own, whatever it folds (case, NFC, ignorables)."""
    if name.isascii() and name[:4].lower() not in (b".ftx", b"ftx~"):
        return False  # so nearly all of them, and there may be millions
    text = name.decode("utf-8", "replace").casefold()
    if not name.isascii():
        text = _IGNORABLE.sub("", unicodedata.normalize("NFKC", text))
        text = "".join(char for char in text if unicodedata.category(char) != "Cf").casefold()
    own, prefix, suffix = (part.decode() for part in (OWN_FOLDER, BESIDE_PREFIX, BESIDE_SUFFIX))
    # Trailing dots and spaces are dropped by the FAT family.
    text = text.rstrip(". ")
    return text == own or (text.startswith(prefix) and text.endswith(suffix)) or bool(_SHORT_NAME.fullmatch(text))


def _spellings(name: bytes) -> list[bytes]:
    """Other spellings that a file system which folds takes for ``name``: one of its case, and its normal forms."""
    text = name.decode("utf-8", "surrogateescape")
    others = [text.swapcase()]
    if not name.isascii():
        others += [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    encoded = [other.encode("utf-8", "surrogateescape") for other in others if other != text]
    return [other for other in encoded if len(other) <= MAX_NAME]


class Folder:
    """An open folder below a root. A context manager; ``fd`` is its descriptor.

    Args:
        kept: its mode stays as it is.
    """

    __slots__ = ("_folds", "_kept", "_names", "fd")

    def __init__(self, fd: int, *, kept: bool = False) -> None:
        self.fd = fd
        self._kept = kept
        self._names: set[bytes] | None = None
        self._folds: bool | None = None  # whether case is one to it; None until a name told

    def refuse_folded(self, name: bytes, path: bytes) -> None:
        """A file system that folds (case, normalization) finds another name's file under ``name``: not ours to touch.

        Something is here under ``name``. Whether it is called that tells the listing, which may be long; so it is asked
        only where another spelling finds something too. For case one name answers for the folder, of which it is a
        matter on several file systems.

        Raises:
            NameRefused: it is called something else.
        """
        if self._folds is None:
            self._learn(name)
        if (self._folds if name.isascii() else self._finds_other(name)) and not self._spells(name):
            why = "the destination's file system takes this name for another one that is there"
            raise NameRefused(f"{disk.show(path)}: {why}")

    def may_fold(self, name: bytes) -> bool:
        """Whether ``name`` may find what is called something else; False where that is known."""
        return self._folds is not False or not name.isascii()

    def note(self, name: bytes) -> None:
        """Something is called ``name`` from here on."""
        if self._folds is None:
            self._learn(name)
        if self._names is not None:
            self._names.add(name)

    def _learn(self, name: bytes) -> None:
        if self._folds is None and name.isascii() and name.swapcase() != name:
            self._folds = self._finds_other(name)

    def _finds_other(self, name: bytes) -> bool:
        """Whether another spelling of a name that is here finds something."""
        return any(disk.look(other, folder=self.fd) is not None for other in _spellings(name))

    def _spells(self, name: bytes) -> bool:
        """Whether something here is called ``name`` to the byte. The folder is listed once."""
        if self._names is None:
            self._names = set(map(os.fsencode, os.listdir(self.fd)))
        return name in self._names

    def make_writable(self) -> None:
        """Where a source's folder is read-only, so is its copy; its own entry, the last, makes it so again."""
        if self._kept:
            return
        info, user = os.fstat(self.fd), os.geteuid()
        if info.st_mode & 0o300 != 0o300 and user == info.st_uid != 0:  # root needs no leave
            disk.give_owner_access(self.fd, info.st_mode)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        os.close(self.fd)


@dataclass(slots=True)
class _Held:
    """What all views of a root share.

    Attributes:
        durable: folders in which no folder was made since they were synced.
        made: folders, by this process.
    """

    fd: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    durable: set[tuple[bytes, ...]] = field(default_factory=set)
    made: int = 0


class Root:
    """A destination folder, held open: renaming it away moves what is written with it, never elsewhere.

    Args:
        make: make it, and what is above it, durably; otherwise nothing on the disk is touched.

    Raises:
        DestinationError: it cannot be made or opened.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        name = os.fsencode(path)
        with disk.destination_errors(name):
            if make:
                _make_all(path)
            self._held = _Held(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.path = path
        self._keeps = -1.0  # how deep folders keep their modes

    @property
    def fd(self) -> int:
        return self._held.fd

    def close(self) -> None:
        """Of all its views."""
        fd, self._held.fd = self._held.fd, -1
        os.close(fd)

    def keeping(self, depth: float) -> Root:
        """The same root, seen by who must not change the modes of folders that are there.

        Args:
            depth: of the deepest of them, in components: 0 for the root itself alone, ``inf`` for all.
        """
        view = copy.copy(self)
        view._keeps = depth
        return view

    def folder(self, parts: tuple[bytes, ...], *, make: bool = False, mode: int = 0o700) -> Folder:
        """Open the folder ``parts`` below the root, component by component, making what is missing if told.

        What is made is for its owner alone, until the folder's own entry says otherwise.

        Raises:
            OSError: it is missing, or something on the way is not a folder (a link counts as that).
            NameRefused: something on the way is called otherwise, and the file system folds.
        """
        fd = os.dup(self.fd)
        os.set_inheritable(fd, False)
        try:
            for depth, part in enumerate(parts):
                below = self._enter(fd, part, parts[:depth], mode if make else None)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return Folder(fd, kept=len(parts) <= self._keeps)

    def _enter(self, fd: int, part: bytes, above: tuple[bytes, ...], mode: int | None) -> int:
        try:
            try:
                below = disk.open_folder(part, folder=fd)
            except PermissionError:
                if len(above) + 1 <= self._keeps:
                    raise
                # It, or what it is in, is closed to its owner, as at the source; its own entry makes it so again.
                Folder(fd, kept=len(above) <= self._keeps).make_writable()
                if disk.look(part, folder=fd) is not None:
                    disk.set_mode_of(part, 0o700, folder=fd)
                below = disk.open_folder(part, folder=fd)
        except FileNotFoundError:
            if mode is None:
                raise
        else:
            try:
                Folder(fd).refuse_folded(part, b"/".join((*above, part)))
            except BaseException:
                os.close(below)
                raise
            return below
        Folder(fd, kept=len(above) <= self._keeps).make_writable()
        with self._held.lock, suppress(FileExistsError):  # another session or process was faster
            self._held.durable.discard(above)
            self._held.made += 1
            disk.make_folder(part, mode, folder=fd)
        return disk.open_folder(part, folder=fd)

    def own_folder(self, *, make: bool = True) -> Folder:
        """``.ftx``, made if missing, for this user alone."""
        try:
            fd = disk.open_folder(OWN_FOLDER, folder=self.fd)
        except FileNotFoundError:
            if not make:
                raise
            with suppress(FileExistsError):
                disk.make_folder(OWN_FOLDER, 0o700, folder=self.fd)
            fd = disk.open_folder(OWN_FOLDER, folder=self.fd)
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or info.st_mode & 0o077:
            os.close(fd)
            raise PermissionError(errno.EACCES, ".ftx there belongs to somebody else or is open to others")
        return Folder(fd)

    def sync(self, parts: tuple[bytes, ...], folder: Folder) -> None:
        """Make ``folder``'s names durable, and those of every folder on the way to it (G5).

        Once for a process, and again after it made a folder there. Not only then: a run that was killed may have
        made them, and not come this far.
        """
        disk.sync_folder(folder.fd)
        with self._held.lock:
            made = self._held.made
            left = [depth for depth in range(len(parts)) if parts[:depth] not in self._held.durable]
        if not left:
            return
        unsynced = set(left)
        # One walk, and no lock while the disk works: a path may have thousands of components (G9).
        above = self.folder(())
        try:
            for depth in range(left[-1] + 1):
                if depth:
                    below = Folder(disk.open_folder(parts[depth - 1], folder=above.fd))
                    os.close(above.fd)
                    above = below
                if depth in unsynced:
                    disk.sync_folder(above.fd)
        finally:
            os.close(above.fd)
        with self._held.lock:
            if self._held.made != made:
                return  # a folder that was made meanwhile may not be covered
            if len(self._held.durable) + len(left) > MAX_DURABLE:
                self._held.durable.clear()  # G8: syncing again costs little
            self._held.durable.update(parts[:depth] for depth in left[:MAX_DURABLE])


def _make_all(path: Path) -> None:
    """Make a folder and its parents, each durable before the next is made (G5)."""
    if not path.is_dir():
        _make_all(path.parent)
        path.mkdir(exist_ok=True)
    # Also where it was there: a run that was killed may have made it a moment before.
    _sync_path(path.parent)


def _sync_path(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return  # what this user may not read it did not make
    try:
        disk.sync_folder(fd)
    finally:
        os.close(fd)
