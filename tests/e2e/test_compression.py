"""Chunks that are compressed on their way: what arrives is the same, and less travels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftx import api
from ftx.errors import IntegrityError
from ftx.net import handshake
from ftx.protocol import compression
from ftx.transfer import dialer, events, receive
from tests.support.compressible import MIB, always, text
from tests.support.files import fill, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until
from tests.support.proxy import Cut, Dribble, Flip, Proxy

SIZE = 4 * MIB


@pytest.fixture
def compressing(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)


@pytest.fixture
def receiver(shm: Path) -> Iterator[LocalReceiver]:
    with LocalReceiver(shm, plain=True) as receiver:
        yield receiver


def less(finished: api.Finished, size: int) -> bool:
    """All was sent, and at most two thirds of it travelled."""
    assert (finished.code, finished.bytes_sent) == (0, size), finished.message
    return 0 < finished.bytes_wire < size * 2 / 3


@pytest.mark.usefixtures("compressing")
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_large_file(shm: Path, plain: bool, lanes: int) -> None:
    source = text(shm / "large", 20 * MIB + 5)
    with LocalReceiver(shm, plain=plain) as receiver, Proxy(receiver.port) as proxy:
        finished = local_send(shm, source, proxy.port, plain=plain, lanes=lanes)
        assert less(finished, 20 * MIB + 5)
        assert finished.bytes_wire <= proxy.up < finished.bytes_wire * 1.05 + 10_000
        assert same(source, receiver.into / "large")
    assert receiver.finished is not None
    told = receiver.finished.bytes_sent, receiver.finished.bytes_wire
    assert told == (finished.bytes_sent, finished.bytes_wire)


@pytest.mark.usefixtures("compressing")
@pytest.mark.parametrize("digest", api.SendOptions.CHECKS["digest"], ids=lambda name: name.label)  # type: ignore[arg-type]
def test_a_tree_of_small_files(shm: Path, receiver: LocalReceiver, digest: Any) -> None:
    """Some of them too small to be looked at, some that do not become smaller, some empty."""
    total = 0
    for at in range(300):
        size = (0, 100, 5000, 20_000, 60_000)[at % 5]
        make = fill if at % 7 == 0 else text
        make(shm / "tree" / f"{at}", size, at % 3) if (shm / "tree").exists() else text(shm / "tree" / f"{at}", size)
        total += size
    finished = local_send(shm, shm / "tree", receiver.port, plain=True, digest=digest)
    assert less(finished, total)
    for at in range(300):
        assert same(shm / "tree" / f"{at}", receiver.into / "tree" / f"{at}")


@pytest.mark.usefixtures("compressing")
def test_what_does_not_become_smaller_travels_as_it_is(shm: Path, receiver: LocalReceiver) -> None:
    source = fill(shm / "large", SIZE)
    finished = local_send(shm, source, receiver.port, plain=True)
    assert (finished.bytes_sent, finished.bytes_wire) == (SIZE, SIZE)
    assert same(source, receiver.into / "large")


def sends_as_it_is(shm: Path, receiver: LocalReceiver, **options: Any) -> None:
    source = text(shm / "large", SIZE)
    finished = local_send(shm, source, receiver.port, plain=True, **options)
    assert (finished.code, finished.bytes_sent, finished.bytes_wire) == (0, SIZE, SIZE)
    assert same(source, receiver.into / "large")


@pytest.mark.usefixtures("compressing")
def test_not_where_the_user_says_so(shm: Path, receiver: LocalReceiver) -> None:
    sends_as_it_is(shm, receiver, compress=api.Compress.NO)


@pytest.mark.usefixtures("compressing")
@pytest.mark.parametrize("without", ["sender", "receiver"])
def test_g12_not_where_one_side_has_no_library(
    shm: Path, receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """Nothing is said of it: all goes on as it is."""
    for module in (dialer,) if without == "sender" else (handshake, receive):
        monkeypatch.setattr(module, "compression", SimpleNamespace(available=lambda: False))
    sends_as_it_is(shm, receiver)
    assert receiver.warned() == ""


def test_a_library_that_is_not_there_is_not_looked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "find_spec", lambda _name: None)
    compression._name.cache_clear()
    try:
        assert not compression.available()
    finally:
        compression._name.cache_clear()
    monkeypatch.undo()
    assert compression.available()


def test_over_a_slow_link_it_is_chosen(shm: Path, receiver: LocalReceiver) -> None:
    """16 MB/s, behind buffers of a few MiB."""
    source = text(shm / "large", 6 * SIZE)
    with Proxy(receiver.port, up=[Dribble(step=64 * 1024, wait_s=0.004)]) as proxy:
        finished = local_send(shm, source, proxy.port, plain=True, lanes=1)
    assert (finished.code, finished.bytes_sent) == (0, 6 * SIZE)
    assert finished.bytes_wire < 6 * SIZE
    assert same(source, receiver.into / "large")


@pytest.mark.usefixtures("compressing")
def test_g2_a_link_that_breaks_costs_what_was_on_the_way(shm: Path, receiver: LocalReceiver) -> None:
    source = text(shm / "large", 20 * MIB)
    with Proxy(receiver.port, up=[Cut(4 * MIB)]) as proxy:
        finished = local_send(shm, source, proxy.port, plain=True, retry_for_s=20.0)
    assert finished.code == 0 and len(proxy.links) == 2
    assert finished.bytes_wire < finished.bytes_sent < 30 * MIB
    assert same(source, receiver.into / "large")


@pytest.mark.usefixtures("compressing")
@pytest.mark.parametrize("at", [2000, 200_000], ids=["the start", "the middle"])
def test_g4_a_compressed_payload_that_is_damaged_is_repaired_in_place(
    shm: Path, receiver: LocalReceiver, at: int
) -> None:
    source = text(shm / "large", SIZE)
    with Proxy(receiver.port, up=[Flip(at)]) as proxy:
        finished = local_send(shm, source, proxy.port, plain=True, lanes=1)
    assert (finished.code, finished.bytes_sent, len(proxy.links)) == (0, SIZE + MIB, 1)
    assert same(source, receiver.into / "large")


@pytest.mark.usefixtures("compressing")
@pytest.mark.parametrize("size", [50_000, 2 * MIB], ids=["small", "large"])
def test_g4_who_compresses_wrongly_is_asked_three_times(
    shm: Path, receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A compressor that makes other bytes of a chunk: each payload is a good frame, of the right size."""
    real = compression.compressor()
    monkeypatch.setattr(compression, "compressor", lambda: lambda payload: real(bytes(payload).replace(b"t", b"T")))
    for at in range(2):
        text(shm / "tree" / f"{at}", size, at)
    finished = local_send(shm, shm / "tree", receiver.port, plain=True)
    assert finished.code in (IntegrityError.exit_code, 9), finished.message
    for path in (receiver.into / "tree").iterdir():
        assert same(shm / "tree" / path.name, path)


@pytest.mark.usefixtures("compressing")
def test_the_last_line_says_how_much_it_was(shm: Path, receiver: LocalReceiver) -> None:
    from ftx.cli.report import summary

    finished = local_send(shm, text(shm / "large", SIZE), receiver.port, plain=True)
    assert f"4.0 MiB sent as {finished.bytes_wire / MIB:.1f} MiB and 0 B already there" in summary(finished)
    wait_until(lambda: receiver.of_type(events.SessionEnd))
