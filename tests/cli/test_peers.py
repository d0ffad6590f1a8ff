"""``ftx peers``: what it shows and changes, and that a receiver goes by it at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ftx.cli import main
from ftx.net import keys
from ftx.net.identity import Identity, fingerprint
from ftx.net.known import KnownHosts
from ftx.net.peers import FILE, Peers, Right
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send, on_file

ONE, OTHER = (Identity(seed * 32).public for seed in (b"1", b"2"))
PRINT, OTHER_PRINT = fingerprint(ONE), fingerprint(OTHER)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTX_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config"


def peers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command, in this process."""
    monkeypatch.setattr("sys.argv", ["ftx", "peers", *arguments])
    code = main._exit_code(main.ftx, "ftx", "FTX")
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: peers(capsys, monkeypatch, *arguments)


def test_with_nobody_on_file(run: Any, config: Path) -> None:
    code, out, _ = run()
    assert code == 0
    own = fingerprint(keys.identity(config)[0].public)
    assert out == f"your fingerprint: {own}\n\nnobody else may send here\n\nno receiver is trusted yet\n"


def test_what_is_on_file(run: Any, config: Path) -> None:
    Peers(config).add("laptop", ONE)
    Peers(config).change("laptop", folder=b"my docs", quota=3 << 29, rights=frozenset({Right.APPEND_ONLY}))
    KnownHosts(config).add("nas\x1b[31m", OTHER)
    for arguments in ((), ("list",)):
        code, out, _ = run(*arguments)
        assert code == 0
        assert out.splitlines()[2:] == [
            "MAY SEND HERE  RIGHTS       QUOTA    MAX SIZE  " + "FINGERPRINT".ljust(len(PRINT)) + "  DIR",
            f"laptop         append-only  1.5 GiB  -         {PRINT}  my docs",
            "",
            "TRUSTED RECEIVER  FINGERPRINT",
            "nas\\x1b[31m".ljust(18) + OTHER_PRINT,
        ]
    for arguments in (("--json",), ("list", "--json")):
        code, out, _ = run(*arguments)
        own, peer, receiver = map(json.loads, out.splitlines())
        assert code == 0
        assert own["type"] == "identity" and own["fingerprint"] == fingerprint(keys.identity(config)[0].public)
        limits = {"rights": ["append-only"], "dir": "my docs", "quota": 3 << 29, "max_size": None}
        assert peer.items() >= ({"type": "peer", "name": "laptop", "fingerprint": PRINT} | limits).items()
        assert receiver.items() >= {"type": "receiver", "fingerprint": OTHER_PRINT}.items()


def test_who_is_added_restricted_renamed_and_removed(run: Any, config: Path) -> None:
    assert run("add", "laptop", PRINT)[0] == 0
    arguments = ["--dir", "a//b/", "--rights", "read,append-only", "--quota", "2G", "--max-size", "1kB"]
    code, _, err = run("restrict", "laptop", *arguments)
    assert (code, err) == (0, "ftx: laptop: dir a/b, rights read,append-only, quota 2G, max-size 1000\n")
    (peer,) = Peers(config).all()
    assert (peer.folder, peer.quota, peer.max_size) == (b"a/b", 2 << 30, 1000)
    assert run("name", "laptop", "desk")[0] == 0
    code, _, err = run("restrict", PRINT, "--rights", "read,write", "--no-quota", "--no-max-size", "--no-dir")
    assert (code, err) == (0, "ftx: desk: read and write\n")
    KnownHosts(config).add("nas", OTHER)
    code, _, err = run("remove", "desk", "nas")
    assert (code, err) == (0, "ftx: desk may not send here any more\nftx: the receiver nas is not trusted any more\n")
    assert (Peers(config).all(), KnownHosts(config).all()) == ([], {})


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["remove", "laptop", "nobody"], "nobody is neither a peer"),
        (["remove"], "NAME"),
        (["restrict", "nobody", "--quota", "1G"], "nobody is called nobody"),
        (["restrict", "laptop"], "say what to narrow"),
        (["restrict", "laptop", "--quota", "1G"], "give it a dir"),
        (["restrict", "laptop", "--quota", "much"], "'much' is no size"),
        (["restrict", "laptop", "--dir", "../x"], "'..'"),
        (["restrict", "laptop", "--dir", ".FTX"], "kept for ftx itself"),
        (["restrict", "laptop", "--rights", "all"], "'all' are no rights"),
        (["restrict", "laptop", "--rights", "write,append-only"], "exclude each other"),
        (["restrict", "laptop", "--max-size", "1", "--no-max-size"], "--max-size and --no-max-size"),
        (["name", "laptop", "two words"], "no name for a peer"),
        (["name", "laptop", "desk"], "another peer is called desk"),
        (["add", "new", "ed25519:short"], "is no fingerprint"),
        (["add", "two words", PRINT.replace("ed", "ED")], "is no fingerprint"),
        (["add", "two words", fingerprint(Identity(b"3" * 32).public)], "no name for a peer"),
        (["mend"], "mend"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_changes_nothing(run: Any, config: Path, arguments: list[str], hint: str) -> None:
    Peers(config).add("laptop", ONE)
    Peers(config).add("desk", OTHER)
    before = (config / FILE).read_bytes()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert hint in err
    assert (config / FILE).read_bytes() == before


def test_ones_own_fingerprint_is_nobody_elses(run: Any, config: Path) -> None:
    code, _, err = run("add", "me", fingerprint(keys.identity(config)[0].public))
    assert code == 2 and "your own" in err


def test_a_damaged_line_is_told_and_can_be_removed(run: Any, config: Path) -> None:
    Peers(config).add("laptop", ONE)
    with (config / FILE).open("a") as file:
        file.write("desk\n")
    code, _, err = run()
    assert code == 2 and f"{FILE}, line " in err and "no fingerprint" in err
    assert run("remove", "desk")[0] == 0
    assert run()[0] == 0


def test_what_cannot_be_written_is_told(run: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.identity(config)

    def full(_fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("add", "laptop", PRINT)
    assert (code, err) == (2, f"ftx: {config / FILE}: No space left on device\n")


@pytest.mark.parametrize("command", ["list", "add", "name", "restrict", "remove"])
def test_help_has_an_example(command: str) -> None:
    shown = CliRunner().invoke(main.load("peers"), [command, "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.output and "ftx peers" in shown.output


def test_g7_a_change_counts_for_the_next_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "file", 10)
    with LocalReceiver(tmp_path) as receiver:
        sender = on_file(receiver, tmp_path, "laptop")
        monkeypatch.setenv("FTX_CONFIG_DIR", str(receiver.options.config_dir))
        codes = [local_send(tmp_path, source, receiver.port, config_dir=sender).code]
        for arguments in (["restrict", "laptop", "--rights", "read"], ["remove", "laptop"]):
            assert peers(capsys, monkeypatch, *arguments)[0] == 0
            codes.append(local_send(tmp_path, source, receiver.port, config_dir=sender).code)
    assert codes == [0, 8, 8]
