"""The threads of one session, and what stops them.

The first *cause* stops the crew. A broken lane is only evidence: the peer's ERROR, or our own disk's, may be
a moment behind it and explains it; so evidence waits ``SETTLE_S`` for something that ranks over it
(``errors.FtxError.rank``).

Leaving has a deadline. Threads are daemons and kill -9 is safe by design, so one that is stuck in a system
call is left behind rather than waited for.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from ftx.errors import FtxError, InternalError, Interrupted, Leaving

log = logging.getLogger("ftx.crew")

SETTLE_S = 0.5
EVIDENCE_RANK = 3


class Stop:
    """Asked to stop, by a signal or by the program that started the run. One thread waits for it."""

    def __init__(self) -> None:
        self._signal = 0
        # Its `put` may interrupt its own `get`, which an Event or a Condition does not survive.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def request(self, signal_number: int) -> None:
        """Ask; safe in a signal handler. The run ends with exit code 128 + ``signal_number``."""
        self._signal = self._signal or signal_number
        self._asked.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Wait until asked, ``timeout_s`` at most; whether it was."""
        if not self._signal:
            with suppress(queue.Empty):
                self._asked.get(timeout=timeout_s)
        return bool(self._signal)

    def check(self) -> None:
        """Raises ``Interrupted`` if asked."""
        if self._signal:
            raise Interrupted(self._signal)


class Crew:
    """A with-block of threads. Leaving it stops them and waits until all have left, ``leave_s`` seconds at most.

    What they share may be touched after that only by one that is stuck in a system call.

    Args:
        name: prefix of the threads' names.
        leave_s: how long leaving may take.
        on_stop: called once, by the thread that stops the crew; unblocks the others (shuts sockets down).
        on_left: called once, when the last has left: at the end of the with-block, or later by who was stuck.
    """

    def __init__(
        self, name: str, leave_s: float, on_stop: Callable[[], None], on_left: Callable[[], None] | None = None
    ) -> None:
        self._name = name
        self._leave_s = leave_s
        self._on_stop = on_stop
        self._on_left = on_left
        self._working = 0
        self._changed = threading.Condition()
        self._cause: FtxError | None = None
        self._since = 0.0
        self._ended = False
        self._woken = False
        self._stopped = False
        self._gone = False  # nobody waits any more for those that are stuck

    def start(self, what: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread; an exception that leaves it is reported as a failure.

        Raises:
            Leaving: the system has no thread left.
        """
        thread = threading.Thread(target=self.run, args=(what, work), name=f"{self._name}-{what}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Leaving(f"this machine has no thread left for it ({error})") from error

    def run(self, what: str, work: Callable[[], None]) -> None:
        """Run ``work`` in this thread, as one of the crew; not at all if that is leaving."""
        with self._changed:
            if self._stopped:
                return
            self._working += 1
        try:
            self._guarded(what, work)
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()
                late = self._gone and not self._working
            if late:
                self._clear_up()

    def _guarded(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except FtxError as error:
            self.fail(error)
        except Exception as error:  # a bug: it must end the session, not hang it
            log.debug("! a bug in %s", what, exc_info=True)
            failure = InternalError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            self.fail(failure)

    def fail(self, error: FtxError) -> None:
        """Report a failure; the one nearest to the cause is kept."""
        with self._changed:
            if self._ended:
                return
            if self._cause is None:
                self._since = time.monotonic()
            if self._cause is None or error.rank < self._cause.rank:
                self._cause = error
            self._changed.notify_all()

    def end(self) -> None:
        """The work is done: what breaks from now on is no failure."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Whoever waits is to look around now."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the work is done; False after ``timeout_s``, or when somebody calls ``wake``.

        Raises:
            FtxError: the cause, once it is certain.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                now = time.monotonic()
                until = deadline
                if self._cause is not None:
                    certain = self._since + (SETTLE_S if self._cause.rank >= EVIDENCE_RANK else 0)
                    if now >= certain:
                        raise self._cause
                    until = min(until, certain)
                elif self._ended:
                    return True
                if now >= deadline or self._woken:
                    self._woken = False
                    return False
                self._changed.wait(until - now)

    @property
    def stopped(self) -> bool:
        """The crew is leaving: loops end."""
        return self._stopped

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        with self._changed:
            self._stopped = True
        self._on_stop()
        with self._changed:
            all_left = self._changed.wait_for(lambda: not self._working, self._leave_s)
            self._gone = True
        if all_left:
            self._clear_up()

    def _clear_up(self) -> None:
        if self._on_left is not None:
            self._on_left()
