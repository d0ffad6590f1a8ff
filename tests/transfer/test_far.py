"""The far side of a run over ssh, between two pipes: what starts it, and what ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.transfer import far as far_side
from ftx.transfer.crew import Stop
from tests.support.process import environment, wait_until


@pytest.fixture
def alone(shm: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A far side without ssh, between two pipes."""
    own = environment(shm) | {"HOME": str(shm)}
    command = [sys.executable, "-m", "ftx", "receive", "--over-ssh"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own, cwd=shm) as process:
        try:
            yield process
        finally:
            process.kill()


def _said(alone: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
    assert alone.stdin and alone.stdout
    alone.stdin.write(json.dumps({"version": 1} | request).encode() + b"\n")
    alone.stdin.flush()
    assert alone.stdout.readline() == b"\n"
    said: dict[str, Any] = json.loads(alone.stdout.readline().removeprefix(b"ftx-ssh "))
    return said


@pytest.mark.parametrize("spoken", [b"", b"\x01"], ids=["unused", "in use"])
def test_the_end_of_its_input_ends_it(alone: subprocess.Popen[bytes], spoken: bytes) -> None:
    said = _said(alone, {"folder": "in", "timeout_s": 30})
    socket.create_connection(("127.0.0.1", said["port"])).close()
    assert alone.stdin
    alone.stdin.write(spoken)
    alone.stdin.close()
    alone.wait(10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", said["port"]))


def test_one_that_is_told_nothing_ends(alone: subprocess.Popen[bytes]) -> None:
    assert alone.stdin and alone.stdout
    alone.stdin.close()
    assert alone.wait(10) == 4
    assert b'"code":4' in alone.stdout.read()


def test_it_says_why_it_cannot_serve(alone: subprocess.Popen[bytes]) -> None:
    said = _said(alone, {"folder": "in", "timeout_s": 0})
    assert said["code"] == 7 and "timeout_s" in said["message"]


def test_one_that_nobody_comes_to_ends(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sshd may not know for hours that the link is gone."""
    monkeypatch.setattr(far_side, "IDLE_S", 0.3)
    monkeypatch.setenv("HOME", str(shm))
    monkeypatch.setenv("FTX_CONFIG_DIR", str(shm / "config"))
    (ours_in, their_in), (their_out, ours_out) = os.pipe(), os.pipe()
    monkeypatch.setattr(far_side, "IN", ours_in)
    monkeypatch.setattr(far_side, "OUT", ours_out)
    os.write(their_in, b'{"version":1,"folder":"in","timeout_s":5}\n')
    assert far_side.serve(Stop()) == 128 + signal.SIGHUP
    assert b"ftx-ssh" in os.read(their_out, 65536)
    os.close(their_in)  # ends the thread that waits there
    wait_until(lambda: not any(thread.name == "ftx-stdin" for thread in threading.enumerate()))
    for fd in (ours_in, their_out, ours_out):
        os.close(fd)
