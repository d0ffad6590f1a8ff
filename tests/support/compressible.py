"""Files that compress well, and senders that compress whatever the link is like."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from ftx.transfer import compress

MIB = 1024 * 1024


@cache
def _lines(size: int, seed: int) -> bytes:
    rng = random.Random(f"lines {seed}")
    words = [bytes(rng.choices(b"etaoinshr", k=rng.randint(2, 9))) for _ in range(200)]
    found = bytearray()
    while len(found) < size:
        found += b" ".join(rng.choices(words, k=500)) + b"\n"
    return bytes(found[:size])


def lines(size: int, seed: int = 0) -> bytes:
    """Bytes that compress well; no two MiB of them are equal."""
    piece = _lines(min(size, MIB), seed)
    return b"".join(b"%08d" % at + piece[8:] for at in range(-(-size // MIB)))[:size]


def text(path: Path, size: int, seed: int = 0) -> Path:
    """A file of such bytes."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lines(size, seed))
    return path


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first chunk on, senders compress whatever becomes smaller."""
    monkeypatch.setattr(compress.Worth, "on", property(lambda _self: True, lambda _self, _on: None), raising=False)
    monkeypatch.setattr(compress.Worth, "pays", lambda _self, size, compressed, _seconds: compressed < size)
