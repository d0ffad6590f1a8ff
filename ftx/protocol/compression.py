"""Compressed payloads: a zstd frame for each chunk (``protocol.md``, "Compressed payloads").

The library is an extra: Python 3.14 has it, and ``backports.zstd`` is the same for others. It is imported when the
first chunk is compressed or decompressed, and a side without it never says that it takes such chunks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ftx.protocol import messages as m
from ftx.protocol.manifest import Buffer

LEVEL = 3  #: zstd's own default


@cache
def _name() -> str | None:
    if sys.version_info >= (3, 14) and find_spec("_zstd"):  # which a Python can be built without
        return "compression.zstd"
    try:
        return "backports.zstd" if find_spec("backports.zstd") else None
    except ModuleNotFoundError:
        return None


@cache
def _library() -> Any:
    name = _name()
    assert name is not None
    return import_module(name)


def available() -> bool:
    """Whether this side can compress and decompress."""
    return _name() is not None


def compressor() -> Callable[[Buffer], bytes]:
    """What makes a whole frame of a chunk, with its size in it; for one thread."""
    made = _library().ZstdCompressor(level=LEVEL)
    return partial(made.compress, mode=made.FLUSH_FRAME)


def decompress(payload: Buffer, length: int) -> bytes | None:
    """The chunk in ``payload``; None if that is not one zstd frame of ``length`` bytes and nothing else.

    G8: whatever the payload says, at most ``length`` bytes come out of it, and its window is bounded.
    """
    zstd = _library()
    try:
        info = zstd.get_frame_info(payload)
        if info.decompressed_size != length or info.dictionary_id:
            return None
        limits = {zstd.DecompressionParameter.window_log_max: m.MAX_ZSTD_WINDOW.bit_length() - 1}
        frame = zstd.ZstdDecompressor(options=limits)
        chunk: bytes = frame.decompress(payload, length)
    except zstd.ZstdError:
        return None
    whole = len(chunk) == length and frame.eof and not frame.unused_data
    return chunk if whole else None
