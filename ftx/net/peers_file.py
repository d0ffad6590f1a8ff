"""``peers``: whom a receiver of this user lets in, a name and a fingerprint a line."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ftx.net.identity import fingerprint

FILE = "peers"


class Peers:
    """The file in the configuration folder."""

    def __init__(self, config: Path) -> None:
        self.path = config / FILE

    def find(self, public: bytes) -> str | None:
        """The name of the peer with this key; None: there is none."""
        try:
            lines = self.path.read_text("utf-8").splitlines()
        except OSError:
            return None
        return next(
            (name for name, _, key in (line.partition(" ") for line in lines) if key == fingerprint(public)), None
        )

    def add(self, name: str, public: bytes) -> None:
        """Let the holder of this key in from here on.

        Raises:
            OSError: it cannot be written down.
        """
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if self.find(public) is None:
                file.write(f"{name} {fingerprint(public)}\n")
                file.flush()
                os.fsync(fd)
