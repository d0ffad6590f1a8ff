"""The sender's half, rule by rule. Chunks have 8 bytes here, and no file is small unless a test says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ftx.errors import Exists, ProtocolError, SourceChanged
from ftx.protocol import manifest
from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Grid, Kind, Pin
from ftx.protocol.ranges import RangeSet
from ftx.transfer import plan as module
from ftx.transfer.plan import (
    AnswerDigests,
    CheckSource,
    HashChunk,
    Job,
    Live,
    Outcome,
    Plan,
    Say,
    SendChunk,
    SendSmall,
)

XXH3, SHA = DigestName.XXH3_128, DigestName.SHA_256
CHUNK = 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MIN_CHUNK", CHUNK)
    monkeypatch.setattr(module, "SMALL", -1)


def digest_of(index: int, version: int = 0) -> bytes:
    return XXH3.function(b"chunk %d %d" % (index, version))


def root_of(count: int, version: int = 0) -> bytes:
    digests = ChunkDigests(Grid.of(count * CHUNK), XXH3)
    for index in range(count):
        digests.set(index, digest_of(index, version))
    return digests.root()


def offer(plan: Plan, *counts: int, holes: RangeSet | None = None, known: tuple[int, ...] = ()) -> list[int]:
    """Offer one file for each number of chunks, and take the FOLDER out."""
    items = []
    for place, count in enumerate(counts):
        size = count * CHUNK
        digests = ChunkDigests(Grid.of(size), XXH3)
        for index in known:
            digests.set(index, digest_of(index))
        name = b"f%d" % place
        items.append((m.Offered(Kind.FILE, name, size, size, 0o644, 0, bytes(16)), holes or RangeSet(), digests))
    ids = plan.offer(b"a", items)
    assert isinstance(said(plan), m.Folder)
    return ids


def said(plan: Plan) -> m.Message:
    job = plan.next(control=True, bulk=False)
    assert isinstance(job, Say)
    return job.message


def take(plan: Plan) -> Job | None:
    return plan.next(control=True, bulk=True)


def jobs(plan: Plan) -> Iterator[Job]:
    while job := take(plan):
        yield job


def carry_out(plan: Plan, job: Job | None, version: int = 0, pin: Pin = Pin.SAME) -> None:
    """As a writer does."""
    match job:
        case SendChunk():
            plan.chunk_read(job.entry, job.index, digest_of(job.index, version))
            plan.chunk_sent(job.entry, job.index)
        case HashChunk():
            plan.chunk_read(job.entry, job.index, digest_of(job.index, version))
            plan.job_over(job.entry)
        case AnswerDigests():
            plan.job_over(job.entry)
        case CheckSource():
            plan.checked(job.entry, pin)


def want(entry: int, *spans: tuple[int, int], held: int = 0) -> m.Want:
    return m.Want(entry, held, tuple(m.Range(start, stop - start) for start, stop in spans))


def receipt(entry: int, root: bytes, flags: int = 0) -> m.Receipt:
    return m.Receipt((m.ReceiptItem(entry, flags, root),))


def refuse(entry: int, code: int) -> m.Refuse:
    return m.Refuse((m.RefuseItem(entry, code, "why"),))


def skip(entry: int, reason: m.SkipReason = m.SkipReason.SAME) -> m.Skip:
    return m.Skip((m.SkipItem(entry, reason),))


def finished(count: int = 2) -> Plan:
    """A plan with entry 1 of ``count`` chunks, all sent, FINISH said."""
    plan = Plan(XXH3)
    offer(plan, count)
    plan.receive(want(1, (0, count)))
    for job in jobs(plan):
        if isinstance(job, Say):
            assert job.message == m.Finish(1, root_of(count))
        carry_out(plan, job)
    return plan


# --- Offers --------------------------------------------------------------------------------------------


def test_offers_are_said_with_rising_ids_and_take_room() -> None:
    plan = Plan(XXH3)
    assert plan.room() == m.INITIAL_WINDOW
    plan.opened(100)
    offered = m.Offered(Kind.FILE, b"x", 5, 5, 0o600, 9, bytes(16))
    item = (offered, RangeSet(), ChunkDigests(Grid.of(5), XXH3))
    assert plan.offer(b"a/b", [item, item]) == [1, 2]
    assert plan.offer(b"", [item]) == [3]
    assert plan.room() == 97
    assert said(plan) == m.Folder(b"a/b", 1, (offered, offered))
    assert said(plan) == m.Folder(b"", 3, (offered,))
    (two,) = plan.receive(skip(2))
    assert plan.room() == 98
    (one,), (three,) = plan.receive(skip(1)), plan.receive(skip(3))
    assert plan.room() == 100
    assert [(ended.entry.id, ended.entry.path) for ended in (one, two, three)] == [
        (1, b"a/b/x"),
        (2, b"a/b/x"),
        (3, b"x"),
    ]


def test_a_receiver_that_grants_less_than_it_must_changes_nothing() -> None:
    plan = Plan(XXH3)
    plan.opened(0)
    assert plan.room() == m.INITIAL_WINDOW


def test_an_offer_alone_makes_no_work() -> None:
    """Nothing is read before the receiver has answered: it may need none of it."""
    plan = Plan(XXH3)
    offer(plan, 3)
    assert take(plan) is None


def test_the_end_of_a_folder_is_said_behind_its_offers() -> None:
    plan = Plan(XXH3)
    end = m.FolderEnd(b"a", 1)
    plan.offer(b"a", [])
    plan.say(end)
    plan.say(m.Ping())
    assert [type(said(plan)) for _ in range(3)] == [m.Folder, m.FolderEnd, m.Ping]


# --- What comes first (G3) -----------------------------------------------------------------------------


def test_g3_missing_chunks_then_digests_then_reading_and_a_last_look_at_once() -> None:
    plan = Plan(XXH3)
    offer(plan, 3, 2, 1, known=())
    plan.receive(want(1, held=3 * CHUNK))
    plan.receive(m.AskDigests(1, SHA, 0, 1))
    plan.receive(want(2, (1, 2), held=CHUNK))
    order = []
    for job in jobs(plan):
        order.append(job)
        carry_out(plan, job)
    assert order == [
        SendChunk(2, 1),
        AnswerDigests(1, SHA, 0, 1),
        HashChunk(2, 0),
        CheckSource(2),
        Say(m.Finish(2, root_of(2))),
        HashChunk(1, 0),
        HashChunk(1, 1),
        HashChunk(1, 2),
        CheckSource(1),
        Say(m.Finish(1, root_of(3))),
    ]


def test_g3_a_chunk_wanted_late_goes_before_all_reading() -> None:
    plan = Plan(XXH3)
    offer(plan, 4)
    plan.receive(want(1, held=4 * CHUNK))
    carry_out(plan, take(plan))
    plan.receive(want(1, (2, 3)))
    assert take(plan) == SendChunk(1, 2)
    assert take(plan) == HashChunk(1, 1)


def test_a_last_look_goes_before_the_chunks_of_others() -> None:
    """It costs nothing, lets go of a source, and what is whole can be committed while the others are sent."""
    plan = Plan(XXH3)
    offer(plan, 1, 2)
    plan.receive(want(1, (0, 1)))
    plan.receive(want(2, (0, 2)))
    carry_out(plan, take(plan))
    assert take(plan) == CheckSource(1)
    assert take(plan) == SendChunk(2, 0)


def test_what_is_said_goes_before_bulk_on_the_control_lane() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, (0, 1)))
    plan.say(m.Ping())
    assert take(plan) == Say(m.Ping())
    assert take(plan) == SendChunk(1, 0)


def test_a_control_lane_beside_others_carries_no_bulk() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, (0, 1)))
    assert plan.next(control=True, bulk=False) is None
    assert plan.next(control=False, bulk=True) == SendChunk(1, 0)


def test_a_bulk_lane_is_given_nothing_to_say() -> None:
    """Lanes 2 and up carry DATA: ZEROS, DIGESTS, FINISH and BYE wait for the control lane."""
    plan = Plan(XXH3)
    offer(plan, 3, holes=RangeSet([(0, 1)]), known=(1,))
    plan.scan_done()
    plan.receive(want(1, (0, 2)))
    plan.receive(m.AskDigests(1, XXH3, 0, 2))
    seen = []
    while job := plan.next(control=False, bulk=True):
        seen.append(job)
        carry_out(plan, job)
    assert seen == [SendChunk(1, 1), HashChunk(1, 2), CheckSource(1)]
    assert [type(said(plan)) for _ in range(3)] == [m.Zeros, m.Digests, m.Finish]
    assert plan.next(control=False, bulk=True) is None


def test_lanes_share_one_plan() -> None:
    plan = Plan(XXH3)
    offer(plan, 2, 1)
    plan.receive(want(1, (0, 2)))
    plan.receive(want(2, (0, 1)))
    taken = [plan.next(control=False, bulk=True) for _ in range(4)]
    assert taken == [SendChunk(1, 0), SendChunk(1, 1), SendChunk(2, 0), None]


# --- Holes and what is known ---------------------------------------------------------------------------


def test_wanted_holes_go_as_zeros_and_are_not_read() -> None:
    plan = Plan(XXH3)
    offer(plan, 6, holes=RangeSet([(1, 3), (4, 6)]))
    plan.receive(want(1, (0, 5)))
    assert take(plan) == Say(m.Zeros(1, (m.Range(1, 2), m.Range(4, 1))))
    assert [take(plan), take(plan)] == [SendChunk(1, 0), SendChunk(1, 3)]
    assert take(plan) is None
    plan.chunk_read(1, 0, digest_of(0))
    plan.chunk_sent(1, 0)
    plan.chunk_read(1, 3, digest_of(3))
    plan.chunk_sent(1, 3)
    assert take(plan) == CheckSource(1)
    assert (plan.live().sent, plan.live().zeros) == (2 * CHUNK, 3 * CHUNK)


def test_zeros_keep_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_RANGES", 2)
    plan = Plan(XXH3)
    offer(plan, 6, holes=RangeSet([(0, 1), (2, 3), (4, 5)]))
    plan.receive(want(1, (0, 6)))
    assert take(plan) == Say(m.Zeros(1, (m.Range(0, 1), m.Range(2, 1))))
    assert take(plan) == SendChunk(1, 1)
    assert take(plan) == Say(m.Zeros(1, (m.Range(4, 1),)))


def test_g2_what_this_process_has_read_before_is_not_read_again() -> None:
    plan = Plan(XXH3)
    offer(plan, 3, known=(0, 2))
    plan.receive(want(1, held=3 * CHUNK))
    assert take(plan) == HashChunk(1, 1)
    assert take(plan) is None


# --- FINISH and changing sources (G10) -----------------------------------------------------------------


def test_finish_waits_until_every_chunk_was_read_and_every_job_is_over() -> None:
    plan = Plan(XXH3)
    offer(plan, 2)
    plan.receive(want(1, (0, 1), held=CHUNK))
    assert [take(plan), take(plan)] == [SendChunk(1, 0), HashChunk(1, 1)]
    plan.chunk_read(1, 1, digest_of(1))
    plan.job_over(1)
    assert take(plan) is None
    plan.chunk_read(1, 0, digest_of(0))
    assert take(plan) is None  # it is read and not on its way yet
    plan.chunk_sent(1, 0)
    assert take(plan) == CheckSource(1)
    assert take(plan) is None  # one look is enough
    assert plan.checked(1, Pin.SAME)
    assert take(plan) == Say(m.Finish(1, root_of(2)))
    assert take(plan) is None


def test_finish_is_not_given_for_what_was_not_read() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, (0, 1)))
    assert take(plan) == SendChunk(1, 0)
    plan.chunk_sent(1, 0)
    assert take(plan) is None


def test_an_empty_file_needs_only_the_last_look() -> None:
    plan = Plan(XXH3)
    offer(plan, 0)
    plan.receive(want(1))
    assert take(plan) == CheckSource(1)
    plan.checked(1, Pin.SAME)
    assert said(plan) == m.Finish(1, XXH3.function(bytes(8)))


def test_g10_a_chunk_that_reads_differently_is_a_changed_source() -> None:
    plan = Plan(XXH3)
    offer(plan, 2)
    plan.receive(want(1, (0, 2)))
    carry_out(plan, take(plan))
    plan.receive(want(1, (0, 1)))  # it was damaged on the way
    assert take(plan) == SendChunk(1, 0)
    with pytest.raises(SourceChanged):
        plan.chunk_read(1, 0, digest_of(0, version=1))


def test_g10_what_was_known_from_an_earlier_session_is_compared_too() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, known=(0,))
    plan.receive(want(1, (0, 1)))
    with pytest.raises(SourceChanged):
        plan.chunk_read(1, 0, digest_of(0, version=1))


def test_g10_a_source_with_other_stamps_is_given_up() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, (0, 1)))
    carry_out(plan, take(plan))
    assert take(plan) == CheckSource(1)
    assert not plan.checked(1, Pin.CHANGED)
    assert take(plan) is None


def test_g10_a_log_that_grew_is_read_again_and_finished() -> None:
    plan = Plan(XXH3)
    offer(plan, 3, holes=RangeSet([(2, 3)]))
    plan.receive(want(1, (0, 3)))
    for _ in range(3):
        carry_out(plan, take(plan))
    assert take(plan) == CheckSource(1)
    assert plan.checked(1, Pin.REREAD)
    again = [take(plan) for _ in range(3)]
    assert again == [HashChunk(1, 0), HashChunk(1, 1), HashChunk(1, 2)]  # the hole too
    assert take(plan) is None
    for job in again[:2]:
        carry_out(plan, job)
    plan.chunk_read(1, 2, manifest.zero_digest(XXH3, CHUNK))
    plan.job_over(1)
    assert take(plan) == CheckSource(1)
    assert plan.checked(1, Pin.REREAD)  # it goes on growing, and that is all right
    assert isinstance(said(plan), m.Finish)


def test_g10_a_log_that_was_rewritten_while_it_grew_is_found_by_the_second_reading() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, (0, 1)))
    carry_out(plan, take(plan))
    carry_out(plan, take(plan), pin=Pin.REREAD)
    assert take(plan) == HashChunk(1, 0)
    with pytest.raises(SourceChanged):
        plan.chunk_read(1, 0, digest_of(0, version=1))


def test_repairs_go_on_behind_finish_and_it_is_not_said_again() -> None:
    plan = finished()
    plan.receive(want(1, (1, 2)))
    job = take(plan)
    assert job == SendChunk(1, 1)
    carry_out(plan, job)
    assert take(plan) is None
    (outcome,) = plan.receive(receipt(1, root_of(2)))
    assert outcome.state == "done"


def test_a_receipt_may_overtake_the_report_of_a_repair() -> None:
    plan = finished()
    plan.receive(want(1, (1, 2)))
    job = take(plan)
    plan.chunk_read(1, 1, digest_of(1))
    (outcome,) = plan.receive(receipt(1, root_of(2)))
    carry_out(plan, job)
    assert (outcome.state, outcome.reused) == ("done", 0)


# --- CANCEL --------------------------------------------------------------------------------------------


def test_g10_a_withdrawn_entry_stops_at_once_and_is_waited_for() -> None:
    plan = Plan(XXH3)
    offer(plan, 3)
    plan.scan_done()
    plan.receive(want(1, (0, 2), held=CHUNK))
    plan.receive(m.AskDigests(1, SHA, 2, 1))
    job = take(plan)
    plan.cancel(1, m.WITHDRAWN, "it changed")
    plan.cancel(1, 34, "it changed")  # a second thread found it too
    assert take(plan) == Say(m.Cancel(1, m.WITHDRAWN, "it changed"))
    assert take(plan) is None
    carry_out(plan, job)
    assert plan.checked(1, Pin.SAME)
    # What crossed the CANCEL changes nothing.
    plan.receive(want(1, (0, 1)))
    plan.receive(m.AskDigests(1, SHA, 0, 1))
    assert take(plan) is None
    (outcome,) = plan.receive(refuse(1, m.WITHDRAWN))
    assert (outcome.state, plan.failed) == ("withdrawn", 0)
    assert take(plan) is None  # no BYE before it was offered anew
    assert offer(plan, 3) == [2]
    plan.offered_again()
    plan.receive(skip(2))
    assert said(plan) == m.Bye(0, 1, 0)


def test_bye_comes_when_a_withdrawn_source_cannot_be_offered_anew() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.scan_done()
    plan.cancel(1, m.WITHDRAWN, "")
    said(plan)
    plan.receive(refuse(1, m.WITHDRAWN))
    assert take(plan) is None
    plan.offered_again()
    assert said(plan) == m.Bye(0, 0, 0)


@pytest.mark.parametrize(("state", "totals"), [("skipped", (0, 1, 0)), ("failed", (0, 0, 1)), ("done", (1, 0, 0))])
def test_the_receivers_answer_that_crosses_a_cancel_counts(state: str, totals: tuple[int, int, int]) -> None:
    answer = {"skipped": skip(1), "failed": refuse(1, Exists.wire), "done": receipt(1, root_of(2))}[state]
    plan = finished() if state == "done" else Plan(XXH3)
    if state != "done":
        offer(plan, 2)
    plan.cancel(1, m.WITHDRAWN, "")
    said(plan)
    (outcome,) = plan.receive(answer)
    assert outcome.state == state
    plan.scan_done()
    assert said(plan) == m.Bye(*totals)


def test_nobody_withdraws_an_entry_but_the_sender() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, 1)
    plan.cancel(2, SourceChanged.wire, "it changed")
    for entry_id in (1, 2):
        with pytest.raises(ProtocolError, match="withdrawn"):
            plan.receive(refuse(entry_id, m.WITHDRAWN))


def test_a_failed_source_counts_as_failed() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.cancel(1, SourceChanged.wire, "it changed")
    (outcome,) = plan.receive(refuse(1, SourceChanged.wire))
    assert (outcome.state, outcome.code, plan.failed) == ("failed", SourceChanged.wire, 1)


def test_a_look_that_ends_behind_a_cancel_says_nothing() -> None:
    """Another lane, repairing a chunk meanwhile, found that the source changed."""
    for pin in Pin:
        plan = Plan(XXH3)
        offer(plan, 1)
        plan.receive(want(1, (0, 1)))
        carry_out(plan, take(plan))
        assert take(plan) == CheckSource(1)
        plan.cancel(1, m.WITHDRAWN, "")
        assert plan.checked(1, pin)
        assert isinstance(said(plan), m.Cancel)
        assert take(plan) is None


# --- How entries end -----------------------------------------------------------------------------------


def test_outcomes_of_skip() -> None:
    plan = Plan(XXH3)
    offer(plan, 2, 1)
    both = m.Skip((m.SkipItem(1, m.SkipReason.SAME), m.SkipItem(2, m.SkipReason.KEPT)))
    same, kept = plan.receive(both)
    assert (same.state, same.message, same.reused) == ("skipped", "", 2 * CHUNK)
    assert (kept.state, kept.reused) == ("skipped", 0)
    assert "kept" in kept.message
    assert plan.skipped == 2


def test_outcome_of_refuse() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, (0, 1)))
    (outcome,) = plan.receive(refuse(1, Exists.wire))
    assert (outcome.state, outcome.code, outcome.message) == ("failed", Exists.wire, "why")
    assert take(plan) is None
    assert plan.failed == 1


@pytest.mark.parametrize("flags", [0, m.ReceiptFlags.DURABLE])
def test_outcome_of_a_receipt(flags: int) -> None:
    plan = Plan(XXH3)
    offer(plan, 3)
    plan.receive(want(1, (2, 3), held=CHUNK))
    plan.receive(want(1, held=99))  # only the first tells what is held
    for job in jobs(plan):
        carry_out(plan, job)
    assert plan.moved(1) == (CHUNK, CHUNK)
    (outcome,) = plan.receive(receipt(1, root_of(3), flags))
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.root, outcome.durable) == ("done", root_of(3), bool(flags))
    assert (outcome.sent, outcome.reused) == (CHUNK, 2 * CHUNK)
    assert plan.done == 1
    assert plan.moved(1) == (0, 0)


def test_g4_a_receipt_with_another_root_is_refused() -> None:
    with pytest.raises(ProtocolError, match="root digest"):
        finished().receive(receipt(1, root_of(2, version=1)))


def test_g1_a_receipt_before_finish_is_refused() -> None:
    plan = Plan(XXH3)
    offer(plan, 0)
    for answer in (None, want(1)):
        if answer:
            plan.receive(answer)
        with pytest.raises(ProtocolError):
            plan.receive(receipt(1, root_of(0)))


def offer_bare(plan: Plan, kind: Kind) -> None:
    """Offer entry 1, a folder or link, and take the FOLDER out."""
    offered = m.Offered(kind, b"x", 0, 0, 0o755, 0, bytes(16))
    assert plan.offer(b"", [(offered, RangeSet(), ChunkDigests(Grid.of(0), XXH3))]) == [1]
    assert isinstance(said(plan), m.Folder)


@pytest.mark.parametrize("kind", [Kind.FOLDER, Kind.SYMLINK], ids=lambda kind: kind.name)
def test_a_folder_or_link_is_done_by_the_receipt_alone(kind: Kind) -> None:
    plan = Plan(XXH3)
    offer_bare(plan, kind)
    assert take(plan) is None
    (outcome,) = plan.receive(receipt(1, root_of(0), m.ReceiptFlags.DURABLE))
    assert (outcome.state, outcome.durable, outcome.root) == ("done", True, root_of(0))
    plan.scan_done()
    assert take(plan) == Say(m.Bye(1, 0, 0))


@pytest.mark.parametrize("kind", [Kind.FOLDER, Kind.SYMLINK], ids=lambda kind: kind.name)
def test_a_receipt_for_a_folder_or_link_has_the_root_of_nothing(kind: Kind) -> None:
    for root in (b"", root_of(1), SHA.function(bytes(8))):
        plan = Plan(XXH3)
        offer_bare(plan, kind)
        with pytest.raises(ProtocolError, match="root digest"):
            plan.receive(receipt(1, root))
        assert plan.done == 0


def test_g1_a_receipt_for_an_empty_file_that_nobody_looked_at_is_refused() -> None:
    """Its root is known from the start, but not that the source is still empty (G10)."""
    plan = Plan(XXH3)
    offer(plan, 0)
    with pytest.raises(ProtocolError, match="nothing was sent"):
        plan.receive(receipt(1, root_of(0)))
    assert plan.done == 0


def test_what_is_under_way_is_summed_up_over_what_has_not_ended() -> None:
    plan = Plan(XXH3)
    offer(plan, 3, 1, 2, holes=RangeSet([(2, 3)]))
    offered = m.Offered(Kind.FOLDER, b"x", 0, 0, 0o755, 0, bytes(16))
    plan.offer(b"", [(offered, RangeSet(), ChunkDigests(Grid.of(0), XXH3))])
    said(plan)
    plan.receive(want(1, (1, 3), held=CHUNK))
    for job in jobs(plan):
        if isinstance(job, SendChunk):
            carry_out(plan, job)
    assert plan.live() == Live(all_offered=False, files=3, size=6 * CHUNK, sent=CHUNK, held=CHUNK, zeros=CHUNK)
    plan.scan_done()
    plan.receive(skip(2))
    assert plan.live() == Live(all_offered=True, files=2, size=5 * CHUNK, sent=CHUNK, held=CHUNK, zeros=CHUNK)
    plan.receive(refuse(1, 50))
    assert plan.live() == Live(all_offered=True, files=1, size=2 * CHUNK, sent=0, held=0, zeros=0)
    plan.receive(skip(3))
    plan.receive(receipt(4, root_of(0)))
    assert plan.live() == Live(all_offered=True, files=0, size=0, sent=0, held=0, zeros=0)


def test_held_is_never_more_than_there_is() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(want(1, held=2**64 - 1))
    assert plan.live().held == CHUNK


# --- What a receiver must not say ----------------------------------------------------------------------

ABOUT = [want, lambda entry: m.AskDigests(entry, SHA, 0, 1), skip, lambda entry: refuse(entry, 49),
         lambda entry: receipt(entry, root_of(2))]  # fmt: skip


@pytest.mark.parametrize("about", ABOUT, ids=["WANT", "ASK_DIGESTS", "SKIP", "REFUSE", "RECEIPT"])
def test_g12_late_answers_are_dropped_and_those_for_no_entry_refused(about) -> None:  # type: ignore[no-untyped-def]
    plan = finished()
    plan.receive(receipt(1, root_of(2)))
    assert plan.receive(about(1)) == []
    assert (plan.done, plan.skipped, plan.failed) == (1, 0, 0)
    for never in (0, 2, 2**64 - 1):
        with pytest.raises(ProtocolError, match="never offered"):
            plan.receive(about(never))


@pytest.mark.parametrize("span", [(0, 4), (3, 4), (2, 2), (2**63, 2**63 + 1)])
def test_wanting_what_there_is_not(span: tuple[int, int]) -> None:
    plan = Plan(XXH3)
    offer(plan, 3)
    with pytest.raises(ProtocolError, match="WANT for chunks"):
        plan.receive(want(1, span))


def test_wanting_a_chunk_again_and_again() -> None:
    plan = finished(1)
    for _ in range(m.MAX_REPAIRS):
        plan.receive(want(1, (0, 1)))
        carry_out(plan, take(plan))
    with pytest.raises(ProtocolError, match="again and again"):
        plan.receive(want(1, (0, 1)))


def test_zeros_count_as_sent_when_they_are_wanted_again() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, holes=RangeSet([(0, 1)]))
    for _ in range(1 + m.MAX_REPAIRS):
        plan.receive(want(1, (0, 1)))
        assert take(plan) == Say(m.Zeros(1, (m.Range(0, 1),)))
    with pytest.raises(ProtocolError, match="again and again"):
        plan.receive(want(1, (0, 1)))


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 4), (3, 1), (2**64 - 1, 1), (0, 2**32 - 1)])
def test_asking_for_digests_of_what_there_is_not(first: int, count: int) -> None:
    plan = Plan(XXH3)
    offer(plan, 3)
    plan.receive(want(1))
    with pytest.raises(ProtocolError, match="ASK_DIGESTS"):
        plan.receive(m.AskDigests(1, SHA, first, count))


def test_g8_asks_have_their_limits() -> None:
    plan = Plan(XXH3)
    offer(plan, m.MAX_ASKED + 1)
    plan.receive(want(1))
    with pytest.raises(ProtocolError, match="ASK_DIGESTS"):
        plan.receive(m.AskDigests(1, SHA, 0, m.MAX_ASKED + 1))
    for _ in range(m.MAX_ASKS):
        plan.receive(m.AskDigests(1, SHA, 0, m.MAX_ASKED))
    with pytest.raises(ProtocolError, match="too many"):
        plan.receive(m.AskDigests(1, SHA, 0, 1))


@pytest.mark.parametrize(
    "message",
    [
        m.Finish(1, b""),
        m.Folder(b"", 1, ()),
        m.Data(1, 0, bytes(16), 8),
        m.Error(1, ""),
        m.Attached(),
        m.Cancel(1, 0, ""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_that_are_not_for_a_sender(message: m.Message) -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    with pytest.raises(ProtocolError, match="not for a sender"):
        plan.receive(message)


@pytest.mark.parametrize("answer", [skip(1), m.AskDigests(1, SHA, 0, 1)], ids=["SKIP", "ASK_DIGESTS"])
def test_answers_out_of_order(answer: m.Message) -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    if isinstance(answer, m.Skip):
        plan.receive(want(1))
    with pytest.raises(ProtocolError, match="makes no sense"):
        plan.receive(answer)


def test_signs_of_life_change_nothing() -> None:
    plan = Plan(XXH3)
    assert plan.receive(m.Ping()) == plan.receive(m.Busy(3)) == []
    assert take(plan) is None


# --- Digests that are asked for ------------------------------------------------------------------------


def test_asked_digests_are_read_in_steps_by_one_lane_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIGESTS_STEP", 2)
    plan = Plan(XXH3)
    offer(plan, 5)
    plan.receive(want(1))
    plan.receive(m.AskDigests(1, SHA, 0, 3))
    plan.receive(m.AskDigests(1, SHA, 4, 1))
    for first, stop in ((0, 2), (2, 3)):
        assert plan.next(control=False, bulk=True) == AnswerDigests(1, SHA, first, stop)
        # Another lane must not overtake it: the pieces of one answer come in order.
        assert plan.next(control=False, bulk=True) is None
        plan.job_over(1)
    assert plan.next(control=False, bulk=True) == AnswerDigests(1, SHA, 4, 5)
    assert plan.next(control=False, bulk=True) == HashChunk(1, 0)


def test_digests_that_are_known_are_answered_without_reading() -> None:
    plan = Plan(XXH3)
    offer(plan, 3, known=(0, 1))
    plan.receive(want(1))
    plan.receive(m.AskDigests(1, XXH3, 0, 2))
    assert take(plan) == Say(m.Digests(1, XXH3, 0, digest_of(0) + digest_of(1)))
    plan.receive(m.AskDigests(1, XXH3, 1, 2))  # one of them is not known
    job = take(plan)
    assert job == AnswerDigests(1, XXH3, 1, 3)
    carry_out(plan, job)
    plan.receive(m.AskDigests(1, SHA, 0, 1))  # another digest
    assert take(plan) == AnswerDigests(1, SHA, 0, 1)


# --- PAUSE ---------------------------------------------------------------------------------------------


def test_a_pause_stops_sending_but_not_hashing() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, 1, holes=RangeSet())
    plan.receive(want(1, (0, 1)))
    plan.receive(want(2, held=CHUNK))
    plan.receive(m.Pause(50, "the disk is full"))
    assert plan.pause_reason == "the disk is full"
    assert take(plan) == HashChunk(2, 0)
    assert take(plan) is None
    plan.receive(m.Pause(50, "still full"))
    assert plan.pause_reason == "still full"
    plan.receive(m.Resume())
    assert plan.pause_reason is None
    assert take(plan) == SendChunk(1, 0)


def test_a_pause_holds_up_no_answer() -> None:
    plan = Plan(XXH3)
    offer(plan, 2)
    plan.receive(want(1, (0, 1)))
    plan.receive(m.Pause(50, "the disk is full"))
    plan.receive(m.AskDigests(1, DigestName.SHA_256, 1, 1))
    assert take(plan) == AnswerDigests(1, DigestName.SHA_256, 1, 2)
    assert take(plan) is None


# --- BYE -----------------------------------------------------------------------------------------------


def test_bye_waits_for_the_scan_and_for_every_entry_and_is_said_once() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(skip(1))
    assert take(plan) is None
    offer(plan, 1)
    plan.scan_done()
    assert take(plan) is None
    plan.receive(refuse(2, 49))
    assert plan.next(control=False, bulk=True) is None
    assert not plan.said_bye
    assert take(plan) == Say(m.Bye(0, 1, 1))
    assert plan.said_bye and not plan.finished
    assert take(plan) is None
    assert plan.receive(m.Bye(0, 1, 1)) == []
    assert plan.finished


@pytest.mark.parametrize("totals", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_totals_that_disagree_are_no_good_end(totals: tuple[int, int, int]) -> None:
    plan = Plan(XXH3)
    plan.scan_done()
    assert said(plan) == m.Bye(0, 0, 0)
    with pytest.raises(ProtocolError, match="count differently"):
        plan.receive(m.Bye(*totals))
    assert not plan.finished


def test_the_sender_says_bye_first() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    with pytest.raises(ProtocolError, match="before ours"):
        plan.receive(m.Bye(0, 0, 0))
    assert not plan.finished


# --- Reports that come late ----------------------------------------------------------------------------


def test_reports_about_ended_entries_change_nothing() -> None:
    plan = Plan(XXH3)
    offer(plan, 2)
    plan.receive(want(1, (0, 1), held=CHUNK))
    assert [take(plan), take(plan)] == [SendChunk(1, 0), HashChunk(1, 1)]
    plan.receive(refuse(1, 50))
    plan.chunk_read(1, 0, digest_of(0))
    plan.chunk_sent(1, 0)
    plan.job_over(1)
    plan.cancel(1, 34, "")
    assert plan.checked(1, Pin.CHANGED)
    assert take(plan) is None
    assert plan.live().sent == 0


# --- Small files: one frame each, as long as nothing happens -------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one chunk are small."""
    monkeypatch.setattr(module, "SMALL", CHUNK)


def small_sent(plan: Plan, *entries: int) -> None:
    """As a writer does with a SendSmall."""
    assert take(plan) == SendSmall(entries)
    assert plan.small_begun(entries) == list(entries)
    for entry_id in entries:
        assert plan.small_read([(entry_id, digest_of(0))]) == [True]


@pytest.mark.usefixtures("small")
def test_small_files_go_in_one_job_and_are_done_by_their_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_STEP", 2)
    plan = Plan(XXH3)
    offer(plan, 1, 1, 1)
    plan.scan_done()
    assert take(plan) is None
    plan.receive(m.WantAll((1, 2, 3)))
    small_sent(plan, 1, 2)
    small_sent(plan, 3)
    assert take(plan) is None
    assert plan.live() == Live(all_offered=True, files=3, size=3 * CHUNK, sent=3 * CHUNK, held=0, zeros=0)
    for entry_id in (1, 2, 3):
        (outcome,) = plan.receive(receipt(entry_id, root_of(1), m.ReceiptFlags.DURABLE))
        assert (outcome.state, outcome.durable, outcome.root) == ("done", True, root_of(1))
        assert (outcome.sent, outcome.reused) == (CHUNK, 0)
    assert take(plan) == Say(m.Bye(3, 0, 0))


@pytest.mark.usefixtures("small")
def test_a_small_file_that_is_there_is_skipped() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, 1)
    plan.scan_done()
    (same,) = plan.receive(skip(1))
    (kept,) = plan.receive(skip(2, m.SkipReason.KEPT))
    assert (same.state, same.reused, same.message) == ("skipped", CHUNK, "")
    assert (kept.state, kept.reused) == ("skipped", 0)
    assert "kept" in kept.message
    assert take(plan) == Say(m.Bye(0, 2, 0))


@pytest.mark.usefixtures("small")
def test_g1_g4_no_other_receipt_for_a_small_file_counts() -> None:
    """None before it was sent, and none with another root."""
    plan = Plan(XXH3)
    offer(plan, 1)
    for match in ("nothing was sent", "makes no sense"):
        with pytest.raises(ProtocolError, match=match):
            plan.receive(receipt(1, root_of(1)))
        plan = Plan(XXH3)
        offer(plan, 1)
        plan.receive(m.WantAll((1,)))
    small_sent(plan, 1)
    with pytest.raises(ProtocolError, match="root digest"):
        plan.receive(receipt(1, root_of(1, version=1)))
    assert plan.done == 0


@pytest.mark.usefixtures("small")
def test_g4_a_small_file_that_was_damaged_is_sent_again_like_any_other() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(m.WantAll((1,)))
    small_sent(plan, 1)
    for _ in range(m.MAX_REPAIRS):
        plan.receive(want(1, (0, 1)))
        job = take(plan)
        assert job == SendChunk(1, 0)
        carry_out(plan, job)
        assert take(plan) is None  # FINISH was said with the first
    with pytest.raises(ProtocolError, match="again and again"):
        plan.receive(want(1, (0, 1)))
    (outcome,) = plan.receive(receipt(1, root_of(1)))
    assert (outcome.state, outcome.sent, outcome.reused) == ("done", (1 + m.MAX_REPAIRS) * CHUNK, 0)


@pytest.mark.usefixtures("small")
def test_g10_a_small_file_that_reads_differently_when_it_is_sent_again() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(m.WantAll((1,)))
    small_sent(plan, 1)
    plan.receive(want(1, (0, 1)))
    assert take(plan) == SendChunk(1, 0)
    with pytest.raises(SourceChanged):
        plan.chunk_read(1, 0, digest_of(0, version=1))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("taken", [False, True], ids=["before", "behind"])
def test_g10_a_small_file_is_given_up_like_any_other(taken: bool) -> None:
    """Before its job was taken, or when it was."""
    plan = Plan(XXH3)
    offer(plan, 1, 1)
    plan.receive(m.WantAll((1, 2)))
    if taken:
        assert take(plan) == SendSmall((1, 2))
    plan.cancel(1, m.WITHDRAWN, "it changed")
    assert take(plan) == Say(m.Cancel(1, m.WITHDRAWN, "it changed"))
    if not taken:
        assert take(plan) == SendSmall((1, 2))
    assert plan.small_begun((1, 2)) == [2]
    assert plan.small_read([(1, digest_of(0))]) == [False]
    assert plan.small_read([(2, digest_of(0))]) == [True]
    assert take(plan) is None
    (outcome,) = plan.receive(refuse(1, m.WITHDRAWN))
    assert outcome.state == "withdrawn"


@pytest.mark.usefixtures("small")
def test_a_small_file_that_the_receiver_ended_meanwhile_is_not_sent() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, 1)
    plan.receive(m.WantAll((1, 2)))
    assert take(plan) == SendSmall((1, 2))
    plan.receive(refuse(1, 50))
    assert plan.small_begun((1, 2)) == [2]
    assert plan.small_read([(1, digest_of(0))]) == [False]


@pytest.mark.usefixtures("small")
def test_a_small_file_that_is_wanted_or_asked_about_by_itself() -> None:
    """A receiver need not know what is small here: whatever it says about an entry is answered."""
    plan = Plan(XXH3)
    offer(plan, 1, 1, 1)
    plan.receive(want(1, (0, 1)))
    plan.receive(want(2, held=CHUNK))
    plan.receive(m.WantAll((3,)))
    plan.receive(m.AskDigests(3, XXH3, 0, 1))
    seen = []
    for job in jobs(plan):
        if isinstance(job, SendSmall):
            assert plan.small_begun(job.entries) == []
            continue
        seen.append(job)
        carry_out(plan, job)
    finishes = [Say(m.Finish(entry_id, root_of(1))) for entry_id in (1, 2, 3)]
    assert sorted(map(str, seen)) == sorted(
        map(
            str,
            [
                SendChunk(1, 0),
                SendChunk(3, 0),
                HashChunk(2, 0),
                Say(m.Digests(3, XXH3, 0, digest_of(0))),
                *(CheckSource(entry_id) for entry_id in (1, 2, 3)),
                *finishes,
            ],
        )
    )


@pytest.mark.usefixtures("small")
def test_what_is_all_wanted_need_not_be_small() -> None:
    plan = Plan(XXH3)
    offer(plan, 3, 0)
    plan.receive(m.WantAll((1, 2)))
    assert take(plan) == SendSmall((2,))
    assert [take(plan) for _ in range(4)] == [*(SendChunk(1, index) for index in range(3)), None]


@pytest.mark.usefixtures("small")
def test_an_empty_file_is_small_too() -> None:
    plan = Plan(XXH3)
    offer(plan, 0)
    plan.receive(m.WantAll((1,)))
    assert take(plan) == SendSmall((1,))
    assert plan.small_read([(1, b"")]) == [True]
    with pytest.raises(ProtocolError, match="root digest"):
        plan.receive(receipt(1, root_of(1)))
    (outcome,) = plan.receive(receipt(1, root_of(0)))
    assert outcome.state == "done"


@pytest.mark.usefixtures("small")
def test_g12_want_all_for_what_ended_and_for_what_was_never_offered() -> None:
    plan = Plan(XXH3)
    offer(plan, 1, 1)
    plan.receive(refuse(1, 50))
    with pytest.raises(ProtocolError, match="never offered"):
        plan.receive(m.WantAll((2, 3)))
    with pytest.raises(ProtocolError, match="never offered"):
        plan.receive(m.WantAll((0,)))
    assert plan.receive(m.WantAll((1,))) == []


@pytest.mark.usefixtures("small")
def test_a_pause_holds_small_files_too() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(m.WantAll((1,)))
    plan.receive(m.Pause(50, "the disk is full"))
    assert take(plan) is None
    plan.receive(m.Resume())
    assert take(plan) == SendSmall((1,))


@pytest.mark.usefixtures("small")
def test_a_control_lane_beside_others_carries_no_small_files() -> None:
    plan = Plan(XXH3)
    offer(plan, 1)
    plan.receive(m.WantAll((1,)))
    assert plan.next(control=True, bulk=False) is None
    assert plan.next(control=False, bulk=True) == SendSmall((1,))
