"""What transfers left unfinished below a destination: listed, discarded, expired.

Rules:

* Nothing that is in use is removed: whoever removes something holds its lock, as a transfer would.
* G6: whatever stands in ``.ftx``, only regular files and folders of this user under ftx's own names are read or
  removed, and no link is followed.
* G8: names are taken one after the other, and of a damaged journal no more than its beginning is read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ftx.errors import NameRefused
from ftx.protocol.manifest import MAX_FILE_SIZE, Grid
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk
from ftx.storage.journal import Journal, JournalHeader, decode
from ftx.storage.partial import JOURNAL_SUFFIX
from ftx.storage.paths import BESIDE_PREFIX, BESIDE_SUFFIX, Folder, Root, file_components
from ftx.storage.scratch import SUFFIX as SCRATCH_SUFFIX

#: One run of ``expire`` removes at most so many; the next one goes on.
MAX_REMOVED = 1000
#: More than the longest header of a journal.
_HEADER_BYTES = 8192
_NAME = re.compile(
    rb"([0-9a-f]{32})(" + b"|".join(map(re.escape, (JOURNAL_SUFFIX, BESIDE_SUFFIX, SCRATCH_SUFFIX))) + rb")"
)


@dataclass(frozen=True, slots=True)
class UnfinishedFile:
    """A partial with its journal.

    Attributes:
        key: what names both in ``.ftx``.
        path: where the file is to be, relative to the root.
        size: bytes of the whole file.
        held: bytes that the journal lists; a hint, as all of it.
        age_s: seconds since it was last touched.
        peer: whose it is, 32 bytes.
        running: a session has it, in this process or another one.
        allocated: bytes that it occupies on the disk.
    """

    key: bytes
    path: bytes
    size: int
    held: int
    age_s: float
    peer: bytes
    running: bool
    allocated: int


# --- listing ---------------------------------------------------------------------------------------------------------


def unfinished(root: Root) -> Iterator[UnfinishedFile]:
    """All that is unfinished below ``root``, in no order. What cannot be resumed any more is left out.

    Raises:
        OSError: ``.ftx`` cannot be read; or, after all the others, one of the journals in it.
    """
    try:
        own = root.own_folder(make=False)
    except FileNotFoundError:
        return
    failure: OSError | None = None
    with own:
        for key, suffix in _names(own):
            if suffix != JOURNAL_SUFFIX:
                continue
            try:
                found = _look_at(root, own, key)
            except FileNotFoundError:
                continue  # its transfer ended meanwhile
            except OSError as error:
                failure = failure or error
                continue
            if found is not None:
                yield found
    if failure is not None:
        raise failure


def _look_at(root: Root, own: Folder, key: bytes) -> UnfinishedFile | None:
    name = key + JOURNAL_SUFFIX
    info = disk.look(name, folder=own.fd)
    if info is None or not disk.is_own_file(info):
        return None
    fd = disk.open_at(name, os.O_RDONLY, folder=own.fd)
    try:
        info = os.fstat(fd)
        listed = _read(fd) if disk.is_own_file(info) else None
        if listed is None:
            return None
        header, held = listed
        with _places(root, own, key, header.path) as places:
            # One that has a second name was published: a crash left it between link and unlink.
            partials = [found for found in _stats(places) if found.st_nlink == 1]
        if not partials:
            return None
        return UnfinishedFile(
            key, header.path, header.size, Grid.of(header.size).bytes_in(held),
            _age_s(info, partials), header.peer, _is_locked(fd), sum(found.st_blocks * 512 for found in partials),
        )  # fmt: skip
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether anybody has the file locked. Whoever wants the lock at this very moment has to ask again."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


# --- removing --------------------------------------------------------------------------------------------------------


def discard(root: Root, item: UnfinishedFile) -> bool:
    """Remove a partial and its journal. False if it is in use, or has ended meanwhile.

    Raises:
        OSError: it cannot be removed.
    """
    with root.own_folder(make=False) as own, _locked(own, item.key) as fd:
        return fd is not None and _remove(root, own, item.key, fd, 0.0) is not None


def expire(root: Root, older_than_s: float) -> list[bytes]:
    """Remove what nobody has touched for so long, and what a killed receiver left that no transfer can use.

    Never what is in use. An error leaves what it is about for the next run; nothing is raised.

    Returns:
        What was removed: destination paths, and names in ``.ftx`` of what has none.
    """
    removed: list[bytes] = []
    with suppress(OSError), root.own_folder(make=False) as own:
        for key, suffix in _names(own):
            gone: bytes | None = None
            with suppress(OSError):
                if suffix == JOURNAL_SUFFIX:
                    gone = _expire_partial(root, own, key, older_than_s)
                elif suffix == BESIDE_SUFFIX:
                    gone = _expire_orphan(own, key, older_than_s)
                else:
                    gone = _expire_scratch(own, key)
            if gone is not None:
                removed.append(gone)
                if len(removed) == MAX_REMOVED:
                    break
    return removed


def clear_abandoned(root: Root) -> None:
    """End what a killed receiver left of files written in one go, before anything is looked at (G5)."""
    with suppress(OSError), root.own_folder(make=False) as own:
        for key, suffix in _names(own):
            if suffix == SCRATCH_SUFFIX:
                with suppress(OSError):
                    _expire_scratch(own, key)


def _expire_partial(root: Root, own: Folder, key: bytes, older_than_s: float) -> bytes | None:
    info = disk.look(key + JOURNAL_SUFFIX, folder=own.fd)
    # Those in use are young: they are not even asked for their lock, which would get in the way of others.
    if info is None or not disk.is_own_file(info) or _age_s(info) < older_than_s:
        return None
    with _locked(own, key) as fd:
        return None if fd is None else _remove(root, own, key, fd, older_than_s)


def _remove(root: Root, own: Folder, key: bytes, journal: int, older_than_s: float) -> bytes | None:
    """Remove what belongs to a locked journal, and last the journal; what was removed, None if it is younger."""
    listed = _read(journal)
    path = listed[0].path if listed else None
    with _places(root, own, key, path) as places:
        if _age_s(os.fstat(journal), _stats(places)) < older_than_s:
            return None
        for folder, name in places:
            _unlink_own(name, folder)
    disk.unlink(key + JOURNAL_SUFFIX, folder=own.fd)
    return path or _shown(key + JOURNAL_SUFFIX)


def _expire_orphan(own: Folder, key: bytes, older_than_s: float) -> bytes | None:
    """A partial without a journal: nothing says any more what it holds."""
    name = key + BESIDE_SUFFIX
    info = disk.look(name, folder=own.fd)
    if info is None or not _is_own(info) or _age_s(info) < older_than_s:
        return None
    if disk.look(key + JOURNAL_SUFFIX, folder=own.fd) is not None:
        return None
    # A transfer that opens it at this moment makes its journal first, and locks it. So does this.
    with _locked(own, key, make=True) as fd:
        if fd is None or disk.size(fd):
            return None
        _unlink_own(name, own.fd)
        disk.unlink(key + JOURNAL_SUFFIX, folder=own.fd)
    return _shown(name)


def _expire_scratch(own: Folder, key: bytes) -> bytes | None:
    """A folder of files written in one go, whose session is gone."""
    name = key + SCRATCH_SUFFIX
    with Folder(disk.open_folder(name, folder=own.fd)) as folder:
        info = os.fstat(folder.fd)
        if info.st_uid != os.geteuid() or not disk.lock(folder.fd) or not _is_named(folder.fd, name, own):
            return None
        # G5: what was renamed from here is found to be there already when it is sent again. It must be durable then.
        disk.sync_everything(folder.fd)
        with os.scandir(folder.fd) as entries:
            for entry in entries:
                _unlink_own(os.fsencode(entry.name), folder.fd, links=True)
        disk.remove_folder(name, folder=own.fd)
    return _shown(name)


# --- what both need --------------------------------------------------------------------------------------------------


def _names(own: Folder) -> Iterator[tuple[bytes, bytes]]:
    """The key and the suffix of each of ftx's names in ``.ftx``."""
    with os.scandir(own.fd) as entries:
        for entry in entries:
            if found := _NAME.fullmatch(os.fsencode(entry.name)):
                yield found[1], found[2]


@contextmanager
def _locked(own: Folder, key: bytes, *, make: bool = False) -> Iterator[int | None]:
    """A locked journal; None if another has it, or if it is not ftx's or not the one of that name any more.

    Args:
        make: make it, if it is missing.
    """
    name = key + JOURNAL_SUFFIX
    info = disk.look(name, folder=own.fd)
    if not make and (info is None or not disk.is_own_file(info)):
        yield None
        return
    fd = disk.open_at(name, os.O_RDWR | (os.O_CREAT if make else 0), 0o600, folder=own.fd)
    try:
        mine = disk.is_own_file(os.fstat(fd)) and disk.lock(fd)
        yield fd if mine and _is_named(fd, name, own) else None
    finally:
        os.close(fd)


def _is_named(fd: int, name: bytes, folder: Folder) -> bool:
    """Whether what is open and locked is still what has the name."""
    named = disk.look(name, folder=folder.fd)
    return named is not None and os.path.samestat(named, os.fstat(fd))


def _read(journal: int) -> tuple[JournalHeader, RangeSet] | None:
    """What a journal says; None if it is damaged, or about what no transfer can be about."""
    start = bytearray(_HEADER_BYTES)
    length = disk.read_at(journal, memoryview(start), 0)
    listed = decode(bytes(start[:length]))
    if listed is None or listed[0].size > MAX_FILE_SIZE:
        return None
    try:
        file_components(listed[0].path)
    except NameRefused:
        return None
    return Journal(journal).read()


@contextmanager
def _places(root: Root, own: Folder, key: bytes, path: bytes | None) -> Iterator[list[tuple[int, bytes]]]:
    """Where the partial may be, as folder and name: in ``.ftx``, or beside its target."""
    name = key + BESIDE_SUFFIX
    places = [(own.fd, name)]
    with ExitStack() as stack:
        if path is not None:
            try:
                target = stack.enter_context(root.folder(file_components(path)[:-1]))
                places.append((target.fd, BESIDE_PREFIX + name))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
        yield places


def _stats(places: list[tuple[int, bytes]]) -> list[os.stat_result]:
    """What is in these places, as far as it is ftx's."""
    found = [disk.look(name, folder=folder) for folder, name in places]
    return [info for info in found if info is not None and _is_own(info)]


def _is_own(info: os.stat_result, *, links: bool = False) -> bool:
    """Whether it is a file of this user, or else a link if ``links`` are its own as well."""
    of_kind = stat.S_ISREG(info.st_mode) or (links and stat.S_ISLNK(info.st_mode))
    return of_kind and info.st_uid == os.geteuid()


def _unlink_own(name: bytes, folder: int, *, links: bool = False) -> None:
    """Take a name away, if it is ftx's. Another name of the same file stays, and so does what a link leads to."""
    info = disk.look(name, folder=folder)
    if info is not None and _is_own(info, links=links):
        disk.unlink(name, folder=folder)


def _age_s(info: os.stat_result, partials: list[os.stat_result] | None = None) -> float:
    """Seconds since a file, or any of its partials, was written to."""
    now = time.time()
    # A partial in the middle of its commit has the time of its source, which may lie in the future.
    stamps = [partial.st_mtime for partial in partials or () if partial.st_mtime <= now]
    return max(0.0, now - max([info.st_mtime, *stamps]))


def _shown(name: bytes) -> bytes:
    return b".ftx/" + name
