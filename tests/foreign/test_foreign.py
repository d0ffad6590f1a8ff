"""ftx against a small peer that knows nothing but protocol.md.

The real program runs as a process of its own; the peer, `foreign_peer`, takes the other role. Everything is on
loopback. "Wanted" and "sent" are lists of chunk indexes.
"""

import contextlib
import hashlib
import json
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from . import foreign_peer as peer
from .foreign_peer import BrokenLink, PeerError, SessionError, receive, send

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
SECRET = bytes(range(32))
MIB = 1 << 20
SIZE = 3 * MIB + MIB // 2
HOLE = bytes(2 * MIB)
FILES = {"empty": b"", "one": b"a", "large": random.Random(1).randbytes(SIZE)}
FILES["sparse"] = HOLE + FILES["large"][:MIB] + HOLE + b"tail"
DONE = {"done": 1, "skipped": 0, "failed": 0}
FAILED = {"done": 0, "skipped": 0, "failed": 1}
OLD = ("old.bin", "old-1.bin", "old-2.bin")
MTIME = 1_700_000_000_123_456_789


# --- The real program ---


class Program:
    """A process of ftx. It is killed when it takes 20 seconds."""

    def __init__(self, home, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FTX_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ftx", *map(str, arguments), "--json"],
            cwd=ROOT,
            env=environment | {"FTX_CONFIG_DIR": str(home / "config")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.timer = threading.Timer(20, self.process.kill)
        self.timer.start()

    def port(self):
        """The port that a receiver has said it listens on."""
        for line in self.process.stdout:
            event = json.loads(line)
            if event["type"] == "listening":
                return event["addresses"][0][1]
        raise AssertionError(self.process.stderr.read())

    def end(self):
        """Exit status, and what it said on standard error."""
        _, text = self.process.communicate()
        return self.process.returncode, text

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.timer.cancel()
        self.timer.join()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def receiver(home, folder, *options):
    """`ftx receive`; gives its port."""
    with Program(home, "receive", "--bind", HOST, "--port", 0, "--dir", folder, *options) as program:
        yield program.port()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The user's folder: a secret file, the configuration, and the sources of `old`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "secret").touch(0o600)
    (folder / "secret").write_text(SECRET.hex() + "\n")
    for name in OLD:
        (folder / name).write_bytes(FILES["large"])
    return folder


@pytest.fixture(scope="module")
def there(home, tmp_path_factory):
    """A real receiver that has the secret and a run key: its port and its folder."""
    folder = tmp_path_factory.mktemp("there")
    with receiver(home, folder, "--secret-file", home / "secret") as port:
        yield port, folder


@pytest.fixture
def to_there(there, tmp_path):
    """Sends to the real receiver; gives the totals (or the error) and the trace."""

    def go(data=FILES["one"], name=None, path=None, **options):
        path, trace = path or tmp_path / (name or f"{tmp_path.name}.bin"), []
        if not path.exists():
            path.write_bytes(data)
        options = {"secret": SECRET} | options
        try:
            return send(HOST, there[0], path, trace=trace, **options), trace
        except (BrokenLink, SessionError) as error:
            return error, trace

    return go


@pytest.fixture
def from_real(home, tmp_path):
    """Takes a file from `ftx send` in one or more sessions; gives its exit status, their ends and their traces."""
    (tmp_path / "here").mkdir()

    def go(*sessions, path=None, data=FILES["one"], options=(), **common):
        path = path or tmp_path / "source.bin"
        if not path.exists():
            path.write_bytes(data)
        common = {"secret": SECRET} | common
        keys = ("--secret-file", home / "secret") if "--accept-new" not in options and common["secret"] else ()
        ends, traces = [], []
        with socket.create_server((HOST, 0)) as listener:
            listener.settimeout(10)
            port = listener.getsockname()[1]
            with Program(home, "send", path, HOST, "--port", port, *keys, *options) as program:
                for session in sessions or ({},):
                    traces.append([])
                    try:
                        ends.append(receive(listener, tmp_path / "here", trace=traces[-1], **common, **session))
                    except (BrokenLink, SessionError) as error:
                        ends.append(error)
                status, go.text = program.end()
        go.target = tmp_path / "here" / path.name
        return status, ends, traces

    return go


@pytest.fixture
def old(home):
    """A source of 3.5 MiB that has not changed for two seconds, so that its tag is not zero; others are beside it."""
    while time.time_ns() - max((home / name).stat().st_ctime_ns for name in OLD) < 2_050_000_000:
        time.sleep(0.02)
    return home / OLD[0]


# --- What goes over the wire ---


def named(trace, side, name):
    """The fields of all frames of one name."""
    return [fields for who, what, fields in trace if (who, what) == (side, name)]


def wanted(trace, side):
    """The chunks of each WANT."""
    return [peer.from_ranges(fields["ranges"], 1 << 44) for fields in named(trace, side, "WANT")]


def sent(trace, side):
    """The chunks of all DATA."""
    return [fields["index"] for fields in named(trace, side, "DATA")]


def nth(side, name, number, change):
    """A tamper that changes the frame of this name with this number, counted from 1; with number 0 all of them."""
    seen = []

    def tamper(who, what, raw):
        if (who, what) == (side, name):
            seen.append(raw)
            if number in (0, len(seen)):
                return change(raw)
        return raw

    return tamper


def all_of(changes):
    """A tamper that changes the first frame of each name that is said."""
    left = dict(changes)
    return lambda side, name, raw: left.pop(name)(raw) if side == "said" and name in left else raw


def cut(_raw):
    """Breaks the connection in place of this frame."""
    raise BrokenLink("cut")


def flip(raw):
    """Damages the last byte."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


def rewrite(**fields):
    """Other values for some fields."""
    return lambda raw: peer.frame(peer.NAMES[raw[0]], **peer.parse(raw) | fields)


def offered(**fields):
    """Other values for some fields of the entry that is offered."""
    return lambda raw: rewrite(entries=[peer.parse(raw)["entries"][0] | fields])(raw)


def before(*frames):
    """More frames in front of this one."""
    return lambda raw: b"".join(frames) + raw


def behind(*frames):
    """More frames behind this one."""
    return lambda raw: raw + b"".join(frames)


def instead(name, **fields):
    """Another frame in place of this one."""
    return lambda _raw: peer.frame(name, **fields)


def more_than_the_window(raw):
    """A file in a folder, and the folder itself so often that 1025 are outstanding: its answer waits for the file."""
    (file,) = peer.parse(raw)["entries"]
    folder = {**file, "kind": 2, "name": b"d", "size": 0, "allocated": 0}
    inside = rewrite(path=b"d")(raw)
    return inside + rewrite(first=2, entries=[folder] * 1023)(raw) + rewrite(first=1025, entries=[folder])(raw)


def tlv(kind):
    """A list of one TLV."""
    return [{"type": kind, "value": b"later"}]


def partial(folder, path, end="part"):
    """The partial of the peer's file at a receiver, by Appendix A."""
    who = peer.peer_id_of(SECRET, peer.SECRET, SECRET)
    return folder / ".ftx" / f"{hashlib.sha256(who + os.fsencode(path)).hexdigest()[:32]}.{end}"


def listed(journal, path):
    """The chunks in a journal, by Appendix A."""
    start = struct.calcsize(peer.HEADER) + len(path) + 8
    records = struct.iter_unpack(">QQQ", journal.read_bytes()[start:]) if journal.exists() else ()
    return [index for first, count, _ in records for index in range(first, first + count)]


def cut_when_listed(folder, path):
    """A tamper that breaks the connection at the third chunk, when a receiver has listed two."""
    journal = partial(folder, path.name, "journal")

    def change(raw):
        until = time.monotonic() + 5
        while sorted(listed(journal, path.name)) != [0, 1]:
            assert time.monotonic() < until
            time.sleep(0.01)
        return cut(raw)

    return nth("said", "DATA", 3, change)


# --- The peer sends ---


@pytest.mark.parametrize("final", [False, True], ids=["", "final"])
@pytest.mark.parametrize("digest", [peer.XXH3_128, peer.SHA_256])
@pytest.mark.parametrize("case", FILES)
def test_send(there, to_there, tmp_path, case, digest, final):
    path = tmp_path / f"{case}-{digest}-{final}"
    path.write_bytes(FILES[case])
    path.chmod(0o640)
    os.utime(path, ns=(0, MTIME))
    totals, trace = to_there(path=path, digest=digest, final=final)
    target = there[1] / path.name
    assert totals == DONE
    assert len(named(trace, "said", "FINISH")) == (not final or case != "one")
    assert target.read_bytes() == FILES[case]
    assert (target.stat().st_mtime_ns, target.stat().st_mode & 0o777) == (MTIME, 0o640)
    assert named(trace, "heard", "RECEIPT")[0]["items"][0]["flags"] == peer.DURABLE
    assert sent(trace, "said") == {"empty": [], "one": [0], "large": [0, 1, 2, 3], "sparse": [2, 5]}[case]
    assert target.stat().st_blocks * 512 < 2 * MIB or case == "large"
    assert to_there(path=path, digest=digest)[0] == {"done": 0, "skipped": 1, "failed": 0}


@pytest.mark.parametrize("kind", [2, 3], ids=["folder", "link"])
def test_send_a_folder_or_link(there, to_there, tmp_path, kind):
    path = tmp_path / f"bare-{kind}"
    path.write_bytes(b"")
    bare = {"kind": kind, "size": 0, "allocated": 0, "mode": 0o7750, "mtime_ns": MTIME, "tag": bytes(16)}
    bare["target"] = b"../..\xff" if kind == 3 else b""
    for again in (False, True):
        totals, trace = to_there(path=path, bare=bare)
        assert totals == ({"done": 0, "skipped": 1, "failed": 0} if again else DONE)
        assert not named(trace, "heard", "WANT") + named(trace, "heard", "WANT_ALL")
        info = os.lstat(there[1] / path.name)
        assert info.st_mtime_ns == MTIME
        if kind == 2:
            assert info.st_mode == stat.S_IFDIR | 0o750
        else:
            assert os.readlink(os.fsencode(there[1] / path.name)) == b"../..\xff"


def test_send_resumes(there, to_there, old):
    to_there(path=old, tamper=cut_when_listed(there[1], old))
    part = partial(there[1], old.name)
    assert part.exists()
    assert not (there[1] / old.name).exists()
    totals, trace = to_there(path=old)
    assert totals == DONE
    assert named(trace, "heard", "WANT")[0]["held"] == 2 * MIB
    assert wanted(trace, "heard") == [[2, 3]]
    assert sent(trace, "said") == [2, 3]
    assert (there[1] / old.name).read_bytes() == FILES["large"]
    assert not part.exists()
    assert not part.with_suffix(".journal").exists()


def test_send_resumes_another_version(there, to_there, tmp_path):
    path = tmp_path / "version.bin"
    path.write_bytes(FILES["large"])
    to_there(path=path, tamper=cut_when_listed(there[1], path))
    path.write_bytes(flip(FILES["large"][:MIB]) + FILES["large"][MIB:])
    totals, trace = to_there(path=path)
    assert totals == DONE
    assert named(trace, "heard", "ASK_DIGESTS") == [{"entry": 1, "digest": peer.SHA_256, "first": 0, "count": 2}]
    assert wanted(trace, "heard") == [[2, 3], [0]]
    assert (there[1] / path.name).read_bytes() == path.read_bytes()


def test_send_repairs_a_payload(there, to_there):
    totals, trace = to_there(FILES["large"], name="payload.bin", tamper=nth("said", "DATA", 2, flip))
    assert totals == DONE
    assert wanted(trace, "heard") == [[0, 1, 2, 3], [1]]
    assert (there[1] / "payload.bin").read_bytes() == FILES["large"]


def test_send_gives_up_a_chunk(there, to_there):
    totals, trace = to_there(FILES["one"], name="never.bin", tamper=nth("said", "DATA", 0, flip))
    assert totals == FAILED
    assert [message["entries"] for message in named(trace, "heard", "WANT_ALL")] == [[{"entry": 1}]]
    assert wanted(trace, "heard") == [[0]] * 3
    assert named(trace, "heard", "REFUSE")[0]["items"][0]["code"] == 16
    assert not (there[1] / "never.bin").exists()


@pytest.mark.parametrize("digest", [peer.XXH3_128, peer.SHA_256])
def test_send_repairs_the_partial(there, to_there, old, digest):
    path = old.with_name(OLD[digest])
    to_there(path=path, tamper=cut_when_listed(there[1], path), digest=digest)
    with partial(there[1], path.name).open("r+b") as file:
        file.write(b"?")
    totals, trace = to_there(path=path, digest=digest)
    assert totals == DONE
    assert named(trace, "heard", "ASK_DIGESTS")[0]["digest"] == digest
    assert wanted(trace, "heard") == [[2, 3], [0]]
    assert (there[1] / path.name).read_bytes() == FILES["large"]


def test_send_another_root(there, to_there):
    totals, trace = to_there(FILES["large"], name="root.bin", tamper=nth("said", "FINISH", 1, rewrite(root=bytes(16))))
    assert totals == FAILED
    assert named(trace, "heard", "ASK_DIGESTS") == [{"entry": 1, "digest": peer.XXH3_128, "first": 0, "count": 4}]
    assert named(trace, "heard", "REFUSE")[0]["items"][0]["code"] == 16
    assert not (there[1] / "root.bin").exists()


def test_send_a_wrong_frame_check(there, to_there):
    end, trace = to_there(tamper=nth("said", "FOLDER", 1, flip))
    assert isinstance(end, BrokenLink)
    assert not named(trace, "heard", "ERROR")


def test_send_keys(home, there, to_there):
    run_key = bytes.fromhex((home / "config" / "run.key").read_text())
    for keys in ({"secret": bytes(32)}, {"secret": None}, {"secret": None, "run_key": bytes(32)}):
        end, trace = to_there(**keys)
        assert (type(end), end.code) == (PeerError, 64)
        assert not named(trace, "said", "OPEN")
    totals, trace = to_there(secret=bytes(32), run_key=run_key)
    assert totals == DONE
    assert named(trace, "heard", "PROOF")[0]["proofs"][0]["method"] == peer.RUN_KEY

    def and_others(raw):
        later = [{"method": method, "mac": bytes(32)} for method in (3, 200)]
        return rewrite(proofs=[*later, *peer.parse(raw)["proofs"]])(raw)

    assert to_there(tamper=nth("said", "PROOF", 1, and_others))[0]["skipped"] == 1


def test_send_to_open(home, tmp_path):
    folder, path = tmp_path / "open", tmp_path / "file"
    path.write_bytes(b"first")
    with receiver(home, folder, "--open") as port:
        assert send(HOST, port, path, accept_open=True) == DONE
        path.write_bytes(b"second")
        assert send(HOST, port, path, accept_open=True, identity=bytes(32)) == DONE
        for keys in ({}, {"secret": SECRET}, {"secret": SECRET, "accept_open": True}):
            trace = []
            with pytest.raises(SessionError):
                send(HOST, port, path, trace=trace, **keys)
            assert not named(trace, "said", "OPEN")
    assert sorted(one.read_bytes() for one in folder.iterdir() if one.is_file()) == [b"first", b"second"]


def test_send_versions(to_there):
    for low, high in ((2, 3), (0, 0)):
        other = rewrite(version_min=low, version_max=high)
        end, _ = to_there(tamper=nth("said", "HELLO", 1, other))
        assert (type(end), end.code) == (PeerError, 3)
    assert to_there(versions=(1, 65535))[0] == DONE


OPTIONAL = (peer.raw_frame(0xE7, b"", 0), peer.raw_frame(0x77, bytes(65536), 0xFE), peer.raw_frame(0x40, b"x", 0))


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(("HELLO", "PROOF", "OPEN", "FOLDER", "DATA", "FINISH"), behind(*OPTIONAL)),
        dict.fromkeys(("HELLO", "PROOF", "OPEN"), rewrite(tlvs=tlv(0x0123))),
        {
            "PROOF": behind(peer.frame("PING")),
            "OPEN": lambda raw: peer.raw_frame(0x03, raw[16:], 0xFE),
            "FOLDER": offered(tlvs=tlv(0x0123)),
            "DATA": before(peer.frame("FOLDER_END", path=b"", flags=0)),
            "FINISH": lambda raw: raw * 2,
        },
    ],
)
def test_send_what_is_to_be_taken(to_there, changes):
    assert to_there(tamper=all_of(changes))[0] == DONE


def data(**fields):
    """A small DATA."""
    fields = {"entry": 1, "index": 0, "payload": b"x", "digest": peer.digest_of(1, b"x")} | fields
    return peer.frame("DATA", **fields)


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("HELLO", behind(peer.raw_frame(0x44, b"")), 4),
        ("FOLDER", before(peer.raw_frame(0x44, b"x" * 65536)), 4),
        ("OPEN", before(peer.raw_frame(0x40, b"")), 4),
        ("FOLDER", before(peer.raw_frame(0x44, bytes(65537), 0)), 2),
        *((name, rewrite(tlvs=tlv(0x8123)), 4) for name in ("HELLO", "PROOF", "OPEN")),
        ("OPEN", rewrite(tlvs=tlv(1) * 33), 2),
        ("OPEN", rewrite(role=2), 4),
        ("OPEN", rewrite(digest=3), 2),
        *(("OPEN", rewrite(folder=path), 51) for path in (b"..", b"/x", b"a//b", b"a/", b"a/.FTX", b"x" * 256)),
        ("FOLDER", lambda raw: peer.raw_frame(0x10, raw[16:] + b"\0"), 2),
        ("FOLDER", lambda raw: peer.raw_frame(0x10, raw[16:-1]), 2),
        ("FOLDER", rewrite(first=0), 2),
        ("FOLDER", lambda raw: raw * 2, 2),
        ("FOLDER", lambda raw: rewrite(entries=peer.parse(raw)["entries"] * 1025)(raw), 2),
        ("FOLDER", lambda raw: more_than_the_window(raw), 2),
        ("FOLDER", behind(data()), 2),
        ("FOLDER", behind(peer.frame("FINISH", entry=1, root=bytes(16))), 2),
        ("FOLDER", before(peer.frame("WANT", entry=1, held=0, ranges=[])), 2),
        ("FOLDER", before(peer.frame("BYE", done=1, skipped=0, failed=0)), 2),
        ("PROOF", before(peer.frame("PING")), 2),
        ("DATA", lambda raw: raw * 2, 2),
        *(("DATA", before(data(**fields)), 2) for fields in ({}, {"entry": 0}, {"entry": 2}, {"index": 4})),
        ("FINISH", before(peer.frame("ZEROS", entry=1, ranges=[{"first": 0, "count": 1}])), 2),
        ("FINISH", before(peer.frame("DIGESTS", entry=1, digest=1, first=0, digests=bytes(16))), 2),
        ("FINISH", rewrite(root=bytes(32)), 2),
        ("BYE", rewrite(done=2), 2),
    ],
)
def test_send_what_ends_the_session(to_there, name, change, code):
    end, _ = to_there(tamper=nth("said", name, 1, change))
    assert (type(end), end.code) == (PeerError, code)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        *((offered(name=name), 51) for name in (b"", b"..", b"a/b", b"a\0", b".FtX. ", ".ｆｔ\u200bx".encode())),
        (offered(name=b".ftx-1.part"), 51),
        *((rewrite(path=path), 51) for path in (b"../x", b"/x", b"a/.ftx", b"a//b")),
        (offered(size=(1 << 44) + 1), 54),
        (offered(tlvs=tlv(0x8123)), 4),
    ],
)
def test_send_what_is_refused(to_there, change, code):
    totals, trace = to_there(tamper=nth("said", "FOLDER", 1, change))
    assert totals == FAILED
    assert [item["code"] for item in named(trace, "heard", "REFUSE")[0]["items"]] == [code]


@pytest.mark.parametrize("path", [b"a/", b"a//"])
def test_send_never_looks_outside(there, to_there, path):
    """Joined with a slash too many, the name of an entry would be an absolute path."""
    (there[1] / "a").mkdir(exist_ok=True)
    change = all_of({"FOLDER": lambda raw: offered(name=b"etc")(rewrite(path=path)(raw))})
    totals, trace = to_there(tamper=change)
    assert totals == FAILED
    assert [item["code"] for item in named(trace, "heard", "REFUSE")[0]["items"]] == [51]


def test_send_evicts(there, to_there, tmp_path):
    path, inner = tmp_path / "newer.bin", []
    path.write_bytes(FILES["large"])

    def again(raw):
        inner.append(to_there(path=path, identity=bytes(32)))
        inner.append(to_there(path=path))
        return raw

    end, _ = to_there(path=path, tamper=nth("said", "DATA", 2, again))
    assert (type(end), end.code) == (PeerError, 65)
    (other, trace), (same, _) = inner
    assert other == FAILED
    assert named(trace, "heard", "REFUSE")[0]["items"][0]["code"] == 53
    assert same == DONE


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", bytes(16)])
def test_send_something_else(there, first):
    with socket.create_connection((HOST, there[0]), 5) as sock:
        sock.sendall(first)
        assert sock.recv(1) == b""


# --- The peer receives ---


@pytest.mark.parametrize("case", FILES)
def test_receive(from_real, tmp_path, case):
    path = tmp_path / case
    path.write_bytes(b"")
    os.truncate(path, len(FILES[case]))
    with path.open("r+b") as file:
        for at in range(0, len(FILES[case]), MIB):
            if any(FILES[case][at : at + MIB]):
                file.seek(at)
                file.write(FILES[case][at : at + MIB])
    path.chmod(0o640)
    os.utime(path, ns=(0, MTIME))
    status, ends, (trace,) = from_real(path=path)
    assert (status, ends) == (0, [DONE])
    assert from_real.target.read_bytes() == FILES[case]
    assert (from_real.target.stat().st_mtime_ns, from_real.target.stat().st_mode & 0o777) == (MTIME, 0o640)
    assert sent(trace, "heard") == {"empty": [], "one": [0], "large": [0, 1, 2, 3], "sparse": [2, 5]}[case]
    assert any(0xE0 <= fields["type"] <= 0xEF for fields in named(trace, "heard", "unknown"))
    assert from_real(path=path)[:2] == (0, [{"done": 0, "skipped": 1, "failed": 0}])


def test_receive_resumes(from_real, old):
    status, ends, traces = from_real({"tamper": nth("heard", "DATA", 3, cut)}, {}, path=old)
    assert (status, ends[1]) == (0, DONE)
    assert wanted(traces[1], "said") == [[2, 3]]
    assert sent(traces[1], "heard") == [2, 3]
    first, second = (named(trace, "heard", "OPEN")[0] for trace in traces)
    assert first | {"session": 0} == second | {"session": 0}
    assert first["session"] != second["session"]
    assert from_real.target.read_bytes() == FILES["large"]


def test_receive_resumes_a_doubted_file(from_real):
    status, ends, traces = from_real({"tamper": nth("heard", "DATA", 3, cut)}, {}, data=FILES["large"])
    assert (status, ends[1]) == (0, DONE)
    assert not any(named(traces[1], "heard", "FOLDER")[0]["entries"][0]["tag"])
    assert named(traces[1], "said", "ASK_DIGESTS")[0]["digest"] == peer.SHA_256
    assert sent(traces[1], "heard") == [2, 3]
    assert from_real.target.read_bytes() == FILES["large"]


def test_receive_repairs_a_payload(from_real):
    status, ends, (trace,) = from_real({"tamper": nth("heard", "DATA", 2, flip)}, data=FILES["large"])
    assert (status, ends) == (0, [DONE])
    assert wanted(trace, "said") == [[0, 1, 2, 3], [1]]
    assert from_real.target.read_bytes() == FILES["large"]


def test_receive_gives_up_a_chunk(from_real):
    status, ends, (trace,) = from_real({"tamper": nth("heard", "DATA", 0, flip)}, data=FILES["one"])
    assert (status, ends) == (5, [FAILED])
    assert wanted(trace, "said") == [[0]] * 4


def test_receive_repairs_the_partial(from_real, old, tmp_path):
    def damage(raw):
        (part,) = (tmp_path / "here" / ".ftx").glob("*.part")
        with part.open("r+b") as file:
            file.write(b"?")
        return raw

    resumed = {"tamper": nth("said", "WANT", 1, damage)}
    status, ends, traces = from_real({"tamper": nth("heard", "DATA", 3, cut)}, resumed, path=old)
    assert (status, ends[1]) == (0, DONE)
    assert named(traces[1], "said", "ASK_DIGESTS")[0]["digest"] == peer.XXH3_128
    assert wanted(traces[1], "said") == [[2, 3], [0]]
    assert from_real.target.read_bytes() == FILES["large"]


@pytest.mark.parametrize(("side", "name"), [("heard", "FINISH"), ("said", "WANT")])
def test_receive_a_wrong_frame_check(from_real, side, name):
    status, ends, traces = from_real({"tamper": nth(side, name, 1, flip)}, {})
    assert (status, type(ends[0]), ends[1]) == (0, BrokenLink, DONE)
    assert not named(traces[0], "heard", "ERROR")


def test_receive_keys(home, there, from_real):
    run_key = bytes.fromhex((home / "config" / "run.key").read_text())
    assert from_real(secret=None, run_key=run_key)[:2] == (0, [DONE])
    for case in (
        {"secret": bytes(32)},
        {"tamper": nth("said", "PROOF", 1, rewrite(proofs=[{"method": 2, "mac": bytes(32)}]))},
        {"tamper": nth("said", "PROOF", 1, rewrite(proofs=[{"method": 0, "mac": bytes(32)}]))},
    ):
        status, _, (trace,) = from_real(**case)
        assert status == 8
        assert not named(trace, "heard", "OPEN")


def test_receive_open(from_real):
    status, _, (trace,) = from_real(secret=None, is_open=True)
    assert status == 8
    assert not named(trace, "heard", "OPEN")
    assert from_real(secret=None, is_open=True, options=["--accept-new"])[:2] == (0, [DONE])


def test_receive_versions(from_real):
    assert from_real(versions=(2, 3))[0] == 4
    status, (end,), _ = from_real({"tamper": nth("said", "HELLO", 1, rewrite(version_min=2, version_max=3))})
    assert (status, type(end), end.code) == (4, PeerError, 3)
    assert from_real({"tamper": nth("said", "HELLO", 1, rewrite(version_max=9))})[:2] == (0, [DONE])


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(("HELLO", "PROOF", "OPENED", "WANT", "RECEIPT"), behind(*OPTIONAL)),
        dict.fromkeys(("HELLO", "PROOF", "OPENED"), rewrite(tlvs=tlv(0x0123))),
        {
            "OPENED": before(peer.frame("BUSY", counter=1)),
            "WANT": behind(peer.frame("RESUME"), peer.frame("PING"), peer.frame("BUSY", counter=2)),
            "RECEIPT": lambda raw: raw * 2,
        },
        {"WANT": lambda raw: rewrite(ranges=[])(raw) + raw},
        {"WANT": before(peer.frame("PAUSE", code=50, message=b"full"), peer.frame("RESUME"))},
    ],
)
def test_receive_what_is_to_be_taken(from_real, changes):
    assert from_real({"tamper": all_of(changes)})[:2] == (0, [DONE])


def ask(**fields):
    """An ASK_DIGESTS."""
    return peer.frame("ASK_DIGESTS", **{"entry": 1, "digest": 2, "first": 0, "count": 1} | fields)


def one_range(first, count):
    """A WANT for other chunks."""
    return rewrite(ranges=[{"first": first, "count": count}])


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("HELLO", behind(peer.raw_frame(0x44, b"")), 4),
        ("WANT", before(peer.raw_frame(0x44, b"")), 4),
        ("WANT", before(peer.raw_frame(0x44, bytes(65537), 0)), 2),
        *((name, rewrite(tlvs=tlv(0x8123)), 4) for name in ("HELLO", "PROOF")),
        ("PROOF", rewrite(proofs=[]), 2),
        ("WANT", before(ask()), 2),
        ("WANT", behind(ask(first=3, count=2)), 2),
        ("WANT", one_range(3, 2), 2),
        ("WANT", one_range(0, 0), 2),
        ("WANT", one_range(1, 2**64 - 1), 2),
        ("WANT", rewrite(entry=0), 2),
        ("WANT", rewrite(entry=2), 2),
        ("WANT", before(data()), 2),
        ("WANT", instead("RECEIPT", items=[{"entry": 1, "flags": 1, "root": bytes(16)}]), 2),
        ("WANT", behind(peer.frame("SKIP", items=[{"entry": 1, "reason": 1}])), 2),
        ("RECEIPT", rewrite(items=[{"entry": 1, "flags": 1, "root": bytes(16)}]), 2),
        ("RECEIPT", before(peer.frame("BYE", **DONE)), 2),
    ],
)
def test_receive_what_ends_the_session(from_real, name, change, code):
    status, (end,), _ = from_real({"tamper": nth("said", name, 1, change)})
    assert (status, type(end), end.code) == (4, PeerError, code)


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (16, 5), (60, 7), (65, 8), (999, 4)])
def test_receive_says_error(from_real, code, exit_code):
    text = "früh\x1b[2J\n".encode()
    status, ends, _ = from_real({"tamper": nth("said", "WANT", 1, instead("ERROR", code=code, message=text))})
    assert (status, type(ends[0])) == (exit_code, BrokenLink)
    assert "früh" in from_real.text
    assert "\x1b" not in from_real.text


def test_receive_leaves_and_comes_back(from_real):
    leaving = nth("said", "WANT", 1, instead("ERROR", code=80, message=b"later"))
    status, ends, _ = from_real({"tamper": leaving}, {})
    assert (status, ends[1]) == (0, DONE)


def test_receive_while_the_source_changes(from_real, tmp_path):
    path = tmp_path / "changing.bin"
    path.write_bytes(FILES["large"])

    def change(raw):
        path.write_bytes(FILES["large"][::-1])
        return raw

    status, ends, (trace,) = from_real({"tamper": nth("said", "WANT", 1, change)}, path=path)
    assert (status, ends) == (0, [DONE])
    assert named(trace, "heard", "CANCEL")[0]["code"] == 0
    assert [fields["first"] for fields in named(trace, "heard", "FOLDER")] == [1, 2]
    assert from_real.target.read_bytes() == path.read_bytes()


# --- One partial, two programs ---


def test_the_real_receiver_goes_on_with_a_partial_of_the_peer(home, from_real, old, tmp_path):
    from_real({"tamper": nth("heard", "DATA", 3, cut)}, path=old, options=["--retry-for", 0])
    key = ("--secret-file", home / "secret")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(receiver(home, tmp_path / "here", *key))
        program = stack.enter_context(Program(home, "send", old, HOST, "--port", port, *key))
        text, _ = program.process.communicate()
    finished = json.loads(text.splitlines()[-1])
    assert (finished["code"], finished["bytes_sent"]) == (0, SIZE - 2 * MIB)
    assert from_real.target.read_bytes() == FILES["large"]


def test_the_peer_goes_on_with_a_partial_of_the_real_receiver(home, old, tmp_path):
    trace, folder = [], tmp_path / "there"
    with receiver(home, folder, "--secret-file", home / "secret") as port, pytest.raises(BrokenLink):
        send(HOST, port, old, secret=SECRET, tamper=cut_when_listed(folder, old))
    with socket.create_server((HOST, 0)) as listener:
        sender = threading.Thread(target=send, args=(*listener.getsockname(), old), kwargs={"secret": SECRET})
        sender.start()
        assert receive(listener, folder, secret=SECRET, trace=trace) == DONE
        sender.join()
    assert wanted(trace, "said") == [[2, 3]]
    assert (folder / old.name).read_bytes() == FILES["large"]
