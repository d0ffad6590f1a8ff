"""A file that is written and read to see how fast a disk is, and that nobody ever sees: it has no name.

It is gone when it is closed, and so when its process is killed. Where the file system has no files without a name it
loses the one it was made under at once: one of ftx's own, which is never sent and counts for no quota.
"""

from __future__ import annotations

import os
import secrets
import threading
import time

from ftx.protocol.manifest import MIB, Buffer
from ftx.storage import disk
from ftx.storage.inuse import InUse
from ftx.storage.partial import DIRTY_BYTES, SYNC_BYTES
from ftx.storage.paths import BESIDE_PREFIX, BESIDE_SUFFIX

#: What is read goes to the disk in pieces of so many bytes, so that a slow one is noticed soon.
PIECE = 16 * MIB


class Trial(InUse):
    """A file without a name, in an open folder. Any thread may write or read.

    Args:
        folder: a descriptor.
        size: bytes that it may have, at most.
        durable: dirty bytes are bounded, as those of a partial are (G5).

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: int, size: int, *, durable: bool = True) -> None:
        super().__init__()
        self.size = size
        self._durable = durable
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._at = 0
        self._dirty = 0
        self._fd = _unnamed(folder)

    @property
    def due(self) -> bool:
        """There is enough for a sync."""
        return self._durable and self._dirty >= SYNC_BYTES

    def append(self, payload: Buffer) -> None:
        """Write behind what was written; from the start again where that would make it larger than it may be."""
        with self._lock:
            if self._at + len(payload) > self.size:
                self._at = 0
            at, self._at = self._at, self._at + len(payload)
            self._dirty += len(payload)
            late = self._durable and self._dirty >= DIRTY_BYTES
        with self.use() as alive:
            if alive:
                disk.write_at(self._fd, payload, at)
        if late:
            self.sync()

    def sync(self) -> None:
        """Wait until it is on the disk, unless it need not be."""
        with self._sync_lock, self.use() as alive:
            if alive and self._durable:
                with self._lock:
                    self._dirty = 0
                disk.sync_data(self._fd)

    def fill(self, payload: Buffer, seconds: float) -> int:
        """Write ``payload`` again and again, for so long or until it is full; bytes that are on the disk alone then."""
        until = time.monotonic() + seconds
        while self._at + PIECE <= self.size and time.monotonic() < until:
            for _ in range(PIECE // len(payload)):
                self.append(payload)
            self.sync()
        disk.drop_cache(self._fd)
        return self._at

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; bytes read."""
        with self.use() as alive:
            return disk.read_at(self._fd, buffer, offset) if alive else 0

    def _close(self) -> None:
        os.close(self._fd)


def _unnamed(folder: int) -> int:
    """A new file of this user in ``folder``, without a name."""
    try:
        return disk.open_unnamed(folder=folder)
    except OSError:  # the file system has none, or cannot be written to: that shows here again
        name = BESIDE_PREFIX + secrets.token_hex(16).encode() + BESIDE_SUFFIX
        fd = disk.open_at(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, folder=folder)
        try:
            disk.unlink(name, folder=folder)
        except BaseException:
            os.close(fd)
            raise
        return fd
