"""What is transferred again and again."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from ftx.storage.scratch import GROUP_LEAST
from tests.crash.processes import Setting
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until

MIB = 1024 * 1024


def make_tree(top: Path) -> Path:
    """Folders in folders, an empty one, a link, an empty file, more small files than a group needs, and a large one."""
    rng = random.Random(6)
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "empty").mkdir()
    for number in range(GROUP_LEAST + 1):
        (top / "a" / f"small{number}").write_bytes(rng.randbytes(2000 + number))
    for number in range(3):
        (top / "a" / "b" / "c" / f"deep{number}").write_bytes(rng.randbytes(700 + number))
    (top / "a" / "nothing").write_bytes(b"")
    (top / "a" / "b" / "link").symlink_to("../small0")
    (top / "large").write_bytes(rng.randbytes(2 * MIB + MIB // 2))
    # What is in a folder first: making it changes the folder's time.
    for number, path in enumerate(sorted([top, *top.rglob("*")], reverse=True)):
        if not path.is_symlink():
            path.chmod((0o700 if path.is_dir() else 0o600) + number % 8)
        os.utime(path, ns=(0, 10**18 + number * 1_000_000_007), follow_symlinks=False)
    return top


@pytest.fixture
def setting(shm: Path) -> Setting:
    """Three chunks, the last one short, and beside it a small file and a tree; the keys are there already."""
    source = shm / "source" / "file"
    for name, size in (("source", 2 * MIB + MIB // 2), ("small", 5000)):
        (shm / name).mkdir()
        (shm / name / "file").write_bytes(random.Random(5).randbytes(size))
    make_tree(shm / "tree")
    warm = shm / "warm"
    warm.mkdir()
    with LocalReceiver(warm) as receiver:  # also so that nothing is imported in the processes that are forked
        for path in (source, shm / "small" / "file", shm / "tree"):
            assert local_send(warm, path, receiver.port).code == 0
    wait_until(lambda: threading.active_count() == 1)  # a fork takes no other thread along
    return Setting(source, warm / "config")
