"""The receiver's half, rule by rule, and what crosses on the way to the sender's.

Chunks have 8 bytes here, and no file is small unless a test says so.
"""

from __future__ import annotations

import pytest

from ftx.errors import (
    Exists,
    IntegrityError,
    NameRefused,
    NoSpace,
    ProtocolError,
    SourceChanged,
    TooLarge,
    Unsupported,
)
from ftx.protocol import manifest
from ftx.protocol import messages as m
from ftx.protocol.manifest import MAX_FILE_SIZE, ChunkDigests, DigestName, Grid, Kind
from ftx.protocol.ranges import RangeSet
from ftx.transfer import ledger as module
from ftx.transfer import plan as plan_module
from ftx.transfer.actions import FRESH
from ftx.transfer.ledger import (
    KEPT,
    Action,
    Commit,
    Compare,
    Leave,
    Look,
    Make,
    Receiving,
    Rehash,
    Reject,
    Release,
    Say,
    Take,
)
from ftx.transfer.plan import Plan
from ftx.transfer.receiving import Small
from tests.support.ledger import OneByOne

XXH3, SHA = DigestName.XXH3_128, DigestName.SHA_256
CHUNK = 8
WINDOW = 100


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MIN_CHUNK", CHUNK)
    monkeypatch.setattr(module, "SMALL", -1)
    monkeypatch.setattr(plan_module, "SMALL", -1)


def chunk(index: int, version: int = 0) -> bytes:
    return b"%02d-%04d." % (index, version)


def digests_of(count: int, versions: dict[int, int] | None = None) -> ChunkDigests:
    digests = ChunkDigests(Grid.of(count * CHUNK), XXH3)
    for index in range(count):
        digests.set(index, XXH3.function(chunk(index, (versions or {}).get(index, 0))))
    return digests


def root_of(count: int) -> bytes:
    return digests_of(count).root()


def spans(*pairs: tuple[int, int]) -> RangeSet:
    return RangeSet(pairs)


def offered(name: bytes = b"f", size: int = 3 * CHUNK, tlvs: tuple[m.Tlv, ...] = ()) -> m.Offered:
    return m.Offered(Kind.FILE, name, size, size, 0o644, 7, b"tag" + bytes(13), tlvs=tlvs)


def offer(ledger: OneByOne, *counts: int, first: int = 1) -> list[Action]:
    entries = tuple(offered(b"f%d" % place, count * CHUNK) for place, count in enumerate(counts))
    return ledger.receive(m.Folder(b"a", first, entries))


def take(
    count: int = 3, held: RangeSet | None = None, doubted: RangeSet | None = None, known: tuple[int, ...] = ()
) -> Take:
    digests = ChunkDigests(Grid.of(count * CHUNK), XXH3)
    for index in known:
        digests.set(index, XXH3.function(chunk(index)))
    return Take(held or RangeSet(), doubted or RangeSet(), digests)


def taken(count: int = 3, **found: object) -> tuple[OneByOne, list[Action]]:
    """A ledger that wants entry 1, and what it answered."""
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, count)
    return ledger, ledger.looked_one(1, take(count, **found))  # type: ignore[arg-type]


def data(index: int, entry: int = 1, length: int = CHUNK) -> m.Data:
    return m.Data(entry, index, XXH3.function(chunk(index)), length)


def arrive(ledger: OneByOne, *indexes: int) -> list[Action]:
    """These chunks arrive; what the last of them led to."""
    actions: list[Action] = []
    for index in indexes:
        receiving = ledger.begin_one(data(index))
        assert receiving is not None
        actions = ledger.written_one(receiving, index, XXH3.function(chunk(index)))
    return actions


def finish(ledger: OneByOne, root: bytes) -> list[Action]:
    return ledger.receive(m.Finish(1, root))


def want(*pairs: tuple[int, int], held: int = 0, entry: int = 1) -> Say:
    return Say(m.Want(entry, held, tuple(m.Range(start, stop - start) for start, stop in pairs)))


def refused(code: int, *, entry: int = 1) -> list[tuple[type, int, int]]:
    """The shape of what ends an entry: REFUSE with ``code``, then the partial is let go."""
    return [(m.Refuse, entry, code), (Release, entry, 0)]


def shape(actions: list[Action]) -> list[tuple[type, int, int]]:
    found = []
    for action in actions:
        if isinstance(action, Say) and isinstance(action.message, m.Refuse):
            (item,) = action.message.items
            assert item.message or item.code == m.WITHDRAWN
            found.append((m.Refuse, item.entry, item.code))
        else:
            found.append((type(action), getattr(action, "entry", 0), 0))
    return found


def looked_at(actions: list[Action]) -> list[int]:
    """The entries that these Looks are about, and nothing else."""
    assert all(isinstance(action, Look) for action in actions)
    return [entry.id for action in actions if isinstance(action, Look) for entry in action.entries]


def committing(count: int = 3) -> OneByOne:
    """A ledger with entry 1 handed to commit."""
    ledger, _ = taken(count)
    arrive(ledger, *range(count))
    assert finish(ledger, root_of(count)) == [Commit((1,))]
    return ledger


# --- Offers --------------------------------------------------------------------------------------------


def test_each_offer_is_looked_at() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    (look,) = ledger.receive(m.Folder(b"a/b", 7, (offered(b"x", 5), offered(b"y", 0))))
    assert isinstance(look, Look)
    entries = look.entries
    assert [(entry.id, entry.path, entry.size) for entry in entries] == [(7, b"a/b/x", 5), (8, b"a/b/y", 0)]
    assert (entries[0].mtime_ns, entries[0].tag[:3], entries[0].mode) == (7, b"tag", 0o644)
    (top,) = ledger.receive(m.Folder(b"", 9, (offered(b"z"),)))
    assert isinstance(top, Look)
    assert [entry.path for entry in top.entries] == [b"z"]
    assert ledger.bytes_offered == 5 + 3 * CHUNK


def test_g12_ids_rise_may_leave_gaps_and_are_never_used_again() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, 1, 1, first=5)
    for first in (0, 1, 5, 6):
        with pytest.raises(ProtocolError, match="used before"):
            offer(ledger, 1, first=first)
    offer(ledger, 1, first=7)
    offer(ledger, 1, first=2**62)


def test_ids_must_fit_into_their_field() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    with pytest.raises(ProtocolError, match="do not fit"):
        offer(ledger, 1, 1, first=2**63 - 1)
    offer(ledger, 1, first=2**63 - 1)
    assert ledger.looked_one(2**63 - 1, take(1)) == [want((0, 1), entry=2**63 - 1)]


def test_g8_no_more_entries_are_outstanding_than_the_window_has() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, *[0] * (WINDOW - 1))
    with pytest.raises(ProtocolError, match="outstanding"):
        offer(ledger, 0, 0, first=WINDOW)
    offer(ledger, 0, first=WINDOW)
    with pytest.raises(ProtocolError, match="outstanding"):
        offer(ledger, 0, first=WINDOW + 1)
    ledger.looked_one(1, Leave(m.SkipReason.SAME))
    offer(ledger, 0, first=WINDOW + 1)


def test_the_window_is_never_below_what_a_sender_may_assume() -> None:
    ledger = OneByOne(XXH3, 1)
    offer(ledger, *[0] * m.INITIAL_WINDOW)
    with pytest.raises(ProtocolError):
        offer(ledger, 0, first=m.INITIAL_WINDOW + 1)


def test_what_is_too_large_is_refused_alone() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    actions = ledger.receive(
        m.Folder(b"", 1, (offered(b"x", MAX_FILE_SIZE + 1), offered(b"y", 1), offered(b"z", 2**64 - 1)))
    )
    assert shape(actions[:4]) == [*refused(TooLarge.wire), *refused(TooLarge.wire, entry=3)]
    assert looked_at(actions[4:]) == [2]
    assert ledger.failed == 2
    assert ledger.bytes_offered == 1


@pytest.mark.parametrize("name", [b"", b"/", b"a/b", b"../x"])
def test_g6_a_name_that_is_not_one_name_is_refused_alone(name: bytes) -> None:
    ledger = OneByOne(XXH3, WINDOW)
    actions = ledger.receive(m.Folder(b"", 1, (offered(name), offered(b"y"))))
    assert shape(actions[:2]) == refused(NameRefused.wire)
    assert looked_at(actions[2:]) == [2]


def test_g12_a_critical_tlv_refuses_its_entry_alone_and_by_name() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    critical, optional = m.Tlv(m.CRITICAL_TLV | 0x12, b"v"), m.Tlv(0x12, b"v")
    entries = (offered(b"x", tlvs=(optional, critical)), offered(b"y", tlvs=(optional,)))
    actions = ledger.receive(m.Folder(b"", 1, entries))
    assert shape(actions[:2]) == refused(Unsupported.wire)
    assert "0x8012" in str(actions[0])
    assert looked_at(actions[2:]) == [2]


@pytest.mark.parametrize("reason", m.SkipReason, ids=lambda reason: reason.name)
def test_leave(reason: m.SkipReason) -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, 1)
    assert ledger.looked_one(1, Leave(reason)) == [Say(m.Skip((m.SkipItem(1, reason),)))]
    assert ledger.skipped == 1
    assert ledger.get(1) is None


def test_g9_reject_refuses_one_entry_alone() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, 1, 1)
    assert shape(ledger.looked_one(1, Reject(Exists.wire, "it is there"))) == refused(Exists.wire)
    assert ledger.failed == 1
    assert ledger.looked_one(2, take(1)) == [want((0, 1), entry=2)]


# --- The first answer (G3) -----------------------------------------------------------------------------


def test_a_fresh_file_is_wanted_whole() -> None:
    assert taken()[1] == [want((0, 3))]


def test_an_empty_file_is_wanted_too() -> None:
    ledger, actions = taken(0)
    assert actions == [want()]
    assert finish(ledger, root_of(0)) == [Commit((1,))]


def test_g2_g3_what_is_missing_is_wanted_at_once_and_what_is_held_is_read_behind_it() -> None:
    ledger, actions = taken(5, held=spans((0, 2), (3, 4)), known=(0,))
    assert actions == [want((2, 3), (4, 5), held=3 * CHUNK), Rehash(1, ((1, 2), (3, 4)))]
    assert ledger.bytes_held == 3 * CHUNK


def test_g3_doubted_chunks_are_asked_about_behind_the_first_want() -> None:
    _, actions = taken(4, doubted=spans((1, 3)))
    assert actions == [want((0, 1), (3, 4)), Say(m.AskDigests(1, SHA, 1, 2))]


def test_many_ranges_go_in_several_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_RANGES", 2)
    _, actions = taken(6, held=spans((1, 2), (3, 4), (5, 6)), known=(1, 3, 5))
    assert actions == [want((0, 1), (2, 3), held=3 * CHUNK), want((4, 5))]


def test_what_was_cancelled_while_it_was_looked_at_is_let_go() -> None:
    for verdict in (take(1), Leave(m.SkipReason.SAME), Reject(49, "")):
        ledger = OneByOne(XXH3, WINDOW)
        offer(ledger, 1)
        assert ledger.receive(m.Cancel(1, m.WITHDRAWN, "")) == []
        assert shape(ledger.looked_one(1, verdict)) == refused(m.WITHDRAWN)


# --- Chunks --------------------------------------------------------------------------------------------


def test_g1_an_entry_is_committed_when_all_is_there_and_agreed() -> None:
    ledger, _ = taken()
    assert arrive(ledger, 2, 0) == []
    assert finish(ledger, root_of(3)) == []
    assert arrive(ledger, 1) == [Commit((1,))]


def test_g1_finish_may_come_last() -> None:
    ledger, _ = taken()
    assert arrive(ledger, 0, 1, 2) == []
    assert finish(ledger, root_of(3)) == [Commit((1,))]


def test_g1_a_chunk_that_is_still_being_written_is_waited_for() -> None:
    ledger, _ = taken(2)
    one, two = ledger.begin_one(data(0)), ledger.begin_one(data(1))
    assert one is two is ledger.get(1)
    assert one is not None
    finish(ledger, root_of(2))
    assert ledger.written_one(one, 1, XXH3.function(chunk(1))) == []
    assert ledger.written_one(one, 0, XXH3.function(chunk(0))) == [Commit((1,))]


def test_g4_what_was_known_of_a_chunk_is_void_while_it_is_missing() -> None:
    ledger, _ = taken(1, known=(0,))
    assert finish(ledger, root_of(1)) == []
    receiving = ledger.begin_one(data(0))
    assert receiving is not None
    assert finish(ledger, root_of(1)) == []
    assert ledger.written_one(receiving, 0, XXH3.function(chunk(0))) == [Commit((1,))]


def test_g4_what_was_known_of_a_chunk_is_void_while_it_is_doubted() -> None:
    ledger, _ = taken(1, doubted=spans((0, 1)), known=(0,))
    ledger.receive(m.Digests(1, SHA, 0, bytes(32)))
    assert finish(ledger, root_of(1)) == []
    assert ledger.compared(1, [(0, None)]) == [want((0, 1))]


def test_an_entry_is_handed_to_commit_once() -> None:
    ledger = committing()
    assert finish(ledger, root_of(3)) == []


def test_g4_a_damaged_chunk_is_wanted_again() -> None:
    ledger, _ = taken(1)
    finish(ledger, root_of(1))
    receiving = ledger.begin_one(data(0))
    assert receiving is not None
    assert ledger.damaged(receiving, 0) == [want((0, 1))]
    assert arrive(ledger, 0) == [Commit((1,))]
    assert ledger.bytes_received == 2 * CHUNK


def test_g4_a_chunk_is_repaired_three_times_then_the_entry_fails() -> None:
    ledger, _ = taken(2)
    for again in range(m.MAX_REPAIRS + 1):
        receiving = ledger.begin_one(data(0))
        assert receiving is not None
        actions = ledger.damaged(receiving, 0)
        if again < m.MAX_REPAIRS:
            assert actions == [want((0, 1))]
    assert shape(actions) == refused(IntegrityError.wire)
    assert ledger.failed == 1


def test_chunks_that_were_not_asked_for() -> None:
    ledger, _ = taken(3, held=spans((0, 1)))
    arrive(ledger, 1)
    for index in (0, 1, 3, 2**64 - 1):  # held, here already, not in the grid
        with pytest.raises(ProtocolError, match="not asked for"):
            ledger.begin_one(data(index))


@pytest.mark.parametrize(("index", "length"), [(0, 7), (0, 9), (0, 0), (2, 8), (2, 4), (2, 0)])
def test_chunks_of_a_wrong_length(index: int, length: int) -> None:
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(m.Folder(b"", 1, (offered(size=2 * CHUNK + 5),)))
    ledger.looked_one(1, Take(RangeSet(), RangeSet(), ChunkDigests(Grid.of(2 * CHUNK + 5), XXH3)))
    with pytest.raises(ProtocolError, match=f"has {length} bytes"):
        ledger.begin_one(data(index, length=length))
    assert ledger.begin_one(data(2, length=5))


def test_chunks_before_the_answer() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, 1)
    with pytest.raises(ProtocolError, match="makes no sense"):
        ledger.begin_one(data(0))


def test_g12_late_frames_are_dropped_and_those_for_no_entry_refused() -> None:
    ledger, _ = taken(2)
    ledger.fail(1, NoSpace.wire, "full")
    zeros, digests = m.Zeros(1, (m.Range(0, 1),)), m.Digests(1, XXH3, 0, bytes(16))
    assert ledger.begin_one(data(0)) is None
    assert ledger.zeros(zeros) is None
    for message in (digests, m.Finish(1, bytes(16)), m.Cancel(1, 0, "")):
        assert ledger.receive(message) == []
    for never in (0, 2, 2**64 - 1):
        with pytest.raises(ProtocolError, match="never offered"):
            ledger.begin_one(data(0, entry=never))
        with pytest.raises(ProtocolError, match="never offered"):
            ledger.zeros(m.Zeros(never, (m.Range(0, 1),)))
        for message in (m.Digests(never, XXH3, 0, bytes(16)), m.Finish(never, bytes(16)), m.Cancel(never, 0, "")):
            with pytest.raises(ProtocolError, match="never offered"):
                ledger.receive(message)


# --- Zeros ---------------------------------------------------------------------------------------------


def test_zeros_count_as_chunks_of_zeros() -> None:
    ledger, _ = taken(3)
    arrive(ledger, 1)
    place = ledger.zeros(m.Zeros(1, (m.Range(0, 1), m.Range(2, 1))))
    assert place is not None
    receiving, ranges = place
    assert ranges == [(0, 1), (2, 3)]
    digests = digests_of(3)
    digests.set_ranges_zero(spans((0, 1), (2, 3)))
    assert finish(ledger, digests.root()) == []
    assert ledger.zeroed(receiving, ranges) == [Commit((1,))]
    assert ledger.bytes_received == CHUNK


@pytest.mark.parametrize("span", [(1, 2), (0, 2), (3, 1), (2, 0), (2, 2), (0, 2**64 - 1)])
def test_zeros_that_were_not_asked_for(span: tuple[int, int]) -> None:
    ledger, _ = taken(3, held=spans((1, 2)))
    with pytest.raises(ProtocolError, match="not asked for"):
        ledger.zeros(m.Zeros(1, (m.Range(*span),)))


def test_zeros_twice() -> None:
    ledger, _ = taken(3)
    with pytest.raises(ProtocolError, match="not asked for"):
        ledger.zeros(m.Zeros(1, (m.Range(0, 1), m.Range(0, 1))))


# --- What was held before (G4) -------------------------------------------------------------------------


def test_g4_what_is_held_is_read_before_the_commit() -> None:
    ledger, _ = taken(2, held=spans((0, 2)))
    assert finish(ledger, root_of(2)) == []
    assert ledger.rehashed(1, 1, XXH3.function(chunk(1))) == []
    assert ledger.rehashed(1, 0, XXH3.function(chunk(0))) == [Commit((1,))]
    assert ledger.rehashed(1, 0, XXH3.function(chunk(0))) == []  # once is enough


def test_g4_a_held_chunk_that_cannot_be_read_is_wanted() -> None:
    ledger, _ = taken(2, held=spans((0, 2)), known=(0,))
    finish(ledger, root_of(2))
    assert ledger.rehashed(1, 1, None) == [want((1, 2))]
    assert ledger.bytes_held == CHUNK
    assert arrive(ledger, 1) == [Commit((1,))]


def test_g4_rot_is_found_by_the_root_and_only_it_is_sent_again() -> None:
    ledger, _ = taken(4, held=spans((1, 4)))
    arrive(ledger, 0)
    finish(ledger, root_of(4))
    ledger.rehashed(1, 1, XXH3.function(chunk(1)))
    ledger.rehashed(1, 2, XXH3.function(b"rotten"))
    assert ledger.rehashed(1, 3, XXH3.function(chunk(3))) == [Say(m.AskDigests(1, XXH3, 1, 3))]
    answer = m.Digests(1, XXH3, 1, digests_of(4).slice(1, 4))
    assert ledger.receive(answer) == [want((2, 3))]
    assert arrive(ledger, 2) == [Commit((1,))]
    assert ledger.bytes_held == 2 * CHUNK


def test_g4_rot_is_repaired_when_all_answers_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_ASKED", 2)
    ledger, _ = taken(4, held=spans((0, 4)))
    for index in range(4):
        ledger.rehashed(1, index, XXH3.function(b"rotten"))
    assert finish(ledger, root_of(4)) == [Say(m.AskDigests(1, XXH3, 0, 2)), Say(m.AskDigests(1, XXH3, 2, 2))]
    assert ledger.receive(m.Digests(1, XXH3, 0, digests_of(4).slice(0, 2))) == [want((0, 2))]
    assert arrive(ledger, 0, 1) == []  # the second answer is still on its way
    assert ledger.receive(m.Digests(1, XXH3, 2, digests_of(4).slice(2, 4))) == [want((2, 4))]
    assert arrive(ledger, 2, 3) == [Commit((1,))]


def test_g4_a_report_about_what_was_repaired_meanwhile_does_not_count() -> None:
    ledger, _ = taken(1, held=spans((0, 1)))
    assert ledger.rehashed(1, 0, None) == [want((0, 1))]
    arrive(ledger, 0)
    assert ledger.rehashed(1, 0, XXH3.function(b"rotten")) == []
    assert finish(ledger, root_of(1)) == [Commit((1,))]


def test_what_is_wanted_again_need_not_be_read() -> None:
    ledger, _ = taken(1, held=spans((0, 1)))
    assert ledger.lost(1, spans((0, 1))) == [want((0, 1))]
    arrive(ledger, 0)
    assert finish(ledger, root_of(1)) == [Commit((1,))]


def test_g4_a_sender_that_contradicts_itself_is_refused() -> None:
    """Nothing was held, every chunk agrees, and yet the root differs."""
    ledger, _ = taken(2)
    arrive(ledger, 0, 1)
    assert finish(ledger, root_of(3)) == [Say(m.AskDigests(1, XXH3, 0, 2))]
    assert shape(ledger.receive(m.Digests(1, XXH3, 0, digests_of(2).slice(0, 2)))) == refused(IntegrityError.wire)


def test_g4_an_empty_file_with_another_root_is_refused() -> None:
    ledger, _ = taken(0)
    assert shape(finish(ledger, root_of(1))) == refused(IntegrityError.wire)


def test_the_root_digest_has_its_length_and_does_not_change() -> None:
    ledger, _ = taken()
    for length in (0, 15, 32):
        with pytest.raises(ProtocolError, match=f"{length} bytes"):
            finish(ledger, bytes(length))
    ledger, _ = taken()
    finish(ledger, root_of(3))
    finish(ledger, root_of(3))
    with pytest.raises(ProtocolError, match="another root"):
        finish(ledger, root_of(2))


# --- Another version of the file -----------------------------------------------------------------------


def test_equal_chunks_of_another_version_are_kept_and_others_wanted() -> None:
    ledger, actions = taken(3, doubted=spans((0, 3)))
    assert actions == [want(), Say(m.AskDigests(1, SHA, 0, 3))]
    theirs = b"".join(SHA.function(chunk(index)) for index in range(3))
    assert ledger.receive(m.Digests(1, SHA, 0, theirs)) == [Compare(1, SHA, 0, theirs)]
    finish(ledger, root_of(3))
    found = [(0, XXH3.function(chunk(0))), (1, None), (2, XXH3.function(chunk(2)))]
    assert ledger.compared(1, found) == [want((1, 2))]
    assert ledger.bytes_held == 2 * CHUNK
    assert arrive(ledger, 1) == [Commit((1,))]


def test_an_unchanged_file_is_committed_when_it_was_compared() -> None:
    ledger, _ = taken(1, doubted=spans((0, 1)))
    finish(ledger, root_of(1))
    ledger.receive(m.Digests(1, SHA, 0, SHA.function(chunk(0))))
    assert ledger.compared(1, [(0, XXH3.function(chunk(0)))]) == [Commit((1,))]


def test_g8_few_asks_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPARE_STEP", 2)
    monkeypatch.setattr(module, "COMPARES_OPEN", 2)
    ledger, actions = taken(7, doubted=spans((0, 7)))
    assert actions == [want(), Say(m.AskDigests(1, SHA, 0, 2)), Say(m.AskDigests(1, SHA, 2, 2))]
    assert len(ledger.receive(m.Digests(1, SHA, 0, bytes(64)))) == 1  # Compare, and nothing asked while it runs
    assert ledger.compared(1, [(0, None), (1, None)]) == [want((0, 2)), Say(m.AskDigests(1, SHA, 4, 2))]


def test_answers_may_come_in_pieces_and_asks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads may say two asks in the order that the ledger did not decide them in."""
    monkeypatch.setattr(module, "COMPARE_STEP", 3)
    ledger, actions = taken(6, doubted=spans((0, 6)))
    assert actions[1:] == [Say(m.AskDigests(1, SHA, 0, 3)), Say(m.AskDigests(1, SHA, 3, 3))]
    for first, count in ((3, 1), (0, 2), (4, 2), (2, 1)):
        digests = bytes(32 * count)
        assert ledger.receive(m.Digests(1, SHA, first, digests)) == [Compare(1, SHA, first, digests)]
        with pytest.raises(ProtocolError, match="not asked for"):
            ledger.receive(m.Digests(1, SHA, first, digests))


@pytest.mark.parametrize(
    "message",
    [
        m.Digests(1, SHA, 0, bytes(32)),  # not from there on
        m.Digests(1, SHA, 2, bytes(32)),
        m.Digests(1, XXH3, 1, bytes(32)),  # another digest
        m.Digests(1, SHA, 1, bytes(31)),
        m.Digests(1, SHA, 1, bytes(33)),
        m.Digests(1, SHA, 1, b""),
        m.Digests(1, SHA, 1, bytes(96)),  # too many
    ],
)
def test_digests_that_do_not_fit(message: m.Digests) -> None:
    ledger, _ = taken(4, doubted=spans((1, 3)))
    with pytest.raises(ProtocolError, match="not asked for|do not fit"):
        ledger.receive(message)


def test_digests_that_nobody_asked_for() -> None:
    ledger, _ = taken(1)
    with pytest.raises(ProtocolError, match="not asked for"):
        ledger.receive(m.Digests(1, XXH3, 0, bytes(16)))


# --- Commit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_g5_the_receipt_comes_behind_the_commit(durable: bool) -> None:
    ledger = committing()
    flags = m.ReceiptFlags.DURABLE if durable else 0
    assert ledger.committed_one(1, durable=durable) == [Say(m.Receipt((m.ReceiptItem(1, flags, root_of(3)),)))]
    assert ledger.done == 1
    assert ledger.get(1) is None


def test_g5_what_the_disk_lost_is_wanted_again_and_committed_anew() -> None:
    ledger = committing()
    assert ledger.lost(1, spans((0, 1), (2, 3))) == [want((0, 1), (2, 3))]
    assert arrive(ledger, 0) == []
    assert arrive(ledger, 2) == [Commit((1,))]


def test_a_disk_that_goes_on_losing_fails_the_entry() -> None:
    ledger = committing(1)
    for _ in range(m.MAX_REPAIRS):
        ledger.lost(1, spans((0, 1)))
        assert arrive(ledger, 0) == [Commit((1,))]
    assert shape(ledger.lost(1, spans((0, 1)))) == refused(IntegrityError.wire)


def test_g2_what_is_on_its_way_already_is_not_asked_for_twice() -> None:
    ledger, _ = taken(3)
    arrive(ledger, 0, 1)
    assert ledger.lost(1, spans((0, 1))) == [want((0, 1))]
    assert ledger.lost(1, spans((0, 2))) == [want((1, 2))]
    assert ledger.lost(1, spans((0, 3))) == []


def test_a_failed_sync_that_lost_nothing_commits_again() -> None:
    ledger = committing()
    assert ledger.lost(1, RangeSet()) == [Commit((1,))]


def test_a_commit_that_fails_refuses_the_entry() -> None:
    ledger = committing()
    assert shape(ledger.fail(1, NoSpace.wire, "full")) == refused(NoSpace.wire)
    assert ledger.fail(1, NoSpace.wire, "full") == []
    assert ledger.failed == 1


def test_a_commit_is_void_when_a_failed_sync_came_between() -> None:
    ledger = committing()
    assert ledger.committing([1])
    ledger.lost(1, spans((0, 1)))
    assert not ledger.committing([1])
    arrive(ledger, 0)
    assert ledger.committing([1])
    ledger.committed_one(1, durable=True)
    assert not ledger.committing([1])


# --- How entries ended ---------------------------------------------------------------------------------


def test_g11_each_entry_that_ended_is_told_once_and_with_its_path_in_the_destination() -> None:
    ledger = OneByOne(XXH3, WINDOW, b"base")
    offer(ledger, 0, 1, 3, 3, 3, 1)
    ledger.looked_one(1, Leave(m.SkipReason.SAME))
    ledger.looked_one(2, Leave(m.SkipReason.KEPT))
    ledger.looked_one(3, take(held=spans((0, 1)), known=(0,)))
    for index in (1, 2):
        receiving = ledger.begin_one(data(index, 3))
        assert receiving is not None
        ledger.written_one(receiving, index, XXH3.function(chunk(index)))
    ledger.receive(m.Finish(3, root_of(3)))
    ledger.committed_one(3, durable=True, path=b"base/a/f2.1")
    ledger.looked_one(4, take())
    ledger.receive(m.Cancel(4, SourceChanged.wire, "it changed"))
    ledger.receive(m.Cancel(5, m.WITHDRAWN, "it changed"))
    ledger.looked_one(6, Reject(Exists.wire, "it is there"))
    assert [
        (o.entry.path, o.state, o.code, o.message, o.root, o.durable, o.sent, o.reused) for o in ledger.ended()
    ] == [
        (b"base/a/f0", "skipped", 0, "", b"", False, 0, 0),
        (b"base/a/f1", "skipped", 0, KEPT, b"", False, 0, 0),
        (b"base/a/f2.1", "done", 0, "", root_of(3), True, 2 * CHUNK, CHUNK),
        (b"base/a/f3", "failed", SourceChanged.wire, "it changed", b"", False, 0, 0),
        (b"base/a/f5", "failed", Exists.wire, "it is there", b"", False, 0, 0),
    ]
    assert ledger.ended() == []


# --- CANCEL and what crosses it ------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "failed"), [(m.WITHDRAWN, 0), (SourceChanged.wire, 1)])
def test_g10_a_cancelled_entry_is_refused_with_the_same_code(code: int, failed: int) -> None:
    ledger, _ = taken()
    arrive(ledger, 0)
    assert shape(ledger.receive(m.Cancel(1, code, "it changed"))) == refused(code)
    assert ledger.failed == failed
    assert ledger.bytes_offered == (3 * CHUNK if failed else 0)
    assert ledger.begin_one(data(1)) is None


def test_a_commit_that_has_begun_is_the_answer_to_a_cancel() -> None:
    ledger = committing()
    assert ledger.receive(m.Cancel(1, m.WITHDRAWN, "")) == []
    (say,) = ledger.committed_one(1, durable=True)
    assert isinstance(say, Say)
    assert isinstance(say.message, m.Receipt)


def test_a_commit_that_lost_data_behind_a_cancel_ends_the_entry() -> None:
    """The sender has given it up and sends no chunk again: to want one would wait for ever."""
    ledger = committing()
    ledger.receive(m.Cancel(1, SourceChanged.wire, "it changed"))
    assert shape(ledger.lost(1, spans((0, 1)))) == refused(SourceChanged.wire)
    assert ledger.failed == 1


def test_a_commit_that_failed_behind_a_cancel_ends_the_entry() -> None:
    ledger = committing()
    ledger.receive(m.Cancel(1, m.WITHDRAWN, ""))
    assert shape(ledger.fail(1, NoSpace.wire, "full")) == refused(NoSpace.wire)
    assert ledger.failed == 1


@pytest.mark.parametrize("case", ["SKIP", "REFUSE", "RECEIPT"])
def test_counts_stay_equal_when_a_cancel_crosses_the_answer(case: str) -> None:
    plan, ledger = Plan(XXH3), OneByOne(XXH3, WINDOW)
    known = digests_of(1)
    plan.offer(b"", [(offered(size=CHUNK), RangeSet(), known)])
    plan.scan_done()
    to_receiver(plan, ledger)
    match case:
        case "SKIP":
            answer = ledger.looked_one(1, Leave(m.SkipReason.KEPT))
        case "REFUSE":
            answer = ledger.looked_one(1, Reject(Exists.wire, "it is there"))
        case _:
            to_sender(plan, ledger.looked_one(1, take(1, held=spans((0, 1)), known=(0,))))
            assert plan.next(control=True, bulk=True)
            plan.checked(1, manifest.Pin.SAME)
            assert to_receiver(plan, ledger) == [Commit((1,))]
            answer = ledger.committed_one(1, durable=True)
    plan.cancel(1, m.WITHDRAWN, "")
    assert to_receiver(plan, ledger) == []  # ended already
    to_sender(plan, answer)
    to_sender(plan, to_receiver(plan, ledger))
    assert plan.finished
    totals = (plan.done, plan.skipped, plan.failed)
    assert totals == (ledger.done, ledger.skipped, ledger.failed)
    assert sum(totals) == 1


def to_receiver(plan: Plan, ledger: OneByOne) -> list[Action]:
    job = plan.next(control=True, bulk=False)
    assert job is not None
    return ledger.receive(job.message)  # type: ignore[union-attr]


def to_sender(plan: Plan, actions: list[Action]) -> None:
    for action in actions:
        if isinstance(action, Say):
            plan.receive(action.message)


# --- Reports that come late ----------------------------------------------------------------------------


def test_g1_an_entry_that_ended_is_not_committed_by_its_last_chunk() -> None:
    ledger, _ = taken(1)
    receiving = ledger.begin_one(data(0))
    assert receiving is not None
    finish(ledger, root_of(1))
    ledger.fail(1, NoSpace.wire, "full")
    assert ledger.written_one(receiving, 0, XXH3.function(chunk(0))) == []


def test_reports_about_ended_entries_change_nothing() -> None:
    ledger, _ = taken(4, held=spans((0, 1)), doubted=spans((1, 2)))
    receiving = ledger.begin_one(data(2))
    assert isinstance(receiving, Receiving)
    place = ledger.zeros(m.Zeros(1, (m.Range(3, 1),)))
    assert place is not None
    ledger.fail(1, NoSpace.wire, "full")
    assert ledger.written_one(receiving, 2, bytes(16)) == []
    assert ledger.damaged(receiving, 2) == []
    assert ledger.zeroed(*place) == []
    assert ledger.rehashed(1, 0, bytes(16)) == ledger.rehashed(1, 0, None) == []
    assert ledger.compared(1, [(1, None)]) == []
    assert ledger.lost(1, spans((2, 3))) == []
    assert (ledger.done, ledger.skipped, ledger.failed) == (0, 0, 1)


# --- BYE and the rest ----------------------------------------------------------------------------------


def test_bye_is_answered_when_all_entries_ended_and_totals_agree() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, 1, 1)
    ledger.looked_one(1, Leave(m.SkipReason.SAME))
    with pytest.raises(ProtocolError, match="1 entries are open"):
        ledger.receive(m.Bye(0, 1, 0))
    ledger.looked_one(2, Reject(49, "no"))
    for totals in ((0, 1, 0), (1, 1, 1), (0, 2, 1), (0, 0, 2)):
        with pytest.raises(ProtocolError, match="count differently"):
            ledger.receive(m.Bye(*totals))
    assert ledger.receive(m.Bye(0, 1, 1)) == [Say(m.Bye(0, 1, 1))]


def test_signs_of_life_and_the_end_of_a_folder_ask_for_nothing() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    assert ledger.receive(m.Ping()) == ledger.receive(m.FolderEnd(b"", 1)) == []


@pytest.mark.parametrize(
    "message",
    [m.Want(1, 0, ()), m.Skip(()), m.Receipt(()), m.Busy(1), m.Pause(1, ""), m.Resume(), m.Error(1, ""), data(0)],
    ids=lambda message: type(message).__name__,
)
def test_messages_that_are_not_for_a_receiver(message: m.Message) -> None:
    with pytest.raises(ProtocolError, match="not for a receiver"):
        taken()[0].receive(message)


# --- Folders and links ---------------------------------------------------------------------------------


def bare(name: bytes = b"x", kind: Kind = Kind.FOLDER) -> m.Offered:
    return m.Offered(kind, name, 0, 0, 0o755, 7, bytes(16), b"t" if kind is Kind.SYMLINK else b"")


MADE = m.Receipt((m.ReceiptItem(1, m.ReceiptFlags.DURABLE, ChunkDigests(Grid.of(0), XXH3).root()),))


@pytest.mark.parametrize("kind", [Kind.FOLDER, Kind.SYMLINK], ids=lambda kind: kind.name)
def test_g5_a_folder_or_link_is_made_and_its_receipt_follows(kind: Kind) -> None:
    ledger = OneByOne(XXH3, WINDOW)
    assert looked_at(ledger.receive(m.Folder(b"", 1, (bare(kind=kind),)))) == [1]
    assert ledger.looked_one(1, Make()) == [Commit((1,))]
    assert ledger.committing([1])
    assert ledger.committed_one(1, durable=True) == [Say(MADE)]
    (outcome,) = ledger.ended()
    assert (outcome.state, outcome.durable, outcome.root) == ("done", True, MADE.items[0].root)
    files = kind is Kind.SYMLINK
    assert (ledger.done, ledger.files, ledger.files_skipped, ledger.bytes_offered) == (1, files, 0, 0)


def test_folders_are_entries_and_not_files() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    entries = (bare(b"d"), bare(b"e"), bare(b"l", Kind.SYMLINK), offered(b"f", 0))
    ledger.receive(m.Folder(b"", 1, entries))
    for entry_id in (1, 3, 4):
        ledger.looked_one(entry_id, Leave(m.SkipReason.SAME))
    ledger.looked_one(2, Reject(48, "a file has its name"))
    assert (ledger.done, ledger.skipped, ledger.failed) == (0, 3, 1)
    assert (ledger.files, ledger.files_skipped) == (2, 2)


@pytest.mark.parametrize("kind", [Kind.FOLDER, Kind.SYMLINK], ids=lambda kind: kind.name)
def test_g12_nothing_of_a_folder_or_link_travels(kind: Kind) -> None:
    """Neither before it was looked at nor while it is made; and whatever size it claims."""
    for made in (False, True):
        for message in (data(0), m.Zeros(1, (m.Range(0, 1),)), m.Finish(1, root_of(0)), m.Digests(1, XXH3, 0, b"")):
            ledger = OneByOne(XXH3, WINDOW)
            ledger.receive(m.Folder(b"", 1, (bare(kind=kind)._replace(size=3 * CHUNK),)))
            if made:
                ledger.looked_one(1, Make())
            with pytest.raises(ProtocolError, match="makes no sense"):
                if isinstance(message, m.Data):
                    ledger.begin_one(message)
                elif isinstance(message, m.Zeros):
                    ledger.zeros(message)
                else:
                    ledger.receive(message)
            assert ledger.bytes_offered == 0


def test_a_folder_that_cannot_be_made_fails_alone() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(m.Folder(b"", 1, (bare(b"d"), bare(b"e"))))
    ledger.looked_one(1, Make())
    ledger.looked_one(2, Make())
    assert shape(ledger.fail(1, NoSpace.wire, "full")) == refused(NoSpace.wire)
    assert ledger.committing([2])
    assert (ledger.failed, ledger.done) == (1, 0)


def test_a_folder_that_is_withdrawn() -> None:
    """Before the look, and while it is made: then the answer is the receipt."""
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(m.Folder(b"", 1, (bare(b"d"), bare(b"e"))))
    assert ledger.receive(m.Cancel(2, m.WITHDRAWN, "")) == []
    assert shape(ledger.looked_one(2, Make())) == refused(m.WITHDRAWN, entry=2)
    ledger.looked_one(1, Make())
    assert ledger.receive(m.Cancel(1, m.WITHDRAWN, "")) == []
    assert ledger.committed_one(1, durable=True) == [Say(MADE)]


def test_a_batch_is_answered_in_its_order() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    (look,) = offer(ledger, 1, 1, 1)
    assert isinstance(look, Look)
    one, two, three = (entry.id for entry in look.entries)
    ledger.receive(m.Cancel(3, m.WITHDRAWN, ""))
    found = [(one, Leave(m.SkipReason.SAME)), (two, Reject(Exists.wire, "it is there")), (three, take(1))]
    assert shape(ledger.looked(found)) == [
        (Say, 0, 0),
        *refused(Exists.wire, entry=2),
        *refused(m.WITHDRAWN, entry=3),
    ]


def tree(*inside: m.Offered) -> OneByOne:
    """A ledger to which folder ``d`` was offered as entry 100, behind these entries of it."""
    ledger = OneByOne(XXH3, WINDOW)
    assert looked_at(ledger.receive(m.Folder(b"d", 1, inside))) == list(range(1, len(inside) + 1))
    assert ledger.receive(m.Folder(b"", 100, (bare(b"d"),))) == []
    return ledger


@pytest.mark.parametrize("end", ["skipped", "rejected", "failed", "withdrawn", "cancelled", "committed"])
def test_a_folder_waits_for_what_is_in_it_however_that_ends(end: str) -> None:
    """Each name that appears in it changes its time, so its own entry comes behind them."""
    ledger = tree(offered(b"x", CHUNK), offered(b"y", CHUNK))
    assert looked_at(ledger.looked_one(2, Leave(m.SkipReason.SAME))[1:]) == []
    actions: list[Action] = []
    match end:
        case "skipped":
            actions = ledger.looked_one(1, Leave(m.SkipReason.KEPT))
        case "rejected":
            actions = ledger.looked_one(1, Reject(Exists.wire, "it is there"))
        case "cancelled":
            ledger.receive(m.Cancel(1, SourceChanged.wire, "it changed"))
            actions = ledger.looked_one(1, take(1))
        case _:
            assert ledger.looked_one(1, take(1)) == [want((0, 1))]
    match end:
        case "failed":
            actions = ledger.fail(1, NoSpace.wire, "full")
        case "withdrawn":
            actions = ledger.receive(m.Cancel(1, m.WITHDRAWN, "it changed"))
        case "committed":
            arrive(ledger, 0)
            assert finish(ledger, root_of(1)) == [Commit((1,))]
            actions = ledger.committed_one(1, durable=True)
    assert looked_at(actions[-1:]) == [100]
    assert ledger.looked_one(100, Make()) == [Commit((100,))]


def test_a_folder_waits_only_for_what_is_right_below_it() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(m.Folder(b"d/e", 1, (offered(b"x", CHUNK),)))
    ledger.receive(m.Folder(b"dd", 2, (offered(b"x", CHUNK),)))
    assert looked_at(ledger.receive(m.Folder(b"", 3, (bare(b"d"),)))) == [3]
    assert ledger.receive(m.Folder(b"d", 4, (bare(b"e"),))) == []
    assert looked_at(ledger.looked_one(1, Leave(m.SkipReason.SAME))[1:]) == [4]


def test_folders_wait_for_each_other_from_the_inside_out() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    ledger.receive(m.Folder(b"a/b", 1, (offered(b"x", CHUNK),)))
    assert ledger.receive(m.Folder(b"a", 2, (bare(b"b"),))) == []
    assert ledger.receive(m.Folder(b"", 3, (bare(b"a"),))) == []
    assert looked_at(ledger.looked_one(1, Leave(m.SkipReason.SAME))[1:]) == [2]
    assert ledger.looked_one(2, Make()) == [Commit((2,))]
    assert looked_at(ledger.committed_one(2, durable=True)[1:]) == [3]


def test_a_folder_below_the_sessions_own_waits_too() -> None:
    ledger = OneByOne(XXH3, WINDOW, b"base")
    ledger.receive(m.Folder(b"d", 1, (offered(b"x", CHUNK),)))
    assert ledger.receive(m.Folder(b"", 2, (bare(b"d"),))) == []
    (_, look) = ledger.looked_one(1, Leave(m.SkipReason.SAME))
    assert isinstance(look, Look)
    assert [entry.path for entry in look.entries] == [b"base/d"]


def test_what_comes_behind_its_folder_is_not_waited_for_by_those_before() -> None:
    """A folder that was offered waits for all that is in it then; what follows is the next one's."""
    ledger = tree(offered(b"x", CHUNK))
    ledger.receive(m.Folder(b"d", 101, (offered(b"y", CHUNK),)))
    assert ledger.receive(m.Folder(b"", 102, (bare(b"d"),))) == []
    ledger.looked_one(1, Leave(m.SkipReason.SAME))
    assert looked_at(ledger.looked_one(101, Leave(m.SkipReason.SAME))[1:]) == [100, 102]


def test_a_folder_that_waits_can_be_withdrawn_and_still_has_its_turn() -> None:
    ledger = tree(offered(b"x", CHUNK))
    assert ledger.receive(m.Cancel(100, m.WITHDRAWN, "")) == []
    assert looked_at(ledger.looked_one(1, Leave(m.SkipReason.SAME))[1:]) == [100]
    assert shape(ledger.looked_one(100, Make())) == refused(m.WITHDRAWN, entry=100)


def test_g8_a_folder_that_waits_is_outstanding() -> None:
    ledger = tree(offered(b"x", CHUNK))
    with pytest.raises(ProtocolError, match="open"):
        ledger.receive(m.Bye(0, 0, 0))
    with pytest.raises(ProtocolError, match="outstanding"):
        offer(ledger, *[0] * (WINDOW - 1), first=200)
    ledger.receive(m.Folder(b"d", 101, ()))  # an empty batch holds up nobody
    assert looked_at(ledger.looked_one(1, Leave(m.SkipReason.SAME))[1:]) == [100]


def test_g8_of_an_empty_batch_nothing_is_kept() -> None:
    """There may be any number of them: they need no id."""
    ledger = OneByOne(XXH3, WINDOW)
    for number in range(10):
        ledger.receive(m.Folder(b"%d" % number, 1, ()))
    assert not ledger._inside


def test_an_empty_batch_is_nothing() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    assert ledger.receive(m.Folder(b"d", 1, ())) == []
    assert looked_at(ledger.receive(m.Folder(b"", 2, (bare(b"d"),)))) == [2]


# --- Small files: one frame each, as long as nothing happens -------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one chunk are small."""
    monkeypatch.setattr(module, "SMALL", CHUNK)


def fresh(count: int, *, size: int = 1) -> tuple[OneByOne, list[Action]]:
    """A ledger that wants so many small files, of ``size`` chunks each, and what it answered."""
    ledger = OneByOne(XXH3, WINDOW)
    (look,) = offer(ledger, *[size] * count)
    assert isinstance(look, Look)
    return ledger, ledger.looked([(entry.id, FRESH) for entry in look.entries])


def final(entry: int = 1) -> m.Data:
    return m.Data(entry, 0, XXH3.function(chunk(0)), CHUNK, final=True)


def arrive_whole(ledger: OneByOne, entry: int = 1) -> list[Action]:
    where = ledger.begin_one(final(entry))
    assert where is not None
    return ledger.written_one(where, 0, XXH3.function(chunk(0)))


@pytest.mark.usefixtures("small")
def test_small_files_are_wanted_together_and_each_is_committed_by_its_data() -> None:
    ledger, actions = fresh(3)
    assert actions == [Say(m.WantAll((1, 2, 3)))]
    assert arrive_whole(ledger, 2) == [Commit((2,))]
    assert arrive_whole(ledger, 1) == [Commit((1,))]
    assert not ledger.committing([3])
    root = root_of(1)
    receipts = tuple(m.ReceiptItem(entry_id, m.ReceiptFlags.DURABLE, root) for entry_id in (2, 1))
    assert ledger.committed([(2, b"a/f1"), (1, b"a/f0.1")], durable=True) == [Say(m.Receipt(receipts))]
    two, one = ledger.ended()
    assert (two.state, two.root, two.sent, two.reused, two.entry.path) == ("done", root, CHUNK, 0, b"a/f1")
    assert one.entry.path == b"a/f0.1"
    assert (ledger.done, ledger.files, ledger.bytes_received, ledger.bytes_offered) == (2, 2, 2 * CHUNK, 3 * CHUNK)


@pytest.mark.usefixtures("small")
def test_receipts_keep_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_ANSWERS", 2)
    ledger, _ = fresh(3)
    for entry_id in (1, 2, 3):
        arrive_whole(ledger, entry_id)
    says = ledger.committed([(entry_id, b"p") for entry_id in (1, 2, 3)], durable=False)
    assert [len(say.message.items) for say in says if isinstance(say, Say)] == [2, 1]  # type: ignore[union-attr]


@pytest.mark.usefixtures("small")
def test_an_empty_file_is_committed_by_its_finish() -> None:
    ledger, actions = fresh(1, size=0)
    assert actions == [Say(m.WantAll((1,)))]
    assert finish(ledger, root_of(0)) == [Commit((1,))]
    ledger, _ = fresh(1, size=0)
    assert shape(finish(ledger, root_of(1))) == refused(IntegrityError.wire)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [0, 1])
def test_g1_nothing_is_committed_before_the_look(size: int) -> None:
    """It may have to be refused, and there is nowhere yet where it could be written."""
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, size)
    with pytest.raises(ProtocolError, match="makes no sense"):
        finish(ledger, root_of(size))


@pytest.mark.usefixtures("small")
def test_g1_a_small_file_whose_data_is_not_final_waits_for_finish() -> None:
    ledger, _ = fresh(1)
    receiving = ledger.begin_one(data(0))
    assert receiving is not None
    assert ledger.written_one(receiving, 0, XXH3.function(chunk(0))) == []
    assert finish(ledger, root_of(1)) == [Commit((1,))]


@pytest.mark.usefixtures("small")
def test_g4_a_small_file_that_contradicts_its_finish_is_refused() -> None:
    ledger, _ = fresh(1)
    where = ledger.begin_one(data(0))
    assert where is not None
    ledger.written_one(where, 0, XXH3.function(chunk(0)))
    assert finish(ledger, root_of(2)) == [Say(m.AskDigests(1, XXH3, 0, 1))]
    assert shape(ledger.receive(m.Digests(1, XXH3, 0, digests_of(1).slice(0, 1)))) == refused(IntegrityError.wire)


@pytest.mark.usefixtures("small")
def test_g4_a_final_data_and_another_finish_contradict_each_other() -> None:
    ledger, _ = fresh(1)
    assert arrive_whole(ledger) == [Commit((1,))]
    assert finish(ledger, root_of(1)) == []
    with pytest.raises(ProtocolError, match="another root"):
        finish(ledger, root_of(2))


@pytest.mark.usefixtures("small")
def test_g4_a_small_file_that_was_damaged_is_wanted_again() -> None:
    ledger, _ = fresh(1)
    for _ in range(m.MAX_REPAIRS):
        where = ledger.begin_one(final())
        assert where is not None
        assert ledger.damaged(where, 0) == [want((0, 1))]
    assert arrive_whole(ledger) == [Commit((1,))]
    assert ledger.bytes_received == (1 + m.MAX_REPAIRS) * CHUNK
    ledger, _ = fresh(1)
    for again in range(1 + m.MAX_REPAIRS):
        where = ledger.begin_one(final())
        assert where is not None
        actions = ledger.damaged(where, 0)
        assert again == m.MAX_REPAIRS or actions == [want((0, 1))]
    assert shape(actions) == refused(IntegrityError.wire)


@pytest.mark.usefixtures("small")
def test_g4_a_small_file_that_was_damaged_may_be_repaired_by_data_that_is_not_final() -> None:
    ledger, _ = fresh(1)
    where = ledger.begin_one(final())
    assert where is not None
    ledger.damaged(where, 0)
    assert arrive(ledger, 0) == [Commit((1,))]  # its FINISH was said with the first


@pytest.mark.usefixtures("small")
def test_g5_a_small_file_that_the_disk_lost_is_wanted_again() -> None:
    ledger, _ = fresh(1)
    arrive_whole(ledger)
    assert ledger.lost(1, spans((0, 1))) == [want((0, 1))]
    assert not ledger.committing([1])
    assert arrive(ledger, 0) == [Commit((1,))]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", ["twice", "index", "short", "long", "empty", "early"])
def test_what_a_small_file_does_not_have(how: str) -> None:
    ledger, _ = fresh(1)
    message = final()
    match how:
        case "twice":
            ledger.begin_one(message)
        case "index":
            message = message._replace(index=1)
        case "short":
            message = message._replace(length=CHUNK - 1)
        case "long":
            message = message._replace(length=CHUNK + 1)
        case "empty":
            message = message._replace(length=0)
        case "early":
            ledger = OneByOne(XXH3, WINDOW)
            offer(ledger, 1)
    with pytest.raises(ProtocolError, match="not asked for|bytes|makes no sense"):
        ledger.begin_one(message)


@pytest.mark.usefixtures("small")
def test_an_empty_file_has_no_data() -> None:
    ledger, _ = fresh(1, size=0)
    with pytest.raises(ProtocolError, match="not asked for"):
        ledger.begin_one(final()._replace(length=0))


def test_only_a_file_of_one_chunk_has_a_final_data() -> None:
    ledger, _ = taken(2)
    with pytest.raises(ProtocolError, match="more than one chunk"):
        ledger.begin_one(data(0)._replace(final=True))
    ledger, _ = taken(1)
    assert arrive_whole(ledger) == [Commit((1,))]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("written", [False, True], ids=["being-written", "written"])
def test_a_small_file_that_is_cancelled(written: bool) -> None:
    """While it is being written it ends at once; when it is committing, the commit is the answer."""
    ledger, _ = fresh(1)
    where = ledger.begin_one(final())
    assert where is not None
    if written:
        assert ledger.written_one(where, 0, XXH3.function(chunk(0))) == [Commit((1,))]
        assert ledger.receive(m.Cancel(1, m.WITHDRAWN, "")) == []
        (say,) = ledger.committed([(1, b"a/f0")], durable=True)
        assert isinstance(say, Say)
        assert isinstance(say.message, m.Receipt)
        return
    assert shape(ledger.receive(m.Cancel(1, m.WITHDRAWN, ""))) == refused(m.WITHDRAWN)
    assert ledger.written_one(where, 0, XXH3.function(chunk(0))) == []
    assert ledger.bytes_offered == 0


@pytest.mark.usefixtures("small")
def test_a_small_file_that_is_cancelled_before_its_look() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    (look,) = offer(ledger, 1, 1)
    assert isinstance(look, Look)
    assert ledger.receive(m.Cancel(1, m.WITHDRAWN, "")) == []
    found = [(entry.id, FRESH) for entry in look.entries]
    actions = ledger.looked(found)
    assert shape(actions[:2]) == refused(m.WITHDRAWN)
    assert actions[2:] == [Say(m.WantAll((2,)))]
    ledger.fail(2, NoSpace.wire, "full")
    assert ledger.looked(found[1:]) == [Release(2)]


@pytest.mark.usefixtures("small")
def test_reports_about_small_files_that_ended_change_nothing() -> None:
    ledger, _ = fresh(1)
    where = ledger.begin_one(final())
    assert where is not None
    ledger.fail(1, NoSpace.wire, "full")
    assert ledger.written_one(where, 0, XXH3.function(chunk(0))) == []
    assert ledger.damaged(where, 0) == []
    assert ledger.begin_one(final()) is None
    assert (ledger.done, ledger.skipped, ledger.failed) == (0, 0, 1)


@pytest.mark.usefixtures("small")
def test_a_small_file_of_which_something_is_held() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    offer(ledger, 1, 1, 1)
    assert ledger.looked_one(1, take(1, held=spans((0, 1)))) == [want(held=CHUNK), Rehash(1, ((0, 1),))]
    assert ledger.looked_one(2, take(1, doubted=spans((0, 1)))) == [
        want(entry=2),
        Say(m.AskDigests(2, SHA, 0, 1)),
    ]
    assert ledger.looked_one(3, Leave(m.SkipReason.SAME)) == [Say(m.Skip((m.SkipItem(3, m.SkipReason.SAME),)))]
    finish(ledger, root_of(1))
    assert ledger.rehashed(1, 0, XXH3.function(chunk(0))) == [Commit((1,))]


@pytest.mark.usefixtures("small")
def test_a_folder_waits_for_its_small_files() -> None:
    ledger = OneByOne(XXH3, WINDOW)
    (look,) = ledger.receive(m.Folder(b"d", 1, (offered(b"x", CHUNK), offered(b"y", CHUNK))))
    assert isinstance(look, Look)
    assert ledger.receive(m.Folder(b"", 3, (bare(b"d"),))) == []
    ledger.looked([(entry.id, FRESH) for entry in look.entries])
    arrive_whole(ledger, 1)
    arrive_whole(ledger, 2)
    actions = ledger.committed([(1, b"d/x"), (2, b"d/y")], durable=True)
    assert looked_at(actions[1:]) == [3]


# --- Compressed chunks ---------------------------------------------------------------------------------


def unpacking(*counts: int) -> OneByOne:
    """A ledger of a side that takes compressed payloads, which wants files of so many chunks."""
    ledger = OneByOne(XXH3, WINDOW, compressed=True)
    offer(ledger, *counts)
    for entry_id, count in enumerate(counts, 1):
        ledger.looked_one(entry_id, FRESH if count == 1 else take(count))
    return ledger


@pytest.mark.usefixtures("small")
def test_a_compressed_chunk_counts_like_any_other() -> None:
    ledger = unpacking(1, 2)
    where = ledger.begin_one(final()._replace(length=3, compressed=True))
    assert isinstance(where, Small) and where.entry.size == CHUNK
    assert ledger.written_one(where, 0, XXH3.function(chunk(0))) == [Commit((1,))]
    where = ledger.begin_one(data(1, entry=2)._replace(length=CHUNK - 1, compressed=True))
    assert isinstance(where, Receiving) and where.grid.length(1) == CHUNK
    assert (ledger.bytes_received, ledger.bytes_saved) == (CHUNK, CHUNK - 3 + 1)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("entry", [1, 2], ids=["small", "large"])
@pytest.mark.parametrize("length", [CHUNK, CHUNK + 1])
def test_g8_a_compressed_chunk_that_is_no_smaller_is_refused(entry: int, length: int) -> None:
    with pytest.raises(ProtocolError, match="compressed and no smaller"):
        unpacking(1, 2).begin_one(data(0, entry=entry)._replace(length=length, compressed=True))


@pytest.mark.usefixtures("small")
def test_a_compressed_chunk_that_nobody_asked_for_is_refused_like_any_other() -> None:
    for one in (data(2, entry=2), data(1), data(0, entry=3)):
        with pytest.raises(ProtocolError, match="not asked for|never offered"):
            unpacking(1, 2).begin_one(one._replace(length=3, compressed=True))
    ledger = unpacking(1)
    ledger.fail(1, NoSpace.wire, "full")
    assert ledger.begin_one(data(0)._replace(length=3, compressed=True)) is None


@pytest.mark.usefixtures("small")
def test_who_has_not_said_that_it_takes_compressed_chunks_refuses_them() -> None:
    ledger, _ = fresh(1)
    with pytest.raises(ProtocolError, match="has not said"):
        ledger.begin_one(final()._replace(length=3, compressed=True))


@pytest.mark.usefixtures("small")
def test_g4_a_compressed_chunk_that_was_damaged_is_wanted_again() -> None:
    ledger = unpacking(1)
    for _ in range(m.MAX_REPAIRS):
        where = ledger.begin_one(final()._replace(length=3, compressed=True))
        assert where is not None
        assert ledger.damaged(where, 0) == [want((0, 1))]
    where = ledger.begin_one(final()._replace(length=3, compressed=True))
    assert where is not None
    assert shape(ledger.damaged(where, 0)) == refused(IntegrityError.wire)
