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
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ftx.errors import Busy, DestinationError, NoSpace, TooLarge
from ftx.protocol.manifest import Buffer, ChunkDigests, DigestName, Entry, Grid, zeros
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk
from ftx.storage.inuse import InUse
from ftx.storage.journal import Journal, JournalHeader
from ftx.storage.paths import BESIDE_PREFIX, BESIDE_SUFFIX, Folder, Root, file_components

if TYPE_CHECKING:
    from ftx.storage.quota import Account

JOURNAL_BYTES = 16 * 1024 * 1024
JOURNAL_S = 0.2
#: A sync is due after so many bytes; at the second number whoever writes has to wait for it.
SYNC_BYTES = 64 * 1024 * 1024
DIRTY_BYTES = 256 * 1024 * 1024
REMEMBERED = 8
#: How long a new session waits for what an ended one left under way.
CLOSE_S = 30.0
#: How long a lock that somebody else has is tried for.
LOCK_S = 0.2
#: How long what is known of the free space counts.
SPACE_S = 0.05
JOURNAL_SUFFIX = b".journal"


class SyncFailed(Exception):
    """A sync failed: ``lost`` are the chunks that may not be on the disk. They are wanted again."""

    def __init__(self, lost: RangeSet, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.lost = lost
        self.error = error


class Partial(InUse):
    """An open partial with its journal, both locked for this process.

    Attributes:
        held: chunks that the journal lists for this very source.
        doubted: chunks that it lists for another version of it.
        digests: of chunks that this process has verified, also in an earlier session.
        settled: what was held when it was opened is on the disk, and out of the cache.
        needed: bytes of space that are set aside for what is still to be written.
        account: of a peer with a quota; knows what is written before it is.
    """

    def __init__(self, root: Root, key: bytes, header: JournalHeader, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        self.grid = Grid.of(entry.size)
        self.held = RangeSet()
        self.doubted = RangeSet()
        self.digests = ChunkDigests(self.grid, header.digest)
        self.header = header
        self.key = key
        self.name = key + BESIDE_SUFFIX
        self.journal_name = key + JOURNAL_SUFFIX
        self.needed = 0
        self.account: Account | None = None
        self.settled = False
        self._own = root.own_folder()
        self._sync_lock = threading.Lock()
        self.closed = threading.Event()
        self._marked = RangeSet()
        self._unjournaled = RangeSet()
        self._unjournaled_bytes = 0
        self._flushed = time.monotonic()
        self._stale = False  # the journal says something else than it should
        self._unsynced = RangeSet()
        self._dirty = 0
        self._lost = RangeSet()  # by a failed sync, and not written again yet
        self._failures = 0  # of syncs
        self._opened_stamps = self._closed_stamps = (0, 0, 0)
        self.fd = self._journal_fd = -1
        self.folder = self._own  # where the partial's name is; another folder if a rename would cross a mount

    # --- opening ---

    def open(self, root: Root, parts: tuple[bytes, ...], patient_until_s: float = 0) -> None:
        """Lock the journal, find what can be kept, make the rest.

        Args:
            patient_until_s: monotonic time until which a lock that somebody else has is tried for, if that is longer.

        Raises:
            Busy: another session or process has it.
            OSError: the disk.
        """
        with root.folder(parts[:-1], make=True) as target:
            if not disk.same_mount(target.fd, self._own.fd):
                self.name = BESIDE_PREFIX + self.name
                self.folder = Folder(os.dup(target.fd))
        self._lock_journal(max(time.monotonic() + LOCK_S, patient_until_s))
        journal = Journal(self._journal_fd)
        self._journal = journal
        before = journal.read()
        found = self._open_file()
        self._opened_stamps = _stamps(self.fd)
        inode = os.fstat(self.fd).st_ino
        self.header = JournalHeader.of(self.header.peer, self.entry, self.header.digest, inode)
        if found and before is not None:  # a new file often gets the inode of the one that is gone
            self._inherit(*before)
        disk.truncate(self.fd, self.entry.size)
        self._marked = self.held.copy()
        self._rewrite_journal()

    def _lock_journal(self, give_up_s: float) -> None:
        while self._journal_fd < 0:
            fd = disk.open_at(self.journal_name, os.O_RDWR | os.O_CREAT, 0o600, folder=self._own.fd)
            try:
                if not disk.lock(fd):
                    if time.monotonic() < give_up_s:
                        time.sleep(LOCK_S / 20)  # it may be somebody who only looks whether it is in use
                        continue
                    raise Busy(f"{disk.show(self.entry.path)}: another transfer is writing to it")
                named, info = disk.look(self.journal_name, folder=self._own.fd), os.fstat(fd)
                if named is None or named.st_ino != info.st_ino:
                    continue  # its owner committed and took the name away between our open and our lock
                if not disk.is_own_file(info):
                    raise OSError(errno.EPERM, "its journal is not a file of its own")
                self._journal_fd = fd
            finally:
                if self._journal_fd < 0:
                    os.close(fd)

    def _open_file(self) -> bool:
        """Open the file itself, or make it; whether it was there. Until its commit it is for this user alone."""
        folder = self.folder.fd
        try:
            self.fd = disk.open_at(self.name, os.O_RDWR, folder=folder)
        except FileNotFoundError:
            return self._make_file()
        except PermissionError:
            # A crash between its metadata and its rename left it with the mode of a source nobody may write to.
            try:
                disk.make_writable(self.name, folder=folder)
            except PermissionError:
                return self._make_file()
            self.fd = disk.open_at(self.name, os.O_RDWR, folder=folder)
        info = os.fstat(self.fd)
        if info.st_nlink > 1:
            # A crash between link and unlink: what was here is published under its other name.
            os.close(self.fd)
            self.fd = -1
            return self._make_file()
        if not disk.is_own_file(info):
            raise OSError(errno.EPERM, "its partial is not a file of its own")
        if info.st_mode & 0o777 != 0o600:
            disk.set_mode(self.fd, 0o600)
        return True

    def _make_file(self) -> bool:
        disk.unlink(self.name, folder=self.folder.fd)
        self.fd = disk.open_at(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, folder=self.folder.fd)
        return False

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

    # --- chunks ---

    def write(self, index: int, payload: Buffer) -> None:
        """Put a verified chunk in its place and note it.

        Raises:
            DestinationError: the quota of its peer has no room for it.
        """
        if self.account is not None:
            self.account.grow(self.entry.path, disk.allocated(self.fd) + len(payload))
        failures = self._begin(index, index + 1)
        disk.write_at(self.fd, payload, self.grid.offset(index))
        self._mark(index, index + 1, len(payload), failures)

    def write_zeros(self, start: int, stop: int) -> None:
        """Make chunks ``[start, stop)`` zeros: holes stay holes, only data that is there is overwritten."""
        first, last = self.grid.offset(start), min(self.grid.offset(stop), self.grid.size)
        written = failures = 0
        for at, end in disk.data_ranges(self.fd, first, last):
            if not written:
                failures = self._begin(start, stop)
            for offset in range(at, end, self.grid.chunk):
                piece = zeros(self.grid.chunk)[: end - offset]
                disk.write_at(self.fd, piece, offset)
                written += len(piece)
        self._mark(start, stop, written, failures)

    def compared(self, index: int, *, same: bool) -> None:
        """A doubted chunk turned out to be the source's, or another."""
        if same:
            self._mark(index, index + 1, 0, 0)
        with self._lock:
            self.doubted.discard(index, index + 1)

    def _begin(self, start: int, stop: int) -> int:
        """Chunks are about to be written. Noted before, so that a sync that fails meanwhile counts them as lost."""
        with self._lock:
            self._unsynced.add(start, stop)
            return self._failures

    def _mark(self, start: int, stop: int, written: int, failures: int) -> None:
        """Chunks are in place; ``failures`` is what ``_begin`` said."""
        with self._lock:
            if written:
                # And noted after, because a sync that succeeds meanwhile may not have seen them.
                self._unsynced.add(start, stop)
                self._dirty += written
                self.needed = max(0, self.needed - written)
                if failures != self._failures:
                    return  # lost already, and wanted again
            self._lost.discard(start, stop)
            self._marked.add(start, stop)
            self._unjournaled.add(start, stop)
            self._unjournaled_bytes += written
            full = self._unjournaled_bytes >= JOURNAL_BYTES
            if full or time.monotonic() - self._flushed >= JOURNAL_S:
                self._flush()

    def _flush(self) -> None:
        with suppress(OSError):  # a hint: a disk that fails shows itself where it matters; the next flush tries again
            if self._stale:
                self._rewrite_journal()
            elif self._unjournaled:
                self._journal.append(self._unjournaled)
                self._unjournaled = RangeSet()
                self._unjournaled_bytes = 0
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Bring the journal up to date, as far as the disk takes it."""
        with self._lock:
            self._flush()

    def trust(self) -> None:
        """Nothing is doubted any more: from here on the journal is about this very source."""
        with self._lock:
            self._stale = True
            self._flush()

    def _rewrite_journal(self) -> None:
        """Begin the journal anew: what is held; while something is doubted, as chunks of another version."""
        listed = self._marked.copy()
        listed.update(self.doubted)
        self._journal.rewrite(self.header.doubted() if self.doubted else self.header, listed)
        self._stale = False
        self._unjournaled = RangeSet()
        self._unjournaled_bytes = 0

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
                    self._lost.update(unsynced)
                    self._failures += 1
                    self._marked.difference_update(unsynced)
                    self._stale = True
                    self._flush()
                disk.drop_cache(self.fd)
                raise SyncFailed(unsynced, error) from error

    def seal(self) -> None:
        """The last sync, before the commit: a good one does not bring back what an earlier one lost (G5).

        Raises:
            SyncFailed: something is not on the disk.
        """
        self.sync()
        with self._lock:
            if self._lost:
                raise SyncFailed(self._lost.copy(), OSError(errno.EIO, "an earlier sync failed"))

    # --- the end ---

    def remove_journal(self) -> None:
        """After the commit; the partial's own name is gone already. One that stays goes when the entry comes again."""
        with suppress(OSError):
            disk.unlink(self.journal_name, folder=self._own.fd)

    def _close(self) -> None:
        """What is there is kept for the next run."""
        if self._journal_fd >= 0 and self.fd >= 0:
            self.flush()
            self._closed_stamps = _stamps(self.fd)
        for fd in (self.fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        if self.folder is not self._own:
            os.close(self.folder.fd)
        os.close(self._own.fd)
        self.closed.set()

    def remember(self, before: Partial) -> None:
        """Take over the digests of what an earlier session of this process has verified.

        Not if anybody wrote to the file since then (G4), and not of what was not synced: an error may have come
        and gone since (G5). That is read back.
        """
        if before.header != self.header or before._failures or before._closed_stamps != self._opened_stamps:
            return
        self.digests = before.digests
        for ranges in (self.held.complement(self.grid.count), before._unsynced):
            for start, stop in ranges:
                self.digests.forget(start, stop)


class PartialStore:
    """Opens the partials below one root, and remembers between sessions which chunks are verified already.

    Args:
        root: the destination.
        reserve: bytes of free space to leave on its disk.
        patience_s: for so long from now on, a partial that another process has is waited for.
    """

    def __init__(self, root: Root, reserve: int, patience_s: float = 0) -> None:
        self.root = root
        self._reserve = reserve
        self._patient_until_s = time.monotonic() + patience_s
        self._memory: OrderedDict[bytes, Partial] = OrderedDict()
        self._open: dict[bytes, Account | None] = {}
        self._partials: set[Partial] = set()  # those that are open
        self._left: tuple[int, frozenset[bytes]] = -1, frozenset()  # as it was when the folder had changed then
        self._spare = 0  # what may still be granted, and since when
        self._spare_s = 0.0
        self._free = 0  # as it was when it was looked at
        self._looked_s = 0.0
        self._lock = threading.Lock()  # never held while the disk is waited for: whoever leaves needs it (G9)

    def open(
        self, peer: bytes, entry: Entry, digest: DigestName, *, root: Root | None = None,
        account: Account | None = None,
    ) -> Partial:  # fmt: skip
        """The partial of ``peer`` for ``entry``'s path, reopened or made.

        Args:
            root: the peer's view of the destination.
            account: of a peer with a quota.

        Raises:
            NameRefused, NoSpace, TooLarge, Busy, DestinationError: it cannot be.
        """
        parts = file_components(entry.path)
        key = key_of(peer, entry.path)
        header = JournalHeader.of(peer, entry, digest, 0)
        self.claim(entry.path, account=account)
        try:
            with self._lock:
                before = self._memory.get(key)
            # Whoever was still reading or writing when it was released has it locked until that is over.
            if before is not None and not before.closed.wait(CLOSE_S):
                raise Busy(f"{disk.show(entry.path)}: the disk has not finished with an earlier transfer of it")
            with disk.destination_errors(entry.path):
                fresh = key not in self.left()
                if fresh:  # nothing of it is there, and nothing is left of it if it does not fit
                    self._check_room(entry.path, entry.allocated, self.root.fd)
                    if account is not None:
                        account.grant(entry.path, entry.allocated)
                partial = Partial(self.root, key, header, entry)
                partial.account = account
                try:
                    partial.open(root or self.root, parts, self._patient_until_s)
                    if account is not None and not fresh:
                        there = disk.allocated(partial.fd)
                        account.grant(entry.path, max(entry.allocated, there), there)
                    self._set_aside(partial)
                except BaseException:
                    partial.close()
                    raise
        except BaseException:
            self.unclaim([entry.path])
            raise
        with self._lock:
            self._memory.pop(key, None)
        if before is not None:
            partial.remember(before)
        return partial

    def claim(self, path: bytes, needed: int = 0, account: Account | None = None) -> None:
        """Have a destination path for one transfer alone, until ``unclaim`` or ``release``.

        Args:
            needed: bytes, where they are written in one go; what needs longer has its space set aside.
            account: told when others may have the path.

        Raises:
            Busy: another has it.
            NoSpace, TooLarge: there is no room, or never will be.
        """
        if needed and (time.monotonic() >= self._spare_s + SPACE_S or self._spare < needed):
            self._look_for_spare(path)
        with self._lock:
            if path in self._open:
                raise Busy(f"{disk.show(path)}: another transfer is writing to it")
            spare = self._spare
            fits = not needed or spare - needed >= self._reserve
            if fits:
                self._spare -= needed
                self._open[path] = account
        if not fits:
            raise self._no_space(path, needed, spare, self.root.fd)

    def claim_all(self, entries: Sequence[Entry]) -> bool:
        """Have the paths of all of these, which are written in one go; or of none, where one cannot be had at once."""
        needed = sum([entry.allocated for entry in entries])
        paths = [entry.path for entry in entries]
        with self._lock:
            known = time.monotonic() < self._spare_s + SPACE_S
            if not known or self._spare - needed < self._reserve:
                return False
            if len(set(paths)) < len(paths) or not self._open.keys().isdisjoint(paths):
                return False
            self._spare -= needed
            self._open.update(dict.fromkeys(paths))
            return True

    def unclaim(self, paths: Sequence[bytes]) -> None:
        """Others may have these now."""
        with self._lock:
            for path in paths:
                if (account := self._open.pop(path, None)) is not None:
                    account.end(path)

    def _set_aside(self, partial: Partial) -> None:
        """Set the space aside that the partial may still need."""
        needed = max(0, partial.entry.allocated - disk.allocated(partial.fd))
        self._check_room(partial.entry.path, needed, partial.fd, partial)

    def _look_for_spare(self, path: bytes) -> None:
        """What is free beside what is set aside. Looked at a few times a second; what is claimed then is subtracted."""
        with disk.destination_errors(path):
            free = disk.free_space(self.root.fd)
        with self._lock:
            self._spare_s = time.monotonic()
            self._spare = free - sum(partial.needed for partial in self._partials)

    def spare(self, fd: int) -> int:
        """Bytes that are free on the file system of ``fd`` beside what is set aside and what is kept in reserve."""
        free = disk.free_space(fd)
        with self._lock:
            return free - sum(partial.needed for partial in self._partials) - self._reserve

    def _check_room(self, path: bytes, needed: int, fd: int, for_: Partial | None = None) -> None:
        """Raises NoSpace or TooLarge if so much does not fit; sets it aside for this partial if it does."""
        free = disk.free_space(fd)
        with self._lock:
            free -= sum(partial.needed for partial in self._partials)
            fits = not needed or free - needed >= self._reserve
            if fits and for_ is not None:
                for_.needed = needed
                self._partials.add(for_)
        if not fits:
            raise self._no_space(path, needed, free, fd)

    def _no_space(self, path: bytes, needed: int, free: int, fd: int) -> DestinationError:
        kind = TooLarge if needed > disk.total_space(fd) - self._reserve else NoSpace
        return kind(
            f"{disk.show(path)}: {needed} bytes are needed at the destination, {max(0, free)} are free "
            f"and {self._reserve} are kept in reserve"
        )

    def release(self, partial: Partial, *, committed: bool) -> None:
        """Close a partial. One that was not committed is kept, and so is what is known of it."""
        partial.close()
        self.unclaim([partial.entry.path])
        with self._lock:
            self._partials.discard(partial)
            if not committed:
                self._memory[partial.key] = partial
                while len(self._memory) > REMEMBERED:
                    self._memory.popitem(last=False)

    def check_reserve(self) -> None:
        """Raises NoSpace while less is free than is kept in reserve. Looks a few times a second."""
        now = time.monotonic()
        if now >= self._looked_s + SPACE_S:
            self._free = disk.free_space(self.root.fd)
            self._looked_s = now
        if self._free < self._reserve:
            raise NoSpace(f"{self._free} bytes are free at the destination and {self._reserve} are kept in reserve")

    def left(self) -> frozenset[bytes]:
        """The keys of all partials, of transfers under way too. Listed anew when the folder has changed."""
        try:
            own = self.root.own_folder(make=False)
        except (FileNotFoundError, PermissionError):
            return frozenset()  # none, or not this user's: nothing of ours is in it
        with own:
            changed = os.fstat(own.fd).st_mtime_ns
            at, left = self._left
            if changed != at:
                names = map(os.fsencode, os.listdir(own.fd))
                left = frozenset(name.removesuffix(JOURNAL_SUFFIX) for name in names if name.endswith(JOURNAL_SUFFIX))
                self._left = changed, left
            return left

    def clear(self, peer: bytes, entry: Entry, *, fsync: bool, root: Root | None = None) -> None:
        """The entry is there under its name already: end what a crash left of its commit (G5).

        Args:
            root: the peer's view of the destination.

        Raises:
            DestinationError: its name cannot be made durable.
        """
        parts = file_components(entry.path)
        key = key_of(peer, entry.path)
        try:
            own = self.root.own_folder(make=False)
        except OSError:
            return  # none, or not this user's: nothing of ours is in it
        with own, disk.destination_errors(entry.path):
            if disk.look(key + JOURNAL_SUFFIX, folder=own.fd) is None:
                return
            fd = disk.open_at(key + JOURNAL_SUFFIX, os.O_RDWR, folder=own.fd)
            try:
                if not disk.lock(fd):
                    return  # another transfer is at it
                with (root or self.root).folder(parts[:-1]) as folder:
                    if fsync:
                        self.root.sync(parts[:-1], folder)
                    with suppress(OSError):  # what stays costs space, and the next run tries again
                        disk.unlink(BESIDE_PREFIX + key + BESIDE_SUFFIX, folder=folder.fd)
                        disk.unlink(key + BESIDE_SUFFIX, folder=own.fd)
                        disk.unlink(key + JOURNAL_SUFFIX, folder=own.fd)
            finally:
                os.close(fd)


def key_of(peer: bytes, path: bytes) -> bytes:
    """What names the partial of a peer and a path."""
    return hashlib.sha256(peer + path).hexdigest()[:32].encode()


def _stamps(fd: int) -> tuple[int, int, int]:
    """What shows that somebody wrote to a file."""
    info = os.fstat(fd)
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns
