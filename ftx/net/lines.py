"""A file of the configuration folder that people read and edit too: a line for each thing that is on file.

Bytes and not text: what others put into it stays as it is. It is believed only while nobody but its user can write to
it, and changed by being replaced: a reader finds it as it was or as it is, and so does whoever comes after a crash.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftx.errors import UsageError


def said(line: bytes) -> list[bytes]:
    """The words of a line in front of its comment, which begins with a word that begins with ``#``."""
    words = line.split()
    return words[: next((at for at, word in enumerate(words) if word.startswith(b"#")), None)]


def appended(lines: list[bytes], line: bytes) -> list[bytes]:
    """The lines of a file with one more at its end."""
    if lines and not lines[-1].endswith(b"\n"):
        lines = [*lines[:-1], lines[-1] + b"\n"]
    return [*lines, line + b"\n"]


class Lines:
    """Such a file.

    Args:
        path: where it is; made when the first line is written.
        head: the comment that a new one begins with.
    """

    def __init__(self, path: Path, head: bytes) -> None:
        self.path = path
        self._head = head

    def words(self) -> Iterator[tuple[int, list[bytes]]]:
        """What each line says, and its number; those that say nothing are left out.

        Raises:
            UsageError: the file cannot be read, or others can write to it.
        """
        try:
            with open(self.path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                lines = self._read(file.fileno())  # a pipe is not waited for
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if words := said(line):
                yield number, words

    def change(self, edit: Callable[[list[bytes]], list[bytes]]) -> None:
        """Put what ``edit`` makes of the lines, each with its end, in their place; durably, and one process at a time.

        What changes nothing makes nothing.

        Raises:
            UsageError: others can write to the file.
            OSError: it cannot be written down.
        """
        if not self.path.exists() and not edit([]):
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path.resolve()  # where it is a link, what that leads to is the file
        with _locked(path) as fd:
            before = self._read(fd)
            after = edit(before.copy())
            if after == before:
                return
            content = b"".join(after)
            self._replace(path, content if before else self._head + content, os.fstat(fd).st_mode & 0o777)

    def _read(self, fd: int) -> list[bytes]:
        info = os.fstat(fd)
        if info.st_mode & 0o022:
            raise UsageError(f"others can write to {self.path}; `chmod 600` it, if it is what it should be")
        with open(fd, "rb", closefd=False) as file:
            return file.readlines()

    def _replace(self, path: Path, content: bytes, mode: int) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(content)
                file.flush()
                os.fsync(fd)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, made if it is missing, for this process alone. What was replaced meanwhile is not the file any more."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            same = False
            with suppress(FileNotFoundError):
                same = os.path.samestat(os.fstat(fd), path.stat())
            if same:
                yield fd
                return
        finally:
            os.close(fd)
