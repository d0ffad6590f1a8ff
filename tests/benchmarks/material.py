"""What is sent: made by a seed, and known by its digests so that a copy can be judged."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
MEAN_SMALL_BYTES = 8000
SMALL_FOLDERS = 200
#: Far enough back for every tool to trust it.
MTIME_S = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. Bytes, and numbers of files."""

    big: int = 1024 * MIB
    medium: int = 100_000_000
    files: int = 20_000
    mixed: int = 300_000_000


QUICK = Sizes(big=64 * MIB, medium=5_000_000, files=500, mixed=10_000_000)


@dataclass(frozen=True, slots=True)
class Material:
    """A file or a tree to send.

    Attributes:
        contents: what is in it, as ``survey`` sees it.
    """

    name: str
    path: Path
    size: int
    contents: dict[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a copy differs from what was sent.

    Attributes:
        wrong: files that are missing or have other contents. None may be.
        not_carried: links and empty folders that have not become the same; some tools do not carry them.
    """

    wrong: list[str]
    not_carried: list[str]


def _write(path: Path, size: int, rng: random.Random) -> None:
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(rng.randbytes(min(MIB, size - at)))
    os.utime(path, (MTIME_S, MTIME_S))


def _small_sizes(count: int, rng: random.Random) -> Iterator[int]:
    return (int(rng.expovariate(1 / MEAN_SMALL_BYTES)) for _ in range(count))


def _single(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _write(path, size, random.Random(size))

    return make


def _small(count: int) -> Callable[[Path], None]:
    """Exponential sizes, all in as many folders as would hold a hundred each of 20,000."""

    def make(path: Path) -> None:
        rng = random.Random(count)
        for number in range(SMALL_FOLDERS):
            (path / f"folder{number:03}").mkdir(parents=True)
        for number, size in enumerate(_small_sizes(count, rng)):
            _write(path / f"folder{number % SMALL_FOLDERS:03}" / f"file{number:05}", size, rng)

    return make


def _mixed(total: int) -> Callable[[Path], None]:
    """Half of the bytes in two files, a quarter in ten, the rest in small ones; links and empty folders beside them."""

    def make(path: Path) -> None:
        rng = random.Random(total)
        path.mkdir()
        for number in range(2):
            _write(path / f"large{number}", total // 4, rng)
        for number in range(10):
            folder = path / f"album{number}" / "originals"
            folder.mkdir(parents=True)
            _write(folder / "middling", total // 40, rng)
            (path / f"album{number}" / "empty").mkdir()
        for number, size in enumerate(_small_sizes(total // 4 // MEAN_SMALL_BYTES, rng)):
            folder = path / f"album{number % 10}" / "originals"
            _write(folder / f"small{number:05}", size, rng)
            if number % 50 == 0:
                (folder / f"link{number:05}").symlink_to(f"small{number:05}")

    return make


def titles(sizes: Sizes) -> dict[str, str]:
    """What there is to send: name -> what it is."""
    return {
        "byte": "one byte",
        "big": f"one file of {_bytes_text(sizes.big)}",
        "medium": f"one file of {_bytes_text(sizes.medium)}",
        "small": f"{sizes.files:,} small files, {MEAN_SMALL_BYTES:,} bytes on average, in {SMALL_FOLDERS} folders",
        "mixed": f"a tree of {_bytes_text(sizes.mixed)}: few large files, many small ones, links, empty folders",
    }


def make(folder: Path, sizes: Sizes, name: str) -> Material:
    """One of the above, below ``folder``."""
    write = {
        "byte": _single(1),
        "big": _single(sizes.big),
        "medium": _single(sizes.medium),
        "small": _small(sizes.files),
        "mixed": _mixed(sizes.mixed),
    }[name]
    path = folder / name
    write(path)
    contents = survey(path)
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file() and not file.is_symlink())
    return Material(name, path, size, contents)


def _bytes_text(size: int) -> str:
    if size % (1024 * MIB) == 0:
        return f"{size // (1024 * MIB)} GiB"
    return f"{size // MIB} MiB" if size % MIB == 0 else f"{size / 1e6:g} MB"


def survey(path: Path) -> dict[str, str]:
    """Relative name -> digest of a file, ``-> target`` of a link, ``empty folder``."""
    if not path.is_dir():
        return {"": _digest(path)} if path.is_file() else {}
    found = {}
    for folder, folders, files in os.walk(path):
        below = Path(folder).relative_to(path)
        for name in files:
            entry = Path(folder, name)
            found[str(below / name)] = f"-> {entry.readlink()}" if entry.is_symlink() else _digest(entry)
        if not folders and not files:
            found[str(below)] = "empty folder"
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def judge(sent: dict[str, str], arrived: dict[str, str]) -> Verdict:
    """Compare two surveys."""
    different = [name for name, what in sent.items() if arrived.get(name) != what]
    odd = {name for name in different if sent[name].startswith("->") or sent[name] == "empty folder"}
    return Verdict([name for name in different if name not in odd], sorted(odd))
