"""``ftx status``: what it shows of real transfers, what it discards, and how it ends."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ftx.cli import main
from ftx.storage import disk
from ftx.storage.partial import PartialStore
from ftx.storage.paths import Root
from tests.storage.support import CHUNK, NEEDS_ROOT, OTHER_PEER, PEER, XXH3, entry, fail_once, in_child, write
from tests.support.files import MIB, fill, journals, partials, same
from tests.support.process import Process, Receiver, send, sender, wait_until
from tests.support.proxy import Proxy, Stall

SIZE = 48 * MIB
#: Each connection stalls here: however many there are, some chunks have arrived and more are missing.
AT = 5 * MIB // 2
UNFINISHED = {"type", "time", "path", "size", "held", "age_s", "peer", "running", "discarded"}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def leave(into: Path, path: bytes = b"a/file", *chunks: int, peer: bytes = PEER) -> None:
    """Break off a transfer of three chunks that has these."""
    root = Root(into)
    store = PartialStore(root, reserve=0)
    left = store.open(peer, entry(path), XXH3)
    write(left, *chunks)
    store.release(left, committed=False)
    root.close()


def status(*arguments: str | Path) -> int:
    """The command, in this process."""
    words = [os.fspath(argument) for argument in arguments]
    code: int = main.load("status").main(words, standalone_mode=False, auto_envvar_prefix="FTX_STATUS")
    return code


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- real transfers --------------------------------------------------------------------------------------------------


class Status:
    """What one run of the command tells, as JSON."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        assert status(*arguments, "--json") == 0
        *self.unfinished, self.finished = events(capsys.readouterr().out)
        assert self.finished["type"] == "finished"
        self.counts = (self.finished["unfinished"], self.finished["discarded"])


def arrived(capsys: pytest.CaptureFixture[str], into: Path) -> bool:
    return [left["held"] > MIB for left in Status(capsys, into).unfinished] == [True]


def test_from_running_to_killed_to_discarded_to_done(shm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(shm / "big", SIZE)
    with (
        Receiver(shm) as receiver,
        Proxy(receiver.port, up=[Stall(AT)], on=None) as proxy,
        sender(shm, source, proxy.port, "--retry-for", "0") as first,
    ):
        into = receiver.into
        wait_until(lambda: arrived(capsys, into))
        with Process(shm, "status", into, "--discard") as asked:
            assert asked.wait() == 0, asked.err
        (seen,) = asked.of_type("unfinished")
        assert seen.keys() == UNFINISHED
        assert (seen["path"], seen["size"], seen["running"], seen["discarded"]) == ("big", SIZE, True, False)
        assert (asked.finished["unfinished"], asked.finished["discarded"]) == (1, 0)
        assert len(partials(into)) == len(journals(into)) == 1
        receiver.kill()
        assert first.wait() == 3

    after = Status(capsys, into)
    (left,) = after.unfinished
    assert (left["path"], left["running"], left["peer"]) == ("big", False, seen["peer"])
    assert MIB < left["held"] < SIZE
    assert after.counts == (1, 0)

    gone = Status(capsys, into, "--discard")
    assert [(each["path"], each["discarded"]) for each in gone.unfinished] == [("big", True)]
    assert gone.counts == (0, 1)
    assert not partials(into)
    assert not journals(into)
    with Receiver(shm) as receiver:
        again = send(shm, source, receiver.port)
    assert again.wait() == 0, again.err
    assert (again.finished["bytes_reused"], again.finished["bytes_sent"]) == (0, SIZE)
    assert same(source, into / "big")


def test_what_status_has_looked_at_is_resumed(shm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(shm / "big", SIZE)
    with Receiver(shm) as receiver:
        with (
            Proxy(receiver.port, up=[Stall(AT)], on=None) as proxy,
            sender(shm, source, proxy.port, "--retry-for", "0") as first,
        ):
            wait_until(lambda: arrived(capsys, receiver.into))
            first.kill()
        wait_until(lambda: not Status(capsys, receiver.into).unfinished[0]["running"])
        again = send(shm, source, receiver.port)
    assert again.wait() == 0, again.err
    assert again.finished["bytes_reused"] > MIB
    assert Status(capsys, receiver.into).counts == (0, 0)


# --- for people ------------------------------------------------------------------------------------------------------


def test_the_table(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into, b"a/file", 0)
    then = time.time() - 7325
    for path in (into / ".ftx").iterdir():
        os.utime(path, (then, then))
    assert status(into) == 0
    out, err = capsys.readouterr()
    head, row, last = out.splitlines()
    assert head.split() == ["SIZE", "HELD", "UNTOUCHED", "FOR", "PEER", "STATE", "PATH"]
    assert " ".join(row.split()) == "3.0 MiB 1.0 MiB 33 % 2 h 02 min 70707070 resumable a/file"
    assert row.index("a/file") == head.index("PATH")
    assert last.startswith("1 unfinished; ")
    assert err == ""


def test_the_current_folder_is_the_default(
    into: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(into)
    monkeypatch.chdir(into)
    assert status() == 0
    assert "a/file" in capsys.readouterr().out


def test_nothing_is_unfinished(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(into) == 0
    assert capsys.readouterr() == (f"nothing is unfinished in {into}\n", "")
    assert not list(into.iterdir())
    (into / ".ftx").mkdir(mode=0o700)
    assert status(into, "--discard") == 0
    assert capsys.readouterr() == (f"nothing is unfinished in {into}\n", "")


def test_a_path_cannot_steer_the_terminal(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into, b"evil\x1b[2J\n\xff")
    assert status(into) == 0
    out = capsys.readouterr().out
    assert "evil\\x1b[2J\\x0a\\xff" in out
    assert len(out.splitlines()) == 3


def test_a_path_that_the_terminal_cannot_show(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(into, "k\u00fche".encode())
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert status(into) == 0
    assert b"k\\xfche\n" in out.getvalue()


def test_discard(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into, b"one")
    leave(into, b"two", peer=OTHER_PEER)
    root = Root(into)
    store = PartialStore(root, reserve=0)
    running = store.open(PEER, entry(b"three"), XXH3)
    assert status(into, "--discard") == 0
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert sorted(row.split()[-2:] for row in rows) == [
        ["discarded", "one"],
        ["discarded", "two"],
        ["running", "three"],
    ]
    assert last == "2 discarded; 1 running, and kept"
    assert status(into, "--discard") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 discarded; 1 running, and kept"
    store.release(running, committed=False)
    root.close()
    assert status(into, "--discard") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 discarded"


def test_discard_of_one_path(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into, b"a/file")
    leave(into, b"a/file", peer=OTHER_PEER)
    leave(into, b"file")
    assert status(into, "--discard", "--path", "a/file") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 discarded"
    assert status(into, "--path", "a/file") == 0
    assert capsys.readouterr().out == f"nothing is unfinished in {into}/a/file\n"
    assert status(into) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(" file")


def test_a_session_may_be_faster(
    into: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(into)
    monkeypatch.setattr(disk, "lock", lambda fd: False)
    assert status(into, "--discard", "--json") == 0
    left, finished = events(capsys.readouterr().out)
    assert (left["running"], left["discarded"]) == (True, False)
    assert (finished["unfinished"], finished["discarded"]) == (1, 0)


def test_options_as_variables(into: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    leave(into)
    monkeypatch.setenv("FTX_STATUS_JSON", "1")
    assert status(into) == 0
    assert [event["type"] for event in events(capsys.readouterr().out)] == ["unfinished", "finished"]


def test_a_reader_that_goes_away(into: Path, tmp_path: Path) -> None:
    leave(into)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone, contextlib.redirect_stdout(gone):
        assert status(into, "--discard") == 0
    assert not partials(into)


# --- for programs ----------------------------------------------------------------------------------------------------


def test_json(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into, b"a/file", 0, 2)
    assert status(into, "--json") == 0
    out, err = capsys.readouterr()
    left, finished = events(out)
    assert left.keys() == UNFINISHED
    assert (left["type"], left["path"], left["peer"]) == ("unfinished", "a/file", PEER.hex())
    assert (left["size"], left["held"], left["running"]) == (3 * CHUNK, 2 * CHUNK, False)
    assert 0 <= left["age_s"] < 30
    assert abs(finished.pop("time") - time.time()) < 30
    assert 0 <= finished.pop("seconds") < 30
    nothing = dict.fromkeys(
        ("files", "failed", "skipped", "bytes_total", "bytes_sent", "bytes_reused", "kept", "left_out", "bytes_wire"), 0
    )
    assert finished == nothing | {"type": "finished", "code": 0, "message": "", "unfinished": 1, "discarded": 0}
    assert err == ""


def test_json_of_a_path_that_is_not_utf_8(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into, b"caf\xe9")
    assert status(into, "--json", "--path", os.fsdecode(b"caf\xe9")) == 0
    left = events(capsys.readouterr().out)[0]
    assert left["path"] == "caf\ufffd"
    assert base64.b64decode(left["path_b64"]) == b"caf\xe9"


def test_nothing_is_made(into: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor synced, which another program's writing may hold up for long."""
    monkeypatch.setattr(disk, "sync_folder", lambda fd: pytest.fail("it synced a folder"))
    before = into.stat()
    assert status(into) == 0
    assert not list(into.iterdir())
    assert (into.stat().st_mtime_ns, into.stat().st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "file", "missing/below"])
def test_g11_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert status(tmp_path / what) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ftx: {tmp_path / what}: ")
    assert err.count("\n") == 1
    assert status(tmp_path / what, "--json") == 7
    out, err = capsys.readouterr()
    (finished,) = events(out)
    assert (finished["type"], finished["code"]) == ("finished", 7)
    assert finished["message"] in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_g11_what_cannot_be_discarded(
    into: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(into, b"one")
    leave(into, b"two")
    fail_once(monkeypatch, "unlink")
    assert status(into, "--discard", "--json") == 7
    out, err = capsys.readouterr()
    warning, first, second, finished = sorted(events(out), key=lambda event: event["type"] != "warning")
    assert warning["type"] == "warning"
    assert {first["discarded"], second["discarded"]} == {True, False}
    assert not first["running"] and not second["running"]
    assert (finished["code"], finished["unfinished"], finished["discarded"], finished["failed"]) == (7, 1, 1, 1)
    assert warning["message"] in err
    assert "Traceback" not in err


def test_g11_a_folder_of_ftx_that_is_none(into: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (into / ".ftx").symlink_to(into)
    assert status(into) == 7
    assert capsys.readouterr().err.startswith(f"ftx: {into}/.ftx: ")


@NEEDS_ROOT
def test_g11_as_a_user_who_may_not_read_it(shm: Path) -> None:
    shm.chmod(0o755)
    leave(shm)
    main.load("status")

    def as_another() -> None:
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert status(shm) == 7
        assert f"{shm}/.ftx: it belongs to user 0, " in err.getvalue()

    assert in_child(as_another, uid=12345) == 0
    os.chown(shm / ".ftx", 12345, 12345)
    assert status(shm) == 7  # root is not asked to act for others


def test_a_signal_ends_it(into: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    leave(into)
    monkeypatch.setattr("sys.argv", ["ftx", "status", str(into)])
    monkeypatch.setattr(disk, "look", lambda *args, **kwargs: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            main.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
