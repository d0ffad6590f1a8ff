"""What scripts rely on: streams, surroundings, silence, JSON by the contract's table, variables of the environment.

Each run is the real program. What happens on a terminal, and to a reader that goes away, is in ``test_program.py``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

import ftx as package
from ftx.cli import main
from ftx.transfer import events
from tests.cli.test_params import values
from tests.support.files import fill, same
from tests.support.process import Receiver, environment, send, wait_until

FTX = [sys.executable, "-m", "ftx"]
#: All that a process needs to find this ftx.
BARE = {"PYTHONPATH": str(Path(package.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
#: Replaces the look-up of this user, who then has no home.
NOBODY = """
import pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from ftx.cli.main import main
main()
"""


def ran(*command: str | Path, env: dict[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
    arguments: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 30}
    return subprocess.run([*command], env=env, **arguments | more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "file", 100_000)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path) as process:
        yield process


# --- streams ---


@pytest.mark.parametrize(
    ("closed", "json_lines"), [("<&-", True), (">&-", True), ("2>&-", True), ("2>&-", False), (">&- 2>&-", False)]
)
def test_a_sender_with_a_closed_stream(receiver: Receiver, source: Path, closed: str, json_lines: bool) -> None:
    """The number of a closed stream may be taken by a file or a link; nothing that is printed may land in it."""
    line = f'exec "$@" {closed}'
    command = [*FTX, "send", "-vv", *(["--json"] * json_lines), "--port", str(receiver.port), str(source), "127.0.0.1"]
    done = ran("/bin/sh", "-c", line, "sh", *command, env=environment(source.parent))
    assert done.returncode == 0, done.stderr
    assert same(source, receiver.into / "file")
    assert same(source, fill(source.parent / "again", 100_000))
    if json_lines and ">&-" not in closed.split():
        assert json.loads(done.stdout.splitlines()[-1])["code"] == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_receiver_with_a_closed_stream(tmp_path: Path, source: Path, closed: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    options = ["--bind", "127.0.0.1", "--port", port, "--dir", "into", "--reserve", "0", "--once", "-vv", "--json"]
    receiver = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *FTX, "receive", *options],
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: send(tmp_path, source, int(port)).wait() == 0 or receiver.poll() is not None)
        assert receiver.wait(10) == 0
    finally:
        receiver.kill()
        receiver.wait()
    assert same(source, tmp_path / "into" / "file")


# --- surroundings ---


def test_an_empty_environment(tmp_path: Path, source: Path) -> None:
    """As under cron, and less: no HOME, PATH, TERM, LANG; no terminal; both sides, with one folder for their keys."""
    bare = BARE | {"FTX_CONFIG_DIR": str(tmp_path / "config")}
    into = tmp_path / "into"
    with subprocess.Popen(
        [*FTX, "receive", "--json", "--bind", "127.0.0.1", "--port", "0", "--dir", into, "--reserve", "0", "--once"],
        env=bare,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        port = str(json.loads(receiver.stdout.readline())["addresses"][0][1])
        done = ran(*FTX, "send", "--port", port, source, "127.0.0.1", env=bare, start_new_session=True)
        receiver.communicate(timeout=10)
    assert (done.returncode, done.stdout, receiver.returncode) == (0, "", 0)
    assert len(done.stderr.splitlines()) == 2
    assert same(source, into / "file")


@pytest.mark.parametrize("home", ["/dev/null/home", None], ids=["not writable", "unset"])
def test_a_home_that_is_none(tmp_path: Path, source: Path, home: str | None) -> None:
    """A sender with a key needs no folder of its own. A receiver does, and says which variable names it."""
    surroundings = {"HOME": home} if home is not None else {}
    if home != "/dev/null/home":
        # Elsewhere nothing may be left in this user's real home; XDG's variable comes before it.
        surroundings["XDG_CONFIG_HOME"] = "/dev/null/home"
    key = tmp_path / "key"
    with Receiver(tmp_path, "--secret-file", key) as receiver:
        command = [*FTX, "send", "--secret-file", key, "--port", str(receiver.port), source, "127.0.0.1"]
        done = ran(*command, env=BARE | surroundings)
        assert done.returncode == 0, done.stderr
    done = ran(*FTX, "receive", "--port", "0", "--dir", tmp_path / "other", env=BARE | surroundings)
    assert done.returncode == 2
    assert re.fullmatch(r"ftx: /dev/null/home\S* \(\$FTX_CONFIG_DIR\) cannot be written to: .*\n", done.stderr)


@pytest.mark.parametrize("command", ["send", "receive"])
def test_a_user_without_a_home(tmp_path: Path, source: Path, command: str) -> None:
    """No HOME, and a user number that nobody knows, as in a container."""
    arguments = {
        "send": ["send", "--port", "1", str(source), "127.0.0.1"],
        "receive": ["receive", "--port", "0", "--bind", "127.0.0.1", "--dir", str(tmp_path / "into")],
    }[command]
    done = ran(sys.executable, "-c", NOBODY, *arguments, env=BARE)
    assert done.returncode == 2
    assert re.fullmatch(r"ftx: .*\$FTX_CONFIG_DIR.*\n", done.stderr)


NAMES = ["café", "文件", os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("utf_8", [True, False], ids=["C", "C, and Python without UTF-8"])
def test_names_in_the_locale_c(receiver: Receiver, tmp_path: Path, utf_8: bool) -> None:
    """Each name arrives as it is, and is told as it is in JSON; lines show what can be shown and escape the rest."""
    locale = {"LC_ALL": "C"} | ({} if utf_8 else {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    surroundings = environment(tmp_path) | locale
    for name in NAMES if utf_8 else NAMES[::2]:
        path = fill(tmp_path / name, 10)
        command = [*FTX, "send", "--json", "-v", "--port", str(receiver.port), path, "127.0.0.1"]
        done = ran(*command, env=surroundings, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        entry = next(event for event in map(json.loads, done.stdout.splitlines()) if event["type"] == "entry")
        assert os.fsencode(entry["path"]) == os.fsencode(name) or entry["path"] == "caf\N{REPLACEMENT CHARACTER}"
        assert same(path, receiver.into / name)
        shown = name if utf_8 and "\udce9" not in name else "caf\\xe9"
        assert f"done {shown} (10 B; " in done.stderr


@contextmanager
def _deleted(folder: Path) -> Iterator[dict[str, Any]]:
    """What makes a process start in a folder that is gone."""
    folder.mkdir()
    yield {"preexec_fn": lambda: (os.chdir(folder), folder.rmdir())}
    assert not folder.exists()


def test_a_sender_in_a_folder_that_is_gone(receiver: Receiver, source: Path, tmp_path: Path) -> None:
    command = [*FTX, "send", "--quiet", "--port", str(receiver.port)]
    with _deleted(tmp_path / "gone") as there:
        done = ran(*command, source, "127.0.0.1", env=environment(tmp_path), **there)
    assert (done.returncode, done.stderr) == (0, "")
    with _deleted(tmp_path / "gone") as there:
        done = ran(*command, "file", "127.0.0.1", env=environment(tmp_path), **there)
    assert (done.returncode, done.stderr) == (6, "ftx: file: no such file\n")


def test_a_receiver_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    with _deleted(tmp_path / "gone") as there:
        done = ran(*FTX, "receive", "--port", "0", "--bind", "127.0.0.1", env=environment(tmp_path), **there)
    assert done.returncode == 7
    assert re.fullmatch(r"ftx: .*\n", done.stderr)


# --- silence ---


@pytest.mark.parametrize(
    "case",
    [
        "refused",
        "exists",
        "nobody listens",
        "stopped",
    ],
)
def test_quiet_is_one_line_when_something_failed(tmp_path: Path, source: Path, case: str) -> None:
    with Receiver(tmp_path, "--quiet", "--exists", "fail") as receiver:
        surroundings = environment(tmp_path)
        port = receiver.port
        match case:
            case "refused":
                surroundings["FTX_CONFIG_DIR"] = str(tmp_path / "stranger")
                code = 8
            case "exists":
                receiver.into.mkdir(exist_ok=True)
                fill(receiver.into / "file", 5)
                code = 7
            case "nobody listens":
                port = 1
                code = 3
            case _:
                code = 143
        command = [*FTX, "send", "--quiet", "--port", str(port), str(source), "127.0.0.1"]
        if case == "stopped":
            done = _stopped_while_connecting(command, surroundings)
        else:
            done = ran(*command, env=surroundings)
        assert (done.returncode, done.stdout) == (code, "")
        assert re.fullmatch(r"ftx: .+\n", done.stderr)
        receiver.stop()
        *failed, last = receiver.err.splitlines()
        assert (len(failed), last) == (1 if case == "exists" else 0, "ftx: stopped.")


def _stopped_while_connecting(command: list[str], surroundings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The run, ended by SIGTERM when the other side has said nothing yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [str(server.getsockname()[1]) if word == command[command.index("--port") + 1] else word
                   for word in command]  # fmt: skip
        process = subprocess.Popen(
            command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=10)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_a_quiet_receiver_says_nothing_of_strangers_and_ends(tmp_path: Path, source: Path) -> None:
    """All is well on the receiver's side when a stranger is refused and the first job is done."""
    with Receiver(tmp_path, "--quiet", "--once") as receiver:
        stranger = {"FTX_CONFIG_DIR": str(tmp_path / "stranger")}
        assert send(tmp_path, source, receiver.port, "--quiet", environ=stranger).wait() == 8
        assert send(tmp_path, source, receiver.port, "--quiet").wait() == 0
        assert receiver.wait() == 0
        assert receiver.err == ""


# --- JSON ---

#: The contract's table of events, word for word.
TABLE = """
| type | fields | when |
|---|---|---|
| `start` | `version`, `protocol`, `role` | both: first line |
| `listening` | `addresses` (list of `[host, port]`), `dir`, `pid` | receive: ready for senders |
| `session` | `session`, `peer`, `encrypted` (bool), `lanes` | both: a session is up |
| `progress` | `bytes_total`, `bytes_done`, `bytes_sent`, `bytes_reused`, `files_total`, `files_done` | both: about once a second; totals are null until known |
| `entry` | `path`, `state` (`done`, `skipped`, `failed`), `size`, `sent`, `reused`, `digest`, `code`, `message` | both: an entry ended |
| `warning` | `message`, `path` | both |
| `retry` | `reason`, `wait_s`, `attempt` | send: the link broke, trying again |
| `paused` / `resumed` | `reason` | both: the disk is full / there is room again |
| `session_end` | `session`, `peer`, `code`, `message` | receive: a session is over |
| `finished` | `code`, `message`, `files`, `failed`, `skipped`, `bytes_total`, `bytes_sent`, `bytes_reused`, `seconds` | both: last line before exit |
"""  # noqa: E501


def _fields() -> dict[str, set[str]]:
    """Type -> its fields, from the table; words in parentheses are values."""
    found = {}
    for row in TABLE.strip().splitlines()[2:]:
        types, fields, _ = row.strip("|").split("|")
        for name in re.findall(r"`(\w+)`", types):
            found[name] = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", fields)))
    return found


def _strict(line: str) -> dict[str, Any]:
    """One object as any parser reads it: no NaN, no name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def unknown(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(line, object_pairs_hook=once, parse_constant=unknown)
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.parametrize("kind", sorted(_fields()))
def test_every_event_of_the_table_has_its_fields(kind: str) -> None:
    made = [cls for cls in events.Event.__subclasses__() if cls.type == kind]
    assert any(_fields()[kind] <= {field.name for field in dataclasses.fields(cls)} for cls in made)


def test_json_lines_are_strict_whatever_things_are_called(tmp_path: Path) -> None:
    """Names that are no UTF-8, or that would end a line, on both sides, in paths, messages and folders."""
    odd = os.fsdecode(b"caf\xe9\n\x1b") + "\u2028"
    source = fill(tmp_path / odd, 10)
    said: list[dict[str, Any]] = []
    with Receiver(tmp_path, "--exists", "fail", into=tmp_path / f"into {odd}") as receiver:
        command = [*FTX, "send", "--json", "--port", str(receiver.port)]
        for name, size, code in ((odd, 10, 0), (f"no {odd}", 0, 6), (odd, 11, 7)):
            fill(source, size)
            done = ran(*command, tmp_path / name, "127.0.0.1", env=environment(tmp_path))
            lines = [_strict(line) for line in done.stdout.splitlines()]
            assert (done.returncode, lines[0]["type"], lines[-1]["type"]) == (code, "start", "finished")
            assert lines[-1]["code"] == code
            said += lines
        receiver.stop()
    assert receiver.out == ""
    for event in said + receiver.events:
        assert event["time"] > 0
        assert _fields()[event["type"]] <= set(event)


@pytest.mark.parametrize(
    "arguments",
    [
        ["receive", "--bind", "127.0.0.1", "--port", "99", "--secret-file", "no/KEY"],
        ["send", "file", "KEY"],
        ["send", "file", "127.0.0.1", "--secret-file", "KEY"],
    ],
    ids=["message of a receiver", "host", "secret file"],
)
def test_json_has_no_half_characters(tmp_path: Path, source: Path, arguments: list[str]) -> None:
    odd = os.fsdecode(b"caf\xe9")
    command = [*FTX, *(word.replace("KEY", odd) for word in arguments), "--json"]
    done = ran(*command, env=environment(tmp_path), cwd=tmp_path)
    assert done.returncode in (2, 3)
    for line in done.stdout.splitlines():
        json.dumps(_strict(line), ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("arguments", [["send", "--nope"], ["send", "a", "b:7389"], ["receive", "--port", "x"]])
def test_wrong_use_prints_no_json(arguments: list[str], tmp_path: Path) -> None:
    done = ran(*FTX, arguments[0], "--json", *arguments[1:], env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


# --- variables of the environment ---

#: Option -> what the variable says, what the option says, and what each comes to.
SAMPLES: dict[str, tuple[str, str, Any, Any]] = {
    "port": ("7001", "7002", 7001, 7002),
    "timeout": ("7.5", "8", 7.5, 8),
    "secret_file": ("a key", "b", Path("a key"), Path("b")),
    "retry_for": ("0", "9", 0, 9),
    "dir": ("/srv/a b", "c", Path("/srv/a b"), Path("c")),
    "bind": ("::1 127.0.0.1", "10.0.0.1", ("::1", "127.0.0.1"), ("10.0.0.1",)),
    "exists": ("keep", "fail", "keep", "fail"),
    "reserve": ("1K", "2kB", 1024, 2000),
    "expire": ("0.5", "3", 0.5, 3),
    "lanes": ("3", "4", 3, 4),
    "bwlimit": ("1M", "2kB", 1024 * 1024, 2000),
    "compress": ("no", "auto", "no", "auto"),
    "congestion": ("reno", "cubic", "reno", "cubic"),
    "rsh": ("rsh -l 'a b'", "ssh -p 22", ("rsh", "-l", "a b"), ("ssh", "-p", "22")),
    "remote_ftx": ("/opt/ftx/bin/ftx", "~/b", "/opt/ftx/bin/ftx", "~/b"),
    "code_fd": ("3", "4", 3, 4),
}  # fmt: skip
NOT_VARIABLES = {"version", "help"}


def _options(command: str) -> list[click.Option]:
    return [
        parameter
        for parameter in main.load(command).params
        if isinstance(parameter, click.Option) and parameter.name not in NOT_VARIABLES and not parameter.hidden
    ]


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command in ("send", "receive") for option in _options(command)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_option_is_a_variable(command: str, option: click.Option) -> None:
    arguments = ["a", "b"] if command == "send" else []
    assert option.name
    variable = f"FTX_{command.upper()}_{option.name.upper()}"
    if option.is_flag:
        for yes in ("1", "true", "yes", "on"):
            assert values(command, arguments, **{variable: yes})[option.name] is True
        for no in ("0", "false", "no", "off", ""):
            assert values(command, arguments, **{variable: no})[option.name] is False
    elif option.count:
        assert values(command, arguments, **{variable: "2"})[option.name] == 2
        assert values(command, [*arguments, "-v"], **{variable: "2"})[option.name] == 1
    else:
        text, over, value, value_over = SAMPLES[option.name]
        assert values(command, arguments, **{variable: text})[option.name] == value
        assert values(command, [*arguments, option.opts[0], over], **{variable: text})[option.name] == value_over
        default = values(command, arguments)[option.name]
        assert values(command, arguments, **{variable: ""})[option.name] == default


def test_variables_alone(tmp_path: Path, source: Path) -> None:
    """No option at all on either command line, and one that wins."""
    receive = {
        "FTX_RECEIVE_BIND": "127.0.0.1",
        "FTX_RECEIVE_PORT": "0",
        "FTX_RECEIVE_DIR": str(tmp_path / "in here"),
        "FTX_RECEIVE_SECRET_FILE": str(tmp_path / "the key"),
        "FTX_RECEIVE_RESERVE": "0",
        "FTX_RECEIVE_EXISTS": "rename",
        "FTX_RECEIVE_ONCE": "1",
        "FTX_RECEIVE_JSON": "1",
    }
    with subprocess.Popen(
        [*FTX, "receive"],
        env=environment(tmp_path) | receive,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        port = str(json.loads(receiver.stdout.readline())["addresses"][0][1])
        fill(tmp_path / "in here" / "file", 5)
        of_send = {
            "FTX_CONFIG_DIR": str(tmp_path / "stranger"),
            "FTX_SEND_SECRET_FILE": str(tmp_path / "the key"),
            "FTX_SEND_QUIET": "1",
            "FTX_SEND_PORT": "1",
        }
        done = ran(*FTX, "send", source, "127.0.0.1", env=environment(tmp_path) | of_send)
        assert done.returncode == 3
        done = ran(*FTX, "send", source, "127.0.0.1", "--port", port, env=environment(tmp_path) | of_send)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        receiver.communicate(timeout=10)
    assert receiver.returncode == 0
    assert same(source, tmp_path / "in here" / "file.1")


def test_the_timeout_is_a_variable(tmp_path: Path, source: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [*FTX, "send", "--port", str(silent.getsockname()[1]), str(source), "127.0.0.1"]
        surroundings = environment(tmp_path) | {"FTX_SEND_TIMEOUT": "0.2"}
        began = time.monotonic()
        assert ran(*command, env=surroundings).returncode == 3
        assert time.monotonic() - began < 10
        surroundings["FTX_SEND_TIMEOUT"] = "soon"
        assert ran(*command, "--timeout", "0.2", env=surroundings).returncode == 3
        done = ran(*command, env=surroundings)
        assert done.returncode == 2
        assert "'soon'" in done.stderr
