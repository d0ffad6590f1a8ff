"""The walk: one odd entry never ends it, what could not be listed is told, and it stays in what the user named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import NameRefused, SourceChanged, SourceError
from ftx.storage import scan
from ftx.storage.scan import FolderRead, Found, Odd
from ftx.storage.source import Place, Source
from tests.storage.support import XXH3

FILES = ("a", "b", "c", "one/x", "two/deep/x", "two/x", "zoo/x")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in FILES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x")
    return tree


def walked(tree: Path) -> Iterator[Found]:
    """What a walk finds in ``tree``."""
    places: list[Place] = []
    try:
        yield from scan.walk([os.fsencode(tree) + b"/"], bytes(32), XXH3, places)
    finally:
        for place in places:
            place.close()


def told(found: list[Found]) -> tuple[set[str], dict[str, Odd], list[str]]:
    """Paths of what is sent, what is not, and the folders that could not be listed whole."""
    sent = {one.target_path.decode() for one in found if isinstance(one, Source)}
    odd = {one.path.decode(): one for one in found if isinstance(one, Odd)}
    torn = [one.path.decode() for one in found if isinstance(one, FolderRead) and not one.whole]
    return sent, odd, torn


def fails(patch: pytest.MonkeyPatch, name: str, path: bytes, at: int = 1) -> None:
    """The ``at``-th ``os.NAME`` of ``path``, which may be a descriptor, fails."""
    real, calls = getattr(os, name), 0

    def failing(what: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        shown = os.fsencode(os.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else what
        calls += os.path.basename(shown) == path
        if os.path.basename(shown) == path and calls == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(what, *args, **kwargs)

    patch.setattr(os, name, failing)


ALL = {*FILES, "one", "two", "two/deep", "zoo"}


def test_everything_is_found(tree: Path) -> None:
    assert told(list(walked(tree))) == (ALL, {}, [])


@pytest.mark.parametrize(
    ("name", "path", "at", "missing", "torn"),
    [
        ("stat", b"b", 1, {"b"}, [""]),
        ("stat", b"two", 2, {"two", "two/x", "two/deep", "two/deep/x"}, [""]),
        ("listdir", b"two", 1, {"two", "two/x", "two/deep", "two/deep/x"}, [""]),
        ("listdir", b"deep", 1, {"two/deep", "two/deep/x"}, ["two"]),
    ],
    ids=["an-entry", "a-folder-on-the-way-down", "a-folder", "a-folder-below"],
)
def test_g11_one_that_cannot_be_read_does_not_end_the_walk(
    tree: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: bytes, at: int, missing: set[str], torn: list[str]
) -> None:
    """It fails alone, with what is in it; and the folder that it is in is not called whole."""
    with monkeypatch.context() as patch:
        fails(patch, name, path, at)
        sent, odd, not_whole = told(list(walked(tree)))
    assert sent == ALL - missing
    ((where, one),) = odd.items()
    assert where == min(missing)
    assert isinstance(one.error, SourceError)
    assert "Input/output error" in one.message
    assert not_whole == torn


def test_g11_a_link_that_cannot_be_read_fails_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "link").symlink_to("a")
    with monkeypatch.context() as patch:
        fails(patch, "readlink", b"link")
        sent, odd, _ = told(list(walked(tree)))
    assert sent == ALL
    assert isinstance(odd["link"].error, SourceError)


def test_g11_a_path_that_is_too_long_fails_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_PATH", len(b"two/deep"))
    sent, odd, _ = told(list(walked(tree)))
    assert sent == ALL - {"two/deep/x"}
    assert isinstance(odd["two/deep/x"].error, NameRefused)


def test_g6_names_that_are_kept_for_ftx_are_left_out(tree: Path) -> None:
    """With all that is in them, in any spelling; nobody asked for them, so that is no failure."""
    for name in (".ftx", "two/.FTX"):
        (tree / name).mkdir()
        (tree / name / "x").write_bytes(b"x")
    (tree / "one" / ".ftx").write_bytes(b"x")
    sent, odd, torn = told(list(walked(tree)))
    assert (sent, torn) == (ALL, [])
    assert odd.keys() == {".ftx", "two/.FTX", "one/.ftx"}
    assert {one.error for one in odd.values()} == {None}


SWAPS: dict[str, Callable[[Path, Path], object]] = {
    "folder": lambda folder, outside: outside.rename(folder),
    "link": lambda folder, outside: folder.symlink_to(outside),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS.keys())
def test_g6_another_folder_that_takes_the_place_of_one_is_not_walked(
    tree: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], object]
) -> None:
    """Between the look at it and its opening."""
    outside = tree.with_name("outside")
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    real, looks = os.stat, 0

    def swapped(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        nonlocal looks
        info = real(path, *args, **kwargs)
        looks += path == b"two"
        if looks == 2 and path == b"two":
            (tree / "two").rename(tree.with_name("gone"))
            swap(tree / "two", outside)
        return info

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", swapped)
        sent, odd, torn = told(list(walked(tree)))
    assert sent == {name for name in ALL if not name.startswith("two")}
    assert isinstance(odd["two"].error, SourceChanged if swap is SWAPS["folder"] else SourceError)
    assert torn == [""]


def test_g6_a_link_that_is_swapped_in_above_a_listed_folder_is_found(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``two`` becomes a link when it has been listed, before ``two/deep`` is entered."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "secret").write_bytes(b"secret")
    real = os.listdir

    def listdir(fd: int) -> list[str]:
        found = real(fd)
        if sorted(found) == ["deep", "x"] and not (tree / "two").is_symlink():
            (tree / "two").rename(tmp_path / "gone")
            (tree / "two").symlink_to(outside)
        return found

    monkeypatch.setattr(os, "listdir", listdir)
    sent, odd, torn = told(list(walked(tree)))
    assert "two/deep/secret" not in sent
    assert isinstance(odd["two/deep"].error, SourceChanged)
    assert torn == ["two"]
