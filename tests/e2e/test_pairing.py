"""Pairing, with both programs as processes of their own: the receiver's user is one, the sender's another."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftx.net.peers import Peers
from ftx.protocol import messages as m
from tests.support.files import fill, same
from tests.support.process import Process, Receiver, send, sender, wait_until
from tests.support.terminal import OnTerminal

FTX = [sys.executable, "-m", "ftx"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "file", 1000)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """One that runs as a service: it shows no code."""
    with Receiver(tmp_path) as process:
        yield process


def user(base: Path, name: str = "laptop", code: str | None = None) -> dict[str, str]:
    """The environment of somebody on another machine."""
    (base / name).mkdir(exist_ok=True)
    return {"FTX_CONFIG_DIR": str(base / name)} | ({} if code is None else {"FTX_CODE": code})


def shown(base: Path, *arguments: str) -> Process:
    """``ftx pair`` beside the receiver, which shows a code."""
    process = Process(base, "pair", *arguments)
    process.event("code")
    return process


def code_of(process: Process, number: int = 0) -> str:
    code: str = process.event("code", number)["code"]
    return code


def test_G7_a_code_once_and_nothing_afterwards(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    with shown(tmp_path, "--name", "laptop") as pair:
        first = send(tmp_path, source, receiver.port, environ=user(tmp_path, code=code_of(pair).upper()))
        assert first.wait() == 0, first.err
        assert pair.wait() == 0
        told = [process.event("paired") for process in (pair, receiver)]
        assert [(one["name"], one["address"]) for one in told] == [("laptop", "127.0.0.1")] * 2
        assert first.event("paired")["fingerprint"] == receiver.event("listening")["fingerprint"]
    second = send(tmp_path, fill(tmp_path / "other", 10, seed=2), receiver.port, environ=user(tmp_path))
    assert second.wait() == 0, second.err
    assert not second.of_type("paired")
    assert same(source, receiver.into / "file") and (receiver.into / "other").exists()


def test_G7_a_wrong_code(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    with shown(tmp_path) as pair:
        wrong = send(tmp_path, source, receiver.port, environ=user(tmp_path, code="0000-acorn-actor"))
        assert wrong.wait() == 8
        assert "the pairing code is wrong" in wrong.finished["message"]
        assert code_of(pair) not in wrong.err + wrong.finished["message"]
        assert "wrong pairing code" in receiver.event("warning", 1)["message"]
        assert json.loads((tmp_path / "config" / "pairing").read_bytes())[2] == 1  # and it is not tried again
    assert not (receiver.into / "file").exists()
    assert not list((tmp_path / "laptop").glob("known_hosts"))


def test_G7_five_wrong_tries_replace_the_code(tmp_path: Path, receiver: Receiver) -> None:
    with shown(tmp_path) as pair:
        arguments = ("127.0.0.1", "--port", str(receiver.port))
        for number in range(m.PAIR_TRIES):
            with Process(tmp_path, "pair", *arguments, environ=user(tmp_path, code="0000-acorn-actor")) as wrong:
                assert wrong.wait() == 8, number
        assert "void" in pair.event("code", 1)["reason"]
        for code, expected in ((code_of(pair), 8), (code_of(pair, 1), 0)):
            with Process(tmp_path, "pair", *arguments, environ=user(tmp_path, code=code)) as given:
                assert given.wait() == expected
        assert pair.wait() == 0


def test_G7_a_code_is_used_once_also_by_two_at_once(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    with shown(tmp_path) as pair, ExitStack() as stack:
        users = [user(tmp_path, name, code_of(pair)) for name in ("one", "other")]
        both = [stack.enter_context(sender(tmp_path, source, receiver.port, environ=each)) for each in users]
        assert sorted(each.wait() for each in both) == [0, 8]
        late = send(tmp_path, source, receiver.port, environ=user(tmp_path, "late", code_of(pair)))
        assert late.wait() == 8
    assert len(receiver.of_type("paired")) == 1
    assert len(Peers(tmp_path / "config").all()) == 1


def test_G7_a_code_that_has_run_out(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    with shown(tmp_path) as pair:
        file = tmp_path / "config" / "pairing"
        code, expires_s, *rest = json.loads(file.read_bytes())
        file.write_text(json.dumps([code, expires_s - m.CODE_S, *rest]))
        assert pair.wait() == 3
        assert "nobody came" in pair.finished["message"]
        assert send(tmp_path, source, receiver.port, environ=user(tmp_path, code=code)).wait() == 8


def test_ctrl_c_withdraws_the_code(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    with shown(tmp_path) as pair:
        pair.signal(signal.SIGINT)
        assert pair.wait() == 130
        assert send(tmp_path, source, receiver.port, environ=user(tmp_path, code=code_of(pair))).wait() == 8


def test_a_second_code_takes_the_place_of_the_first(tmp_path: Path) -> None:
    with shown(tmp_path) as first, shown(tmp_path) as second:
        assert first.wait() == 8
        assert "another process" in first.finished["message"]
        second.signal(signal.SIGTERM)
        assert second.wait() == 143


def test_a_descriptor_and_pairing_alone(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    with shown(tmp_path) as pair:
        reading, writing = os.pipe()
        os.write(writing, f"{code_of(pair)}\nmore\n".encode())
        os.close(writing)
        arguments = ("127.0.0.1", "--port", str(receiver.port), "--code-fd", "0")
        with Process(tmp_path, "pair", *arguments, stdin=reading, environ=user(tmp_path)) as given:
            os.close(reading)
            assert given.wait() == 0, given.err
            assert [event["type"] for event in given.events] == ["start", "paired", "finished"]
    assert send(tmp_path, source, receiver.port, environ=user(tmp_path)).wait() == 0


def test_G7_a_code_never_settles_for_less(tmp_path: Path, source: Path) -> None:
    """An open receiver lets it in and proves nothing: with a code at hand, neither `--accept-new` will do."""
    with Receiver(tmp_path, "--open") as receiver:
        given = user(tmp_path, code="0000-acorn-actor")
        assert send(tmp_path, source, receiver.port, "--accept-new", environ=given).wait() == 8
        assert not (receiver.into / "file").exists()
        with shown(tmp_path) as pair:
            right = send(tmp_path, source, receiver.port, environ=user(tmp_path, code=code_of(pair)))
            assert right.wait() == 0, right.err
        # Once it is on file, a code that is still in the environment is not looked at.
        again = send(tmp_path, source, receiver.port, environ=given)
        assert again.wait() == 0 and not again.of_type("paired")


def test_a_secret_that_is_wrong_is_no_matter_of_pairing(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32)
    secret.chmod(0o600)
    with shown(tmp_path) as pair:
        environ = user(tmp_path, code=code_of(pair))
        refused = send(tmp_path, source, receiver.port, "--secret-file", secret, environ=environ)
        assert refused.wait() == 8 and "not allowed in" in refused.finished["message"]


def test_g11_a_folder_that_cannot_be_written(tmp_path: Path, source: Path, receiver: Receiver) -> None:
    """Neither a code can be shown, nor can a machine be paired that would be another one the next time."""
    (tmp_path / "occupied").touch()
    nowhere = {"FTX_CONFIG_DIR": str(tmp_path / "occupied" / "config")}
    with Process(tmp_path, "pair", environ=nowhere) as pair:
        assert pair.wait() == 2
        assert "nobody can be paired" in pair.finished["message"]
    for command in (["pair", "127.0.0.1"], ["send", str(source), "127.0.0.1"]):
        given = nowhere | {"FTX_CODE": "0000-acorn-actor"}
        with Process(tmp_path, *command, "--port", str(receiver.port), environ=given) as process:
            assert process.wait() == (2 if command[0] == "pair" else 8)
            assert "cannot be written to" in "".join(str(event) for event in process.events)
    assert not any("pairing code" in event["message"] for event in receiver.of_type("warning"))


# --- in front of a terminal ----------------------------------------------------------------------------


def on_terminal(base: Path, *arguments: str, environ: dict[str, str] | None = None) -> OnTerminal:
    own = {name: value for name, value in os.environ.items() if not name.startswith("FTX_")}
    own["FTX_CONFIG_DIR"] = str(base / "config")
    return OnTerminal([*FTX, *arguments], own | (environ or {}))


def test_a_person_is_asked_for_the_code_and_again_if_it_was_wrong(
    tmp_path: Path, source: Path, receiver: Receiver
) -> None:
    with shown(tmp_path) as pair:
        arguments = ("send", str(source), "127.0.0.1", "--port", str(receiver.port))
        terminal = on_terminal(tmp_path, *arguments, environ=user(tmp_path))
        terminal.read("is shown on 127.0.0.1: ")
        terminal.shown = ""
        os.write(terminal.near, b"0000-acorn-actor\n")
        assert "is wrong" in terminal.read("is shown on 127.0.0.1: ")
        os.write(terminal.near, code_of(pair).replace("-", " ").encode() + b"\n")
        terminal.read("1 file done")
        terminal.read()
        assert terminal.close() == 0
    assert same(source, receiver.into / "file")


@pytest.mark.parametrize(("answers", "code", "text"), [
    ([b"0000-acorn-actor\n"] * 3, 8, "is wrong"),
    ([b"\n"], 8, "not allowed in"),
    ([b"\x03"], 130, "interrupted"),
], ids=["three times", "no answer", "Ctrl-C"])  # fmt: skip
def test_a_person_without_the_code(
    tmp_path: Path, source: Path, receiver: Receiver, answers: list[bytes], code: int, text: str
) -> None:
    arguments = ("send", str(source), "127.0.0.1", "--port", str(receiver.port))
    terminal = on_terminal(tmp_path, *arguments, environ=user(tmp_path))
    for answer in answers:
        terminal.read("is shown on 127.0.0.1: ")
        terminal.shown = ""
        if answer == b"\x03":
            terminal.process.send_signal(signal.SIGINT)
        else:
            os.write(terminal.near, answer)
    shown_last = terminal.read()
    assert text in shown_last and "is shown on 127.0.0.1: " not in shown_last
    assert terminal.close() == code


def test_a_receiver_on_a_terminal_shows_a_code_and_a_new_one_when_it_is_used(tmp_path: Path, source: Path) -> None:
    into, port = str(tmp_path / "into"), free_port()
    terminal = on_terminal(tmp_path, "receive", "--bind", "127.0.0.1", "--port", str(port), "--dir", into)
    assert f"ftx send FILE 127.0.0.1 --port {port}" in terminal.read("minutes: ")
    codes = []
    for name in ("one", "other"):
        codes.append(code_in(terminal))
        terminal.shown = ""
        sent = send(tmp_path, source, port, environ=user(tmp_path, name, codes[-1]))
        assert sent.wait() == 0, sent.err
        terminal.read("paired: 127.0.0.1")
    assert codes[0] != codes[1]
    terminal.process.send_signal(signal.SIGINT)
    terminal.read()
    assert terminal.close() == 130
    assert json.loads((tmp_path / "config" / "pairing").read_bytes())[0] == ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def code_in(terminal: OnTerminal) -> str:
    """The code that was shown last; waits until its line is whole."""
    return terminal.read("minutes: ", whole=True).rpartition("minutes: ")[2].split()[0]


@pytest.mark.parametrize("option", ["--quiet", "--json", "--open", "--secret-file"])
def test_a_receiver_that_needs_no_code_shows_none(tmp_path: Path, option: str) -> None:
    more = [str(tmp_path / "secret")] if option == "--secret-file" else []
    port = free_port()
    where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(tmp_path / "into"))
    terminal = on_terminal(tmp_path, "receive", *where, option, *more)
    wait_until(lambda: reachable(port))
    terminal.process.send_signal(signal.SIGTERM)
    assert "pairing code" not in terminal.read()
    assert terminal.close() == 143
    assert not (tmp_path / "config" / "pairing").exists()
