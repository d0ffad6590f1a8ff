"""The sender's side of the disk: pin one source file, read its chunks, look whether it is still the same.

G10: what was offered is (size, mtime_ns, inode, ctime_ns) of one moment. A source that does not show them any
more was changed; one whose times are too young to show a change is read twice.
"""

from __future__ import annotations

import os
import stat
import time

from ftx.errors import SourceChanged, SourceError
from ftx.protocol.manifest import ZERO_TAG, ChunkDigests, DigestName, Grid, Kind, Pin, source_tag
from ftx.protocol.messages import Offered
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk

#: A ctime younger than this when it is looked at may hide a change in the same tick of the file system's clock.
TRUSTED_AGE_NS = 2_000_000_000


class Source:
    """A pinned source file. Reading goes by position, so any number of lanes may read it at once.

    Raises:
        SourceMissing, SourceError: it cannot be opened, or is not a file.
    """

    def __init__(self, path: bytes, identity: bytes, digest: DigestName) -> None:
        self.path = path
        self._identity = identity
        self._digest = digest
        self.fd = -1
        self.offered: Offered
        self.pin()

    def pin(self) -> None:
        """Open the file as it is now. What is known of its chunks is kept if it is the file that it was."""
        before = self._stamps() if self.fd >= 0 else None
        self.close()
        with disk.source_errors(self.path):
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            what = "a folder; ftx sends single files so far" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise SourceError(f"{disk.show(self.path)}: {what}")
        self.fd = fd
        self._info = info
        self._young = time.time_ns() - max(info.st_ctime_ns, info.st_mtime_ns) < TRUSTED_AGE_NS
        self.grid = Grid.of(info.st_size)
        if before != self._stamps() or before is None:
            self.digests = ChunkDigests(self.grid, self._digest)
        tag = ZERO_TAG if self._young else source_tag(self._identity, info.st_ino, info.st_ctime_ns)
        name = os.path.basename(os.path.abspath(self.path))
        allocated = min(info.st_blocks * 512, info.st_size)
        self.offered = Offered(
            Kind.FILE, name, info.st_size, allocated, stat.S_IMODE(info.st_mode), info.st_mtime_ns, tag
        )

    def _stamps(self) -> tuple[int, int, int, int]:
        info = self._info
        return info.st_size, info.st_mtime_ns, info.st_ino, info.st_ctime_ns

    def holes(self) -> RangeSet:
        """The chunks that lie wholly in holes: they are never read, sent or allocated."""
        data = RangeSet()
        for start, stop in disk.data_ranges(self.fd, 0, self.grid.size):
            data.add(start // self.grid.chunk, -(-stop // self.grid.chunk))
        return data.complement(self.grid.count)

    def read(self, index: int, buffer: memoryview) -> memoryview:
        """Chunk ``index``.

        Raises:
            SourceChanged: the file is shorter now.
            SourceError: the disk.
        """
        view = buffer[: self.grid.length(index)]
        with disk.source_errors(self.path):
            done = disk.read_at(self.fd, view, self.grid.offset(index))
        if done < len(view):
            raise SourceChanged(f"{disk.show(self.path)}: it was cut short while it was being read")
        return view

    def check(self) -> Pin:
        """Whether it is still what was offered."""
        with disk.source_errors(self.path):
            now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == self._stamps()[:2] + self._stamps()[3:]:
            return Pin.REREAD if self._young else Pin.SAME
        return Pin.REREAD if now.st_size > self.grid.size else Pin.CHANGED

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
