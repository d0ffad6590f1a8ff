"""Where the time of one thread goes: waiting for the network, on a processor, at the disk."""

from __future__ import annotations

import os
import time
from types import TracebackType

#: Of the calling thread (Linux): nanoseconds on a processor, in the queue for one, turns.
QUEUE = "/proc/thread-self/schedstat"


class Laps:
    """A stop-watch for the thread that makes it, in nanoseconds. A context manager. Others may read what it shows.

    Time in the queue for a processor counts as time on one: who waits there is held up by processors. Without Linux
    only the time on one is known, and the queue counts as waiting.

    Attributes:
        waiting_ns, processor_ns, disk_ns: so far.
    """

    def __init__(self) -> None:
        self.waiting_ns = self.processor_ns = self.disk_ns = 0
        try:
            self._queue = os.open(QUEUE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._queue = -1
        self._wall = self._processor = 0
        self.start()

    def __enter__(self) -> Laps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self._queue >= 0:
            os.close(self._queue)

    def start(self) -> None:
        """What was before counts for nothing."""
        self._lap()

    def network(self) -> None:
        """What this lap did not need a processor for, it waited for the network."""
        wall, processor = self._lap()
        self.processor_ns += processor
        self.waiting_ns += wall - processor

    def work(self) -> None:
        """This lap computed."""
        self.processor_ns += self._lap()[0]

    def disk(self) -> None:
        """What this lap did not need a processor for, it waited for the disk. A copy into memory is no disk."""
        wall, processor = self._lap()
        self.processor_ns += processor
        self.disk_ns += wall - processor

    def _lap(self) -> tuple[int, int]:
        """Nanoseconds since the last lap: all of them, and those on a processor or in its queue."""
        queued = int(os.pread(self._queue, 64, 0).split()[1]) if self._queue >= 0 else 0
        processor, wall = time.thread_time_ns() + queued, time.monotonic_ns()
        lap = wall - self._wall, processor - self._processor
        self._wall, self._processor = wall, processor
        return lap[0], min(lap)
