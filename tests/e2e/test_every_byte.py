"""A small session, broken at every single byte of either direction, and then run again.

G11: every end has an exit code of the table. G1, G4: what is published is right, or nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftx.protocol import messages
from ftx.transfer import crew
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send
from tests.support.proxy import Cut, Fault, Flip, HalfClose, Proxy

pytestmark = pytest.mark.timeout_s(180)  # more than a thousand sessions each

SIZE = 120
#: Sessions at a time: each waits for the end of a broken connection more than it works.
AT_ONCE = 16
#: The session's bytes in plain mode, with the longest random optional frames. A fault behind the last does nothing.
UP_BYTES = SIZE + 480
DOWN_BYTES = 404
#: The same over TLS.
TLS_BYTES = {"up": SIZE + 1010, "down": 1254}
#: Of these every so many are tried every day, and all when there is time.
SOME = 13


@pytest.fixture(params=[True])
def place(shm: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path, LocalReceiver]]:
    """In plain mode, where each byte is a frame's, unless the test says otherwise."""
    source = fill(shm / "file", SIZE)
    with LocalReceiver(shm, timeout_s=2.0, plain=request.param) as receiver:
        yield shm, source, receiver


over_tls = pytest.mark.parametrize("place", [False], indirect=True, ids=["tls"])
every_byte_of_tls = pytest.mark.parametrize(
    ("way", "step"), [("up", SOME), ("down", SOME), pytest.param("up", 1, marks=pytest.mark.long),
                      pytest.param("down", 1, marks=pytest.mark.long)],
)  # fmt: skip


@contextmanager
def _hurry() -> Iterator[None]:
    """Shorter waits, in the same proportions: thousands of sessions end by one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "SETTLE_S", 0.01)
        patch.setattr(messages, "PING_S", 0.2)
        patch.setattr(messages, "DRAIN_S", 0.2)
        patch.setattr(messages, "HANDSHAKE_S", 1.0)
        yield


def _for_each(count: int, runs: Sequence[Callable[[int], str | None]]) -> list[str]:
    """What was wrong, over all positions: of the runs with a fault, and then of those that have all the time."""
    broken, again = runs
    with _hurry():
        wrong = _all(count, broken)
    return wrong + _all(count, again)


def _all(count: int, run: Callable[[int], str | None]) -> list[str]:
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        return [wrong for wrong in pool.map(run, range(count)) if wrong]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # one that hangs is found by ``no_leaks``


def _sessions(
    place: tuple[Path, Path, LocalReceiver], fault: Callable[[int], Fault], way: str, codes: set[int]
) -> Sequence[Callable[[int], str | None]]:
    """A run with the fault at a byte, and one without; each None if it is as it should be."""
    base, source, receiver = place
    contents, plain = source.read_bytes(), receiver.options.plain

    def broken(at: int) -> str | None:
        target = receiver.into / str(at) / "file"
        with Proxy(receiver.port, **{way: [fault(at)]}) as proxy:
            first = local_send(base, source, proxy.port, folder=str(at), timeout_s=1.0, plain=plain)
        if first.code not in codes:
            return f"{at}: exit code {first.code}: {first.message}"
        if first.code and not first.message:
            return f"{at}: exit code {first.code} without a word"
        if target.exists() and target.read_bytes() != contents:
            return f"{at}: a wrong file was published"
        if first.code == 0 and not target.exists():
            return f"{at}: success without the file"
        return None

    def again(at: int) -> str | None:
        target = receiver.into / str(at) / "file"
        second = local_send(base, source, receiver.port, folder=str(at), retry_for_s=5.0, plain=plain)
        if second.code != 0:
            return f"{at}: the second run: {second.code} {second.message}"
        return None if target.read_bytes() == contents else f"{at}: the second run: a wrong file"

    return broken, again


def test_the_session_is_as_long_as_these_tests_think(place: tuple[Path, Path, LocalReceiver]) -> None:
    base, source, receiver = place
    for number in range(5):
        with Proxy(receiver.port) as proxy:
            assert local_send(base, source, proxy.port, folder=str(number), plain=True).code == 0
        assert UP_BYTES - 80 < proxy.up < UP_BYTES
        assert DOWN_BYTES - 120 < proxy.down < DOWN_BYTES


@over_tls
def test_the_session_over_tls_is_as_long_as_these_tests_think(place: tuple[Path, Path, LocalReceiver]) -> None:
    base, source, receiver = place
    with Proxy(receiver.port) as proxy:
        assert local_send(base, source, proxy.port).code == 0
    assert TLS_BYTES["up"] - 150 < proxy.up < TLS_BYTES["up"]
    assert TLS_BYTES["down"] - 250 < proxy.down < TLS_BYTES["down"]


@over_tls
@every_byte_of_tls
def test_G1_G11_cut_after_bytes_of_tls(place: tuple[Path, Path, LocalReceiver], way: str, step: int) -> None:
    runs = _sessions(place, lambda at: Cut(at * step, reset=at % 2 == 0), way, {0, 3})
    assert _for_each(TLS_BYTES[way] // step, runs) == []


@over_tls
@every_byte_of_tls
def test_G4_a_bit_flipped_in_tls(place: tuple[Path, Path, LocalReceiver], way: str, step: int) -> None:
    """A clean error. Where the handshake was damaged it may be another protocol, or seem to be in clear."""
    runs = _sessions(place, lambda at: Flip(at * step, mask=1 << at % 8), way, {0, 3, 4, 8})
    assert _for_each(TLS_BYTES[way] // step, runs) == []


@pytest.mark.parametrize(("way", "count"), [("up", UP_BYTES), ("down", DOWN_BYTES)])
def test_G1_G11_cut_after_every_byte(place: tuple[Path, Path, LocalReceiver], way: str, count: int) -> None:
    runs = _sessions(place, lambda at: Cut(at, reset=at % 2 == 0), way, {0, 3})
    assert _for_each(count, runs) == []


@pytest.mark.parametrize(("way", "count"), [("up", UP_BYTES), ("down", DOWN_BYTES)])
def test_half_closed_after_some_bytes(place: tuple[Path, Path, LocalReceiver], way: str, count: int) -> None:
    """One direction ends, the other goes on."""
    runs = _sessions(place, lambda at: HalfClose(at * 7), way, {0, 3})
    assert _for_each(count // 7, runs) == []


@pytest.mark.parametrize(("way", "count"), [("up", UP_BYTES), ("down", DOWN_BYTES)])
def test_G4_a_bit_flipped_at_every_byte(place: tuple[Path, Path, LocalReceiver], way: str, count: int) -> None:
    """A damaged chunk is repaired in place; any other damage is a broken link, or another protocol, or no key."""
    runs = _sessions(place, lambda at: Flip(at, mask=1 << at % 8), way, {0, 3, 4, 8})
    assert _for_each(count, runs) == []


def test_G4_a_damaged_payload_is_repaired_in_place(place: tuple[Path, Path, LocalReceiver]) -> None:
    base, source, receiver = place
    with Proxy(receiver.port, up=[Flip(UP_BYTES - 140)]) as proxy:
        finished = local_send(base, source, proxy.port, plain=True)
    assert finished.code == 0
    assert 2 * SIZE < proxy.up < 2 * SIZE + 600
    assert (receiver.into / "file").read_bytes() == source.read_bytes()
