"""The sender's side: what is offered of a file, how it is read, and whether it is still the same."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import SourceChanged, SourceError, SourceMissing
from ftx.protocol.manifest import ZERO_TAG, Kind, Pin, source_tag
from ftx.storage import disk, scan, source
from ftx.storage.scan import FolderRead, Found, Odd
from ftx.storage.source import Place, Source
from tests.storage.support import CHUNK, MTIME_NS, NEEDS_ROOT, XXH3, chunk, content, entry, fail_once, in_child

IDENTITY = b"i" * 32
PATIENCE_S = 10
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
    pinned = named(file)
    yield pinned
    pinned.rest()


@pytest.fixture
def opened(pinned: Source) -> Source:
    """One that has been read from already."""
    read(pinned, 0)
    return pinned


def found(path: Path | bytes) -> list[Found]:
    """What a walk finds under a name that the user gave."""
    places: list[Place] = []
    try:
        return list(scan.walk([os.fsencode(path)], IDENTITY, XXH3, places))
    finally:
        for place in places:
            place.close()


def named(path: Path | bytes) -> Source:
    """The file of this name; ``rest`` must follow."""
    (one,) = found(path)
    assert isinstance(one, Source)
    return one


def descriptors(path: Path) -> int:
    """How often this process has it open."""
    return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))


def read(of: Source, index: int) -> bytes:
    return bytes(of.read(index, memoryview(bytearray(of.grid.chunk))))


# --- What is offered -------------------------------------------------------------------------------------------------


def test_what_is_offered_is_what_the_file_system_says(pinned: Source, file: Path) -> None:
    offered, info = pinned.offered, file.stat()
    assert (offered.kind, offered.name) == (Kind.FILE, b"name")
    assert (offered.size, offered.mtime_ns, offered.mode) == (WHAT.size, MTIME_NS, 0o640)
    assert offered.allocated == WHAT.size  # never more than its size, though the last block is longer
    assert offered.tag == source_tag(IDENTITY, info.st_ino, info.st_ctime_ns)


@pytest.mark.parametrize("path", ["name", "./name", "../{}/name"], ids=["name", "dot", "up"])
def test_the_name_is_the_last_component(settled: None, file: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(file.parent)
    pinned = named(os.fsencode(path.format(file.parent.name)))
    assert pinned.offered.name == pinned.target_path == b"name"
    assert read(pinned, 3) == chunk(3, WHAT)
    pinned.rest()


def test_an_offer_costs_no_descriptor(pinned: Source, file: Path) -> None:
    """There may be as many as the window has; only what is read is open, and no longer than that."""
    assert descriptors(file) == 0
    pinned.holes()
    read(pinned, 0)
    read(pinned, 1)
    pinned.check()
    assert descriptors(file) == 1
    pinned.rest()
    assert descriptors(file) == 0


def test_a_link_is_followed_and_offered_under_its_own_name(settled: None, file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    pinned = named(link)
    assert (pinned.offered.kind, pinned.offered.name, pinned.offered.size) == (Kind.FILE, b"link", WHAT.size)
    assert read(pinned, 1) == chunk(1, WHAT)
    pinned.rest()


def test_a_name_that_is_not_utf8(settled: None, file: Path) -> None:
    odd = os.fsencode(file.parent) + b"/\xff\n"
    os.rename(file, odd)
    pinned = named(odd)
    assert pinned.offered.name == b"\xff\n"
    pinned.rest()


def test_a_file_of_no_bytes(settled: None, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    pinned = named(tmp_path / "empty")
    assert (pinned.offered.size, pinned.grid.count, list(pinned.holes())) == (0, 0, [])
    assert pinned.check() is Pin.SAME
    pinned.rest()


@pytest.mark.parametrize("special", [0o4755, 0o2755, 0o1644])
def test_special_mode_bits_are_offered_as_they_are(settled: None, file: Path, special: int) -> None:
    """It is the receiver that masks them."""
    file.chmod(special)
    pinned = named(file)
    assert pinned.offered.mode == special
    pinned.rest()


# --- What cannot be sent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["missing", "name/below", "missing/missing"])
def test_g11_what_is_not_there(file: Path, path: str) -> None:
    kind = SourceError if path.startswith("name") else SourceMissing
    (odd,) = found(file.parent / path)
    assert isinstance(odd, Odd)
    assert isinstance(odd.error, kind)
    assert (odd.error.exit_code, odd.path) == (6, os.path.basename(os.fsencode(path)))
    assert str(file.parent) in odd.message


def test_g11_a_pipe_a_device_that_was_named(tmp_path: Path) -> None:
    """And opening a pipe that nobody writes to holds nobody up."""
    os.mkfifo(tmp_path / "pipe")
    for path, text in [(tmp_path / "pipe", "a FIFO, not a regular"), (Path("/dev/null"), "a character device, not a")]:
        (odd,) = found(path)
        assert isinstance(odd, Odd)
        assert isinstance(odd.error, SourceError)
        assert odd.error.exit_code == 6
        assert text in odd.message


def test_a_pipe_that_was_found_is_left_out(settled: None, file: Path) -> None:
    """Nobody asked for it: that is no failure."""
    os.mkfifo(file.with_name("pipe"))
    odd = next(one for one in found(file.parent) if isinstance(one, Odd))
    assert odd == Odd(os.fsencode(file.parent.name) + b"/pipe", "a FIFO is not sent")


def test_a_folder_is_walked_and_offered_behind_what_is_in_it(settled: None, file: Path) -> None:
    one, end, folder = found(file.parent)
    assert isinstance(one, Source) and isinstance(folder, Source)
    name = os.fsencode(file.parent.name)
    assert (one.target_path, folder.target_path) == (name + b"/name", name)
    assert end == FolderRead(name, True)
    assert (folder.offered.kind, folder.offered.size, folder.grid.count) == (Kind.FOLDER, 0, 0)


@pytest.mark.parametrize("swap", ["pipe", "folder", "link", "missing"])
def test_g11_what_becomes_something_else_before_it_is_read(pinned: Source, file: Path, swap: str) -> None:
    """A pipe there holds nobody up, and nothing else is taken for the file that was offered."""
    other = file.with_name("other")
    file.rename(other)
    if swap == "pipe":
        os.mkfifo(file)
    elif swap == "folder":
        file.mkdir()
    elif swap == "link":
        other.write_bytes(b"another")
        file.symlink_to(other)
    with pytest.raises(SourceMissing if swap == "missing" else SourceChanged) as caught:
        read(pinned, 0)
    assert caught.value.exit_code == 6
    assert descriptors(file) == 0


@NEEDS_ROOT
def test_g11_a_file_that_may_not_be_read(shm: Path) -> None:
    shm.chmod(0o711)
    (shm / "file").write_bytes(b"x")
    (shm / "file").chmod(0o600)

    def work() -> None:
        (odd,) = found(shm / "file")
        assert isinstance(odd, Odd)
        assert isinstance(odd.error, SourceError)
        assert "Permission denied" in odd.message

    assert in_child(work, uid=65534) == 0


@NEEDS_ROOT
def test_g11_a_file_that_may_not_be_read_any_more(shm: Path) -> None:
    shm.chmod(0o711)
    (shm / "file").write_bytes(b"x")

    def work() -> None:
        pinned = Source(Place(b"", IDENTITY, XXH3), os.fsencode(shm / "file"), b"", b"file", (shm / "file").stat())
        for attempt in (lambda: read(pinned, 0), lambda: pinned.read_small(memoryview(bytearray(9)))):
            with pytest.raises(SourceError, match="Permission denied"):
                attempt()

    (shm / "file").chmod(0o600)
    assert in_child(work, uid=65534) == 0


# --- Trust -----------------------------------------------------------------------------------------------------------


def test_g10_a_young_file_gets_a_tag_that_matches_nothing(file: Path) -> None:
    """Its next change could fall into the same tick of the clock and leave no trace, however old its mtime is."""
    pinned = named(file)
    assert pinned.offered.tag == ZERO_TAG
    assert pinned.check() is Pin.REREAD
    pinned.rest()


@pytest.mark.parametrize(("age_s", "trusted"), [(1.9, False), (2.1, True), (-5.0, False)])
def test_g10_two_seconds_make_it_trusted(
    file: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, trusted: bool
) -> None:
    """Also a file from the future is not."""
    now = file.stat().st_ctime_ns + int(age_s * 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: now)
    pinned = named(file)
    assert (pinned.offered.tag != ZERO_TAG) is trusted
    assert pinned.check() is (Pin.SAME if trusted else Pin.REREAD)
    pinned.rest()


def test_g10_a_young_mtime_counts_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose ctime lags behind, or a time in the future that was set by hand."""
    now = file.stat().st_ctime_ns + 10 * 10**9
    os.utime(file, ns=(now, now))
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**9)
    pinned = named(file)
    assert pinned.offered.tag == ZERO_TAG
    pinned.rest()


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
def test_g10_a_change_is_seen(opened: Source, file: Path, change: Callable[[Path], object], expected: Pin) -> None:
    time.sleep(0.005)  # a tick of the file system's clock, which a trusted age makes sure of
    change(file)
    assert opened.check() is expected


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_g10_a_change_before_the_first_reading_is_seen(
    pinned: Source, file: Path, change: Callable[[Path], object], expected: Pin
) -> None:
    """What is opened must be what was offered; one that grew in place is looked at, and read, again in the end."""
    time.sleep(0.005)
    change(file)
    if expected is not Pin.CHANGED:
        assert read(pinned, 0) == chunk(0, WHAT)
        assert pinned.check() is expected
        return
    for attempt in (pinned.check, lambda: read(pinned, 0)):
        with pytest.raises(SourceChanged if file.exists() else SourceMissing):
            attempt()
    assert descriptors(file) == 0


def test_g10_a_larger_file_in_its_place_is_not_it(pinned: Source, file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(content(WHAT) + b"more")
    other.rename(file)
    with pytest.raises(SourceChanged):
        read(pinned, 0)
    with pytest.raises(SourceChanged):
        pinned.read_small(memoryview(bytearray(WHAT.size)))


def test_g10_a_change_while_it_rests_is_seen(opened: Source, file: Path) -> None:
    opened.rest()
    time.sleep(0.005)
    _same_time(file)
    with pytest.raises(SourceChanged):
        read(opened, 1)


def test_g10_a_file_that_was_replaced_is_read_to_its_end(opened: Source, file: Path) -> None:
    """What was opened is what was offered, whatever has its name now."""
    other = file.with_name("other")
    other.write_bytes(b"new")
    other.rename(file)
    assert b"".join(read(opened, index) for index in range(4)) == content(WHAT)


def test_g11_a_look_that_fails(opened: Source, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", failing)
        with pytest.raises(SourceError, match="Stale file handle"):
            opened.check()
        opened.rest()
        with pytest.raises(SourceError, match="Stale file handle"):
            opened.check()
    assert descriptors(file) == 0


# --- Pinned anew -----------------------------------------------------------------------------------------------------


def test_what_was_read_counts_for_as_long_as_it_is_the_same_file(pinned: Source) -> None:
    pinned.digests.set(1, XXH3.function(chunk(1, WHAT)))
    again = pinned.renewed()
    assert list(again.digests.known) == [(1, 2)]
    assert read(again, 1) == chunk(1, WHAT)
    again.rest()


def test_g10_what_was_read_does_not_count_once_it_was_found_changed(pinned: Source) -> None:
    """Also under the same times, which a mapped file, or one that is too young, does not change."""
    pinned.digests.set(1, XXH3.function(chunk(1, WHAT)))
    pinned.forget()
    assert not pinned.renewed().digests.known


@pytest.mark.parametrize("name", [name for name, (_, pin) in CHANGES.items() if pin is not Pin.SAME])
def test_g10_what_was_read_of_another_version_does_not_count(pinned: Source, file: Path, name: str) -> None:
    time.sleep(0.005)
    pinned.digests.set(1, XXH3.function(chunk(1, WHAT)))
    CHANGES[name][0](file)
    if not file.exists():
        with pytest.raises(SourceMissing):
            pinned.renewed()
        return
    again = pinned.renewed()
    assert not again.digests.known
    assert again.offered.size == again.grid.size == file.stat().st_size
    assert again.offered.tag != pinned.offered.tag


@pytest.mark.parametrize("size", [0, 100, CHUNK + 1, 5 * CHUNK])
def test_g10_a_newer_look_changes_nothing_for_whoever_uses_the_older_one(opened: Source, file: Path, size: int) -> None:
    """A lane that is late with a chunk of what was offered reads that, or finds that it changed."""
    before = opened.offered, opened.grid
    os.truncate(file, size)
    again = opened.renewed()
    assert (opened.offered, opened.grid) == before
    for index in range(4):
        if size > WHAT.size:
            assert read(opened, index) == chunk(index, WHAT)
        else:
            with pytest.raises(SourceChanged):
                read(opened, index)
    assert again.offered.size == again.grid.size == size
    for one in (again, opened):
        one.rest()
    assert descriptors(file) == 0


def test_g11_what_became_a_folder(pinned: Source, file: Path) -> None:
    file.unlink()
    file.mkdir()
    with pytest.raises(SourceError, match="something else"):
        pinned.renewed()


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
def test_g10_a_file_that_is_cut_while_it_is_read(opened: Source, file: Path, size: int) -> None:
    os.truncate(file, size)
    for index in range(4):
        if min(WHAT.size, (index + 1) * CHUNK) <= size:
            assert read(opened, index) == chunk(index, WHAT)
        else:
            with pytest.raises(SourceChanged, match="cut short"):
                read(opened, index)


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
    pinned = named(path)
    assert list(pinned.holes()) == holes
    assert pinned.offered.allocated == min(size, path.stat().st_blocks * 512)
    pinned.rest()


def test_g4_a_system_that_cannot_tell_holes_has_none(
    settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = named(_sparse(tmp_path / "sparse", 4 * CHUNK))
    with monkeypatch.context() as patch:
        patch.delattr(os, "SEEK_DATA")
        assert not pinned.holes()

    def unsupported(fd: int, at: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", unsupported)
        assert not pinned.holes()
    pinned.rest()


def test_data_ranges_stay_inside_what_was_asked_for(tmp_path: Path) -> None:
    path = _sparse(tmp_path / "sparse", 8 * CHUNK, (CHUNK, b"x" * 3 * CHUNK), (6 * CHUNK, b"x" * CHUNK))
    with path.open("rb") as file:
        fd = file.fileno()
        assert list(disk.data_ranges(fd, 0, 8 * CHUNK)) == [(CHUNK, 4 * CHUNK), (6 * CHUNK, 7 * CHUNK)]
        assert list(disk.data_ranges(fd, 2 * CHUNK, 3 * CHUNK)) == [(2 * CHUNK, 3 * CHUNK)]
        assert list(disk.data_ranges(fd, 0, CHUNK)) == []
        assert list(disk.data_ranges(fd, 7 * CHUNK, 8 * CHUNK)) == []
        assert list(disk.data_ranges(fd, 5, 5)) == []


def test_a_source_that_rests_is_closed_once_and_opened_again(opened: Source, file: Path) -> None:
    opened.rest()
    opened.rest()
    assert descriptors(file) == 0
    assert read(opened, 2) == chunk(2, WHAT)
    assert descriptors(file) == 1


def test_a_source_is_closed_behind_whoever_reads(opened: Source, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is closed under a read could be anybody's by then."""
    real = disk.read_at

    def resting(fd: int, buffer: memoryview, offset: int) -> int:
        opened.rest()
        assert descriptors(file) == 1
        return real(fd, buffer, offset)

    monkeypatch.setattr(disk, "read_at", resting)
    assert read(opened, 1) == chunk(1, WHAT)
    assert descriptors(file) == 0


@pytest.mark.parametrize("call", ["open", "fstat", "close"])
def test_g9_a_source_whose_disk_is_stuck_holds_no_other_up(
    settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Nor whoever only lets go of it. Sources are many, and have one lock."""
    for name in ("stuck", "other"):
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"contents")
    places: list[Place] = []
    other, stuck, *_ = scan.walk([os.fsencode(tmp_path / "tree")], IDENTITY, XXH3, places)
    assert isinstance(stuck, Source) and isinstance(other, Source)
    if call == "close":
        read(stuck, 0)
    inside, go_on = threading.Event(), threading.Event()
    real = getattr(os, call)
    once = iter([True])

    def waiting(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is reader and next(once, False):
            inside.set()
            assert go_on.wait(PATIENCE_S)
        return real(*args, **kwargs)

    reader = threading.Thread(target=stuck.rest if call == "close" else lambda: read(stuck, 0))
    others: list[bytes] = []

    def meanwhile() -> None:
        stuck.rest()
        others.append(read(other, 0))
        other.rest()

    with monkeypatch.context() as patch:
        patch.setattr(os, call, waiting)
        reader.start()
        assert inside.wait(PATIENCE_S)
        another = threading.Thread(target=meanwhile)
        another.start()
        another.join(PATIENCE_S / 10)
        in_time = list(others)
        go_on.set()
        reader.join()
        another.join()
    assert in_time == [b"contents"]
    assert descriptors(tmp_path / "tree" / "stuck") == 0
    for place in places:
        place.close()


def test_a_source_that_two_open_at_once_is_open_once(
    pinned: Source, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Source._open
    both = threading.Barrier(2)

    def together(one: Source) -> int:
        fd = real(one)
        both.wait(PATIENCE_S)
        return fd

    got: list[bytes] = []
    readers = [threading.Thread(target=lambda at=at: got.append(read(pinned, at))) for at in (0, 1)]  # type: ignore[misc]
    with monkeypatch.context() as patch:
        patch.setattr(Source, "_open", together)
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert sorted(got) == sorted([chunk(0, WHAT), chunk(1, WHAT)])
    assert descriptors(file) == 1
    pinned.rest()
    assert descriptors(file) == 0


def test_a_source_that_could_not_be_opened_can_be_later(
    pinned: Source, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(SourceError):
            read(pinned, 0)
    assert read(pinned, 0) == chunk(0, WHAT)
    pinned.rest()
    assert descriptors(file) == 0


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


# --- Small files, read in one go -------------------------------------------------------------------------------------

SMALL = entry(size=5000)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small"
    file.write_bytes(content(SMALL))
    os.utime(file, ns=(MTIME_NS, MTIME_NS))
    return file


def read_small(of: Source) -> bytes:
    return bytes(of.read_small(memoryview(bytearray(64 * 1024))))


def test_a_small_file_is_read_in_one_go_and_left_alone(settled: None, small: Path) -> None:
    pinned, before = named(small), small.stat()
    for _ in range(2):
        assert read_small(pinned) == content(SMALL)
        assert descriptors(small) == 0
    now = small.stat()
    assert (now.st_mtime_ns, now.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


@pytest.mark.parametrize("name", CHANGES.keys())
def test_g10_a_change_of_a_small_file_is_seen(settled: None, small: Path, name: str) -> None:
    """What only grew was, in its first bytes, at one moment what is read twice."""
    pinned = named(small)
    time.sleep(0.005)
    change, expected = CHANGES[name]
    if name in ("cut", "grown", "stretched"):
        os.truncate(small, SMALL.size + {"cut": -1, "grown": 1, "stretched": CHUNK}[name])
    else:
        change(small)
    if not small.exists():
        with pytest.raises(SourceMissing):
            read_small(pinned)
    elif expected is Pin.CHANGED:
        with pytest.raises(SourceChanged):
            read_small(pinned)
    else:
        assert read_small(pinned) == content(SMALL)
    assert descriptors(small) == 0


@pytest.mark.parametrize("grown", [False, True], ids=["young", "grown"])
@pytest.mark.parametrize("steady", [False, True], ids=["changing", "steady"])
def test_g10_a_small_file_whose_times_show_no_change_is_read_twice(
    small: Path, monkeypatch: pytest.MonkeyPatch, grown: bool, steady: bool
) -> None:
    if grown:
        monkeypatch.setattr(source, "TRUSTED_AGE_NS", 0)
    pinned = named(small)
    if grown:
        os.truncate(small, SMALL.size + 1)
    reads = 0
    real = disk.read_at

    def reading(fd: int, buffer: memoryview, offset: int) -> int:
        nonlocal reads
        reads += 1
        done = real(fd, buffer, offset)
        if not steady:
            _write(small, 7, b"x%d" % reads)  # too fast for the clock, as far as anybody can tell
        return done

    with monkeypatch.context() as patch:
        patch.setattr(disk, "read_at", reading)
        patch.setattr(Source, "_stamps", staticmethod(lambda info: (info.st_size,)))
        if steady:
            assert read_small(pinned) == content(SMALL)
        else:
            with pytest.raises(SourceChanged):
                read_small(pinned)
    assert reads == 2
    assert descriptors(small) == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_g11_a_small_file_on_a_disk_that_fails(
    settled: None, small: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pinned = named(small)
    fail_once(monkeypatch, "read_at", number)
    with pytest.raises(SourceError, match=os.strerror(number)) as caught:
        read_small(pinned)
    assert not isinstance(caught.value, SourceChanged)
    assert descriptors(small) == 0


# --- Where it begins -------------------------------------------------------------------------------------------------


def test_g6_a_link_that_is_swapped_in_above_a_file_changes_nothing(settled: None, tmp_path: Path) -> None:
    """What it leads to is not what was offered, and is not read."""
    for folder, text in (("tree/sub", b"x" * 10), ("outside", b"s" * 10)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "f").write_bytes(text)
    places: list[Place] = []
    one, *_ = scan.walk([os.fsencode(tmp_path / "tree")], IDENTITY, XXH3, places)
    assert isinstance(one, Source)
    (tmp_path / "tree" / "sub").rename(tmp_path / "gone")
    (tmp_path / "tree" / "sub").symlink_to(tmp_path / "outside")
    for attempt in (lambda: read(one, 0), lambda: read_small(one)):
        with pytest.raises(SourceChanged):
            attempt()
    for place in places:
        place.close()


def test_a_folder_that_is_renamed_under_the_walk_is_still_the_one_meant(settled: None, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"meant")
    places: list[Place] = []
    one, *_ = scan.walk([os.fsencode(tmp_path / "tree")], IDENTITY, XXH3, places)
    assert isinstance(one, Source)
    (tmp_path / "tree").rename(tmp_path / "gone")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"other")
    assert read(one, 0) == read_small(one) == b"meant"
    one.rest()
    for place in places:
        place.close()


def test_g6_whoever_is_late_at_a_closed_place_is_not_led_to_the_current_folder(
    settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"meant")
    monkeypatch.chdir(tmp_path / "tree")
    place = Place(os.fsencode(tmp_path / "tree"), IDENTITY, XXH3, os.open(tmp_path / "tree", os.O_RDONLY))
    one = Source(place, b"f", b"tree", b"f", os.stat("f"))
    assert read_small(one) == b"meant"
    place.close()
    place.close()
    for attempt in (lambda: read(one, 0), lambda: read_small(one)):
        with pytest.raises(SourceError, match="Bad file descriptor"):
            attempt()
