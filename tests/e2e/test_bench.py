"""``ftx bench`` as processes: what it prints, how it ends, and that nothing is left wherever it ends."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ftx.transfer.verdict import Limit
from tests.support.process import Process, Receiver, wait_until

STEP = ("--step", "0.1")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def bench(base: Path, port: int, *arguments: str | Path, **more: object) -> Process:
    where = ("--port", str(port), "--dir", base / "mine", *arguments)
    return Process(base, "bench", *where, "127.0.0.1", **more)  # type: ignore[arg-type]


def deleted_files(process: Process) -> list[str]:
    """What a process has open that has no name."""
    found = []
    for fd in Path(f"/proc/{process.popen.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(os.readlink(fd))
    return [link for link in found if "(deleted)" in link]


def nothing_left(mine: Path, receiver: Receiver) -> None:
    assert not list(mine.iterdir())
    assert not list(receiver.into.iterdir())


def test_what_programs_are_told(tmp_path: Path, mine: Path) -> None:
    with Receiver(tmp_path) as receiver, bench(tmp_path, receiver.port, *STEP) as process:
        assert process.wait() == 0, process.err
        assert process.err == ""
        kinds = [event["type"] for event in process.events]
        assert kinds[:2] == ["start", "session"] and kinds[-1] == "finished" and set(kinds[2:-1]) == {"measured"}
        assert process.events[0]["role"] == "bench"
        steps = process.of_type("measured")
        assert [step["step"] for step in steps[:2]] == ["path", "receiver_disk"]
        assert steps[-1]["step"] == "sender_disk"
        assert process.finished["limit"] in [limit.value for limit in Limit]
        assert receiver.event("session_end")["code"] == 0
        nothing_left(mine, receiver)


def test_what_people_are_told(tmp_path: Path, mine: Path) -> None:
    with Receiver(tmp_path) as receiver:
        with bench(tmp_path, receiver.port, *STEP, "--lanes", "1", json_lines=False) as process:
            assert process.wait() == 0, process.err
        lines = process.out.splitlines()
        assert lines[0].split() == ["LANES", "MiB/s", "WRITTEN", "AGAIN"]
        assert re.fullmatch(r" +1 +[\d.]+ +[\d.]+ +[\d.]+%", lines[1])
        assert re.fullmatch(r"the disk of this side reads [\d.]+ MiB/s", lines[2])
        assert re.fullmatch(r"a round trip takes [\d.]+ ms", lines[3])
        assert re.fullmatch(r"(The|A) .* limits: [\d.]+ MiB/s, with one lane\.", lines[5])
        assert process.err == f"measuring the path to 127.0.0.1, port {receiver.port}\n"
        with bench(tmp_path, receiver.port, *STEP, "--quiet", "--lanes", "1", json_lines=False) as process:
            assert process.wait() == 0
        assert process.err == "" and "limits" in process.out


def test_G7_who_is_not_let_in(tmp_path: Path, mine: Path) -> None:
    with Receiver(tmp_path) as receiver:
        other = {"FTX_CONFIG_DIR": str(tmp_path / "other")}
        with bench(tmp_path, receiver.port, environ=other) as process:
            assert process.wait() == 8
        with bench(tmp_path, receiver.port, "--plain") as process:
            assert process.wait() == 8
    with bench(tmp_path, receiver.port) as process:
        assert process.wait() == 3


def under_way(tmp_path: Path) -> tuple[Receiver, Process]:
    """Both sides, when the receiver has a file to measure with."""
    receiver = Receiver(tmp_path)
    process = bench(tmp_path, receiver.port, "--step", "1", "--lanes", "1")
    wait_until(lambda: deleted_files(receiver))
    return receiver, process


def test_g9_a_signal_ends_both_sides_soon(tmp_path: Path, mine: Path) -> None:
    receiver, process = under_way(tmp_path)
    with receiver, process:
        began = time.monotonic()
        process.signal(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
        assert time.monotonic() - began < 10  # a second, and as long as a busy machine needs
        assert "Nothing is left" in process.finished["message"]
        assert receiver.event("session_end")["code"] == 3
        wait_until(lambda: not deleted_files(receiver))
        nothing_left(mine, receiver)


def test_a_killed_sender_leaves_nothing(tmp_path: Path, mine: Path) -> None:
    receiver, process = under_way(tmp_path)
    with receiver, process:
        process.kill()
        assert receiver.event("session_end")["code"] == 3
        wait_until(lambda: not deleted_files(receiver))
        nothing_left(mine, receiver)


def test_a_killed_receiver_leaves_nothing(tmp_path: Path, mine: Path) -> None:
    receiver, process = under_way(tmp_path)
    with receiver, process:
        receiver.kill()
        assert process.wait() == 3
        nothing_left(mine, receiver)


def test_a_receiver_that_is_stopped_says_so(tmp_path: Path, mine: Path) -> None:
    receiver, process = under_way(tmp_path)
    with receiver, process:
        receiver.stop()
        assert process.wait() == 3
        assert "the receiver was stopped" in process.finished["message"]
        nothing_left(mine, receiver)


def test_a_signal_while_this_sides_disk_is_measured(tmp_path: Path, mine: Path) -> None:
    with Receiver(tmp_path) as receiver, bench(tmp_path, receiver.port, "--step", "1", "--lanes", "1") as process:
        process.event("start")  # from here on it takes signals
        wait_until(lambda: deleted_files(process))
        process.signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        nothing_left(mine, receiver)
