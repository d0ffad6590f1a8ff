"""G5: receipts are given for what was published alone, and what a failed sync lost is wanted again."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.errors import Busy, DestinationError, IsFolder
from ftx.options import Exists as Policy
from ftx.protocol import messages as m
from ftx.protocol.manifest import Kind
from ftx.protocol.ranges import RangeSet
from ftx.storage import scratch
from ftx.storage.partial import PartialStore
from ftx.storage.paths import Root
from ftx.storage.scratch import GROUP_LEAST, Scratch, Whole
from ftx.transfer.actions import FRESH, Action, Commit, Reject, Release, Say, Take
from ftx.transfer.look import Looker
from ftx.transfer.publish import Publisher
from ftx.transfer.room import Room
from ftx.transfer.underway import UnderWay
from tests.storage.support import MTIME_NS, PEER, TAG, XXH3, chunk, entry, fail_once, record
from tests.support.ledger import OneByOne

DATA = b"small"


class Session:
    """The parts of a receiver's session that publish, in the test's thread."""

    def __init__(self, base: Path) -> None:
        self.into = base / "into"
        self.root = Root(self.into)
        self.store = PartialStore(self.root, reserve=0)
        self.ledger = OneByOne(XXH3, 100)
        self.under_way = UnderWay(self.store, Scratch(self.root, durable=True))
        self.acted: list[Action] = []
        self.room = Room(self.store, 0, lambda message: None, lambda event: None)
        self.publisher = Publisher(
            self.ledger, self.under_way, self.room, Policy.REPLACE, XXH3, self.acted.extend, lambda: False, fsync=True
        )

    def offer(self, *sizes: int) -> list[int]:
        """Offer files of these sizes, from id 1 on; their ids."""
        names = [b"f%d" % number for number in range(len(sizes))]
        entries = [m.Offered(Kind.FILE, name, size, size, 0o644, MTIME_NS, TAG)
                   for name, size in zip(names, sizes, strict=True)]  # fmt: skip
        self.ledger.receive(m.Folder(b"", 1, tuple(entries)))
        return list(range(1, 1 + len(sizes)))

    def small(self, count: int) -> list[int]:
        """So many small files that are wanted."""
        ids = self.offer(*[len(DATA)] * count)
        for entry_id in ids:
            live = self.ledger.get(entry_id)
            assert live is not None
            self.store.claim(live.entry.path)
            self.under_way.add_small({entry_id: Whole(self.under_way.scratch, live.entry, XXH3, claimed=True)})
        self.ledger.looked([(entry_id, FRESH) for entry_id in ids])
        return ids

    def arrive(self, ids: list[int]) -> None:
        """Their DATA comes, with FINISH, and is written."""
        for entry_id in ids:
            where = self.ledger.begin_one(m.Data(entry_id, 0, XXH3.function(DATA), len(DATA), final=True))
            partial = self.under_way.get(entry_id)
            assert partial is not None
            partial.write(0, DATA)
            assert self.ledger.written_one(where, 0, XXH3.function(DATA)) == [Commit((entry_id,))]

    def publish(self, ids: list[int]) -> list[Action]:
        """What the session then says and does."""
        self.acted.clear()
        self.publisher._publish_all(ids)
        return list(self.acted)

    def there(self) -> set[str]:
        return {path.name for path in self.into.iterdir() if path.is_file()}


@pytest.fixture
def session(shm: Path) -> Iterator[Session]:
    session = Session(shm)
    yield session
    session.under_way.close()
    session.under_way.scratch.close()
    session.root.close()


def receipts(actions: list[Action]) -> list[int]:
    messages = [action.message for action in actions if isinstance(action, Say)]
    return [item.entry for message in messages if isinstance(message, m.Receipt) for item in message.items]


def refused(actions: list[Action]) -> dict[int, int]:
    messages = [action.message for action in actions if isinstance(action, Say)]
    return {item.entry: item.code for message in messages if isinstance(message, m.Refuse) for item in message.items}


@pytest.mark.parametrize("together", [False, True], ids=["each", "together"])
def test_g5_what_a_failed_sync_of_a_group_lost_is_wanted_again(
    session: Session, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Of all the group: which of them it is about is not told."""
    monkeypatch.setattr(scratch, "_syncs_together", lambda fd: together)
    ids = session.small(GROUP_LEAST)
    session.arrive(ids)
    with monkeypatch.context() as patch:
        fail_once(patch, "sync_file_system" if together else "sync_file", at=1 if together else GROUP_LEAST)
        actions = session.publish(ids)
    assert actions == [Say(m.Want(entry_id, 0, (m.Range(0, 1),))) for entry_id in ids]
    assert session.there() == set()
    session.arrive(ids)
    assert receipts(session.publish(ids)) == ids
    assert len(session.there()) == GROUP_LEAST
    session.store.claim(b"f0")  # their paths are free again


def test_g5_of_a_group_only_what_was_published_has_a_receipt(session: Session) -> None:
    ids = session.small(3)
    session.arrive(ids)
    (session.into / "f1").mkdir()
    actions = session.publish(ids)
    assert receipts(actions) == [1, 3]
    assert refused(actions) == {2: IsFolder.wire}
    assert Release(2) in actions
    assert session.there() == {"f0", "f2"}


def test_g5_names_that_may_not_be_on_the_disk_have_no_receipts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = session.small(3)
    session.arrive(ids)
    fail_once(monkeypatch, "sync_folder", errno.EIO)
    actions = session.publish(ids)
    assert receipts(actions) == []
    assert refused(actions) == dict.fromkeys(ids, DestinationError.wire)


def test_g5_a_commit_that_is_void_publishes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided, and then a sync failed elsewhere, before its turn came."""
    (entry_id,) = session.offer(entry().size)
    live = session.ledger.get(entry_id)
    assert live is not None
    partial = session.store.open(PEER, live.entry, XXH3)
    session.under_way.add(entry_id, partial)
    session.ledger.looked_one(entry_id, Take(partial.held, partial.doubted, partial.digests))
    for index in range(3):
        payload = chunk(index)
        where = session.ledger.begin_one(m.Data(entry_id, index, XXH3.function(payload), len(payload)))
        partial.write(index, payload)
        session.ledger.written_one(where, index, XXH3.function(payload))
    assert session.ledger.receive(m.Finish(entry_id, partial.digests.root())) == [Commit((entry_id,))]
    session.ledger.lost(entry_id, RangeSet([(1, 2)]))
    calls = record(monkeypatch, "rename", "link")
    assert session.publish([entry_id]) == []
    assert (calls, session.there()) == ([], set())


def test_g1_a_small_file_that_is_not_there_any_more_is_not_published(session: Session) -> None:
    """Nor is an empty one in its place."""
    ids = session.small(2)
    session.arrive(ids)
    whole = session.under_way.get(1)
    assert isinstance(whole, Whole)
    whole.forget()
    actions = session.publish(ids)
    assert (receipts(actions), refused(actions)) == ([2], {1: DestinationError.wire})
    assert session.there() == {"f1"}


def test_g9_a_path_that_another_transfer_has_is_busy_for_what_is_small_too(session: Session) -> None:
    """It has no partial whose lock would tell: whoever looks at it claims it, until it was published."""
    looker = Looker(session.under_way, session.room, PEER, b"", Policy.REPLACE, XXH3, fsync=True)
    small = entry(b"f0", len(DATA))
    assert looker.verdicts([small]) == [(small.id, FRESH)]
    other = UnderWay(session.store, Scratch(session.root, durable=True))
    ((_, verdict),) = Looker(other, session.room, PEER, b"", Policy.REPLACE, XXH3, fsync=True).verdicts([small])
    assert isinstance(verdict, Reject)
    assert verdict.code == Busy.wire
    other.close()
    session.under_way.release(small.id)
    assert looker.verdicts([small]) == [(small.id, FRESH)]
