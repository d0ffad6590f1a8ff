"""From events to what people and programs see: JSON lines, plain lines, a bar.

Rules: standard output carries JSON objects and nothing else; everything for people goes to standard error.
Text that came from the other side goes through ``printable`` before it is shown (names, messages, addresses).
A reader that goes away (``| head``) never ends a transfer. tqdm is imported when a bar is drawn.

Events come from one thread; so do all calls here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from ftx.cli.main import BUG
from ftx.protocol.messages import DEFAULT_PORT
from ftx.transfer.events import (
    BenchFinished,
    Code,
    EntryEnded,
    Event,
    Finished,
    Listening,
    Paired,
    PairFinished,
    Paused,
    Progress,
    Resumed,
    Retry,
    SessionEnd,
    SessionUp,
    Tuned,
    Warn,
)

#: Where there is no terminal, progress is a line in so many seconds.
LINE_EVERY_S = 60.0
#: Progress as JSON comes about so often.
JSON_EVERY_S = 1.0
#: A bar leaves so many columns free: what the terminal echoes for Ctrl-C must not begin a new line.
FREE_COLUMNS = 3
#: A bar as tqdm draws it, and one for a narrow terminal, without the time that has passed.
WIDE = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
NARROW = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [<{remaining}{postfix}]"
WIDE_COLUMNS = 75

NOTHING = Progress(0, 0, 0, 0, 0, 0)


def printable(text: str | bytes) -> str:
    """``text`` on one line and without power over the terminal.

    Escaped is what Unicode does not count as printable: control characters (C0, C1, so all ANSI sequences),
    bidirectional overrides and other invisible ones, line separators, and bytes that are not UTF-8.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def human_bytes(count: float) -> str:
    """Bytes for people, in powers of 1024: ``1.5 GiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """A duration for people: ``4.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def summary(event: Finished, moved: str = "sent") -> str:
    """The one line at the end of a run; ``moved`` is what the bytes were, ``sent`` or ``received``."""
    failed = f" and {event.failed} failed" if event.failed else ""
    other = f", {event.kept} different and kept there" if event.kept else ""
    other += f", {event.left_out} left out" if event.left_out else ""
    failed += other + (" (-v says which)" if other else "")
    less = f" as {human_bytes(event.bytes_wire)}" if 0 < event.bytes_wire < event.bytes_sent else ""
    rate = f", {human_bytes(event.bytes_sent / event.seconds)}/s" if event.seconds > 0 and event.bytes_sent else ""
    return (
        f"{files(event.files)} done{failed}; of {human_bytes(event.bytes_total)}, "
        f"{human_bytes(event.bytes_sent)} {moved}{less} and {human_bytes(event.bytes_reused)} already there; "
        f"{human_seconds(event.seconds)}{rate}"
    )


def entry_line(event: EntryEnded) -> str:
    """The line of an entry that ended (``-v``)."""
    moved = f"{human_bytes(event.sent)} sent, {human_bytes(event.reused)} already there"
    why = f": {printable(event.message)}" if event.message else ""
    return f"{event.state} {printable(event.path)} ({human_bytes(event.size)}; {moved}){why}"


class Output:
    """A text stream that may go away at any time; writing to it then does nothing, and raises nothing.

    Attributes:
        failure: why it went away.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.failure: Exception | None = None
        self._stream = stream  # None: Python found the descriptor closed when it started

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "ascii"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def columns(self) -> int:
        """Width of the terminal at this moment, 80 where nobody knows."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                return os.get_terminal_size(self._stream.fileno()).columns or 80
        return 80

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(self._stream)
                self.failure = error
        return len(text)

    def flush(self) -> None:
        """Nothing is held back; for those who expect a stream."""

    def _give_up(self, stream: TextIO) -> None:
        self._stream = None
        # What the stream still holds is flushed when Python exits, and must not fail then.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class Bar:
    """Progress as one tqdm bar on the last line of a terminal; other lines go above it.

    The bar is erased in the end and never left behind: what stays on the screen are lines.
    """

    def __init__(self, out: Output, label: str) -> None:
        self._out = out
        self._label = label
        self._bar: Any = None
        self._began = time.time()
        self._moved_before = 0

    def begin(self, moved: int) -> None:
        """Time counts from now on. ``moved`` bytes of the run were moved before, and are not part of the rate."""
        self._began = time.time()
        self._moved_before = moved

    def update(self, event: Progress) -> None:
        if not event.bytes_total:
            return  # nothing is known yet, or there is nothing to move
        moved = max(0, event.bytes_done - event.bytes_reused)
        initial = event.bytes_reused + min(self._moved_before, moved)
        if self._bar is None:
            self._bar = self._made(event.bytes_total, initial)
        bar = self._bar
        bar.ncols = self._width()
        bar.bar_format = WIDE if bar.ncols >= WIDE_COLUMNS else NARROW
        bar.total = event.bytes_total
        # What is found to be there already moves the bar, but is not part of this run's rate.
        found = initial - bar.initial
        bar.initial += found
        bar.n += found
        bar.last_print_n += found
        if moved := event.bytes_done - bar.n:
            bar.update(moved)
        known = bar.format_dict["rate"]
        # tqdm itself would show the rate in powers of 1000 beside sizes in powers of 1024.
        bar.postfix = "" if known is None else f"{human_bytes(max(0, known))}/s"
        bar.refresh()

    def line(self, text: str) -> None:
        self._erase()
        self._out.write(text + "\n")
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Erase the bar. The next ``update`` draws a new one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._erase()

    def _made(self, total: int, initial: int) -> Any:
        import threading

        from tqdm import tqdm

        # tqdm's own lock is one between processes, and its monitor a thread: neither is needed for one bar.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0
        bar: Any = tqdm(
            desc=self._shortened(),
            total=total,
            initial=initial,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            miniters=0,
            leave=False,
            file=self._out,
            ncols=self._width(),
            bar_format=NARROW,
        )
        bar.start_t = bar.last_print_t = self._began
        return bar

    def _shortened(self) -> str:
        most = max(8, self._out.columns() // 5)
        return self._label if len(self._label) <= most else self._label[: most - 1] + "…"

    def _width(self) -> int:
        return max(10, self._out.columns() - FREE_COLUMNS)

    def _erase(self) -> None:
        # Blanks and no escape sequence, which not every terminal has; wide enough for an echoed ^C.
        self._out.write("\r" + " " * (self._out.columns() - 1) + "\r")


class MinuteLines:
    """Progress as a line a minute."""

    def __init__(self, out: Output, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._label = label
        self._clock = clock
        self._at = clock()
        self._moved_before = 0

    def begin(self, moved: int) -> None:
        """Time counts from now on. ``moved`` bytes of the run were moved before, and are not part of the rate."""
        self._at = self._clock()
        self._moved_before = moved

    def update(self, event: Progress) -> None:
        passed = self._clock() - self._at
        if passed < LINE_EVERY_S:
            return
        moved = event.bytes_done - event.bytes_reused
        rate = max(0, moved - self._moved_before) / passed
        self.begin(moved)
        of, left = "", ""
        if event.bytes_total:
            of = f" of {human_bytes(event.bytes_total)} ({event.bytes_done * 100 // event.bytes_total} %)"
            if rate:
                left = f", {human_seconds((event.bytes_total - event.bytes_done) / rate)} left"
        self.line(f"{self._label}: {human_bytes(event.bytes_done)}{of}, {human_bytes(rate)}/s{left}")

    def line(self, text: str) -> None:
        self._out.write(text + "\n")

    def close(self) -> None:
        """Nothing stands on the screen that would have to go."""


class Report:
    """Shows the events of one run; call it with each. A context manager: leaving it takes the bar away.

    Args:
        receiving: the run is a receiver's, which tells of each session.
        label: name of what is under way, in progress.
        json_lines: events go to ``out`` as JSON; people then see errors only.
        quiet: people see errors only.
        verbose: 1: a line for each entry. 2: no bar, because a trace is being written to the same place.
        out, err: where to write; this process's standard streams by default.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        *,
        receiving: bool,
        label: str,
        json_lines: bool = False,
        quiet: bool = False,
        verbose: int = 0,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.finished = False
        self._receiving = receiving
        self._json = Output(out or sys.stdout) if json_lines else None
        self._silent = quiet or json_lines
        self._verbose = verbose > 0 and not quiet
        self._clock = clock
        self._sessions: set[str] = set()
        self._last = NOTHING
        self._progress_at = clock() - JSON_EVERY_S
        self._retry_shown_at: float | None = None
        self._failure: EntryEnded | None = None
        self._paused = False
        stream = Output(err or sys.stderr)
        self.on_terminal = stream.isatty()
        self._display: Bar | MinuteLines
        if self.on_terminal and not self._silent and verbose < 2:
            self._display = Bar(stream, printable(label))
        else:
            self._display = MinuteLines(stream, printable(label), clock)

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.close()

    def say(self, text: str) -> None:
        """A line for people; not with ``--quiet`` or ``--json``."""
        if not self._silent:
            self._display.line(text)

    def __call__(self, event: Event) -> None:
        if self._json is not None and self._due(event):
            lost = self._json.failure
            self._json.write(json.dumps(event.as_json()) + "\n")
            if self._json.failure is not lost and not isinstance(self._json.failure, BrokenPipeError):
                self._complain(f"the JSON cannot be written, and nothing more of it follows: {self._json.failure}")
        if not isinstance(event, Progress):
            self._show_failure(event)
        match event:
            case Listening():
                where = ", ".join(address(host, port) for host, port in event.addresses)
                self.say(f"listening on {where}; files go to {printable(event.dir)}")
            case Code():
                why = f" ({event.reason})" if event.reason else ""
                self.say(f"pairing code, good once and for {event.valid_s // 60} minutes{why}: {event.code}")
            case Paired():
                name, where = printable(event.name), printable(event.address)
                self.say(f"paired: {name}" + (f" ({where})" if where not in (name, f"{name}:{DEFAULT_PORT}") else ""))
                self.say(f"  {event.fingerprint}")
            case SessionUp():
                self._session_up(event)
            case Progress():
                # Without a session nothing moves, and a receiver's bar would stand there all day.
                self._last = event
                if self._sessions and not self._silent:
                    self._display.update(event)
            case EntryEnded():
                self._entry(event)
            case Warn():
                of = f"{printable(event.path)}: " if event.path else ""
                self.say(f"warning: {of}{printable(event.message)}")
            case Tuned() if self._verbose:
                self.say(printable(event.reason))
            case Retry():
                self._retry(event)
            case Paused():
                self._paused = True
                self.say(f"paused until there is room: {printable(event.reason)}")
            case Resumed() if self._paused:  # each lane that waited says so
                self._paused = False
                self.say("there is room again: going on")
            case SessionEnd():
                self._session_end(event)
            case Finished():
                self._finish(event)
            case _:
                pass  # what has nothing for people, or is not known yet

    def _due(self, event: Event) -> bool:
        """Programs get every event, and progress about once a second; a bar moves more often."""
        if isinstance(event, Progress):
            if self._clock() - self._progress_at < JSON_EVERY_S:
                return False
            self._progress_at = self._clock()
        return True

    def _session_up(self, event: SessionUp) -> None:
        if not self._sessions:
            self._display.begin(0 if self._receiving else max(0, self._last.bytes_done - self._last.bytes_reused))
        if not self._receiving:
            self._sessions.clear()  # a sender has one session at a time, and no event for its end
        self._sessions.add(event.session)
        self._retry_shown_at = None
        if self._receiving or self._verbose:
            how = "encrypted" if event.encrypted else "not encrypted"
            self.say(f"connected: {printable(event.peer)}, {how}")

    def _entry(self, event: EntryEnded) -> None:
        if self._verbose:
            self._display.line(entry_line(event))
        elif event.state == "failed":
            self._failure = event

    def _show_failure(self, following: Event) -> None:
        """Report the last entry that failed, unless its failure is the run's: then the last line says it."""
        failure, self._failure = self._failure, None
        if failure is not None and not (isinstance(following, Finished) and failure.message in following.message):
            path, why = printable(failure.path), printable(failure.message)
            self._complain(why if why.startswith(path + ":") else f"{path}: {why}")

    def _retry(self, event: Retry) -> None:
        self._sessions.clear()
        self._display.close()
        now = self._clock()
        if self._retry_shown_at is None or now - self._retry_shown_at >= LINE_EVERY_S:
            self._retry_shown_at = now
            self.say(f"{printable(event.reason)}; trying again in {human_seconds(event.wait_s)}")

    def _session_end(self, event: SessionEnd) -> None:
        self._sessions.discard(event.session)
        if not self._sessions:
            self._display.close()
        end = "done" if event.code == 0 else f"ended with {event.code}"
        why = f" ({printable(event.message)})" if event.message else ""
        self.say(
            f"{end}: {printable(event.peer)}{why}, {files(event.files)}, "
            f"{human_bytes(event.bytes_received)} received, {human_bytes(event.bytes_reused)} already there, "
            f"{human_seconds(event.seconds)}"
        )

    def _finish(self, event: Finished) -> None:
        self.finished = True
        self._display.close()
        if not isinstance(event, (BenchFinished, PairFinished)) and (
            event.code == 0 or event.files or event.failed or event.bytes_sent
        ):
            self.say(summary(event, "received" if self._receiving else "sent"))
        if event.code != 0:
            bug = f": {BUG}" if event.code == 1 and BUG not in event.message else ""
            self._complain(printable(event.message) + bug)

    def _complain(self, text: str) -> None:
        self._display.line(f"ftx: {text}")


def address(host: str, port: int) -> str:
    """``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{printable(host)}]:{port}" if ":" in host else f"{printable(host)}:{port}"
