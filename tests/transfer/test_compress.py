"""Where compressing pays: the rule, against links, processors and receivers of every kind. Time is made up here."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ftx.transfer.compress import FAR_SLOW_S, LONGEST, MOST_UNSEEN, SAMPLE, SLOW_S, Worth

MIB = 1024 * 1024
BYTE = 1e-9  #: seconds for a byte, of something that makes a GB/s


@dataclass
class Path:
    """All that a chunk passes; seconds for a byte each. Sending goes on while the next chunk is read and compressed.

    Attributes:
        write: of what the receiver does with a byte of a file, which holds up the link when it is slow.
        ratio: of what compressing leaves.
    """

    link: float
    read: float = 0.3 * BYTE
    pack: float = 4 * BYTE
    write: float = 0.0
    ratio: float = 0.3
    lanes: int = 1
    far: bool = False

    def __post_init__(self) -> None:
        self.worth = Worth(self.lanes, far=self.far)
        self.looked = self.compressed = self.chunks = 0

    def chunk(self, size: int = MIB) -> float:
        """The seconds that one more chunk takes."""
        worth, wire, own = self.worth, float(size), self.read * size
        self.chunks += 1
        if worth.on and worth.looks():
            self.looked += 1
            sampled = min(size, SAMPLE)
            paid = True
            if worth.in_doubt:
                own += self.pack * sampled
                paid = worth.pays(sampled, int(sampled * self.ratio), self.pack * sampled)
            if paid:
                own += self.pack * size
                paid = worth.pays(size, int(size * self.ratio), self.pack * size)
            worth.found(worth_it=paid)
            if paid:
                wire = size * self.ratio
                self.compressed += 1
        sending = max(0.0, wire * self.link * self.lanes - own, size * self.write - own)
        worth.sent(size, round(wire), own + sending, sending)
        return own + sending

    def run(self, seconds: float) -> float:
        """Bytes of files a second."""
        took, before = 0.0, self.chunks
        while took < seconds:
            took += self.chunk()
        return (self.chunks - before) * MIB / took

    @property
    def plain(self) -> float:
        """The same where nothing is compressed."""
        return 1 / max(self.read, self.link * self.lanes, self.write)


def mbit(rate: float) -> float:
    """Seconds for a byte."""
    return 8 / (rate * 1e6)


@pytest.mark.parametrize("lanes", [1, 8, 64])
@pytest.mark.parametrize("link", [0.0, BYTE, mbit(1000), mbit(300)], ids=["no link", "loopback", "gigabit", "busy"])
def test_on_a_fast_link_nothing_is_looked_at(link: float, lanes: int) -> None:
    path = Path(link, lanes=lanes)
    path.run(60)
    assert path.looked == 0 and not path.worth.on


@pytest.mark.parametrize(("rate", "far"), [(600, True), (200, True), (150, False), (20, False), (2, False)])
def test_on_a_slow_link_what_compresses_is_compressed(rate: float, far: bool) -> None:
    path = Path(mbit(rate), far=far)
    path.run(10)
    assert path.run(60) > 0.9 * min(path.plain / path.ratio, 1 / (path.read + path.pack))
    assert path.compressed >= 0.85 * path.chunks


def test_nearby_a_slow_link_is_seen_by_its_first_chunks() -> None:
    path = Path(mbit(20))
    for _ in range(5):
        path.chunk()
    assert path.compressed == 3


def test_over_a_long_way_the_first_chunk_is_compressed() -> None:
    path = Path(mbit(20), far=True)
    path.chunk()
    assert path.compressed == 1
    path.run(60)
    assert path.compressed > 0.95 * path.chunks


def test_a_long_way_that_is_fast_is_found_out_soon() -> None:
    path = Path(mbit(10_000), far=True)
    path.run(1.5)
    looked = path.looked
    path.run(60)
    assert path.looked == looked


@pytest.mark.parametrize("rate", [600, 20])
def test_data_that_does_not_compress_costs_next_to_nothing(rate: float) -> None:
    path = Path(mbit(rate), ratio=1.0, far=True)
    assert path.run(60) > 0.999 * path.plain
    assert path.compressed == 0
    assert path.looked < path.chunks / 10 or path.chunks < 200


@pytest.mark.parametrize("pack", [20, 100, 1000])
@pytest.mark.parametrize("rate", [600, 200])
def test_never_slower_with_a_slow_processor(rate: float, pack: float) -> None:
    path = Path(mbit(rate), pack=pack * BYTE, far=True)
    path.run(5)
    assert path.run(300) > 0.99 * path.plain


def test_a_receiver_with_a_slow_disk_is_no_slow_link() -> None:
    """It looks like one. What it gains nothing by is left alone, and tried ever more seldom."""
    path = Path(mbit(10_000), write=50 * BYTE)
    path.run(5)
    looked, chunks = path.looked, path.chunks
    path.run(300)
    assert (path.looked - looked) / (path.chunks - chunks) < 1.2 / LONGEST


def test_a_link_that_becomes_faster_is_noticed() -> None:
    path = Path(mbit(200), pack=15 * BYTE, far=True)
    path.run(60)
    assert path.worth.on
    path.link = mbit(10_000)
    path.run(LONGEST)
    looked = path.looked
    assert path.run(60) > 0.9 * path.plain
    assert path.looked == looked


def test_a_link_that_becomes_slower_is_noticed() -> None:
    path = Path(mbit(10_000))
    path.run(10)
    path.link = mbit(20)
    path.run(10)
    assert path.worth.on and path.run(60) > 2.5 * path.plain


def test_a_link_that_becomes_much_slower_while_chunks_are_compressed() -> None:
    """That is no reason to stop: sending as it is has become slower too."""
    path = Path(mbit(100))
    path.run(30)
    path.link = mbit(10)
    path.run(30)
    assert path.worth.on and path.run(120) > 2.5 * path.plain


def test_lanes_share_a_link() -> None:
    """What one of eight lanes gets is no sign of a slow link."""
    path = Path(mbit(1000), lanes=8)
    path.run(30)
    assert not path.looked
    path = Path(mbit(100), lanes=8)
    path.run(30)
    assert path.compressed > 0.8 * path.chunks


def test_behind_chunks_that_were_not_worth_it_ever_more_are_not_looked_at() -> None:
    worth = Worth(1)
    seen = []
    for _ in range(400):
        seen.append(worth.looks())
        if seen[-1]:
            worth.found(worth_it=False)
    gaps = [len(gap) for gap in "".join("x" if one else "." for one in seen).split("x")[1:-1]]
    assert gaps == [min(at, MOST_UNSEEN) for at in range(1, len(gaps) + 1)]
    worth.found(worth_it=True)
    assert worth.looks() and not worth.in_doubt


def test_the_rule() -> None:
    """Doing it and sending less takes less time than sending the chunk as it is."""
    worth = Worth(1)
    worth.sent(MIB, MIB, 1.0, MIB * 100 * BYTE)
    assert worth.on
    assert worth.pays(1000, 400, 59 * 1000 * BYTE)
    assert not worth.pays(1000, 400, 61 * 1000 * BYTE)
    assert not worth.pays(1000, 1000, 0.0)
    assert SLOW_S > FAR_SLOW_S > 10 * BYTE
