"""The journal: an append-only hint of which chunks a partial holds (``protocol.md``, appendix).

It is a hint and the hash is the truth: whatever a crash leaves in it, nothing is published because of what
it says (G4). Its records are bound to its header by a seed, so old records that a crash leaves behind a
new header do not count, and a torn tail ends it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import xxhash

from ftx.protocol.manifest import ZERO_TAG, DigestName, Entry, Grid
from ftx.protocol.messages import MAX_PATH
from ftx.protocol.ranges import RangeSet
from ftx.storage import disk

_FIXED = struct.Struct("!4sHH32sQq16sIB3xQH")  # all of the header before the path
_CHECK = struct.Struct("!Q")
_RECORD = struct.Struct("!QQ")
RECORD_SIZE = _RECORD.size + _CHECK.size
_MAGIC = b"ftxj"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """What a journal is bound to: whose partial, of which source, on which file."""

    peer: bytes
    size: int
    mtime_ns: int
    tag: bytes
    chunk: int
    digest: DigestName
    inode: int
    path: bytes

    @classmethod
    def of(cls, peer: bytes, entry: Entry, digest: DigestName, inode: int) -> JournalHeader:
        chunk = Grid.of(entry.size).chunk
        return cls(peer, entry.size, entry.mtime_ns, entry.tag, chunk, digest, inode, entry.path)

    def doubted(self) -> JournalHeader:
        """The same for chunks that are of another version of the source until they are compared."""
        return replace(self, tag=ZERO_TAG)

    def trusts(self, other: JournalHeader) -> bool:
        """Whether chunks under ``other`` are chunks of this source, as far as a source tag can tell."""
        return self.tag != ZERO_TAG and self == other


def encode_header(header: JournalHeader) -> bytes:
    fixed = _FIXED.pack(
        _MAGIC, _VERSION, 0, header.peer, header.size, header.mtime_ns, header.tag, header.chunk,
        header.digest, header.inode, len(header.path),
    )  # fmt: skip
    data = fixed + header.path
    return data + _CHECK.pack(xxhash.xxh3_64_intdigest(data))


def encode_record(seed: int, start: int, stop: int) -> bytes:
    data = _RECORD.pack(start, stop - start)
    return data + _CHECK.pack(xxhash.xxh3_64_intdigest(data, seed=seed))


def decode(data: bytes) -> tuple[JournalHeader, RangeSet] | None:
    """What a journal says, up to its first damaged record; None if not even its header is whole."""
    if len(data) < _FIXED.size:
        return None
    magic, version, _, peer, size, mtime_ns, tag, chunk, digest, inode, length = _FIXED.unpack_from(data)
    end = _FIXED.size + length
    if magic != _MAGIC or version != _VERSION or length > MAX_PATH or len(data) < end + _CHECK.size:
        return None
    seed = xxhash.xxh3_64_intdigest(data[:end])
    if _CHECK.unpack_from(data, end)[0] != seed or digest not in iter(DigestName) or chunk != Grid.of(size).chunk:
        return None
    header = JournalHeader(peer, size, mtime_ns, tag, chunk, DigestName(digest), inode, data[_FIXED.size : end])
    held = RangeSet()
    count = Grid.of(size).count
    for at in range(end + _CHECK.size, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
        start, length = _RECORD.unpack_from(data, at)
        check = xxhash.xxh3_64_intdigest(data[at : at + _RECORD.size], seed=seed)
        if _CHECK.unpack_from(data, at + _RECORD.size)[0] != check or start + length > count:
            break  # a torn tail, or rot: what follows cannot be trusted either
        held.add(start, start + length)
    return header, held


class Journal:
    """An open, locked journal. Appends are not synced: a crash may lose the newest, and that costs only time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._end = 0
        self._seed = 0

    def read(self) -> tuple[JournalHeader, RangeSet] | None:
        """What is there, see ``decode``. Afterwards only ``rewrite`` may follow."""
        # One record a 16 MiB, or one every 0.2 s: a year of trickling would not make it large. A cap all the same.
        data = bytearray(min(disk.size(self.fd), 64 * 1024 * 1024))
        length = disk.read_at(self.fd, memoryview(data), 0) if data else 0
        return decode(bytes(data[:length]))

    def rewrite(self, header: JournalHeader, held: RangeSet) -> None:
        """Begin anew with this header and these chunks. Old records behind it no longer count (see the seed)."""
        start = encode_header(header)
        seed = _CHECK.unpack(start[-_CHECK.size :])[0]
        data = start + b"".join(encode_record(seed, a, b) for a, b in held)
        disk.write_at(self.fd, data, 0)
        disk.truncate(self.fd, len(data))
        self._seed, self._end = seed, len(data)

    def append(self, ranges: RangeSet) -> None:
        """Note chunks as held. Called after they were written, never before (G2, G4)."""
        data = b"".join(encode_record(self._seed, start, stop) for start, stop in ranges)
        disk.write_at(self.fd, data, self._end)
        self._end += len(data)
