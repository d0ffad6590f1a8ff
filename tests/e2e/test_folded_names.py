"""G1, G11: names that are two at the source and one at the destination. The second is refused, and only that."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from ftx.errors import NameRefused
from ftx.options import Exists
from ftx.storage import disk
from ftx.transfer import events
from tests.support import folding
from tests.support.files import MIB, fill
from tests.support.folding import REAL, FoldedNames
from tests.support.local import LocalReceiver, local_send
from tests.support.trees import snapshot

#: Two spellings of one name; none of them is longer in bytes than a name may be.
SPELLINGS = {
    "case": ("README", "readme"),
    "case-beyond-ascii": ("GRÖSSE", "größe"),
    "normalization": ("caf\u00e9", "cafe\u0301"),
    "both": ("CAF\u00c9", "cafe\u0301"),
}
#: Of the first and of the second: published in a group, one by one, as a partial of several chunks.
SIZES = {
    "small": (1000, 1001),
    "a-chunk": (200_000, 200_001),
    "large": (2 * MIB + 1, 2 * MIB + 2),
    "small-then-large": (1000, 2 * MIB),
}


@pytest.fixture
def folded(shm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A destination whose names fold as far as ``disk`` is asked."""
    FoldedNames().install(monkeypatch)
    (shm / "into").mkdir()
    return shm / "into"


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, shm: Path) -> Iterator[Path]:
    """A folder on a real file system that folds; skipped where this machine has no such."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    with REAL[request.param](shm) as folder:
        yield folder


def send(base: Path, path: Path | bytes, into: Path, **options: Any) -> tuple[Any, dict[bytes, events.EntryEnded]]:
    """How a send to a receiver of its own ended, and how each entry did."""
    ended: dict[bytes, events.EntryEnded] = {}

    def on_event(event: Any) -> None:
        if isinstance(event, events.EntryEnded):
            assert event.path not in ended
            ended[event.path] = event

    with LocalReceiver(base, dir=into, **options) as receiver:
        return local_send(base, path, receiver.port, on_event=on_event), ended


def refused(ended: dict[bytes, events.EntryEnded]) -> list[bytes]:
    """What was refused for its name; nothing failed otherwise."""
    failed = [event for event in ended.values() if event.state == "failed"]
    for event in failed:
        assert event.code == NameRefused.exit_code
        assert "takes this name for another" in event.message
    return [event.path for event in failed]


def arrived(into: Path) -> dict[str, bytes]:
    """Contents of all files, by path below a destination."""
    found = {}
    for path in into.rglob("*"):
        if path.is_file() and not path.relative_to(into).parts[0].startswith(".ftx"):
            found[str(path.relative_to(into))] = path.read_bytes()
    return found


def matrix() -> list[ParameterSet]:
    """Every day each of the names, sizes and policies once; all that go together when there is time."""
    names, sizes, policies = list(SPELLINGS), list(SIZES), list(Exists)
    rows = []
    for one, two, policy in product(names, sizes, policies):
        usual = [one != names[0], two != sizes[0], policy is not Exists.REPLACE]
        rows.append(
            pytest.param(
                SPELLINGS[one], SIZES[two], policy, id=f"{one}-{two}-{policy.value}",
                marks=pytest.mark.long if sum(usual) > 1 else (),
            )
        )  # fmt: skip
    return rows


@pytest.mark.parametrize(("names", "sizes", "policy"), matrix())
def test_g1_g11_of_two_names_that_fold_one_arrives_and_one_is_refused(
    folded: Path, shm: Path, names: tuple[str, str], sizes: tuple[int, int], policy: Exists
) -> None:
    """Together in one tree, in whatever order; a third file arrives, and so does what is in a folder."""
    source = shm / "source"
    (source / "below").mkdir(parents=True)
    for seed, (name, size) in enumerate(zip(names, sizes, strict=True)):
        fill(source / "below" / name, size, seed)
    fill(source / "below" / "third", 500)
    finished, ended = send(shm, source, folded, exists=policy)
    assert len(refused(ended)) == 1, (finished, ended)
    (path,) = refused(ended)
    assert path in [f"source/below/{name}".encode() for name in names]
    assert (finished.code, finished.failed, finished.files) == (9, 1, 2)
    there = next(name for name in names if path != f"source/below/{name}".encode())
    assert arrived(folded) == {
        f"source/below/{name}": (source / "below" / name).read_bytes() for name in (there, "third")
    }


@pytest.mark.parametrize(("names", "sizes", "policy"), matrix())
def test_g1_g11_a_name_that_folds_onto_what_is_there_is_refused(
    folded: Path, shm: Path, names: tuple[str, str], sizes: tuple[int, int], policy: Exists
) -> None:
    """In a later run and by another receiver: what was there is untouched, and its own name is not refused."""
    for seed, (folder, name, size) in enumerate(zip(("one", "two"), names, sizes, strict=True)):
        (shm / folder).mkdir()
        fill(shm / folder / name, size, seed)
    first, second = (shm / folder / name for folder, name in zip(("one", "two"), names, strict=True))
    assert send(shm, first, folded, exists=policy)[0].code == 0
    before = snapshot(folded)
    finished, ended = send(shm, second, folded, exists=policy)
    assert refused(ended) == [names[1].encode()]
    assert finished.code == NameRefused.exit_code
    assert arrived(folded) == {names[0]: first.read_bytes()}
    assert snapshot(folded) == before
    assert send(shm, first, folded, exists=policy)[0].code == 0


def test_g1_a_link_that_folds_onto_a_file_is_refused(folded: Path, shm: Path) -> None:
    source = shm / "source"
    source.mkdir()
    fill(source / "A", 500)
    (source / "a").symlink_to("nowhere")
    finished, ended = send(shm, bytes(source) + b"/", folded)
    assert finished.code == 9
    (path,) = refused(ended)
    assert (folded / "a").is_symlink() == (path == b"A")
    assert (folded / "A").exists() == (path == b"a")
    assert len([name for name in os.listdir(folded) if name != ".ftx"]) == 1


def test_g1_files_of_two_folders_that_fold_are_not_mixed(folded: Path, shm: Path) -> None:
    """The folder that came second is refused with all that is in it."""
    source = shm / "source"
    for seed, folder in enumerate(("Photos", "photos")):
        (source / folder).mkdir(parents=True)
        fill(source / folder / "a", 500 + seed, seed)
    finished, ended = send(shm, bytes(source) + b"/", folded)
    there, other = ("Photos", "photos") if ended[b"Photos/a"].state == "done" else ("photos", "Photos")
    assert sorted(refused(ended)) == [other.encode(), f"{other}/a".encode()]
    assert finished.code == 9
    assert arrived(folded) == {f"{there}/a": (source / there / "a").read_bytes()}


def test_g1_names_that_fold_where_each_spelling_has_an_inode_number(
    folded: Path, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems by FUSE number what a name finds, and not what is there."""
    look = disk.look

    def numbered(name: bytes, *, folder: int) -> os.stat_result | None:
        info = look(name, folder=folder)
        return info and os.stat_result((info.st_mode, hash(name), *info[2:]))

    monkeypatch.setattr(disk, "look", numbered)
    assert one_of_two(shm, folded)


def test_g1_names_that_fold_by_normalization_alone(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "fold", lambda name: unicodedata.normalize("NFC", name.decode()).encode())
    FoldedNames().install(monkeypatch)
    assert one_of_two(shm, shm / "into", "caf\u00e9", "cafe\u0301")


def test_g1_names_that_fold_in_one_folder_and_not_above(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several file systems it is a matter of each folder."""
    below = shm / "into" / "below"
    below.mkdir(parents=True)
    inode, real = below.stat().st_ino, FoldedNames.spelled

    def spelled(name: bytes, folder: int) -> bytes:
        return real(name, folder) if os.fstat(folder).st_ino == inode else name

    monkeypatch.setattr(FoldedNames, "spelled", staticmethod(spelled))
    FoldedNames().install(monkeypatch)
    assert one_of_two(shm, shm / "into", top="below")


def one_of_two(shm: Path, into: Path, *names: str, top: str = "") -> bool:
    """Whether of two files whose names fold one arrived and the other was refused."""
    names = names or ("README", "readme")
    (shm / "source" / top).mkdir(parents=True)
    for seed, name in enumerate(names):
        fill(shm / "source" / top / name, 1000 + seed, seed)
    finished, ended = send(shm, bytes(shm / "source") + b"/", into)
    (other,) = refused(ended)
    (there,) = {os.path.join(top, name) for name in names} - {other.decode()}
    return finished.code == 9 and arrived(into) == {there: (shm / "source" / there).read_bytes()}


def test_g1_g11_names_that_fold_on_a_real_file_system(real: Path, shm: Path) -> None:
    """What is there under one spelling stays as it is when another is sent; what goes with that arrives."""
    source = shm / "source"
    for folder, name, size in (("one", "readme", 1000), ("two", "README", 1001), ("two", "third", 500)):
        (source / folder).mkdir(parents=True, exist_ok=True)
        fill(source / folder / name, size, size)
    into = real / "into"
    assert send(shm, bytes(source / "one") + b"/", into)[0].code == 0
    finished, ended = send(shm, bytes(source / "two") + b"/", into)
    assert refused(ended) == [b"README"]
    assert (finished.code, finished.failed) == (9, 1)
    assert arrived(into) == {
        "readme": (source / "one" / "readme").read_bytes(),
        "third": (source / "two" / "third").read_bytes(),
    }
    assert not os.listdir(into / ".ftx")
