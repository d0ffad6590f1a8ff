"""Compressed payloads. G8: whatever a payload says, no more comes out of it than the chunk's length."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from ftx.protocol import compression
from ftx.protocol import messages as m
from ftx.protocol.manifest import MAX_CHUNK, MIN_CHUNK
from tests.support.compressible import lines

MIB = 1024 * 1024
MAGIC = b"\x28\xb5\x2f\xfd"
zstd: Any = compression._library()


def with_options(chunk: bytes, **options: int) -> bytes:
    """A frame made with options of zstd."""
    made = zstd.ZstdCompressor(
        options={getattr(zstd.CompressionParameter, name): value for name, value in options.items()}
    )
    found: bytes = made.compress(chunk, made.FLUSH_FRAME)
    return found


def rle(claimed: int, blocks: int, window_log: int = 20) -> bytes:
    """A frame that says its content has ``claimed`` bytes, of so many blocks of 128 KiB zeros, 4 bytes each."""
    head = MAGIC + bytes([0b11_0_0_0_0_00, (window_log - 10) << 3]) + struct.pack("<Q", claimed)
    block = struct.pack("<I", 1 << 1 | 128 * 1024 << 3)[:3] + b"\0"
    return head + block * (blocks - 1) + bytes([block[0] | 1]) + block[1:]


SIZES = (1, 3, 255, 256, 65_791, 65_792, 70_000, MIN_CHUNK - 1, MIN_CHUNK, 3 * MIB, MAX_CHUNK)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_compressed_comes_out_again(size: int) -> None:
    chunk = lines(size)
    payload = compression.compressor()(memoryview(chunk))
    assert compression.decompress(memoryview(payload), size) == chunk
    assert size < 1000 or len(payload) < size


def test_one_compressor_makes_frames_that_know_nothing_of_each_other() -> None:
    compress = compression.compressor()
    payloads = [compress(lines(50_000, seed)) for seed in (0, 1, 0)]
    assert payloads[0] == payloads[2] != payloads[1]
    assert compression.decompress(payloads[1], 50_000) == lines(50_000, 1)


@pytest.mark.parametrize("options", [{"checksum_flag": 1}, {"compression_level": 19}, {"window_log": 10}])
@pytest.mark.parametrize("size", [3000, MAX_CHUNK])
def test_g12_any_frame_within_the_rules_is_taken(options: dict[str, int], size: int) -> None:
    chunk = lines(MIB) * (size // MIB) if size > MIB else lines(size)
    assert compression.decompress(with_options(chunk, **options), size) == chunk


CHUNK = lines(MIB)
GOOD = compression.compressor()(CHUNK)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


def without_size() -> bytes:
    made = zstd.ZstdCompressor()
    found: bytes = made.compress(CHUNK) + made.flush()
    return found


def with_dictionary() -> bytes:
    made = zstd.ZstdCompressor(zstd_dict=zstd.train_dict([lines(2000, seed) for seed in range(500)], 4000))
    found: bytes = made.compress(CHUNK, made.FLUSH_FRAME)
    return found


BAD: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no frame": lambda: b"no frame at all, and longer than a frame's header",
    "only a magic": lambda: MAGIC,
    "cut short": lambda: GOOD[:-1],
    "a byte behind it": lambda: GOOD + b"\0",
    "a frame behind it": lambda: GOOD + GOOD,
    "a skippable frame behind it": lambda: GOOD + SKIPPABLE,
    "a skippable frame before it": lambda: SKIPPABLE + GOOD,
    "skippable frames only": lambda: SKIPPABLE * 80_000,
    "a chunk that is longer": lambda: with_options(CHUNK + b"x"),
    "a chunk that is shorter": lambda: with_options(CHUNK[:-1]),
    "no size": without_size,
    "a dictionary": with_dictionary,
    "a size of 1 GiB": lambda: rle(1 << 30, 8192),
    "a size of 2^63": lambda: rle(1 << 63, 8),
    "1 GiB behind the right size": lambda: rle(MIB, 8192),
    "less than the right size": lambda: rle(MIB, 7),
    "a window of 2 GiB": lambda: rle(MIB, 8, window_log=31),
    "a window above the limit": lambda: rle(MIB, 8, window_log=m.MAX_ZSTD_WINDOW.bit_length()),
    "empty blocks without end": lambda: rle(MIB, 1)[:14] + bytes(3) * 300_000,
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_g8_a_payload_outside_the_rules_is_none(payload: Callable[[], bytes]) -> None:
    assert compression.decompress(payload(), MIB) is None


def test_the_bombs_go_off_where_nothing_bounds_them() -> None:
    """What is refused above is refused for what is wrong with it, and for nothing else."""
    assert compression.decompress(rle(MIB, 8), MIB) == bytes(MIB)
    assert compression.decompress(rle(MIB, 8, window_log=m.MAX_ZSTD_WINDOW.bit_length() - 1), MIB) == bytes(MIB)
    assert len(zstd.decompress(rle(64 * MIB, 512))) == 64 * MIB
    assert zstd.decompress(without_size()) == CHUNK == zstd.decompress(SKIPPABLE + GOOD)


@pytest.mark.parametrize("what", ["a size of 1 GiB", "1 GiB behind the right size", "a window of 2 GiB"])
def test_g8_a_bomb_costs_no_more_than_a_chunk(what: str) -> None:
    payload = BAD[what]()
    tracemalloc.start()
    try:
        assert compression.decompress(payload, MIB) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MIB


@pytest.mark.parametrize("seed", range(4))
def test_g8_decompressing_takes_any_bytes(seed: int) -> None:
    """One of which something was changed is none, or makes a chunk of the right length, which its digest tells."""
    rng = random.Random(f"payload {seed}")
    good = compression.compressor()(lines(20_000, seed))
    for _ in range(500):
        payload = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(payload))
            match rng.randrange(3):
                case 0:
                    payload[at] ^= 1 << rng.randrange(8)
                case 1:
                    del payload[at : at + rng.randrange(1, 9)]
                case _:
                    payload[at:at] = rng.randbytes(rng.randrange(1, 9))
        found = compression.decompress(payload, 20_000)
        assert found is None or len(found) == 20_000
