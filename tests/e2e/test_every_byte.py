"""A small session, broken at every single byte of either direction, and then run again.

G11: every end has an exit code of the table. G1, G4: what is published is right, or nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftx.protocol import messages
from ftx.transfer import crew
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send
from tests.support.proxy import Cut, Fault, Flip, HalfClose, Proxy

SIZE = 120
#: Sessions at a time: each waits for the end of a broken connection more than it works.
AT_ONCE = 16
#: The session's bytes, with the longest random optional frames. A fault behind the last byte does nothing.
UP_BYTES = SIZE + 480
DOWN_BYTES = 400


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits, in the same proportions: thousands of sessions end by one of them."""
    monkeypatch.setattr(crew, "SETTLE_S", 0.01)
    monkeypatch.setattr(messages, "PING_S", 0.2)
    monkeypatch.setattr(messages, "DRAIN_S", 0.2)
    monkeypatch.setattr(messages, "HANDSHAKE_S", 1.0)


@pytest.fixture
def place(shm: Path) -> Iterator[tuple[Path, Path, LocalReceiver]]:
    source = fill(shm / "file", SIZE)
    with LocalReceiver(shm, timeout_s=2.0) as receiver:
        yield shm, source, receiver


def _for_each(count: int, attempt: Callable[[int], str | None]) -> list[str]:
    """What was wrong, over all positions."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        return [wrong for wrong in pool.map(attempt, range(count)) if wrong]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # one that hangs is found by ``no_leaks``


def _sessions(
    place: tuple[Path, Path, LocalReceiver], fault: Callable[[int], Fault], way: str, codes: set[int]
) -> Callable[[int], str | None]:
    """A run with the fault at a byte, and one without; None if both are as they should be."""
    base, source, receiver = place
    contents = source.read_bytes()

    def attempt(at: int) -> str | None:
        target = receiver.into / str(at) / "file"
        with Proxy(receiver.port, **{way: [fault(at)]}) as proxy:
            first = local_send(base, source, proxy.port, folder=str(at), timeout_s=1.0)
        if first.code not in codes:
            return f"{at}: exit code {first.code}: {first.message}"
        if first.code and not first.message:
            return f"{at}: exit code {first.code} without a word"
        if target.exists() and target.read_bytes() != contents:
            return f"{at}: a wrong file was published"
        if first.code == 0 and not target.exists():
            return f"{at}: success without the file"
        second = local_send(base, source, receiver.port, folder=str(at), timeout_s=5.0, retry_for_s=5.0)
        if second.code != 0:
            return f"{at}: the second run: {second.code} {second.message}"
        return None if target.read_bytes() == contents else f"{at}: the second run: a wrong file"

    return attempt


def test_the_session_is_as_long_as_these_tests_think(place: tuple[Path, Path, LocalReceiver]) -> None:
    base, source, receiver = place
    for number in range(5):
        with Proxy(receiver.port) as proxy:
            assert local_send(base, source, proxy.port, folder=str(number)).code == 0
        assert UP_BYTES - 80 < proxy.up < UP_BYTES
        assert DOWN_BYTES - 120 < proxy.down < DOWN_BYTES


@pytest.mark.parametrize(("way", "count"), [("up", UP_BYTES), ("down", DOWN_BYTES)])
def test_G1_G11_cut_after_every_byte(place: tuple[Path, Path, LocalReceiver], way: str, count: int) -> None:
    attempt = _sessions(place, lambda at: Cut(at, reset=at % 2 == 0), way, {0, 3})
    assert _for_each(count, attempt) == []


@pytest.mark.parametrize(("way", "count"), [("up", UP_BYTES), ("down", DOWN_BYTES)])
def test_half_closed_after_some_bytes(place: tuple[Path, Path, LocalReceiver], way: str, count: int) -> None:
    """One direction ends, the other goes on."""
    attempt = _sessions(place, lambda at: HalfClose(at * 7), way, {0, 3})
    assert _for_each(count // 7, attempt) == []


@pytest.mark.parametrize(("way", "count"), [("up", UP_BYTES), ("down", DOWN_BYTES)])
def test_G4_a_bit_flipped_at_every_byte(place: tuple[Path, Path, LocalReceiver], way: str, count: int) -> None:
    """A damaged chunk is repaired in place; any other damage is a broken link, or another protocol, or no key."""
    attempt = _sessions(place, lambda at: Flip(at, mask=1 << at % 8), way, {0, 3, 4, 8})
    assert _for_each(count, attempt) == []


def test_G4_a_damaged_payload_is_repaired_in_place(place: tuple[Path, Path, LocalReceiver]) -> None:
    base, source, receiver = place
    with Proxy(receiver.port, up=[Flip(UP_BYTES - 140)]) as proxy:
        finished = local_send(base, source, proxy.port)
    assert finished.code == 0
    assert 2 * SIZE < proxy.up < 2 * SIZE + 600
    assert (receiver.into / "file").read_bytes() == source.read_bytes()
