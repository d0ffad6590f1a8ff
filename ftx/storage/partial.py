"""One incomplete file of a receiver: reopen or create, write, journal, read back. Never renames.

Invariants (``protocol.md``, "Durability"):

* G2: the journal follows the data by ``JOURNAL_BYTES`` or ``JOURNAL_S``, whichever comes first; that is what
  a killed process costs.
* G4: the journal never runs ahead of the data, and nothing is believed because the journal says it.
* G5: dirty bytes are bounded, so that the last sync is short; after a failed sync, all that was written since
  the last good one counts as lost.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ftx.errors import Busy, NoSpace
from ftx.protocol.manifest import Buffer, ChunkDigests, DigestName, Entry, Grid, zeros
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk
from ftx.storage.journal import Journal, JournalHeader
from ftx.storage.paths import BESIDE_PREFIX, BESIDE_SUFFIX, Folder, Root, components

JOURNAL_BYTES = 16 * 1024 * 1024
JOURNAL_S = 0.2
#: A sync is due after so many bytes; at the second number whoever writes has to wait for it.
SYNC_BYTES = 64 * 1024 * 1024
DIRTY_BYTES = 256 * 1024 * 1024
REMEMBERED = 8


class SyncFailed(Exception):
    """A sync failed: ``lost`` are the chunks that may not be on the disk. They are wanted again."""

    def __init__(self, lost: RangeSet, error: OSError) -> None:
        super().__init__(str(error))
        self.lost = lost
        self.error = error


class Partial:
    """An open partial with its journal, both locked for this process.

    Attributes:
        held: chunks that the journal lists for this very source.
        doubted: chunks that it lists for another version of it.
        digests: of chunks that this process has verified, also in an earlier session.
    """

    def __init__(self, root: Root, key: bytes, header: JournalHeader, entry: Entry) -> None:
        self.entry = entry
        self.grid = Grid.of(entry.size)
        self.held = RangeSet()
        self.doubted = RangeSet()
        self.digests = ChunkDigests(self.grid, header.digest)
        self.header = header
        self.key = key
        self.name = key + BESIDE_SUFFIX
        self.journal_name = key + b".journal"
        self._own = root.own_folder()
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._marked = RangeSet()
        self._unjournaled = RangeSet()
        self._unjournaled_bytes = 0
        self._flushed = time.monotonic()
        self._unsynced = RangeSet()
        self._dirty = 0
        self._users = 0
        self._closing = False
        self.fd = self._journal_fd = -1
        self.folder = self._own  # where the partial's name is; another folder if a rename would cross a mount

    # --- opening ---

    def open(self, root: Root, parts: tuple[bytes, ...]) -> None:
        """Lock the journal, find what can be kept, make the rest.

        Raises:
            Busy: another session or process has it.
            OSError: the disk.
        """
        with root.folder(parts[:-1], make=True) as target:
            if not disk.same_mount(target.fd, self._own.fd):
                self.name = BESIDE_PREFIX + self.name
                self.folder = Folder(os.dup(target.fd))
        self._lock_journal()
        journal = Journal(self._journal_fd)
        self._journal = journal
        before = journal.read()
        flags = os.O_RDWR | os.O_CREAT
        self.fd = disk.open_at(self.name, flags, 0o600, folder=self.folder.fd)
        info = os.fstat(self.fd)
        if not disk.is_regular(info) or info.st_nlink != 1:
            raise OSError(errno.EPERM, "its partial is not a file of its own")
        self.header = JournalHeader.of(self.header.peer, self.entry, self.header.digest, info.st_ino)
        if before is not None:
            self._inherit(*before)
        disk.truncate(self.fd, self.entry.size)
        if self.doubted:
            journal.rewrite(self.header.doubted(), self.doubted)
        else:
            journal.rewrite(self.header, self.held)
        self._marked = self.held.copy()

    def _lock_journal(self) -> None:
        while True:
            fd = disk.open_at(self.journal_name, os.O_RDWR | os.O_CREAT, 0o600, folder=self._own.fd)
            if not disk.lock(fd):
                os.close(fd)
                raise Busy(f"{disk.show(self.entry.path)}: another transfer is writing to it")
            named = disk.look(self.journal_name, folder=self._own.fd)
            if named is not None and named.st_ino == os.fstat(fd).st_ino:
                self._journal_fd = fd
                return
            os.close(fd)  # its owner committed and took the name away between our open and our lock

    def _inherit(self, before: JournalHeader, listed: RangeSet) -> None:
        """Take over what an earlier run left, as held or as doubted; or nothing, if it is not about this file."""
        now = self.header
        if (before.peer, before.path, before.inode) != (now.peer, now.path, now.inode):
            return
        if now.trusts(before):
            self.held = listed
        elif before.chunk == now.chunk:
            old = Grid.of(before.size)
            shared = min(old.count, self.grid.count)
            if shared and old.length(shared - 1) != self.grid.length(shared - 1):
                shared -= 1
            self.doubted = RangeSet(listed.overlap(0, shared))

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Keep the descriptors open meanwhile; False if it is closed already.

        A descriptor that is closed under a write in another thread could be anybody's by then.
        """
        with self._lock:
            alive = not self._closing
            self._users += alive
        try:
            yield alive
        finally:
            if alive:
                with self._lock:
                    self._users -= 1
                    last = self._closing and not self._users
                if last:
                    self._close()

    # --- chunks ---

    def write(self, index: int, payload: Buffer) -> None:
        """Put a verified chunk in its place and note it."""
        disk.write_at(self.fd, payload, self.grid.offset(index))
        self._mark(index, index + 1, len(payload))

    def write_zeros(self, start: int, stop: int) -> None:
        """Make chunks ``[start, stop)`` zeros: holes stay holes, only data that is there is overwritten."""
        first, last = self.grid.offset(start), min(self.grid.offset(stop), self.grid.size)
        for at, end in disk.data_ranges(self.fd, first, last):
            for offset in range(at, end, self.grid.chunk):
                disk.write_at(self.fd, zeros(self.grid.chunk)[: end - offset], offset)
        self._mark(start, stop, 0)

    def keep(self, index: int) -> None:
        """A doubted chunk turned out to be the source's."""
        self._mark(index, index + 1, 0)

    def _mark(self, start: int, stop: int, written: int) -> None:
        with self._lock:
            self._marked.add(start, stop)
            self._unjournaled.add(start, stop)
            self._unjournaled_bytes += written
            if written:
                self._unsynced.add(start, stop)
                self._dirty += written
            full = self._unjournaled_bytes >= JOURNAL_BYTES
            if full or time.monotonic() - self._flushed >= JOURNAL_S:
                self._flush()

    def _flush(self) -> None:
        if self._unjournaled:
            self._journal.append(self._unjournaled)
            self._unjournaled = RangeSet()
            self._unjournaled_bytes = 0
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Bring the journal up to date."""
        with self._lock:
            self._flush()

    def trust(self) -> None:
        """Nothing is doubted any more: from here on the journal is about this very source."""
        with self._lock:
            self._journal.rewrite(self.header, self._marked)
            self._unjournaled = RangeSet()

    def read(self, index: int, buffer: memoryview) -> memoryview:
        """Chunk ``index`` as the disk has it; shorter than the grid says if the file is."""
        view = buffer[: self.grid.length(index)]
        return view[: disk.read_at(self.fd, view, self.grid.offset(index))]

    # --- durability ---

    @property
    def dirty(self) -> int:
        """Bytes written since the last sync."""
        return self._dirty

    def sync(self) -> None:
        """Wait until all that was written is on the disk.

        Raises:
            SyncFailed: some of it may not be (G5).
        """
        with self._sync_lock:
            with self._lock:
                unsynced, self._unsynced = self._unsynced, RangeSet()
                self._dirty = 0
            try:
                disk.sync_data(self.fd)
            except OSError as error:
                with self._lock:
                    unsynced.update(self._unsynced)
                    self._unsynced = RangeSet()
                    self._dirty = 0
                    self._marked.difference_update(unsynced)
                    self._unjournaled.difference_update(unsynced)
                    self._journal.rewrite(self.header.doubted() if self.doubted else self.header, self._marked)
                disk.drop_cache(self.fd)
                raise SyncFailed(unsynced, error) from error

    def settle(self) -> None:
        """Before held chunks are read back: to the disk with them, and out of memory (G4)."""
        self.sync()
        disk.drop_cache(self.fd)

    # --- the end ---

    def remove_journal(self) -> None:
        """After the commit; the partial's own name is gone already."""
        disk.unlink(self.journal_name, folder=self._own.fd)

    def close(self) -> None:
        """Let go of it, when nobody uses it any more; what is there is kept for the next run."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            if self._users:
                return
        self._close()

    def _close(self) -> None:
        if self._journal_fd >= 0 and self.fd >= 0:
            with suppress(OSError):  # a full disk: the journal is a hint
                self.flush()
        for fd in (self.fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        if self.folder is not self._own:
            os.close(self.folder.fd)
        os.close(self._own.fd)


@dataclass(frozen=True, slots=True)
class _Memory:
    """What this process has verified of a partial, and of which."""

    header: JournalHeader
    digests: ChunkDigests


class PartialStore:
    """Opens the partials below one root, and remembers between sessions which chunks are verified already.

    Args:
        root: the destination.
        reserve: bytes of free space to leave on its disk.
    """

    def __init__(self, root: Root, reserve: int) -> None:
        self.root = root
        self._reserve = reserve
        self._memory: OrderedDict[bytes, _Memory] = OrderedDict()
        self._open: set[bytes] = set()
        self._lock = threading.Lock()

    def open(self, peer: bytes, entry: Entry, digest: DigestName) -> Partial:
        """The partial of ``peer`` for ``entry``'s path, reopened or made.

        Raises:
            NameRefused, NoSpace, Busy, DestinationError: it cannot be.
        """
        parts = components(entry.path)
        key = hashlib.sha256(peer + entry.path).hexdigest()[:32].encode()
        header = JournalHeader.of(peer, entry, digest, 0)
        with self._lock:
            if entry.path in self._open:
                raise Busy(f"{disk.show(entry.path)}: another transfer is writing to it")
            self._open.add(entry.path)
        try:
            with disk.destination_errors(entry.path):
                partial = Partial(self.root, key, header, entry)
                try:
                    partial.open(self.root, parts)
                    self._check_space(partial)
                except BaseException:
                    partial.close()
                    raise
        except BaseException:
            with self._lock:
                self._open.discard(entry.path)
            raise
        with self._lock:
            memory = self._memory.pop(key, None)
        if memory is not None and memory.header == partial.header and partial.held:
            partial.digests = memory.digests
            for start, stop in partial.held.complement(partial.grid.count):
                partial.digests.forget(start, stop)
        return partial

    def _check_space(self, partial: Partial) -> None:
        info = os.fstat(partial.fd)
        needed = partial.entry.allocated - info.st_blocks * 512
        free = disk.free_space(partial.fd)
        if needed > 0 and free - needed < self._reserve:
            name = disk.show(partial.entry.path)
            raise NoSpace(
                f"{name}: {needed} bytes are needed at the destination, {free} are free "
                f"and {self._reserve} are kept in reserve"
            )

    def release(self, partial: Partial, *, committed: bool) -> None:
        """Close a partial. One that was not committed is kept, and so is what is known of it."""
        partial.close()
        with self._lock:
            self._open.discard(partial.entry.path)
            if not committed:
                self._memory[partial.key] = _Memory(partial.header, partial.digests)
                while len(self._memory) > REMEMBERED:
                    self._memory.popitem(last=False)
