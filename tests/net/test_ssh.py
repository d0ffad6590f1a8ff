"""Starting the far side: what is run, what is passed over before its line, and how it goes wrong. No sshd is needed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import DestinationError, FtxError, Interrupted, NetworkError, NotStarted, ProtocolError
from ftx.net.ssh import INSTALL, FarSide, remote_command
from ftx.protocol import ssh
from ftx.protocol.ssh import Answer, Request

ANSWER = Answer(40123, "ed25519:x", bytes(range(32)), "192.0.2.7")
LINE = ssh.encode_answer(ANSWER).decode()
#: Ends when its input does, as ssh does.
STAY = "exec cat >/dev/null"


def start(script: str, host: str = "me@nas", rsh: Sequence[str] = (), **more: Any) -> FarSide:
    """A shell in the place of ssh: the host is its $0, the far command its $1."""
    check = more.pop("check", lambda: None)
    return FarSide(rsh or ("sh", "-c", script), host, "ftx", Request(b"in", 30.0), check)


@pytest.mark.parametrize("before", ["", "Welcome\n", "no newline", "ftx-ss\nftx-ssh\n", "x" * 60_000], ids=len)
def test_what_a_login_says_first_is_passed_over(before: str) -> None:
    with start(f"printf '%s' '{before}'; printf '%s' '{LINE}'; {STAY}") as far:
        assert far.answer == ANSWER
        assert far.addresses() == ["192.0.2.7", "nas"]


def test_the_line_may_come_in_pieces() -> None:
    middle = len(LINE) // 2
    with start(f"printf '%s' '{LINE[:middle]}'; sleep 0.2; printf '%s' '{LINE[middle:]}'; {STAY}") as far:
        assert far.answer == ANSWER


def test_g8_noise_has_an_end() -> None:
    with pytest.raises(NotStarted, match="without end"):
        start("head -c 300000 /dev/zero")


def test_it_is_told_over_its_input_and_what_follows_is_a_connection(tmp_path: Path) -> None:
    with start(f"head -n 1 >{tmp_path}/request; printf '%s' '{LINE}'; exec cat") as far:
        assert (tmp_path / "request").read_bytes() == ssh.encode_request(Request(b"in", 30.0))
        far.sock.sendall(b"\0ab")
        assert far.sock.recv(100) == b"\0ab"


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("exit 127", NotStarted, INSTALL),
        ("exit 126", NotStarted, "--remote-ftx"),
        ("echo hello; exit 1", NotStarted, r"exit status 1\); instead it said: 'hello'"),
        ("exit 0", NotStarted, "exit status 0"),
        ("exit 255", NetworkError, "no connection to me@nas"),
        ("kill -9 $$", NetworkError, "signal 9"),
        ("printf 'ftx-ssh {}\\n'", ProtocolError, "update"),
        ("printf '%s' '" + ssh.encode_failure(7, "no room").decode() + "'", DestinationError, "no room"),
    ],
)
def test_how_it_goes_wrong(script: str, kind: type[FtxError], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        start(script)
    assert type(raised.value) is kind


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(NotStarted, match="/no/such/ssh cannot be started"):
        start("", rsh=("/no/such/ssh",))
    assert not NotStarted("").retry and NetworkError("").retry


def test_an_interrupt_while_a_password_is_awaited() -> None:
    def check() -> None:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        start(STAY, check=check)


def test_an_interrupt_that_ends_ssh_too() -> None:
    """As Ctrl-C does: it is told to both, and ssh is the faster."""
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        start("kill -INT $$", check=check)


def test_one_that_does_not_want_to_end_is_made_to() -> None:
    with start(f"trap '' TERM; printf '%s' '{LINE}'; while :; do sleep 0.1; done") as far:
        pass
    assert far._process.returncode == -9


def test_ssh_is_given_the_host_as_no_option(tmp_path: Path) -> None:
    """With nothing else that was typed behind it; and asked for the name that stands behind the host."""
    program = tmp_path / "ssh"
    arguments = tmp_path / "arguments"
    program.write_text(
        f"#!/bin/sh\ncase $* in *-G*) echo hostname a.example;; "
        f"*) printf '%s\\n' \"$@\" >{arguments}; printf '%s' '{LINE}'; {STAY};; esac\n"
    )
    program.chmod(stat.S_IRWXU)
    with start("", rsh=(os.fspath(program), "-p", "22")) as far:
        assert far.addresses() == ["192.0.2.7", "a.example"]
    words = arguments.read_text().splitlines()
    assert words[:3] == ["-p", "22", "-T"]
    assert words[-3:] == ["--", "me@nas", "ftx receive --over-ssh"]


@pytest.mark.parametrize(
    ("path", "command"),
    [("ftx", "ftx receive --over-ssh"), ("~/bin/ftx", "./bin/ftx receive --over-ssh"),
     ("a b;touch x", "'a b;touch x' receive --over-ssh")],
)  # fmt: skip
def test_what_the_far_shell_reads(path: str, command: str) -> None:
    assert remote_command(path) == command
