"""What the tests of the storage layer share: entries, chunks, a look at a tree, and faults of single disk calls."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ftx.options import Exists as Policy
from ftx.protocol.manifest import MIN_CHUNK, ChunkDigests, DigestName, Entry, Grid, Kind
from ftx.protocol.messages import SkipReason
from ftx.storage import disk
from ftx.storage.look import Target
from ftx.storage.partial import Partial, PartialStore
from ftx.storage.paths import Root

CHUNK = MIN_CHUNK
PEER = b"p" * 32
OTHER_PEER = b"q" * 32
TAG = b"t" * 16
MTIME_NS = 1_600_000_000_123_456_789
XXH3 = DigestName.XXH3_128

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def entry(path: bytes = b"file", size: int = 3 * CHUNK, **fields: Any) -> Entry:
    defaults: dict[str, Any] = {"allocated": size, "mode": 0o644, "mtime_ns": MTIME_NS, "tag": TAG}
    return Entry(1, Kind.FILE, path, size, **defaults | fields)


def chunk(index: int, what: Entry | None = None, seed: int = 0) -> bytes:
    """The bytes of a chunk; no two are equal."""
    length = Grid.of((what or entry()).size).length(index)
    return random.Random(f"{seed} {index}").randbytes(length)


def content(what: Entry, seed: int = 0) -> bytes:
    return b"".join(chunk(index, what, seed) for index in range(Grid.of(what.size).count))


def write(partial: Partial, *indexes: int, seed: int = 0) -> None:
    """Write chunks as a session does: verified, so their digests are known."""
    for index in indexes:
        payload = chunk(index, partial.entry, seed)
        partial.write(index, payload)
        partial.digests.set(index, XXH3.function(payload))


def ready(store: PartialStore, what: Entry, peer: bytes = PEER) -> Partial:
    """A partial with every chunk in it."""
    partial = store.open(peer, what, XXH3)
    write(partial, *range(partial.grid.count))
    return partial


def look(root: Root, what: Entry, policy: Policy) -> SkipReason | None:
    """What a session finds out of an entry alone."""
    with Target(root, what.path.rpartition(b"/")[0]) as target:
        return target.look(what, policy)


def read_back(partial: Partial) -> bytes:
    buffer = memoryview(bytearray(partial.grid.chunk))
    return b"".join(bytes(partial.read(index, buffer)) for index in range(partial.grid.count))


def known(digests: ChunkDigests) -> list[tuple[int, int]]:
    return list(digests.known)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


# --- what a tree looks like ------------------------------------------------------------------------------------------

OLD_NS = 1_000_000_000_000_000_000


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder, with the time of the last reading of each file where the system keeps it."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        info = path.lstat()
        row: tuple[Any, ...] = (stat.filemode(info.st_mode), info.st_uid)
        if path.is_symlink():
            row += (path.readlink(),)
        elif path.is_file():
            row += (info.st_mtime_ns, info.st_atime_ns, path.read_bytes())
            os.utime(path, ns=(OLD_NS, info.st_mtime_ns))  # so that the next reading shows, also with relatime
        found[str(path.relative_to(folder))] = row
    return found


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Nothing below ``folder`` is made, changed, removed or read meanwhile."""
    snapshot(folder)
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- faults ----------------------------------------------------------------------------------------------------------


def fail_once(patch: pytest.MonkeyPatch, name: str, number: int = errno.EIO, at: int = 1) -> list[int]:
    """Let the ``at``-th call of ``disk.NAME`` from now on fail; the list it returns counts the calls."""
    calls: list[int] = []
    real = getattr(disk, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == at:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    patch.setattr(disk, name, failing)
    return calls


def before_call(patch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> None:
    """Do something just before the next call of ``disk.NAME``, once: what another process does in between."""
    real = getattr(disk, name)

    def acting(*args: Any, **kwargs: Any) -> Any:
        patch.setattr(disk, name, real)
        action()
        return real(*args, **kwargs)

    patch.setattr(disk, name, acting)


def record(patch: pytest.MonkeyPatch, *functions: str) -> list[str]:
    """The order in which functions of ``disk`` are called from now on."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(disk, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        patch.setattr(disk, name, recorded)

    for name in functions:
        wrap(name)
    return calls


# --- other processes, other mounts -----------------------------------------------------------------------------------


def in_child(work: Callable[[], None], *, uid: int | None = None) -> int:
    """Run ``work`` in a forked process; its exit status: 0, or 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
