"""The operating system calls that durability rests on, one function each, with their traps.

Everything in ``storage`` that touches a disk goes through this module, by ``disk.NAME(...)``, so that a test
can crash, fail or reorder at every single call. Errors are plain ``OSError``; ``destination_errors`` and
``source_errors`` turn them into ftx's at the edge.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftx.errors import DestinationError, IsFolder, NoSpace, SourceError, SourceMissing, TooLarge
from ftx.protocol.manifest import Buffer

#: G6: nothing below a root is opened through a link, and no FIFO can make an open wait.
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULLFSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


# --- names -----------------------------------------------------------------------------------------------------------


def open_at(name: bytes, flags: int, mode: int = 0, *, folder: int) -> int:
    """A descriptor for ``name`` in ``folder``, never through a link."""
    return os.open(name, flags | SAFE, mode, dir_fd=folder)


def open_folder(name: bytes, *, folder: int) -> int:
    """A descriptor for the folder ``name`` in ``folder``, never through a link."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | SAFE, dir_fd=folder)


def open_unnamed(*, folder: int) -> int:
    """A descriptor for a new file of this user in ``folder`` that has no name: it is gone when it is closed.

    Raises:
        OSError: also where there is no such thing. Only on Linux, and not on every file system there.
    """
    kind = getattr(os, "O_TMPFILE", None)
    if kind is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return os.open(b".", os.O_RDWR | os.O_CLOEXEC | kind, 0o600, dir_fd=folder)


def make_folder(name: bytes, mode: int, *, folder: int) -> None:
    os.mkdir(name, mode, dir_fd=folder)


def look(name: bytes, *, folder: int) -> os.stat_result | None:
    """What ``name`` is, links not followed; None if there is nothing."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def rename(old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> None:
    """Put ``old`` in the place of ``new``, at once for every observer."""
    os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)


def link(old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> None:
    """Give ``old`` a second name; FileExistsError if there is one. Not replacing means this, never look-then-rename."""
    os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False)


def make_link(target: bytes, name: bytes, *, folder: int) -> None:
    """Make a symbolic link."""
    os.symlink(target, name, dir_fd=folder)


def remove_folder(name: bytes, *, folder: int) -> None:
    """Take an empty folder away."""
    os.rmdir(name, dir_fd=folder)


def unlink(name: bytes, *, folder: int) -> None:
    """Take a name away; one that is gone already is no error."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


# --- contents --------------------------------------------------------------------------------------------------------


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data``: a short write is continued, and then fails with the true reason."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset``; bytes read, fewer only at the end of the file."""
    done = os.preadv(fd, [buffer], offset)
    while 0 < done < len(buffer):
        more = os.preadv(fd, [buffer[done:]], offset + done)
        if not more:
            break
        done += more
    return done


def truncate(fd: int, size: int) -> None:
    """Set a file's size. What is new is a hole: no block is allocated, no zero written."""
    os.ftruncate(fd, size)


def size(fd: int) -> int:
    return os.fstat(fd).st_size


def allocated(fd: int) -> int:
    """Bytes that a file occupies on its disk, also those that have not reached it."""
    return os.fstat(fd).st_blocks * 512


def data_ranges(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The byte ranges inside ``[start, stop)`` that are not holes; all of it where the system cannot tell."""
    if not hasattr(os, "SEEK_DATA"):
        yield start, stop
        return
    while start < stop:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole to the end
            yield start, stop  # the file system cannot tell
            return
        if data >= stop:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), stop)
        yield data, hole
        start = hole


def free_space(fd: int) -> int:
    """Bytes that this user may still allocate on the file system of ``fd``."""
    info = os.fstatvfs(fd)
    return info.f_bavail * info.f_frsize


def total_space(fd: int) -> int:
    """Bytes of the whole file system of ``fd``."""
    info = os.fstatvfs(fd)
    return info.f_blocks * info.f_frsize


# --- durability ------------------------------------------------------------------------------------------------------


def sync_data(fd: int) -> None:
    """Wait until the file's contents (and its size) are on the disk.

    A sync reports an error once: the next one says that all is well, while the data exists in memory only.
    So whoever sees this raise must write again all that it wrote since the last one that did not.
    """
    if _FULLFSYNC is not None:
        fcntl.fcntl(fd, _FULLFSYNC)  # on macOS nothing less reaches the platter
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_file(fd: int) -> None:
    """Wait until the file's contents and metadata are on the disk."""
    if _FULLFSYNC is not None:
        fcntl.fcntl(fd, _FULLFSYNC)
    else:
        os.fsync(fd)


def sync_folder(fd: int) -> None:
    """Wait until the folder's names are on the disk. Some network file systems cannot (EINVAL) and need not."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def sync_file_system(fd: int) -> None:
    """Wait until all that was written to the file system of ``fd`` is on the disk, by whomever it was written.

    It reports an error only to a descriptor that was open before the error came. Only on Linux.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_everything(fd: int) -> None:
    """Wait for the file system of ``fd``; for all of them where the system knows nothing better."""
    try:
        sync_file_system(fd)
    except (AttributeError, OSError):
        os.sync()


def drop_cache(fd: int) -> None:
    """Forget the file's clean pages, so that the next read comes from the disk. A hint: it may do nothing."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


# --- metadata --------------------------------------------------------------------------------------------------------


def set_mode(fd: int, mode: int) -> None:
    """Permission bits only: a peer never sets setuid, setgid or sticky (G6)."""
    os.fchmod(fd, mode & 0o777)


def give_owner_access(fd: int, mode: int) -> None:
    """Let a folder's owner list it, enter it and change names in it; nothing else of ``mode`` changes."""
    os.fchmod(fd, stat.S_IMODE(mode) | 0o700)


def set_mode_of(name: bytes, mode: int, *, folder: int) -> None:
    """``chmod`` of a file or folder of this user that it may not even open; never through a link. Only on Linux.

    Raises:
        PermissionError: it is not this user's, or the system is another.
    """
    if not hasattr(os, "O_PATH"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        os.chmod(f"/proc/self/fd/{fd}", mode & 0o777)  # the descriptor, not a path
    finally:
        os.close(fd)


def make_writable(name: bytes, *, folder: int) -> None:
    """Let this user write to a file of its own again. PermissionError if that cannot be had."""
    fd = open_at(name, os.O_RDONLY, folder=folder)
    try:
        if not is_own_file(os.fstat(fd)):
            raise PermissionError(errno.EPERM, "it is not a file of its own")
        set_mode(fd, 0o600)
    finally:
        os.close(fd)


def set_times(fd: int, mtime_ns: int) -> None:
    os.utime(fd, ns=(mtime_ns, mtime_ns))


def set_link_times(name: bytes, mtime_ns: int, *, folder: int) -> None:
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)


def read_link(name: bytes, *, folder: int) -> bytes:
    return os.readlink(name, dir_fd=folder)


def lock(fd: int) -> bool:
    """Take the file for this process alone, for as long as the descriptor is open; False if another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_mount(one: int, other: int) -> bool:
    """Whether a rename between two folders can work. Bind mounts of one device count as different mounts."""
    if os.fstat(one).st_dev != os.fstat(other).st_dev:
        return False
    return _mount_id(one) == _mount_id(other)


def file_system(fd: int) -> str:
    """The type of the file system of ``fd``, as the system calls it; empty where it does not tell."""
    wanted = _mount_id(fd).split()[-1:]
    try:
        with Path("/proc/self/mountinfo").open("rb") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[:1] == wanted:
                    return fields[fields.index(b"-") + 1].decode()
    except OSError:
        pass
    return ""


def _mount_id(fd: int) -> bytes:
    try:
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""  # not Linux: the device has to do
    try:
        return next((line for line in os.read(info, 4096).splitlines() if line.startswith(b"mnt_id:")), b"")
    finally:
        os.close(info)


# --- errors ----------------------------------------------------------------------------------------------------------


def show(path: bytes) -> str:
    """A path for a message. Control characters are escaped where the message is printed."""
    return path.decode("utf-8", "backslashreplace")


@contextmanager
def destination_errors(path: bytes) -> Iterator[None]:
    """Turn an ``OSError`` of the receiver's disk into the error of its exit code, naming ``path``."""
    try:
        yield
    except OSError as error:
        raise destination_error(path, error) from error


def destination_error(path: bytes, error: OSError) -> DestinationError:
    """An ``OSError`` of the receiver's disk as the error of its exit code, naming ``path``."""
    name = show(path)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(f"{name}: no space left at the destination")
        case errno.EFBIG:
            return TooLarge(f"{name}: larger than the destination's file system takes")
        case errno.EISDIR:
            return IsFolder(f"{name}: a folder has this name at the destination")
        case errno.ELOOP | errno.ENOTDIR:
            return DestinationError(f"{name}: a part of its path is not a folder at the destination")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return DestinationError(f"{name}: not writable at the destination ({error.strerror})")
        case _:
            return DestinationError(f"{name}: {error.strerror or error}")


@contextmanager
def source_errors(path: bytes) -> Iterator[None]:
    """Turn an ``OSError`` of the sender's disk into the error of its exit code, naming ``path``."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceMissing(f"{show(path)}: no such file") from error
    except OSError as error:
        raise SourceError(f"{show(path)}: {error.strerror or error}") from error


def is_own_file(info: os.stat_result) -> bool:
    """A regular file of this user with no other name: writing to it changes nothing else (G6)."""
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1
