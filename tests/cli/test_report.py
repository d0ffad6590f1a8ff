"""What people and programs see, by events; the bars on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from ftx.cli.report import Output, Report, human_bytes, human_seconds, printable, summary
from ftx.transfer.events import (
    EntryEnded,
    Event,
    Finished,
    Listening,
    Paused,
    Progress,
    Resumed,
    Retry,
    SessionEnd,
    SessionUp,
    Start,
    Warn,
)

MIB = 1024 * 1024
UP = SessionUp("5e55", "192.0.2.7", False, 1)
DONE = Finished(0, "", 1, 0, 0, 512 * MIB, 300 * MIB, 212 * MIB, 4.0)


def progress(done: int, reused: int = 0, total: int | None = 512 * MIB) -> Progress:
    return Progress(total, done, done - reused, reused, 1, 0)


def entry(state: str, message: str = "", path: bytes = b"big.bin", code: int = 0) -> EntryEnded:
    return EntryEnded(path, "file", state, 512 * MIB, 300 * MIB, 212 * MIB, None, code, message)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(events: list[Event], **options: Any) -> tuple[str, str]:
    """Standard output and standard error of a run with these events, neither a terminal."""
    out, err = io.StringIO(), io.StringIO()
    arguments: dict[str, Any] = {"receiving": False, "label": "big.bin"} | options
    with Report(out=out, err=err, **arguments) as report:
        for event in events:
            report(event)
    return out.getvalue(), err.getvalue()


# --- text from the other side ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain näme 漢字.txt", "plain näme 漢字.txt"),
        ("a\nb\tc\rd\0", "a\\x0ab\\x09c\\x0dd\\x00"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("c1\x9b31m\x85", "c1\\x9b31m\\x85"),
        ("\u202egpj.exe\u2066\u2069\u200f", "\\u202egpj.exe\\u2066\\u2069\\u200f"),
        ("line\u2028para\u2029", "line\\u2028para\\u2029"),
        ("\U000e0001tag\ufeff", "\\U000e0001tag\\ufeff"),
        (b"not utf-8 \xff\xfe", "not utf-8 \\xff\\xfe"),
        (os.fsdecode(b"name \xe9"), "name \\xe9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str | bytes, expected: str) -> None:
    assert printable(text) == expected


def test_printable_leaves_nothing_that_steers_a_terminal() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert not {unicodedata.category(char) for char in printable(everything)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


EVIL = "evil\x1b[2J\u202e\n"


@pytest.mark.parametrize(
    "event",
    [
        Listening((("0.0.0.0", 7389),), EVIL, 1),
        SessionUp("5e55", EVIL, False, 1),
        entry("done", path=EVIL.encode()),
        entry("failed", EVIL, EVIL.encode()),
        Warn(EVIL, EVIL.encode()),
        Retry(EVIL, 1.0, 1),
        Paused(EVIL),
        SessionEnd("5e55", EVIL, 3, EVIL, 0, 0, 0, 1.0),
        Finished(3, EVIL, 0, 0, 0, 0, 0, 0, 0.0),
    ],
    ids=lambda event: event.type,
)
@pytest.mark.parametrize("receiving", [False, True], ids=["send", "receive"])
def test_every_event_is_escaped(event: Event, receiving: bool) -> None:
    _, err = shown([event, DONE], verbose=1, receiving=receiving)
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert "evil\\x1b[2J\\u202e\\x0a" in err


# --- numbers ---


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * MIB, "1.5 GiB"), (MIB - 1, "1.0 MiB"),
     (2**44, "16.0 TiB"), (5000 * 2**40, "5000.0 TiB")],
)  # fmt: skip
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.24, "4.2 s"), (99.96, "1 min 40 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_human_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_summary() -> None:
    assert summary(DONE) == "1 file done; of 512.0 MiB, 300.0 MiB sent and 212.0 MiB already there; 4.0 s, 75.0 MiB/s"
    nothing_sent = Finished(0, "", 2, 1, 2, MIB, 0, MIB, 0.5)
    assert summary(nothing_sent) == "2 files done and 1 failed; of 1.0 MiB, 0 B sent and 1.0 MiB already there; 0.5 s"


# --- plain lines ---


def test_plain_lines_are_one_a_minute_and_one_at_the_end() -> None:
    clock = Clock()
    out, err = io.StringIO(), io.StringIO()
    with Report(receiving=False, label="big.bin", out=out, err=err, clock=clock) as report:
        report.say("sending big.bin")
        report(Start("0", 1, "send"))
        report(UP)
        for second in range(151):
            clock.now = second
            report(progress(212 * MIB + second * MIB, 212 * MIB))
        report(entry("done"))
        report(DONE)
    assert out.getvalue() == ""
    assert err.getvalue().splitlines() == [
        "sending big.bin",
        "big.bin: 272.0 MiB of 512.0 MiB (53 %), 1.0 MiB/s, 4 min 00 s left",
        "big.bin: 332.0 MiB of 512.0 MiB (64 %), 1.0 MiB/s, 3 min 00 s left",
        summary(DONE),
    ]


def test_plain_line_without_a_total_and_in_a_stall() -> None:
    clock = Clock()
    err = io.StringIO()
    with Report(receiving=False, label="x", err=err, clock=clock) as report:
        report(UP)
        for clock.now in (60.0, 120.0):
            report(progress(MIB, total=None))
    assert err.getvalue().splitlines() == ["x: 1.0 MiB, 17.1 KiB/s", "x: 1.0 MiB, 0 B/s"]


def test_progress_without_a_session_is_not_shown() -> None:
    clock = Clock()
    err = io.StringIO()
    with Report(receiving=True, label="receiving", err=err, clock=clock) as report:
        report(UP)
        report(SessionEnd("5e55", "192.0.2.7", 0, "", MIB, 0, 1, 1.0))
        clock.now = 600.0
        report(progress(MIB))
    assert err.getvalue().splitlines() == [
        "connected: 192.0.2.7, not encrypted",
        "done: 192.0.2.7, 1 file, 1.0 MiB received, 0 B already there, 1.0 s",
    ]


def test_receiver_tells_of_each_session() -> None:
    events = [
        Listening((("0.0.0.0", 7389), ("::", 7389)), "/srv", 1),
        UP,
        SessionEnd("5e55", "192.0.2.7", 3, "the link was lost", MIB, 0, 0, 1.0),
    ]
    _, err = shown(events, receiving=True)
    assert err.splitlines() == [
        "listening on 0.0.0.0:7389, [::]:7389; files go to /srv",
        "connected: 192.0.2.7, not encrypted",
        "ended with 3: 192.0.2.7 (the link was lost), 0 files, 1.0 MiB received, 0 B already there, 1.0 s",
    ]


def test_retries_are_told_once_a_minute_until_a_session_stands_again() -> None:
    clock = Clock()
    err = io.StringIO()
    with Report(receiving=False, label="x", err=err, clock=clock) as report:
        for attempt, clock.now in enumerate((0.0, 1.0, 59.0, 61.0), 1):
            report(Retry("link lost", 2.0, attempt))
        report(UP)
        report(Retry("link lost", 2.0, 1))
    assert err.getvalue().splitlines() == ["link lost; trying again in 2.0 s"] * 3


def test_a_full_disk_is_told() -> None:
    """Once, though each lane that waited says that there is room."""
    events: list[Event] = [UP, Paused("a: no space left"), Resumed("a: no space left"), Resumed("a: no space left")]
    _, err = shown([*events, Paused("b: no space left")])
    assert err.splitlines() == [
        "paused until there is room: a: no space left",
        "there is room again: going on",
        "paused until there is room: b: no space left",
    ]
    assert shown(events, quiet=True) == ("", "")


def test_verbose_has_a_line_for_each_entry() -> None:
    _, err = shown([entry("done"), entry("skipped", "it is there", b"b")], verbose=1)
    assert err.splitlines() == [
        "done big.bin (512.0 MiB; 300.0 MiB sent, 212.0 MiB already there)",
        "skipped b (512.0 MiB; 300.0 MiB sent, 212.0 MiB already there): it is there",
    ]


# --- errors ---


def test_the_failure_of_a_single_file_is_told_once_and_last() -> None:
    failed = Finished(7, "big.bin: the disk is full", 0, 1, 0, 512 * MIB, MIB, 0, 1.0)
    _, err = shown([UP, entry("failed", "the disk is full", code=7), failed])
    assert err.splitlines() == [summary(failed), "ftx: big.bin: the disk is full"]


def test_each_of_several_failures_is_told() -> None:
    some = Finished(9, "2 of 3 failed", 1, 2, 0, MIB, MIB, 0, 1.0)
    _, err = shown([entry("failed", "full", b"a"), entry("failed", "name", b"b"), entry("done", path=b"c"), some])
    assert err.splitlines() == ["ftx: a: full", "ftx: b: name", summary(some), "ftx: 2 of 3 failed"]


@pytest.mark.parametrize("code", [130, 143])
def test_an_interrupted_run_is_one_line(code: int) -> None:
    """The run's own message says what is kept and how to go on."""
    assert shown([Finished(code, "interrupted", 0, 0, 0, 0, 0, 0, 1.0)])[1] == "ftx: interrupted\n"


def test_a_bug_says_what_to_do() -> None:
    _, err = shown([Finished(1, "KeyError: 7", 0, 0, 0, 0, 0, 0, 1.0)])
    assert err.startswith("ftx: KeyError: 7: this is a bug in ftx, please report it")
    assert "-vv" in err


def test_a_receivers_summary_says_received() -> None:
    assert "300.0 MiB received and" in shown([DONE], receiving=True)[1]


def test_quiet_shows_errors_only() -> None:
    events = [UP, progress(MIB), Warn("odd"), Retry("lost", 1.0, 1), entry("done"), DONE]
    assert shown(events, quiet=True, verbose=1) == ("", "")
    bad = Finished(3, "link lost", 0, 0, 0, 0, 0, 0, 1.0)
    assert shown([UP, bad], quiet=True) == ("", "ftx: link lost\n")
    bad = Finished(9, "some failed", 1, 1, 0, 0, 0, 0, 1.0)
    _, err = shown([entry("failed", "full", b"a"), bad], quiet=True)
    assert err.splitlines() == ["ftx: a: full", "ftx: some failed"]


# --- JSON ---


def test_json_is_one_object_a_line_and_nothing_else() -> None:
    events = [Start("0", 1, "send"), UP, progress(MIB), Warn(EVIL), entry("done", path=b"\xff"), DONE]
    out, err = shown(events, json_lines=True)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in lines] == ["start", "session", "progress", "warning", "entry", "finished"]
    assert all(isinstance(line["time"], float) for line in lines)
    assert lines[4]["path_b64"] == "/w=="
    assert lines[3]["message"] == EVIL
    assert err == ""


def test_json_leaves_errors_on_standard_error() -> None:
    out, err = shown([Finished(3, "link lost", 0, 0, 0, 0, 0, 0, 1.0)], json_lines=True)
    assert json.loads(out)["code"] == 3
    assert err == "ftx: link lost\n"


# --- streams that go away ---


def test_a_reader_that_went_away_does_not_end_a_transfer() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        out = Output(stream)
        for _ in range(3):
            out.write("text\n" * 1000)


def test_a_stream_that_never_was() -> None:
    out = Output(None)
    assert not out.isatty()
    assert out.columns() == 80
    assert out.write("text") == 4


# --- bars ---


class Terminal:
    """A pseudo-terminal, and what a person would see on it (as far as \\r and \\n go)."""

    def __init__(self, columns: int) -> None:
        self.near, far = pty.openpty()
        self.stream: TextIO = os.fdopen(far, "w", encoding="utf-8")
        self.resize(columns)
        attributes = termios.tcgetattr(far)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(far, termios.TCSANOW, attributes)
        self.raw = ""
        self.widest = 0

    def resize(self, columns: int) -> None:
        self.columns = columns
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def screen(self) -> list[str]:
        os.set_blocking(self.near, False)
        data = b""
        while True:
            try:
                data += os.read(self.near, 65536)
            except BlockingIOError:
                break
        self.raw += data.decode()
        rows = []
        for text in self.raw.split("\n"):
            row = ""
            for part in text.split("\r"):
                if "%|" in part or not part.strip():  # lines may wrap; a bar and what erases it must not
                    self.widest = max(self.widest, len(part))
                row = part + row[len(part) :]
            rows.append(row.rstrip())
        return rows


@pytest.fixture(params=[100, 60])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal(request.param)
    with made.stream:
        yield made
    os.close(made.near)


def test_a_bar_fits_its_terminal_and_leaves_lines_only(terminal: Terminal) -> None:
    with Report(receiving=False, label="a-file-with-quite-a-long-name.tar.zst", err=terminal.stream) as report:
        report.say("sending")
        report(UP)
        report._display._began -= 1  # a second ago
        for done in range(212, 513, 100):
            report(progress(done * MIB, 212 * MIB))
        row = terminal.screen()[-1]
        assert row.startswith("a-file-with")
        assert "100%|" in row
        assert "| 512M/512M [" in row
        assert row.endswith("iB/s]")
        report(Warn("odd"))
        assert terminal.screen()[-2] == "warning: odd"
        assert "512M" in terminal.screen()[-1]
        report(DONE)
    assert terminal.screen() == ["sending", "warning: odd", summary(DONE), ""]
    assert terminal.widest < terminal.columns


def test_what_was_there_is_not_part_of_the_rate(terminal: Terminal) -> None:
    with Report(receiving=False, label="x", err=terminal.stream) as report:
        report(UP)
        report._display._began -= 10  # ten seconds ago
        report(progress(522 * MIB, 512 * MIB, 1024 * MIB))
        assert terminal.screen()[-1].endswith(", 1.0 MiB/s]")
        report(progress(622 * MIB, 612 * MIB, 1024 * MIB))
        assert " 61%" in terminal.screen()[-1]
        assert terminal.screen()[-1].endswith(", 1.0 MiB/s]")


@pytest.mark.parametrize("end", ["error", "interrupt"])
def test_a_bar_is_not_left_garbled(terminal: Terminal, end: str) -> None:
    with Report(receiving=False, label="x", err=terminal.stream) as report:
        report(UP)
        report(progress(100 * MIB))
        terminal.stream.write("^C")  # the terminal's echo, behind the bar
        terminal.stream.flush()
        last = Finished(130 if end == "interrupt" else 3, "it ended, run it again", 0, 0, 0, MIB, MIB, 0, 1.0)
        report(last)
    assert terminal.screen() == [summary(last), "ftx: it ended, run it again", ""]
    assert terminal.widest < terminal.columns


def test_a_bar_follows_the_width_of_its_terminal() -> None:
    terminal = Terminal(100)
    with terminal.stream, Report(receiving=False, label="x", err=terminal.stream) as report:
        report(UP)
        report(progress(MIB))
        assert 80 < len(terminal.screen()[-1]) < 100
        terminal.raw = ""
        terminal.resize(50)
        report(progress(2 * MIB))
        assert 30 < len(terminal.screen()[-1].rstrip()) < 50
    os.close(terminal.near)


def test_the_bar_goes_while_the_link_is_down(terminal: Terminal) -> None:
    with Report(receiving=False, label="x", err=terminal.stream) as report:
        report(UP)
        report(progress(100 * MIB))
        report(Retry("link lost", 1.0, 1))
        report(progress(100 * MIB))
        assert terminal.screen() == ["link lost; trying again in 1.0 s", ""]
        report(UP)
        report(progress(100 * MIB))
        assert "100M/512M" in terminal.screen()[-1]
        assert terminal.screen()[-1].endswith("<?]")  # what moved before is not counted for this session's rate


def test_a_receivers_bar_is_about_what_is_under_way(terminal: Terminal) -> None:
    with Report(receiving=True, label="receiving", err=terminal.stream) as report:
        report(UP)
        report(progress(100 * MIB, total=1000 * MIB))
        report(SessionEnd("5e55", "192.0.2.7", 3, "lost", 110 * MIB, 0, 0, 1.0))
        assert terminal.screen()[-1] == ""
        report(progress(110 * MIB, total=1000 * MIB))
        assert terminal.screen()[-1] == ""  # nothing is under way
        report(UP)
        report._display._began -= 10
        report(progress(210 * MIB, 110 * MIB, 1000 * MIB))
        assert "210M/0.98G" in terminal.screen()[-1]
        assert terminal.screen()[-1].endswith(", 10.0 MiB/s]")


def test_two_runs_of_v_have_no_bar(terminal: Terminal) -> None:
    with Report(receiving=False, label="x", err=terminal.stream, verbose=2) as report:
        report(UP)
        report(progress(100 * MIB))
    assert terminal.screen() == ["connected: 192.0.2.7, not encrypted", ""]


def test_a_bar_starts_no_thread_and_no_process() -> None:
    code = """
import sys, threading, os
from ftx.cli.report import Bar, Output
from ftx.transfer.events import Progress
bar = Bar(Output(sys.stderr), "x")
bar.update(Progress(10, 5, 5, 0, 1, 0))
assert threading.active_count() == 1
assert "multiprocessing.resource_tracker" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.PIPE)
