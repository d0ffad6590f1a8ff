"""What people and programs see: JSON events by their table, lines, silence, and a quick end on Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support.files import MIB, fill, same
from tests.support.process import Process, Receiver, environment, send, sender, wait_until
from tests.support.proxy import Call, Cut, Proxy, Stall

Number = (int, float)
Text = (str,)
MaybeNumber = (int, type(None))
MaybeText = (str, type(None))

#: Type of event -> its fields and their types, as the table of the command line's contract has them.
SCHEMA: dict[str, dict[str, tuple[type, ...]]] = {
    "start": {"version": Text, "protocol": (int,), "role": Text},
    "listening": {"addresses": (list,), "dir": Text, "pid": (int,)},
    "session": {"session": Text, "peer": Text, "encrypted": (bool,), "lanes": (int,)},
    "progress": {
        "bytes_total": MaybeNumber,
        "bytes_done": (int,),
        "bytes_sent": (int,),
        "bytes_reused": (int,),
        "files_total": MaybeNumber,
        "files_done": (int,),
    },
    "entry": {
        "path": Text,
        "state": Text,
        "size": (int,),
        "sent": (int,),
        "reused": (int,),
        "digest": MaybeText,
        "code": (int,),
        "message": Text,
    },
    "warning": {"message": Text, "path": MaybeText},
    "retry": {"reason": Text, "wait_s": Number, "attempt": (int,)},
    "session_end": {"session": Text, "peer": Text, "code": (int,), "message": Text},
    "finished": {
        "code": (int,),
        "message": Text,
        "files": (int,),
        "failed": (int,),
        "skipped": (int,),
        "bytes_total": (int,),
        "bytes_sent": (int,),
        "bytes_reused": (int,),
        "seconds": Number,
    },
}


def _hold_to_schema(events: list[dict[str, Any]]) -> set[str]:
    """The types that came."""
    before = time.time() - 300
    for event in events:
        assert before < event["time"] < time.time() + 1
        before = event["time"]
        for name, types in SCHEMA[event["type"]].items():
            assert isinstance(event[name], types), (name, event)
    assert events[0]["type"] == "start"
    return {event["type"] for event in events}


def test_json(shm: Path) -> None:
    """Every event of both sides, through a break, a failure and a refusal; and nothing else on standard output."""
    source = fill(shm / "file", 48 * MIB)
    came: set[str] = set()
    with Receiver(shm, "--exists", "fail") as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(20 * MIB, lambda: time.sleep(0.6)), Cut(20 * MIB)]
        sent = send(shm, source, proxy.port)
        assert sent.wait() == 0, sent.err
        os.utime(source)
        failed = send(shm, source, receiver.port)
        assert failed.wait() == 7
        refused = send(shm, source, receiver.port, environ={"FTX_CONFIG_DIR": str(shm / "other")})
        assert refused.wait() == 8
        wait_until(lambda: receiver.of_type("warning"))
        receiver.stop()
        for side in (sent, failed, refused, receiver):
            came |= _hold_to_schema(side.events)
            assert side.events[-1]["type"] == "finished"
            assert side.out == ""
            assert side.events[-1]["code"] == side.popen.returncode
    assert came == set(SCHEMA)
    assert [event["role"] for event in (sent.events[0], receiver.events[0])] == ["send", "receive"]
    assert receiver.event("listening")["pid"] == receiver.popen.pid
    assert sent.event("session")["encrypted"] is True
    assert sent.event("session")["session"] == receiver.event("session")["session"]
    finished = sent.finished
    assert (finished["files"], finished["failed"], finished["bytes_total"]) == (1, 0, 48 * MIB)
    assert finished["bytes_sent"] >= 48 * MIB
    assert sent.event("entry")["digest"].startswith("xxh3-128:")


def test_progress_never_goes_backward(shm: Path) -> None:
    source = fill(shm / "file", 64 * MIB)
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(at * MIB, lambda: time.sleep(0.3)) for at in (10, 30, 50)]
        sent = send(shm, source, proxy.port)
        assert sent.wait() == 0
        for side in (sent, receiver):
            done = [event["bytes_done"] for event in side.of_type("progress")]
            assert done and done == sorted(done)
        assert all(event["bytes_total"] == 64 * MIB for event in sent.of_type("progress"))


def test_a_second_run_counts_what_is_there(shm: Path) -> None:
    source = fill(shm / "file", 1000)
    with Receiver(shm) as receiver:
        send(shm, source, receiver.port)
        again = send(shm, source, receiver.port)
    entry, finished = again.event("entry"), again.finished
    assert (entry["state"], entry["sent"], entry["reused"]) == ("skipped", 0, 1000)
    assert (finished["files"], finished["skipped"], finished["bytes_reused"]) == (1, 1, 1000)


@pytest.mark.parametrize("options", [["--quiet"], ["--quiet", "--json"]], ids=" ".join)
def test_quiet_prints_nothing_when_all_is_well(tmp_path: Path, options: list[str]) -> None:
    source = fill(tmp_path / "file", 1000)
    json_lines = "--json" in options
    with Receiver(tmp_path, "--quiet") as receiver:
        sent = send(tmp_path, source, receiver.port, "--quiet", json_lines=json_lines)
        assert sent.wait() == 0
        assert (sent.out, sent.err) == ("", "")
        assert receiver.err == ""
        failed = send(tmp_path, "none", receiver.port, "--quiet", json_lines=json_lines)
        assert failed.wait() == 6
        assert failed.err.strip() == "ftx: none: no such file"


def test_plain_lines(tmp_path: Path) -> None:
    """Not on a terminal: a line at the start and one at the end, for people, on standard error."""
    source = fill(tmp_path / "file", 1000)
    with Receiver(tmp_path) as receiver:
        sent = send(tmp_path, source, receiver.port, json_lines=False)
        assert sent.wait() == 0
        assert sent.out == ""
        first, last = sent.err.splitlines()
        assert first == f"sending file to 127.0.0.1, port {receiver.port}"
        assert last.startswith("1 file done; of 1000 B, 1000 B sent and 0 B already there; ")


def test_verbose(tmp_path: Path) -> None:
    """-v: a line for each entry; -vv: the frames of the protocol, in and out."""
    source = fill(tmp_path / "file", 1000)
    with Receiver(tmp_path) as receiver:
        sent = send(tmp_path, source, receiver.port, "-v", json_lines=False)
        assert "done file (1000 B; 1000 B sent, 0 B already there)" in sent.err.splitlines()
        traced = send(tmp_path, source, receiver.port, "-vv", json_lines=False)
        assert "> Hello(" in traced.err and "< Opened(" in traced.err and "< Skip(" in traced.err
        assert sent.out == traced.out == ""


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    source = fill(tmp_path / "\x1b[2Jx\ny", 10)
    with Receiver(tmp_path, "-v", "--once", json_lines=True) as receiver:
        sent = send(tmp_path, source, receiver.port, "-v", json_lines=False)
        assert sent.wait() == 0
        assert receiver.wait() == 0
        for text in (sent.err, receiver.err):
            assert "\x1b" not in text
            assert all(line != "y" for line in text.splitlines())
        assert "\\x1b[2Jx\\x0ay" in sent.err


@pytest.mark.alone
def test_G11_ctrl_c(shm: Path) -> None:
    """Within a second, with a message that says what is kept and how to go on."""
    source = fill(shm / "file", 48 * MIB)
    asked: list[float] = []
    started: Future[Process] = Future()
    stop = Call(20 * MIB, lambda: (asked.append(time.monotonic()), started.result().signal(signal.SIGINT)))
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[stop, Stall(20 * MIB)]) as proxy:
        with sender(shm, source, proxy.port, json_lines=False) as process:
            started.set_result(process)
            assert process.wait() == 130
            assert time.monotonic() - asked[0] < 1.5  # with the end of Python itself
        assert process.err.splitlines()[-1] == (
            "ftx: interrupted. What has arrived is kept there. Run the same command again: it resumes."
        )


@pytest.mark.alone
def test_G11_ctrl_c_while_it_waits_to_try_again(shm: Path) -> None:
    source = fill(shm / "file", 48 * MIB)
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(20 * MIB, receiver.kill)]
        with sender(shm, source, proxy.port) as process:
            process.event("retry", 3)
            started = time.monotonic()
            process.signal(signal.SIGINT)
            assert process.wait() == 130
            assert time.monotonic() - started < 1.5
            assert "kept" in process.finished["message"]


@pytest.mark.alone
def test_G11_ctrl_c_while_nobody_answers(tmp_path: Path) -> None:
    """Connected, and not a word from the other side."""
    source = fill(tmp_path / "file", 10)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        sender(tmp_path, source, server.getsockname()[1]) as process,
    ):
        connection, _ = server.accept()
        with connection:
            connection.recv(10)
            started = time.monotonic()
            process.signal(signal.SIGINT)
            assert process.wait() == 130
            assert time.monotonic() - started < 1.5
        assert "Nothing was sent" in process.finished["message"]


@pytest.mark.alone
def test_G11_an_idle_receiver_leaves_at_once(tmp_path: Path) -> None:
    with Receiver(tmp_path) as receiver:
        started = time.monotonic()
        receiver.signal(signal.SIGINT)
        assert receiver.wait() == 130
        assert time.monotonic() - started < 1.5


def test_standard_input_is_closed(tmp_path: Path) -> None:
    """As cron jobs and daemons have it; nobody is asked anything."""
    source = fill(tmp_path / "file", 1000)
    with Receiver(tmp_path, "--open", close_stdin=True) as receiver:
        sent = send(tmp_path, source, receiver.port, close_stdin=True)
        assert sent.wait() == 0, sent.err
        stranger = {"FTX_CONFIG_DIR": str(tmp_path / "other")}
        assert send(tmp_path, source, receiver.port, close_stdin=True, environ=stranger).wait() == 8


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """`| head`: the transfer goes on to its end."""
    source = fill(tmp_path / "file", 1000)
    with Receiver(tmp_path) as receiver:
        command = [sys.executable, "-m", "ftx", "send", "--json", "--port", str(receiver.port), source, "127.0.0.1"]
        read, write = os.pipe()
        os.close(read)
        try:
            run = subprocess.run(
                command, stdout=write, stderr=subprocess.PIPE, env=environment(tmp_path), timeout=30, check=False
            )
        finally:
            os.close(write)
        assert run.returncode == 0, run.stderr
        assert run.stderr == b""
        assert same(source, receiver.into / "file")


def _on_a_terminal(base: Path, *arguments: str | Path, answer: bytes = b"") -> tuple[int, str]:
    """Exit status and screen of a run whose standard streams are a terminal."""
    control, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftx", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment(base) | {"COLUMNS": "80"},
            start_new_session=True,
        )
    finally:
        os.close(terminal)
    screen = b""
    try:
        while True:
            try:
                screen += os.read(control, 4096)
            except OSError:
                break
            if answer and b"[y/N]: " in screen:
                os.write(control, answer)
                answer = b""
        return process.wait(30), screen.decode()
    finally:
        process.kill()
        process.wait()
        os.close(control)


def test_on_a_terminal(shm: Path) -> None:
    """A bar while it lasts, and lines that stay; no escape sequences."""
    source = fill(shm / "file", 32 * MIB)
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(16 * MIB, lambda: time.sleep(0.7))]
        code, screen = _on_a_terminal(shm, "send", source, "127.0.0.1", "--port", str(proxy.port))
        assert code == 0, screen
        assert "%|" in screen
        assert "\x1b" not in screen
        assert screen.rstrip().splitlines()[-1].lstrip("\r ").startswith("1 file done")


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 8), (b"\n", 8), (b"\x04", 8)])
def test_an_open_receiver_is_asked_about_on_a_terminal(tmp_path: Path, answer: bytes, code: int) -> None:
    source = fill(tmp_path / "file", 100)
    with Receiver(tmp_path, "--open") as receiver:
        (tmp_path / "stranger").mkdir()
        arguments = ("send", source, "127.0.0.1", "--port", str(receiver.port))
        ended, screen = _on_a_terminal(tmp_path / "stranger", *arguments, answer=answer)
        assert ended == code, screen
        assert (receiver.into / "file").exists() == (code == 0)


def test_version_and_help(tmp_path: Path) -> None:
    for arguments, words in (
        (["--version"], "(protocol 1)"),
        (["--help"], "ftx receive"),
        (["send", "--help"], "ftx send big.iso nas"),
        (["receive", "--help"], "ftx receive --dir"),
        (["demo", "--help"], "ftx demo big.iso"),
    ):
        command = [sys.executable, "-m", "ftx", *arguments]
        run = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
        assert words in run.stdout


def test_demo(shm: Path) -> None:
    """The real thing on a small file: killed, resumed, compared, and nothing left."""
    source = fill(shm / "file", 64 * MIB)
    folder = shm / "tmp"
    folder.mkdir()
    environ = environment(shm) | {"TMPDIR": str(folder)}
    command = [sys.executable, "-m", "ftx", "demo", source]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert f"all {64 * MIB} bytes are identical" in run.stdout
    assert not list(folder.iterdir())


def test_python_api_needs_no_terminal_and_no_signals(shm: Path) -> None:
    """A program that calls ``api.send`` from a thread gets events and a result, and nothing is printed."""
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from ftx import api\n"
        "options = api.SendOptions(host='127.0.0.1', port=int(sys.argv[2]))\n"
        "found = []\n"
        "thread = threading.Thread(target=lambda: found.append(api.send([sys.argv[1]], options)))\n"
        "thread.start(); thread.join()\n"
        "sys.exit(found[0].code)\n"
    )
    source = fill(shm / "file", 1000)
    with Receiver(shm) as receiver:
        command = [sys.executable, "-c", code, source, str(receiver.port)]
        run = subprocess.run(command, env=environment(shm), capture_output=True, timeout=30, check=False)
        assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
        assert same(source, receiver.into / "file")


def test_an_unused_event_type_is_none(shm: Path) -> None:
    """A process that is refused at once still begins with ``start`` and ends with ``finished``."""
    with Process(shm, "send", "none", "127.0.0.1", "--port", "1") as process:
        assert process.wait() == 6
        assert [event["type"] for event in process.events] == ["start", "entry", "finished"]
