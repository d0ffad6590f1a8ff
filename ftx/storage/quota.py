"""What the folder of one peer holds, against what it may hold."""

from __future__ import annotations

import errno
import os
import stat
import threading

from ftx.errors import DestinationError
from ftx.storage import disk
from ftx.storage.paths import BESIDE_PREFIX, BESIDE_SUFFIX, Root, components
from ftx.storage.unfinished import unfinished

#: Bytes that anything with a name counts for at least: names fill a disk as well.
BLOCK = 4096


class Account:
    """Keeps one peer's folder within its quota. All sessions of the peer share it.

    What counts are the bytes that the disk has allocated: for everything below the folder, whoever put it there, and
    for the peer's partials; ``BLOCK`` at least for each. They are measured by a walk when the first entry of a session
    needs it, and again when one does not fit and others have ended since. So what is replaced or removed makes room,
    and what others put there counts from the next walk on.

    What is under way counts from its offer on: a file of one chunk with its size, a larger one with what the sender
    says that it occupies, and what is written beyond that before it is written. A new version counts beside the old one
    until it has replaced it. The folder can exceed the quota by one chunk for each lane that writes to one file.

    Args:
        root: the destination.
        folder: of the peer, below it.
        peer: the peer id.
        name: of the peer, for messages.
        quota: bytes.
    """

    def __init__(self, root: Root, folder: bytes, peer: bytes, name: str, quota: int) -> None:
        self.quota = quota
        self._root = root
        self._folder = folder
        self._peer = peer
        self._name = name
        self._lock = threading.Lock()  # never held while the disk is waited for
        self._walking = threading.Lock()
        self._measured = False
        self._used = 0
        self._under_way: dict[bytes, int] = {}  # what is in `_used` for each path that is written to
        self._ended = 0  # what is in `_used` for what has ended since the last walk

    def renew(self, quota: int) -> None:
        """Another session begins: with the quota as it is now, and with what is there now."""
        with self._lock:
            self.quota = quota
            self._measured = False

    def grant(self, path: bytes, size: int, there: int = 0) -> None:
        """Something is to be written for ``path``, until ``end``.

        Args:
            size: bytes that it will occupy.
            there: bytes of them that it occupies already, in a partial.

        Raises:
            DestinationError: it does not fit; or nobody knows, because something cannot be looked through.
        """
        self._count(path, max(size, BLOCK), there)

    def grow(self, path: bytes, size: int) -> None:
        """What is written for ``path`` is going to occupy so much.

        Raises:
            DestinationError: it does not fit.
        """
        if size > self._under_way.get(path, 0):
            self._count(path, size, 0)

    def end(self, path: bytes) -> None:
        """Nothing more is written for ``path``. What is there of it counts on."""
        with self._lock:
            self._ended += self._under_way.pop(path, 0)

    def _count(self, path: bytes, size: int, there: int) -> None:
        measured = False  # by this call
        while True:
            with self._lock:
                more = size - there - self._under_way.get(path, 0)
                used = self._used
                if self._measured and used + more <= self.quota:
                    self._used += more
                    self._under_way[path] = size
                    return
                known = self._measured and (measured or not self._ended)
            if known:
                break
            self._measure()
            measured = True
        quota = f"the quota of {self._name}, {self.quota} bytes, of which {used} are used"
        raise DestinationError(
            f"{disk.show(path)}: {more} bytes more do not fit into {quota}. Make room there; or whoever runs the "
            f"receiver changes it with `ftx peers restrict {self._name} --quota SIZE`"
        )

    def _measure(self) -> None:
        with self._walking:
            with self._lock:
                ended = self._ended
            try:
                found = self._below() + self._partials()
            except OSError as error:
                what = disk.show(os.fsencode(error.filename or self._folder))
                text = f"{what}: it cannot be looked through, so nobody knows what it holds ({error.strerror})"
                raise DestinationError(f"{text}; {self._name} has a quota there") from error
            with self._lock:  # what ended meanwhile may have been passed already
                self._ended -= ended
                self._used = found + self._ended + sum(self._under_way.values())
                self._measured = True

    def _below(self) -> int:
        """Bytes of all that is in the folder."""
        total = 0
        twice: set[tuple[int, int]] = set()  # files of several names, which count once
        try:
            folder = self._root.folder(components(self._folder))
        except FileNotFoundError:
            return 0
        with folder:
            left = [b"."]
            while left:
                above = left.pop()
                try:
                    fd = disk.open_at(above, os.O_RDONLY | os.O_DIRECTORY, folder=folder.fd)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        continue  # it went meanwhile
                    error.filename = self._folder + b"/" + above
                    raise
                try:
                    with os.scandir(fd) as entries:
                        for entry in entries:
                            name = os.fsencode(entry.name)
                            if name.startswith(BESIDE_PREFIX) and name.endswith(BESIDE_SUFFIX):
                                continue  # its owner's
                            info = disk.look(name, folder=fd)
                            if info is None or (info.st_dev, info.st_ino) in twice:
                                continue
                            if stat.S_ISDIR(info.st_mode):
                                left.append(above + b"/" + name)
                            elif info.st_nlink > 1:
                                twice.add((info.st_dev, info.st_ino))
                            total += max(info.st_blocks * 512, BLOCK)
                finally:
                    os.close(fd)
        return total

    def _partials(self) -> int:
        """Bytes of the peer's partials, but for those that are under way."""
        found = (item for item in unfinished(self._root) if item.peer == self._peer)
        return sum(max(item.allocated, BLOCK) for item in found if item.path not in self._under_way)
