"""What several threads use and one closes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class InUse:
    """Closed by the last of its users. A descriptor that is closed under a write could be anybody's by then."""

    __slots__ = ("_closing", "_lock", "_users")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False

    def begin(self) -> bool:
        """Keep it open until ``end``; False if it is closed already, and then there is nothing to end."""
        with self._lock:
            if self._closing:
                return False
            self._users += 1
            return True

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closing and not self._users
        if last:
            self._close()

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Keep it open meanwhile; False if it is closed already."""
        alive = self.begin()
        try:
            yield alive
        finally:
            if alive:
                self.end()

    def close(self) -> None:
        """Let go of it, when nobody uses it any more."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            if self._users:
                return
        self._close()

    def _close(self) -> None:
        raise NotImplementedError
