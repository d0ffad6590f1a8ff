"""Every message to bytes and back, and every decoder on bytes that were cut, stretched and damaged."""

from __future__ import annotations

import random
import struct

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ftx.errors import LinkLost, NotFtx, ProtocolError, Unsupported
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.protocol.manifest import MAX_CHUNK, DigestName, Kind
from ftx.protocol.messages import Type

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=25)

U8, U16, U32, U64 = (2**bits - 1 for bits in (8, 16, 32, 64))
N16, N32 = bytes(range(16)), bytes(range(32))


def encode(message: m.Message) -> bytes:
    """The frame, without DATA's payload."""
    if isinstance(message, m.Data):
        flags = {"final": message.final, "compressed": message.compressed}
        return codec.encode_data(message.entry, message.index, message.digest, message.length, **flags)
    return codec.encode(message)


# --- Samples: each field of each message at its least and its most ----------------------------------------

TLV = m.Tlv(0x7FFF, b"\xff" * 9)
LEAST_OFFERED = m.Offered(Kind.FILE, b"", 0, 0, 0, -(2**63), bytes(16))
MOST_OFFERED = m.Offered(
    Kind.SYMLINK, b"n" * m.MAX_NAME, U64, U64, U32, 2**63 - 1, b"\xff" * 16, b"t" * m.MAX_PATH, (TLV,) * m.MAX_TLVS
)
RANGE = m.Range(U64, U64)

#: Type -> (a message with everything small, one with everything large).
SAMPLES: dict[Type, tuple[m.Message, m.Message]] = {
    Type.HELLO: (
        m.Hello(bytes(4), 0, 0, bytes(32), bytes(32)),
        m.Hello(m.MAGIC, U16, U16, b"\xff" * 32, N32, (m.Tlv(0, b""), m.Tlv(1, b"v" * m.MAX_TLV_VALUE), *(TLV,) * 30)),
    ),
    Type.PROOF: (m.Proof(b"", ()), m.Proof(b"s" * 128, (m.ProofItem(m.Method.SECRET, N32),) * 4, (TLV,) * 32)),
    Type.OPEN: (
        m.Open(bytes(16), bytes(16), bytes(32), m.Role.SENDER, m.Mode.TRANSFER, 0, 0, DigestName.XXH3_128, b""),
        m.Open(
            N16, N16, N32, m.Role.RECEIVER, m.Mode.TRANSFER, U8, U32, DigestName.SHA_256, b"f" * m.MAX_PATH, (TLV,) * 32
        ),
    ),
    Type.OPENED: (m.Opened(0, 0), m.Opened(U8, U32, (TLV,) * 32)),
    Type.ATTACH: (m.Attach(bytes(16), 0), m.Attach(b"\xff" * 16, U8)),
    Type.ATTACHED: (m.Attached(), m.Attached()),
    Type.PAIR: (m.Pair(bytes(32)), m.Pair(b"\xff" * 32, (TLV,) * 32)),
    Type.FOLDER: (m.Folder(b"", 0, ()), m.Folder(b"p" * m.MAX_PATH, U64, (LEAST_OFFERED, MOST_OFFERED))),
    Type.FOLDER_END: (m.FolderEnd(b"", 0), m.FolderEnd(b"p" * m.MAX_PATH, U8)),
    Type.SKIP: (m.Skip(()), m.Skip((m.SkipItem(U64, m.SkipReason.SAME), m.SkipItem(0, m.SkipReason.KEPT)))),
    Type.WANT: (m.Want(0, 0, ()), m.Want(U64, U64, (m.Range(0, 0), RANGE))),
    Type.REFUSE: (m.Refuse(()), m.Refuse((m.RefuseItem(U64, U16, "é" * 512), m.RefuseItem(0, 0, "")))),
    Type.ASK_DIGESTS: (
        m.AskDigests(0, DigestName.XXH3_128, 0, 0),
        m.AskDigests(U64, DigestName.SHA_256, U64, U32),
    ),
    Type.DIGESTS: (m.Digests(0, DigestName.XXH3_128, 0, b""), m.Digests(U64, DigestName.SHA_256, U64, N32 * 3)),
    Type.WANT_ALL: (m.WantAll(()), m.WantAll((U64,) * (m.MAX_ANSWERS - 1) + (0,))),
    Type.DATA: (m.Data(0, 0, bytes(16), 0), m.Data(U64, U64, b"\xff" * 16, MAX_CHUNK, True, True)),
    Type.ZEROS: (m.Zeros(0, ()), m.Zeros(U64, (RANGE, RANGE))),
    Type.FINISH: (m.Finish(0, b""), m.Finish(U64, N32)),
    Type.RECEIPT: (m.Receipt(()), m.Receipt((m.ReceiptItem(U64, U8, N32), m.ReceiptItem(0, 0, b"")))),
    Type.CANCEL: (m.Cancel(0, 0, ""), m.Cancel(U64, U16, "m" * m.MAX_MESSAGE)),
    Type.PING: (m.Ping(), m.Ping()),
    Type.BUSY: (m.Busy(0), m.Busy(U64)),
    Type.PAUSE: (m.Pause(0, ""), m.Pause(U16, "😀" * 256)),
    Type.RESUME: (m.Resume(), m.Resume()),
    Type.BYE: (m.Bye(0, 0, 0), m.Bye(U64, U64, U64)),
    Type.ERROR: (m.Error(0, ""), m.Error(U16, "m" * m.MAX_MESSAGE)),
    Type.STEP: (m.Step(0, 0, 0), m.Step(U64, U8, U64)),
    Type.SAMPLE: (m.Sample(), m.Sample()),
    Type.MEASURED: (m.Measured(0, 0, 0, 0, 0, 0), m.Measured(*(U64,) * 6)),
}

#: Lists with as many items as they may have.
FULL = (
    m.Folder(b"", 1, (LEAST_OFFERED,) * m.MAX_FOLDER_ENTRIES),
    m.Skip((m.SkipItem(U64, m.SkipReason.SAME),) * m.MAX_ANSWERS),
    m.Want(1, 0, (RANGE,) * m.MAX_RANGES),
    m.Refuse((m.RefuseItem(U64, U16, "why " * 12),) * m.MAX_ANSWERS),
    m.Digests(1, DigestName.SHA_256, 0, N32 * m.MAX_ASKED),
    m.Zeros(1, (RANGE,) * m.MAX_RANGES),
    m.Receipt((m.ReceiptItem(U64, U8, N32),) * m.MAX_ANSWERS),
)

#: Small bodies with something in every field, to be cut and damaged byte by byte.
LIVELY: dict[Type, m.Message] = {
    type_: message for type_, (_, message) in SAMPLES.items() if len(encode(message)) > codec.HEADER_SIZE
} | {
    Type.HELLO: m.Hello(m.MAGIC, 1, 1, N32, N32, (m.Tlv(1, b"ab"), m.Tlv(2, b""))),
    Type.PROOF: m.Proof(b"sign", (m.ProofItem(m.Method.SECRET, N32), m.ProofItem(m.Method.OPEN, N32)), (TLV,)),
    Type.OPEN: m.Open(N16, N16, N32, m.Role.SENDER, m.Mode.TRANSFER, 4, 9, DigestName.SHA_256, b"in", (TLV,)),
    Type.OPENED: m.Opened(4, 64, (TLV,)),
    Type.PAIR: m.Pair(N32, (TLV,)),
    Type.FOLDER: m.Folder(
        b"a/b",
        7,
        (
            m.Offered(Kind.FILE, b"n", 5, 5, 0o644, -1, N16),
            m.Offered(Kind.SYMLINK, b"l", 0, 0, 0, 9, N16, b"t", (TLV,)),
        ),
    ),
    Type.FOLDER_END: m.FolderEnd(b"a/b", 1),
    Type.REFUSE: m.Refuse((m.RefuseItem(3, 50, "é full"), m.RefuseItem(4, 51, ""))),
    Type.WANT_ALL: m.WantAll((3, 2**40)),
    Type.CANCEL: m.Cancel(4, 34, "it changed"),
    Type.PAUSE: m.Pause(50, "disk full"),
    Type.ERROR: m.Error(64, "no"),
}


def name_of(value: object) -> str:
    return value.name if isinstance(value, Type) else type(value).__name__


def sealed(type_: int, body: bytes, *, flags: int = m.CRITICAL, reserved: int = 0, length: int | None = None) -> bytes:
    """A frame with a right check, made here and not by the codec."""
    start = struct.pack("!BBHI", type_, flags, reserved, len(body) if length is None else length)
    covered = body[:32] if type_ == Type.DATA else body
    return start + xxhash.xxh3_64_digest(start + covered) + body


def decode(frame: bytes) -> m.Message | m.Unknown:
    """As a lane does: the header, then as much as it says (what is not there is zeros)."""
    header = codec.decode_header(frame[: codec.HEADER_SIZE])
    size = codec.body_size(header)
    assert size <= max(m.MAX_BODY.values())
    return codec.decode_body(header, frame[codec.HEADER_SIZE :][:size].ljust(size, b"\0"))


# --- Round trips ---------------------------------------------------------------------------------------


def test_the_samples_cover_every_type() -> None:
    assert list(SAMPLES) == list(Type)
    assert set(m.MAX_BODY) == set(Type)
    assert set(codec.LAYOUTS) == set(Type) - {Type.DATA}
    for type_, pair in SAMPLES.items():
        assert {codec.TYPE_OF[type(message)] for message in pair} == {type_}


@pytest.mark.parametrize("type_", Type, ids=name_of)
def test_round_trip_of_least_and_most(type_: Type) -> None:
    for message in SAMPLES[type_]:
        frame = encode(message)
        assert frame[0] == type_
        assert decode(frame) == message


@pytest.mark.parametrize("message", FULL, ids=name_of)
def test_round_trip_of_full_lists(message: m.Message) -> None:
    assert decode(encode(message)) == message


def numbers(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most)


def sized(most: int) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=min(most, 40))


u8, u16, u32, u64, i64 = numbers(U8), numbers(U16), numbers(U32), numbers(U64), st.integers(-(2**63), 2**63 - 1)
b16, b32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
path, text = sized(m.MAX_PATH), st.text("aé√😀\0 \n", max_size=20)
digest, method = st.sampled_from(DigestName), st.sampled_from(m.Method)


def several(items: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(items, max_size=4).map(tuple)


tlvs = several(st.builds(m.Tlv, numbers(m.CRITICAL_TLV - 1), sized(m.MAX_TLV_VALUE)))
any_tlvs = several(st.builds(m.Tlv, u16, sized(m.MAX_TLV_VALUE)))
ranges = several(st.builds(m.Range, u64, u64))
offered = st.builds(m.Offered, st.sampled_from(Kind), sized(m.MAX_NAME), u64, u64, u32, i64, b16, path, any_tlvs)

MESSAGES: dict[Type, st.SearchStrategy[m.Message]] = {
    Type.HELLO: st.builds(m.Hello, st.binary(min_size=4, max_size=4), u16, u16, b32, b32, tlvs),
    Type.PROOF: st.builds(m.Proof, sized(128), several(st.builds(m.ProofItem, method, b32)), tlvs),
    Type.OPEN: st.builds(
        m.Open, b16, b16, b32, st.sampled_from(m.Role), st.sampled_from(m.Mode), u8, u32, digest, path, tlvs
    ),
    Type.OPENED: st.builds(m.Opened, u8, u32, tlvs),
    Type.ATTACH: st.builds(m.Attach, b16, u8),
    Type.PAIR: st.builds(m.Pair, b32, tlvs),
    Type.FOLDER: st.builds(m.Folder, path, u64, several(offered)),
    Type.FOLDER_END: st.builds(m.FolderEnd, path, u8),
    Type.SKIP: st.builds(m.Skip, several(st.builds(m.SkipItem, u64, st.sampled_from(m.SkipReason)))),
    Type.WANT: st.builds(m.Want, u64, u64, ranges),
    Type.REFUSE: st.builds(m.Refuse, several(st.builds(m.RefuseItem, u64, u16, text))),
    Type.ASK_DIGESTS: st.builds(m.AskDigests, u64, digest, u64, u32),
    Type.DIGESTS: st.builds(m.Digests, u64, digest, u64, sized(m.MAX_ASKED * 32)),
    Type.WANT_ALL: st.builds(m.WantAll, several(u64)),
    Type.DATA: st.builds(m.Data, u64, u64, b16, numbers(MAX_CHUNK), st.booleans()),
    Type.ZEROS: st.builds(m.Zeros, u64, ranges),
    Type.FINISH: st.builds(m.Finish, u64, sized(32)),
    Type.RECEIPT: st.builds(m.Receipt, several(st.builds(m.ReceiptItem, u64, u8, b32))),
    Type.CANCEL: st.builds(m.Cancel, u64, u16, text),
    Type.BUSY: st.builds(m.Busy, u64),
    Type.PAUSE: st.builds(m.Pause, u16, text),
    Type.BYE: st.builds(m.Bye, u64, u64, u64),
    Type.ERROR: st.builds(m.Error, u16, text),
}


@pytest.mark.parametrize("type_", MESSAGES, ids=name_of)
def test_round_trip_of_any_message(type_: Type) -> None:
    @PURE
    @given(MESSAGES[type_])
    def check(message: m.Message) -> None:
        assert decode(encode(message)) == message

    check()


def test_only_signs_of_life_are_optional() -> None:
    """A receiver that does not know a type may skip it only where its meaning allows that (G12)."""
    flags = {type_: encode(pair[0])[1] for type_, pair in SAMPLES.items()}
    assert {type_ for type_, flag in flags.items() if not flag & m.CRITICAL} == {Type.PING, Type.BUSY}
    assert set(flags.values()) == {0, m.CRITICAL}


def test_texts_are_cut_between_characters() -> None:
    sent = m.Error(1, "é" * m.MAX_MESSAGE)
    assert decode(codec.encode(sent)) == m.Error(1, "é" * (m.MAX_MESSAGE // 2))
    odd = m.Error(1, "a" + "é" * m.MAX_MESSAGE)
    assert decode(codec.encode(odd)) == m.Error(1, "a" + "é" * (m.MAX_MESSAGE // 2 - 1))


def test_texts_need_not_be_utf8() -> None:
    assert decode(codec.encode(m.Error(1, "a\udcff"))) == m.Error(1, "a?")
    assert decode(sealed(Type.ERROR, b"\0\1\0\2a\xff")) == m.Error(1, "a\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    "message",
    [
        m.Attach(bytes(15), 1),
        m.Attach(bytes(17), 1),
        m.Finish(1, bytes(33)),
        m.FolderEnd(bytes(m.MAX_PATH + 1), 0),
        m.Folder(b"", 1, (m.Offered(Kind.FILE, bytes(m.MAX_NAME + 1), 0, 0, 0, 0, N16),)),
        m.Want(1, 0, (RANGE,) * (m.MAX_RANGES + 1)),
        m.Skip((m.SkipItem(1, m.SkipReason.SAME),) * (m.MAX_ANSWERS + 1)),
        m.WantAll((1,) * (m.MAX_ANSWERS + 1)),
        m.Opened(1, 1, (TLV,) * (m.MAX_TLVS + 1)),
        m.Opened(1, 1, (m.Tlv(1, bytes(m.MAX_TLV_VALUE)),) * 4),  # each within its limit, the body is not
    ],
    ids=name_of,
)
def test_encoding_refuses_what_no_decoder_would_take(message: m.Message) -> None:
    with pytest.raises(ValueError):
        codec.encode(message)


# --- Damage on the way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", Type, ids=name_of)
def test_g4_each_damaged_byte_is_noticed(type_: Type) -> None:
    """A wrong frame check is a lost link; a length that no such frame has is refused before that."""
    frame = encode(LIVELY.get(type_, SAMPLES[type_][0]))
    for at in range(len(frame)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[at] ^= flip
            with pytest.raises((LinkLost, ProtocolError)) as caught:
                decode(bytes(damaged))
            if at not in (0, 4, 5, 6, 7):  # in all but the type and the length the check tells
                assert caught.type is LinkLost


@pytest.mark.parametrize("type_", LIVELY, ids=name_of)
def test_g4_a_frame_that_lost_its_end_is_a_lost_link(type_: Type) -> None:
    frame = encode(LIVELY[type_])
    header = codec.decode_header(frame)
    for end in range(codec.HEADER_SIZE, len(frame)):
        with pytest.raises(LinkLost):
            codec.decode_body(header, frame[codec.HEADER_SIZE : end])


def test_g4_the_check_of_data_covers_all_but_the_payload() -> None:
    frame = codec.encode_data(7, 9, N16, 1000)
    assert len(frame) == codec.DATA_PREFIX
    header = codec.decode_header(frame)
    assert header.length == codec.DATA_PREFIX - codec.HEADER_SIZE + 1000
    assert codec.body_size(header) == codec.DATA_PREFIX - codec.HEADER_SIZE
    assert decode(frame + b"\xff" * 1000) == decode(frame + b"\0" * 1000) == m.Data(7, 9, N16, 1000)


@pytest.mark.parametrize("compressed", [False, True], ids=["", "compressed"])
@pytest.mark.parametrize("final", [False, True], ids=["", "final"])
def test_a_data_that_has_arrived_whole_is_the_same_as_in_two_steps(*, final: bool, compressed: bool) -> None:
    """And nothing is taken of what lacks its end, wherever that is; nor of any other frame."""
    frame = codec.encode_data(7, 0, N16, 9, final=final, compressed=compressed) + b"nine char"
    buffer = bytearray(b"before" + frame + b"behind")
    start, stop = 6, 6 + len(frame)
    assert codec.data_in(buffer, start, stop) == decode(frame) == m.Data(7, 0, N16, 9, final, compressed)
    assert codec.data_in(buffer, start, len(buffer)) == m.Data(7, 0, N16, 9, final, compressed)
    for end in range(start, stop):
        assert codec.data_in(buffer, start, end) is None
    for type_ in LIVELY:
        if type_ is not Type.DATA:
            other = bytearray(encode(LIVELY[type_]) + bytes(100))
            assert codec.data_in(other, 0, len(other)) is None


def test_g4_each_damaged_byte_of_a_data_that_has_arrived_whole_is_noticed() -> None:
    """Unless it looks like something else, or longer than what is there: then it is left to be received."""
    frame = codec.encode_data(7, 0, N16, 9) + b"nine char"
    for at in range(codec.DATA_PREFIX):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[at] ^= flip
            try:
                found = codec.data_in(damaged, 0, len(damaged))
            except LinkLost:
                continue
            assert found is None, at
            with pytest.raises((LinkLost, ProtocolError)):
                decode(bytes(damaged))


def test_the_flag_of_a_compressed_data() -> None:
    both = codec.encode_data(7, 9, N16, 5, final=True, compressed=True)
    assert both[1] == m.CRITICAL | m.FINAL | m.COMPRESSED
    assert codec.encode_data(7, 9, N16, 5, compressed=True)[1] == m.CRITICAL | m.COMPRESSED
    assert decode(both + bytes(5)) == m.Data(7, 9, N16, 5, final=True, compressed=True)


def test_the_flag_of_a_final_data() -> None:
    """Only DATA has it; on any other frame it means nothing."""
    plain, final = codec.encode_data(7, 9, N16, 5), codec.encode_data(7, 9, N16, 5, final=True)
    assert (plain[1], final[1]) == (m.CRITICAL, m.CRITICAL | m.FINAL)
    assert decode(final + bytes(5)) == m.Data(7, 9, N16, 5, final=True)
    assert decode(sealed(Type.FINISH, codec.encode(m.Finish(1, N16))[codec.HEADER_SIZE :], flags=3)) == m.Finish(1, N16)
    with pytest.raises(LinkLost):
        decode(plain[:1] + final[1:2] + plain[2:] + bytes(5))


# --- Bytes that a peer may send on purpose -------------------------------------------------------------


@pytest.mark.parametrize("type_", LIVELY, ids=name_of)
def test_bodies_cut_at_each_byte(type_: Type) -> None:
    body = encode(LIVELY[type_])[codec.HEADER_SIZE :]
    for end in range(len(body)):
        with pytest.raises(ProtocolError):
            decode(sealed(type_, body[:end]))


@pytest.mark.parametrize("type_", [type_ for type_ in Type if type_ is not Type.DATA], ids=name_of)
def test_bodies_with_a_tail(type_: Type) -> None:
    body = encode(LIVELY.get(type_, SAMPLES[type_][0]))[codec.HEADER_SIZE :]
    for tail in (b"\0", b"\0" * 40):
        with pytest.raises(ProtocolError):
            decode(sealed(type_, body + tail))


@pytest.mark.parametrize("type_", LIVELY, ids=name_of)
def test_bodies_with_one_byte_changed_never_surprise(type_: Type) -> None:
    """A message or a protocol error, and nothing else; and the message can be said again."""
    body = encode(LIVELY[type_])[codec.HEADER_SIZE :]
    for at in range(len(body)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(body)
            changed[at] ^= flip
            try:
                message = decode(sealed(type_, bytes(changed)))
            except ProtocolError:
                continue
            assert not isinstance(message, m.Unknown)
            encode(message)


@pytest.mark.parametrize("type_", Type, ids=name_of)
def test_any_body_never_surprises(type_: Type) -> None:
    random_ = random.Random(f"codec {type_.name}")
    for _ in range(150):
        body = random_.randbytes(random_.choice((0, 1, 8, 33, 90, 300)))
        if random_.random() < 0.5:  # small numbers make counts and enums that fit
            body = bytes(byte & 3 for byte in body)
        try:
            decode(sealed(type_, body, flags=random_.randrange(256), reserved=random_.randrange(2**16)))
        except ProtocolError:
            continue


@pytest.mark.parametrize("type_", Type, ids=name_of)
def test_g8_a_length_above_the_limit_is_refused_by_the_header_alone(type_: Type) -> None:
    most = m.MAX_BODY[type_] + (MAX_CHUNK if type_ is Type.DATA else 0)
    assert codec.decode_header(sealed(type_, b"", length=most)).length == most
    for length in (most + 1, 2**32 - 1):
        with pytest.raises(ProtocolError, match="the most"):
            codec.decode_header(sealed(type_, b"", length=length))


def test_g8_unknown_frames_have_a_limit_too() -> None:
    codec.decode_header(sealed(0x99, b"", flags=0, length=m.MAX_UNKNOWN_BODY))
    with pytest.raises(ProtocolError):
        codec.decode_header(sealed(0x99, b"", flags=0, length=m.MAX_UNKNOWN_BODY + 1))


def test_data_without_its_prefix_is_refused_by_the_header_alone() -> None:
    prefix = codec.DATA_PREFIX - codec.HEADER_SIZE
    for length in range(prefix):
        with pytest.raises(ProtocolError):
            codec.decode_header(sealed(Type.DATA, b"", length=length))
    assert codec.decode_header(sealed(Type.DATA, b"", length=prefix)).length == prefix


@pytest.mark.parametrize(
    ("type_", "body"),
    [
        (Type.WANT, bytes(16) + struct.pack("!H", m.MAX_RANGES + 1)),
        (Type.WANT_ALL, struct.pack("!H", m.MAX_ANSWERS + 1)),
        (Type.ZEROS, bytes(8) + struct.pack("!H", m.MAX_RANGES + 1)),
        (Type.SKIP, struct.pack("!H", m.MAX_ANSWERS + 1)),
        (Type.REFUSE, struct.pack("!H", m.MAX_ANSWERS + 1)),
        (Type.RECEIPT, struct.pack("!H", m.MAX_ANSWERS + 1)),
        (Type.FOLDER, bytes(10) + struct.pack("!H", m.MAX_FOLDER_ENTRIES + 1)),
        (Type.FOLDER_END, struct.pack("!H", m.MAX_PATH + 1)),
        (Type.OPENED, bytes(5) + bytes([m.MAX_TLVS + 1])),
        (Type.OPENED, bytes(5) + b"\x01\0\0" + struct.pack("!H", m.MAX_TLV_VALUE + 1)),
        (Type.PROOF, bytes(2) + bytes([m.MAX_PROOFS + 1])),
        (Type.PROOF, struct.pack("!H", 129)),
        (Type.FINISH, bytes(8) + bytes([33])),
        (Type.DIGESTS, struct.pack("!QBQI", 1, 1, 0, m.MAX_ASKED * 32 + 1)),
        (Type.ERROR, struct.pack("!HH", 1, m.MAX_MESSAGE + 1)),
    ],
    ids=lambda value: value.name if isinstance(value, Type) else "",
)
def test_g8_a_count_above_the_limit_is_refused_before_its_items(type_: Type, body: bytes) -> None:
    with pytest.raises(ProtocolError, match="are the most"):
        decode(sealed(type_, body))


@pytest.mark.parametrize(
    ("message", "at", "bad"),
    [
        (LIVELY[Type.OPEN], 64, (0, 3)),  # role
        (LIVELY[Type.OPEN], 65, (2, 255)),  # mode
        (LIVELY[Type.OPEN], 71, (0, 3)),  # digest
        (LIVELY[Type.SKIP], 10, (0, 3)),  # reason
        (LIVELY[Type.FOLDER], 15, (0, 4)),  # kind
        (LIVELY[Type.ASK_DIGESTS], 8, (0, 3)),
        (LIVELY[Type.DIGESTS], 8, (0, 3)),
    ],
)
def test_numbers_without_a_meaning_are_refused(message: m.Message, at: int, bad: tuple[int, ...]) -> None:
    body = encode(message)[codec.HEADER_SIZE :]
    for value in bad:
        with pytest.raises(ProtocolError, match="is no"):
            decode(sealed(codec.TYPE_OF[type(message)], body[:at] + bytes([value]) + body[at + 1 :]))


# --- Later versions (G12) ------------------------------------------------------------------------------

UNKNOWN = sorted(set(range(256)) - set(Type))


def test_g12_unknown_optional_frames_are_skipped_and_critical_ones_refused_by_name() -> None:
    for type_ in UNKNOWN:
        assert decode(sealed(type_, b"anything", flags=0)) == m.Unknown(type_)
        with pytest.raises(Unsupported, match=f"{type_:#04x}"):
            decode(sealed(type_, b"anything"))


def test_g4_unknown_frames_are_checked_too() -> None:
    frame = bytearray(sealed(0x99, b"anything", flags=0))
    frame[-1] ^= 1
    with pytest.raises(LinkLost):
        decode(bytes(frame))


@pytest.mark.parametrize("number", [0, 1, 15, 16, 255, 2**32])
def test_g12_grease_is_an_optional_frame_that_nobody_knows(number: int) -> None:
    frame = codec.encode_grease(number, b"x" * (number % 7))
    assert m.GREASE_FIRST <= frame[0] <= m.GREASE_LAST
    assert frame[0] in UNKNOWN
    assert decode(frame) == m.Unknown(frame[0])


def test_g12_unknown_flags_and_the_reserved_field_are_ignored() -> None:
    for type_, message in LIVELY.items():
        if type_ is not Type.DATA:
            body = encode(message)[codec.HEADER_SIZE :]
            assert decode(sealed(type_, body, flags=0xFF, reserved=0xFFFF)) == message


@pytest.mark.parametrize("type_", [Type.HELLO, Type.PROOF, Type.OPEN, Type.OPENED, Type.PAIR], ids=name_of)
def test_g12_critical_tlvs_are_refused_by_name_and_others_kept(type_: Type) -> None:
    body = encode(SAMPLES[type_][0])[codec.HEADER_SIZE : -1]  # the list of TLVs comes last
    optional = decode(sealed(type_, body + b"\x01" + struct.pack("!HH", 0x7ABC, 1) + b"v"))
    assert optional.tlvs == (m.Tlv(0x7ABC, b"v"),)  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="0xfabc"):
        decode(sealed(type_, body + b"\x01" + struct.pack("!HH", 0xFABC, 1) + b"v"))


def test_g12_a_critical_tlv_of_an_entry_is_left_to_who_answers_for_the_entry() -> None:
    offered_ = m.Offered(Kind.FILE, b"n", 0, 0, 0, 0, N16, tlvs=(m.Tlv(m.CRITICAL_TLV, b""),))
    folder = m.Folder(b"", 1, (offered_,))
    assert decode(encode(folder)) == folder


# --- What else may answer on a port --------------------------------------------------------------------

HELLO = codec.encode(m.Hello(m.MAGIC, 1, 1, N32, N32))


def test_a_hello_is_known_from_each_of_its_beginnings() -> None:
    for length in range(1, len(HELLO) + 1):
        codec.check_first_bytes(HELLO[:length])


def test_a_listener_may_begin_with_an_error() -> None:
    frame = codec.encode(m.Error(64, "too many connections"))
    for length in range(1, len(frame) + 1):
        codec.check_first_bytes(frame[:length])


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "a web server"),
        (b"GET / HTTP/1.1\r\n", "a web browser"),
        (b"POST /x HTTP/1.1\r\n", "a web client"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an ssh server"),
        (b"220 mail.example.org ESMTP\r\n", "a mail or FTP server"),
        (b"@RSYNCD: 31.0\n", "an rsync daemon"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"\x16", "TLS"),
        (b"\x00", "does not speak ftx"),
        (HELLO[:16] + b"ftz\0", "does not speak ftx"),
        (b"\x01" + b"x" * 40, "does not speak ftx"),
        (b"?x", "does not speak ftx"),
        (b"?\x01\0\0\0\x01", "does not speak ftx"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[:4].hex()}",
)
def test_other_protocols_are_told_by_their_first_bytes(first: bytes, what: str) -> None:
    with pytest.raises(NotFtx, match=what):
        codec.check_first_bytes(first)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_no_hello(seed: int) -> None:
    random_ = random.Random(f"first bytes {seed}")
    for _ in range(200):
        with pytest.raises(NotFtx):
            codec.check_first_bytes(random_.randbytes(24))
