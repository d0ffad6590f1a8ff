"""Messages to bytes and back: the one module that knows what the wire looks like.

A frame is a header of 16 bytes and a body (``protocol.md``, "Framing"). ``LAYOUTS`` says how each message's
fields become its body, in order; encoding and decoding both walk it, so they cannot disagree.

Decoding raises ``ProtocolError`` for bytes that break a rule, ``LinkLost`` for a wrong frame check, and
nothing else, whatever the bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple

import xxhash

from ftx.errors import LinkLost, NotFtx, ProtocolError, Unsupported
from ftx.protocol import messages as m
from ftx.protocol.manifest import MAX_CHUNK, Buffer, DigestName, Kind
from ftx.protocol.messages import Type

HEADER = struct.Struct("!BBHIQ")  # type, flags, reserved, body length, check
HEADER_SIZE = HEADER.size
_CHECKED = 8  # bytes of the header that the check covers: all before itself
_START = struct.Struct("!BBHI")  # the part of the header that the check covers
_DATA = struct.Struct("!QQ16s")
_DATA_SIZE = _DATA.size
DATA_PREFIX = HEADER_SIZE + _DATA.size  #: bytes in front of a DATA frame's payload
_DATA_FRAME = struct.Struct(HEADER.format + _DATA.format.removeprefix("!"))


# --- Field kinds: how one field becomes bytes ----------------------------------------------------------


class _Reader:
    """Takes typed values off the front of a body; every read is checked against what is left."""

    __slots__ = ("_data", "_what", "at")

    def __init__(self, data: Buffer, what: str) -> None:
        self._data = bytes(data)
        self.at = 0
        self._what = what

    def take(self, length: int) -> bytes:
        end = self.at + length
        value = self._data[self.at : end]
        if len(value) != length:
            raise ProtocolError(f"{self._what} is cut short: {length} bytes wanted at {self.at}")
        self.at = end
        return value

    def number(self, form: struct.Struct) -> int:
        value: int = self.numbers(form)[0]
        return value

    def numbers(self, form: struct.Struct) -> tuple[Any, ...]:
        """Several fields at once."""
        try:
            values = form.unpack_from(self._data, self.at)
        except struct.error:
            raise ProtocolError(f"{self._what} is cut short: {form.size} bytes wanted at {self.at}") from None
        self.at += form.size
        return values

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def check_end(self) -> None:
        if self.at != len(self._data):
            raise ProtocolError(f"{self._what} has {len(self._data) - self.at} bytes too many")

    def bad(self, why: str) -> ProtocolError:
        return ProtocolError(f"{self._what}: {why}")


class Field(NamedTuple):
    """How one field is written and read. ``doc`` is its name in ``protocol.md``'s layout tables."""

    doc: str
    write: Callable[[Any], bytes]
    read: Callable[[_Reader], Any]
    code: str = ""  #: of ``struct``, where the field is a number and nothing more
    kind: type[IntEnum] | None = None  #: what the numbers stand for


def _number(doc: str, code: str) -> Field:
    form = struct.Struct("!" + code)
    return Field(doc, form.pack, lambda r: r.number(form), code)


U8, U16, U32, U64 = (_number(f"u{bits}", code) for bits, code in ((8, "B"), (16, "H"), (32, "I"), (64, "Q")))
I64 = _number("i64", "q")


def _enum(kind: type[IntEnum], base: Field) -> Field:
    def read(r: _Reader) -> IntEnum:
        value = base.read(r)
        try:
            return kind(value)
        except ValueError:
            raise r.bad(f"{value} is no {kind.__name__.lower()}") from None

    return Field(base.doc, lambda value: base.write(int(value)), read, base.code, kind)


def _fixed(size: int) -> Field:
    def write(value: bytes) -> bytes:
        if len(value) != size:
            raise ValueError(f"{len(value)} bytes where {size} belong")
        return value

    return Field(f"{size} bytes", write, lambda r: r.take(size))


def _counted(count: Field, most: int) -> Field:
    def write(value: bytes) -> bytes:
        if len(value) > most:
            raise ValueError(f"{len(value)} bytes where {most} are the most")
        return count.write(len(value)) + value

    def read(r: _Reader) -> bytes:
        length = count.read(r)
        if length > most:
            raise r.bad(f"a field of {length} bytes where {most} are the most")
        return r.take(length)

    return Field(f"bytes({count.doc}, {most})", write, read)


def _text(most: int) -> Field:
    inner = _counted(U16, most)

    def write(value: str) -> bytes:
        # A message for people is cut to the limit rather than refused, on a character's edge.
        return inner.write(value.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").encode())

    return Field(f"text(u16, {most})", write, lambda r: bytes(inner.read(r)).decode("utf-8", "replace"))


def _list(count: Field, most: int, record: type, fields: tuple[Field, ...]) -> Field:
    names: tuple[str, ...] = record._fields  # type: ignore[attr-defined]
    all_numbers = struct.Struct("!" + "".join(field.code for field in fields)) if all(f.code for f in fields) else None
    members = {at: {int(one): one for one in field.kind} for at, field in enumerate(fields) if field.kind}

    def write(values: tuple[Any, ...]) -> bytes:
        if len(values) > most:
            raise ValueError(f"{len(values)} items where {most} are the most")
        parts = [count.write(len(values))]
        if all_numbers is not None:
            parts += [all_numbers.pack(*value) for value in values]
            return b"".join(parts)
        for value in values:
            parts += [field.write(getattr(value, name)) for field, name in zip(fields, names, strict=True)]
        return b"".join(parts)

    def read(r: _Reader) -> tuple[Any, ...]:
        n = count.read(r)
        if n > most:
            raise r.bad(f"a list of {n} where {most} are the most")
        if all_numbers is None or not n:
            return tuple([record(*[field.read(r) for field in fields]) for _ in range(n)])
        columns: list[Iterable[Any]] = list(zip(*all_numbers.iter_unpack(r.take(n * all_numbers.size)), strict=True))
        for at, known in members.items():
            for value in set(columns[at]) - known.keys():
                raise r.bad(f"{value} is no {names[at]}")
            columns[at] = map(known.__getitem__, columns[at])
        return tuple(map(record, *columns))

    return Field(f"list({count.doc}, {most}) of {record.__name__}", write, read)


def _numbers(most: int) -> Field:
    """A list of u64, as many as there may be entries in one message."""

    def write(values: tuple[int, ...]) -> bytes:
        if len(values) > most:
            raise ValueError(f"{len(values)} items where {most} are the most")
        return struct.pack(f"!H{len(values)}Q", len(values), *values)

    def read(r: _Reader) -> tuple[int, ...]:
        n = U16.read(r)
        if n > most:
            raise r.bad(f"a list of {n} where {most} are the most")
        return r.numbers(struct.Struct(f"!{n}Q"))

    return Field(f"list(u16, {most}) of u64", write, read)


FIXED16, FIXED32 = _fixed(16), _fixed(32)
DIGEST = _enum(DigestName, U8)
ROOT = _counted(U8, 32)
PATH = _counted(U16, m.MAX_PATH)
MESSAGE = _text(m.MAX_MESSAGE)

#: Layouts of the records inside lists, by class, in the order of their fields.
RECORDS: dict[type, tuple[Field, ...]] = {
    m.Tlv: (U16, _counted(U16, m.MAX_TLV_VALUE)),
    m.ProofItem: (U8, FIXED32),
    m.SkipItem: (U64, _enum(m.SkipReason, U8)),
    m.Range: (U64, U64),
    m.RefuseItem: (U64, U16, MESSAGE),
    m.ReceiptItem: (U64, U8, ROOT),
}
TLVS = _list(U8, m.MAX_TLVS, m.Tlv, RECORDS[m.Tlv])
RECORDS[m.Offered] = (
    _enum(Kind, U8), _counted(U16, m.MAX_NAME), U64, U64, U32, I64, FIXED16, PATH, TLVS,
)  # fmt: skip
RANGES = _list(U16, m.MAX_RANGES, m.Range, RECORDS[m.Range])


_OFFERED_HEAD = struct.Struct("!BH")  # kind, bytes of the name
_OFFERED_REST = struct.Struct("!QQIq16sHB")  # size, allocated, mode, mtime_ns, tag, bytes of the target, TLVs


def _offers(most: int) -> Field:
    """``list of Offered``, as ``RECORDS`` says: where there are a million entries, this is where they pass.

    An entry without link and TLVs, nearly all of them, is three calls; the others go field by field.
    """
    by_field = _list(U16, most, m.Offered, RECORDS[m.Offered])
    one = RECORDS[m.Offered]
    names = m.Offered._fields

    def write(values: tuple[m.Offered, ...]) -> bytes:
        if len(values) > most:
            raise ValueError(f"{len(values)} items where {most} are the most")
        parts = [U16.write(len(values))]
        for value in values:
            name = value.name
            if value.target or value.tlvs or len(name) > m.MAX_NAME or len(value.tag) != _TAG_SIZE:
                parts += [field.write(getattr(value, name)) for field, name in zip(one, names, strict=True)]
                continue
            parts.append(_OFFERED_HEAD.pack(value.kind, len(name)))
            parts.append(name)
            parts.append(_OFFERED_REST.pack(value.size, value.allocated, value.mode, value.mtime_ns, value.tag, 0, 0))
        return b"".join(parts)

    def read(r: _Reader) -> tuple[m.Offered, ...]:
        n = U16.read(r)
        if n > most:
            raise r.bad(f"a list of {n} where {most} are the most")
        found = []
        for _ in range(n):
            start = r.at
            kind, length = r.numbers(_OFFERED_HEAD)
            name = r.take(length)
            size, allocated, mode, mtime_ns, tag, target, tlvs = r.numbers(_OFFERED_REST)
            if target or tlvs or kind not in _KINDS or length > m.MAX_NAME:
                r.at = start
                found.append(m.Offered(*[field.read(r) for field in one]))
                continue
            found.append(m.Offered(_KINDS[kind], name, size, allocated, mode, mtime_ns, tag))
        return tuple(found)

    return Field(by_field.doc, write, read)


def _receipts(most: int) -> Field:
    """``list of ReceiptItem``, as ``RECORDS`` says: with root digests of 16 bytes, as nearly always, in one go."""
    by_field = _items(m.ReceiptItem, most)

    def write(values: tuple[m.ReceiptItem, ...]) -> bytes:
        if len(values) > most or not all([len(root) == _ROOT_SIZE for _, _, root in values]):
            return by_field.write(values)
        pack = _RECEIPT.pack
        return U16.write(len(values)) + b"".join(
            [pack(entry, flags, _ROOT_SIZE, root) for entry, flags, root in values]
        )

    def read(r: _Reader) -> tuple[m.ReceiptItem, ...]:
        start = r.at
        n = U16.read(r)
        if 0 < n <= most and r.left == n * _RECEIPT.size:
            entries, flags, sizes, roots = zip(*_RECEIPT.iter_unpack(r.take(r.left)), strict=True)
            if set(sizes) == {_ROOT_SIZE}:
                return tuple(map(m.ReceiptItem, entries, flags, roots))
        r.at = start
        found: tuple[m.ReceiptItem, ...] = by_field.read(r)
        return found

    return Field(by_field.doc, write, read)


_ROOT_SIZE = 16
_RECEIPT = struct.Struct(f"!QBB{_ROOT_SIZE}s")  # entry, flags, bytes of the root, root
_TAG_SIZE = 16
_KINDS = {int(kind): kind for kind in Kind}


def _items(record: type, most: int) -> Field:
    return _list(U16, most, record, RECORDS[record])


#: Type -> (message class, its fields in order). DATA is not here: its payload is not in its body's fields.
LAYOUTS: dict[int, tuple[type, tuple[Field, ...]]] = {
    Type.HELLO: (m.Hello, (_fixed(4), U16, U16, FIXED32, FIXED32, TLVS)),
    Type.PROOF: (m.Proof, (_counted(U16, 128), _list(U8, m.MAX_PROOFS, m.ProofItem, RECORDS[m.ProofItem]), TLVS)),
    Type.OPEN: (
        m.Open,
        (FIXED16, FIXED16, FIXED32, _enum(m.Role, U8), _enum(m.Mode, U8), U8, U32, DIGEST, PATH, TLVS),
    ),
    Type.OPENED: (m.Opened, (U8, U32, TLVS)),
    Type.ATTACH: (m.Attach, (FIXED16, U8)),
    Type.ATTACHED: (m.Attached, ()),
    Type.PAIR: (m.Pair, (FIXED32, TLVS)),
    Type.FOLDER: (m.Folder, (PATH, U64, _offers(m.MAX_FOLDER_ENTRIES))),
    Type.FOLDER_END: (m.FolderEnd, (PATH, U8)),
    Type.SKIP: (m.Skip, (_items(m.SkipItem, m.MAX_ANSWERS),)),
    Type.WANT: (m.Want, (U64, U64, RANGES)),
    Type.WANT_ALL: (m.WantAll, (_numbers(m.MAX_ANSWERS),)),
    Type.REFUSE: (m.Refuse, (_items(m.RefuseItem, m.MAX_ANSWERS),)),
    Type.ASK_DIGESTS: (m.AskDigests, (U64, DIGEST, U64, U32)),
    Type.DIGESTS: (m.Digests, (U64, DIGEST, U64, _counted(U32, m.MAX_ASKED * 32))),
    Type.ZEROS: (m.Zeros, (U64, RANGES)),
    Type.FINISH: (m.Finish, (U64, ROOT)),
    Type.RECEIPT: (m.Receipt, (_receipts(m.MAX_ANSWERS),)),
    Type.CANCEL: (m.Cancel, (U64, U16, MESSAGE)),
    Type.PING: (m.Ping, ()),
    Type.BUSY: (m.Busy, (U64,)),
    Type.PAUSE: (m.Pause, (U16, MESSAGE)),
    Type.RESUME: (m.Resume, ()),
    Type.BYE: (m.Bye, (U64, U64, U64)),
    Type.ERROR: (m.Error, (U16, MESSAGE)),
    Type.STEP: (m.Step, (U64, U8, U64)),
    Type.SAMPLE: (m.Sample, ()),
    Type.MEASURED: (m.Measured, (U64, U64, U64, U64, U64, U64)),
}
TYPE_OF: dict[type, Type] = {cls: Type(type_) for type_, (cls, _) in LAYOUTS.items()} | {m.Data: Type.DATA}

#: Types that a receiver which does not know them may skip.
OPTIONAL = frozenset({Type.PING, Type.BUSY})


# --- Frames --------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """A decoded frame header. ``checked`` is the part of it that the check covers."""

    type: int
    flags: int
    length: int
    check: int
    checked: bytes


DAMAGED = "a frame arrived damaged (wrong frame check)"
_DATA_TYPE = int(Type.DATA)
#: Flags of a DATA: [compressed][final].
_DATA_FLAGS = tuple((m.CRITICAL | more, m.CRITICAL | m.FINAL | more) for more in (0, m.COMPRESSED))


def _frame(type_: int, flags: int, body: bytes) -> bytes:
    start = HEADER.pack(type_, flags, 0, len(body), 0)[:_CHECKED]
    return start + xxhash.xxh3_64_digest(start + body) + body


def encode(message: m.Message) -> bytes:
    """The whole frame of ``message``, which is not DATA.

    Raises:
        ValueError, struct.error: a field is outside its limits (a bug on this side).
    """
    type_ = TYPE_OF[type(message)]
    _, fields = LAYOUTS[type_]
    body = b"".join([field.write(value) for field, value in zip(fields, message, strict=True)])
    if len(body) > m.MAX_BODY[type_]:
        raise ValueError(f"{type_.name} of {len(body)} bytes where {m.MAX_BODY[type_]} are the most")
    return _frame(type_, 0 if type_ in OPTIONAL else m.CRITICAL, body)


def encode_data(
    entry: int, index: int, digest: bytes, length: int, *, final: bool = False, compressed: bool = False
) -> bytes:
    """What goes in front of a chunk's payload of ``length`` bytes: ``DATA_PREFIX`` bytes.

    The check covers the header and the body up to the payload; the payload has its digest there.
    """
    prefix = _DATA.pack(entry, index, digest)
    start = _START.pack(_DATA_TYPE, _DATA_FLAGS[compressed][final], 0, _DATA_SIZE + length)
    return start + xxhash.xxh3_64_digest(start + prefix) + prefix


def encode_grease(number: int, value: bytes) -> bytes:
    """An optional frame that nobody knows, so that skipping one keeps working everywhere."""
    return _frame(m.GREASE_FIRST + number % (m.GREASE_LAST - m.GREASE_FIRST + 1), 0, value)


def decode_header(data: Buffer) -> Header:
    """The header in the first 16 bytes of ``data``, its length checked against the type's limit.

    Nothing is trusted yet: the check can only be verified once the body is there.
    """
    type_, flags, _, length, check = HEADER.unpack_from(data)
    if type_ == Type.DATA:
        most = m.MAX_BODY[type_] + MAX_CHUNK
        if length < _DATA.size:
            raise ProtocolError(f"DATA is cut short: {length} bytes")
    else:
        most = m.MAX_BODY.get(type_, m.MAX_UNKNOWN_BODY)
    if length > most:
        raise ProtocolError(f"frame of type {type_:#04x} with {length} bytes where {most} are the most")
    return Header(type_, flags, length, check, bytes(data[:_CHECKED]))


def body_size(header: Header) -> int:
    """Bytes that ``decode_body`` needs: the whole body, or in DATA what is in front of the payload."""
    return _DATA.size if header.type == Type.DATA else header.length


def decode_body(header: Header, body: Buffer) -> m.Message | m.Unknown:
    """The message of a frame.

    Raises:
        LinkLost: the frame check is wrong: the bytes were damaged on the way (G4).
        Unsupported: a critical frame of an unknown type.
        ProtocolError: the body breaks its layout.
    """
    if xxhash.xxh3_64_intdigest(header.checked + bytes(body)) != header.check:
        raise LinkLost(DAMAGED)
    if header.type == Type.DATA:
        entry, index, digest = _DATA.unpack(body)
        length, flags = header.length - _DATA.size, header.flags
        return m.Data(entry, index, digest, length, flags & m.FINAL != 0, flags & m.COMPRESSED != 0)
    layout = LAYOUTS.get(header.type)
    if layout is None:
        if header.flags & m.CRITICAL:
            raise Unsupported(f"the peer sent a critical frame of the unknown type {header.type:#04x}")
        return m.Unknown(header.type)
    cls, fields = layout
    reader = _Reader(body, Type(header.type).name)
    values = [field.read(reader) for field in fields]
    reader.check_end()
    message: m.Message = cls(*values)
    if (tlvs := getattr(message, "tlvs", None)) is not None:
        check_tlvs(tlvs)
    return message


def data_in(buffer: bytearray, start: int, stop: int) -> m.Data | None:
    """The frame that begins at ``start``, if it is a DATA and lies, with its payload, before ``stop``; else None.

    What ``decode_header`` and ``decode_body`` say of it in two steps, for small files, which come by the thousand.

    Raises:
        LinkLost: the frame check is wrong.
    """
    if stop - start < DATA_PREFIX or buffer[start] != _DATA_TYPE:
        return None
    _, flags, _, length, check, entry, index, digest = _DATA_FRAME.unpack_from(buffer, start)
    length -= _DATA.size
    if not 0 <= length <= stop - start - DATA_PREFIX:
        return None
    checked = buffer[start : start + _CHECKED] + buffer[start + HEADER_SIZE : start + DATA_PREFIX]
    if xxhash.xxh3_64_intdigest(checked) != check:
        raise LinkLost(DAMAGED)
    return m.Data(entry, index, digest, length, flags & m.FINAL != 0, flags & m.COMPRESSED != 0)


def check_tlvs(tlvs: tuple[m.Tlv, ...]) -> None:
    """This version knows no critical TLV, so each is refused by name; an optional one is for who knows it."""
    for tlv in tlvs:
        if tlv.type & m.CRITICAL_TLV:
            raise Unsupported(f"the peer needs the unknown capability {tlv.type:#06x}")


#: A listener may refuse before it greets; the length of an ERROR fits in the last two of its four bytes.
_ERROR_START = HEADER.pack(Type.ERROR, m.CRITICAL, 0, 0, 0)[:6]

_OTHERS = (
    (b"SSH-", "an ssh server"),
    (b"HTTP/", "a web server"),
    (b"220", "a mail or FTP server"),
    (b"@RSYNCD", "an rsync daemon"),
    (b"GET ", "a web browser"),
    (b"POST ", "a web client"),
)


def check_first_bytes(data: bytes) -> None:
    """Tell ftx from everything else that may answer on a port, by the first bytes of the connection.

    ``data`` is what has arrived, at least one byte. The first eight bytes of a plain HELLO are its type,
    flags, reserved and length, and its body starts with the magic.

    Raises:
        NotFtx: with what it looks like, where that can be told.
    """
    if data[:1] == b"\x16":
        raise NotFtx("the peer speaks TLS, and this side does not")
    body = data[HEADER_SIZE : HEADER_SIZE + len(m.MAGIC)]
    if data[0] == Type.HELLO and m.MAGIC.startswith(body):
        return
    if _ERROR_START.startswith(data[:6]):
        return
    for start, what in _OTHERS:
        if data.startswith(start):
            raise NotFtx(f"this is {what}, not ftx")
    raise NotFtx("what answers there does not speak ftx")
