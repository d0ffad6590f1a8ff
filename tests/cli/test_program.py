"""The real program: two processes, their output, their signals, their exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from ftx.cli import main, receive
from ftx.options import ReceiveOptions
from ftx.transfer.events import Listening
from tests.support.terminal import OnTerminal

FTX = [sys.executable, "-m", "ftx"]
MIB = 1024 * 1024


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Receiver:
    """`ftx receive --json` in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], *options: str) -> None:
        command = [*FTX, "receive", "--json", "--bind", "127.0.0.1", "--port", "0", "--dir", str(folder), *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.first = [json.loads(self.process.stdout.readline()) for _ in range(2)]
        self.port: int = self.first[1]["addresses"][0][1]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]], str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, self.first + events(out), err


class World:
    """A folder, a configuration and receivers for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.into = folder / "in"
        self.source = folder / "source.bin"
        self.source.write_bytes(os.urandom(3 * MIB + 5))
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("FTX_")}
        self.environment["FTX_CONFIG_DIR"] = str(folder / "config")
        self.receivers: list[Receiver] = []

    def receiver(self, *options: str) -> Receiver:
        made = Receiver(self.into, self.environment, *options)
        self.receivers.append(made)
        return made

    def send(self, port: int, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        command = [*FTX, "send", str(self.source), "127.0.0.1", "--port", str(port), *options]
        arguments: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment}
        return subprocess.run(
            command, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False, **(arguments | more)
        )

    def start_big_send(self, port: int, *options: str, **more: Any) -> subprocess.Popen[str]:
        """A sender in the middle of its work: the first chunks have arrived."""
        self.source.write_bytes(os.urandom(MIB) * 384)
        command = [*FTX, "send", str(self.source), "127.0.0.1", "--port", str(port), *options]
        arguments: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment}
        sender = subprocess.Popen(command, text=True, **(arguments | more))
        deadline = time.monotonic() + 20
        while not any(part.stat().st_blocks for part in self.into.glob(".ftx/*.part")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return sender


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for receiver in made.receivers:
        receiver.process.kill()
        receiver.process.communicate()


def test_json_of_both_sides(world: World) -> None:
    receiver = world.receiver()
    done = world.send(receiver.port, "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    sent = events(done.stdout)
    assert [event["type"] for event in sent if event["type"] != "progress"] == ["start", "session", "entry", "finished"]
    assert sent[-1]["code"] == 0
    code, received, err = receiver.stop()
    assert (code, err[:5]) == (143, "ftx: ")
    types = [event["type"] for event in received if event["type"] != "progress"]
    assert types == ["start", "listening", "session", "entry", "session_end", "finished"]
    assert received[-1]["code"] == 143
    assert (world.into / "source.bin").read_bytes() == world.source.read_bytes()


def test_plain_output(world: World) -> None:
    receiver = world.receiver()
    done = world.send(receiver.port)
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first == f"sending source.bin to 127.0.0.1, port {receiver.port}"
    assert last.startswith("1 file done; of 3.0 MiB, 3.0 MiB sent and 0 B already there; ")


def test_quiet(world: World) -> None:
    receiver = world.receiver()
    done = world.send(receiver.port, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    world.source = world.folder / "missing"
    done = world.send(receiver.port, "--quiet")
    assert done.returncode == 6
    assert done.stderr.startswith("ftx: ")
    assert done.stderr.count("\n") == 1


def test_verbose_and_trace(world: World) -> None:
    receiver = world.receiver()
    once = world.send(receiver.port, "-v")
    assert "done source.bin (3.0 MiB" in once.stderr
    assert "Thread" not in once.stderr
    twice = world.send(receiver.port, "-vv")
    assert twice.returncode == 0
    assert "source.bin" in twice.stderr
    assert len(twice.stderr.splitlines()) > len(once.stderr.splitlines())


def test_a_name_cannot_steer_the_terminal(world: World) -> None:
    world.source = world.source.rename(world.folder / "evil\x1b[2J\n.bin")
    receiver = world.receiver("-v")
    done = world.send(receiver.port, "-vv")
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
    assert "evil\\x1b[2J\\x0a.bin" in done.stderr
    _, _, err = receiver.stop()
    assert "\x1b" not in err
    assert "evil\\x1b[2J\\x0a.bin" in err


def test_a_name_that_is_not_utf_8(world: World) -> None:
    world.source = world.source.rename(world.folder / os.fsdecode(b"caf\xe9"))
    receiver = world.receiver()
    done = world.send(receiver.port)
    assert done.returncode == 0
    assert "caf\\xe9" in done.stderr
    assert (os.fsencode(world.into) + b"/caf\xe9") in [entry.path for entry in os.scandir(os.fsencode(world.into))]


def test_folder_of_the_remote(world: World) -> None:
    receiver = world.receiver()
    command = [*FTX, "send", str(world.source), "127.0.0.1:a/b", "--port", str(receiver.port)]
    subprocess.run(command, check=True, env=world.environment, capture_output=True, timeout=30)
    assert (world.into / "a" / "b" / "source.bin").read_bytes() == world.source.read_bytes()


def test_nobody_listens(world: World) -> None:
    receiver = world.receiver()
    receiver.stop()
    done = world.send(receiver.port, "--json")
    assert done.returncode == 3
    assert events(done.stdout)[-1]["code"] == 3
    assert done.stderr.startswith("ftx: ")


def test_the_port_is_taken(world: World) -> None:
    taken = world.receiver().port
    command = [*FTX, "receive", "--json", "--bind", "127.0.0.1", "--port", str(taken), "--dir", str(world.into)]
    done = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=30)
    last = events(done.stdout)[-1]
    assert last["type"] == "finished"
    assert last["code"] == done.returncode not in (0, 1)
    assert done.stderr.startswith("ftx: ")


# --- signals ---


@pytest.mark.alone
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sender_leaves_within_a_second(world: World, number: int, code: int) -> None:
    receiver = world.receiver()
    sender = world.start_big_send(receiver.port)
    asked = time.monotonic()
    sender.send_signal(number)
    _, err = sender.communicate(timeout=10)
    assert time.monotonic() - asked < 1
    assert sender.returncode == code
    last = err.splitlines()[-1]
    assert last.startswith("ftx: ")
    assert "again" in last
    assert "Traceback" not in err
    again = world.send(receiver.port, "--json")
    assert again.returncode == 0
    assert events(again.stdout)[-1]["bytes_reused"] > 0


@pytest.mark.alone
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_idle_receiver_leaves_within_a_second(world: World, number: int, code: int) -> None:
    receiver = world.receiver()
    asked = time.monotonic()
    ended, seen, err = receiver.stop(number)
    assert time.monotonic() - asked < 1
    assert ended == code
    assert seen[-1]["type"] == "finished"
    assert "Traceback" not in err


def test_a_second_signal_leaves_at_once(world: World) -> None:
    code = """
import os, signal, threading, time
from ftx.cli.process import run
from ftx.cli.report import Report

def stuck(stop):
    for _ in range(2):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(0.5)
    time.sleep(60)

run(Report(receiving=False, label="x"), stuck)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert time.monotonic() - began < 10
    assert (done.returncode, done.stderr) == (130, "")


def test_signals_ask_and_are_given_back() -> None:
    from ftx.cli.process import signals_stop
    from ftx.transfer.crew import Stop

    before = signal.getsignal(signal.SIGINT)
    stop = Stop()
    with signals_stop(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGINT) is before


# --- streams ---


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_went_away_does_not_end_the_transfer(world: World, stream: str) -> None:
    receiver = world.receiver()
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = world.send(receiver.port, "--json" if stream == "stdout" else "-vv", **{stream: writing})
    finally:
        os.close(writing)
    assert done.returncode == 0
    assert not (done.stderr if stream == "stdout" else done.stdout)
    assert (world.into / "source.bin").exists()


def test_closed_streams(world: World) -> None:
    receiver = world.receiver()
    line = f'exec "$@" --port {receiver.port} --json <&- >&- 2>&-'
    command = ["sh", "-c", line, "sh", *FTX, "send", str(world.source), "127.0.0.1"]
    assert subprocess.run(command, env=world.environment, timeout=30).returncode == 0
    assert (world.into / "source.bin").read_bytes() == world.source.read_bytes()


def test_a_full_disk_under_the_json_does_not_end_the_transfer(world: World) -> None:
    receiver = world.receiver()
    with Path("/dev/full").open("w") as full:
        done = world.send(receiver.port, "--json", stdout=full)
    assert done.returncode == 0


# --- on a terminal ---


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 8), ("\n", 8), ("\x04", 8)])
def test_a_person_is_asked_before_an_open_receiver_is_trusted(world: World, answer: str, code: int) -> None:
    receiver = world.receiver("--open")
    stranger = world.environment | {"FTX_CONFIG_DIR": str(world.folder / "stranger")}
    terminal = OnTerminal([*FTX, "send", str(world.source), "127.0.0.1", "--port", str(receiver.port)], stranger)
    assert "127.0.0.1" in terminal.read("[y/N]: ")
    os.write(terminal.near, answer.encode())
    terminal.read()
    assert terminal.close() == code
    assert (world.into / "source.bin").exists() == (code == 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_instead_of_an_answer(world: World, number: int, code: int) -> None:
    receiver = world.receiver("--open")
    stranger = world.environment | {"FTX_CONFIG_DIR": str(world.folder / "stranger")}
    terminal = OnTerminal([*FTX, "send", str(world.source), "127.0.0.1", "--port", str(receiver.port)], stranger)
    terminal.read("[y/N]: ")
    terminal.process.send_signal(number)
    shown = terminal.read()
    assert "Traceback" not in shown
    assert terminal.close() == code
    assert not (world.into / "source.bin").exists()


def test_nobody_is_asked_without_a_terminal(world: World) -> None:
    receiver = world.receiver("--open")
    world.environment["FTX_CONFIG_DIR"] = str(world.folder / "stranger")
    assert world.send(receiver.port).returncode == 8
    assert world.send(receiver.port, "--accept-new").returncode == 0


def test_a_receiver_on_a_terminal_prints_the_line_for_the_other_machine(world: World) -> None:
    key = world.folder / "a key"
    command = [*FTX, "receive", "--port", "0", "--dir", str(world.into), "--secret-file", str(key)]
    terminal = OnTerminal(command, world.environment)
    shown = terminal.read("on the other machine: ")
    shown = terminal.read("--secret-file 'a key'")
    assert "listening on " in shown
    terminal.process.send_signal(signal.SIGINT)
    assert "Traceback" not in terminal.read()
    assert terminal.close() == 130


# --- parts ---


@pytest.mark.parametrize(
    ("address", "options", "expected"),
    [
        (("192.0.2.7", 7389), {"open": True}, "on the other machine: ftx send FILE 192.0.2.7"),
        (("2001:db8::7", 9), {"open": True}, "on the other machine: ftx send FILE '[2001:db8::7]' --port 9"),
        (("::1", 7389), {"secret_file": Path("/k/a")}, "on this machine: ftx send FILE '[::1]' --secret-file a"),
        (("192.0.2.7", 7389), {}, "on the other machine: ftx send FILE 192.0.2.7"),
    ],
)  # fmt: skip
def test_invitation(address: tuple[str, int], options: dict[str, Any], expected: str) -> None:
    line, *more = receive.invitation(Listening((address,), "/", 1, "ed25519:its"), ReceiveOptions(**options))
    assert line.startswith(expected)
    assert more == (["this receiver's fingerprint: ed25519:its"] if options.get("open") else [])


def test_own_address_is_one_to_connect_to() -> None:
    assert receive.own_address() not in ("", "0.0.0.0", "::")


def test_a_bug_is_1_and_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command
    def broken() -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(sys, "argv", ["broken"])
    assert main._exit_code(broken, "broken", "FTX") == 1
    err = capsys.readouterr().err
    assert err.startswith("ftx: ZeroDivisionError: of all things: ")
    assert "report" in err
    assert "-vv" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verbose", [0, 2])
def test_a_bug_in_a_transfer(verbose: int) -> None:
    code = f"""
import sys
from ftx.cli.process import run, start_log
from ftx.cli.report import Report

start_log({verbose})
sys.exit(run(Report(receiving=False, label="x", json_lines=True), lambda stop: 1 / 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert events(done.stdout)[-1]["code"] == 1
    assert ("Traceback" in done.stderr) == (verbose == 2)
    assert done.stderr.splitlines()[-1].startswith("ftx: ZeroDivisionError: ")
