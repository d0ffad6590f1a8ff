"""Files for tests, and looks at what became of them."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

MIB = 1024 * 1024


def fill(path: Path, size: int, seed: int = 0) -> Path:
    """A file of ``size`` bytes that look random and in which no two chunks are equal."""
    piece = random.Random(seed).randbytes(min(size, MIB))
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(((at // MIB + 1).to_bytes(8, "little") + piece[8:])[: size - at])
    return path


def settled(path: Path) -> Path:
    """The same file, with times old enough for ftx to trust them."""
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))
    age_s = 2.1 - (time.time() - path.stat().st_ctime)
    time.sleep(max(0.0, age_s))
    return path


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and digest(one) == digest(other)


def partials(into: Path) -> list[Path]:
    return sorted(into.glob(".ftx/*.part"))


def journals(into: Path) -> list[Path]:
    return sorted(into.glob(".ftx/*.journal"))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change bytes in place."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)
