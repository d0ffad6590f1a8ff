"""The only way below a root. G6: no name that a peer sends leads outside the folder it was given.

Every name passes ``components``; every step goes by a folder's descriptor with ``O_NOFOLLOW``, so a link
that was planted before, or is swapped in during the run, is refused and never followed.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ftx.errors import NameRefused
from ftx.protocol.messages import MAX_NAME, MAX_PATH
from ftx.storage import disk

#: Where partials and journals live, at the root of every destination.
OWN_FOLDER = b".ftx"
#: Partials that cannot live there, because a rename from there would cross a file system.
BESIDE_PREFIX = b".ftx-"
BESIDE_SUFFIX = b".part"


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
        if part in (b"", b".", b".."):
            raise NameRefused(f"{disk.show(path)}: not a relative path of plain names")
        if len(part) > MAX_NAME:
            raise NameRefused(f"{disk.show(path)}: a name of {len(part)} bytes, where {MAX_NAME} are the most")
        if b"\0" in part:
            raise NameRefused("a name with a NUL byte")
        if is_reserved(part):
            raise NameRefused(f"{disk.show(path)}: names like .ftx are kept for ftx itself")
    return parts


def is_reserved(name: bytes) -> bool:
    """Whether a file system may take ``name`` for one of ftx's own, whatever it folds (case, NFC, ignorables)."""
    text = unicodedata.normalize("NFKC", name.decode("utf-8", "replace"))
    text = "".join(char for char in text if unicodedata.category(char) != "Cf").casefold()
    own, prefix, suffix = (part.decode() for part in (OWN_FOLDER, BESIDE_PREFIX, BESIDE_SUFFIX))
    # Trailing dots and spaces are dropped by the FAT family.
    text = text.rstrip(". ")
    return text == own or (text.startswith(prefix) and text.endswith(suffix))


class Folder:
    """An open folder below a root. A context manager; ``fd`` is its descriptor."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        os.close(self.fd)


class Root:
    """A destination folder, held open: renaming it away moves what is written with it, never elsewhere.

    Raises:
        DestinationError: it cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        name = os.fsencode(path)
        with disk.destination_errors(name):
            made = _make_all(path)
            self.fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for folder in made:
                _sync_path(folder)
        self.path = path
        self._unsynced: set[tuple[bytes, ...]] = set()  # folders in which this process made a folder

    def close(self) -> None:
        os.close(self.fd)

    def folder(self, parts: tuple[bytes, ...], *, make: bool = False) -> Folder:
        """Open the folder ``parts`` below the root, component by component, making what is missing if told.

        Raises:
            OSError: it is missing, or something on the way is not a folder (a link counts as that).
        """
        fd = os.dup(self.fd)
        os.set_inheritable(fd, False)
        try:
            for depth, part in enumerate(parts):
                below = self._enter(fd, part, parts[:depth], make=make)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return Folder(fd)

    def _enter(self, fd: int, part: bytes, above: tuple[bytes, ...], *, make: bool) -> int:
        try:
            return disk.open_folder(part, folder=fd)
        except FileNotFoundError:
            if not make:
                raise
        try:
            disk.make_folder(part, 0o777, folder=fd)
            self._unsynced.add(above)
        except FileExistsError:
            pass  # another session was faster
        return disk.open_folder(part, folder=fd)

    def own_folder(self) -> Folder:
        """``.ftx``, made if missing, for this user alone."""
        try:
            fd = disk.open_folder(OWN_FOLDER, folder=self.fd)
        except FileNotFoundError:
            with suppress(FileExistsError):
                disk.make_folder(OWN_FOLDER, 0o700, folder=self.fd)
            fd = disk.open_folder(OWN_FOLDER, folder=self.fd)
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or info.st_mode & 0o077:
            os.close(fd)
            raise PermissionError(errno.EACCES, ".ftx there belongs to somebody else or is open to others")
        return Folder(fd)

    def sync(self, parts: tuple[bytes, ...], folder: Folder) -> None:
        """Make ``folder``'s names durable, and those of every folder on the way that was made by this process (G5)."""
        disk.sync_folder(folder.fd)
        for depth in range(len(parts) - 1, -1, -1):
            if parts[:depth] in self._unsynced:
                with self.folder(parts[:depth]) as above:
                    disk.sync_folder(above.fd)
                self._unsynced.discard(parts[:depth])


def _make_all(path: Path) -> list[Path]:
    """Make a folder and its parents; the folders whose names changed by that."""
    if path.is_dir():
        return []
    changed = _make_all(path.parent) if not path.parent.is_dir() else []
    path.mkdir(exist_ok=True)
    return [*changed, path.parent]


def _sync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.sync_folder(fd)
    finally:
        os.close(fd)
