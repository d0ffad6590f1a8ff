"""What is known of one entry: its metadata, the chunk grid, chunk digests and the root digest.

The grid is a pure function of the file's size (``protocol.md``, "The chunk grid"), so both sides compute
it and nothing on the wire can disagree about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import lru_cache

import xxhash

from ftx.protocol.ranges import RangeSet

KIB = 1024
MIB = 1024 * KIB

MIN_CHUNK = 1 * MIB
MAX_CHUNK = 16 * MIB
#: A chunk doubles while a file would have more chunks than this.
CHUNKS_BEFORE_DOUBLING = 65_536
#: G8: with 16 MiB chunks this is 2**20 chunks, so an entry's digests never take more than 16 MiB (XXH3-128).
MAX_FILE_SIZE = 2**44

ZERO_TAG = bytes(16)  #: "do not trust": a source tag that matches no other, not even itself

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What an entry is."""

    FILE = 1
    FOLDER = 2
    SYMLINK = 3


class DigestName(IntEnum):
    """A digest that both sides can name. XXH3-128 finds accidents; SHA-256 also decides what need not be sent."""

    XXH3_128 = 1
    SHA_256 = 2

    @property
    def size(self) -> int:
        """Bytes of one digest."""
        return 16 if self is DigestName.XXH3_128 else 32

    @property
    def label(self) -> str:
        return "xxh3-128" if self is DigestName.XXH3_128 else "sha-256"

    @property
    def function(self) -> Callable[[Buffer], bytes]:
        """Digest of a buffer. Both release the interpreter lock for buffers of a chunk's size."""
        return xxhash.xxh3_128_digest if self is DigestName.XXH3_128 else _sha256


def _sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


def chunk_size(size: int) -> int:
    """Bytes of every chunk but the last, for a file of ``size`` bytes."""
    chunk = MIN_CHUNK
    while chunk < MAX_CHUNK and size > chunk * CHUNKS_BEFORE_DOUBLING:
        chunk *= 2
    return chunk


@dataclass(frozen=True, slots=True)
class Grid:
    """The fixed chunks of a file of ``size`` bytes: ``count`` of them, each ``chunk`` bytes but the last."""

    size: int
    chunk: int
    count: int

    @classmethod
    def of(cls, size: int) -> Grid:
        chunk = chunk_size(size)
        return cls(size, chunk, -(-size // chunk))

    def offset(self, index: int) -> int:
        return index * self.chunk

    def length(self, index: int) -> int:
        """Bytes of chunk ``index``; 0 outside the grid."""
        return max(0, min(self.chunk, self.size - index * self.chunk)) if index >= 0 else 0

    def bytes_in(self, ranges: RangeSet) -> int:
        """Bytes of the chunks in ``ranges``, which lie inside the grid."""
        total = ranges.count() * self.chunk
        if self.count and self.count - 1 in ranges:
            total -= self.chunk - self.length(self.count - 1)
        return total


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or link as the sender offers it.

    Attributes:
        id: unique in the session, rising, never reused.
        kind: what it is.
        path: relative to the destination, ``/`` between components, bytes as the sender's file system has them.
        size: bytes (0 for what is not a file).
        allocated: bytes that the source occupies on its disk, at most ``size`` (holes are not counted).
        mode: permission bits.
        mtime_ns: modification time, nanoseconds since the epoch.
        tag: 16 bytes, the rest of the source tag; see ``source_tag``.
        target: where a symbolic link points.
    """

    id: int
    kind: Kind
    path: bytes
    size: int
    allocated: int
    mode: int
    mtime_ns: int
    tag: bytes
    target: bytes = b""


class Pin(Enum):
    """What a look at a source finds, compared with what was offered."""

    SAME = "same"
    REREAD = "reread"  #: the stamps cannot tell: it grew, or was too young when it was opened
    CHANGED = "changed"


def source_tag(identity: bytes, inode: int, ctime_ns: int) -> bytes:
    """The part of a source tag that only its sender can interpret: 16 bytes.

    Two runs with equal (size, mtime_ns, tag) offer the same content, as far as a file system can tell. The
    device number is not in it: several file systems change it at every reboot (design rule).
    """
    data = b"ftx source tag" + identity + inode.to_bytes(8, "big") + ctime_ns.to_bytes(8, "big", signed=True)
    return hashlib.sha256(data).digest()[:16]


@lru_cache(maxsize=2)
def zeros(length: int) -> bytes:
    """``length`` zero bytes, shared (a grid has two lengths)."""
    return bytes(length)


@lru_cache(maxsize=64)
def zero_digest(name: DigestName, length: int) -> bytes:
    """The digest of a chunk of ``length`` zero bytes."""
    return name.function(bytes(length))


class ChunkDigests:
    """The digests of one entry's chunks, filled in any order; 16 or 32 bytes a chunk, in one array."""

    __slots__ = ("grid", "known", "name", "_array", "_width")

    def __init__(self, grid: Grid, name: DigestName) -> None:
        self.grid = grid
        self.name = name
        self.known = RangeSet()
        self._width = name.size
        self._array = bytearray()

    def set(self, index: int, digest: bytes) -> None:
        """Note the digest of chunk ``index``."""
        at = index * self._width
        if len(self._array) < at + self._width:
            # Grown as chunks come, not by what an offer claims: an offer alone allocates nothing (G8).
            self._array.extend(bytes(at + self._width - len(self._array)))
        self._array[at : at + self._width] = digest
        self.known.add(index, index + 1)

    def set_zeros(self, start: int, stop: int) -> None:
        """Note that chunks ``[start, stop)`` are all zeros."""
        last = self.grid.count - 1
        full = zero_digest(self.name, self.grid.chunk)
        if stop > start and start * self._width >= len(self._array):
            self._array.extend(bytes(start * self._width - len(self._array)))
        self._array[start * self._width : stop * self._width] = full * (stop - start)
        self.known.add(start, stop)
        if start <= last < stop:
            self.set(last, zero_digest(self.name, self.grid.length(last)))

    def set_ranges_zero(self, ranges: RangeSet) -> None:
        for start, stop in ranges:
            self.set_zeros(start, stop)

    def forget(self, start: int, stop: int) -> None:
        """The digests of ``[start, stop)`` are not known any more."""
        self.known.discard(start, stop)

    def get(self, index: int) -> bytes | None:
        if index not in self.known:
            return None
        return bytes(self._array[index * self._width : (index + 1) * self._width])

    def slice(self, start: int, stop: int) -> bytes:
        """The digests of ``[start, stop)``, all known, one behind the other."""
        return bytes(self._array[start * self._width : stop * self._width])

    @property
    def complete(self) -> bool:
        return self.known.count() == self.grid.count

    def root(self) -> bytes:
        """The root digest: of the ordered chunk digests and the size. All chunks are known."""
        end = self.grid.count * self._width
        return self.name.function(bytes(self._array[:end]) + self.grid.size.to_bytes(8, "big"))
