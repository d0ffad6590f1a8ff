"""What a command does as a process: signals, the trace of ``-vv``, and the way to an exit status.

Rules: only the main thread takes signals. The first SIGINT, SIGTERM or SIGHUP asks the run to stop, a second one leaves
at once: a kill is safe at any moment (G2, G4), so nothing has to be waited for. Whatever ends a run, the last
event is ``finished`` and its code is the exit status (G11).
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ftx.cli.main import BUG
from ftx.cli.report import Output, Report, printable
from ftx.errors import FtxError, Interrupted, UsageError
from ftx.transfer.crew import Stop
from ftx.transfer.events import Finished

#: SIGHUP: the terminal was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How long a thread that only computes keeps the others waiting: those of its own session, and those of others.
ALONE_S, SHARED_S = 0.005, 0.0005

#: Characters of a line that may be a pairing code.
MAX_CODE = 256

log = logging.getLogger("ftx.cli")

#: New objects, less those that went, before cycles are looked for among them (Python: 700).
GARBAGE_AFTER = 50_000


def run(report: Report, work: Callable[[Stop], Finished]) -> int:
    """Run a transfer to its end and return the exit status.

    Args:
        report: shown the end, if ``work`` has not done so itself.
        work: the transfer; stops soon after its argument is asked to.
    """
    rarely_look_for_cycles()
    stop = Stop()
    with signals_stop(stop), report:
        try:
            finished = work(stop)
        except FtxError as error:
            finished = Finished(error.exit_code, str(error))
        except Exception as error:
            log.debug("! %s", error, exc_info=True)
            finished = Finished(1, f"{type(error).__name__}: {error}: {BUG}")
        if not report.finished:
            report(finished)
    return finished.code


def rarely_look_for_cycles() -> None:
    """Next to nothing that a transfer makes is part of one, and a window's entries are many to be looked through."""
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER)


@contextmanager
def signals_stop(stop: Stop, *, second_leaves: bool = True) -> Iterator[None]:
    """While inside, SIGINT, SIGTERM and SIGHUP ask ``stop``.

    Args:
        second_leaves: a second signal ends the process without more ado.
    """
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked and second_leaves:
            os._exit(128 + number)
        asked = True
        stop.request(number)

    before = {number: signal.signal(number, handle) for number in _taken()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken() -> list[int]:
    """The signals to take: who started the process with nohup wants it to outlive the terminal."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def serve_many() -> None:
    """Let this process have many peers at once: an entry under way holds some open files."""
    with suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def share(sessions: int) -> None:
    """So many sessions are under way, of which none may keep the others waiting (G9).

    A thread that never waits, because its peer floods it, takes the interpreter for as long as it may each time
    another one needs it for some microseconds. With one session alone that only means fewer switches.
    """
    sys.setswitchinterval(ALONE_S if sessions <= 1 else SHARED_S)


def ask(question: str) -> bool:
    """Put a yes-or-no question on standard error; False unless a person at a terminal answers yes. See ``ask_line``."""
    return ask_line(f"{question} [y/N]: ").lower() in ("y", "yes")


def somebody_there() -> bool:
    """Whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask_line(question: str) -> str:
    """Put a question on standard error; the line that a person at a terminal answers, without the space around it.

    Main thread only.

    Returns:
        "" if nobody is there.

    Raises:
        Interrupted: SIGINT or SIGTERM came instead of an answer.
    """
    if not somebody_there():
        return ""

    def give_up(number: int, _frame: FrameType | None) -> None:
        # A handler that returns, as the one of signals_stop, would not end the reading of the answer.
        raise Interrupted(number)

    out = Output(sys.stderr)
    before = {number: signal.signal(number, give_up) for number in _taken()}
    try:
        # Not input(): it writes to standard output, which belongs to --json.
        out.write(question)
        answer = sys.stdin.readline()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return answer.strip()


def pairing_code(host: str, descriptor: int | None) -> str | Callable[[], str] | None:
    """The code to pair with ``host``: a line of a descriptor, ``$FTX_CODE``, or who asks for it; None: none of them.

    Raises:
        UsageError: the descriptor gives none.
    """
    if descriptor is not None:
        try:
            with os.fdopen(descriptor, encoding="utf-8", errors="replace", closefd=False) as file:
                code = file.readline(MAX_CODE).strip()
        except OSError as error:
            raise UsageError(f"--code-fd {descriptor}: {error.strerror}") from error
        if not code:
            raise UsageError(f"--code-fd {descriptor}: there is no code")
        return code
    if code := os.environ.get("FTX_CODE", "").strip():
        return code
    if not somebody_there():
        return None
    return lambda: ask_line(f"The pairing code that is shown on {printable(host)}: ")


class _OneLine(logging.Formatter):
    """Log lines whose text cannot steer the terminal: messages quote what came from the other side."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def start_log(verbose: int) -> None:
    """Write the log of ``ftx`` to standard error if ``verbose`` is 2 or more, else nowhere."""
    logger = logging.getLogger("ftx")
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
    if verbose < 2:
        logger.addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler(Output(sys.stderr))
    handler.setFormatter(_OneLine("%(asctime)s.%(msecs)03d %(threadName)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
