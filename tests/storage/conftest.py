"""A destination, a place outside of it, and file systems that must be mounted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftx.storage.partial import PartialStore
from ftx.storage.paths import Root


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder next to the destination, that nothing may touch."""
    folder = tmp_path / "outside"
    (folder / "folder").mkdir(parents=True)
    (folder / "secret").write_bytes(b"secret" * 1000)
    (folder / "folder" / "file").write_bytes(b"file")
    (folder / "secret").chmod(0o640)
    return folder


@pytest.fixture
def root(into: Path) -> Iterator[Root]:
    root = Root(into)
    yield root
    root.close()


@pytest.fixture
def store(root: Root) -> PartialStore:
    return PartialStore(root, reserve=0)


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """Mounts something for the time of the test; skips it where that is not allowed."""
    mounted: list[Path] = []

    def mount(*arguments: str | Path, at: Path) -> None:
        done = subprocess.run(["mount", *arguments, at], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.strip()}")
        mounted.append(at)

    yield mount
    for at in reversed(mounted):
        subprocess.run(["umount", "-l", at], check=True)  # lazily: a test that failed may leave somebody in it
