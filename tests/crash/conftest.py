"""The file that is transferred again and again."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from tests.crash.processes import Setting
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until

MIB = 1024 * 1024


@pytest.fixture
def setting(shm: Path) -> Setting:
    """Three chunks, the last one short, and beside it a small file; the keys are there already."""
    source = shm / "source" / "file"
    for name, size in (("source", 2 * MIB + MIB // 2), ("small", 5000)):
        (shm / name).mkdir()
        (shm / name / "file").write_bytes(random.Random(5).randbytes(size))
    warm = shm / "warm"
    warm.mkdir()
    with LocalReceiver(warm) as receiver:  # also so that nothing is imported in the processes that are forked
        for name in ("source", "small"):
            assert local_send(warm, shm / name / "file", receiver.port).code == 0
    wait_until(lambda: threading.active_count() == 1)  # a fork takes no other thread along
    return Setting(source, warm / "config")
