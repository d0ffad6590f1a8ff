"""File systems that take two names for one: real ones, and one made of ``ftx.storage.disk``."""

from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ftx.storage import disk

SIZE = 32 * 1024 * 1024

# --- Made of the disk module -----------------------------------------------------------------------------------------


def fold(name: bytes) -> bytes:
    """What two names have in common that are one: as ext4 with ``casefold`` and Apple's do it."""
    text = unicodedata.normalize("NFC", name.decode("utf-8", "replace")).casefold()
    return unicodedata.normalize("NFC", text).encode()


class FoldedNames:
    """Lets every function of ``disk`` that takes a name in a folder find what is there under any spelling of it.

    A name that is there keeps its spelling; a new one gets the one it is made with. A rename to another spelling of a
    name replaces what has it.
    """

    #: Functions by where their names are: parameter by position, and the keyword of its folder.
    ONE = ("open_at", "open_folder", "make_folder", "look", "unlink", "remove_folder", "make_writable",
           "set_link_times", "read_link")  # fmt: skip

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.ONE:
            patch.setattr(disk, name, self._one(getattr(disk, name)))
        patch.setattr(disk, "make_link", self._make_link(disk.make_link))
        for name in ("rename", "link"):
            patch.setattr(disk, name, self._two(getattr(disk, name)))

    @staticmethod
    def spelled(name: bytes, folder: int) -> bytes:
        """How what ``name`` finds is spelled there; ``name`` if it finds nothing."""
        # A set: a listing may name twice what is there while something else is made or renamed beside it.
        there = {other for other in map(os.fsencode, os.listdir(folder)) if fold(other) == fold(name)}
        assert len(there) <= 1, there
        return there.pop() if there else name

    def _one(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def folded(name: bytes, *args: Any, folder: int, **more: Any) -> Any:
            return real(self.spelled(name, folder), *args, folder=folder, **more)

        return folded

    def _make_link(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def folded(target: bytes, name: bytes, *, folder: int) -> None:
            real(target, self.spelled(name, folder), folder=folder)

        return folded

    def _two(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def folded(old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> None:
            old, new = self.spelled(old, old_folder), self.spelled(new, new_folder)
            real(old, new, old_folder=old_folder, new_folder=new_folder)

        return folded


# --- Real ones -------------------------------------------------------------------------------------------------------


def _do(*command: str | Path) -> str:
    """Run what makes or mounts a file system; the test is skipped, with the reason, where that does not work."""
    name = str(command[0])
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"{name}: {(run.stderr or run.stdout).strip()}")
    return run.stdout.strip()


@contextmanager
def _mounted(*command: str | Path, at: Path) -> Iterator[None]:
    at.mkdir()
    _do(*command, at)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def _image(base: Path) -> Path:
    image = base / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    return image


@contextmanager
def ext4(base: Path) -> Iterator[Path]:
    """Folds case and normalization in folders that were told to."""
    image, at = _image(base), base / "mounted"
    _do("mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding_flags=strict", image)
    with _mounted("mount", "-o", "loop", image, at=at):
        _do("chattr", "+F", at)  # only an empty folder takes it
        yield at


@contextmanager
def tmpfs(base: Path) -> Iterator[Path]:
    """The same in memory, since Linux 6.13."""
    at = base / "mounted"
    with _mounted("mount", "-t", "tmpfs", "-o", "casefold", "tmpfs", at=at):
        _do("chattr", "+F", at)
        yield at


@contextmanager
def vfat(base: Path) -> Iterator[Path]:
    image, at = _image(base), base / "mounted"
    _do("mkfs.vfat", image)
    with _mounted("mount", "-o", "loop,umask=077,quiet", image, at=at):
        yield at


@contextmanager
def ntfs(base: Path) -> Iterator[Path]:
    """By FUSE, which needs nothing of the kernel but that. What it makes it spells in lower case."""
    image, at = _image(base), base / "mounted"
    _do("mkntfs", "-q", "-F", "-Q", image)
    with _mounted("lowntfs-3g", "-o", "ignore_case,umask=077", image, at=at):
        yield at


@contextmanager
def exfat(base: Path) -> Iterator[Path]:
    """By FUSE, which gives each spelling of a name an inode number of its own."""
    image, at = _image(base), base / "mounted"
    _do("mkfs.exfat", image)
    loop = _do("losetup", "-f", "--show", image)
    try:
        with _mounted("mount.exfat-fuse", "-o", "umask=077", loop, at=at):
            yield at
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


REAL = {"ext4": ext4, "tmpfs": tmpfs, "vfat": vfat, "ntfs": ntfs, "exfat": exfat}
