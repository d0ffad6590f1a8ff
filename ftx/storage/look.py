"""What a destination has already under the names that entries want."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from ftx.errors import DestinationError, Exists, IsFolder, NameRefused
from ftx.options import Exists as Policy
from ftx.protocol.manifest import Entry, Kind
from ftx.protocol.messages import MAX_PATH, SkipReason
from ftx.storage import disk, paths
from ftx.storage.paths import Folder, Root

MAX_RENAMES = 10_000


class Target:
    """A folder of the destination, opened once for a batch of entries that go into it. A context manager.

    Raises:
        NameRefused, DestinationError: there can be no such folder.
    """

    def __init__(self, root: Root, path: bytes) -> None:
        self._root = root
        self._path = path
        self._parts = paths.components(path)
        self._folder: Folder | None = None
        self._same_mount: bool | None = None
        with disk.destination_errors(path), suppress(FileNotFoundError):
            self._folder = root.folder(self._parts)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self._folder is not None:
            os.close(self._folder.fd)

    def look(self, entry: Entry, policy: Policy) -> SkipReason | None:
        """See what has the name that ``entry`` wants.

        Returns:
            Why nothing is to be done for the entry; None if it is to be transferred. Where a file is there already, its
            mode is brought up to date.

        Raises:
            IsFolder, Exists, NameRefused, DestinationError: the entry cannot have its name.
        """
        name = entry.path[len(self._path) + 1 :] if self._path else entry.path
        paths.check_name(name, entry.path)
        if len(entry.path) > MAX_PATH:
            raise NameRefused(f"a path of {len(entry.path)} bytes, where {MAX_PATH} are the most")
        if self._folder is None:
            return None
        try:
            return _look(self._folder, name, entry, policy)
        except OSError as error:
            raise disk.destination_error(entry.path, error) from error

    def has(self, entry: Entry) -> bool:
        """Whether there is anything under the name of ``entry``, which was looked at."""
        return self._folder is not None and disk.look(os.path.basename(entry.path), folder=self._folder.fd) is not None

    def takes_renames(self, path: bytes) -> bool:
        """Whether a rename of ``path`` from ftx's own folder can work. The folder is made if it is missing.

        Raises:
            DestinationError: it cannot be.
        """
        if self._same_mount is None:
            with disk.destination_errors(path):
                if self._folder is None:
                    self._folder = self._root.folder(self._parts, make=True)
                with self._root.own_folder() as own:
                    self._same_mount = disk.same_mount(self._folder.fd, own.fd)
        return self._same_mount


def _same(info: os.stat_result, entry: Entry, name: bytes, folder: Folder) -> bool:
    """Whether what has this name is, by size and time, what is offered (rsync's rule); a link also by its target."""
    if info.st_mtime_ns != entry.mtime_ns:
        return False
    match entry.kind:
        case Kind.FILE:
            return info.st_size == entry.size and stat.S_ISREG(info.st_mode)
        case Kind.SYMLINK:
            return stat.S_ISLNK(info.st_mode) and disk.read_link(name, folder=folder.fd) == entry.target
        case Kind.FOLDER:
            return stat.S_ISDIR(info.st_mode) and stat.S_IMODE(info.st_mode) == entry.mode & 0o777


def _look(folder: Folder, name: bytes, entry: Entry, policy: Policy) -> SkipReason | None:
    """See what has the name that ``entry`` wants.

    Returns:
        Why nothing is to be done for the entry; None if it is to be transferred. Where a file is there already, its
        mode is brought up to date.

    Raises:
        IsFolder, Exists, NameRefused, DestinationError: the entry cannot have its name.
    """
    info = disk.look(name, folder=folder.fd)
    if info is None:
        return None
    folder.refuse_folded(name, entry.path)
    if (
        entry.kind is Kind.FILE
        and _same(info, entry, name, folder)
        and stat.S_IMODE(info.st_mode) == entry.mode & 0o777
    ):
        return SkipReason.SAME  # so nearly all of them
    shown = disk.show(entry.path)
    if entry.kind is Kind.FOLDER:
        if not stat.S_ISDIR(info.st_mode):
            raise DestinationError(f"{shown}: something that is no folder has this name at the destination")
        # A folder that is kept keeps its metadata; what is in it is looked at by itself.
        return SkipReason.SAME if policy is not Policy.REPLACE or _same(info, entry, name, folder) else None
    if stat.S_ISDIR(info.st_mode):
        raise IsFolder(f"{shown}: a folder has this name at the destination")
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
        raise DestinationError(f"{shown}: a device, socket or FIFO has this name at the destination")
    if _same(info, entry, name, folder):
        if entry.kind is Kind.FILE and policy is Policy.REPLACE and stat.S_IMODE(info.st_mode) != entry.mode & 0o777:
            _set_mode(folder, name, entry.mode)
        return SkipReason.SAME
    if policy is Policy.KEEP:
        return SkipReason.KEPT
    if policy is Policy.FAIL:
        raise Exists(f"{shown}: a different file of this name is at the destination")
    if policy is Policy.RENAME:
        for other in other_names(name):
            found = disk.look(other, folder=folder.fd)
            if found is None:
                break
            if _same(found, entry, other, folder):
                return SkipReason.SAME
    return None


def _set_mode(folder: Folder, name: bytes, mode: int) -> None:
    try:
        fd = disk.open_at(name, os.O_RDONLY, folder=folder.fd)
    except PermissionError:
        disk.set_mode_of(name, mode, folder=folder.fd)
        return
    try:
        disk.set_mode(fd, mode)
    finally:
        os.close(fd)


def other_names(name: bytes) -> Iterator[bytes]:
    """``name.1``, ``name.2`` …"""
    return (name + b".%d" % number for number in range(1, MAX_RENAMES))
