"""G9, G11: a sender whose own disk is slow: what it has to send goes out, and no outcome is lost when it is cut off."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import SourceError
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName
from ftx.storage import scan
from ftx.storage.scratch import Whole
from ftx.storage.source import Source
from ftx.transfer import crew, dialer, events, feed, plan, send
from ftx.transfer.feed import Feed
from tests.support.files import MIB, fill
from tests.support.local import LocalReceiver, local_send
from tests.support.proxy import Proxy

PATIENCE_S = 10


# --- A session that ends while its scan is at the disk -------------------------------------------------


class StuckOnce:
    """The ``at``-th call of a function waits until it is let go, and then fails if it is told to."""

    def __init__(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, at: int, error: Exception | None = None
    ) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.current_thread()
        real, calls = getattr(owner, name), 0

        def stuck(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                self.thread = threading.current_thread()
                self.inside.set()
                assert self.go_on.wait(PATIENCE_S)
                if error is not None:
                    raise error
            return real(*args, **kwargs)

        patch.setattr(owner, name, stuck)


@pytest.fixture
def tree(shm: Path) -> Path:
    """Files, two things that are not sent, a folder below, and a file larger than one chunk."""
    tree = shm / "tree"
    (tree / "below").mkdir(parents=True)
    for name in ("a", "b", "d", "below/e", "below/f"):
        fill(tree / name, 500)
    fill(tree / "large", MIB + 1)
    os.mkfifo(tree / "c")
    (tree / ".ftx").write_bytes(b"")
    return tree


ENTRIES = Counter(
    b"tree/" + name for name in (b"a", b"b", b"c", b"d", b"large", b"below", b"below/e", b"below/f", b".ftx")
) + Counter([b"tree"])


def cut_off(shm: Path, tree: Path, stuck: StuckOnce, *, at_latest: int = 2) -> tuple[Any, list[events.EntryEnded]]:
    """Send; cut the link as soon as the scan is stuck; let that go when a later session is up at the latest."""
    ended: list[events.EntryEnded] = []
    sessions = 0

    def on_event(event: Any) -> None:
        nonlocal sessions
        if isinstance(event, events.EntryEnded):
            ended.append(event)
        sessions += isinstance(event, events.SessionUp)
        if sessions == at_latest:
            stuck.go_on.set()

    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:

        def cut() -> None:
            assert stuck.inside.wait(PATIENCE_S)
            proxy.links[0].up.source.shutdown(socket.SHUT_RDWR)

        cutter = threading.Thread(target=cut)
        cutter.start()
        finished = local_send(shm, tree, proxy.port, retry_for_s=PATIENCE_S, on_event=on_event)
        cutter.join()
        stuck.go_on.set()
        stuck.thread.join(PATIENCE_S)
    assert sessions == 2
    return finished, ended


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is over leaves at once."""
    monkeypatch.setattr(send, "LEAVE_S", 0.01)
    monkeypatch.setattr(send, "LAST_WORD_S", 0.01)
    monkeypatch.setattr(crew, "SETTLE_S", 0.01)
    monkeypatch.setattr(dialer, "FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("at", range(1, 10))
def test_g2_g11_what_a_stuck_scan_finds_belongs_to_the_next_session(
    soon: None, shm: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, at: int, batch: int
) -> None:
    """A file, a folder, or what is not sent at all: each has one outcome, whichever the scan was stuck at."""
    monkeypatch.setattr(feed, "BATCH", batch)
    finished, ended = cut_off(shm, tree, StuckOnce(monkeypatch, scan, "_entry", at))
    assert Counter(event.path for event in ended) == ENTRIES
    assert (finished.code, finished.failed) == (0, 0)
    assert (shm / "into" / "tree" / "below" / "f").read_bytes() == (tree / "below" / "f").read_bytes()
    for folder in ("tree", "tree/below"):
        assert (shm / "into" / folder).stat().st_mtime_ns == (shm / folder).stat().st_mtime_ns


def let_go_at_the_last_report(monkeypatch: pytest.MonkeyPatch, stuck: StuckOnce, when: str) -> threading.Event:
    """The stuck thread returns, and does what it then does, just before or behind its session's last look."""
    real = send.SendSession._report
    over = threading.Event()

    def report(session: send.SendSession) -> None:
        last = session._crew.stopped and not over.is_set()
        if not last or when == "behind":
            real(session)
        if last:
            over.set()
            stuck.go_on.set()
            stuck.thread.join(PATIENCE_S)
        if last and when == "before":
            real(session)

    monkeypatch.setattr(send.SendSession, "_report", report)
    return over


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_g11_what_a_late_scan_finds_around_the_last_report_is_told_once(
    soon: None, shm: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, at: int, when: str
) -> None:
    """The first and the fourth are not sent at all, and told by whoever finds them."""
    monkeypatch.setattr(feed, "BATCH", 1)
    stuck = StuckOnce(monkeypatch, scan, "_entry", at)
    over = let_go_at_the_last_report(monkeypatch, stuck, when)
    finished, ended = cut_off(shm, tree, stuck)
    assert over.is_set()
    assert Counter(event.path for event in ended) == ENTRIES
    assert (finished.code, finished.failed) == (0, 0)


@pytest.mark.parametrize("when", ["before", "behind", "later"])
def test_g11_an_offer_that_fails_late_is_made_by_the_next_session(
    soon: None, shm: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What it was about was handed over already, so its failure is nobody's."""
    stuck = StuckOnce(monkeypatch, Source, "holes", 1, SourceError("tree/large: the disk failed"))
    over = let_go_at_the_last_report(monkeypatch, stuck, when) if when != "later" else None
    finished, ended = cut_off(shm, tree, stuck)
    assert over is None or over.is_set()
    assert Counter(event.path for event in ended) == ENTRIES
    assert (finished.code, finished.failed) == (0, 0)


def test_g11_an_offer_that_comes_late_while_its_session_hands_over_is_made_by_the_next_one(
    soon: None, shm: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tree / "k", MIB + 1)
    monkeypatch.setattr(feed, "BATCH", 1)
    under_way = StuckOnce(monkeypatch, Source, "read", 1)  # of k, which is thus still under way
    stuck = StuckOnce(monkeypatch, Source, "holes", 2)  # of large, which is behind it
    real = plan.Plan.moved

    def moved(one: plan.Plan, entry_id: int) -> tuple[int, int]:
        if not stuck.go_on.is_set():
            stuck.go_on.set()
            stuck.thread.join(0.1)  # it may have to wait for this one
            under_way.go_on.set()
        return real(one, entry_id)

    monkeypatch.setattr(plan.Plan, "moved", moved)
    finished, ended = cut_off(shm, tree, stuck)
    under_way.thread.join(PATIENCE_S)
    assert Counter(event.path for event in ended) == ENTRIES + Counter([b"tree/k"])
    assert (finished.code, finished.failed) == (0, 0)


def test_what_a_late_scan_opens_is_closed_though_the_next_session_has_looked_again(
    soon: None, shm: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(tree / "large", 4 * MIB)  # where the holes are is asked of the open file
    stuck = StuckOnce(monkeypatch, Source, "holes", 1)
    real = Source.renewed

    def renewed(one: Source) -> Source:
        now = real(one)
        if one.name == b"large":
            stuck.go_on.set()
            stuck.thread.join(PATIENCE_S)
        return now

    monkeypatch.setattr(Source, "renewed", renewed)
    finished, ended = cut_off(shm, tree, stuck, at_latest=3)
    assert (finished.code, finished.failed) == (0, 0)
    assert Counter(event.path for event in ended) == ENTRIES  # and no descriptor is left, as of every test


@pytest.mark.parametrize("size", [0, 100, MIB + 5])
def test_g10_a_lane_that_is_late_with_a_chunk_of_what_was_withdrawn_harms_nothing(
    shm: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The file is cut under one lane; another finds out, and it is offered anew before the first goes on."""
    source = shm / "file"
    fill(source, 4 * MIB)
    cut, go_on = threading.Event(), threading.Event()
    real_read, real_offered = Source.read, plan.Plan.offered_again

    def read(one: Source, index: int, buffer: memoryview) -> memoryview:
        if index == 2 and not cut.is_set():
            os.truncate(source, size)
            cut.set()
            assert go_on.wait(PATIENCE_S)
        elif index == 3:
            assert cut.wait(PATIENCE_S)
        return real_read(one, index, buffer)

    def offered_again(one: plan.Plan) -> None:
        real_offered(one)
        go_on.set()

    def next_job(session: send.SendSession, writer: Any) -> Any:
        return session.plan.next(control=writer.control, bulk=not writer.control)  # lane 1 must not be the late one

    monkeypatch.setattr(send.SendSession, "_next", next_job)
    monkeypatch.setattr(Source, "read", read)
    monkeypatch.setattr(plan.Plan, "offered_again", offered_again)
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, source, receiver.port, lanes=3)
    assert (finished.code, finished.message) == (0, "")
    assert (shm / "into" / "file").read_bytes() == source.read_bytes()


def test_what_nobody_can_take_any_more_stays_in_the_feed_in_its_order(shm: Path, tree: Path) -> None:
    def found() -> Iterator[scan.Found]:
        return scan.walk([os.fsencode(tree)], bytes(32), DigestName.XXH3_128, places)

    def taken(one: Feed, take: Callable[[Any], bool]) -> list[Any]:
        what: list[Any] = []
        for _ in range(100):
            match one.take(2, take):
                case None:
                    pass
                case list() as items:
                    what.append([item.source.name for item in items])
                case other:
                    what.append(other)
        return what

    places: list[Any] = []
    turns = iter(range(1000))
    whole = taken(Feed(found()), lambda _: True)
    every_other = taken(Feed(found()), lambda _: next(turns) % 2 == 1)
    for place in places:
        place.close()
    assert every_other == whole
    assert sum(len(what) for what in whole if isinstance(what, list)) == len(ENTRIES) - 2


def test_g2_what_a_broken_session_left_comes_first_and_in_its_order(tree: Path) -> None:
    places: list[Any] = []
    line = Feed(scan.walk([os.fsencode(tree) + b"/"], bytes(32), DigestName.XXH3_128, places))
    taken = [found for _ in range(4) if isinstance(found := line.take(1, lambda _: True), list)]
    left = [item for items in taken for item in items]
    line.put_back(left)
    assert line.waiting() == left
    assert line.take(len(left), lambda _: True) == left
    for place in places:
        place.close()


def test_g8_the_scan_waits_for_whoever_reports_what_it_found(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shm / "tree").mkdir()
    for number in range(20):
        os.mkfifo(shm / "tree" / f"{number}")
    monkeypatch.setattr(send, "MAX_UNTOLD", 5)
    monkeypatch.setattr(send, "TICK_S", 0.001)
    waiting: list[int] = []
    real = send.SendSession._tell

    def tell(session: send.SendSession, *args: Any) -> None:
        real(session, *args)
        waiting.append(len(session._outcomes))

    monkeypatch.setattr(send.SendSession, "_tell", tell)
    with LocalReceiver(shm) as receiver:
        slowly = lambda event: isinstance(event, events.EntryEnded) and slow()  # noqa: E731
        assert local_send(shm, shm / "tree", receiver.port, on_event=slowly).code == 0
    assert len(waiting) == 20
    assert max(waiting) == 5


def test_the_next_session_waits_for_a_walk_that_the_last_one_is_stuck_in() -> None:
    """A walk is for one thread at a time."""
    inside, go_on = threading.Event(), threading.Event()
    odd = [scan.Odd(b"%d" % number, "") for number in range(2)]

    def walk() -> Iterator[scan.Found]:
        yield odd[0]
        inside.set()
        assert go_on.wait(PATIENCE_S)
        yield odd[1]

    line = Feed(walk())
    taken: list[Any] = []
    assert line.take(1, lambda _: True) == odd[0]
    late = threading.Thread(target=lambda: line.take(1, lambda _: False))
    late.start()
    assert inside.wait(PATIENCE_S)
    following = threading.Thread(target=lambda: taken.append(line.take(1, lambda _: True)))
    following.start()
    go_on.set()
    late.join()
    following.join()
    assert taken == [odd[1]]


# --- What is queued behind a slow read -----------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life is due after a hundredth of a second; ``slow`` takes longer."""
    monkeypatch.setattr(m, "PING_S", 0.01)


def slow() -> None:
    threading.Event().wait(0.03)


def test_g9_a_small_file_arrives_while_the_next_one_is_read_slowly(
    impatient: None, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = shm / "tree"
    tree.mkdir()
    for name in "ab":
        fill(tree / name, 500)
    arrived = threading.Event()
    in_time: list[bool] = []
    real_write, real_read = Whole.write, Source.read_small

    def write(*args: Any) -> None:
        real_write(*args)
        arrived.set()

    def read_small(source: Source, buffer: memoryview) -> memoryview:
        if source.name == b"a":
            slow()
        else:
            in_time.append(arrived.wait(PATIENCE_S))
        return real_read(source, buffer)

    monkeypatch.setattr(Whole, "write", write)
    monkeypatch.setattr(Source, "read_small", read_small)
    with LocalReceiver(shm) as receiver:
        assert local_send(shm, tree, receiver.port, timeout_s=30).code == 0
    assert in_time == [True]


def test_g9_the_last_chunk_arrives_while_its_source_is_looked_at_slowly(
    impatient: None, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros are a few bytes, which wait for more to go with them."""
    source = shm / "zeros"
    source.write_bytes(bytes(MIB))
    arrived = threading.Event()
    in_time: list[bool] = []
    real_zeros, real_read, real_check = Whole.write_zeros, Source.read, Source.check

    def write_zeros(*args: Any) -> None:
        real_zeros(*args)
        arrived.set()

    def read(*args: Any) -> memoryview:
        slow()
        return real_read(*args)

    def check(one: Source) -> Any:
        in_time.append(arrived.wait(PATIENCE_S))
        return real_check(one)

    monkeypatch.setattr(Whole, "write_zeros", write_zeros)
    monkeypatch.setattr(Source, "read", read)
    monkeypatch.setattr(Source, "check", check)
    with LocalReceiver(shm) as receiver:
        assert local_send(shm, source, receiver.port, timeout_s=30).code == 0
    assert in_time[0]
