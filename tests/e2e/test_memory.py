"""G8: memory does not grow with the size of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.files import MIB, fill
from tests.support.process import Receiver, sender

MOST = 80 * MIB


def _peaks(base: Path, size: int) -> tuple[int, int]:
    """Peak memory of sender and receiver, bytes; looked at until the sender ends."""
    source = fill(base / "large", size)
    sending = receiving = 0
    with Receiver(base, forked=False) as receiver, sender(base, source, receiver.port, forked=False) as process:
        while process.popen.poll() is None:
            sending = max(sending, process.peak_rss())
            receiving = max(receiving, receiver.peak_rss())
        assert process.wait() == 0, process.err
        assert receiving > 0 and sending > 0
    return sending, receiving


def test_G8_memory(shm: Path) -> None:
    assert max(_peaks(shm, 600 * MIB)) < MOST


@pytest.mark.long
def test_G8_memory_for_gibibytes(shm: Path) -> None:
    assert max(_peaks(shm, 4096 * MIB)) < MOST
