"""G8: a million files, and a file of a tebibyte that is mostly holes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.files import MIB, settled
from tests.support.meter import Meter
from tests.support.process import Process, Receiver, sender, wait_until

TIB = 1 << 40
IN_A_FOLDER = 1000
MILLION = 1_000_000
#: Of each side's memory, however many files there are.
MOST = 100 * MIB
#: How much more memory ten times the files may take.
GROWTH = 1.3
PATIENCE_S = 1500.0

#: Makes folders ``argv[2]`` to ``argv[3]`` in ``argv[1]``, each with as many files of some bytes.
MAKE = """
import os, sys
top, start, stop, files = sys.argv[1], *map(int, sys.argv[2:])
for folder in range(start, stop):
    path = f"{top}/{folder:04}"
    os.mkdir(path)
    home = os.open(path, os.O_RDONLY)
    for number in range(files):
        fd = os.open(f"{number:04}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=home)
        os.write(fd, b"%010d" % (folder * files + number))
        os.close(fd)
    os.close(home)
"""
SIZE = 10


def _many(top: Path, count: int) -> Path:
    """``count`` files of 10 bytes, a thousand in a folder; made by two processes."""
    top.mkdir()
    folders = count // IN_A_FOLDER
    halves = (0, folders // 2), (folders // 2, folders)
    makers = [subprocess.Popen([sys.executable, "-c", MAKE, top, *map(str, half), str(IN_A_FOLDER)]) for half in halves]
    assert [maker.wait() for maker in makers] == [0, 0]
    return top


def _arrived(folder: Path) -> int:
    """How many files have their names; each has its own ten bytes."""
    count = 0
    for path, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            fd = os.open(path + b"/" + name, os.O_RDONLY)
            number = int(os.path.basename(path)) * IN_A_FOLDER + int(name)
            assert os.read(fd, 100) == b"%010d" % number
            os.close(fd)
            count += 1
    return count


def _run(base: Path, top: Path, port: int, *arguments: str) -> Process:
    """A sender that does not say each of its files: the test would need more memory than both sides."""
    return sender(base, top, port, "--quiet", *arguments, json_lines=False, forked=False)


def _peaks(process: Process, receiver: Process, until: Any) -> tuple[int, int]:
    """Peak memory of both, bytes; looked at until something has happened."""
    sending = receiving = 0
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline
        sending = max(sending, process.peak_rss())
        receiving = max(receiving, receiver.peak_rss())
        time.sleep(0.05)
    return sending, receiving


class _Quiet(Receiver):
    """A receiver whose events of entries are dropped by the test."""

    def _read(self, json_lines: bool) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                if b'"type": "entry"' not in line and b'"type":"entry"' not in line:
                    self.events.append(json.loads(line))


def _transfer(base: Path, count: int) -> tuple[int, int]:
    """Send ``count`` files into an empty folder; peak memory of the sender and the receiver."""
    top = _many(base / f"{count}", count)
    with _Quiet(base, into=base / "into", forked=False) as receiver:
        started = time.monotonic()
        with _run(base, top, receiver.port) as process:
            peaks = _peaks(process, receiver, lambda: process.popen.poll() is not None)
            assert process.wait() == 0, process.err
        took = time.monotonic() - started
        receiver.stop()
        assert receiver.finished["files"] == count
    text = " and ".join(f"{peak / MIB:.0f} MiB" for peak in peaks)
    print(f"{count} files: {took:.0f} s, {count / took:.0f} a second, {text}")
    return peaks


@pytest.mark.long
@pytest.mark.timeout_s(3600)
def test_G8_a_million_files(shm: Path) -> None:
    few = _transfer(shm, MILLION // 10)
    subprocess.run(["rm", "-rf", shm / "into", shm / f"{MILLION // 10}"], check=True)
    many = _transfer(shm, MILLION)
    assert _arrived(shm / "into" / f"{MILLION}") == MILLION
    assert max(many) < MOST
    for less, more in zip(few, many, strict=True):
        assert more < GROWTH * less


@pytest.mark.long
@pytest.mark.timeout_s(3600)
@pytest.mark.parametrize("victim", ["receiver", "sender"])
def test_G2_G8_a_million_files_and_a_kill_in_the_middle(shm: Path, victim: str) -> None:
    """What is there already is skipped: of all payload little more than a window's travels twice."""
    top = _many(shm / "top", MILLION)
    into = shm / "into"
    half = MILLION // IN_A_FOLDER // 2

    def half_there() -> bool:
        return (into / "top" / f"{half:04}").exists()

    with _Quiet(shm, into=into, forked=False) as receiver, Meter(receiver.port) as meter:
        first = _run(shm, top, meter.port, "--retry-for", "120")
        with first:
            _peaks(first, receiver, half_there)
            (receiver if victim == "receiver" else first).kill()
            there = _arrived(into / "top")
            before = meter.up
            with _Quiet(shm, into=into, forked=False) if victim == "receiver" else receiver as second:
                meter.target = second.port
                process = first if victim == "receiver" else _run(shm, top, meter.port)
                started = time.monotonic()
                with process:
                    peaks = _peaks(process, second, lambda: process.popen.poll() is not None)
                    assert process.wait() == 0, process.err
                took = time.monotonic() - started
                after = meter.up - before
                second.stop()
                again = second.of_type("session_end")[-1]["bytes_received"]
        assert _arrived(into / "top") == MILLION
        print(f"{victim} killed with {there} files there: the rest took {took:.0f} s, {after / MIB:.0f} MiB up")
        print(f"{again // SIZE} files sent; {' and '.join(f'{peak / MIB:.0f} MiB' for peak in peaks)}")
        assert again <= (MILLION - there + 2048) * SIZE
        assert max(peaks) < MOST


def test_G8_a_tebibyte_of_holes(shm: Path) -> None:
    """Only what is there is read, sent and allocated; so it takes seconds."""
    source = shm / "sparse"
    places = [0, 4097, 5 * MIB - 1, (TIB >> 1) + 12_345, TIB - 70_001]
    with source.open("wb") as file:
        file.truncate(TIB)
        for number, at in enumerate(places, 1):
            file.seek(at)
            file.write(bytes([number]) * 3000)
    settled(source)
    with Receiver(shm) as receiver, Meter(receiver.port) as meter:
        with sender(shm, source, meter.port) as process:
            assert process.wait() == 0, process.err
        info = (receiver.into / "sparse").stat()
        assert info.st_size == TIB
        with (receiver.into / "sparse").open("rb") as copy:
            for number, at in enumerate(places, 1):
                copy.seek(max(0, at - 10))
                assert copy.read(min(at, 10) + 3000)[min(at, 10) :] == bytes([number]) * 3000
            data = sum(stop - start for start, stop in _data(copy.fileno()))
        # Whole chunks travel, and no more of them than have data.
        finished = process.finished
        disk = info.st_blocks * 512
        print(f"{finished['seconds']:.1f} s, {meter.up / MIB:.1f} MiB up, {disk / MIB:.1f} MiB on the disk")
        assert finished["bytes_total"] == TIB
        assert meter.up <= finished["bytes_sent"] + MIB
        assert max(finished["bytes_sent"], disk, data) <= 64 * MIB
        wait_until(lambda: receiver.of_type("session_end"))
        assert receiver.event("session_end")["bytes_received"] == finished["bytes_sent"]


def _data(fd: int) -> list[tuple[int, int]]:
    """Where a file is not a hole."""
    found = []
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return found
        end = os.lseek(fd, at, os.SEEK_HOLE)
        found.append((at, end))
        at = end
