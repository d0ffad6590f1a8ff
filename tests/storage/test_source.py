"""The sender's side: what is offered of a file, how it is read, and whether it is still the same."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftx.errors import SourceChanged, SourceError, SourceMissing
from ftx.protocol.manifest import ZERO_TAG, Kind, Pin, source_tag
from ftx.storage import disk, source
from ftx.storage.source import Source
from tests.storage.support import CHUNK, MTIME_NS, NEEDS_ROOT, XXH3, chunk, content, entry, fail_once, in_child

IDENTITY = b"i" * 32
WHAT = entry(size=3 * CHUNK + 100)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is old enough to be trusted."""
    monkeypatch.setattr(source, "TRUSTED_AGE_NS", 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "name"
    file.write_bytes(content(WHAT))
    file.chmod(0o640)
    os.utime(file, ns=(MTIME_NS, MTIME_NS))
    return file


@pytest.fixture
def pinned(settled: None, file: Path) -> Iterator[Source]:
    pinned = Source(os.fsencode(file), IDENTITY, XXH3)
    yield pinned
    pinned.close()


def read(of: Source, index: int) -> bytes:
    return bytes(of.read(index, memoryview(bytearray(of.grid.chunk))))


# --- What is offered -------------------------------------------------------------------------------------------------


def test_what_is_offered_is_what_the_file_system_says(pinned: Source, file: Path) -> None:
    offered, info = pinned.offered, file.stat()
    assert (offered.kind, offered.name) == (Kind.FILE, b"name")
    assert (offered.size, offered.mtime_ns, offered.mode) == (WHAT.size, MTIME_NS, 0o640)
    assert offered.allocated == WHAT.size  # never more than its size, though the last block is longer
    assert offered.tag == source_tag(IDENTITY, info.st_ino, info.st_ctime_ns)


@pytest.mark.parametrize("path", ["name", "./name", "../{}/name", "."], ids=["name", "dot", "up", "folder"])
def test_the_name_is_the_last_component(settled: None, file: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(file.parent)
    if path == ".":
        with pytest.raises(SourceError, match="a folder"):
            Source(os.fsencode(path), IDENTITY, XXH3)
        return
    pinned = Source(os.fsencode(path.format(file.parent.name)), IDENTITY, XXH3)
    assert pinned.offered.name == b"name"
    pinned.close()


def test_a_link_is_followed_and_offered_under_its_own_name(settled: None, file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    pinned = Source(os.fsencode(link), IDENTITY, XXH3)
    assert (pinned.offered.name, pinned.offered.size) == (b"link", WHAT.size)
    pinned.close()


def test_a_name_that_is_not_utf8(settled: None, file: Path) -> None:
    odd = os.fsencode(file.parent) + b"/\xff\n"
    os.rename(file, odd)
    pinned = Source(odd, IDENTITY, XXH3)
    assert pinned.offered.name == b"\xff\n"
    pinned.close()


def test_a_file_of_no_bytes(settled: None, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    pinned = Source(os.fsencode(tmp_path / "empty"), IDENTITY, XXH3)
    assert (pinned.offered.size, pinned.grid.count, list(pinned.holes())) == (0, 0, [])
    assert pinned.check() is Pin.SAME
    pinned.close()


@pytest.mark.parametrize("special", [0o4755, 0o2755, 0o1644])
def test_special_mode_bits_are_offered_as_they_are(settled: None, file: Path, special: int) -> None:
    """It is the receiver that masks them."""
    file.chmod(special)
    pinned = Source(os.fsencode(file), IDENTITY, XXH3)
    assert pinned.offered.mode == special
    pinned.close()


# --- What cannot be sent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["missing", "name/below", "missing/missing"])
def test_g11_what_is_not_there(file: Path, path: str) -> None:
    kind = SourceError if path.startswith("name") else SourceMissing
    with pytest.raises(kind) as caught:
        Source(os.fsencode(file.parent / path), IDENTITY, XXH3)
    assert caught.value.exit_code == 6


def test_g11_a_folder_a_pipe_a_device(tmp_path: Path) -> None:
    """And opening a pipe that nobody writes to holds nobody up."""
    os.mkfifo(tmp_path / "pipe")
    for path, text in [(tmp_path, "a folder"), (tmp_path / "pipe", "not a regular"), (Path("/dev/null"), "not a")]:
        with pytest.raises(SourceError, match=text) as caught:
            Source(os.fsencode(path), IDENTITY, XXH3)
        assert caught.value.exit_code == 6


@NEEDS_ROOT
def test_g11_a_file_that_may_not_be_read(shm: Path) -> None:
    shm.chmod(0o711)
    (shm / "file").touch(0o600)

    def work() -> None:
        with pytest.raises(SourceError, match="Permission denied"):
            Source(os.fsencode(shm / "file"), IDENTITY, XXH3)

    assert in_child(work, uid=65534) == 0


# --- Trust -----------------------------------------------------------------------------------------------------------


def test_g10_a_young_file_gets_a_tag_that_matches_nothing(file: Path) -> None:
    """Its next change could fall into the same tick of the clock and leave no trace, however old its mtime is."""
    pinned = Source(os.fsencode(file), IDENTITY, XXH3)
    assert pinned.offered.tag == ZERO_TAG
    assert pinned.check() is Pin.REREAD
    pinned.close()


@pytest.mark.parametrize(("age_s", "trusted"), [(1.9, False), (2.1, True), (-5.0, False)])
def test_g10_two_seconds_make_it_trusted(
    file: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, trusted: bool
) -> None:
    """Also a file from the future is not."""
    now = file.stat().st_ctime_ns + int(age_s * 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: now)
    pinned = Source(os.fsencode(file), IDENTITY, XXH3)
    assert (pinned.offered.tag != ZERO_TAG) is trusted
    assert pinned.check() is (Pin.SAME if trusted else Pin.REREAD)
    pinned.close()


def test_g10_a_young_mtime_counts_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose ctime lags behind, or a time in the future that was set by hand."""
    now = file.stat().st_ctime_ns + 10 * 10**9
    os.utime(file, ns=(now, now))
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**9)
    pinned = Source(os.fsencode(file), IDENTITY, XXH3)
    assert pinned.offered.tag == ZERO_TAG
    pinned.close()


# --- Still the same? -------------------------------------------------------------------------------------------------


def _write(file: Path, at: int, data: bytes) -> None:
    fd = os.open(file, os.O_WRONLY)
    os.pwrite(fd, data, at)
    os.close(fd)


def _same_time(file: Path) -> None:
    """A change that puts mtime back; ctime cannot be put back."""
    _write(file, 5, b"x")
    os.utime(file, ns=(MTIME_NS, MTIME_NS))


CHANGES: dict[str, tuple[Callable[[Path], object], Pin]] = {
    "nothing": (lambda file: file.read_bytes(), Pin.SAME),
    "overwritten": (lambda file: _write(file, 5, b"x"), Pin.CHANGED),
    "overwritten-and-dated-back": (_same_time, Pin.CHANGED),
    "touched": (lambda file: os.utime(file), Pin.CHANGED),
    "mode": (lambda file: file.chmod(0o600), Pin.CHANGED),
    "hard-link": (lambda file: file.with_name("other").hardlink_to(file), Pin.CHANGED),
    "renamed": (lambda file: file.rename(file.with_name("other")), Pin.CHANGED),
    "deleted": (lambda file: file.unlink(), Pin.CHANGED),
    "replaced": (lambda file: (file.unlink(), file.write_bytes(b"new")), Pin.CHANGED),
    "cut": (lambda file: os.truncate(file, WHAT.size - 1), Pin.CHANGED),
    "emptied": (lambda file: os.truncate(file, 0), Pin.CHANGED),
    "grown": (lambda file: _write(file, WHAT.size, b"x"), Pin.REREAD),
    "stretched": (lambda file: os.truncate(file, WHAT.size + CHUNK), Pin.REREAD),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_g10_a_change_is_seen(pinned: Source, file: Path, change: Callable[[Path], object], expected: Pin) -> None:
    time.sleep(0.005)  # a tick of the file system's clock, which a trusted age makes sure of
    change(file)
    assert pinned.check() is expected


def test_g10_a_file_that_was_replaced_is_read_to_its_end(pinned: Source, file: Path) -> None:
    """What was opened is what was offered, whatever has its name now."""
    other = file.with_name("other")
    other.write_bytes(b"new")
    other.rename(file)
    assert b"".join(read(pinned, index) for index in range(4)) == content(WHAT)


def test_g11_a_look_that_fails(pinned: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", failing)
        with pytest.raises(SourceError, match="Stale file handle"):
            pinned.check()


# --- Pinned anew -----------------------------------------------------------------------------------------------------


def test_what_was_read_counts_for_as_long_as_it_is_the_same_file(pinned: Source) -> None:
    pinned.digests.set(1, XXH3.function(chunk(1, WHAT)))
    pinned.pin()
    assert list(pinned.digests.known) == [(1, 2)]
    assert read(pinned, 1) == chunk(1, WHAT)


@pytest.mark.parametrize("name", [name for name, (_, pin) in CHANGES.items() if pin is not Pin.SAME])
def test_g10_what_was_read_of_another_version_does_not_count(pinned: Source, file: Path, name: str) -> None:
    time.sleep(0.005)
    pinned.digests.set(1, XXH3.function(chunk(1, WHAT)))
    CHANGES[name][0](file)
    if not file.exists():
        with pytest.raises(SourceMissing):
            pinned.pin()
        return
    tag = pinned.offered.tag
    pinned.pin()
    assert not pinned.digests.known
    assert pinned.offered.size == pinned.grid.size == file.stat().st_size
    assert pinned.offered.tag != tag


def test_g11_what_became_a_folder(pinned: Source, file: Path) -> None:
    file.unlink()
    file.mkdir()
    with pytest.raises(SourceError, match="a folder"):
        pinned.pin()


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_chunks_are_read_where_they_stand(pinned: Source) -> None:
    for index in (3, 0, 2, 1):
        assert read(pinned, index) == chunk(index, WHAT)


def test_short_reads_are_continued(pinned: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:100_000]], at))
    assert read(pinned, 1) == chunk(1, WHAT)
    assert read(pinned, 3) == chunk(3, WHAT)


@pytest.mark.parametrize("size", [0, CHUNK, 2 * CHUNK + 1, 3 * CHUNK + 99])
def test_g10_a_file_that_is_cut_while_it_is_read(pinned: Source, file: Path, size: int) -> None:
    os.truncate(file, size)
    for index in range(4):
        if min(WHAT.size, (index + 1) * CHUNK) <= size:
            assert read(pinned, index) == chunk(index, WHAT)
        else:
            with pytest.raises(SourceChanged, match="cut short"):
                read(pinned, index)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_g11_a_disk_that_fails(pinned: Source, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fail_once(monkeypatch, "read_at", number)
    with pytest.raises(SourceError, match=os.strerror(number)) as caught:
        read(pinned, 0)
    assert caught.value.exit_code == 6
    assert not isinstance(caught.value, SourceChanged)


# --- Holes -----------------------------------------------------------------------------------------------------------


def _sparse(path: Path, size: int, *data: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, piece in data:
            os.pwrite(file.fileno(), piece, at)
    return path


@pytest.mark.parametrize(
    ("size", "data", "holes"),
    [
        (10 * CHUNK, [], [(0, 10)]),
        (10 * CHUNK + 1, [], [(0, 11)]),
        (10 * CHUNK, [(0, b"x")], [(1, 10)]),
        (10 * CHUNK, [(10 * CHUNK - 1, b"x")], [(0, 9)]),
        (10 * CHUNK, [(4 * CHUNK - 1, b"xx")], [(0, 3), (5, 10)]),
        (10 * CHUNK, [(CHUNK, b"x" * CHUNK), (7 * CHUNK + 5, b"x")], [(0, 1), (2, 7), (8, 10)]),
        (3 * CHUNK, [(0, b"x" * 3 * CHUNK)], []),
    ],
    ids=["all", "odd-size", "first", "last", "across-an-edge", "two", "none"],
)
def test_the_chunks_in_holes(
    settled: None, tmp_path: Path, size: int, data: list[tuple[int, bytes]], holes: list[tuple[int, int]]
) -> None:
    path = _sparse(tmp_path / "sparse", size, *data)
    if path.stat().st_blocks * 512 >= size > 3 * CHUNK:
        pytest.skip("a file system without holes")
    pinned = Source(os.fsencode(path), IDENTITY, XXH3)
    assert list(pinned.holes()) == holes
    assert pinned.offered.allocated == min(size, path.stat().st_blocks * 512)
    pinned.close()


def test_g4_a_system_that_cannot_tell_holes_has_none(
    settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = Source(os.fsencode(_sparse(tmp_path / "sparse", 4 * CHUNK)), IDENTITY, XXH3)
    with monkeypatch.context() as patch:
        patch.delattr(os, "SEEK_DATA")
        assert not pinned.holes()

    def unsupported(fd: int, at: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", unsupported)
        assert not pinned.holes()
    pinned.close()


def test_data_ranges_stay_inside_what_was_asked_for(tmp_path: Path) -> None:
    path = _sparse(tmp_path / "sparse", 8 * CHUNK, (CHUNK, b"x" * 3 * CHUNK), (6 * CHUNK, b"x" * CHUNK))
    with path.open("rb") as file:
        fd = file.fileno()
        assert list(disk.data_ranges(fd, 0, 8 * CHUNK)) == [(CHUNK, 4 * CHUNK), (6 * CHUNK, 7 * CHUNK)]
        assert list(disk.data_ranges(fd, 2 * CHUNK, 3 * CHUNK)) == [(2 * CHUNK, 3 * CHUNK)]
        assert list(disk.data_ranges(fd, 0, CHUNK)) == []
        assert list(disk.data_ranges(fd, 7 * CHUNK, 8 * CHUNK)) == []
        assert list(disk.data_ranges(fd, 5, 5)) == []


def test_a_closed_source_is_closed_once(pinned: Source) -> None:
    pinned.close()
    pinned.close()
    assert pinned.fd == -1


def test_a_source_takes_nothing_from_its_file(pinned: Source, file: Path) -> None:
    """Not its mode, not its times, not its contents."""
    info = file.stat()
    for index in range(4):
        read(pinned, index)
    pinned.check()
    now = file.stat()
    assert (stat.S_IMODE(now.st_mode), now.st_mtime_ns, now.st_ctime_ns) == (
        stat.S_IMODE(info.st_mode),
        info.st_mtime_ns,
        info.st_ctime_ns,
    )
