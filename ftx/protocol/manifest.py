"""What is known of one entry: its metadata, the chunk grid, chunk digests and the root digest.

The grid is a pure function of the file's size (``protocol.md``, "The chunk grid"), so both sides compute
it and nothing on the wire can disagree about it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

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


class Hash(Protocol):
    """A digest under way."""

    def update(self, data: Buffer, /) -> None: ...

    def digest(self) -> bytes: ...


class Kind(IntEnum):
    """What an entry is."""

    FILE = 1
    FOLDER = 2
    SYMLINK = 3

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = {Kind.FILE: "file", Kind.FOLDER: "folder", Kind.SYMLINK: "link"}


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

    def begin(self) -> Hash:
        """A digest of buffers that come one after the other."""
        return xxhash.xxh3_128() if self is DigestName.XXH3_128 else hashlib.sha256()


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


class Entry(NamedTuple):  # a dataclass would take three times as long, for every file
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
    return hashlib.sha256(b"ftx source tag" + identity + _STAMPS.pack(inode, ctime_ns)).digest()[:16]


_STAMPS = struct.Struct("!Qq")


@lru_cache(maxsize=2)
def zeros(length: int) -> bytes:
    """``length`` zero bytes, shared (a grid has two lengths)."""
    return bytes(length)


@lru_cache(maxsize=64)
def zero_digest(name: DigestName, length: int) -> bytes:
    """The digest of a chunk of ``length`` zero bytes."""
    return name.function(bytes(length))


def root_of_one(name: DigestName, digest: bytes, size: int) -> bytes:
    """The root digest of a file of one chunk with this digest; of an empty file with none."""
    return name.function(digest + size.to_bytes(8, "big"))


class ChunkDigests:
    """The digests of one entry's chunks, filled in any order; 16 or 32 bytes a chunk.

    G8: memory follows what has come, and not what an offer claims or where in a file one chunk lies. A page of
    digests is made with the first of them; chunks that are all zeros are ranges and need none.
    """

    __slots__ = ("grid", "known", "name", "_pages", "_zeros")

    PAGE: ClassVar[int] = 1024  #: chunks whose digests are kept together

    def __init__(self, grid: Grid, name: DigestName) -> None:
        self.grid = grid
        self.name = name
        self.known = RangeSet()
        self._pages: dict[int, bytearray] = {}
        self._zeros = RangeSet()

    def set(self, index: int, digest: bytes) -> None:
        """Note the digest of chunk ``index``."""
        number, at = divmod(index, self.PAGE)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = self._empty(number)
        page[at * self.name.size : (at + 1) * self.name.size] = digest
        self._zeros.discard(index, index + 1)
        self.known.add(index, index + 1)

    def set_zeros(self, start: int, stop: int) -> None:
        """Note that chunks ``[start, stop)`` are all zeros."""
        self._zeros.add(start, stop)
        self.known.add(start, stop)

    def set_ranges_zero(self, ranges: RangeSet) -> None:
        for start, stop in ranges:
            self.set_zeros(start, stop)

    def forget(self, start: int, stop: int) -> None:
        """The digests of ``[start, stop)`` are not known any more."""
        self.known.discard(start, stop)

    def get(self, index: int) -> bytes | None:
        if index not in self.known:
            return None
        if index in self._zeros:
            return zero_digest(self.name, self.grid.length(index))
        number, at = divmod(index, self.PAGE)
        return bytes(self._pages[number][at * self.name.size : (at + 1) * self.name.size])

    def slice(self, start: int, stop: int) -> bytes:
        """The digests of ``[start, stop)``, all known, one behind the other."""
        first, width = start // self.PAGE * self.PAGE, self.name.size
        pages = b"".join(self._page(number) for number in range(start // self.PAGE, -(-stop // self.PAGE)))
        return pages[(start - first) * width : (stop - first) * width]

    def _empty(self, number: int) -> bytearray:
        return bytearray(min(self.PAGE, self.grid.count - number * self.PAGE) * self.name.size)

    def _page(self, number: int) -> bytearray:
        """A page with the digests of zeros in their places."""
        first, width = number * self.PAGE, self.name.size
        page = self._pages.get(number)
        zeros = self._zeros.overlap(first, first + self.PAGE)
        if page is not None and not zeros:
            return page
        page = self._empty(number) if page is None else page[:]
        last = self.grid.count - 1
        for start, stop in zeros:
            full = zero_digest(self.name, self.grid.chunk)
            page[(start - first) * width : (stop - first) * width] = full * (stop - start)
            if stop > last:
                page[(last - first) * width :] = zero_digest(self.name, self.grid.length(last))
        return page

    @property
    def complete(self) -> bool:
        return self.known.count() == self.grid.count

    def root(self) -> bytes:
        """The root digest: of the ordered chunk digests and the size. All chunks are known."""
        hash_ = self.name.begin()
        for number in range(-(-self.grid.count // self.PAGE)):
            hash_.update(self._page(number))
        hash_.update(self.grid.size.to_bytes(8, "big"))
        return hash_.digest()
