"""``peers``: who may come here, and what each may do."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ftx.errors import UsageError
from ftx.net.identity import Identity, fingerprint
from ftx.net.known import KnownHosts
from ftx.net.lines import Lines
from ftx.net.peers import FILE, READ_WRITE, Peer, Peers, Right

ONE, OTHER, THIRD = (Identity(seed * 32).public for seed in (b"1", b"2", b"3"))
PRINT, OTHER_PRINT = fingerprint(ONE), fingerprint(OTHER)


def on_file(config: Path, *lines: str) -> Peers:
    config.mkdir(exist_ok=True)
    (config / FILE).write_text("".join(f"{line}\n" for line in lines))
    return Peers(config)


def test_who_is_not_on_file(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "config")
    assert (peers.find(ONE), peers.all(), peers.remove("laptop")) == (None, [], [])
    with pytest.raises(UsageError, match="nobody is called"):
        peers.change("laptop", quota=1)
    assert not (tmp_path / "config").exists()


def test_who_is_added_may_read_and_write(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "config")
    assert peers.add("laptop", ONE) == "laptop"
    assert peers.find(ONE) == Peer("laptop", ONE, b"", READ_WRITE, None, None)
    assert peers.path.read_text().splitlines()[-1] == f"laptop {PRINT}"
    assert peers.path.read_text().startswith("# Who may come here")
    assert peers.path.stat().st_mode & 0o777 == 0o600
    assert peers.path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(peers.path.parent) == [FILE]


def test_g7_what_is_on_file_stays_as_it_is(tmp_path: Path) -> None:
    """Pairing again lifts no limit."""
    peers = on_file(tmp_path, f"laptop {PRINT} rights=append-only")
    before = peers.path.read_bytes()
    assert peers.add("desk", ONE) == "laptop"
    assert peers.path.read_bytes() == before


def test_a_name_in_use_gets_a_number(tmp_path: Path) -> None:
    peers = on_file(tmp_path, f"laptop {PRINT}", "laptop-2 damaged")
    assert [peers.add("laptop", key) for key in (OTHER, THIRD)] == ["laptop-3", "laptop-4"]


@pytest.mark.parametrize("name", ["", "two words", "#laptop", "new\nline", "\x1b[31m", PRINT, "x" * 101])
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name"):
        Peers(tmp_path).add(name, ONE)
    assert not (tmp_path / FILE).exists() or (tmp_path / FILE).read_bytes() == b""


@pytest.mark.parametrize(
    ("terms", "fields"),
    [
        ("dir=backup/laptop", {"folder": b"backup/laptop"}),
        ("dir=my%20files/%C3%BC%25", {"folder": "my files/ü%".encode()}),
        ("dir=a//b/./c/", {"folder": b"a/b/c"}),
        ("rights=read", {"rights": frozenset({Right.READ})}),
        ("rights=append-only,read", {"rights": frozenset({Right.READ, Right.APPEND_ONLY})}),
        ("max-size=1.5G quota=10GB dir=x", {"folder": b"x", "quota": 10**10, "max_size": 3 << 29}),
        ("quota=0 dir=x # rights=read", {"folder": b"x", "quota": 0}),
    ],
)
def test_what_a_line_says(tmp_path: Path, terms: str, fields: dict[str, object]) -> None:
    expected = Peer("laptop", ONE, **fields)  # type: ignore[arg-type]
    assert on_file(tmp_path, "# ours", "", f"  laptop\t{PRINT}  {terms}").find(ONE) == expected


@pytest.mark.parametrize(
    "line",
    [
        f"{PRINT}",
        f"{PRINT} dir=x",
        f"laptop key {PRINT}",
        f"laptop {PRINT} right=read",
        f"laptop {PRINT} append-only",
        f"laptop {PRINT} rights=",
        f"laptop {PRINT} rights=all",
        f"laptop {PRINT} rights=read,",
        f"laptop {PRINT} rights=write,append-only",
        f"laptop {PRINT} rights=read rights=write",
        f"laptop {PRINT} dir=/etc",
        f"laptop {PRINT} dir=a/../../b",
        f"laptop {PRINT} dir=%2e%2E/b",
        f"laptop {PRINT} dir=a%00b",
        f"laptop {PRINT} dir=my files",
        f"laptop {PRINT} dir=x quota=much",
        f"laptop {PRINT} dir=x quota=-1",
        f"laptop {PRINT} quota=1G",
        f"laptop {PRINT} dir=. quota=1G",
        f"laptop {PRINT} max-size=",
    ],
)
def test_g7_a_line_that_means_nothing_lets_nobody_in_and_matters_to_nobody_else(tmp_path: Path, line: str) -> None:
    peers = on_file(tmp_path, f"desk {OTHER_PRINT}", line, "\x00 \udcff damaged".encode("utf-8", "replace").decode())
    with pytest.raises(UsageError, match=r"peers, line 2: "):
        peers.find(ONE)
    assert peers.find(OTHER) == Peer("desk", OTHER)
    assert peers.find(THIRD) is None
    with pytest.raises(UsageError, match=r"peers, line 2: "):
        peers.all()


def test_g7_of_two_lines_none_counts(tmp_path: Path) -> None:
    """One of them may be what was to narrow the rights."""
    peers = on_file(tmp_path, f"laptop {PRINT} rights=read", f"old {PRINT}")
    with pytest.raises(UsageError, match="line 2: this peer has a line already, line 1"):
        peers.find(ONE)


def test_g7_a_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    peers = on_file(tmp_path, f"laptop {PRINT}")
    peers.path.chmod(0o660)
    for call in (
        lambda: peers.find(THIRD),
        lambda: peers.all(),
        lambda: peers.add("desk", OTHER),
        lambda: peers.change("laptop", quota=None),
        lambda: peers.remove("laptop"),
    ):
        with pytest.raises(UsageError, match="others can write"):
            call()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageError, match="peers: Is a directory"):
        Peers(tmp_path).find(ONE)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE, 0o600)
    assert Peers(tmp_path).find(ONE) is None


def test_a_change_leaves_everything_else_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / FILE
    head, tail = b"# \xff ours\r\n\n  desk\t" + OTHER_PRINT.encode() + b"  dir=a\r\n", b"broken line\n\n# the end"
    path.write_bytes(head + f"laptop   {PRINT} rights=read  dir=x\t# of 2024\r\n".encode() + tail)
    path.chmod(0o640)
    peers = Peers(tmp_path)
    changed = peers.change("laptop", quota=10 << 30, max_size=1000, rights=READ_WRITE)
    assert changed == peers.find(ONE) == Peer("laptop", ONE, b"x", READ_WRITE, 10 << 30, 1000)
    assert path.read_bytes() == head + f"laptop {PRINT} dir=x quota=10G max-size=1000\t# of 2024\r\n".encode() + tail
    assert peers.change(PRINT, name="desk-2", quota=None, folder="mine ü%".encode()).name == "desk-2"
    assert path.read_bytes() == head + f"desk-2 {PRINT} dir=mine%20ü%25 max-size=1000\t# of 2024\r\n".encode() + tail
    assert peers.remove("desk-2") == ["desk-2"]
    assert path.read_bytes() == head + tail
    assert peers.add("laptop", ONE) == "laptop"
    assert path.read_bytes() == head + tail + f"\nlaptop {PRINT}\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == [FILE]


def test_what_changes_nothing_does_not_touch_the_file(tmp_path: Path) -> None:
    peers = on_file(tmp_path, f"laptop {PRINT}")
    before = peers.path.stat().st_ino
    peers.change("laptop", rights=READ_WRITE)
    assert peers.remove("nobody") == []
    assert peers.path.stat().st_ino == before


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("nobody", {"quota": 1}, "nobody is called nobody"),
        ("laptop", {"quota": 1}, "laptop: a quota needs"),
        ("laptop", {"name": "desk"}, "another peer is called desk"),
        ("laptop", {"name": "two words"}, "no name"),
        ("twin", {"max_size": 1}, "twin has a line already, line 3"),
        ("broken", {"max_size": 1}, "line 5: no fingerprint"),
    ],
)
def test_a_change_that_cannot_be(tmp_path: Path, name: str, fields: dict[str, object], match: str) -> None:
    third, fourth = fingerprint(THIRD), fingerprint(Identity(b"4" * 32).public)
    lines = f"laptop {PRINT}", f"desk {OTHER_PRINT}", f"twin {third}", f"twin {fourth}", "broken"
    peers = on_file(tmp_path, *lines)
    with pytest.raises(UsageError, match=match):
        peers.change(name, **fields)
    assert peers.path.read_text().splitlines() == list(lines)


def test_who_is_removed_by_a_name_or_a_fingerprint(tmp_path: Path) -> None:
    peers = on_file(tmp_path, f"laptop {PRINT}", f"desk {OTHER_PRINT}", "desk broken", "desk-2 # desk")
    assert peers.remove("desk") == ["desk", "desk"]
    assert peers.remove(PRINT) == ["laptop"]
    assert peers.path.read_text() == "desk-2 # desk\n"


def test_a_file_that_is_a_link_stays_one(tmp_path: Path) -> None:
    """People keep their configuration elsewhere."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / FILE).symlink_to(tmp_path / "mine")
    Peers(tmp_path / "config").add("laptop", ONE)
    assert (tmp_path / "config" / FILE).is_symlink()
    assert Peers(tmp_path / "config").find(ONE) == Peer("laptop", ONE)
    assert PRINT in (tmp_path / "mine").read_text()


def test_many_who_write_at_once(tmp_path: Path) -> None:
    """Each replaces the file; none may put back what it was before another one's change."""
    keys = [Identity(bytes([number]) * 32).public for number in range(1, 17)]
    threads = [threading.Thread(target=Peers(tmp_path).add, args=("laptop", key)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {peer.public for peer in Peers(tmp_path).all()} == set(keys)
    assert len({peer.name for peer in Peers(tmp_path).all()}) == len(keys)


def test_a_change_is_durable_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (calls.append("replace"), replace(path, to))[1])
    Peers(tmp_path).add("laptop", ONE)
    assert calls == ["sync", "replace", "sync"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = on_file(tmp_path, f"laptop {PRINT}")

    def full(_fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        peers.add("desk", OTHER)
    assert peers.path.read_text() == f"laptop {PRINT}\n"
    assert os.listdir(tmp_path) == [FILE]


def test_receivers_that_are_trusted(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path)
    assert (known.all(), known.remove("nas")) == ({}, [])
    known.add("nas", ONE)
    known.add("[nas]:9000", OTHER)
    known.add("nas", OTHER)
    assert known.all() == {"nas": OTHER, "[nas]:9000": OTHER}
    assert known.remove(PRINT) == []
    assert known.remove("nas") == ["nas"]
    assert known.all() == {"[nas]:9000": OTHER}
    assert known.remove(fingerprint(OTHER)) == ["[nas]:9000"]


def test_a_head_is_for_a_new_file_only(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "file", b"# head\n")
    lines.change(lambda _: [b"one\n"])
    lines.change(lambda before: before[1:])
    assert (tmp_path / "file").read_bytes() == b"one\n"
