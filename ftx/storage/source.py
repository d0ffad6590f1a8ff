"""One entry of the sender's disk: pin it, read its chunks, look whether it is still the same.

G10: what was offered is (size, mtime_ns, inode, ctime_ns) of one moment. A source that does not show them any
more was changed; one whose times are too young to show a change is read twice.
"""

from __future__ import annotations

import os
import stat
import threading
import time

from ftx.errors import SourceChanged, SourceError
from ftx.protocol.manifest import ZERO_TAG, ChunkDigests, DigestName, Grid, Kind, Pin, source_tag
from ftx.protocol.messages import Offered
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk

#: A ctime younger than this when it is looked at may hide a change in the same tick of the file system's clock.
TRUSTED_AGE_NS = 2_000_000_000

_FOLLOW = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_NOFOLLOW = _FOLLOW | os.O_NOFOLLOW
_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.SYMLINK}


class Place:
    """Where the paths of sources begin: a folder that is held open, so that renaming it away changes nothing.

    Attributes:
        fd: its descriptor; None for the current folder of the process, -1 when it is closed. A thread that is left
            behind then finds nothing, where None would lead it to the current folder.
        path: as the user named it, for messages.
        identity: of this sender, for source tags.
        digest: of chunks in this run.
    """

    __slots__ = ("digest", "fd", "identity", "lock", "path")

    def __init__(self, path: bytes, identity: bytes, digest: DigestName, fd: int | None = None) -> None:
        self.path = path
        self.identity = identity
        self.digest = digest
        self.fd = fd
        self.lock = threading.Lock()  # one for all its sources: there are many, and what it covers is short

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd is not None and fd >= 0:
            os.close(fd)


class Source:
    """A pinned file, folder or link. Reading goes by position, so any number of lanes may read it at once.

    It is one look at what the path names, and stays that: whoever works on what was offered keeps the look that was
    offered, also when there is a newer one (``renewed``).

    Args:
        place: where ``path`` begins.
        path: the source's own path.
        folder: where it goes, relative to the destination.
        name: what it is called there.
        info: how it looks now.
        follow: what ``path`` names may be a link, and what it points to is meant: the user named it.
    """

    __slots__ = (
        "_fd", "_digests", "_follow", "_grid", "_info", "_path", "_place", "_resting", "_users", "_young",
        "folder", "name", "offered",
    )  # fmt: skip

    def __init__(
        self, place: Place, path: bytes, folder: bytes, name: bytes, info: os.stat_result, *, follow: bool = False
    ) -> None:
        self.folder = folder
        self.name = name
        self._place = place
        self._path = path
        self._follow = follow
        self._fd = -1
        self._users = 0
        self._resting = False
        self._info = info
        self._grid: Grid | None = None
        self._digests: ChunkDigests | None = None
        kind = _KINDS[stat.S_IFMT(info.st_mode)]
        size, tag, target = 0, ZERO_TAG, b""
        self._young = False
        if kind is Kind.FILE:
            size = info.st_size
            changed_ns = info.st_ctime_ns if info.st_ctime_ns > info.st_mtime_ns else info.st_mtime_ns
            self._young = time.time_ns() - changed_ns < TRUSTED_AGE_NS
            if not self._young:
                tag = source_tag(place.identity, info.st_ino, info.st_ctime_ns)
        elif kind is Kind.SYMLINK:
            with disk.source_errors(self.path):
                target = os.readlink(path, dir_fd=place.fd)
        allocated = min(info.st_blocks * 512, size)
        mode, mtime_ns = stat.S_IMODE(info.st_mode), info.st_mtime_ns
        self.offered = Offered(kind, name, size, allocated, mode, mtime_ns, tag, target)

    @property
    def path(self) -> bytes:
        """As a person would write it."""
        return os.path.join(self._place.path, self._path)

    @property
    def grid(self) -> Grid:
        if self._grid is None:
            self._grid = Grid.of(self.offered.size)
        return self._grid

    @property
    def digests(self) -> ChunkDigests:
        """Of the chunks that were read."""
        if self._digests is None:
            self._digests = ChunkDigests(self.grid, self._place.digest)
        return self._digests

    @property
    def target_path(self) -> bytes:
        """Where it goes, relative to the destination."""
        return self.folder + b"/" + self.name if self.folder else self.name

    def renewed(self) -> Source:
        """The same path as it is now; this look rests. What is known of its chunks counts on if it is the same file.

        Nobody may note digests for this look any more: they are the new one's.

        Raises:
            SourceMissing, SourceError: it is gone, or is something else now.
        """
        self.rest()
        with disk.source_errors(self.path):
            info = os.stat(self._path, dir_fd=self._place.fd, follow_symlinks=self._follow)
        if stat.S_IFMT(info.st_mode) != stat.S_IFMT(self._info.st_mode):
            raise SourceError(f"{disk.show(self.path)}: it is something else than it was")
        now = Source(self._place, self._path, self.folder, self.name, info, follow=self._follow)
        if self._stamps(info) == self._stamps(self._info):
            now._digests = self._digests
        return now

    def forget(self) -> None:
        """What is known of its chunks does not count for a later look: it changed, whatever its times say."""
        self._digests = None

    @staticmethod
    def _stamps(info: os.stat_result) -> tuple[int, int, int, int]:
        return info.st_size, info.st_mtime_ns, info.st_ino, info.st_ctime_ns

    # --- its contents ---

    def _begin(self) -> int:
        """Its descriptor, opened if need be; ``_end`` must follow."""
        with self._place.lock:
            self._users += 1
            self._resting = False
            if self._fd >= 0:
                return self._fd
        try:
            opened = self._open()  # by whoever finds it closed: nobody waits for a disk under the lock
        except BaseException:
            self._end()
            raise
        with self._place.lock:
            if self._fd < 0:
                self._fd = opened
                return opened
            fd = self._fd
        os.close(opened)
        return fd

    def _open(self) -> int:
        # Only now that it is read: an offer costs no descriptor. What is opened must be what was offered, so a link
        # that is swapped in above it changes nothing.
        with disk.source_errors(self.path):
            fd = os.open(self._path, _FOLLOW if self._follow else _NOFOLLOW, dir_fd=self._place.fd)
            try:
                now = os.fstat(fd)
                grew = now.st_ino == self._info.st_ino and now.st_size > self._info.st_size
                # One that grew is looked at again in the end.
                if self._stamps(now) != self._stamps(self._info) and not grew:
                    raise SourceChanged(f"{disk.show(self.path)}: it changed before it was read")
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _end(self) -> None:
        with self._place.lock:
            self._users -= 1
            unused = self._unused()
        self._close(unused)

    def rest(self) -> None:
        """Nothing more is to be read for now: close it, as soon as nobody reads. Waits for nobody who does."""
        if self._fd < 0 and not self._users:
            return  # as nearly always where files are small; whoever is about to open it calls this when it is done
        with self._place.lock:
            self._resting = True
            unused = self._unused()
        self._close(unused)

    def _unused(self) -> int:
        """The descriptor, taken out, if it is to be closed; -1 if not."""
        if self._users or not self._resting:
            return -1
        fd, self._fd = self._fd, -1
        return fd

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            os.close(fd)

    def holes(self) -> RangeSet:
        """The chunks that lie wholly in holes: they are never read, sent or allocated."""
        if self.offered.allocated >= self.grid.size:
            return RangeSet()
        data = RangeSet()
        fd = self._begin()
        try:
            with disk.source_errors(self.path):
                for start, stop in disk.data_ranges(fd, 0, self.grid.size):
                    data.add(start // self.grid.chunk, -(-stop // self.grid.chunk))
        finally:
            self._end()
        return data.complement(self.grid.count)

    def read(self, index: int, buffer: memoryview) -> memoryview:
        """Chunk ``index``.

        Raises:
            SourceChanged: the file is shorter now, or another one than was offered.
            SourceError: the disk.
        """
        view = buffer[: self.grid.length(index)]
        fd = self._begin()
        try:
            done = disk.read_at(fd, view, self.grid.offset(index))
        except OSError as error:
            raise SourceError(f"{disk.show(self.path)}: {error.strerror or error}") from error
        finally:
            self._end()
        if done < len(view):
            raise SourceChanged(f"{disk.show(self.path)}: it was cut short while it was being read")
        return view

    def read_small(self, buffer: memoryview) -> memoryview:
        """All of a file that fits into ``buffer``, with the look whether it is still what was offered (G10).

        Raises:
            SourceChanged: it is not.
            SourceError: the disk.
        """
        view = buffer[: self.offered.size]
        try:
            fd = os.open(self._path, _FOLLOW if self._follow else _NOFOLLOW, dir_fd=self._place.fd)
            try:
                done = disk.read_at(fd, view, 0)
                now = os.fstat(fd)
                same = self._stamps(now) == self._stamps(self._info)
                if done == len(view) and same and not self._young:
                    return view
                if done == len(view) and (same or (now.st_ino == self._info.st_ino and now.st_size > done)):
                    # Too young to show a change, or it grew: what reads the same twice is what it was in between.
                    again = memoryview(bytearray(len(view)))
                    if disk.read_at(fd, again, 0) == done and again == view:
                        return view
            finally:
                os.close(fd)
        except OSError as error:
            with disk.source_errors(self.path):
                raise error
        raise SourceChanged(f"{disk.show(self.path)}: it changed while it was being sent")

    def check(self) -> Pin:
        """Whether it is still what was offered."""
        fd = self._begin()
        try:
            with disk.source_errors(self.path):
                now = os.fstat(fd)
        finally:
            self._end()
        size, mtime_ns, _, ctime_ns = self._stamps(self._info)
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (size, mtime_ns, ctime_ns):
            return Pin.REREAD if self._young else Pin.SAME
        return Pin.REREAD if now.st_size > size else Pin.CHANGED
