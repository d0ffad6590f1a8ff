"""A transfer that was broken off goes on: where it was, at once, and with nothing wrong in it."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from ftx.storage import journal
from tests.support.files import MIB, digest, fill, journals, overwrite, partials, same, settled
from tests.support.local import LocalReceiver, local_send
from tests.support.process import Process, Receiver, send, sender
from tests.support.proxy import Call, Cut, Flip, Proxy, Stall

BIG = 96 * MIB
SMALL = 12 * MIB
#: The first run of a small file is cut here: the receiver holds the chunks before it.
AT = 8 * MIB + 32 * 1024
MISSING = SMALL - 8 * MIB
#: Frames of a session with a handful of chunks, beside their payload.
OVERHEAD = 32 * 1024
#: What may be sent twice for each break (G2).
IN_FLIGHT = 64 * MIB

SMALL_FILES = 9


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """Files whose times are old enough to be trusted; one wait for all."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ftx-resume-", dir=base))
    try:
        for number in range(SMALL_FILES):
            fill(folder / f"small-{number}", SMALL, seed=number)
        yield settled(fill(folder / "big", BIG)).parent
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def big(prepared: Path) -> Path:
    return prepared / "big"


@pytest.fixture
def small(prepared: Path) -> Iterator[Path]:
    """A file for this test alone, which may change it."""
    source = min(prepared.glob("small-*"))
    yield source
    source.unlink()


# --- killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("victim", ["sender", "receiver", "both"])
def test_G2_sigkill(shm: Path, big: Path, victim: str, seed: int) -> None:
    """The same command again completes; little is sent twice, as the proxy counts it."""
    _kill_and_resume(shm, big, victim, random.Random(f"{victim} {seed}").randrange(66 * MIB, 80 * MIB))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("victim", ["sender", "receiver", "both"])
def test_G2_sigkill_of_a_gibibyte(shm: Path, victim: str, seed: int) -> None:
    source = settled(fill(shm / "big", 1024 * MIB))
    _kill_and_resume(shm, source, victim, random.Random(f"{victim} {seed}").randrange(100 * MIB, 980 * MIB))


def _kill_and_resume(base: Path, source: Path, victim: str, at: int) -> None:
    size = source.stat().st_size
    first: Future[Process] = Future()

    def kill() -> None:
        if victim != "receiver":
            first.result().kill()
        if victim != "sender":
            receiver.kill()

    with Receiver(base) as receiver, Proxy(receiver.port, up=[Call(at, kill)]) as proxy:
        with sender(base, source, proxy.port, "--retry-for", "0") as process:
            first.set_result(process)
            assert process.wait() == (3 if victim == "receiver" else -signal.SIGKILL)
        assert not (receiver.into / source.name).exists()
        with Receiver(base) if victim != "sender" else receiver as survivor:
            proxy.target = ("127.0.0.1", survivor.port)
            second = send(base, source, proxy.port, "--retry-for", "0")
            assert second.wait() == 0, second.err
            assert same(source, survivor.into / source.name)
            assert not partials(survivor.into) and not journals(survivor.into)
        print(f"{victim} at {at / MIB:.0f} MiB: {(proxy.up - size) / MIB:.1f} MiB more than the file")
        assert proxy.up <= size + IN_FLIGHT + MIB
        assert second.finished["bytes_reused"] + second.finished["bytes_sent"] == size


def test_G2_many_kills(shm: Path, big: Path) -> None:
    """Each kill costs a little, and the sum of the runs gets there."""
    rng = random.Random(7)
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        for _ in range(3):
            started: Future[Process] = Future()
            at = rng.randrange(12 * MIB, 18 * MIB)
            proxy.forget(up=[Call(at, lambda started=started: started.result().kill())])
            with sender(shm, big, proxy.port, "--retry-for", "0") as process:
                started.set_result(process)
                assert process.wait() == -signal.SIGKILL
        proxy.forget()
        last = send(shm, big, proxy.port)
        assert last.wait() == 0
        assert same(big, receiver.into / "big")
        assert last.finished["bytes_reused"] >= 3 * 11 * MIB


# --- told to stop --------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_G11_a_sender_is_told_to_stop(shm: Path, big: Path, number: int) -> None:
    """It leaves within a second, with 128 + the signal, and says what is kept."""
    asked: list[float] = []
    started: Future[Process] = Future()
    stop = Call(40 * MIB, lambda: (asked.append(time.monotonic()), started.result().signal(number)))
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[stop, Stall(40 * MIB)]) as proxy:
        with sender(shm, big, proxy.port) as first:
            started.set_result(first)
            assert first.wait() == 128 + number
            assert time.monotonic() - asked[0] < 1.5  # with the end of its process
            assert "kept" in first.finished["message"] and "again" in first.finished["message"]
        assert send(shm, big, receiver.port).finished["bytes_reused"] >= 16 * MIB
        assert same(big, receiver.into / "big")


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_G11_a_receiver_is_told_to_stop(shm: Path, big: Path, number: int) -> None:
    """It leaves within 5 seconds and keeps what is under way; its sender learns why."""
    asked: list[float] = []
    with Receiver(shm) as receiver, Proxy(receiver.port) as proxy:
        stop = Call(40 * MIB, lambda: (asked.append(time.monotonic()), receiver.signal(number)))
        proxy.up_faults = [stop, Stall(40 * MIB)]
        with sender(shm, big, proxy.port, "--retry-for", "0") as first:
            assert first.wait() == 3
            assert "stopped" in first.finished["message"] and "again" in first.finished["message"]
        assert receiver.wait() == 128 + number
        assert time.monotonic() - asked[0] < 5
        assert receiver.finished["code"] == 128 + number
        with Receiver(shm) as second:
            assert send(shm, big, second.port).finished["bytes_reused"] >= 16 * MIB
            assert same(big, receiver.into / "big")


# --- damaged between two runs --------------------------------------------------------------------------


def _broken_off(base: Path, source: Path, at: int = AT) -> None:
    """A first run that ends at a byte. Its receiver is gone afterwards, and so is all that it knew."""
    with LocalReceiver(base) as receiver, Proxy(receiver.port, up=[Cut(at, reset=False)]) as proxy:
        assert local_send(base, source, proxy.port).code == 3
    assert partials(base / "into")


def _completed(base: Path, source: Path) -> int:
    """The second run; the bytes that it cost."""
    with LocalReceiver(base) as receiver, Proxy(receiver.port) as proxy:
        finished = local_send(base, source, proxy.port)
        assert finished.code == 0, finished.message
        assert same(source, receiver.into / source.name)
        assert not partials(receiver.into)
        return proxy.up


def test_G2_only_what_is_missing_is_sent(shm: Path, small: Path) -> None:
    _broken_off(shm, small)
    assert _completed(shm, small) <= MISSING + OVERHEAD


def test_G4_damage_in_the_partial_is_repaired(shm: Path, small: Path) -> None:
    """4 KiB of noise: found, and mended by sending that chunk and no other."""
    _broken_off(shm, small)
    overwrite(partials(shm / "into")[0], 3 * MIB + 5000, os.urandom(4096))
    assert MISSING + MIB < _completed(shm, small) <= MISSING + MIB + OVERHEAD


def test_G4_a_partial_that_lost_its_end(shm: Path, small: Path) -> None:
    _broken_off(shm, small)
    os.truncate(partials(shm / "into")[0], 5 * MIB + 17)
    assert _completed(shm, small) <= MISSING + 3 * MIB + OVERHEAD


def test_G4_a_partial_that_is_gone(shm: Path, small: Path) -> None:
    _broken_off(shm, small)
    partials(shm / "into")[0].unlink()
    _completed(shm, small)


def test_G4_another_files_partial(shm: Path, small: Path) -> None:
    """The journal is bound to its partial's inode: another file in its place is not taken for it."""
    _broken_off(shm, small)
    partial = partials(shm / "into")[0]
    fill(shm / "other", SMALL, seed=99).rename(partial)
    _completed(shm, small)


def _bits_flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x41
    path.write_bytes(data)


def _claims_all(path: Path) -> None:
    decoded = journal.decode(path.read_bytes())
    assert decoded is not None
    header, _ = decoded
    start = journal.encode_header(header)
    seed = int.from_bytes(start[-8:], "big")
    path.write_bytes(start + journal.encode_record(seed, 0, SMALL // MIB))


JOURNAL_DAMAGE: dict[str, Callable[[Path], object]] = {
    "header flipped": lambda path: _bits_flipped(path, 10),
    "path flipped": lambda path: _bits_flipped(path, 90),
    "record flipped": lambda path: _bits_flipped(path, -20),
    "check flipped": lambda path: _bits_flipped(path, -1),
    "torn": lambda path: os.truncate(path, path.stat().st_size - 5),
    "cut to half a header": lambda path: os.truncate(path, 40),
    "empty": lambda path: os.truncate(path, 0),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(500)),
    "noise behind it": lambda path: path.write_bytes(path.read_bytes() + bytes(240)),
    "claims too much": _claims_all,
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", JOURNAL_DAMAGE)
def test_G4_a_damaged_journal(shm: Path, damage: str) -> None:
    """It is a hint: whatever it says, no wrong byte is published."""
    source = shm / "file"
    fill(source, SMALL)
    _broken_off(shm, source)
    JOURNAL_DAMAGE[damage](journals(shm / "into")[0])
    _completed(shm, source)


def test_G4_a_journal_that_claims_too_much_costs_only_what_is_missing(shm: Path, small: Path) -> None:
    _broken_off(shm, small)
    _claims_all(journals(shm / "into")[0])
    assert _completed(shm, small) <= MISSING + OVERHEAD


# --- a source that changed -----------------------------------------------------------------------------


def test_G10_a_source_that_changed_between_two_runs(shm: Path, small: Path) -> None:
    """Its time shows it: what differs is sent, and what is missing."""
    _broken_off(shm, small)
    overwrite(small, 2 * MIB + 77, b"something else")
    assert MISSING + MIB < _completed(shm, small) <= MISSING + MIB + OVERHEAD


def test_G10_a_source_that_grew_between_two_runs(shm: Path, small: Path) -> None:
    _broken_off(shm, small)
    with small.open("ab") as file:
        file.write(os.urandom(2 * MIB))
    assert _completed(shm, small) <= MISSING + 2 * MIB + OVERHEAD


def test_G10_a_source_that_shrank_between_two_runs(shm: Path, small: Path) -> None:
    _broken_off(shm, small)
    os.truncate(small, 6 * MIB + 3)
    assert _completed(shm, small) <= MIB + OVERHEAD


@pytest.mark.parametrize("where", [2 * MIB + 77, 10 * MIB + 5], ids=["in what is held", "in what is missing"])
def test_G4_G10_a_source_that_changed_and_does_not_show_it(shm: Path, where: int) -> None:
    """Written through a mapping, with size, times and inode as they were: found before anything is published."""
    source = fill(shm / "file", SMALL)
    with source.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        # In memory, a page that is writable already takes another write without a trace.
        mapping[where : where + 4] = b"old!"
        settled(source)
        before = source.stat()
        _broken_off(shm, source)
        mapping[where : where + 4] = b"new!"
        after = source.stat()
        if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
            pytest.skip("this system shows a write through a mapping at once")
        assert (before.st_size, before.st_ino) == (after.st_size, after.st_ino)
        changed = MIB if where < AT else 0
        assert MISSING + changed < _completed(shm, source) <= MISSING + changed + OVERHEAD
        assert b"new!" in (shm / "into" / "file").read_bytes()


def _sent_while(base: Path, source: Path, at: int, change: Callable[[], object]) -> int:
    """A run during which ``change`` happens; its exit code. What is published is what is there, or nothing."""
    with LocalReceiver(base) as receiver, Proxy(receiver.port, up=[Call(at, change)]) as proxy:
        finished = local_send(base, source, proxy.port)
        target = receiver.into / source.name
        if finished.code == 0:
            assert same(source, target)
        else:
            assert not target.exists()
            assert "changed" in finished.message or "cut short" in finished.message
        return finished.code


def test_G10_truncated_while_it_is_sent(shm: Path) -> None:
    source = fill(shm / "file", SMALL)
    assert _sent_while(shm, source, 4 * MIB, lambda: os.truncate(source, 6 * MIB)) in (0, 6)


def test_G10_truncated_to_nothing_while_it_is_sent(shm: Path) -> None:
    source = fill(shm / "file", SMALL)
    assert _sent_while(shm, source, 4 * MIB, lambda: os.truncate(source, 0)) in (0, 6)


@pytest.mark.parametrize("where", [100, 11 * MIB], ids=["behind", "ahead"])
def test_G10_modified_while_it_is_sent(shm: Path, where: int) -> None:
    source = fill(shm / "file", SMALL)
    assert _sent_while(shm, source, 4 * MIB, lambda: overwrite(source, where, b"modified")) == 0


def test_G10_modified_and_grown_while_it_is_sent(shm: Path) -> None:
    """It looks like a log that grew, and what was sent already is not what is there."""
    source = fill(shm / "file", SMALL)

    def change() -> None:
        overwrite(source, 100, b"modified")
        with source.open("ab") as file:
            file.write(b"grown")

    assert _sent_while(shm, source, 4 * MIB, change) == 0


def test_G10_replaced_while_it_is_sent(shm: Path) -> None:
    """Another file takes its name: what was begun is finished, or the new one is sent; never a mixture."""
    source = fill(shm / "file", SMALL)
    old, new = digest(source), digest(fill(shm / "new", SMALL, seed=5))
    with LocalReceiver(shm) as receiver:
        with Proxy(receiver.port, up=[Call(4 * MIB, lambda: (shm / "new").rename(source))]) as proxy:
            assert local_send(shm, source, proxy.port).code == 0
        assert digest(receiver.into / "file") in (old, new)


def test_G10_a_source_that_never_holds_still(shm: Path) -> None:
    """After a few tries it is reported as changed, and the old file is still there."""
    source = fill(shm / "file", 24 * MIB)

    def change() -> None:
        overwrite(source, 0, os.urandom(8))

    up = [Call(at, change) for at in range(MIB, 200 * MIB, MIB)]
    down = [Call(at, change) for at in range(250, 5000)]
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=up, down=down) as proxy:
        (receiver.into / "file").write_bytes(b"old")
        finished = local_send(shm, source, proxy.port)
        assert finished.code == 6
        assert "changed" in finished.message
        assert (receiver.into / "file").read_bytes() == b"old"


# --- damage on the way ---------------------------------------------------------------------------------


def test_G4_damage_on_the_way_over_tls_is_a_broken_link(shm: Path) -> None:
    source = fill(shm / "file", SMALL)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port, up=[Flip(5 * MIB + 12345)]) as proxy:
        assert local_send(shm, source, proxy.port, retry_for_s=10.0).code == 0
        assert same(source, receiver.into / "file")
        assert len(proxy.links) == 2
        assert proxy.up <= SMALL + IN_FLIGHT


def test_G4_damage_on_the_way_costs_one_chunk(shm: Path) -> None:
    """In plain mode, where TCP's own checksum is all there is beneath."""
    source = fill(shm / "file", SMALL)
    with LocalReceiver(shm, plain=True) as receiver, Proxy(receiver.port, up=[Flip(5 * MIB + 12345)]) as proxy:
        assert local_send(shm, source, proxy.port, plain=True).code == 0
        assert same(source, receiver.into / "file")
        assert SMALL + MIB < proxy.up <= SMALL + MIB + OVERHEAD


# --- the first new byte --------------------------------------------------------------------------------


def _first_byte_s(base: Path, size: int) -> float:
    """Seconds from the connection to the first bytes of new data, with all but a little held already."""
    source = settled(fill(base / "large", size))
    with Receiver(base) as receiver, Proxy(receiver.port) as proxy:
        with sender(base, source, proxy.port, "--retry-for", "0") as first:
            proxy.up_faults = [Call(size - 48 * MIB, first.kill)]
            first.wait()
        receiver.kill()
        seen: list[float] = []
        proxy.forget(up=[Call(64 * 1024, lambda: seen.append(time.monotonic()))])
        with Receiver(base) as again:
            proxy.target = ("127.0.0.1", again.port)
            second = send(base, source, proxy.port)
            assert second.wait() == 0, second.err
            assert second.finished["bytes_reused"] > size - 128 * MIB
            assert same(source, again.into / "large")
        return seen[0] - proxy.links[0].started_s


@pytest.mark.alone
@pytest.mark.timeout_s(120)
def test_G3_the_first_new_byte_moves_at_once(shm: Path) -> None:
    assert _first_byte_s(shm, 1024 * MIB) < 0.5


@pytest.mark.long
def test_G3_the_first_new_byte_does_not_wait_for_gibibytes(shm: Path) -> None:
    assert _first_byte_s(shm, 4096 * MIB) < 0.5
