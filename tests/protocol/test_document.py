"""Holds the code to ``protocol.md``: its tables, limits, orders, hex vectors and its worked example.

The document is read, never imported from the code; each reader asserts how much it found, so that a
table that was moved or renamed fails here instead of passing unread.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

import pytest
import xxhash
from spake2.parameters.ed25519 import ParamsEd25519

from ftx import errors
from ftx.net.identity import Identity, fingerprint
from ftx.net.pairing import Exchange
from ftx.options import CommonOptions
from ftx.protocol import codec, compression, manifest, messages, proof, session, ssh
from ftx.protocol import messages as m
from ftx.protocol.manifest import ZERO_TAG, ChunkDigests, DigestName, Grid, Kind
from ftx.protocol.messages import Method, Role, SkipReason, Type
from ftx.protocol.session import ENTRY, LANE, MEASURING, MEASURING_LANE, Measuring, Phase, Side, State
from ftx.storage import journal

DOCUMENT = Path(__file__).parents[2] / "protocol.md"
GUARANTEES = 12
PARTS = ("Purpose", "Layout", "Fields", "Behaviour")


# --- Reading the document ------------------------------------------------------------------------------


@cache
def text() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@cache
def sections() -> dict[str, str]:
    """Heading -> what stands under it, up to the next heading of any depth."""
    parts = re.split(r"^#{1,4} (.+)$", re.sub(r"^```.*?^```$", _hide, text(), flags=re.M | re.S), flags=re.M)
    titles = parts[1::2]
    assert len(titles) == len(set(titles)), "two headings are the same"
    return {title: body.replace("\x00#", "#") for title, body in zip(titles, parts[2::2], strict=True)}


def _hide(block: re.Match[str]) -> str:
    """A code block whose lines cannot be taken for headings."""
    return re.sub(r"^#", "\x00#", block[0], flags=re.M)


def section(title: str) -> str:
    found = [body for name, body in sections().items() if re.sub(r"^(Appendix )?[\dA-Z.]+ ", "", name) == title]
    assert len(found) == 1, f"{len(found)} sections are named {title!r}"
    return found[0]


def table(body: str, *columns: str) -> list[list[str]]:
    """The rows of the one table with these columns; code marks are taken off."""
    head = "| " + " | ".join(columns) + " |"
    assert body.count(head + "\n") == 1, f"{body.count(head)} tables {head}"
    lines = body.split(head + "\n", 1)[1].split("\n")
    assert re.fullmatch(r"\|(-+\|)+", lines[0])
    rows = []
    for line in lines[1:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")]
        assert len(cells) == len(columns), line
        rows.append(cells)
    assert rows
    return rows


def blocks(body: str, mark: str) -> list[str]:
    return re.findall(rf"^```{re.escape(mark)}\n(.*?)^```$", body, flags=re.M | re.S)


@dataclass(frozen=True)
class Shown:
    """A frame as the document shows it: its bytes, and the first bytes and length of an abbreviated payload."""

    frame: bytes
    start: bytes = b""
    length: int = 0

    @classmethod
    def of(cls, block: str) -> Shown:
        frame, start, length = "", b"", 0
        for line in block.splitlines():
            value = line.split("#")[0].replace(" ", "")
            if short := re.fullmatch(r"([0-9a-f]+)…(\d+)bytes", value):
                start, length = bytes.fromhex(short[1]), int(short[2])
            else:
                assert not length, "bytes behind the payload"
                frame += value
        return cls(bytes.fromhex(frame), start, length)


def number(value: str) -> int:
    """An integer as the document writes it: ``1 048 576``, ``0x20`` or ``2^44``."""
    value = value.replace(" ", "")
    if power := re.fullmatch(r"(\d+)\^(\d+)", value):
        return int(power[1]) ** int(power[2])
    return int(value, 0)


# --- What the document's examples are made of ----------------------------------------------------------


def count_up(first: int, length: int) -> bytes:
    """``length`` bytes: first, first + 1, …"""
    return bytes((first + i) % 256 for i in range(length))


KEY = count_up(0x00, 32)
DIALER, LISTENER = Identity(count_up(0x20, 32)), Identity(count_up(0xD0, 32))
INODE = 4711
CTIME_NS = 1_700_000_000_123_456_789
MTIME_NS = 1_700_000_000_000_000_000
SIZE = 2 * manifest.MIB + 1000
TAG = manifest.source_tag(DIALER.tag_key, INODE, CTIME_NS)
JOB = proof.job_id([b"/home/ann/blob.bin"], b"inbox")
GREASE = codec.encode_grease(5, b"grease")
CODE = "4821-amber-tulip"
LINES = b"".join(b"line %d\n" % number for number in range(100))
LINES_COMPRESSED = bytes.fromhex(
    "28b52ffd601602750300b2461010b0a77007691800695744a4b4b4e8400cc3ffffffff99999999191111111111dbb66dbb6ddbb625499224"
    "b76ddb3649922429222216111f7139c51000080a034263a820bccdd04b751012c40f65b76eb76dbb638ab4a340fb643b1b8861162fc9ca5c"
    "7ddad7e9a2004901"
)


@cache
def chunk(index: int) -> bytes:
    grid = Grid.of(SIZE)
    return bytes(i % 251 for i in range(grid.offset(index), grid.offset(index) + grid.length(index)))


@cache
def file_root() -> bytes:
    digests = ChunkDigests(Grid.of(SIZE), DigestName.XXH3_128)
    for index in range(digests.grid.count):
        digests.set(index, xxhash.xxh3_128_digest(chunk(index)))
    return digests.root()


def data_frame(entry: int, index: int) -> Shown:
    payload = chunk(index)
    prefix = codec.encode_data(entry, index, xxhash.xxh3_128_digest(payload), len(payload))
    return Shown(prefix, payload[:16], len(payload))


def hello(nonce: int, who: Identity) -> m.Hello:
    return m.Hello(m.MAGIC, 1, 1, count_up(nonce, 32), who.public)


def handshake(dialer: m.Hello, listener: m.Hello) -> tuple[bytes, m.Proof, m.Proof]:
    """The transcript and both proofs of two HELLOs, in plain mode, with the example's secret."""
    script = proof.transcript(
        codec.encode(dialer), codec.encode(listener), encrypted=False, fingerprint=proof.NO_FINGERPRINT
    )
    first, second = (
        m.Proof(
            who.sign(proof.signed(side, script)),
            (m.ProofItem(Method.SECRET, proof.mac(KEY, side, Method.SECRET, script)),),
        )
        for side, who in ((Side.DIALER, DIALER), (Side.LISTENER, LISTENER))
    )
    return script, first, second


def opening(number_: int, session_id: int, nonces: tuple[int, int], want: m.Want) -> list[m.Message | bytes]:
    """One session of the example, up to its WANT."""
    dialer, listener = hello(nonces[0], DIALER), hello(nonces[1], LISTENER)
    _, first, second = handshake(dialer, listener)
    open_ = m.Open(
        count_up(session_id, 16), count_up(0x90, 16), JOB, Role.SENDER, m.Mode.TRANSFER, 1, 300,
        DigestName.XXH3_128, b"inbox",
    )  # fmt: skip
    offered = m.Offered(Kind.FILE, b"blob.bin", SIZE, SIZE, 0o644, MTIME_NS, TAG)
    grease = [GREASE] if number_ == 1 else []
    return [dialer, listener, first, second, open_, *grease, m.Folder(b"", 1, (offered,)), m.Opened(1, 1024), want]


@cache
def example() -> tuple[m.Message | bytes | Shown, ...]:
    """Every frame of the worked example in order."""
    return (
        *opening(1, 0x80, (0x40, 0x60), m.Want(1, 0, (m.Range(0, 3),))),
        data_frame(1, 0),
        data_frame(1, 1),
        *opening(2, 0xC0, (0xA0, 0xB0), m.Want(1, 2 * manifest.MIB, (m.Range(2, 1),))),
        data_frame(1, 2),
        m.Finish(1, file_root()),
        m.Receipt((m.ReceiptItem(1, m.ReceiptFlags.DURABLE, file_root()),)),
        m.Bye(1, 0, 0),
        m.Bye(1, 0, 0),
    )


@cache
def vectors() -> dict[Type, m.Message | Shown]:
    """One frame of each type, for "Test vectors"."""
    dialer, listener = hello(0x40, DIALER), hello(0x60, LISTENER)
    tlv = m.Tlv(0x0123, b"later")
    sha = DigestName.SHA_256.function(b"")
    payload = b"ftx"
    data = codec.encode_data(7, 0, xxhash.xxh3_128_digest(payload), len(payload))
    link = m.Offered(Kind.SYMLINK, b"link", 0, 0, 0o777, -1, ZERO_TAG, b"../b")
    file = m.Offered(Kind.FILE, b"b", 3, 3, 0o600, MTIME_NS, TAG, b"", (tlv,))
    return {
        Type.HELLO: m.Hello(m.MAGIC, 1, 2, count_up(0x40, 32), DIALER.public, (tlv,)),
        Type.PROOF: handshake(dialer, listener)[1],
        Type.OPEN: m.Open(
            count_up(0x80, 16), count_up(0x90, 16), JOB, Role.RECEIVER, m.Mode.TRANSFER, 4, 0, DigestName.SHA_256, b""
        ),
        Type.OPENED: m.Opened(4, 4096, (tlv,)),
        Type.ATTACH: m.Attach(count_up(0x80, 16), 2),
        Type.ATTACHED: m.Attached(),
        Type.PAIR: m.Pair(pairing()[0].element, (tlv,)),
        Type.FOLDER: m.Folder(b"a/d", 7, (file, link)),
        Type.FOLDER_END: m.FolderEnd(b"a/d", m.FolderFlags.WHOLE),
        Type.SKIP: m.Skip((m.SkipItem(7, SkipReason.SAME), m.SkipItem(8, SkipReason.KEPT))),
        Type.WANT: m.Want(7, 3 * manifest.MIB, (m.Range(0, 2), m.Range(5, 1))),
        Type.REFUSE: m.Refuse((m.RefuseItem(7, errors.NoSpace.wire, "the disk is full"),)),
        Type.ASK_DIGESTS: m.AskDigests(7, DigestName.SHA_256, 64, 64),
        Type.DIGESTS: m.Digests(7, DigestName.SHA_256, 64, sha),
        Type.WANT_ALL: m.WantAll((7, 8, 9)),
        Type.DATA: Shown(data + payload),
        Type.ZEROS: m.Zeros(7, (m.Range(1, 1000),)),
        Type.FINISH: m.Finish(7, sha),
        Type.RECEIPT: m.Receipt((m.ReceiptItem(7, 0, sha),)),
        Type.CANCEL: m.Cancel(7, m.WITHDRAWN, "changed"),
        Type.PING: m.Ping(),
        Type.BUSY: m.Busy(42),
        Type.PAUSE: m.Pause(errors.NoSpace.wire, "the disk is full"),
        Type.RESUME: m.Resume(),
        Type.BYE: m.Bye(20_000, 3, 1),
        Type.ERROR: m.Error(errors.Superseded.wire, "a newer run took over – ünïcode"),
        Type.STEP: m.Step(2, m.StepFlags.DISK, 5 * manifest.MIB),
        Type.SAMPLE: m.Sample(),
        Type.MEASURED: m.Measured(1 << 30, 10**18, 5 * manifest.MIB, 7, 8, 9),
    }


def pairing() -> tuple[Exchange, Exchange]:
    """The dialer's part of the example's pairing, and the listener's."""
    # The library draws 64 bytes for a number, the most significant first, and takes it mod L.
    dialer = Exchange(Side.DIALER, CODE, lambda _: bytes(32) + count_up(0x00, 32))
    listener = Exchange(Side.LISTENER, CODE, lambda _: bytes(32) + count_up(0x01, 32))
    return dialer, listener


def values() -> dict[str, bytes]:
    """The named values of "Test vectors" that are not frames."""
    script, first, second = handshake(hello(0x40, DIALER), hello(0x60, LISTENER))
    peer = proof.peer_id(DIALER.public)
    dialer, listener = pairing()
    key = dialer.key(listener.element)
    found = {
        "transcript": script,
        "public key of the dialer": DIALER.public,
        "public key of the listener": LISTENER.public,
        "signature of the dialer": first.signature,
        "signature of the listener": second.signature,
        "mac of the dialer": first.proofs[0].mac,
        "mac of the listener": second.proofs[0].mac,
        "mac of the dialer, method 3": proof.mac(KEY, Side.DIALER, 3, script),
        "M of the pairing": ParamsEd25519.M.to_bytes(),
        "N of the pairing": ParamsEd25519.N.to_bytes(),
        "number of the code": ParamsEd25519.group.password_to_scalar(CODE.encode()).to_bytes(32, "big"),
        "element of the dialer": dialer.element,
        "element of the listener": listener.element,
        "key of the pairing": key,
        "mac of the dialer, method 4": proof.mac(key, Side.DIALER, Method.PAIRED, script),
        "mac of the listener, method 4": proof.mac(key, Side.LISTENER, Method.PAIRED, script),
        "transcript over TLS": proof.transcript(
            codec.encode(hello(0x40, DIALER)), codec.encode(hello(0x60, LISTENER)), encrypted=True, fingerprint=KEY
        ),
        "secret for source tags": DIALER.tag_key,
        "peer id": peer,
        "job id": JOB,
        "source tag": TAG,
        "key of the partial": partial_key(peer, b"inbox/blob.bin"),
        "journal": journal_example(peer),
        "compressed DATA": codec.encode_data(
            7, 0, xxhash.xxh3_128_digest(LINES), len(LINES_COMPRESSED), final=True, compressed=True
        )
        + LINES_COMPRESSED,
    }
    one = Grid.of(1)
    for name in DigestName:
        digests = ChunkDigests(one, name)
        digests.set(0, name.function(b"a"))
        found |= {
            f"{name.label} of nothing": name.function(b""),
            f"{name.label} root of the empty file": ChunkDigests(Grid.of(0), name).root(),
            f"{name.label} chunk digest of the file `a`": name.function(b"a"),
            f"{name.label} root of the file `a`": digests.root(),
            f"{name.label} of a chunk of 1 MiB of zeros": manifest.zero_digest(name, manifest.MIB),
        }
    found["xxh3-128 root of the worked example"] = file_root()
    return found


def partial_key(peer: bytes, path: bytes) -> bytes:
    """The 16 bytes whose 32 hexadecimal digits name a partial."""
    return DigestName.SHA_256.function(peer + path)[:16]


def journal_example(peer: bytes) -> bytes:
    """A journal written by the appendix's words alone: a header and two records."""
    path = b"inbox/blob.bin"
    head = b"ftxj" + struct.pack("!HH", 1, 0) + peer + struct.pack("!Qq", SIZE, MTIME_NS) + TAG
    head += struct.pack("!IB3xQ", manifest.MIB, 1, 1234) + struct.pack("!H", len(path)) + path
    seed = xxhash.xxh3_64_intdigest(head)
    records = b""
    for first, count in ((0, 1), (1, 1)):
        record = struct.pack("!QQ", first, count)
        records += record + struct.pack("!Q", xxhash.xxh3_64_intdigest(record, seed=seed))
    return head + struct.pack("!Q", seed) + records


# --- Guarantees and structure --------------------------------------------------------------------------


def test_each_guarantee_is_listed_and_named_at_its_rule() -> None:
    listed = table(section("Guarantees"), "Guarantee", "What it says")
    assert [row[0].strip("*") for row in listed] == [f"G{n}" for n in range(1, GUARANTEES + 1)]
    elsewhere = text().replace(section("Guarantees"), "")
    missing = [n for n in range(1, GUARANTEES + 1) if not re.search(rf"\((?:G\d+, )*G{n}(?:, G\d+)*\)", elsewhere)]
    assert not missing
    assert not [g for g in re.findall(r"\bG(\d+)\b", text()) if not 1 <= int(g) <= GUARANTEES]


def test_each_message_has_its_four_parts() -> None:
    for type_ in Type:
        body = message_section(type_)
        found = re.findall(r"^\*\*(\w+)\.\*\*", body, flags=re.M)
        assert tuple(found) == PARTS, type_.name
        lengths = [len(part.split()) for part in re.split(r"^\*\*\w+\.\*\*", body, flags=re.M)[1:]]
        assert min(lengths) >= 1, f"{type_.name} has an empty part"


def test_the_message_sections_are_the_messages() -> None:
    found = re.findall(r"^### \S+ ([A-Z_]+) \((0x[0-9a-f]{2})\)$", text(), flags=re.M)
    assert found == [(type_.name, f"{type_.value:#04x}") for type_ in Type]


def message_section(type_: Type) -> str:
    return section(f"{type_.name} ({type_.value:#04x})")


def test_every_inner_reference_leads_somewhere() -> None:
    titles = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in sections()}
    links = re.findall(r"\]\(#([^)]+)\)", text())
    assert len(links) >= 10
    assert not [link for link in links if link not in titles]


# --- Tables --------------------------------------------------------------------------------------------


def test_type_table() -> None:
    who = {
        type_: ", ".join(
            side.value
            for side in Side
            if any(s is side and type_ in row for order in (LANE, MEASURING_LANE) for (s, _), row in order.items())
        )
        for type_ in Type
    }
    expected = [
        [
            f"{type_.value:#04x}", type_.name, who[type_], f"{m.MAX_BODY[type_]:,}".replace(",", " "),
            "no" if type_ in codec.OPTIONAL else "yes",
        ]
        for type_ in Type
    ]  # fmt: skip
    rows = table(section("The types"), "Code", "Name", "Said by", "Max body", "Critical")
    assert rows == expected
    assert len(rows) == 29


def test_no_reserved_type_is_used_already() -> None:
    rows = table(section("Numbers set aside"), "Code", "Name", "For")
    reserved = {int(row[0], 16) for row in rows if "–" not in row[0]}
    assert reserved == {0x17, 0x40, 0x41, 0x42, 0x43}
    assert not reserved & {int(type_) for type_ in Type}
    assert [row[0] for row in rows if "–" in row[0]] == [f"0x{m.GREASE_FIRST:X}–0x{m.GREASE_LAST:X}"]


@pytest.mark.parametrize("type_", [type_ for type_ in Type if type_ is not Type.DATA], ids=lambda t: t.name)
def test_message_layout(type_: Type) -> None:
    cls, fields = codec.LAYOUTS[type_]
    body = message_section(type_)
    if not fields:
        assert "The body is empty." in body
        assert "| Field | Kind |" not in body
        return
    names: tuple[str, ...] = cls._fields
    expected = [[name, field.doc] for name, field in zip(names, fields, strict=True)]
    assert table(body, "Field", "Kind") == expected


def test_data_layout() -> None:
    assert table(message_section(Type.DATA), "Field", "Kind") == [
        ["entry", "u64"], ["index", "u64"], ["digest", "16 bytes"], ["payload", "the rest of the body"],
    ]  # fmt: skip
    assert codec.DATA_PREFIX == codec.HEADER_SIZE + 8 + 8 + 16


def test_record_layouts() -> None:
    body = section("Records")
    found = re.findall(r"^Record `(\w+)`:\n\n((?:\|.*\n)+)", body, flags=re.M)
    assert len(found) == len(codec.RECORDS) == 7
    for name, rows in found:
        cls = getattr(m, name)
        names: tuple[str, ...] = cls._fields
        expected = [[field, kind.doc] for field, kind in zip(names, codec.RECORDS[cls], strict=True)]
        assert table(rows, "Field", "Kind") == expected, name


def test_field_kinds_are_those_of_the_layouts() -> None:
    used = {field.doc for _, fields in codec.LAYOUTS.values() for field in fields}
    used |= {field.doc for fields in codec.RECORDS.values() for field in fields}
    shown = {kind for row in table(section("Field kinds"), "Kind", "Bytes") for kind in re.split(r", (?=[ui])", row[0])}
    assert len(shown) == 9
    assert shown <= used
    forms = {re.sub(r"\d+(?= bytes)|\(.*", "", kind) for kind in shown}
    assert {re.sub(r"\d+(?= bytes)|\(.*", "", kind) for kind in used} == forms


def test_journal_layout() -> None:
    forms = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "3 bytes": "3x", "bytes(u16, 4096)": "H"}
    rows = table(section("The journal's header"), "Field", "Kind", "Value")
    assert [row[:2] for row in rows[-2:]] == [["path", f"bytes(u16, {m.MAX_PATH})"], ["check", "u64"]]
    form = "!" + "".join(forms.get(kind) or kind.replace(" bytes", "s") for _, kind, _ in rows[:-1])
    assert form == journal._FIXED.format
    records = table(section("The journal's records"), "Field", "Kind", "Value")
    assert [row[:2] for row in records] == [["first", "u64"], ["count", "u64"], ["check", "u64"]]
    assert journal.RECORD_SIZE == 24


def test_every_field_is_explained() -> None:
    for type_ in Type:
        explained = re.split(r"^\*\*\w+\.\*\*", message_section(type_), flags=re.M)[3]
        names = ("entry", "index", "digest") if type_ is Type.DATA else codec.LAYOUTS[type_][0]._fields
        for name in names:
            assert f"`{name}`" in explained, f"{type_.name}.{name}"
    for cls in codec.RECORDS:
        for name in cls._fields:  # type: ignore[attr-defined]
            assert f"`{name}`" in section("Records"), f"{cls.__name__}.{name}"


def test_header_layout() -> None:
    rows = table(section("The frame"), "Field", "Kind", "Bytes")
    assert [row[:2] for row in rows] == [
        ["type", "u8"], ["flags", "u8"], ["reserved", "u16"], ["length", "u32"], ["check", "u64"],
    ]  # fmt: skip
    assert [row[2] for row in rows] == ["0", "1", "2–3", "4–7", "8–15"]
    assert codec.HEADER.format == "!BBHIQ"
    assert codec.HEADER_SIZE == 16


ENUMS: tuple[type[IntEnum], ...] = (Role, m.Mode, Method, Kind, DigestName, SkipReason)


def test_numbers_with_names() -> None:
    rows = table(section("Numbers with names"), "Kind", "Value", "Name", "Meaning")
    expected = [[enum.__name__, str(member.value), member.name] for enum in ENUMS for member in enum]
    for flags in (m.FolderFlags, m.ReceiptFlags, m.StepFlags):
        expected += [[flags.__name__, f"{v:#04x}", k] for k, v in vars(flags).items() if k.isupper()]
    assert [row[:3] for row in rows] == expected
    assert len(rows) == 19


def test_limits() -> None:
    rows = table(section("Limits"), "Name", "Value", "Meaning")
    found = {row[0]: number(row[1]) for row in rows}
    assert len(found) == len(rows)
    constants = {
        name: value
        for module in (messages, manifest, ssh)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int) and name not in ("KIB", "MIB")
    }
    constants["TIMEOUT_S"] = int(CommonOptions().timeout_s)
    assert found == constants


def moves(cell: str) -> dict[Type, str]:
    """``HELLO → greeted, ERROR → ended`` as a dictionary."""
    found = [re.fullmatch(r"([A-Z_]+) → (\w+)", part) for part in cell.split(", ")]
    assert all(found), cell
    result = {Type[match[1]]: match[2] for match in found if match}
    assert len(result) == len(found), cell
    return result


def test_lane_table() -> None:
    rows = table(section("The order of frames on a lane"), "Side", "Phase", "May say → next phase")
    found = {(Side(side), Phase(phase)): moves(cell) for side, phase, cell in rows}
    assert len(found) == len(rows)
    assert found == {key: {type_: phase.value for type_, phase in row.items()} for key, row in LANE.items()}


def test_lane_table_of_a_measuring() -> None:
    rows = table(section("The order of frames on a lane"), "Side, measuring", "Phase", "May say → next phase")
    found = {(Side(side), Phase(phase)): moves(cell) for side, phase, cell in rows}
    assert found == {key: {type_: phase.value for type_, phase in row.items()} for key, row in MEASURING_LANE.items()}


def test_measuring_table() -> None:
    rows = table(section("The states of a measuring"), "Measuring", "Message → next state")
    found = {Measuring(state): moves(cell) for state, cell in rows}
    assert len(found) == len(rows) == len(Measuring)
    assert found == {key: {type_: state.value for type_, state in row.items()} for key, row in MEASURING.items()}


def test_entry_table() -> None:
    rows = table(section("The states of an entry"), "State", "Message → next state")
    found = {State(state): moves(cell) for state, cell in rows}
    assert len(found) == len(rows) == len(State)
    assert found == {key: {type_: state.value for type_, state in row.items()} for key, row in ENTRY.items()}


def test_error_table() -> None:
    rows = table(section("The error codes"), "Code", "Name", "Exit code", "Meaning", "Retried")
    expected = [
        [str(code), cls.__name__, str(cls.exit_code), "yes" if cls.retry else "no"]
        for code, cls in sorted(errors.WIRE_CODES.items())
    ]
    assert [[row[0], row[1], row[2], row[4]] for row in rows] == expected
    assert len(rows) == len({row[0] for row in rows}) == 20


def test_unknown_error_codes_map_by_their_group() -> None:
    rows = table(section("The error codes"), "Unknown code", "Is taken as")
    assert len(rows) >= 7
    for cell, name in rows:
        first, last = (int(part) for part in cell.split("–"))
        unknown = [code for code in range(first, last + 1) if code not in errors.WIRE_CODES]
        assert unknown, cell
        for code in unknown:
            assert type(errors.from_wire(code, "")).__name__ == name, code


def test_chunk_grid_table() -> None:
    rows = table(section("The chunk grid"), "Size of the file", "Chunk", "Chunks")
    assert len(rows) >= 8
    for size, length, count in rows:
        grid = Grid.of(number(size))
        assert (grid.chunk, grid.count) == (number(length), number(count)), size


# --- Hex -----------------------------------------------------------------------------------------------


def frame_of(item: m.Message | bytes | Shown) -> Shown:
    if isinstance(item, Shown):
        return item
    return Shown(item if isinstance(item, bytes) else codec.encode(item))


def check_decodes(shown: Shown, item: m.Message | bytes | Shown) -> None:
    header = codec.decode_header(shown.frame)
    end = codec.HEADER_SIZE + codec.body_size(header)
    message = codec.decode_body(header, shown.frame[codec.HEADER_SIZE : end])
    if isinstance(item, Shown):
        assert isinstance(message, m.Data)
        assert len(shown.frame) - end + shown.length == message.length
    elif isinstance(item, bytes):
        assert isinstance(message, m.Unknown)
    else:
        assert message == item


def test_worked_example() -> None:
    titles = re.findall(r"^\*\*(\d+)\. (dialer|listener), ([A-Z_]+|an unknown frame)\.\*\*", text(), flags=re.M)
    shown = blocks(text(), "hex")
    frames = [codec.decode_header(Shown.of(block).frame).type for block in shown]
    assert [int(title[0]) for title in titles] == list(range(1, len(titles) + 1))
    names = [Type(type_).name if type_ in list(Type) else "an unknown frame" for type_ in frames]
    assert [title[2] for title in titles] == names
    assert len(shown) == len(example()) == 24
    for block, item in zip(shown, example(), strict=True):
        assert Shown.of(block) == frame_of(item), block
        check_decodes(Shown.of(block), item)


def test_worked_example_keeps_the_order_tables() -> None:
    """Each side's phases, and the entry's states, as the example walks through them."""
    titles = re.findall(r"^\*\*\d+\. (dialer|listener), ([A-Z_]+|an unknown frame)\.\*\*", text(), flags=re.M)
    starts = [at for at, title in enumerate(titles) if title == ("dialer", "HELLO")]
    assert starts == [0, 11]
    for first, last in zip(starts, [*starts[1:], len(titles)], strict=True):
        phase = {"dialer": Phase.START, "listener": Phase.START}
        state = State.OFFERED
        for who, name in titles[first:last]:
            if name == "an unknown frame":
                continue
            side = Side(who)
            if phase[who] is Phase.CONTROL:
                side = Side.SENDER if who == "dialer" else Side.RECEIVER
            phase[who] = LANE[side, phase[who]][Type[name]]
            if name in ("WANT", "DATA", "FINISH", "RECEIPT"):
                state = session.next_state(1, state, Type[name])
        assert phase == dict.fromkeys(phase, Phase.CONTROL if first == 0 else Phase.ENDED)
        assert state is (State.WANTED if first == 0 else State.ENDED)


def test_example_lines_name_the_fields() -> None:
    """The comments beside the bytes: one for each field, in the layout's order."""
    checked = 0
    for block, item in zip(blocks(text(), "hex"), example(), strict=True):
        if isinstance(item, bytes | Shown):
            continue
        names = re.findall(r"# (\w+) =", block)
        assert names == ["type", *item._fields], block
        checked += len(names)
    assert checked > 100


@pytest.mark.parametrize("type_", list(Type), ids=lambda t: t.name)
def test_frame_vector(type_: Type) -> None:
    found = re.findall(r"^([A-Z_]+): (.+)\n((?:[0-9a-f]+\n)+)", blocks(section("Frames"), "vectors")[0], flags=re.M)
    assert [name for name, _, _ in found] == [t.name for t in Type]
    frame = bytes.fromhex({name: hex_ for name, _, hex_ in found}[type_.name].replace("\n", ""))
    assert frame == frame_of(vectors()[type_]).frame
    check_decodes(Shown(frame), vectors()[type_])


def test_the_fingerprint_in_the_text() -> None:
    assert f"`{fingerprint(DIALER.public)}`" in section("Keys")


def test_the_lines_over_ssh() -> None:
    answer = ssh.Answer(40123, fingerprint(DIALER.public), KEY, "192.0.2.7")
    request, served, failed = (line.encode() for line in blocks(section("Started over ssh"), "ssh"))
    assert request == ssh.encode_request(ssh.Request(b"backup/photos", 30.0))
    assert b"\n" + served == ssh.encode_answer(answer)
    assert b"\n" + failed == ssh.encode_failure(7, "/srv/in: Permission denied")


def test_value_vectors() -> None:
    found = re.findall(r"^([^\n:]+):\n((?:  [0-9a-f]+\n)+)", blocks(section("Values"), "vectors")[0], flags=re.M)
    shown = {name: bytes.fromhex(re.sub(r"\s", "", hex_)) for name, hex_ in found}
    assert len(shown) == len(found) >= 20
    assert shown == values()


def test_the_compressed_chunk_of_the_document() -> None:
    """Made once: another version of the library may make another one, and all make the chunk of it."""
    assert compression.decompress(LINES_COMPRESSED, len(LINES)) == LINES


def test_tlv_table() -> None:
    rows = table(section("TLVs"), "Type", "Name", "In", "Value", "Meaning")
    assert [row[:4] for row in rows] == [[f"{m.TLV_ZSTD:#06x}", "ZSTD", "HELLO", "empty"]]


def test_the_journal_of_the_appendix_is_the_codes() -> None:
    peer = values()["peer id"]
    decoded = journal.decode(journal_example(peer))
    assert decoded is not None
    header, held = decoded
    assert (header.peer, header.path, header.tag) == (peer, b"inbox/blob.bin", TAG)
    assert (header.size, header.mtime_ns, header.inode) == (SIZE, MTIME_NS, 1234)
    assert list(held) == [(0, 2)]


def test_readers_of_this_module_can_fail() -> None:
    with pytest.raises(AssertionError):
        section("No such section")
    with pytest.raises(AssertionError):
        table(section("Limits"), "Name", "Worth")
    with pytest.raises(AssertionError):
        moves("HELLO, ERROR")
    assert Shown.of("01 # x\n0203 … 7 bytes\n") == Shown(b"\x01", b"\x02\x03", 7)
