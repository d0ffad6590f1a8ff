"""One file from one process to another, whatever it is called and whatever it holds."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ftx.transfer import events
from tests.support.files import MIB, fill, partials, same, settled
from tests.support.local import LocalReceiver, local_send
from tests.support.process import Process, Receiver, send, sender, wait_until
from tests.support.proxy import Call, Cut, Proxy


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1])
def test_size(shm: Path, size: int) -> None:
    source = fill(shm / "file", size)
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, source, receiver.port)
        assert (finished.code, finished.files, finished.bytes_sent) == (0, 1, size)
        assert same(source, receiver.into / "file")
        assert not partials(receiver.into)
        again = local_send(shm, source, receiver.port)
        assert (again.code, again.skipped, again.bytes_sent, again.bytes_reused) == (0, 1, 0, size)


def test_two_processes(tmp_path: Path) -> None:
    """On a real disk, with everything synced."""
    source = fill(tmp_path / "file", 3 * MIB + 5)
    with Receiver(tmp_path) as receiver:
        sent = send(tmp_path, source, receiver.port)
        assert sent.wait() == 0, sent.err
        assert same(source, receiver.into / "file")
        entry = sent.event("entry")
        assert entry["digest"] == receiver.event("entry")["digest"]
        receiver.stop()


def test_sparse(tmp_path: Path) -> None:
    """Holes are not sent, and are holes at the other end."""
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(512 * MIB)
        file.seek(100 * MIB + 5)
        file.write(b"here")
        file.seek(400 * MIB)
        file.write(os.urandom(2 * MIB))
    with Receiver(tmp_path) as receiver, Proxy(receiver.port) as proxy:
        assert send(tmp_path, source, proxy.port).wait() == 0
        arrived = receiver.into / "sparse"
        assert same(source, arrived)
        assert arrived.stat().st_blocks * 512 <= 8 * MIB
        assert proxy.up < 4 * MIB


def test_zeros_that_are_no_hole(shm: Path) -> None:
    """Written zeros are recognised, and cost neither the link nor the disk."""
    source = shm / "zeros"
    source.write_bytes(bytes(64 * MIB) + b"end")
    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:
        assert local_send(shm, source, proxy.port).code == 0
        assert same(source, receiver.into / "zeros")
        assert proxy.up < 100_000
        assert (receiver.into / "zeros").stat().st_blocks * 512 < 2 * MIB


def test_G10_a_log_that_grows_all_the_time(shm: Path) -> None:
    """What arrives is the file as it was at one moment: a beginning of it that is as long as was offered."""
    source = fill(shm / "log", 8 * MIB)
    written = threading.Event()
    over = threading.Event()

    def write() -> None:
        with source.open("ab", buffering=0) as file:
            while not over.is_set():
                file.write(b"one more line\n")
                written.set()

    writer = threading.Thread(target=write)
    with LocalReceiver(shm) as receiver:
        writer.start()
        try:
            written.wait()
            finished = local_send(shm, source, receiver.port)
        finally:
            over.set()
            writer.join()
        assert finished.code == 0, finished.message
        arrived = (receiver.into / "log").read_bytes()
        assert len(arrived) > 8 * MIB
        assert source.read_bytes()[: len(arrived)] == arrived


@pytest.mark.parametrize(("bind", "host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("127.0.0.1", "localhost")])
def test_address(tmp_path: Path, bind: str, host: str) -> None:
    source = fill(tmp_path / "file", 100)
    with Receiver(tmp_path, bind=bind) as receiver:
        sent = send(tmp_path, source, receiver.port, host=host)
        assert sent.wait() == 0, sent.err
        assert same(source, receiver.into / "file")


def test_all_addresses_by_default(tmp_path: Path) -> None:
    """IPv6 and IPv4, one port."""
    source = fill(tmp_path / "file", 100)
    with Process(tmp_path, "receive", "--port", "0", "--dir", tmp_path / "into", "--reserve", "0") as receiver:
        addresses = receiver.event("listening")["addresses"]
        port = addresses[0][1]
        assert {tuple(address) for address in addresses} == {("0.0.0.0", port), ("::", port)}
        for number, host in enumerate(("127.0.0.1", "[::1]")):
            assert send(tmp_path, source, port, host=f"{host}:{number}-way").wait() == 0
            assert same(source, tmp_path / "into" / f"{number}-way" / "file")


NAMES = [
    b"with space",
    b" ",
    b"new\nline",
    b"\x1b[31mred",
    b"not utf-8 \xff\xfe",
    "übergröße 試".encode(),
    b"-leading-dash",
    b"--port",
    b"a:b",
    b"back\\slash",
    b"quo'te\"",
    b"*",
    b"~",
    b"x" * 255,
    b"\xff" * 255,
    b".hidden",
    b"...",
    b"%s{}$HOME",
]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[2:-1][:20] for name in NAMES])
def test_name(shm: Path, name: bytes) -> None:
    source = os.fsencode(shm) + b"/" + name
    fill(Path(os.fsdecode(source)), 100)
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, source, receiver.port)
        assert finished.code == 0, finished.message
        assert os.listdir(os.fsencode(receiver.into)) in ([name, b".ftx"], [b".ftx", name])
        assert same(Path(os.fsdecode(source)), Path(os.fsdecode(os.fsencode(receiver.into) + b"/" + name)))


@pytest.mark.parametrize("name", [b"-leading-dash", b"new\nline", b"not utf-8 \xff"], ids=["dash", "newline", "bytes"])
def test_name_on_the_command_line(tmp_path: Path, name: bytes) -> None:
    """A relative name as the shell would give it; in JSON, bytes that are no text have a field of their own."""
    (tmp_path / os.fsdecode(name)).write_bytes(b"contents")
    with Receiver(tmp_path) as receiver:
        sent = send(tmp_path, name, receiver.port)
        assert sent.wait() == 0, sent.err
        assert (receiver.into / os.fsdecode(name)).read_bytes() == b"contents"
        for side in (sent, receiver):
            assert ("path_b64" in side.event("entry")) == (b"\xff" in name)


def test_mode_and_mtime_arrive(shm: Path) -> None:
    source = fill(shm / "file", 100)
    with LocalReceiver(shm) as receiver:
        for mode in (0o600, 0o644, 0o755, 0o440, 0o777):
            source.chmod(mode)
            mtime_ns = 1_234_567_890_123_456_789 + mode * 1_000_000_007
            os.utime(source, ns=(0, mtime_ns))
            assert local_send(shm, source, receiver.port).code == 0
            info = (receiver.into / "file").stat()
            assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (mode, mtime_ns)


def test_a_time_before_1970(shm: Path) -> None:
    source = fill(shm / "old", 100)
    os.utime(source, ns=(0, -1_500_000_000))
    with LocalReceiver(shm) as receiver:
        assert local_send(shm, source, receiver.port).code == 0
        assert (receiver.into / "old").stat().st_mtime_ns == -1_500_000_000


def test_a_mode_alone_is_brought_up_to_date(shm: Path) -> None:
    source = fill(shm / "file", 100)
    with LocalReceiver(shm) as receiver:
        assert local_send(shm, source, receiver.port).code == 0
        source.chmod(0o700)
        again = local_send(shm, source, receiver.port)
        assert (again.code, again.skipped) == (0, 1)
        assert stat.S_IMODE((receiver.into / "file").stat().st_mode) == 0o700


def test_G6_setuid_is_not_carried(shm: Path) -> None:
    source = fill(shm / "file", 100)
    source.chmod(0o6755 | stat.S_ISVTX)
    with LocalReceiver(shm) as receiver:
        assert local_send(shm, source, receiver.port).code == 0
        assert stat.S_IMODE((receiver.into / "file").stat().st_mode) == 0o755


def test_G1_the_old_file_stays_until_the_new_one_is_committed(tmp_path: Path) -> None:
    """It can be read whole at every moment, and through a break, until the new one takes its place."""
    source = settled(fill(tmp_path / "file", 8 * MIB))
    into = tmp_path / "into"
    into.mkdir()
    target = into / "file"
    old = fill(target, 5 * MIB, seed=1).read_bytes()
    seen: list[bool] = []
    with LocalReceiver(tmp_path, dir=into) as receiver, Proxy(receiver.port) as proxy:
        looks = [Call(at, lambda: seen.append(target.read_bytes() == old)) for at in range(1, 7 * MIB, MIB)]
        proxy.forget(up=[*looks, Cut(7 * MIB)])
        assert local_send(tmp_path, source, proxy.port).code == 3
        assert seen == [True] * 7
        assert target.read_bytes() == old
        # The second run holds it to the same until its last byte but one.
        proxy.forget(up=[Call(at, lambda: seen.append(target.read_bytes() == old)) for at in (1, 1000, MIB)])
        assert local_send(tmp_path, source, proxy.port).code == 0
        assert seen == [True] * 10
    assert same(source, target)


def test_folder_in_remote_is_made(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 100)
    with Receiver(tmp_path) as receiver:
        sent = send(tmp_path, source, receiver.port, host="127.0.0.1:a/b c/d")
        assert sent.wait() == 0, sent.err
        assert same(source, receiver.into / "a" / "b c" / "d" / "file")
        assert receiver.event("entry")["path"] == "a/b c/d/file"


def test_dir_is_made(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 100)
    with Receiver(tmp_path, into=tmp_path / "x" / "y") as receiver:
        assert send(tmp_path, source, receiver.port).wait() == 0
        assert same(source, tmp_path / "x" / "y" / "file")


def test_a_link_to_a_file_is_sent_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fill(tmp_path / "file", 100))
    with LocalReceiver(tmp_path) as receiver:
        assert local_send(tmp_path, tmp_path / "link", receiver.port).code == 0
        arrived = receiver.into / "link"
        assert not arrived.is_symlink()
        assert same(tmp_path / "file", arrived)


def test_G6_a_link_at_the_destination_is_replaced_and_not_followed(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 100)
    other = fill(tmp_path / "other", 50, seed=1)
    before = other.read_bytes()
    with LocalReceiver(tmp_path) as receiver:
        (receiver.into / "file").symlink_to(other)
        assert local_send(tmp_path, source, receiver.port).code == 0
        assert other.read_bytes() == before
        assert not (receiver.into / "file").is_symlink()
        assert same(source, receiver.into / "file")


def test_G6_a_link_to_a_folder_on_the_way_is_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 100)
    (tmp_path / "elsewhere").mkdir()
    with LocalReceiver(tmp_path) as receiver:
        (receiver.into / "way").symlink_to(tmp_path / "elsewhere")
        assert local_send(tmp_path, source, receiver.port, folder="way").code == 7
        assert not list((tmp_path / "elsewhere").iterdir())


def test_several_senders_at_once(tmp_path: Path) -> None:
    """G9: each gets its file through, and all at the same time."""
    sources = [fill(tmp_path / f"file{number}", 2 * MIB + number, seed=number) for number in range(4)]
    with Receiver(tmp_path) as receiver:
        running = [sender(tmp_path, source, receiver.port) for source in sources]
        try:
            assert [process.wait() for process in running] == [0] * 4
        finally:
            for process in running:
                process.kill()
        assert all(same(source, receiver.into / source.name) for source in sources)


def test_G9_a_sender_that_is_stuck_delays_nobody(shm: Path) -> None:
    stuck, other = fill(shm / "stuck", 4 * MIB), fill(shm / "other", 4 * MIB)
    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.forget(up=[Call(2 * MIB, lambda: waiting.set() or over.wait())])
        waiting, over = threading.Event(), threading.Event()
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(local_send(shm, stuck, proxy.port).code))
        thread.start()
        try:
            waiting.wait()
            assert local_send(shm, other, receiver.port).code == 0
            assert not results
        finally:
            over.set()
            thread.join()
        assert results == [0]
        wait_until(lambda: len(receiver.of_type(events.SessionEnd)) == 2)


def test_once_ends_with_the_jobs_code(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 100)
    with Receiver(tmp_path, "--once") as receiver:
        assert send(tmp_path, source, receiver.port).wait() == 0
        assert receiver.wait() == 0
    with Receiver(tmp_path, "--once", "--exists", "fail") as receiver:
        os.utime(source)
        assert send(tmp_path, source, receiver.port).wait() == 7
        assert receiver.wait() == 7


def test_no_fsync(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", 100)
    with Receiver(tmp_path, "--no-fsync") as receiver:
        assert send(tmp_path, source, receiver.port).wait() == 0
        assert same(source, receiver.into / "file")


def test_another_digest(shm: Path) -> None:
    """Receipts with a cryptographic root digest, chunks checked on arrival all the same."""
    from ftx.protocol.manifest import DigestName

    source = fill(shm / "file", 3 * MIB + 7)
    ended: list[events.Event] = []
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, source, receiver.port, digest=DigestName.SHA_256, on_event=ended.append)
        assert finished.code == 0
        entries = [event for event in ended if isinstance(event, events.EntryEnded)]
        assert entries[0].digest and entries[0].digest.startswith("sha-256:")
        assert same(source, receiver.into / "file")
