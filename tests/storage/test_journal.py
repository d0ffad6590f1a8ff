"""The journal: whole, cut at each byte, damaged at each byte, with a tail; and as a file."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ftx.protocol.manifest import MAX_FILE_SIZE, ZERO_TAG, DigestName, Grid
from ftx.protocol.messages import MAX_PATH
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk
from ftx.storage.journal import RECORD_SIZE, Journal, JournalHeader, decode, encode_header, encode_record
from tests.storage.support import CHUNK, MTIME_NS, PEER, TAG, fail_once

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=200)

HEADER = JournalHeader(PEER, 9 * CHUNK + 5, MTIME_NS, TAG, CHUNK, DigestName.XXH3_128, 4711, b"folder/file")
COUNT = 10
RECORDS = [(0, 1), (2, 3), (5, 2), (9, 1)]  # first, count
START = encode_header(HEADER)


def seed_of(start: bytes) -> int:
    return int.from_bytes(start[-8:], "big")


def journal(records: list[tuple[int, int]] = RECORDS, start: bytes = START) -> bytes:
    return start + b"".join(encode_record(seed_of(start), first, first + count) for first, count in records)


def ranges(records: list[tuple[int, int]]) -> RangeSet:
    return RangeSet([(first, first + count) for first, count in records])


def sealed(start: bytes) -> bytes:
    """A header that was changed, with a check that is right again."""
    return start[:-8] + xxhash.xxh3_64_digest(start[:-8])


# --- Decoding --------------------------------------------------------------------------------------------------------

headers = st.builds(
    lambda size, **fields: JournalHeader(size=size, chunk=Grid.of(size).chunk, **fields),
    size=st.integers(0, 2**64 - 1),
    peer=st.binary(min_size=32, max_size=32),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    tag=st.binary(min_size=16, max_size=16),
    digest=st.sampled_from(DigestName),
    inode=st.integers(0, 2**64 - 1),
    path=st.binary(max_size=MAX_PATH),
)


@PURE
@given(headers, st.data())
def test_what_was_written_is_read(header: JournalHeader, data: st.DataObject) -> None:
    count = Grid.of(header.size).count
    pairs = st.tuples(st.integers(0, count), st.integers(0, count)).map(sorted)
    held = RangeSet([(start, stop) for start, stop in data.draw(st.lists(pairs, max_size=5))])
    start = encode_header(header)
    text = start + b"".join(encode_record(seed_of(start), first, stop) for first, stop in held)
    assert decode(text) == (header, held)


@pytest.mark.parametrize("size", [0, 1, CHUNK, MAX_FILE_SIZE])
def test_sizes_at_the_edges(size: int) -> None:
    header = replace(HEADER, size=size, chunk=Grid.of(size).chunk)
    start = encode_header(header)
    count = Grid.of(size).count
    assert decode(start + encode_record(seed_of(start), 0, count)) == (header, RangeSet([(0, count)]))


def test_g4_a_journal_cut_at_any_byte_holds_what_was_whole_before_the_cut() -> None:
    text = journal()
    for length in range(len(text)):
        if length < len(START):
            assert decode(text[:length]) is None
        else:
            whole = (length - len(START)) // RECORD_SIZE
            assert decode(text[:length]) == (HEADER, ranges(RECORDS[:whole]))


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_g4_a_journal_damaged_at_any_byte_holds_what_stands_before_the_damage(mask: int) -> None:
    text = journal()
    for at in range(len(text)):
        damaged = text[:at] + bytes([text[at] ^ mask]) + text[at + 1 :]
        if at < len(START):
            assert decode(damaged) is None, at
        else:
            whole = (at - len(START)) // RECORD_SIZE
            assert decode(damaged) == (HEADER, ranges(RECORDS[:whole])), at


@pytest.mark.parametrize("seed", range(20))
def test_g4_garbage_behind_the_records_does_not_count(seed: int) -> None:
    tail = random.Random(seed).randbytes(1 + seed * 7)
    assert decode(journal() + tail) == (HEADER, ranges(RECORDS))


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, inode=4712),
        replace(HEADER, tag=ZERO_TAG),
        replace(HEADER, mtime_ns=MTIME_NS + 1),
        replace(HEADER, size=HEADER.size + 1),
        replace(HEADER, path=b"folder/fil2"),
    ],
    ids=["inode", "tag", "mtime", "size", "path"],
)
def test_g4_old_records_behind_a_new_header_do_not_count(header: JournalHeader) -> None:
    start = encode_header(header)
    text = start + journal()[len(START) :]
    assert decode(text) == (header, RangeSet())


@pytest.mark.parametrize(
    ("first", "count"),
    [(COUNT, 1), (0, COUNT + 1), (COUNT - 1, 2), (2**64 - 1, 1), (2**63, 2**63), (0, 2**64 - 1)],
)
def test_g4_a_record_that_leads_outside_the_grid_ends_the_journal(first: int, count: int) -> None:
    outside = first.to_bytes(8, "big") + count.to_bytes(8, "big")
    outside += xxhash.xxh3_64_digest(outside, seed=seed_of(START))
    more = encode_record(seed_of(START), 5, 6)
    assert decode(journal(RECORDS[:2]) + outside + more) == (HEADER, ranges(RECORDS[:2]))


def test_an_empty_record_holds_nothing_and_ends_nothing() -> None:
    assert decode(journal([(0, 1), (4, 0), (2, 1)])) == (HEADER, ranges([(0, 1), (2, 1)]))


@pytest.mark.parametrize(
    "start",
    [
        b"ftxk" + START[4:],
        START[:4] + b"\x00\x00" + START[6:],
        START[:4] + b"\x00\x02" + START[6:],
        encode_header(replace(HEADER, chunk=2 * CHUNK)),
        encode_header(replace(HEADER, chunk=0)),
        encode_header(HEADER)[:76] + b"\x00" + encode_header(HEADER)[77:],
        encode_header(HEADER)[:76] + b"\x63" + encode_header(HEADER)[77:],
        encode_header(replace(HEADER, path=b"p" * (MAX_PATH + 1))),
    ],
    ids=["magic", "version-0", "version-2", "chunk-twice", "chunk-0", "digest-0", "digest-99", "path-too-long"],
)
def test_a_header_of_something_else_is_no_journal(start: bytes) -> None:
    assert decode(journal(start=sealed(start))) is None


def test_a_header_may_say_more_in_its_reserved_bytes() -> None:
    start = sealed(START[:6] + b"\xff\xff" + START[8:77] + b"\xff\xff\xff" + START[80:])
    assert decode(journal(start=start)) == (HEADER, ranges(RECORDS))


@PURE
@given(st.binary(max_size=400))
def test_g4_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    assert decode(data) is None


@PURE
@given(st.binary(max_size=200))
def test_g4_any_bytes_behind_a_header_hold_nothing(data: bytes) -> None:
    assert decode(START + data) == (HEADER, RangeSet())


@PURE
@given(st.binary(min_size=102, max_size=300), st.integers(0, 100))
def test_g4_any_bytes_that_look_like_a_header_are_read_without_an_exception(data: bytes, length: int) -> None:
    """Magic, version, length of the path and check are right; the rest is anything."""
    fixed = START[:6] + data[6:88] + length.to_bytes(2, "big")
    start = sealed(fixed + data[:length].ljust(length, b"p") + bytes(8))
    found = decode(start + data)
    assert found is None or found[0].path == start[90:-8]


# --- What a header is trusted for ------------------------------------------------------------------------------------


def test_g4_chunks_are_trusted_only_under_the_very_same_header() -> None:
    assert HEADER.trusts(HEADER)
    for other in (
        replace(HEADER, peer=b"q" * 32),
        replace(HEADER, size=HEADER.size + 1),
        replace(HEADER, mtime_ns=MTIME_NS + 1),
        replace(HEADER, tag=b"u" * 16),
        replace(HEADER, chunk=2 * CHUNK),
        replace(HEADER, digest=DigestName.SHA_256),
        replace(HEADER, inode=1),
        replace(HEADER, path=b"other"),
        HEADER.doubted(),
    ):
        assert not HEADER.trusts(other)


def test_g4_a_zero_tag_trusts_nothing_not_even_itself() -> None:
    assert not HEADER.doubted().trusts(HEADER.doubted())


# --- The file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Journal]:
    fd = os.open(tmp_path / "journal", os.O_RDWR | os.O_CREAT, 0o600)
    yield Journal(fd)
    os.close(fd)


def test_an_empty_file_is_no_journal(file: Journal) -> None:
    assert file.read() is None


def test_g2_what_is_appended_is_read_by_the_next_process(file: Journal) -> None:
    file.rewrite(HEADER, RangeSet([(0, 2)]))
    file.append(RangeSet([(3, 4), (7, 9)]))
    file.append(RangeSet([(2, 3)]))
    assert Journal(file.fd).read() == (HEADER, RangeSet([(0, 4), (7, 9)]))


def test_g4_a_rewrite_takes_away_what_is_not_held_any_more(file: Journal) -> None:
    file.rewrite(HEADER, RangeSet([(0, 1), (2, 3), (4, 5)]))
    file.rewrite(HEADER, RangeSet([(2, 3)]))
    assert Journal(file.fd).read() == (HEADER, RangeSet([(2, 3)]))
    assert disk.size(file.fd) == len(START) + RECORD_SIZE


def test_g2_a_torn_tail_is_cut_by_the_next_rewrite(file: Journal) -> None:
    file.rewrite(HEADER, RangeSet([(0, 2)]))
    os.pwrite(file.fd, b"torn", disk.size(file.fd))
    reader = Journal(file.fd)
    found = reader.read()
    assert found == (HEADER, RangeSet([(0, 2)]))
    reader.rewrite(*found)
    reader.append(RangeSet([(5, 6)]))
    assert Journal(file.fd).read() == (HEADER, RangeSet([(0, 2), (5, 6)]))


def test_g4_a_crash_inside_a_rewrite_for_another_source_leaves_nothing_of_the_old(
    file: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.rewrite(HEADER, RangeSet([(0, 2), (4, 5), (7, 9)]))
    fail_once(monkeypatch, "truncate")
    with pytest.raises(OSError, match="Input/output"):
        file.rewrite(replace(HEADER, tag=b"u" * 16), RangeSet([(1, 2)]))
    assert Journal(file.fd).read() == (replace(HEADER, tag=b"u" * 16), RangeSet([(1, 2)]))


@pytest.mark.parametrize("call", ["write_at", "truncate"])
def test_g2_a_journal_whose_rewrite_failed_takes_another_one(
    file: Journal, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file.rewrite(HEADER, RangeSet([(0, 2)]))
    fail_once(monkeypatch, call)
    with pytest.raises(OSError, match="Input/output"):
        file.rewrite(HEADER.doubted(), RangeSet())
    file.rewrite(HEADER, RangeSet([(0, 1)]))
    file.append(RangeSet([(4, 5)]))
    assert Journal(file.fd).read() == (HEADER, RangeSet([(0, 1), (4, 5)]))


def test_g2_an_append_that_failed_is_made_good_by_the_next(file: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    file.rewrite(HEADER, RangeSet())
    fail_once(monkeypatch, "write_at")
    with pytest.raises(OSError, match="Input/output"):
        file.append(RangeSet([(0, 1)]))
    os.pwrite(file.fd, b"half a rec", disk.size(file.fd))
    file.append(RangeSet([(0, 1), (3, 4)]))
    assert Journal(file.fd).read() == (HEADER, RangeSet([(0, 1), (3, 4)]))
