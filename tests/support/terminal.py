"""A process on a terminal, and the person in front of it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time


class OnTerminal:
    """A process whose three streams are a terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.near, far = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=far, stdout=far, stderr=far, env=environment, start_new_session=True
        )
        os.close(far)
        self.shown = ""

    def read(self, until: str = "", timeout_s: float = 20, *, whole: bool = False) -> str:
        """What is shown until ``until`` has been, or until the process has closed the terminal.

        ``whole``: until the line that ``until`` is in has its end.
        """
        deadline = time.monotonic() + timeout_s
        while not (until and until in self.shown) or (whole and "\n" not in self.shown.rpartition(until)[2]):
            ready, _, _ = select.select([self.near], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {until!r} in {self.shown!r}"
            try:
                self.shown += os.read(self.near, 65536).decode()
            except OSError:  # how Linux says that nobody has the far end any more
                break
        return self.shown

    def close(self) -> int:
        os.close(self.near)
        return self.process.wait(timeout=10)
