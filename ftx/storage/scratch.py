"""What a receiver writes in one go: small files and links. Nothing of them is kept when a session breaks off.

They wait in a folder of the session's own, ``.ftx/….new``, complete and under their ids, until they are renamed
together (``commit``). The folder is locked for as long as the session lives; one that nobody holds is what a killed
receiver left, and anybody may remove it.

G5: one sync stands for all of them only where such a sync is known to report what went wrong.

Several threads of a session have to do with these files, in bursts of many short system calls. Each burst holds the
session's turn (``Scratch.turn``), with all that belongs to it: so no file is used by two threads at once, and the
interpreter is not handed over at every call, which would take half as long again as the work. Nobody waits for room
while it has the turn, nor for a sync; but for that of a single file, where each is synced and too many are open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from ftx.protocol.manifest import Buffer, ChunkDigests, DigestName, Entry, Grid, Kind
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk
from ftx.storage.partial import SyncFailed
from ftx.storage.paths import Folder, Root

SUFFIX = b".new"
#: With fewer files in a group each is synced: that does not wait for other programs' data.
GROUP_LEAST = 8
#: A sync for all that took longer waited for somebody else's data, most likely.
GROUP_SLOW_S = 1.0
#: Files that are kept open until they are synced, where each is synced.
MAX_OPEN = 64
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


class Whole:
    """An entry that is written in one go, or has nothing to write: a file of one chunk at most, a link, a folder.

    It looks to the session like a ``Partial`` that holds nothing. Only who has the turn may call it.

    Attributes:
        claimed: its path was taken from the store for it.
        there: it was written, with its metadata.
        synced: and is on the disk.
        fd: still open, so that it can be synced by itself; else -1.
    """

    __slots__ = ("_digest", "_scratch", "claimed", "entry", "fd", "name", "synced", "there")

    def __init__(self, scratch: Scratch, entry: Entry, digest: DigestName, *, claimed: bool = False) -> None:
        self.entry = entry
        self._digest = digest
        self.claimed = claimed
        self.name = b"%x" % entry.id
        self.there = False
        self.synced = False
        self.fd = -1
        self._scratch = scratch

    @property
    def chunks(self) -> int:
        return 1 if self.entry.kind is Kind.FILE and self.entry.size else 0

    @property
    def held(self) -> RangeSet:
        return RangeSet()

    @property
    def doubted(self) -> RangeSet:
        return RangeSet()

    @property
    def digests(self) -> ChunkDigests:
        """Of nothing yet."""
        return ChunkDigests(Grid.of(self.entry.size), self._digest)

    def write(self, _index: int, payload: Buffer) -> None:
        """Write all of it, with its metadata."""
        self._create(payload)

    def write_zeros(self, _start: int, _stop: int) -> None:
        """All of it is zeros: a hole."""
        self._create(b"")

    def complete(self) -> None:
        """Make what has no contents: an empty file, a link."""
        if self.there or self.entry.kind is Kind.FOLDER:
            return
        if self.chunks:
            raise OSError(errno.EIO, "what was written is not there any more")
        self._create(b"")

    def _create(self, payload: Buffer) -> None:
        scratch, entry = self._scratch, self.entry
        folder = scratch.folder().fd
        if self.there:
            self.forget()
        if entry.kind is Kind.SYMLINK:
            disk.make_link(entry.target, self.name, folder=folder)
            self.there = True
            disk.set_link_times(self.name, entry.mtime_ns, folder=folder)
            return
        fd = disk.open_at(self.name, _NEW, 0o600, folder=folder)
        self.there = True
        try:
            if payload:
                disk.write_at(fd, payload, 0)
            else:
                disk.truncate(fd, entry.size)
            disk.set_times(fd, entry.mtime_ns)
            disk.set_mode(fd, entry.mode)
            if scratch.together and entry.mode & 0o400:  # what its owner may not read cannot be opened again
                pass
            elif scratch.keep_open(self):
                self.fd, fd = fd, -1
            else:
                disk.sync_file(fd)
                self.synced = True
        finally:
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        """It was open until it was synced."""
        if self.fd >= 0:
            self._scratch.closed(self)
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # it was synced, or goes
                os.close(fd)

    def forget(self) -> None:
        """Take away what was written."""
        self.close()
        self.synced = False
        if self.there:
            self.there = False
            disk.unlink(self.name, folder=self._scratch.folder().fd)


class Scratch:
    """The folder of one session for what is written in one go. Made when it is first needed.

    Args:
        root: the destination.
        durable: what is published must be on the disk.

    Attributes:
        turn: held by whoever works on the files in it.
        over: their paths are others' from here on, so nothing more is renamed from here (G5): a thread that was stuck
            at the disk would put an old version over a newer one, which has its receipt.
        placing: what is being renamed; it keeps its path until that is done.
    """

    def __init__(self, root: Root, *, durable: bool) -> None:
        self._root = root
        self._durable = durable
        self.turn = threading.RLock()
        self.over = False
        self.placing: Whole | None = None
        self._folder: Folder | None = None
        self._name = b""
        self._lock = threading.Lock()
        self._together: bool | None = None
        self._open: set[Whole] = set()
        self._closed = False

    def folder(self) -> Folder:
        """Where the files wait.

        Raises:
            OSError: it cannot be made, or the session is over.
        """
        if self._folder is not None:
            return self._folder
        with self._lock:
            if self._closed:
                raise FileNotFoundError(errno.ENOENT, "the session is over")
            while self._folder is None:
                # Whoever clears away what nobody has locked may be faster than the lock: then another one is made.
                self._name = secrets.token_hex(16).encode() + SUFFIX
                with self._root.own_folder() as own:
                    disk.make_folder(self._name, 0o700, folder=own.fd)
                    try:
                        folder = Folder(disk.open_folder(self._name, folder=own.fd))
                    except FileNotFoundError:
                        continue
                    except OSError:
                        disk.remove_folder(self._name, folder=own.fd)
                        raise
                    if disk.lock(folder.fd) and os.fstat(folder.fd).st_nlink:
                        self._folder = folder
                    else:
                        os.close(folder.fd)
            if self._together is None:
                self._together = _syncs_together(self._folder.fd)
            return self._folder

    def keep_open(self, whole: Whole) -> bool:
        """Whether a file that was written stays open until it is synced. What fails may else be told to nobody."""
        if len(self._open) >= MAX_OPEN:
            return False
        self._open.add(whole)
        return True

    def closed(self, whole: Whole) -> None:
        self._open.discard(whole)

    @property
    def together(self) -> bool:
        """One sync stands for all, or none is needed."""
        return bool(self._together) or not self._durable

    def sync(self, wholes: Sequence[Whole]) -> None:
        """Wait until these are on the disk.

        Raises:
            SyncFailed: one of them may not be, so none counts (G5).
        """
        try:
            if self._together and len(wholes) >= GROUP_LEAST:
                self.sync_all()
                return
            for whole in wholes:
                if whole.fd >= 0:
                    disk.sync_file(whole.fd)
                elif whole.entry.kind is Kind.FILE and not whole.synced:
                    self._sync_by_name(whole)
        except OSError as error:
            raise SyncFailed(RangeSet([(0, 1)]), error) from error

    def _sync_by_name(self, whole: Whole) -> None:
        """One of a few, where one sync for all was meant: it was closed a moment ago, and nobody has forgotten it."""
        fd = disk.open_at(whole.name, os.O_RDONLY, folder=self.folder().fd)
        try:
            disk.sync_file(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        """Wait until everything on the file system is on the disk."""
        began = time.monotonic()
        disk.sync_file_system(self.folder().fd)
        if time.monotonic() - began > GROUP_SLOW_S:
            self._together = False

    def syncs_together(self, count: int) -> bool:
        """Whether one sync for ``count`` folders or files is the way here."""
        return bool(self._together) and count >= GROUP_LEAST

    def close(self) -> None:
        """Remove it with what is in it. Nobody works on that any more."""
        with self._lock:
            folder, self._folder = self._folder, None
            self._closed = True
        for whole in list(self._open):
            whole.close()
        if folder is None:
            return
        with suppress(OSError), folder:  # what stays is nobody's any more, and goes when it expires
            for name in os.listdir(folder.fd):
                disk.unlink(os.fsencode(name), folder=folder.fd)
            with self._root.own_folder(make=False) as own:
                disk.remove_folder(self._name, folder=own.fd)


#: File systems whose ``syncfs`` waits for everything and reports what failed (syncfs(2), since Linux 5.8).
_TOGETHER = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs"})


def _syncs_together(fd: int) -> bool:
    """Whether one ``syncfs`` can be trusted for all files on the file system of ``fd``."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if platform.system() != "Linux" or version is None or (int(version[1]), int(version[2])) < (5, 8):
        return False
    return hasattr(ctypes.CDLL(None), "syncfs") and disk.file_system(fd) in _TOGETHER
