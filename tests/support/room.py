"""Tests that run side by side in several processes, and tests that want no company."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Room:
    """Where tests are. Who comes goes through the gate; who wants to be alone holds it until the room is empty, and on.

    Args:
        folder: the same for all processes.
    """

    def __init__(self, folder: Path) -> None:
        self._gate, self._room = (os.open(folder / name, os.O_CREAT | os.O_RDWR, 0o600) for name in ("gate", "room"))
        self._alone = False

    def enter(self, *, alone: bool) -> None:
        if self._alone and alone:
            return
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        self._alone = alone
        if not alone:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def leave(self) -> None:
        """Explicitly: what a test has forked has these files open as well."""
        for fd in (self._room, self._gate):
            fcntl.flock(fd, fcntl.LOCK_UN)
        self._alone = False
