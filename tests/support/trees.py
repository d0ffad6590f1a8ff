"""Odd trees, made and changed by a seed, and judges of what became of them.

Names are bytes: not all of them are text.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1024 * 1024
OWN_FOLDER = b".ftx"

#: What file systems take and programs stumble over. ``%d`` keeps two apart.
NAMES = [
    b"plain%d",
    b"with space %d",
    b" %d ",
    b"new\nline%d",
    b"\x1b[31mred%d",
    b"tab\t\r\x7f%d",
    b"not utf-8 \xff\xfe%d",
    b"\x80%d",
    "übergröße 試 %d".encode(),
    "e\u0301%d".encode(),
    b"-leading-dash%d",
    b"--port=%d",
    b"a:b%d",
    b"127.0.0.1:%d",
    b"back\\slash%d",
    b"quo'te\"%d",
    b"*%d",
    b"[a-z]?%d",
    b"~%d",
    b"#%d#",
    b".hidden%d",
    b"...%d",
    b".ftx%d",
    b"%%s{}$HOME`id`%d",
    b"x" * 240 + b"%d",
]
SMALL = (0, 1, 2, 100, 511, 4096, 5000, 20_000)
EDGES = (MIB - 1, MIB, MIB + 1, 3 * MIB)
FILE_MODES = (0o644, 0o644, 0o600, 0o755, 0o777, 0o640, 0o444, 0o400)
FOLDER_MODES = (0o755, 0o755, 0o700, 0o750, 0o777, 0o555, 0o500)
TARGETS = (
    b"missing",
    b"..",
    b".",
    b"../../../../etc/passwd",
    b"/",
    b"/nowhere/at all",
    b"\xff not utf-8",
    b"new\nline",
    b"t" * 1000,
)


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in a tree, as it can be compared.

    Attributes:
        kind: ``"file"``, ``"folder"``, ``"link"`` or ``"other"``.
        size: bytes of a file, 0 for the others.
        content: digest of a file, target of a link, empty for the others.
    """

    kind: str
    mode: int
    mtime_ns: int
    size: int
    content: bytes


def snapshot(path: Path | bytes) -> dict[bytes, Node]:
    """All that is below a folder, by relative path; the folder itself is ``b""``. A receiver's own folder is not."""
    top = os.fsencode(path)
    found = {b"": _node(top)}
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(top, folder)) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            relative = os.path.join(folder, name)
            if relative == OWN_FOLDER:
                continue
            found[relative] = node = _node(os.path.join(top, relative))
            if node.kind == "folder":
                waiting.append(relative)
    return found


def _node(path: bytes) -> Node:
    info = os.lstat(path)
    kind, size, content = "other", 0, b""
    if stat.S_ISDIR(info.st_mode):
        kind = "folder"
    elif stat.S_ISLNK(info.st_mode):
        kind, content = "link", os.readlink(path)
    elif stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:  # noqa: PTH123  bytes
            content = hashlib.file_digest(file, "sha256").digest()
        kind, size = "file", info.st_size
    return Node(kind, stat.S_IMODE(info.st_mode), info.st_mtime_ns, size, content)


def files_in(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """What counts as a file: files and links."""
    return {path: node for path, node in tree.items() if node.kind in ("file", "link")}


def without_top(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    return {path: node for path, node in tree.items() if path}


def size_of(tree: dict[bytes, Node]) -> int:
    return sum(node.size for node in tree.values())


def nothing_to_do(source: Path | bytes, copy: Path | bytes, *, delete: bool = True, top: bool = True) -> list[str]:
    """What rsync, an independent judge, would do to make ``copy`` what ``source`` is; nothing, if all is well.

    Args:
        delete: something more in ``copy`` counts.
        top: mode and time of the two folders themselves count.
    """
    if shutil.which("rsync") is None:
        pytest.skip("needs rsync as a judge")
    # Owners are not ftx's to set; times are compared to the nanosecond.
    options = ["-an", "--no-owner", "--no-group", "--no-D", "--modify-window=-1", "--checksum", "--itemize-changes"]
    command = ["rsync", *options, "--exclude=/.ftx", *(["--delete"] if delete else [])]
    ends = [os.fsencode(source).rstrip(b"/") + b"/", os.fsencode(copy).rstrip(b"/") + b"/"]
    run = subprocess.run([*command, *ends], capture_output=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.decode("utf-8", "replace").splitlines()
    return [line for line in lines if not line.startswith("skipping non-regular") and (top or not line.endswith(" ./"))]


def assert_same(source: Path | bytes, copy: Path | bytes, *, delete: bool = True, top: bool = True) -> None:
    """Two judges agree that ``copy`` is what ``source`` is."""
    ours, theirs = snapshot(source), snapshot(copy)
    if not top:
        ours, theirs = without_top(ours), without_top(theirs)
    wrong = {path: (node, theirs.get(path)) for path, node in ours.items() if theirs.get(path) != node}
    assert not wrong, wrong
    assert not delete or theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    assert not (to_do := nothing_to_do(source, copy, delete=delete, top=top)), to_do


def unlock(path: Path) -> None:
    """Let everything below ``path`` be removed, also by who is not root."""
    for folder, names, _ in os.walk(os.fsencode(path)):
        for name in names:
            below = os.path.join(folder, name)
            if not os.path.islink(below):
                os.chmod(below, 0o700)


# --- making --------------------------------------------------------------------------------------------


def write(path: bytes, size: int, rng: random.Random, *, sparse: bool = False) -> None:
    """A file of ``size`` bytes, whole or with data at a few places only."""
    with open(path, "wb") as file:  # noqa: PTH123  bytes
        if not sparse:
            file.write(rng.randbytes(size))
            return
        file.truncate(size)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(size)
            file.seek(at)
            file.write(rng.randbytes(min(size - at, 5000)))


def old_ns(rng: random.Random) -> int:
    """A time between 1970 and 2024, with odd nanoseconds."""
    return rng.randrange(1, 1_700_000_000) * 10**9 + rng.randrange(10**9)


def _link(path: bytes, rng: random.Random, others: list[bytes]) -> None:
    target = rng.choice([*TARGETS, os.path.basename(path), *map(os.path.basename, others[-3:])])
    os.symlink(target, path)


class _Names:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._number = 0

    def new(self) -> bytes:
        self._number += 1
        return self._rng.choice(NAMES) % self._number


def random_tree(
    path: Path,
    seed: int,
    *,
    files: int = 36,
    folders: int = 12,
    links: int = 8,
    depth: int = 6,
    edges: int = 2,
    sparse: int = 1,
) -> Path:
    """An odd tree: names, modes, times, holes, links to nowhere, empty and read-only folders; the same for a seed.

    Args:
        files: small ones; ``edges`` more are as large as a chunk or nearly so, ``sparse`` more have holes.
        depth: of folders, at most.
    """
    rng = random.Random(f"tree {seed}")
    names = _Names(rng)
    top = os.fsencode(path)
    os.mkdir(top)
    levels = {top: 0}
    for _ in range(folders):
        above = rng.choice([folder for folder, level in levels.items() if level < depth])
        levels[new := os.path.join(above, names.new())] = levels[above] + 1
        os.mkdir(new)
    # One folder in four stays empty, if nothing was made in it already.
    homes = [top, *(folder for folder in levels if rng.random() < 0.75)]
    made: list[bytes] = []
    sizes = [rng.choice(SMALL) for _ in range(files)] + [rng.choice(EDGES) for _ in range(edges)]
    for size in sizes:
        made.append(os.path.join(rng.choice(homes), names.new()))
        write(made[-1], size, rng)
    for _ in range(sparse):
        made.append(os.path.join(rng.choice(homes), names.new()))
        write(made[-1], rng.randrange(1, 8 * MIB), rng, sparse=True)
    for file in made:
        os.chmod(file, rng.choice(FILE_MODES))
        os.utime(file, ns=(0, old_ns(rng)))
    for _ in range(links):
        link = os.path.join(rng.choice(homes), names.new())
        _link(link, rng, made)
        os.utime(link, ns=(0, old_ns(rng)), follow_symlinks=False)
    for folder in sorted(levels, key=len, reverse=True):
        os.chmod(folder, rng.choice(FOLDER_MODES))
        os.utime(folder, ns=(0, old_ns(rng)))
    return path


def change_tree(path: Path, seed: int, count: int = 12) -> None:
    """Add, delete, modify, touch and chmod at random; the same for a seed and a tree."""
    rng = random.Random(f"change {seed}")
    top = os.fsencode(path)
    before = snapshot(path)
    files = sorted(name for name, node in before.items() if node.kind == "file")
    folders = sorted(name for name, node in before.items() if node.kind == "folder")
    rng.shuffle(files)
    for number in range(count):
        what = rng.choice(["add", "add folder", "add link", "delete", "modify", "touch", "chmod", "chmod folder"])
        folder = os.path.join(top, rng.choice(folders))
        new = os.path.join(folder, rng.choice(NAMES) % (1000 + number))
        match what:
            case "add" | "add folder" | "add link":
                with _writable(folder):
                    if what == "add":
                        write(new, rng.choice(SMALL + EDGES[:1]), rng)
                    elif what == "add folder":
                        os.mkdir(new)
                    else:
                        _link(new, rng, [])
            case "delete" if files:
                file = os.path.join(top, files.pop())
                with _writable(os.path.dirname(file)):
                    os.unlink(file)
            case "modify" if files:
                file = os.path.join(top, files.pop())
                os.chmod(file, 0o600)
                write(file, rng.choice(SMALL), rng)
                os.utime(file, ns=(0, old_ns(rng)))
            case "touch" if files:
                os.utime(os.path.join(top, files.pop()), ns=(0, old_ns(rng)))
            case "chmod" if files:
                os.chmod(os.path.join(top, files.pop()), rng.choice(FILE_MODES))
            case "chmod folder":
                os.chmod(folder, rng.choice(FOLDER_MODES))


class _writable:
    """A folder, for a moment, for who is not root either."""

    def __init__(self, folder: bytes) -> None:
        self.folder = folder
        self.mode = stat.S_IMODE(os.lstat(folder).st_mode)

    def __enter__(self) -> None:
        os.chmod(self.folder, 0o700)

    def __exit__(self, *_: object) -> None:
        os.chmod(self.folder, self.mode)


def below(path: Path | bytes) -> Iterator[bytes]:
    """Relative paths of all that is below a folder."""
    return iter(sorted(without_top(snapshot(path))))
