"""The command line: values, variables of the environment, wrong usage, help, start-up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ftx.cli import main
from ftx.cli.params import Remote, parse_remote

OPTIONS_OF_BOTH = ["--port", "--json", "--quiet", "-v", "--timeout", "--secret-file", "--plain", "--version"]
OPTIONS_OF_CALLERS = ["--accept-new", "--ssh", "--rsh", "--remote-ftx", "--congestion", "--code-fd"]
OPTIONS = {
    "send": [*OPTIONS_OF_BOTH, *OPTIONS_OF_CALLERS, "--retry-for", "--lanes", "--compress", "--bwlimit"],
    "bench": [*OPTIONS_OF_BOTH, *OPTIONS_OF_CALLERS, "--lanes", "--dir", "--step"],
    "receive": [
        *OPTIONS_OF_BOTH,
        "--dir",
        "--bind",
        "--once",
        "--open",
        "--exists",
        "--no-fsync",
        "--reserve",
        "--expire",
    ],
    "pair": ["--port", "--timeout", "--plain", "--code-fd", "--name", "--json", "-v", "--version"],
    "demo": ["-v", "--version"],
    "peers": ["--version"],
    "status": ["--path", "--discard", "--json", "-v", "--version"],
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real program."""
    return subprocess.run(
        [sys.executable, "-m", "ftx", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )


def values(command: str, arguments: list[str], **environment: str) -> dict[str, object]:
    """What the options of a command are, without running it."""
    loaded = main.load(command)
    runner = CliRunner(env=environment)
    with runner.isolation():
        context = loaded.make_context(command, list(arguments), auto_envvar_prefix=f"FTX_{command.upper()}")
    return context.params


# --- sizes and seconds ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1K", 1024),
        ("1k", 1024),
        ("256M", 256 << 20),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("1KiB", 1024),
        ("1MiB", 1 << 20),
        ("3GiB", 3 << 30),
        ("1TiB", 1 << 40),
        ("1kB", 1000),
        ("1KB", 1000),
        ("2MB", 2_000_000),
        ("2.5 GB", 2_500_000_000),
        ("1TB", 10**12),
        (" 5M ", 5 << 20),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert values("receive", ["--reserve", text])["reserve"] == expected


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1X", "1mb", "1Kib", "1e9", "0x10", "1,5G", "١M", "1.M", "nan", "9" * 16, "1 0"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(click.UsageError):
        values("receive", ["--reserve", text])


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", "", "86401"])
def test_timeouts_that_are_none(text: str) -> None:
    with pytest.raises(click.UsageError):
        values("send", ["a", "b", "--timeout", text])


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "x", "4294967296"])
def test_retry_times_that_are_none(text: str) -> None:
    with pytest.raises(click.UsageError):
        values("send", ["a", "b", "--retry-for", text])


def test_defaults() -> None:
    of_send = values("send", ["a", "b"])
    assert (of_send["port"], of_send["timeout"], of_send["retry_for"]) == (7389, 30, 300)
    assert values("send", ["a", "b", "--retry-for", "0"])["retry_for"] == 0
    of_receive = values("receive", [])
    assert (of_receive["port"], of_receive["bind"], of_receive["reserve"]) == (7389, (), 256 << 20)


# --- REMOTE ---


@pytest.mark.parametrize(
    ("text", "host", "folder"),
    [
        ("nas", "nas", ""),
        ("nas:", "nas", ""),
        ("nas:in", "nas", "in"),
        ("nas.example.org:a/b c/d", "nas.example.org", "a/b c/d"),
        ("10.0.0.1:x:y", "10.0.0.1", "x:y"),
        ("nas:./9000", "nas", "9000"),
        ("nas:a//b/./c/", "nas", "a/b/c"),
        ("nas:9000x", "nas", "9000x"),
        ("nas:..a/b..", "nas", "..a/b.."),
        ("[::1]", "::1", ""),
        ("[::1]:", "::1", ""),
        ("[fe80::1%eth0]:in", "fe80::1%eth0", "in"),
        ("[fd00::7]:a/b", "fd00::7", "a/b"),
    ],
)
def test_remotes(text: str, host: str, folder: str) -> None:
    assert parse_remote(text) == Remote(host, folder)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("nas:9000", "--port 9000"),
        ("[::1]:9000", "--port 9000"),
        ("nas:/srv", "relative"),
        ("nas:..", "'..'"),
        ("nas:a/../../b", "'..'"),
        ("", "no host"),
        (":in", "no host"),
        ("::1", "[::1]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("[::1", "IPV6"),
        ("[nas]:in", "IPV6"),
        ("[::1]in", "IPV6"),
        ("user@nas:in", "no user"),
        ("./file", "is a path"),
        ("/srv/file", "is a path"),
        ("..", "is a path"),
    ],
)
def test_remotes_that_are_none(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        parse_remote(text)
    with pytest.raises(click.BadParameter, match=re.escape(hint)):
        values("send", ["file", text])


# --- variables of the environment ---


def test_options_from_the_environment() -> None:
    of_send = values("send", ["a", "b"], FTX_SEND_PORT="9000", FTX_SEND_JSON="1", FTX_SEND_RETRY_FOR="7")
    assert (of_send["port"], of_send["json"], of_send["retry_for"]) == (9000, True, 7)
    of_receive = values(
        "receive",
        [],
        FTX_RECEIVE_DIR="/srv",
        FTX_RECEIVE_BIND="::1 127.0.0.1",
        FTX_RECEIVE_NO_FSYNC="1",
        FTX_RECEIVE_RESERVE="1kB",
        FTX_RECEIVE_SECRET_FILE="a key",
        FTX_RECEIVE_VERBOSE="2",
    )
    assert of_receive["dir"] == Path("/srv")
    assert of_receive["bind"] == ("::1", "127.0.0.1")
    assert of_receive["no_fsync"] is True
    assert of_receive["reserve"] == 1000
    assert of_receive["secret_file"] == Path("a key")
    assert of_receive["verbose"] == 2


def test_the_command_line_wins_over_the_environment() -> None:
    assert values("send", ["a", "b", "--port", "1"], FTX_SEND_PORT="9000")["port"] == 1


@pytest.mark.parametrize("entry", ["main", "send_main", "receive_main"])
def test_every_entry_point_knows_the_variables(entry: str) -> None:
    command = {"main": ["send", "a", "b"], "send_main": ["a", "b"], "receive_main": []}[entry]
    code = f"import sys; from ftx.cli.main import {entry}; sys.argv[1:] = {command!r}; {entry}()"
    variables = {"FTX_SEND_PORT": "66666", "FTX_RECEIVE_PORT": "66666"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert "66666" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FTX_SEND_TIMEOUT", "abc"),
        ("FTX_SEND_LANES", "65"),
        ("FTX_SEND_JSON", "maybe"),
        ("FTX_RECEIVE_EXISTS", "ask"),
        ("FTX_RECEIVE_RESERVE", "lots"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    command = variable.split("_")[1].lower()
    arguments = ["a", "b"] if command == "send" else []
    done = run(command, *arguments, **{variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert variable in done.stderr and value in done.stderr
    option = "--" + variable.split("_")[2].lower()
    if option != "--json":
        done = run(command, *arguments, option, value, **{variable: value})
        assert done.returncode == 2 and variable not in done.stderr and option in done.stderr


# --- wrong usage ---


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sned"], "sned"),
        (["send"], "Missing"),
        (["send", "file"], "Missing"),
        (["send", "nas"], "Missing"),
        (["send", "a", "nas:9000"], "--port 9000"),
        (["send", "a", "nas", "--port", "0"], "--port"),
        (["send", "a", "nas", "--port", "65536"], "--port"),
        (["send", "a", "nas", "--lanes", "0"], "--lanes"),
        (["send", "a", "nas", "--lanes", "65"], "--lanes"),
        (["send", "a", "nas", "--bwlimit", "fast"], "--bwlimit"),
        (["send", "a", "nas", "--bwlimit", "1023"], "--bwlimit"),
        (["send", "a", "nas", "--congestion", "a b"], "--congestion"),
        (["send", "a", "nas", "--congestion", "nosuch"], "nosuch"),
        (["receive", "--expire", "nan"], "--expire"),
        (["receive", "--expire", "0"], "--expire"),
        (["receive", "--dir", ""], "--dir"),
        (["receive", "--bind", ""], "--bind"),
        (["receive", "--reserve", "999999999T"], "--reserve"),
        (["receive", "somewhere"], "somewhere"),
        (["receive", "--open"], "--dir"),
        (["receive", "--exists", "ask"], "ask"),
        (["receive", "--reserve", "lots"], "lots"),
        (["demo", "a", "b"], "b"),
        (["pair", "--code-fd", "0"], "HOST"),
        (["pair", "nas", "--name", "laptop"], "--name"),
        (["pair", "nas:folder"], "only a host"),
        (["pair", "--name", "a b"], "--name"),
        (["pair", "nas", "--code-fd", "77"], "--code-fd 77"),
        (["pair", "nas"], "FTX_CODE"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: list[str], hint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


# --- help, versions ---


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_has_an_example_and_all_options(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert re.search(r"Examples?:\n +ftx " + command, done.stdout)
    for option in OPTIONS[command]:
        assert re.search(rf"^ +(-\w, )?{option}\b", done.stdout, re.MULTILINE), option
    named = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", done.stdout, re.MULTILINE))
    assert named <= {*OPTIONS[command], "--help", "--verbose"}


def test_help_of_the_group() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command, line in main.COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(line)}", done.stdout, re.MULTILINE)
    assert "Example" in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["send", "--version"], ["receive", "--version"]], ids=" ".join)
def test_version_names_program_and_protocol(arguments: list[str]) -> None:
    from ftx import __version__
    from ftx.protocol.messages import PROTOCOL_VERSION

    done = run(*arguments)
    assert done.returncode == 0
    assert done.stdout == f"ftx {__version__} (protocol {PROTOCOL_VERSION})\n"


def test_version_is_no_variable() -> None:
    assert run("--help", FTX_VERSION="1", FTX_SEND_VERSION="1").stdout.startswith("Usage")


# --- start-up ---


def imported_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ftx", *arguments], capture_output=True, text=True, timeout=30
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"tqdm", "xxhash", "ftx.api", "ftx.cli.send", "ftx.transfer"}),
        (["send", "--help"], {"tqdm", "ftx.api", "ftx.cli.receive", "ftx.transfer"}),
        (["receive", "--help"], {"tqdm", "ftx.api", "ftx.cli.send", "ftx.transfer"}),
        (["send", "a", "nas:9000"], {"tqdm", "ftx.api"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_imports_wait_until_they_are_needed(arguments: list[str], absent: set[str]) -> None:
    imported = imported_by(*arguments)
    assert "click" in imported
    assert not imported & absent


def test_help_into_a_closed_pipe_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ftx", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
