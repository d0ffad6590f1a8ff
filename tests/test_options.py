"""Options: what could not mean anything is refused when they are made, from Python as on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import ftx

NAN, INF = float("nan"), float("inf")
OF_BOTH: list[tuple[str, Any]] = [
    *(("port", value) for value in (-1, 65536, 7389.0, "7389", True, None)),
    *(("timeout_s", value) for value in (0, -1, NAN, INF, 86401, "30", None, True)),
    *(("secret_file", value) for value in ("", "a\0b", 7)),
    *(("config_dir", value) for value in (None, "", b"a\0b")),
]
OF_SEND: list[tuple[str, Any]] = [
    ("port", 0),
    *(("host", value) for value in ("", None, b"nas", "a\0b", "\ud800")),
    *(("folder", value) for value in ("/srv", "..", "a/../../b", "a\0b", "\ud800", "a/" * 2049 + "a", None)),
    *(("lanes", value) for value in (-1, 65, 2.0, None, True)),
    *(("bwlimit", value) for value in (-1, 0, 1023, 2**63, 4096.0, NAN, "10M", True)),
    *(("congestion", value) for value in ("", "a b", "a" * 16, "\xe4", b"reno", 7)),
    *(("retry_for_s", value) for value in (-1, NAN, INF, 2**32, "7")),
    *(("accept_new", value) for value in (1, "no", None)),
    *(("digest", value) for value in ("md5", None)),
    *(("ssh", value) for value in (1, "no", None)),
    *(("rsh", value) for value in ("ssh", [], [""], [b"ssh"], None)),
    *(("remote_ftx", value) for value in ("", None, "a\0b")),
]
#: Options of ssh, and what a shell that reads a user's configuration would run.
EVIL_HOSTS = ("-oProxyCommand=x", "-oProxyCommand=x@nas", "me@-oProxyCommand=x", "$(x)", "`x`@nas", "a;x", "a b",
              "a\nb", "a|x", "a&x", "a>x", "a'x", 'a"x', "a\\x", "@nas", "me@", "{x,y}", "\x7f")  # fmt: skip
OVER_SSH: list[tuple[str, Any]] = [
    *(("host", value) for value in (*EVIL_HOSTS, "", None, b"nas", "a\0b")),
    *(("folder", value) for value in ("a\0b", "\ud800", "a" * 4097, None, b"in")),
    ("secret_file", "key"),
    ("accept_new", True),
]
OF_RECEIVE: list[tuple[str, Any]] = [
    *(("dir", value) for value in (None, "", "a\0b", 7)),
    *(("bind", value) for value in ("127.0.0.1", b"::1", [b"::1"], [""], [7389], None, 7)),
    *(("exists", value) for value in ("ask", 1)),
    *(("open", value) for value in ("no", 1, None)),
    ("once", "no"),
    ("fsync", 0),
    *(("reserve", value) for value in (-1, 1.5, "256M", NAN, 2**63)),
    *(("expire_s", value) for value in (0, -1, NAN, INF, None)),
]


def send_options(**options: Any) -> ftx.SendOptions:
    return ftx.SendOptions(**{"host": "nas"} | options)


@pytest.mark.parametrize(("name", "value"), OF_BOTH + OF_SEND)
def test_wrong_of_a_sender(name: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
        send_options(**{name: value})


@pytest.mark.parametrize(("name", "value"), OVER_SSH)
def test_wrong_over_ssh(name: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
        send_options(ssh=True, **{name: value})


def test_what_means_something_over_ssh() -> None:
    for host in ("nas", "me@nas", "me@fd00::7", "me@corp@nas", "CORP\\me@nas", "a-b.example", "fe80::1%eth0"):
        assert send_options(ssh=True, host=host).host == host
    for folder in ("", "/srv/in", "~/x", "../x", "$(touch x)\n'", "\udcff", "-x"):
        assert send_options(ssh=True, folder=folder).folder == folder


@pytest.mark.parametrize(("name", "value"), OF_BOTH + OF_RECEIVE)
def test_wrong_of_a_receiver(name: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
        ftx.ReceiveOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["a b", b"a b", PurePosixPath("a b")], ids=repr)
def test_paths_of_any_kind(path: Any) -> None:
    of_receive = ftx.ReceiveOptions(dir=path, secret_file=path, config_dir=path)
    assert of_receive.dir == of_receive.secret_file == of_receive.config_dir == Path("a b")
    assert isinstance(of_receive.dir, Path)


def test_what_means_something() -> None:
    assert send_options(folder="a//b/./c/").folder == "a/b/c"
    assert send_options(folder="a/" * 2047 + "ab").folder.endswith("ab")
    assert send_options(folder="\udcff").folder == "\udcff"
    assert (send_options(port=65535, lanes=64, retry_for_s=0).lanes, send_options(lanes=0).lanes) == (64, 0)
    of_receive = ftx.ReceiveOptions(port=0, bind=["::1"], exists="keep", reserve=0, timeout_s=1)  # type: ignore[arg-type]
    assert (of_receive.bind, of_receive.exists, of_receive.policy) == (("::1",), ftx.Exists.KEEP, ftx.Exists.KEEP)


@pytest.mark.parametrize("paths", ["disk.img", b"disk.img", Path("disk.img"), [], [7], ["a\0b"], None], ids=repr)
def test_wrong_paths(paths: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="^paths: "):
        ftx.send(paths, send_options())


def test_importing_it_costs_nothing() -> None:
    code = """
import sys, ftx
assert not hasattr(ftx, "no such name") and "click" not in sys.modules
from ftx import *
assert send is ftx.api.send and set(ftx.__all__) < set(dir(ftx)) and ftx.__all__ == ftx.api.__all__
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
