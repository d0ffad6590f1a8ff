"""What is told of an offer at once, by the thread that has received it, and what takes a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.errors import Busy, NoSpace
from ftx.options import Exists as Policy
from ftx.protocol import messages as m
from ftx.protocol.manifest import Entry
from ftx.storage import disk
from ftx.storage.partial import JOURNAL_SUFFIX, PartialStore, key_of
from ftx.storage.paths import OWN_FOLDER, Root
from ftx.storage.scratch import Scratch, Whole
from ftx.transfer.actions import FRESH, SMALL, Leave, Reject, Take, Verdict
from ftx.transfer.look import Looker
from ftx.transfer.room import Room
from ftx.transfer.underway import UnderWay
from tests.storage.support import MTIME_NS, PEER, XXH3, entry
from tests.support.process import wait_until

DATA = b"small"


@pytest.fixture
def under_way(shm: Path) -> Iterator[UnderWay]:
    root = Root(shm / "into")
    under_way = UnderWay(PartialStore(root, reserve=0), Scratch(root, durable=False))
    yield under_way
    under_way.close()
    under_way.scratch.close()
    root.close()


@pytest.fixture
def looker(under_way: UnderWay) -> Looker:
    room = Room(under_way.store, 0, lambda message: None, lambda event: None)
    return Looker(under_way, room, PEER, b"", Policy.REPLACE, XXH3, fsync=False)


def told_later(looker: Looker) -> list[tuple[int, Verdict]]:
    """What the look thread finds for all that waits for it."""
    told: list[tuple[int, Verdict]] = []
    looker.end()
    looker.run(told.extend, lambda: False)
    return told


def leave_partial(under_way: UnderWay, one: Entry) -> Path:
    """A partial of an earlier session; its journal."""
    partial = under_way.store.open(PEER, one, XXH3)
    under_way.store.release(partial, committed=False)
    own = os.fsencode(under_way.store.root.path) + b"/" + OWN_FOLDER
    return Path(os.fsdecode(own + b"/" + key_of(PEER, one.path) + JOURNAL_SUFFIX))


def test_what_is_small_is_told_at_once(under_way: UnderWay, looker: Looker) -> None:
    one = entry(b"new", SMALL)
    assert looker.look([one]) == [(one.id, FRESH)]
    assert isinstance(under_way.get(one.id), Whole)
    assert told_later(looker) == []


def test_what_is_there_already_is_told_at_once(under_way: UnderWay, looker: Looker) -> None:
    there = under_way.store.root.path / "there"
    there.write_bytes(bytes(SMALL + 1))
    os.utime(there, ns=(MTIME_NS, MTIME_NS))
    one = entry(b"there", SMALL + 1)
    assert looker.look([one]) == [(one.id, Leave(m.SkipReason.SAME))]
    assert told_later(looker) == []


def test_g9_a_partial_is_never_opened_by_the_thread_that_receives(under_way: UnderWay, looker: Looker) -> None:
    """It may be in use for long by what an ended session left. The others of its batch do not wait for it."""
    large, small = entry(b"large", 64 << 20), entry(b"small", len(DATA))._replace(id=2)
    assert looker.look([large, small]) == [(2, FRESH)]
    assert under_way.get(large.id) is None
    ((told, verdict),) = told_later(looker)
    assert told == large.id
    assert isinstance(verdict, Take)


def test_g9_a_free_name_is_not_searched_by_the_thread_that_receives(under_way: UnderWay) -> None:
    """Another session may have taken ten thousand of them."""
    room = Room(under_way.store, 0, lambda message: None, lambda event: None)
    looker = Looker(under_way, room, PEER, b"", Policy.RENAME, XXH3, fsync=False)
    one = entry(b"small", len(DATA))
    assert looker.look([one]) == []
    assert told_later(looker) == [(one.id, FRESH)]


def test_g9_a_small_file_that_has_a_partial_is_not_told_at_once(under_way: UnderWay, looker: Looker) -> None:
    one = entry(b"small", len(DATA))
    leave_partial(under_way, one)
    assert looker.look([one]) == []
    ((_, verdict),) = told_later(looker)
    assert isinstance(verdict, Take)


def test_g9_what_a_crash_left_of_a_commit_is_not_ended_by_the_thread_that_receives(
    under_way: UnderWay, looker: Looker
) -> None:
    """That takes a sync."""
    one = entry(b"there", len(DATA))
    journal = leave_partial(under_way, one)
    there = under_way.store.root.path / "there"
    there.write_bytes(DATA)
    os.utime(there, ns=(MTIME_NS, MTIME_NS))
    assert looker.look([one]) == []
    assert journal.exists()
    assert told_later(looker) == [(one.id, Leave(m.SkipReason.SAME))]
    assert not journal.exists()


def test_what_is_let_go_of_while_it_is_written_is_taken_away_behind_that(under_way: UnderWay) -> None:
    """Whoever works on small files has the turn: the file is not taken from under a write."""
    one = entry(b"small", len(DATA))
    under_way.add_small({one.id: Whole(under_way.scratch, one, XXH3)})
    writing, released = threading.Event(), threading.Event()

    def release() -> None:
        writing.wait()
        under_way.release(one.id)
        released.set()

    thread = threading.Thread(target=release)
    thread.start()

    def write(whole: object) -> None:
        assert isinstance(whole, Whole)
        writing.set()
        assert not released.wait(0.05)
        whole.write(0, DATA)

    assert under_way.do(one.id, write)
    thread.join()
    assert os.listdir(under_way.scratch.folder().fd) == []
    assert not under_way.do(one.id, write)


def test_g9_a_path_is_free_though_another_thread_is_stuck_with_its_turn(under_way: UnderWay) -> None:
    one = entry(b"small", len(DATA))
    under_way.store.claim(one.path)
    under_way.add_small({one.id: Whole(under_way.scratch, one, XXH3, claimed=True)})
    with under_way.scratch.turn:
        thread = threading.Thread(target=under_way.release, args=(one.id,))
        thread.start()
        wait_until(lambda: under_way.get(one.id) is None)
        under_way.close()
        wait_until(lambda: _is_free(under_way.store, one.path))
    thread.join()


def _is_free(store: PartialStore, path: bytes) -> bool:
    try:
        store.claim(path)
    except Busy:
        return False
    return True


def test_what_was_let_go_of_meanwhile_is_not_written(under_way: UnderWay) -> None:
    one = entry(b"small", len(DATA))
    whole = Whole(under_way.scratch, one, XXH3)
    under_way.add_small({one.id: whole})
    done: list[bool] = []
    with under_way.scratch.turn:
        thread = threading.Thread(target=lambda: done.append(under_way.do(one.id, lambda it: it.write(0, DATA))))
        thread.start()
        thread.join(0.05)
        assert under_way.pop(one.id) is whole
    thread.join()
    assert done == [False]
    assert not whole.there


def small_files(*names: bytes) -> list[Entry]:
    return [entry(name, len(DATA))._replace(id=number) for number, name in enumerate(names, 1)]


@pytest.mark.parametrize("names", [(b"a", b"taken", b"b"), (b"a", b"b", b"a")], ids=["taken", "twice"])
def test_g9_a_path_that_is_not_to_be_had_fails_alone(
    under_way: UnderWay, looker: Looker, names: tuple[bytes, ...]
) -> None:
    looker.look(small_files(b"first"))  # the free space is known from here on
    under_way.store.claim(b"taken")
    batch = [one._replace(id=one.id + 1) for one in small_files(*names)]
    told = dict(looker.look(batch))
    busy = [entry_id for entry_id, verdict in told.items() if isinstance(verdict, Reject) and verdict.code == Busy.wire]
    assert busy == [3 if b"taken" in names else 4]
    assert [told[entry_id] for entry_id in told if entry_id not in busy] == [FRESH] * 2


def test_g11_what_does_not_fit_together_is_told_one_by_one(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fits, the second would touch the reserve."""
    free = 1000
    monkeypatch.setattr(disk, "free_space", lambda fd: free)
    monkeypatch.setattr(disk, "total_space", lambda fd: 10**9)
    root = Root(shm / "into")
    under_way = UnderWay(PartialStore(root, reserve=100), Scratch(root, durable=False))
    room = Room(under_way.store, 0, lambda message: None, lambda event: None)
    looker = Looker(under_way, room, PEER, b"", Policy.REPLACE, XXH3, fsync=False)
    looker.look(small_files(b"first"))
    batch = [one._replace(id=one.id + 1, size=450, allocated=450) for one in small_files(b"a", b"b")]
    told = dict(looker.look(batch))
    assert told[2] == FRESH
    assert isinstance(told[3], Reject) and told[3].code == NoSpace.wire
    under_way.close()
    under_way.scratch.close()
    root.close()
