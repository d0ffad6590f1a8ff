"""The only module that renames: what makes a partial a file of the destination.

G1 and G5, in this order and no other: the caller has verified every chunk and agreed on the root digest;
sync of the contents; metadata, and a sync of it; rename; sync of the folders; only then may a receipt be given,
and the journal go. A crash before the rename leaves the old file and a partial that resumes; one after it leaves
the new file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from itertools import chain

from ftx.errors import DestinationError, Exists, IsFolder
from ftx.options import Exists as Policy
from ftx.protocol.manifest import Entry
from ftx.protocol.messages import SkipReason
from ftx.storage import disk
from ftx.storage.partial import Partial
from ftx.storage.paths import Folder, Root, file_components

MAX_RENAMES = 10_000


def same_file(info: os.stat_result, entry: Entry) -> bool:
    """Whether what is there is, by size and time, what is offered (rsync's rule)."""
    return stat.S_ISREG(info.st_mode) and info.st_size == entry.size and info.st_mtime_ns == entry.mtime_ns


def look(root: Root, entry: Entry, policy: Policy) -> SkipReason | None:
    """See what has the name that ``entry`` wants.

    Returns:
        Why nothing is to be done for the entry; None if it is to be transferred. Where it is there already,
        its mode is brought up to date.

    Raises:
        IsFolder, Exists, DestinationError: the entry cannot have its name.
    """
    parts = file_components(entry.path)
    shown = disk.show(entry.path)
    with disk.destination_errors(entry.path):
        try:
            folder = root.folder(parts[:-1])
        except FileNotFoundError:
            return None
        with folder:
            info = disk.look(parts[-1], folder=folder.fd)
            if info is None:
                return None
            if stat.S_ISDIR(info.st_mode):
                raise IsFolder(f"{shown}: a folder has this name at the destination")
            if not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
                raise DestinationError(f"{shown}: a device, socket or FIFO has this name at the destination")
            if same_file(info, entry):
                if policy is Policy.REPLACE and stat.S_IMODE(info.st_mode) != entry.mode & 0o777:
                    _set_mode(folder, parts[-1], entry.mode)
                return SkipReason.SAME
            if policy is Policy.KEEP:
                return SkipReason.KEPT
            if policy is Policy.FAIL:
                raise Exists(f"{shown}: a different file of this name is at the destination")
            if policy is Policy.RENAME:
                for name in _other_names(parts[-1]):
                    other = disk.look(name, folder=folder.fd)
                    if other is None:
                        break
                    if same_file(other, entry):
                        return SkipReason.SAME
    return None


def _set_mode(folder: Folder, name: bytes, mode: int) -> None:
    fd = disk.open_at(name, os.O_RDONLY, folder=folder.fd)
    try:
        disk.set_mode(fd, mode)
    finally:
        os.close(fd)


def _other_names(name: bytes) -> Iterator[bytes]:
    """``name.1``, ``name.2`` …"""
    return (name + b".%d" % number for number in range(1, MAX_RENAMES))


def publish(root: Root, partial: Partial, policy: Policy, *, fsync: bool) -> bytes:
    """Give a verified partial its final name, durably; the path it got.

    Raises:
        SyncFailed: its contents did not reach the disk; nothing was published.
        Exists, IsFolder, DestinationError: the name cannot be had; the partial is kept.
    """
    entry = partial.entry
    parts = file_components(entry.path)
    with disk.destination_errors(entry.path):
        if disk.size(partial.fd) != entry.size:
            raise DestinationError(f"{disk.show(entry.path)}: somebody else changed its partial")
        if fsync:
            partial.seal()  # the long one: a crash in it leaves a partial that can be opened again
        disk.set_times(partial.fd, entry.mtime_ns)
        disk.set_mode(partial.fd, entry.mode)
        if fsync:
            disk.sync_file(partial.fd)
        with root.folder(parts[:-1], make=True) as folder:
            name = _place(partial, folder, parts[-1], policy)
            if fsync:
                root.sync(parts[:-1], folder)
        return b"/".join((*parts[:-1], name))


def _place(partial: Partial, folder: Folder, name: bytes, policy: Policy) -> bytes:
    """Rename or link the partial to its name; the name."""
    if policy is Policy.REPLACE:
        disk.rename(partial.name, name, old_folder=partial.folder.fd, new_folder=folder.fd)
        return name
    for candidate in chain([name], _other_names(name) if policy is Policy.RENAME else ()):
        try:
            disk.link(partial.name, candidate, old_folder=partial.folder.fd, new_folder=folder.fd)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                text = "the file system has no hard links, so only `--exists replace` works there"
                raise DestinationError(f"{disk.show(partial.entry.path)}: {text}") from error
            raise
        disk.unlink(partial.name, folder=partial.folder.fd)
        return candidate
    raise Exists(f"{disk.show(partial.entry.path)}: a file of this name appeared at the destination")
