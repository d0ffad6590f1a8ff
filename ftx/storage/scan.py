"""Walk what the user named, folder by folder, with the memory of one folder's names.

In each folder first its files and links, sorted; then its subfolders, one after the other; then the folder itself,
because its time is right only when everything in it is there. One odd or unreadable entry never ends the walk.

Each folder is opened by its path below the one that the user named, and must then be the folder that its parent
listed. So a link that is swapped in on the way is found.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from ftx.errors import FtxError, NameRefused, SourceChanged, SourceError
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import MAX_PATH
from ftx.storage import disk
from ftx.storage.paths import is_reserved
from ftx.storage.source import Place, Source

_ENCODING = sys.getfilesystemencoding()
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
_SPECIAL = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


class Odd(NamedTuple):
    """What is not sent. ``error`` says why; None if leaving it out is right, and ``message`` says why.

    Attributes:
        path: where it would go, relative to the destination.
    """

    path: bytes
    message: str
    error: FtxError | None = None


class FolderRead(NamedTuple):
    """No more entries of the folder ``path`` come; ``whole`` if all that is in it could be listed."""

    path: bytes
    whole: bool


Found = Source | Odd | FolderRead


def name_of(path: bytes) -> bytes:
    """What a source is called at the destination; empty where its contents are meant (rsync's rule)."""
    name = os.path.basename(path)
    return b"" if name in (b".", b"..") else name


def check(path: bytes) -> None:
    """Whether what the user named can be sent, as far as a look at it tells.

    Raises:
        NameRefused, SourceMissing, SourceError: it cannot.
    """
    if is_reserved(name_of(path)):
        raise NameRefused(f"{disk.show(path)}: names like .ftx are kept for ftx itself")
    with disk.source_errors(path):
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        elif stat.S_ISDIR(info.st_mode):
            os.close(os.open(path, _FOLDER))
    if what := _SPECIAL.get(stat.S_IFMT(info.st_mode)):
        raise SourceError(f"{disk.show(path)}: {what}, not a regular file")


def top_names(path: bytes) -> list[bytes]:
    """The names at the destination's top that ``path`` takes.

    Raises:
        SourceMissing, SourceError: it cannot be looked at.
    """
    name = name_of(path)
    if name:
        return [name]
    with disk.source_errors(path):
        return [entry for entry in os.listdir(path) if not is_reserved(entry)]


def walk(
    paths: Sequence[bytes], identity: bytes, digest: DigestName, places: list[Place]
) -> Generator[Found, None, None]:
    """Everything below ``paths``, in an order that does not depend on the disk.

    A path that ends with ``/`` stands for its contents. A link that the user named is followed; one that is found in
    a folder is sent as a link. Whoever stops early closes the generator. ``places`` gets what sources hold open: it is
    the caller's to close when nobody reads any more.
    """
    for path in paths:
        name = name_of(path)
        try:
            check(path)
            with disk.source_errors(path):
                info = os.stat(path)
            if not stat.S_ISDIR(info.st_mode):
                yield _entry(Place(b"", identity, digest), path, b"", name, info, follow=True)
                continue
            with disk.source_errors(path):
                place = Place(path, identity, digest, os.open(path, _FOLDER))
            places.append(place)
        except FtxError as error:
            yield Odd(name or path, str(error), error)
            continue
        yield from _tree(place, name, info)


def _entry(place: Place, path: bytes, folder: bytes, name: bytes, info: os.stat_result, *, follow: bool) -> Found:
    """One name as what is found under it."""
    if stat.S_ISREG(info.st_mode) and len(folder) + 1 + len(name) <= MAX_PATH and not is_reserved(name):
        return Source(place, path, folder, name, info, follow=follow)  # so nearly all of them
    target = folder + b"/" + name if folder else name
    if what := _SPECIAL.get(stat.S_IFMT(info.st_mode)):
        return Odd(target, f"{what} is not sent")
    if is_reserved(name):
        return Odd(target, "names like .ftx are kept for ftx itself")
    if len(target) > MAX_PATH:
        error = NameRefused(f"{disk.show(target[:64])}…: a path of {len(target)} bytes, where {MAX_PATH} are the most")
        return Odd(target, str(error), error)
    try:
        return Source(place, path, folder, name, info, follow=follow)
    except FtxError as error:
        return Odd(target, str(error), error)


class _Level:
    """A folder on the way down.

    Attributes:
        path: below the place; empty for the place itself.
        target: where it goes.
        info: how its parent saw it.
        below: names of its subfolders that are still to come, the last first, and which folder each was.
    """

    __slots__ = ("below", "info", "path", "target", "whole")

    def __init__(self, path: bytes, target: bytes, info: os.stat_result) -> None:
        self.path = path
        self.target = target
        self.info = info
        self.below: list[tuple[bytes, int, int]] = []
        self.whole = True


def _tree(place: Place, target: bytes, info: os.stat_result) -> Iterator[Found]:
    levels = [_Level(b"", target, info)]
    yield from _files(place, levels[0], levels)
    while levels:
        level = levels[-1]
        if level.below:
            name, device, inode = level.below.pop()
            path = os.path.join(level.path, name)
            below = os.path.join(level.target, name)
            try:
                with disk.source_errors(os.path.join(place.path, path)):
                    info = os.stat(path, dir_fd=place.fd, follow_symlinks=False)
                if (info.st_dev, info.st_ino) != (device, inode):  # a link may have come into the path
                    raise SourceChanged(f"{disk.show(os.path.join(place.path, path))}: another folder took its place")
            except SourceError as error:
                level.whole = False
                yield Odd(below, str(error), error)
                continue
            levels.append(_Level(path, below, info))
            yield from _files(place, levels[-1], levels)
            continue
        levels.pop()
        yield FolderRead(level.target, level.whole)
        if level.target:  # the destination itself is not the sender's to change
            folder, name = os.path.split(level.target)
            yield _entry(place, level.path or b".", folder, name, level.info, follow=False)


def _files(place: Place, level: _Level, levels: list[_Level]) -> Iterator[Found]:
    """List a folder: yield its files, note its subfolders. One that cannot be listed is taken off ``levels``."""
    shown = os.path.join(place.path, level.path)
    try:
        with disk.source_errors(shown):
            # The place itself may have been named by a link.
            flags = _FOLDER | (os.O_NOFOLLOW if level.path else 0)
            fd = os.open(level.path or b".", flags, dir_fd=place.fd)
        try:
            seen = os.fstat(fd)
            if (seen.st_dev, seen.st_ino) != (level.info.st_dev, level.info.st_ino):
                raise SourceChanged(f"{disk.show(shown)}: another folder took its place")
            with disk.source_errors(shown):
                names = sorted([name.encode(_ENCODING, "surrogateescape") for name in os.listdir(fd)])
            above = level.path + b"/" if level.path else b""
            for name in names:
                try:
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError as error:
                    level.whole = False
                    text = f"{disk.show(os.path.join(shown, name))}: {error.strerror}"
                    yield Odd(os.path.join(level.target, name), text, SourceError(text))
                    continue
                if stat.S_ISDIR(info.st_mode) and not is_reserved(name):
                    level.below.append((name, info.st_dev, info.st_ino))
                else:
                    yield _entry(place, above + name, level.target, name, info, follow=False)
        finally:
            os.close(fd)
    except SourceError as error:
        levels.remove(level)
        if levels:
            levels[-1].whole = False
        yield Odd(level.target, str(error), error)
    level.below.reverse()
