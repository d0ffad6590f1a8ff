"""``known_hosts``: which receivers this user trusts, and by which key. A file that people can read and edit.

A line is a name and a fingerprint; more words are a comment. The name is what the user typed, with the port where it is
not the usual one. Lines of other names are not looked at, whatever is in them.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ftx.errors import UsageError
from ftx.net.identity import fingerprint, public_key
from ftx.protocol.messages import DEFAULT_PORT

FILE = "known_hosts"
_HEAD = "# Receivers that this user trusts, a name and a fingerprint a line.\n"


def name_of(host: str, port: int) -> str:
    """What a receiver is called there: its host, and its port if that is not the usual one."""
    return host if port == DEFAULT_PORT else f"[{host}]:{port}"


class KnownHosts:
    """The file in the configuration folder."""

    def __init__(self, config: Path) -> None:
        self.path = config / FILE

    def find(self, name: str) -> bytes | None:
        """The public key on file for this name; the last, if there are several.

        Raises:
            UsageError: the file cannot be read, others can write to it, or the line of this name means nothing.
        """
        found: bytes | None = None
        for number, line in enumerate(self._lines(), 1):
            words = line.split()
            if words[:1] != [name]:
                continue
            try:
                found = public_key(words[1])
            except (IndexError, ValueError) as error:
                raise UsageError(f"{self.path}, line {number}: no fingerprint behind the name") from error
        return found

    def add(self, name: str, public: bytes) -> None:
        """Trust this key under this name from here on.

        Raises:
            OSError: it cannot be written down.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+", encoding="utf-8", errors="surrogateescape") as file:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = file.read()
            line = f"{name} {fingerprint(public)}\n"
            if line.rstrip() in before.splitlines():
                return  # another process was faster
            ends = not before or before.endswith("\n")
            file.write(("" if before else _HEAD) + ("" if ends else "\n") + line)
            file.flush()
            os.fsync(fd)

    def _lines(self) -> list[str]:
        try:
            with self.path.open(encoding="utf-8", errors="surrogateescape") as file:
                if os.fstat(file.fileno()).st_mode & 0o022:
                    raise UsageError(f"others can write to {self.path}; `chmod 600` it, if it is what it should be")
                return file.read().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from error
