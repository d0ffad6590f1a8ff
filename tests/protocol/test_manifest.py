"""The chunk grid, the digests of chunks in any order, the root digest and the source tag."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ftx.protocol import manifest
from ftx.protocol.manifest import (
    CHUNKS_BEFORE_DOUBLING,
    MAX_CHUNK,
    MAX_FILE_SIZE,
    MIB,
    MIN_CHUNK,
    ChunkDigests,
    DigestName,
    Grid,
    chunk_size,
    source_tag,
    zero_digest,
    zeros,
)
from ftx.protocol.ranges import RangeSet

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=200)

EDGES = sorted(
    {
        max(0, edge + off)
        for edge in (0, MIN_CHUNK, *(CHUNKS_BEFORE_DOUBLING * chunk * MIB for chunk in (1, 2, 4, 8, 16)), MAX_FILE_SIZE)
        for off in (-1, 0, 1)
    }
)
sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 40 * MIB), st.integers(0, MAX_FILE_SIZE))


# --- The grid ------------------------------------------------------------------------------------------


@PURE
@given(sizes)
def test_chunks_cut_the_file_without_rest(size: int) -> None:
    grid = Grid.of(size)
    assert grid.count == -(-size // grid.chunk)
    if not grid.count:
        assert size == 0
        return
    last = grid.count - 1
    assert grid.offset(last) + grid.length(last) == size
    assert 1 <= grid.length(last) <= grid.chunk
    assert all(grid.length(index) == grid.chunk for index in {0, last // 2, last - 1} if 0 <= index < last)
    assert all(grid.length(index) == 0 for index in (-1, grid.count, grid.count + 9))


def test_small_grids_sum_up() -> None:
    for size in (0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 7 * MIB + 12345):
        grid = Grid.of(size)
        assert sum(grid.length(index) for index in range(grid.count)) == size
        offsets = [grid.offset(index) for index in range(grid.count)]
        assert offsets == list(itertools.accumulate([0] + [grid.length(i) for i in range(grid.count)]))[: grid.count]


@PURE
@given(sizes)
def test_the_chunk_size_is_a_power_of_two_within_its_bounds(size: int) -> None:
    chunk = chunk_size(size)
    assert MIN_CHUNK <= chunk <= MAX_CHUNK
    assert chunk & (chunk - 1) == 0
    assert chunk == MIN_CHUNK or size > chunk // 2 * CHUNKS_BEFORE_DOUBLING  # no larger than it must be
    assert chunk == MAX_CHUNK or size <= chunk * CHUNKS_BEFORE_DOUBLING


@PURE
@given(sizes, sizes)
def test_larger_files_have_no_smaller_chunks(one: int, two: int) -> None:
    small, large = sorted((one, two))
    assert chunk_size(small) <= chunk_size(large)


@pytest.mark.parametrize(
    ("size", "chunk", "count"),
    [
        (0, MIB, 0),
        (1, MIB, 1),
        (MIB, MIB, 1),
        (MIB + 1, MIB, 2),
        (2**36, MIB, 65_536),
        (2**36 + 1, 2 * MIB, 32_769),
        (2**39, 8 * MIB, 65_536),
        (2**40, 16 * MIB, 65_536),
        (2**40 + 1, 16 * MIB, 65_537),
    ],
)
def test_the_grid_at_its_edges(size: int, chunk: int, count: int) -> None:
    assert Grid.of(size) == Grid(size, chunk, count)


def test_g8_the_largest_file_has_a_million_chunks_and_no_more() -> None:
    assert Grid.of(MAX_FILE_SIZE).count == 2**20
    assert Grid.of(MAX_FILE_SIZE).count * DigestName.XXH3_128.size == 16 * MIB


@PURE
@given(st.integers(0, 12 * MIB), st.data())
def test_bytes_in_ranges(size: int, data: st.DataObject) -> None:
    grid = Grid.of(size)
    indexes = data.draw(st.sets(st.integers(0, grid.count - 1)) if grid.count else st.just(set()))
    ranges = RangeSet([(index, index + 1) for index in indexes])
    assert grid.bytes_in(ranges) == sum(grid.length(index) for index in indexes)


# --- Digests -------------------------------------------------------------------------------------------


def test_digest_names() -> None:
    assert DigestName.XXH3_128.function(b"abc") == xxhash.xxh3_128(b"abc").digest()
    assert DigestName.SHA_256.function(memoryview(b"abc")) == hashlib.sha256(b"abc").digest()
    for name in DigestName:
        assert len(name.function(b"")) == name.size
        assert zero_digest(name, 5) == name.function(bytes(5))
    assert [name.label for name in DigestName] == ["xxh3-128", "sha-256"]
    assert zeros(3) == bytes(3)


class Model:
    """What ChunkDigests is for, in the plainest words."""

    def __init__(self, grid: Grid, name: DigestName) -> None:
        self.grid = grid
        self.name = name
        self.digests: dict[int, bytes] = {}

    def set_zeros(self, start: int, stop: int) -> None:
        for index in range(start, stop):
            self.digests[index] = self.name.function(bytes(self.grid.length(index)))

    def root(self) -> bytes:
        every = b"".join(self.digests[index] for index in range(self.grid.count))
        return self.name.function(every + self.grid.size.to_bytes(8, "big"))


def agree(digests: ChunkDigests, model: Model) -> None:
    count = model.grid.count
    assert [digests.get(index) for index in range(-1, count + 1)] == [
        model.digests.get(index) for index in range(-1, count + 1)
    ]
    assert list(digests.known.each(0, count)) == sorted(model.digests)
    assert digests.complete == (len(model.digests) == count)
    if digests.complete:
        assert digests.root() == model.root()
        assert digests.slice(0, count) == b"".join(model.digests[index] for index in range(count))


@pytest.mark.parametrize("seed", range(120))
def test_digests_in_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MIN_CHUNK", 8)
    rng = random.Random(f"digests {seed}")
    monkeypatch.setattr(ChunkDigests, "PAGE", rng.choice((1, 3, 8, 1024)))
    name = rng.choice(list(DigestName))
    grid = Grid.of(rng.randrange(0, 100))
    digests, model = ChunkDigests(grid, name), Model(grid, name)
    agree(digests, model)
    for _ in range(rng.randrange(40)):
        start, stop = sorted((rng.randint(0, grid.count), rng.randint(0, grid.count)))
        match rng.randrange(5):
            case 0 | 1 if start < grid.count:
                digest = rng.randbytes(name.size)
                digests.set(start, digest)
                model.digests[start] = digest
            case 2:
                digests.set_zeros(start, stop)
                model.set_zeros(start, stop)
            case 3:
                ranges = RangeSet([(start, (start + stop) // 2), (stop, grid.count)])
                digests.set_ranges_zero(ranges)
                for first, last in ranges:
                    model.set_zeros(first, last)
            case 4:
                digests.forget(start, stop)
                for index in range(start, stop):
                    model.digests.pop(index, None)
        agree(digests, model)
        if start < stop and digests.known.covers(start, stop):
            assert digests.slice(start, stop) == b"".join(model.digests[index] for index in range(start, stop))
    for index in rng.sample(range(grid.count), grid.count):
        if index not in model.digests:
            model.digests[index] = rng.randbytes(name.size)
            digests.set(index, model.digests[index])
    assert digests.complete
    agree(digests, model)


@pytest.mark.parametrize("name", DigestName, ids=lambda name: name.label)
def test_the_root_tells_size_and_order(name: DigestName) -> None:
    def root(size: int, *parts: bytes) -> bytes:
        digests = ChunkDigests(Grid.of(size), name)
        for index, part in enumerate(parts):
            digests.set(index, name.function(part))
        return digests.root()

    roots = {root(0), root(1, b"a"), root(2, b"a"), root(2 * MIB, b"a", b"b"), root(2 * MIB, b"b", b"a")}
    assert len(roots) == 5
    assert root(0) == name.function(bytes(8))
    assert {len(value) for value in roots} == {name.size}


def test_g8_an_offer_alone_allocates_nothing() -> None:
    digests = ChunkDigests(Grid.of(MAX_FILE_SIZE), DigestName.XXH3_128)
    digests.set(3, bytes(16))
    digests.forget(0, 2**20)
    assert sum(map(len, digests._pages.values())) <= ChunkDigests.PAGE * 16


# --- The source tag ------------------------------------------------------------------------------------


def test_g10_the_source_tag_tells_sender_inode_and_ctime_apart() -> None:
    base = source_tag(b"i" * 32, 7, 1_000)
    assert base == source_tag(b"i" * 32, 7, 1_000)
    assert len(base) == 16
    others = {source_tag(b"j" * 32, 7, 1_000), source_tag(b"i" * 32, 8, 1_000), source_tag(b"i" * 32, 7, 1_001)}
    assert len(others | {base, source_tag(b"i" * 32, 2**64 - 1, -1), manifest.ZERO_TAG}) == 6
