"""G8: what a peer sends never makes us keep much more than that."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftx.errors import LinkLost, ProtocolError
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.protocol.manifest import MAX_FILE_SIZE, ChunkDigests, DigestName, Grid, zero_digest
from ftx.protocol.ranges import RangeSet, Repeats
from ftx.transfer import events
from ftx.transfer.actions import Say, Take
from ftx.transfer.plan import Plan
from tests.hostile import peer
from tests.support.ledger import OneByOne
from tests.support.local import LocalReceiver
from tests.support.process import wait_until

MIB = 1024 * 1024
XXH3 = DigestName.XXH3_128
HUGE = Grid.of(MAX_FILE_SIZE)
WINDOW = 64


@contextmanager
def costs_at_most(size: int) -> Iterator[None]:
    """Whatever happens inside leaves no more than ``size`` bytes behind, and needs twice that at the most."""
    for name in DigestName:
        zero_digest(name, HUGE.chunk)  # hashed from zeros once, and remembered
    tracemalloc.start()
    try:
        yield
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept <= size
    assert peak <= 2 * size


@pytest.mark.parametrize("name", DigestName, ids=lambda name: name.label)
def test_g8_one_chunk_at_the_end_of_a_huge_file_costs_one_page(name: DigestName) -> None:
    with costs_at_most(128 * 1024):
        digests = ChunkDigests(HUGE, name)
        digests.set(HUGE.count - 1, bytes(name.size))
        assert digests.get(HUGE.count - 1) == bytes(name.size)


@pytest.mark.parametrize("name", DigestName, ids=lambda name: name.label)
def test_g8_zeros_cost_nothing_however_many(name: DigestName) -> None:
    with costs_at_most(256 * 1024):
        digests = ChunkDigests(HUGE, name)
        digests.set_zeros(0, HUGE.count)
        assert digests.complete
        root = digests.root()
    every = zero_digest(name, HUGE.chunk) * HUGE.count
    assert root == name.function(every + MAX_FILE_SIZE.to_bytes(8, "big"))


def huge_zeros() -> OneByOne:
    """A ledger with a window full of huge files, all of whose chunks arrived as zeros."""
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(m.Folder(b"", 1, tuple(peer.offered(b"f%d" % place, MAX_FILE_SIZE) for place in range(WINDOW))))
    for entry in range(1, WINDOW + 1):
        ledger.looked_one(entry, Take(RangeSet(), RangeSet(), ChunkDigests(HUGE, XXH3)))
        place = ledger.zeros(m.Zeros(entry, (m.Range(0, HUGE.count),)))
        assert place is not None
        ledger.zeroed(*place)
    return ledger


def test_g8_a_window_full_of_huge_files() -> None:
    with costs_at_most(MIB):
        huge_zeros()


def test_g8_chunks_that_are_repaired_are_counted_as_ranges() -> None:
    """The sender says that it has another digest for one chunk after the other."""
    ledger = huge_zeros()
    with costs_at_most(MIB):
        (ask, *_) = ledger.receive(m.Finish(1, bytes(16)))
        for first in range(0, 65536, m.MAX_ASKED):
            actions = ledger.receive(m.Digests(1, XXH3, first, bytes(16 * m.MAX_ASKED)))
            assert Say(m.Want(1, 0, (m.Range(first, m.MAX_ASKED),))) in actions
    assert ask == Say(m.AskDigests(1, XXH3, 0, m.MAX_ASKED))


def test_g8_a_receiver_that_wants_all_of_a_huge_file_again() -> None:
    plan = Plan(XXH3)
    holes = RangeSet([(0, HUGE.count)])
    plan.offer(b"", [(peer.offered(b"f", MAX_FILE_SIZE), holes, ChunkDigests(HUGE, XXH3))])
    want = m.Want(1, 0, (m.Range(0, HUGE.count),))
    with costs_at_most(MIB):
        for _ in range(1 + m.MAX_REPAIRS):
            plan.receive(want)
            while plan.next(control=True, bulk=True):
                pass
        with pytest.raises(ProtocolError, match="chunk 0 of entry 1 is wanted again and again"):
            plan.receive(want)


@pytest.mark.parametrize("seed", range(50))
def test_repeats(seed: int) -> None:
    rng = random.Random(f"repeats {seed}")
    most = rng.randint(1, 4)
    repeats, model = Repeats(most), Counter[int]()
    for _ in range(60):
        start = rng.randrange(20)
        stop = rng.randint(start, 20)
        over = [index for index in range(start, stop) if model[index] == most]
        assert repeats.add(start, stop) == (over[0] if over else None)
        if over:
            break
        model.update(range(start, stop))


# --- Answers -------------------------------------------------------------------------------------------


def folder(first: int, count: int, path: bytes = b"") -> m.Folder:
    return m.Folder(path, first, tuple(peer.offered(b"%d" % place, 0) for place in range(count)))


def test_g8_an_entry_is_outstanding_until_its_answer_is_on_its_way() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(folder(1, 60))
    ledger.receive(folder(61, 2), unsaid=2)
    with pytest.raises(ProtocolError, match="outstanding"):
        ledger.receive(folder(63, 1), unsaid=2)


def test_g8_who_offers_on_and_reads_no_answer_is_sent_away(tmp_path: Path) -> None:
    with LocalReceiver(tmp_path, open=True) as receiver, peer.sender(receiver.port, deaf=True) as lane:
        batch = tuple(peer.offered(b"a/b", 0) for _ in range(60))  # refused at once

        def over() -> None:
            """A system that has let go of a connection says so only to who sends, which the deaf may not any more."""
            if receiver.of_type(events.SessionEnd):
                raise LinkLost("the session is over")

        lane.deadline_s, lane.check = time.monotonic() + 30, over
        with pytest.raises(LinkLost):
            for first in range(1, 10_000 * len(batch), len(batch)):
                lane.send(m.Folder(b"", first, batch))
        wait_until(lambda: receiver.of_type(events.SessionEnd))
        (end,) = receiver.of_type(events.SessionEnd)
        assert (end.code, "outstanding" in end.message) == (ProtocolError.exit_code, True)


def test_g8_offers_that_are_withdrawn_at_once_wait_for_their_look() -> None:
    """Else a sender could offer and withdraw faster than a disk can be looked at, and the looks would pile up."""
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(folder(1, WINDOW))
    for entry in range(1, WINDOW + 1):
        assert ledger.receive(m.Cancel(entry, m.WITHDRAWN, "")) == []
    with pytest.raises(ProtocolError, match="outstanding"):
        ledger.receive(folder(WINDOW + 1, 1))
    (refusal, _) = ledger.looked_one(1, Take(RangeSet(), RangeSet(), ChunkDigests(Grid.of(0), XXH3)))
    assert refusal == Say(m.Refuse((m.RefuseItem(1, m.WITHDRAWN, ""),)))
    ledger.receive(folder(WINDOW + 1, 1))


# --- A handshake ---------------------------------------------------------------------------------------


def test_g8_a_stranger_holds_a_few_kib(tmp_path: Path) -> None:
    """Unfinished handshakes, one of them with as much as it can push behind its HELLO."""
    with LocalReceiver(tmp_path, plain=True) as receiver:
        hello = codec.encode(m.Hello(m.MAGIC, 1, 1, bytes(32), bytes(32)))
        with costs_at_most(MIB):
            socks = [peer.connected(receiver.port) for _ in range(20)]
            for sock in socks:
                sock.sendall(hello)
                assert sock.recv(16)
            socks[0].setblocking(False)
            socks[0].send(codec.encode_data(1, 0, bytes(16), 16 * MIB)[:40] + bytes(200_000))
        for sock in socks:
            sock.close()
