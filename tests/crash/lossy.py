"""Disks that lose what was not synced: in a power cut, and by a sync that fails."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ftx.storage import disk


class Lost(Enum):
    """What of the things that no sync has covered is gone after a power cut: a file system may keep any part."""

    ALL = "all"
    NAMES = "names"  #: contents were written back, folders were not
    CONTENTS = "contents"  #: folders were written back, contents were not
    PARTIAL = "partial"  #: everything was written back but the partial, so the journal runs ahead of it


@dataclass
class _Step:
    """One thing that happened, and how it is undone."""

    kind: Lost  # NAMES, CONTENTS of a journal, or PARTIAL
    inode: int  # of the file or the folder whose sync makes it durable
    undo: Callable[[], None]
    metadata: bool = False  # a mode or a time, for which ``sync_data`` does not wait


class UnsyncedDisk:
    """Watches the calls of ``disk`` and can undo whatever no sync has covered."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._steps: list[_Step] = []
        self._backups = 0
        self.lock = threading.RLock()

    def install(self) -> None:
        scratch = self._scratch
        scratch.mkdir(exist_ok=True)
        for name in (
            "write_at", "truncate", "set_times", "set_mode", "rename", "link", "make_link", "unlink", "make_folder",
        ):  # fmt: skip
            setattr(disk, name, self._noted(getattr(disk, name), getattr(self, f"_{name}")))
        for name in ("sync_data", "sync_file", "sync_folder"):
            setattr(disk, name, self._synced(getattr(disk, name), metadata=name != "sync_data"))
        disk.sync_file_system = self._all_synced(disk.sync_file_system)
        disk.remove_folder = self._remove_folder

    def cut(self, lost: Lost) -> None:
        """The power fails."""
        with self.lock:
            for step in reversed(self._steps):
                if lost is Lost.ALL or step.kind is lost or (lost is Lost.CONTENTS and step.kind is Lost.PARTIAL):
                    with suppress(FileNotFoundError):  # it never came about: the call failed
                        step.undo()
            self._steps.clear()

    def _noted(self, real: Callable[..., Any], undo: Callable[..., Iterator[_Step]]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                steps = list(undo(*args, **kwargs))
                result = real(*args, **kwargs)
                self._steps += steps
                return result

        return noted

    def _synced(self, real: Callable[[int], None], *, metadata: bool) -> Callable[[int], None]:
        def synced(fd: int) -> None:
            with self.lock:
                real(fd)
                inode = os.fstat(fd).st_ino
                self._steps = [step for step in self._steps if step.inode != inode or step.metadata > metadata]

        return synced

    def _all_synced(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def synced(fd: int) -> None:
            with self.lock:
                real(fd)
                self._steps.clear()

        return synced

    # --- how each call is undone ---

    def _contents(self, fd: int, undo: Callable[[int], None]) -> _Step:
        copy = os.dup(fd)  # it may be renamed and closed by then
        kind = Lost.CONTENTS if os.readlink(f"/proc/self/fd/{fd}").endswith(".journal") else Lost.PARTIAL
        return _Step(kind, os.fstat(fd).st_ino, lambda: undo(copy))

    def _write_at(self, fd: int, data: bytes, offset: int) -> Iterator[_Step]:
        size, before = os.fstat(fd).st_size, os.pread(fd, len(data), offset)

        def undo(fd: int) -> None:
            os.pwrite(fd, before.ljust(len(data), b"\0"), offset)
            os.ftruncate(fd, size)

        yield self._contents(fd, undo)

    def _truncate(self, fd: int, size: int) -> Iterator[_Step]:
        before = os.fstat(fd).st_size
        tail = os.pread(fd, max(0, before - size), size)

        def undo(fd: int) -> None:
            os.ftruncate(fd, before)
            os.pwrite(fd, tail, size)

        yield self._contents(fd, undo)

    def _metadata(self, fd: int, undo: Callable[[int], None]) -> _Step:
        info, copy = os.fstat(fd), os.dup(fd)
        kind = Lost.NAMES if stat.S_ISDIR(info.st_mode) else Lost.PARTIAL
        return _Step(kind, info.st_ino, lambda: undo(copy), metadata=True)

    def _set_times(self, fd: int, mtime_ns: int) -> Iterator[_Step]:
        before = os.fstat(fd).st_mtime_ns
        yield self._metadata(fd, lambda fd: os.utime(fd, ns=(before, before)))

    def _set_mode(self, fd: int, mode: int) -> Iterator[_Step]:
        before = stat.S_IMODE(os.fstat(fd).st_mode)
        yield self._metadata(fd, lambda fd: os.fchmod(fd, before))

    def _backup(self, name: bytes, folder: int) -> Path | None:
        self._backups += 1
        backup = self._scratch / str(self._backups)
        try:
            os.link(name, backup, src_dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return backup

    def _rename(self, old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> Iterator[_Step]:
        backup = self._backup(new, new_folder)
        source, target = os.dup(old_folder), os.dup(new_folder)

        def undo() -> None:
            os.rename(new, old, src_dir_fd=target, dst_dir_fd=source)
            if backup:
                os.rename(backup, new, dst_dir_fd=target)

        yield _Step(Lost.NAMES, os.fstat(new_folder).st_ino, undo)

    def _link(self, old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> Iterator[_Step]:
        target = os.dup(new_folder)
        yield _Step(Lost.NAMES, os.fstat(new_folder).st_ino, lambda: os.unlink(new, dir_fd=target))

    def _make_link(self, target: bytes, name: bytes, *, folder: int) -> Iterator[_Step]:
        copy = os.dup(folder)
        yield _Step(Lost.NAMES, os.fstat(folder).st_ino, lambda: os.unlink(name, dir_fd=copy))

    def _remove_folder(self, name: bytes, *, folder: int) -> None:
        """It is put away, so that what was renamed out of it can come back."""
        with self.lock:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
            try:
                if os.listdir(fd):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            finally:
                os.close(fd)
            self._backups += 1
            away, copy = self._scratch / str(self._backups), os.dup(folder)
            os.rename(name, away, src_dir_fd=folder)
            inode = os.fstat(folder).st_ino
            self._steps.append(_Step(Lost.NAMES, inode, lambda: os.rename(away, name, dst_dir_fd=copy)))

    def _unlink(self, name: bytes, *, folder: int) -> Iterator[_Step]:
        if backup := self._backup(name, folder):
            copy = os.dup(folder)
            yield _Step(Lost.NAMES, os.fstat(folder).st_ino, lambda: os.rename(backup, name, dst_dir_fd=copy))

    def _make_folder(self, name: bytes, mode: int, *, folder: int) -> Iterator[_Step]:
        copy = os.dup(folder)
        self._backups += 1
        away = self._scratch / str(self._backups)  # with all that is in it
        yield _Step(Lost.NAMES, os.fstat(folder).st_ino, lambda: os.rename(name, away, src_dir_fd=copy))


# --- A sync that fails -----------------------------------------------------------------------------------------------


@dataclass
class _Written:
    offset: int
    length: int


class FailingSync:
    """The ``at``-th sync that has something to do fails, and what was written since the last good one is lost.

    As the systems do it: the error is reported once, and the next sync says that all is well. Here the loss shows at
    once, as if the pages had been dropped.
    """

    def __init__(self, at: int, before_failing: Callable[[], None] = lambda: None) -> None:
        self._at = at
        self._before_failing = before_failing
        self._lock = threading.Lock()
        self._written: list[_Written] = []
        self.syncs = 0
        self.failed = False

    @contextmanager
    def installed(self, patch: Any) -> Iterator[FailingSync]:
        write_at, sync_data = disk.write_at, disk.sync_data

        def noted(fd: int, data: bytes, offset: int) -> None:
            write_at(fd, data, offset)
            if not os.readlink(f"/proc/self/fd/{fd}").endswith(".journal"):
                with self._lock:
                    self._written.append(_Written(offset, len(data)))

        def failing(fd: int) -> None:
            with self._lock:
                covered = list(self._written)
                self.syncs += bool(covered)
            if self.failed or self.syncs != self._at:
                sync_data(fd)
                with self._lock:
                    self._written = [piece for piece in self._written if piece not in covered]
                return
            self._before_failing()
            with self._lock:
                for piece in self._written:
                    os.pwrite(fd, b"\xee" * piece.length, piece.offset)
                self._written = []
            self.failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with patch.context() as inner:
            inner.setattr(disk, "write_at", noted)
            inner.setattr(disk, "sync_data", failing)
            yield self
