"""Where each item of a session stands: in one place at any time, and in the next session's hands in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import SourceChanged, SourceError
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, root_of_one
from ftx.storage import scan
from ftx.storage.source import Source
from ftx.transfer.feed import Item
from ftx.transfer.offers import Offers
from ftx.transfer.plan import Plan

XXH3 = DigestName.XXH3_128
CHANGED = SourceChanged("it changed")


@pytest.fixture
def items(shm: Path) -> Iterator[list[Item]]:
    """Two files of a folder, and the folder."""
    for name in ("tree/a", "tree/b"):
        (shm / name).parent.mkdir(exist_ok=True)
        (shm / name).write_bytes(name.encode())
    places: list[Any] = []
    found = scan.walk([os.fsencode(shm / "tree")], bytes(32), XXH3, places)
    yield [Item(one) for one in found if isinstance(one, Source)]
    for place in places:
        place.close()


@pytest.fixture
def offers() -> Offers:
    return Offers(Plan(XXH3))


def offer(offers: Offers, *items: Item) -> bool:
    return offers.offer(items, [(item, item.source, (item.source.offered, None, None)) for item in items])


def refused(*ids: int, code: int = m.WITHDRAWN) -> m.Refuse:
    return m.Refuse(tuple(m.RefuseItem(entry_id, code, "") for entry_id in ids))


def skipped(*ids: int) -> m.Skip:
    return m.Skip(tuple(m.SkipItem(entry_id, m.SkipReason.SAME) for entry_id in ids))


def withdraw(offers: Offers, entry_id: int) -> None:
    offers.failed(entry_id, CHANGED)
    assert offers.receive(refused(entry_id)) == []


def test_an_item_that_ended_is_nowhere(offers: Offers, items: list[Item]) -> None:
    a, b, _ = items
    offers.have([a, b])
    offer(offers, a, b)
    ((item, outcome),) = offers.receive(skipped(1))
    assert (item, outcome.state) == (a, "skipped")
    assert offers.source(1) is None
    assert offers.close() == [b]


def test_an_item_is_handed_over_once_wherever_it_stands(offers: Offers, items: list[Item]) -> None:
    a, b, folder = items
    offers.have([a, b])
    offer(offers, a, b)
    withdraw(offers, 1)
    offers.have([folder])
    assert offers.close() == [a, b, folder]
    assert offers.close() == []
    assert all(item.stale and not item.offers for item in items)


def test_an_item_that_was_offered_anew_is_under_way_and_nowhere_else(offers: Offers, items: list[Item]) -> None:
    a, b, folder = items
    offer(offers, a, b)
    offer(offers, folder)
    withdraw(offers, 1)
    assert offers.again() is a
    offer(offers, a)
    assert offers.again() is None
    assert offers.source(4) is a.source
    assert offers.close() == [a, b, folder]  # also now what came late into the folder is before its own entry


def test_an_item_that_cannot_be_offered_anew_is_waited_for_no_more(offers: Offers, items: list[Item]) -> None:
    offer(offers, items[0])
    withdraw(offers, 1)
    assert offers.offer([items[0]], [])
    assert (offers.again(), offers.close()) == (None, [])


def test_a_folder_comes_again_behind_what_came_late_into_it(offers: Offers, items: list[Item]) -> None:
    a, b, folder = items
    offer(offers, a, b)
    offer(offers, folder)
    withdraw(offers, 1)
    assert offers.receive(skipped(3)) == []
    offer(offers, a)
    assert [item for item, _ in offers.receive(skipped(4))] == [a]
    assert offers.again() is folder
    assert offers.close() == [folder, b]


def test_a_folder_that_would_come_again_is_behind_it_in_the_next_session_too(offers: Offers, items: list[Item]) -> None:
    a, b, folder = items
    offer(offers, a, b)
    offer(offers, folder)
    withdraw(offers, 1)
    offers.receive(skipped(3))
    assert offers.close() == [a, b, folder]


def test_g10_what_changed_is_given_up_after_a_few_tries(offers: Offers, items: list[Item]) -> None:
    for entry_id in range(1, m.MAX_OFFERS):
        offer(offers, items[0])
        withdraw(offers, entry_id)
    offer(offers, items[0])
    offers.failed(m.MAX_OFFERS, CHANGED)
    ((_, outcome),) = offers.receive(refused(m.MAX_OFFERS, code=CHANGED.wire))
    assert (outcome.state, offers.again()) == ("failed", None)


def test_g11_a_source_that_cannot_be_read_fails_at_once(offers: Offers, items: list[Item]) -> None:
    offer(offers, items[0])
    error = SourceError("the disk")
    offers.failed(1, error)
    ((_, outcome),) = offers.receive(refused(1, code=error.wire))
    assert (outcome.state, outcome.code) == ("failed", error.wire)


def test_g10_what_was_known_of_a_source_that_changed_does_not_count(offers: Offers, items: list[Item]) -> None:
    item = items[0]
    item.source.digests.set(0, bytes(16))
    offer(offers, item)
    offers.failed(1, CHANGED)
    assert not item.source.renewed().digests.known


def test_what_a_late_job_finds_of_an_entry_that_ended_harms_nothing(offers: Offers, items: list[Item]) -> None:
    offer(offers, items[0])
    withdraw(offers, 1)
    offer(offers, items[0])
    offers.failed(1, CHANGED)
    assert not items[0].stale
    assert offers.source(2) is items[0].source


def test_a_session_that_is_over_gets_nothing_and_changes_nothing(offers: Offers, items: list[Item]) -> None:
    a, b, folder = items
    offer(offers, a)
    offers.close()
    assert not offers.have([b])
    assert not offer(offers, folder)
    assert offers.source(1) is None
    offers.failed(1, CHANGED)
    root = root_of_one(XXH3, XXH3.function(b"tree/a"), 6)
    assert offers.receive(m.Receipt((m.ReceiptItem(1, 0, root),))) == []
    assert offers.close() == []
    assert (b.stale, b.offers, folder.stale, folder.offers) == (False, 0, False, 0)


def test_g10_a_thread_that_was_left_behind_notes_nothing_in_what_the_next_session_has(
    offers: Offers, shm: Path
) -> None:
    """What is known of chunks goes over, and belongs to one plan at a time."""
    (shm / "file").write_bytes(bytes(3 << 20))
    (source,) = scan.walk([os.fsencode(shm / "file")], bytes(32), XXH3, [])
    assert isinstance(source, Source)
    old, item = Plan(XXH3), Item(source)
    first = Offers(old)
    first.offer([item], [(item, source, (source.offered, None, source.digests))])
    old.chunk_read(1, 0, b"0" * 16)
    first.close()
    again = source.renewed()
    old.chunk_read(1, 1, b"1" * 16)
    offers.offer([item], [(item, again, (again.offered, None, again.digests))])
    old.chunk_read(1, 2, b"2" * 16)
    assert list(again.digests.known) == [(0, 1)]


def test_a_folder_whose_late_file_is_gone_comes_again_all_the_same(offers: Offers, items: list[Item]) -> None:
    """It was answered before the file was to be offered anew; when that fails nothing more comes into it."""
    a, _, folder = items
    offers.have([a, folder])
    offer(offers, a)
    offer(offers, folder)
    withdraw(offers, 1)
    assert offers.receive(skipped(2)) == []  # not ended: its time is not right any more
    assert offers.again() is a
    assert offers.offer([a], [])
    assert offers.again() is folder
    offer(offers, folder)
    assert [item for item, _ in offers.receive(skipped(3))] == [folder]
    assert offers.close() == []
