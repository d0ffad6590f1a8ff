"""ftx against a small peer that knows nothing but protocol.md.

The real program runs as a process of its own; the peer, `foreign_peer`, takes the other role. Everything is on
loopback, and over TLS but for the tests that say "plain" or "clear". "Wanted" and "sent" are lists of chunk indexes.
"""

import contextlib
import hashlib
import os
import random
import re
import socket
import stat
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.process import Process
from tests.support.proxy import Flip, Proxy

from . import foreign_peer as peer
from .foreign_peer import RECEIVER, SENDER, BrokenLink, PeerError, SessionError, receive, send

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
SECRET = bytes(range(32))
OWN = bytes(range(0x70, 0x90))  # the private key of the real sender
MIB = 1 << 20
SIZE = 3 * MIB + MIB // 2
HOLE = bytes(2 * MIB)
FILES = {"empty": b"", "one": b"a", "large": random.Random(1).randbytes(SIZE)}
FILES["sparse"] = HOLE + FILES["large"][:MIB] + HOLE + b"tail"
DONE = {"done": 1, "skipped": 0, "failed": 0}
FAILED = {"done": 0, "skipped": 0, "failed": 1}
OLD = ("old.bin", "old-1.bin", "old-2.bin", "old-3.bin")
MTIME = 1_700_000_000_123_456_789
MAKERS = {b"dialer": b"listener", b"listener": b"dialer"}


# --- The real program ---


class Program(Process):
    """A process of ftx; its configuration is in `home`, unless it is told otherwise."""

    def __init__(self, home, *arguments, plain=False, code=None, config=None):
        environ = ({"FTX_CODE": code} if code else {}) | ({"FTX_CONFIG_DIR": config} if config else {})
        super().__init__(home, *map(str, arguments), *["--plain"] * plain, environ=environ)

    def port(self):
        """The port that a receiver has said it listens on."""
        return self.event("listening")["addresses"][0][1]

    def end(self):
        """Exit status, and what it said on standard error."""
        return self.wait(), self.err


def key_file(path, key):
    """Makes a file with a key, as in 4.4 of the document."""
    path.touch(0o600)
    path.write_text(key.hex() + "\n")


def key_in(path):
    """The key in such a file, which must have the form that programs of one user rely on."""
    text = path.read_text()
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert re.fullmatch("[0-9a-f]{64}\n", text)
    return bytes.fromhex(text)


@contextlib.contextmanager
def receiver(home, folder, *options, **how):
    """`ftx receive`; gives its port."""
    with Program(home, "receive", "--bind", HOST, "--port", 0, "--dir", folder, *options, **how) as program:
        yield program.port()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The user's folder: a secret file, the configuration, and the sources of `old`."""
    folder = tmp_path_factory.mktemp("home")
    key_file(folder / "secret", SECRET)
    for name in OLD:
        (folder / name).write_bytes(FILES["large"])
    return folder


@pytest.fixture(scope="module")
def there(home, tmp_path_factory):
    """A real receiver that has the secret: its port and its folder."""
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
    """Takes a file from `ftx send` in one or more sessions; gives its exit status, their ends and their traces.

    The real sender has a configuration of its own, with OWN as its private key, and calls the peer by one name.
    """
    (tmp_path / "here").mkdir()
    (tmp_path / "config").mkdir(0o700)
    key_file(tmp_path / "config" / "identity", OWN)

    def go(*sessions, path=None, data=FILES["one"], options=(), host=HOST, plain=False, code=None, **common):
        path = path or tmp_path / "source.bin"
        if not path.exists():
            path.write_bytes(data)
        common = {"secret": SECRET, "plain": plain} | common
        keys = ("--secret-file", home / "secret") if common["secret"] else ()
        ends, traces = [], []
        arguments = ("send", path, host, "--port", port, *keys, *options)
        with Program(tmp_path, *arguments, plain=plain, code=code) as program:
            for session in sessions or ({},):
                traces.append([])
                try:
                    ends.append(receive(listener, tmp_path / "here", trace=traces[-1], **common | session))
                except (BrokenLink, SessionError) as error:
                    ends.append(error)
            status, go.text = program.end()
        go.target = tmp_path / "here" / path.name
        return status, ends, traces

    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        go.name, go.known_hosts, go.folder = peer.host_name(HOST, port), tmp_path / "config" / "known_hosts", tmp_path
        yield go


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


def tlv(kind):
    """A list of one TLV."""
    return [{"type": kind, "value": b"later"}]


def partial(folder, path, end="part", private=SENDER):
    """The partial of the peer's file at a receiver, by Appendix A."""
    who = peer.peer_id_of(peer.public_of(private))
    return folder / ".ftx" / f"{hashlib.sha256(who + os.fsencode(path)).hexdigest()[:32]}.{end}"


def listed(journal, path):
    """The chunks in a journal, by Appendix A."""
    start = struct.calcsize(peer.HEADER) + len(path) + 8
    records = struct.iter_unpack(">QQQ", journal.read_bytes()[start:]) if journal.exists() else ()
    return [index for first, count, _ in records for index in range(first, first + count)]


def cut_when_listed(folder, path, private=SENDER):
    """A tamper that breaks the connection at the third chunk, when a receiver has listed two."""
    journal = partial(folder, path.name, "journal", private)

    def change(raw):
        until = time.monotonic() + 5
        while sorted(listed(journal, path.name)) != [0, 1]:
            assert time.monotonic() < until
            time.sleep(0.01)
        return cut(raw)

    return nth("said", "DATA", 3, change)


# --- The document's own bytes ---


def section(number):
    """The text of a part of section 2 or 16 of the document."""
    text = (ROOT / "protocol.md").read_text()
    return text[text.index(f"\n### {number} ") :].split("\n### ")[1].split("\n## ")[0]


def example():
    """The frames of the worked example, as (side, name, bytes). The payloads of DATA are complete."""
    found = []
    for number in ("2.1", "2.2"):
        blocks = re.findall(r"\*\*\d+\. (dialer|listener), .*?```hex\n(.*?)```", section(number), re.DOTALL)
        for side, block in blocks:
            parts = [re.split("  #| …", line)[0] for line in block.splitlines()]
            raw = bytes.fromhex("".join(parts).replace(" ", ""))
            if raw[0] == 0x20:
                length, index = int.from_bytes(raw[4:8], "big") - 32, raw[31]
                raw = raw[:48] + bytes(at % 251 for at in range(index << 20, (index << 20) + length))
                assert raw[48:64].hex() == parts[-1]
            found.append((side, peer.NAMES.get(raw[0], "unknown"), raw))
    return found


def vectors():
    """The values of section 16.1, by name."""
    block = section("16.1").split("```vectors\n")[1].split("```")[0]
    return {name: bytes.fromhex(value) for name, value in re.findall(r"(.*):\n((?:  .*\n)+)", block)}


def test_the_example():
    frames = example()
    assert len(frames) == 24
    for _, name, raw in frames:
        assert raw[8:16] == peer.check_of(raw)
        assert len(raw) == 16 + int.from_bytes(raw[4:8], "big")
        assert name == "unknown" or peer.frame(name, **peer.parse(raw)) == raw
    greetings = [raw for _, name, raw in frames if name in ("HELLO", "PROOF")]
    for dialer, listener, *proofs in (greetings[:4], greetings[4:]):
        transcript = peer.transcript_of(dialer, listener)
        for maker, private, hello, raw in zip(MAKERS, (SENDER, RECEIVER), (dialer, listener), proofs, strict=True):
            fields, identity = peer.parse(raw), peer.parse(hello)["identity"]
            assert identity == peer.public_of(private)
            assert fields["signature"] == peer.signature_of(private, maker, transcript)
            assert peer.is_signed(fields["signature"], identity, maker, transcript)
            assert not peer.is_signed(fields["signature"], identity, MAKERS[maker], transcript)
            assert fields["proofs"] == [{"method": 2, "mac": peer.mac_of(SECRET, maker, 2, transcript)}]
    (tag,) = {peer.parse(raw)["entries"][0]["tag"] for _, name, raw in frames if name == "FOLDER"}
    assert tag == peer.tag_of(SENDER, 4711, MTIME)


def test_the_values():
    dialer, listener = (raw for _, name, raw in example()[:2])
    transcript, tls = peer.transcript_of(dialer, listener), peer.transcript_of(dialer, listener, 1, SECRET)
    who, path, size = peer.peer_id_of(peer.public_of(SENDER)), b"inbox/blob.bin", 2 * MIB + 1000
    key, tag = hashlib.sha256(who + path).digest()[:16], peer.tag_of(SENDER, 4711, MTIME)
    fields = (b"ftxj", 1, 0, who, size, 1_700_000_000 * 10**9, tag, MIB, 1, 1234, len(path))
    journal = struct.pack(peer.HEADER, *fields) + path
    seed = peer.xxhash.xxh3_64_intdigest(journal)
    journal += struct.pack(">Q", seed)
    for index in (0, 1):
        record = struct.pack(">QQ", index, 1)
        journal += record + struct.pack(">Q", peer.xxhash.xxh3_64_intdigest(record, seed))
    chunks = {
        index: peer.digest_of(1, raw[48:]) for index, raw in enumerate(raw for _, n, raw in example() if n == "DATA")
    }
    values = {
        "transcript": transcript,
        "public key of the dialer": peer.public_of(SENDER),
        "public key of the listener": peer.public_of(RECEIVER),
        "signature of the dialer": peer.signature_of(SENDER, b"dialer", transcript),
        "signature of the listener": peer.signature_of(RECEIVER, b"listener", transcript),
        "mac of the dialer": peer.mac_of(SECRET, b"dialer", 2, transcript),
        "mac of the listener": peer.mac_of(SECRET, b"listener", 2, transcript),
        "mac of the dialer, method 3": peer.mac_of(SECRET, b"dialer", 3, transcript),
        "mac of the dialer, method 4": peer.mac_of(vectors()["key of the pairing"], b"dialer", 4, transcript),
        "mac of the listener, method 4": peer.mac_of(vectors()["key of the pairing"], b"listener", 4, transcript),
        "transcript over TLS": tls,
        "secret for source tags": hashlib.sha256(b"ftx/1 source tags" + SENDER).digest(),
        "peer id": who,
        "job id": peer.job_id_of(b"/home/ann/blob.bin", b"inbox"),
        "source tag": tag,
        "key of the partial": key,
        "journal": journal,
        "xxh3-128 root of the worked example": peer.root_of(1, chunks, size),
    }
    lines = b"".join(b"line %d\n" % number for number in range(100))
    payload = vectors()["compressed DATA"][48:]
    assert zstd.decompress(payload) == lines
    body = struct.pack(">QQ", 7, 0) + peer.digest_of(1, lines) + payload
    values["compressed DATA"] = peer.raw_frame(0x20, body, flags=0x01 | 0x02 | 0x04)
    for name, digest in (("xxh3-128", 1), ("sha-256", 2)):
        values |= {
            f"{name} of nothing": peer.digest_of(digest, b""),
            f"{name} root of the empty file": peer.root_of(digest, {}, 0),
            f"{name} chunk digest of the file `a`": peer.digest_of(digest, b"a"),
            f"{name} root of the file `a`": peer.root_of(digest, {0: peer.digest_of(digest, b"a")}, 1),
            f"{name} of a chunk of 1 MiB of zeros": peer.digest_of(digest, bytes(MIB)),
        }
    code, x, y = b"4821-amber-tulip", int.from_bytes(SECRET, "big"), int.from_bytes(bytes(range(1, 33)), "big")
    elements = peer.element_of(code, x, peer.M), peer.element_of(code, y, peer.N)
    values |= {
        "M of the pairing": peer.M,
        "N of the pairing": peer.N,
        "number of the code": peer.number_of(code).to_bytes(32, "big"),
        "element of the dialer": elements[0],
        "element of the listener": elements[1],
        "key of the pairing": peer.pairing_key(code, x, peer.N, *elements),
    }
    assert values == vectors()
    assert peer.pairing_key(code, y, peer.M, *elements) == values["key of the pairing"]
    assert peer.code_of("- 4821_AMBER -  Tulip_") == code
    fingerprint = peer.fingerprint_of(peer.public_of(SENDER))
    assert f"`{fingerprint}`" in (ROOT / "protocol.md").read_text()


MEASURING = {"STEP", "SAMPLE", "MEASURED"}  # of a mode that the peer does not know


def test_the_frames():
    block = section("16.2").split("```vectors\n")[1].split("```")[0]
    frames = re.findall(r"^([A-Z_]+): .*\n((?:[0-9a-f]+\n)+)", block, re.MULTILINE)
    known = [(name, text) for name, text in frames if name not in MEASURING]
    assert [name for name, _ in known] == list(peer.MESSAGES)
    for name, text in known:
        raw = bytes.fromhex(text)
        assert peer.frame(name, **peer.parse(raw)) == raw
        assert name == peer.NAMES[raw[0]]


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
    for keys in ({"secret": bytes(32)}, {"secret": None}):
        end, trace = to_there(**keys)
        assert (type(end), end.code) == (PeerError, 66)
        assert not named(trace, "said", "OPEN")
    totals, trace = to_there()
    assert totals == DONE
    assert named(trace, "heard", "HELLO")[0]["identity"] == peer.public_of(key_in(home / "config" / "identity"))
    assert named(trace, "heard", "PROOF")[0]["proofs"][0]["method"] == peer.SECRET

    def and_others(raw):
        later = [{"method": method, "mac": bytes(32)} for method in (0, 1, 200)]
        return rewrite(proofs=[*later, *peer.parse(raw)["proofs"]])(raw)

    assert to_there(tamper=nth("said", "PROOF", 1, and_others))[0]["skipped"] == 1


def test_send_known(home, to_there):
    """Who has the receiver's own key needs no other, and no yes: it is the same user."""
    private = key_in(home / "config" / "identity")
    totals, trace = to_there(secret=None, private=private)
    assert totals == DONE
    assert named(trace, "said", "PROOF")[0]["proofs"] == []
    assert named(trace, "heard", "PROOF")[0]["proofs"] == [{"method": peer.KNOWN, "mac": bytes(32)}]
    _, trace = to_there(private=private)
    assert named(trace, "heard", "PROOF")[0]["proofs"][0]["method"] == peer.SECRET
    end, trace = to_there(private=private, secret=bytes(32))
    assert named(trace, "heard", "PROOF")[0]["proofs"] == [{"method": peer.KNOWN, "mac": bytes(32)}]
    assert end["skipped"] == 1


def test_send_resumes_what_another_method_admitted(home, there, to_there, old):
    """A peer is a key pair, whatever has admitted it; another one with the same secret is another peer."""
    path, private = old.with_name(OLD[3]), key_in(home / "config" / "identity")
    to_there(path=path, private=private, tamper=cut_when_listed(there[1], path, private))
    until = time.monotonic() + 10
    while True:  # until the receiver has found that the connection broke
        _, trace = to_there(path=path, tamper=nth("said", "DATA", 1, cut))
        if not named(trace, "heard", "REFUSE"):
            break
        assert named(trace, "heard", "REFUSE")[0]["items"][0]["code"] == 53
        assert time.monotonic() < until
        time.sleep(0.05)
    assert wanted(trace, "heard") == [[0, 1, 2, 3]]
    while True:
        totals, trace = to_there(path=path, private=private, secret=None)
        if totals == DONE:
            break
        assert named(trace, "heard", "REFUSE")[0]["items"][0]["code"] == 53
        assert time.monotonic() < until
        time.sleep(0.05)
    assert wanted(trace, "heard") == [[2, 3]]
    assert (there[1] / path.name).read_bytes() == FILES["large"]


SIGN = peer.signature_of
NO_SIGNATURES = {
    "another key": lambda private, maker, transcript: SIGN(bytes(32), maker, transcript),
    "another maker": lambda private, maker, transcript: SIGN(private, MAKERS[maker], transcript),
    "another transcript": lambda private, maker, transcript: SIGN(private, maker, flip(transcript)),
    "a zero byte too few": lambda private, maker, transcript: SIGN(private, maker[:-1], maker[-1:] + transcript),
    "damaged": lambda *what: flip(SIGN(*what)),
    "empty": lambda *what: b"",
    "too short": lambda *what: SIGN(*what)[:-1],
    "too long": lambda *what: SIGN(*what) + b"\0",
    "twice": lambda *what: SIGN(*what) * 2,
    "zeros": lambda *what: bytes(64),
}


@pytest.mark.parametrize("case", NO_SIGNATURES)
def test_send_a_wrong_signature(home, to_there, monkeypatch, case):
    monkeypatch.setattr(peer, "signature_of", NO_SIGNATURES[case])
    for keys in ({}, {"secret": None, "private": key_in(home / "config" / "identity")}):
        end, trace = to_there(**keys)
        assert (type(end), end.code) == (PeerError, 64)
        assert not named(trace, "heard", "PROOF")


NO_POINTS = [bytes.fromhex("02" + "00" * 31), b"\xff" * 32]


@pytest.mark.parametrize("identity", [peer.public_of(RECEIVER), bytes(32), *NO_POINTS])
def test_send_another_identity(to_there, identity):
    """An identity that is another's, or nobody's, or no public key at all."""
    end, trace = to_there(tamper=nth("said", "HELLO", 1, rewrite(identity=identity)))
    assert (type(end), end.code) == (PeerError, 64)
    assert not named(trace, "heard", "PROOF")


def test_send_to_a_wrong_signature(to_there):
    for change in (lambda raw: rewrite(signature=flip(peer.parse(raw)["signature"]))(raw), rewrite(signature=b"")):
        end, trace = to_there(tamper=nth("heard", "PROOF", 1, change))
        assert (type(end), end.code) == (SessionError, 64)
        assert not named(trace, "said", "OPEN")


def test_send_to_open(home, tmp_path, monkeypatch):
    folder, path, known_hosts = tmp_path / "open", tmp_path / "file", tmp_path / "known_hosts"
    path.write_bytes(b"first")
    with receiver(home, folder, "--open") as port:
        for keys in ({}, {"secret": SECRET}, {"secret": SECRET, "accept_new": True}):
            trace = []
            with pytest.raises(SessionError):
                send(HOST, port, path, trace=trace, known_hosts=known_hosts, **keys)
            assert named(trace, "heard", "PROOF")[0]["proofs"] == [{"method": peer.OPEN, "mac": bytes(32)}]
            assert not named(trace, "said", "OPEN")
        assert send(HOST, port, path, accept_new=True, known_hosts=known_hosts) == DONE
        path.write_bytes(b"second")
        assert send(HOST, port, path, private=bytes(32), known_hosts=known_hosts) == DONE
        private, trace = key_in(home / "config" / "identity"), []
        path.write_bytes(b"third")
        assert send(HOST, port, path, private=private, trace=trace) == DONE
        assert named(trace, "heard", "PROOF")[0]["proofs"] == [{"method": peer.KNOWN, "mac": bytes(32)}]
        fingerprint = peer.fingerprint_of(peer.public_of(private))
        assert known_hosts.read_text() == f"[{HOST}]:{port} {fingerprint}\n"
        known_hosts.write_text(f"[{HOST}]:{port} {peer.fingerprint_of(peer.public_of(RECEIVER))}\n")
        with pytest.raises(SessionError, match=fingerprint):
            send(HOST, port, path, accept_new=True, known_hosts=known_hosts)
        monkeypatch.setattr(peer, "signature_of", NO_SIGNATURES["damaged"])
        with pytest.raises(PeerError, match="64"):
            send(HOST, port, path, accept_new=True)
    files = sorted(one.read_bytes() for one in folder.iterdir() if one.is_file())
    assert files == [b"first", b"second", b"third"]


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
        ("FOLDER", behind(data()), 2),
        ("FOLDER", behind(peer.frame("FINISH", entry=1, root=bytes(16))), 2),
        ("FOLDER", before(peer.frame("WANT", entry=1, held=0, ranges=[])), 2),
        ("FOLDER", before(peer.frame("BYE", done=1, skipped=0, failed=0)), 2),
        ("PROOF", before(peer.frame("PING")), 2),
        ("PROOF", rewrite(signature=bytes(129)), 2),
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


def test_send_more_than_the_window(to_there):
    """More entries than are granted. What is answered about them meanwhile is no matter."""
    no_matter = {"WANT": rewrite(entry=1, ranges=[]), "WANT_ALL": rewrite(entries=[])}

    def tamper(side, name, raw):
        if (side, name) != ("said", "FOLDER"):
            return no_matter[name](raw) if side == "heard" and name in no_matter else raw
        (one,) = peer.parse(raw)["entries"]
        entries = [one | {"name": f"{number}.bin".encode()} for number in range(4097)]
        batches = [(at, entries[at : at + 1024]) for at in range(0, len(entries), 1024)]
        return b"".join(rewrite(first=at + 1, entries=batch)(raw) for at, batch in batches)

    end, trace = to_there(tamper=tamper)
    assert (type(end), end.code) == (PeerError, 2)
    assert all(fields["window"] == 4096 for fields in named(trace, "heard", "OPENED"))


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
        inner.append(to_there(path=path, private=bytes(32)))
        inner.append(to_there(path=path))
        return raw

    end, _ = to_there(path=path, tamper=nth("said", "DATA", 2, again))
    assert (type(end), end.code) == (PeerError, 65)
    (other, trace), (same, _) = inner
    assert other == FAILED
    assert named(trace, "heard", "REFUSE")[0]["items"][0]["code"] == 53
    assert same == DONE


@pytest.fixture(scope="module")
def in_clear(home, tmp_path_factory):
    """A real receiver in plain mode that has the secret: its port and its folder."""
    folder = tmp_path_factory.mktemp("in_clear")
    with receiver(home, folder, "--secret-file", home / "secret", plain=True) as port:
        yield port, folder


def all_that_comes(sock):
    """What is sent until the end of the stream."""
    return b"".join(iter(lambda: sock.recv(4096), b""))


@pytest.mark.parametrize("mode", ["TLS", "plain"])
@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", bytes(16), peer.raw_frame(0x01, b"ftx1" + bytes(69))]
)
def test_send_something_else_gets_one_line_at_most(there, in_clear, mode, first):
    """Never an ERROR, but for what begins like a HELLO where TLS was awaited."""
    with socket.create_connection((HOST, (there if mode == "TLS" else in_clear)[0]), 5) as sock:
        sock.sendall(first)
        sock.shutdown(socket.SHUT_WR)
        came = all_that_comes(sock)
    if mode == "plain" or first[0] != 1:
        assert re.fullmatch(rb"([^\n?][^\n]*\n)?", came)


def test_send_nothing_gets_nothing(there):
    with socket.create_connection((HOST, there[0]), 5) as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)


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


def refused(from_real, *sessions, **common):
    """Lets the real sender refuse the peer: nothing is sent. Gives what it said on standard error."""
    status, ends, (trace,) = from_real(*sessions, **common)
    assert status == 8
    assert isinstance(ends[0], PeerError) and ends[0].code == 64 or isinstance(ends[0], BrokenLink)
    assert not {name for side, name, _ in trace if side == "heard"} - {"HELLO", "PROOF", "ERROR", "unknown"}
    return from_real.text


def lines(known_hosts):
    """The lines that mean something."""
    return [line for line in known_hosts.read_text().splitlines() if line and not line.startswith("#")]


def proof(method):
    """A tamper that names another method in the listener's PROOF."""
    return {"tamper": nth("said", "PROOF", 0, rewrite(proofs=[{"method": method, "mac": bytes(32)}]))}


def test_receive_keys(from_real):
    status, ends, (trace,) = from_real()
    assert (status, ends) == (0, [DONE])
    assert named(trace, "heard", "HELLO")[0]["identity"] == peer.public_of(OWN)
    assert [item["method"] for item in named(trace, "heard", "PROOF")[0]["proofs"]] == [peer.SECRET]
    for method in (0, 1, 2, 3, 200):
        refused(from_real, proof(method))
    assert from_real(secret=bytes(32))[0] == 8
    assert not from_real.known_hosts.exists()


def test_receive_known(home, from_real):
    """A listener with the sender's own key is the same user, and nobody else has that."""
    status, ends, (trace,) = from_real(secret=None, private=OWN)
    assert (status, ends) == (0, [DONE])
    assert named(trace, "heard", "PROOF")[0]["proofs"] == []
    assert named(trace, "said", "PROOF")[0]["proofs"] == [{"method": peer.KNOWN, "mac": bytes(32)}]
    assert from_real(proof(0), secret=None, private=OWN)[0] == 0
    assert from_real(secret=None, private=OWN, options=["--secret-file", home / "secret"])[0] == 0
    refused(from_real, proof(2), secret=None, private=OWN)
    refused(from_real, proof(200), secret=None, private=OWN)
    refused(from_real, proof(1), secret=None, is_open=True)
    assert not from_real.known_hosts.exists()


@pytest.mark.parametrize("case", NO_SIGNATURES)
def test_receive_a_wrong_signature(from_real, monkeypatch, case):
    monkeypatch.setattr(peer, "signature_of", NO_SIGNATURES[case])
    refused(from_real)
    if case in ("another key", "another transcript", "damaged"):  # each is a process of its own
        refused(from_real, secret=None, private=OWN)
        refused(from_real, secret=None, is_open=True, options=["--accept-new"])
    assert not from_real.known_hosts.exists()


@pytest.mark.parametrize("identity", [peer.public_of(OWN), bytes(32), *NO_POINTS])
def test_receive_another_identity(from_real, identity):
    refused(from_real, {"tamper": nth("said", "HELLO", 1, rewrite(identity=identity))})


def test_receive_mirrored(from_real):
    """Whoever sends the sender its own identity and signature is not the same user."""
    said = {}

    def mirror(side, name, raw):
        if side == "heard":
            said[name] = peer.parse(raw) if name in ("HELLO", "PROOF") else {}
            return raw
        fields = {"HELLO": ("identity", "nonce"), "PROOF": ("signature",)}.get(name, ())
        return rewrite(**{field: said[name][field] for field in fields})(raw) if fields else raw

    refused(from_real, {"tamper": mirror}, secret=None, is_open=True, options=["--accept-new"])


def test_receive_from_a_wrong_signature(from_real):
    change = nth("heard", "PROOF", 0, lambda raw: rewrite(signature=flip(peer.parse(raw)["signature"]))(raw))
    for keys in ({}, {"secret": None, "private": OWN}, {"secret": None, "is_open": True, "options": ["--accept-new"]}):
        status, (end,), (trace,) = from_real({"tamper": change}, **keys)
        assert (status, type(end), end.code) == (8, SessionError, 64)
        assert not named(trace, "said", "PROOF")


MINE, OTHER = (peer.fingerprint_of(peer.public_of(private)) for private in (RECEIVER, SENDER))


@pytest.mark.parametrize("method", [peer.OPEN, peer.KNOWN])
def test_receive_accept_new(from_real, method):
    common = proof(method) | {"secret": None, "is_open": True}
    assert MINE in refused(from_real, **common)
    assert not from_real.known_hosts.exists()
    assert from_real(**common, options=["--accept-new"])[:2] == (0, [DONE])
    assert lines(from_real.known_hosts) == [f"{from_real.name} {MINE}"]
    text = from_real.known_hosts.read_text()
    assert from_real(**common)[0] == 0
    assert (from_real.text, peer.on_file(from_real.known_hosts, from_real.name)) == ("", MINE)
    assert from_real(**common, options=["--accept-new"])[0] == 0
    refused(from_real, **common, host="localhost")
    message = refused(from_real, **common, private=SENDER, options=["--accept-new"])
    assert MINE in message
    assert OTHER in message
    assert from_real.known_hosts.read_text() == text


def test_receive_another_key_than_on_file(from_real):
    """What is on file counts for more than the secret, the sender's own key and the user's yes."""
    from_real.known_hosts.write_text(f"{from_real.name} {OTHER}\n")
    for keys, fingerprint in (
        ({}, MINE),
        ({"secret": None, "private": OWN}, peer.fingerprint_of(peer.public_of(OWN))),
        ({"secret": None, "is_open": True}, MINE),
        ({"secret": None, "is_open": True, "options": ["--accept-new"]}, MINE),
    ):
        text = refused(from_real, **keys)
        assert OTHER in text
        assert fingerprint in text
    assert from_real.known_hosts.read_text() == f"{from_real.name} {OTHER}\n"
    assert from_real(private=SENDER)[:2] == (0, [DONE])


def test_receive_on_file_is_no_secret(home, from_real):
    from_real.known_hosts.write_text(f"{from_real.name} {MINE}\n")
    refused(from_real, secret=None, is_open=True, options=["--secret-file", home / "secret"])
    refused(from_real, secret=None, is_open=True, options=["--secret-file", home / "secret", "--accept-new"])
    assert from_real()[:2] == (0, [DONE])


@pytest.mark.parametrize(
    ("text", "is_known"),
    [
        ("{name} {mine}", True),
        ("# ours\n\n{name} \t {mine}\n", True),
        ("{name} {other}\nelsewhere {other}\n{name} {mine}\n[{host}]:1 {other}\n{host} {other}\n", True),
        ("{name} {mine}\n{name} {other}\n", False),
        ("{name} {mine}\n#{name} {other}\n", True),
        ("#{name} {mine}\n", False),
        ("{host} {mine}\n[{host}]:1 {mine}\nelsewhere {mine}\n", False),
    ],
)
def test_receive_known_hosts(from_real, text, is_known):
    text = text.format(name=from_real.name, host=HOST, mine=MINE, other=OTHER)
    from_real.known_hosts.write_text(text)
    assert (peer.on_file(from_real.known_hosts, from_real.name) == MINE) == is_known
    if is_known:
        assert from_real(secret=None, is_open=True)[:2] == (0, [DONE])
    else:
        refused(from_real, secret=None, is_open=True)
    assert from_real.known_hosts.read_text() == text


def test_receive_puts_on_file_behind_others(from_real):
    """Also when the last line has lost its end."""
    from_real.known_hosts.write_text(f"# ours\nelsewhere {OTHER}")
    assert from_real(secret=None, is_open=True, options=["--accept-new"])[:2] == (0, [DONE])
    assert from_real.known_hosts.read_text() == f"# ours\nelsewhere {OTHER}\n{from_real.name} {MINE}\n"


@pytest.mark.parametrize(("typed", "host"), [("127.73.89.1", "127.73.89.1"), ("[::1]", "::1")])
def test_receive_at_the_usual_port(from_real, tmp_path, typed, host):
    """There the name of a listener is the host alone, and has no brackets."""
    path = tmp_path / "source.bin"
    path.write_bytes(b"a")
    with contextlib.ExitStack() as stack:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = stack.enter_context(socket.create_server((host, peer.PORT), family=family))
        except OSError:
            pytest.skip("no such address, or somebody uses the port")
        listener.settimeout(10)
        for options in (["--accept-new"], []):
            program = stack.enter_context(Program(tmp_path, "send", path, typed, *options))
            receive(listener, tmp_path / "here", is_open=True)
            assert program.end() == (0, "")
    assert lines(from_real.known_hosts) == [f"{host} {MINE}"]


@pytest.mark.parametrize("config", ["/proc/self", "/dev/null"])
def test_receive_without_a_place_for_keys(from_real, home, tmp_path, config):
    """A sender that cannot keep a key pair transfers all the same, when something else admits it."""
    path = tmp_path / "source.bin"
    path.write_bytes(b"a")
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(5)
        port = listener.getsockname()[1]
        arguments = ("send", path, HOST, "--port", port, "--secret-file", home / "secret")
        with Program(tmp_path, *arguments, config=f"{config}/config") as program:
            try:
                totals = receive(listener, tmp_path / "here", secret=SECRET)
            except TimeoutError:
                totals = None
            assert (program.end(), totals) == ((0, ""), DONE)


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("identity", OWN.hex() + "\n", 0o640),
        ("identity", OWN.hex()[1:] + "\n", 0o600),
        ("known_hosts", "NAME\n", 0o600),
        ("known_hosts", f"NAME {MINE}\nNAME ed25519:xx\n", 0o600),
        ("known_hosts", "NAME rsa:xx\n", 0o600),
        ("known_hosts", f"NAME {MINE}\n", 0o620),
    ],
)
def test_receive_a_file_that_is_not_to_be_used(from_real, tmp_path, name, text, mode):
    """The program says so and ends, before it dials. NAME is the listener's."""
    file, path = tmp_path / "config" / name, tmp_path / "source.bin"
    path.write_bytes(b"a")
    with socket.create_server((HOST, 0)) as listener:
        file.write_text(text.replace("NAME", f"[{HOST}]:{listener.getsockname()[1]}"))
        file.chmod(mode)
        with Program(tmp_path, "send", path, HOST, "--port", listener.getsockname()[1]) as program:
            status, message = program.end()
        assert status
        assert str(file) in message
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


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
        ("PROOF", lambda raw: rewrite(proofs=peer.parse(raw)["proofs"] * 2)(raw), 2),
        ("PROOF", rewrite(signature=bytes(129)), 2),
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
        program = stack.enter_context(Program(tmp_path, "send", old, HOST, "--port", port, *key))
        program.wait()
    finished = program.finished
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


# --- TLS, where the peer dials ---


def small_file(folder, data=b"a"):
    """A file to be sent."""
    path = folder / "small.bin"
    path.write_bytes(data)
    return path


def shake_hands(port, **options):
    """A TLS connection to a port: its socket and its Tls, when the handshake is done."""
    sock, tls = socket.create_connection((HOST, port), 5), peer.Tls(**options)
    tls.heard(b"")
    while not tls.done:
        sock.sendall(tls.goes.read())
        tls.heard(sock.recv(1 << 16))
    sock.sendall(tls.goes.read())
    return sock, tls


def test_send_sees_tls_1_3_and_a_certificate_that_stays_and_no_tickets(there, to_there):
    certificates = set()
    for _ in range(2):
        sock, tls = shake_hands(there[0])
        with sock:
            sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        assert (tls.link.version(), tls.link.selected_alpn_protocol()) == ("TLSv1.3", "ftx/1")
        assert not (tls.link.session and tls.link.session.has_ticket)
        certificates.add(tls.link.getpeercert(binary_form=True))
    (der,) = certificates
    identity = named(to_there()[1], "heard", "HELLO")[0]["identity"]
    assert peer.x509.load_der_x509_certificate(der).public_key().public_bytes_raw() == identity


@pytest.mark.parametrize(
    "tls", [{"version": peer.ssl.TLSVersion.TLSv1_2}, {"alpn": ()}, {"alpn": ("h2",)}], ids=["1.2", "no", "h2"]
)
def test_send_with_tls_1_2_or_another_alpn_comes_to_nothing(to_there, tls):
    end, trace = to_there(tls=tls)
    assert (type(end), trace) == (BrokenLink, [])


def test_send_in_clear_to_a_listener_of_tls_gets_error_64_in_clear(there, to_there):
    end, trace = to_there(plain=True)
    assert (type(end), end.code) == (PeerError, 64)
    assert [frame[:2] for frame in trace] == [("said", "HELLO"), ("heard", "ERROR")]
    assert to_there()[0] == DONE


def test_send_over_tls_to_a_listener_in_clear_gets_error_64_in_clear(in_clear, tmp_path):
    trace, path = [], small_file(tmp_path)
    with pytest.raises(PeerError) as caught:
        send(HOST, in_clear[0], path, secret=SECRET, trace=trace)
    assert (caught.value.code, [frame[:2] for frame in trace]) == (64, [("heard", "ERROR")])
    assert send(HOST, in_clear[0], path, secret=SECRET, plain=True) == DONE


NO_FTX = [b"GET / HTTP/1.1\r\n\r\n  ", b"SSH-2.0-OpenSSH_9.2\r\n", peer.raw_frame(0x01, b"ftx1" + bytes(69))]


@pytest.mark.parametrize("first", NO_FTX, ids=["http", "ssh", "no magic"])
def test_send_something_else_inside_tls_gets_one_line_at_most(there, first):
    """The rules of the first bytes are the same inside TLS."""
    sock, tls = shake_hands(there[0])
    with sock:
        tls.said(first)
        sock.sendall(tls.goes.read())
        sock.shutdown(socket.SHUT_WR)
        assert re.fullmatch(rb"([^\n?\x01][^\n]*\n)?", tls.heard(all_that_comes(sock)))


@pytest.mark.parametrize("case", ["fingerprint", "transport", "no fingerprint"])
def test_send_with_another_transcript_than_that_of_tls_is_refused(to_there, monkeypatch, case):
    right = peer.transcript_of
    wrong = {
        "fingerprint": lambda *what: right(*what[:3], flip(what[3])),
        "transport": lambda *what: right(*what[:2], 0, what[3]),
        "no fingerprint": lambda *what: right(*what[:3]),
    }
    monkeypatch.setattr(peer, "transcript_of", wrong[case])
    end, trace = to_there()
    assert (type(end), end.code) == (PeerError, 64)
    assert not named(trace, "heard", "PROOF")


@contextlib.contextmanager
def relay(port, **shown):
    """Somebody in the middle with a certificate of its own, who passes on all frames of one connection; its port."""

    def pass_on():
        with contextlib.suppress(OSError, BrokenLink):
            ends = [peer.Lane(server.accept()[0], timeout_s=10, **shown)]
            ends.append(peer.Lane(socket.create_connection((HOST, port)), timeout_s=10))
            with ends[0].sock, ends[1].sock:
                ends[0].begin_as_listener(bytes(32), time.monotonic() + 5)
                ends[1].begin_as_dialer()
                while not any(end.ended and not end.came for end in ends):
                    for one, other in (ends, ends[::-1]):
                        one.turn(0.01)
                        raw, one.came = bytes(one.came), bytearray()
                        other.write(raw)

    with socket.create_server((HOST, 0)) as server:
        server.settimeout(10)
        thread = threading.Thread(target=pass_on)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join()


def test_send_through_a_relay_with_its_own_certificate_is_refused(there, tmp_path):
    trace = []
    with relay(there[0]) as port, pytest.raises(PeerError) as caught:
        send(HOST, port, small_file(tmp_path), secret=SECRET, trace=trace)
    assert caught.value.code == 64
    assert not named(trace, "heard", "PROOF")


def test_the_real_sender_and_receiver_refuse_a_relay_with_its_own_certificate(home, there, tmp_path):
    path = small_file(tmp_path)
    with relay(there[0]) as port:
        arguments = ("send", path, HOST, "--port", port, "--secret-file", home / "secret")
        with Program(tmp_path, *arguments) as program:
            assert program.end()[0] == 8
    assert not (there[1] / path.name).exists()


SHAPES = {
    "one byte in a record": {"tls": {"piece": 1}},
    "17 bytes in a record": {"tls": {"piece": 17}},
    "many frames in a record": {"corked": True},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_send_in_records_of_any_size(there, to_there, shape):
    data = FILES["large"][: 1 << 15]
    totals, _ = to_there(data, name=f"{shape}.bin", **SHAPES[shape], tamper=all_of({"PROOF": behind(*OPTIONAL)}))
    assert totals == DONE
    assert (there[1] / f"{shape}.bin").read_bytes() == data


def test_send_in_a_huge_number_of_tiny_records(there, to_there):
    totals, _ = to_there(FILES["large"], name="tiny.bin", tls={"piece": 16})
    assert totals == DONE
    assert (there[1] / "tiny.bin").read_bytes() == FILES["large"]


def test_send_that_ends_with_a_close_notify_is_done(to_there):
    assert to_there(notify=True)[0] == DONE


@pytest.mark.parametrize("notify", [False, True], ids=["without", "with"])
def test_send_that_breaks_off_with_or_without_a_close_notify_resumes(there, to_there, tmp_path, notify):
    """A close_notify says nothing about how a session has ended."""
    path = tmp_path / f"notify-{notify}.bin"
    path.write_bytes(FILES["large"])
    to_there(path=path, tamper=cut_when_listed(there[1], path), notify=notify)
    totals, trace = to_there(path=path)
    assert (totals, wanted(trace, "heard")) == (DONE, [[2, 3]])
    assert (there[1] / path.name).read_bytes() == FILES["large"]


def test_send_with_a_damaged_record_breaks_the_link_and_nothing_is_published(there, tmp_path):
    path = tmp_path / "record.bin"
    path.write_bytes(FILES["large"])
    with Proxy(there[0], up=[Flip(2 * MIB)]) as proxy:
        with pytest.raises(BrokenLink):
            send(HOST, proxy.port, path, secret=SECRET)
        assert not (there[1] / path.name).exists()
        assert send(HOST, proxy.port, path, secret=SECRET) == DONE
    assert (there[1] / path.name).read_bytes() == FILES["large"]


# --- TLS, where the peer listens ---


NO_TLS = (3, 4)  # the document does not say which


def other_certificates():
    """Certificates that say nothing that anybody may judge by."""
    ed25519, p256 = peer.Ed25519PrivateKey.from_private_bytes(bytes(32)), ec.generate_private_key(ec.SECP256R1())
    return {
        "another key": peer.certificate(ed25519, None),
        "another kind of key": peer.certificate(p256, hashes.SHA256()),
        "long over": peer.certificate(ed25519, None, years=(1990, 1991)),
        "not yet": peer.certificate(ed25519, None, years=(2090, 2091)),
        "another name": peer.certificate(ed25519, None, name="not.example.org"),
        "a wrong signature": peer.certificate(ed25519, None, change=flip),
    }


def test_receive_with_any_certificate(from_real):
    sessions = [{"tls": {"shown": shown}} for shown in other_certificates().values()]
    for number, session in enumerate(sessions):
        status, ends, _ = from_real(session, path=small_file(from_real.folder, bytes([number])))
        assert (status, ends) == (0, [DONE])
    assert not from_real.known_hosts.exists()


def test_receive_with_another_certificate_in_the_next_session(from_real, old):
    sessions = [{"tamper": nth("heard", "DATA", 3, cut)}, {"tls": {"shown": other_certificates()["another key"]}}]
    status, ends, traces = from_real(*sessions, path=old)
    assert (status, ends[1], sent(traces[1], "heard")) == (0, DONE, [2, 3])


@pytest.mark.parametrize("alpn", [(), ("h2",)], ids=["no", "another"])
def test_receive_without_the_alpn_is_not_ftx(from_real, alpn):
    status, (end,), (trace,) = from_real({"tls": {"alpn": alpn}})
    assert (status, type(end)) == (4, BrokenLink)
    assert not named(trace, "heard", "HELLO")


def test_receive_with_tls_1_2_only_comes_to_nothing(from_real):
    status, (end,), (trace,) = from_real({"tls": {"version": peer.ssl.TLSVersion.TLSv1_2}}, options=["--retry-for", 0])
    assert (status in NO_TLS, type(end), trace) == (True, BrokenLink, [])


def test_receive_in_clear_from_a_dialer_of_tls_ends_both(from_real):
    status, (end,), (trace,) = from_real({"plain": True})
    assert (status, type(end), end.code) == (8, SessionError, 64)
    assert [frame[:2] for frame in trace] == [("said", "ERROR")]


def test_receive_over_tls_from_a_dialer_in_clear_ends_both(from_real):
    status, (end,), (trace,) = from_real({"plain": False}, plain=True)
    assert (status, type(end), end.code) == (8, SessionError, 64)
    assert [frame[:2] for frame in trace] == [("said", "ERROR")]


def answered(listener, first):
    """Answers the first bytes of a dialer with these, and ends; gives all that it said."""
    sock = listener.accept()[0]
    with sock:
        sock.settimeout(5)
        said = sock.recv(1 << 16)
        sock.sendall(first)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            said += all_that_comes(sock)
        return said


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", 4),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 4),
        (bytes(20), 4),
        (
            peer.frame(
                "HELLO", magic=b"ftx\0", version_min=1, version_max=1, nonce=bytes(32), identity=bytes(32), tlvs=[]
            ),
            4,
        ),
        (peer.frame("ERROR", code=64, message=b"in clear"), 8),
        (b"", 3),
        (b"\x15\x03\x03\x00\x02\x02\x28", NO_TLS),
    ],
    ids=["ssh", "http", "zeros", "HELLO", "ERROR", "nothing", "alert"],
)
def test_receive_answers_in_clear_to_a_dialer_of_tls(home, tmp_path, first, status):
    """It never goes on in clear: all that it says is TLS."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(5)
        port = listener.getsockname()[1]
        keys = ("--secret-file", home / "secret", "--retry-for", 0)
        with Program(tmp_path, "send", small_file(tmp_path), HOST, "--port", port, *keys) as program:
            said = answered(listener, first)
            assert program.end()[0] in (status if status == NO_TLS else (status,))
    assert said[0] == 0x16
    assert b"ftx\0" not in said


@pytest.mark.parametrize("case", ["fingerprint", "transport"])
def test_receive_with_another_transcript_than_that_of_tls_is_refused(from_real, monkeypatch, case):
    right = peer.transcript_of
    wrong = {
        "fingerprint": lambda *what: right(*what[:3], flip(what[3])),
        "transport": lambda *what: right(*what[:2], 0, what[3]),
    }

    def sign(private, maker, transcript):
        return SIGN(private, maker, transcripts[transcript])

    transcripts = {}

    def both(*what):
        transcripts[right(*what)] = wrong[case](*what)
        return right(*what)

    monkeypatch.setattr(peer, "transcript_of", both)
    monkeypatch.setattr(peer, "signature_of", sign)
    refused(from_real)


@pytest.mark.parametrize("shape", SHAPES)
def test_receive_in_records_of_any_size(from_real, shape):
    status, ends, _ = from_real(SHAPES[shape], data=FILES["large"])
    assert (status, ends) == (0, [DONE])
    assert from_real.target.read_bytes() == FILES["large"]


def test_receive_that_ends_with_a_close_notify_is_done(from_real):
    assert from_real({"notify": True})[:2] == (0, [DONE])


@pytest.mark.parametrize("notify", [False, True], ids=["without", "with"])
def test_receive_that_breaks_off_with_or_without_a_close_notify_resumes(from_real, old, notify):
    status, ends, traces = from_real({"tamper": nth("heard", "DATA", 3, cut), "notify": notify}, {}, path=old)
    assert (status, ends[1], sent(traces[1], "heard")) == (0, DONE, [2, 3])


@pytest.mark.parametrize("first", NO_FTX, ids=["http", "ssh", "no magic"])
def test_receive_something_else_inside_tls_is_not_ftx(from_real, first):
    status, (end,), (trace,) = from_real({"tamper": nth("said", "HELLO", 1, lambda _raw: first)})
    assert status == 4
    assert {name for side, name, _ in trace if side == "heard"} == {"HELLO"}


# --- Secret files that name receivers ---


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("{key}\n{mine}\n", 0),
        ("{key}\n{other}\n{mine}\n", 0),
        ("{upper}\n{mine}\n", 0),
        ("{key}", 0),
        ("{key}\n{other}\n", 8),
        ("{key}\nnonsense\n", 2),
        ("{key}\n{mine} {other}\n", 2),
        ("{mine}\n", 2),
        ("{short}\n{mine}\n", 2),
    ],
)
def test_receive_with_a_secret_file_that_names_receivers(from_real, tmp_path, text, status):
    """Another one is refused, even if it proves the key. Anything else behind the key is an error of use."""
    file, path = tmp_path / "named", small_file(tmp_path)
    file.touch(0o600)
    key = SECRET.hex()
    file.write_text(text.format(key=key, upper=key.upper(), short=key[:-1], mine=MINE, other=OTHER))
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(5)
        arguments = ("send", path, HOST, "--port", listener.getsockname()[1], "--secret-file", file)
        if status == 2:
            listener.close()  # who dials all the same ends with 3
        with Program(tmp_path, *arguments) as program:
            (tmp_path / "into").mkdir()
            if status == 0:
                assert receive(listener, tmp_path / "into", secret=SECRET) == DONE
            elif status == 8:
                with pytest.raises((PeerError, BrokenLink)):
                    receive(listener, tmp_path / "into", secret=SECRET)
            ended, message = program.end()
    assert ended == status
    assert status != 8 or MINE in message


def test_send_with_the_secret_file_that_a_real_receiver_made(home, tmp_path):
    """It names that receiver, and no other."""
    file, path = tmp_path / "made", small_file(tmp_path)
    with receiver(home, tmp_path / "there", "--secret-file", file) as port:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        key, *receivers = file.read_text().splitlines()
        mine = peer.fingerprint_of(peer.public_of(key_in(home / "config" / "identity")))
        assert receivers == [mine]
        keys = {"secret": bytes.fromhex(key)}
        with pytest.raises(SessionError, match="secret file"):
            send(HOST, port, path, **keys, receivers=[OTHER])
        assert send(HOST, port, path, **keys, receivers=[OTHER, mine]) == DONE


# --- Pairing ---

CODE = "4821-amber-tulip"
ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
NO_ELEMENTS = {
    "the neutral point": peer.bytes_of(peer.NEUTRAL),
    "a point of order 8": ORDER_8,
    "a point of order 8 L": peer.bytes_of(peer.plus(peer.BASE, peer.point_of(ORDER_8))),
    "no point": bytes.fromhex("02" + "00" * 31),
    "a number that is too large": (peer.FIELD + 1).to_bytes(32, "little"),
    "zeros": bytes(32),
}


def test_the_points_that_are_no_elements():
    assert peer.is_element(peer.M)
    assert peer.is_element(peer.N)
    assert not peer.is_element(peer.M, peer.M)
    assert not any(map(peer.is_element, NO_ELEMENTS.values()))


@pytest.fixture
def pair_real(tmp_path):
    """Lets `ftx pair HOST` come to the peer; gives its exit status, and the identity that came or the error."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        (tmp_path / "config").mkdir(0o700)
        key_file(tmp_path / "config" / "identity", OWN)

        def go(typed=CODE, code=CODE, plain=False, **options):
            with Program(tmp_path, "pair", HOST, "--port", port, plain=plain, code=typed) as program:
                try:
                    end = peer.let_pair(listener, code, plain=plain, **options)
                except (BrokenLink, SessionError) as error:
                    end = error
                status, go.text = program.end()
            return status, end

        go.known_hosts, go.name, go.listener = tmp_path / "config" / "known_hosts", peer.host_name(HOST, port), listener
        yield go


@pytest.mark.parametrize("plain", [False, True], ids=["TLS", "plain"])
def test_pair_puts_the_peer_on_file_and_a_session_needs_no_more(pair_real, tmp_path, plain):
    assert pair_real(" 4821_AMBER--Tulip ", plain=plain) == (0, peer.public_of(OWN))
    assert lines(pair_real.known_hosts) == [f"{pair_real.name} {MINE}"]
    port = pair_real.listener.getsockname()[1]
    with Program(tmp_path, "send", small_file(tmp_path), HOST, "--port", port, plain=plain) as program:
        (tmp_path / "into").mkdir()
        known = [peer.public_of(OWN)]
        assert receive(pair_real.listener, tmp_path / "into", known=known, plain=plain) == DONE
        assert program.end() == (0, "")


def test_pair_replaces_what_was_on_file_and_keeps_the_rest(pair_real):
    text = f"# ours\nelsewhere {OTHER}\n{pair_real.name} {OTHER}\n"
    pair_real.known_hosts.write_text(text)
    assert pair_real()[0] == 0
    assert peer.on_file(pair_real.known_hosts, pair_real.name) == MINE
    assert pair_real.known_hosts.read_text().startswith(f"# ours\nelsewhere {OTHER}\n")


def other_proof(method):
    """A listener that does not have the code, and says that the dialer is right."""
    return nth("said", "PROOF", 1, rewrite(proofs=[{"method": method, "mac": bytes(32)}]))


@pytest.mark.parametrize("method", [0, 1, 2, 4, 200])
def test_pair_believes_no_listener_without_the_code(pair_real, monkeypatch, method):
    monkeypatch.setattr(peer, "take_proof", lambda *what: None)
    assert pair_real(code="4821-amber-other", tamper=other_proof(method))[0] == 8
    assert not pair_real.known_hosts.exists()


def test_pair_with_another_code_ends_with_8(pair_real):
    status, end = pair_real(code="4821-amber-other")
    assert (status, type(end), end.code) == (8, SessionError, 67)
    assert not pair_real.known_hosts.exists()


def test_pair_with_a_listener_that_does_not_sign_ends_with_8(pair_real, monkeypatch):
    monkeypatch.setattr(peer, "signature_of", NO_SIGNATURES["another key"])
    assert pair_real()[0] == 8
    assert not pair_real.known_hosts.exists()


@pytest.mark.parametrize("case", NO_ELEMENTS)
def test_pair_takes_no_element_that_is_none(pair_real, case):
    status, end = pair_real(tamper=nth("said", "PAIR", 1, rewrite(element=NO_ELEMENTS[case])))
    assert (status, type(end), end.code) == (4, PeerError, 2)
    assert not pair_real.known_hosts.exists()


def test_pair_does_not_take_its_own_element(pair_real):
    heard = []

    def mirror(side, name, raw):
        heard.append(raw) if (side, name) == ("heard", "PAIR") else None
        return heard[0] if (side, name) == ("said", "PAIR") else raw

    status, end = pair_real(tamper=mirror)
    assert (status, type(end), end.code) == (4, PeerError, 2)


def test_send_with_a_code_at_hand_pairs_when_it_is_not_known(from_real, monkeypatch):
    """ERROR code 66, then a connection that pairs, then a session by method 1."""
    paired, take = [], receive

    def in_turn(listener, folder, *, pairs=False, trace=None, **options):
        if pairs:
            paired.append(peer.let_pair(listener, CODE, trace=trace))
            return paired[-1]
        return take(listener, folder, known=paired, trace=trace, **options)

    monkeypatch.setitem(globals(), "receive", in_turn)
    status, (first, second, third), traces = from_real({}, {"pairs": True}, {}, secret=None, code=CODE)
    assert (status, first.code, second, third) == (0, 66, peer.public_of(OWN), DONE)
    assert [name for side, name, _ in traces[1] if side == "heard" and name != "unknown"] == ["HELLO", "PAIR", "PROOF"]
    assert named(traces[2], "said", "PROOF")[0]["proofs"] == [{"method": peer.KNOWN, "mac": bytes(32)}]
    assert lines(from_real.known_hosts) == [f"{from_real.name} {MINE}"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A real receiver that knows nobody, and that pairs: its port and the home of its user."""
    home = tmp_path_factory.mktemp("pairs")
    with receiver(home, home / "there") as port:
        yield port, home


@contextlib.contextmanager
def shown(home, *options):
    """`ftx pair`; gives the program and the code that it shows."""
    with Program(home, "pair", *options) as program:
        yield program, program.event("code")["code"]


def other_than(code):
    """A code that is not this one."""
    return ("1" if code[0] == "0" else "0") + code[1:]


def test_pair_with_a_real_receiver_and_send_without_another_key(pairs, tmp_path):
    (port, home), path, known_hosts = pairs, small_file(tmp_path), tmp_path / "known_hosts"
    with pytest.raises(PeerError, match="66"):
        send(HOST, port, path)
    with shown(home, "--name", "laptop") as (program, code):
        assert re.fullmatch("[0-9]{4}-[a-z]+-[a-z]+", code)
        identity = peer.pair(HOST, port, code.upper().replace("-", "_"), known_hosts=known_hosts)
        assert program.end()[0] == 0
    assert identity == peer.public_of(key_in(home / "config" / "identity"))
    assert lines(home / "config" / "peers") == [f"laptop {OTHER}"]
    trace = []
    assert send(HOST, port, path, known_hosts=known_hosts, trace=trace) == DONE
    assert named(trace, "heard", "PROOF")[0]["proofs"] == [{"method": peer.KNOWN, "mac": bytes(32)}]
    with pytest.raises(PeerError, match="67"):  # once is all
        peer.pair(HOST, port, code, private=bytes(32))


def no_pairing(port, code, **options):
    """Tries to pair; gives the error code."""
    with pytest.raises(PeerError) as caught:
        peer.pair(HOST, port, code, private=bytes(32), **options)
    return caught.value.code


def test_pair_without_any_code_shown_looks_like_a_wrong_code(pairs):
    trace = []
    assert no_pairing(pairs[0], CODE, trace=trace) == 67
    assert [name for side, name, _ in trace if side == "heard" and name != "unknown"] == ["HELLO", "PAIR", "ERROR"]


def test_pair_is_refused_without_its_mac_its_signature_or_an_element(pairs, monkeypatch):
    """The right code does not help then."""
    (port, home), before_all = pairs, (pairs[1] / "config" / "peers").read_bytes()
    with shown(home) as (_, code):
        no_mac = nth("said", "PROOF", 1, rewrite(proofs=[]))
        assert no_pairing(port, code, tamper=no_mac) == 67
        assert no_pairing(port, code, tamper=nth("said", "PAIR", 1, rewrite(element=ORDER_8))) == 2
        assert no_pairing(port, code, tamper=nth("said", "PAIR", 1, rewrite(element=NO_ELEMENTS["no point"]))) == 2
        with monkeypatch.context() as patch:
            patch.setattr(peer, "signature_of", NO_SIGNATURES["damaged"])
            assert no_pairing(port, code) in (64, 67)
    assert (home / "config" / "peers").read_bytes() == before_all


def test_pair_twice_or_behind_a_proof_breaks_the_order(pairs, to_there):
    assert no_pairing(pairs[0], CODE, tamper=nth("said", "PAIR", 1, lambda raw: raw * 2)) == 2
    extra = behind(peer.frame("PAIR", element=peer.M, tlvs=[]))
    end, _ = to_there(tamper=nth("said", "PROOF", 1, extra))
    assert (type(end), end.code) == (PeerError, 2)


def test_pair_takes_a_code_no_more_after_five_tries(pairs):
    port, home = pairs
    with shown(home) as (_, code):
        assert [no_pairing(port, other_than(code)) for _ in range(5)] == [67] * 5
        assert no_pairing(port, code) == 67


def test_pair_through_a_relay_with_its_own_certificate_is_refused(pairs):
    port, home = pairs
    with shown(home) as (_, code), relay(port) as middle:
        assert no_pairing(middle, code) in (64, 67)
