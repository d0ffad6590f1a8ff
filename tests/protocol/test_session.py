"""The two tables of order: every combination of who, when and what; and whole lanes walked from HELLO to BYE."""

from __future__ import annotations

import itertools

import pytest

from ftx.errors import ProtocolError
from ftx.protocol.messages import Mode, Role, Type
from ftx.protocol.session import (
    ENTRY,
    LANE,
    MEASURING,
    MEASURING_LANE,
    LaneOrder,
    Measuring,
    Phase,
    Side,
    State,
    next_measuring,
    next_state,
)

DIALED = (Side.DIALER, Side.LISTENER)
HANDSHAKE = (Phase.START, Phase.GREETED, Phase.PAIRING, Phase.PROVEN)

#: What leads into each phase: (who says it, which types), from START on.
WAY: dict[Phase, tuple[Type, ...]] = {
    Phase.START: (),
    Phase.GREETED: (Type.HELLO,),
    Phase.PAIRING: (Type.HELLO, Type.PAIR),
    Phase.PROVEN: (Type.HELLO, Type.PROOF),
}


def handshake(side: Side) -> tuple[Type, Type]:
    """What ``side`` says to come to CONTROL, and to BULK."""
    return (Type.OPEN, Type.ATTACH) if side is Side.DIALER else (Type.OPENED, Type.ATTACHED)


def lane_in(side: Side, phase: Phase, dialed: Side) -> LaneOrder:
    """A lane whose own side is ``side``, dialled or not as ``dialed`` says, and has come to ``phase``."""
    order = LaneOrder(dialer=dialed is Side.DIALER)
    if side not in DIALED:
        order.opened(Role.SENDER if side is Side.SENDER else Role.RECEIVER)
    control, bulk = handshake(dialed)
    ways = WAY | {Phase.CONTROL: (*WAY[Phase.PROVEN], control), Phase.BULK: (*WAY[Phase.PROVEN], bulk)}
    for type_ in ways[phase]:
        order.send(type_)
    return order


def cases() -> list[tuple[Side, Phase, Side]]:
    early = [(side, phase, side) for side in DIALED for phase in HANDSHAKE]
    late = itertools.product((Side.SENDER, Side.RECEIVER), (Phase.CONTROL, Phase.BULK), DIALED)
    return [*early, *late]


# --- The order of frames on a lane ---------------------------------------------------------------------


def test_the_table_has_every_phase_that_has_a_next() -> None:
    assert set(LANE) == {(side, phase) for side, phase, _ in cases()}
    reached = {phase for row in LANE.values() for phase in row.values()}
    assert reached | {Phase.START} == set(Phase)


def test_g12_behind_a_data_another_one_is_in_order() -> None:
    """So a burst of them is held to the table by its first."""
    assert all(row.get(Type.DATA, phase) is phase for (_, phase), row in LANE.items())


@pytest.mark.parametrize("type_", Type, ids=lambda type_: type_.name)
def test_each_side_may_say_in_each_phase_what_the_table_says(type_: Type) -> None:
    for side, phase, dialed in cases():
        order = lane_in(side, phase, dialed)
        expected = LANE[side, phase].get(type_)
        if expected is None:
            with pytest.raises(ProtocolError, match=f"{type_.name} from the {side.value} is out of order"):
                order.send(type_)
            continue
        order.send(type_)
        # Where it led shows in what may be said next.
        for then in Type:
            follows = lane_in(side, phase, dialed)
            follows.send(type_)
            late = expected in (Phase.CONTROL, Phase.BULK) and side in DIALED
            allowed = {} if late else LANE.get((side, expected), {})
            if then in allowed:
                follows.send(then)
            else:
                with pytest.raises(ProtocolError):
                    follows.send(then)


@pytest.mark.parametrize("type_", Type, ids=lambda type_: type_.name)
def test_what_one_side_may_say_the_other_takes(type_: Type) -> None:
    """Both sides apply one table: to what they send, and to what they receive."""
    for dialer, role in itertools.product((True, False), Role):
        for control in (True, False):
            ours, theirs = LaneOrder(dialer=dialer), LaneOrder(dialer=not dialer)
            talk(ours, theirs, dialer=dialer, control=control)
            ours.opened(role)
            theirs.opened(Role.RECEIVER if role is Role.SENDER else Role.SENDER)
            assert allows(ours.send, type_) == allows(theirs.receive, type_)
            assert ours.peer_ended is False
            assert theirs.peer_ended == (type_ is Type.ERROR or (type_ is Type.BYE and control))


def allows(step: object, type_: Type) -> bool:
    try:
        step(type_)  # type: ignore[operator]
    except ProtocolError:
        return False
    return True


def say(speaker: LaneOrder, hearer: LaneOrder, *types: Type) -> None:
    for type_ in types:
        speaker.send(type_)
        hearer.receive(type_)


def talk(ours: LaneOrder, theirs: LaneOrder, *, dialer: bool, control: bool) -> None:
    """The whole handshake."""
    first, second = (ours, theirs) if dialer else (theirs, ours)
    opens, opened = (Type.OPEN, Type.OPENED) if control else (Type.ATTACH, Type.ATTACHED)
    say(first, second, Type.HELLO)
    say(second, first, Type.HELLO, Type.PROOF)
    say(first, second, Type.PROOF, opens)
    say(second, first, opened)


@pytest.mark.parametrize("role", Role, ids=lambda role: role.name)
def test_a_whole_session_on_the_control_lane(role: Role) -> None:
    """``role`` is the dialer's: push and pull differ only there."""
    dialer, listener = LaneOrder(dialer=True), LaneOrder(dialer=False)
    talk(dialer, listener, dialer=True, control=True)
    dialer.opened(role)
    listener.opened(Role.RECEIVER if role is Role.SENDER else Role.SENDER)
    sender, receiver = (dialer, listener) if role is Role.SENDER else (listener, dialer)
    say(sender, receiver, Type.FOLDER, Type.FOLDER_END)
    say(receiver, sender, Type.BUSY, Type.SKIP, Type.WANT, Type.ASK_DIGESTS, Type.REFUSE)
    say(sender, receiver, Type.DATA, Type.ZEROS, Type.DIGESTS, Type.PING, Type.CANCEL)
    say(receiver, sender, Type.PAUSE, Type.RESUME)
    say(sender, receiver, Type.FINISH)
    say(receiver, sender, Type.RECEIPT, Type.PING)
    say(sender, receiver, Type.BYE)
    assert receiver.peer_ended and not sender.peer_ended
    say(receiver, sender, Type.BYE)
    assert sender.peer_ended
    for order, type_ in itertools.product((sender, receiver), Type):
        assert not allows(order.send, type_)


@pytest.mark.parametrize("role", Role, ids=lambda role: role.name)
def test_another_lane_carries_data_from_the_sender_and_nothing_else(role: Role) -> None:
    dialer, listener = LaneOrder(dialer=True), LaneOrder(dialer=False)
    talk(dialer, listener, dialer=True, control=False)
    dialer.opened(role)
    listener.opened(Role.RECEIVER if role is Role.SENDER else Role.SENDER)
    sender, receiver = (dialer, listener) if role is Role.SENDER else (listener, dialer)
    say(sender, receiver, Type.DATA, Type.PING, Type.DATA)
    say(receiver, sender, Type.PING)
    assert [type_ for type_ in Type if allows(sender.send, type_)] == [Type.DATA, Type.PING, Type.ERROR]
    assert [type_ for type_ in Type if allows(receiver.send, type_)] == [Type.PING, Type.ERROR]


def test_a_sender_that_dialled_goes_on_before_it_is_answered() -> None:
    """What does not depend on an answer is said without waiting for it."""
    dialer, listener = LaneOrder(dialer=True), LaneOrder(dialer=False)
    say(dialer, listener, Type.HELLO)
    say(listener, dialer, Type.HELLO, Type.PROOF)
    say(dialer, listener, Type.PROOF, Type.OPEN)
    dialer.opened(Role.SENDER)
    dialer.send(Type.FOLDER)
    say(listener, dialer, Type.BUSY, Type.OPENED)
    listener.opened(Role.RECEIVER)
    listener.receive(Type.FOLDER)
    say(listener, dialer, Type.WANT)


def test_a_lane_that_pairs_carries_no_session() -> None:
    dialer, listener = LaneOrder(dialer=True), LaneOrder(dialer=False)
    say(dialer, listener, Type.HELLO)
    say(listener, dialer, Type.HELLO)
    say(dialer, listener, Type.PAIR)
    say(listener, dialer, Type.PAIR)
    say(dialer, listener, Type.PROOF)
    say(listener, dialer, Type.PROOF)
    for order, type_ in itertools.product((dialer, listener), Type):
        assert not allows(order.send, type_) and not allows(order.receive, type_)


@pytest.mark.parametrize("type_", [Type.FOLDER, Type.WANT, Type.PING, Type.BYE, Type.ERROR], ids=lambda t: t.name)
def test_without_a_role_nothing_is_said_behind_the_handshake(type_: Type) -> None:
    dialer, listener = LaneOrder(dialer=True), LaneOrder(dialer=False)
    talk(dialer, listener, dialer=True, control=True)
    for step in (dialer.send, dialer.receive, listener.send, listener.receive):
        with pytest.raises(ProtocolError):
            step(type_)


# --- The states of an entry ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
def test_each_state_takes_what_the_table_says(state: State) -> None:
    for type_ in Type:
        if type_ in ENTRY[state]:
            assert next_state(7, state, type_) is ENTRY[state][type_]
        else:
            with pytest.raises(ProtocolError, match=f"{type_.name} for entry 7 makes no sense"):
                next_state(7, state, type_)


def test_only_the_receiver_ends_an_entry() -> None:
    """So both sides always count the same."""
    receivers = {type_ for type_, phase in LANE[Side.RECEIVER, Phase.CONTROL].items() if phase is Phase.CONTROL}
    ending = {
        type_
        for state, row in ENTRY.items()
        if state is not State.ENDED
        for type_, to in row.items()
        if to is State.ENDED
    }
    assert ending == {Type.SKIP, Type.REFUSE, Type.RECEIPT}
    assert ending <= receivers


def test_g1_nothing_is_committed_before_the_root_digest_came() -> None:
    # In ``offered`` for what has no chunks; that a file is not committed there is the plan's and the ledger's rule.
    committed = {state for state, row in ENTRY.items() if Type.RECEIPT in row}
    assert committed == {State.OFFERED, State.FINISHED, State.CANCELLED}


def test_what_ended_stays_ended_and_what_was_cancelled_is_not_revived() -> None:
    assert set(ENTRY[State.ENDED].values()) == {State.ENDED}
    assert set(ENTRY[State.CANCELLED].values()) == {State.CANCELLED, State.ENDED}


def test_repairs_go_on_behind_the_root_digest() -> None:
    """A receipt may cross a repair that was asked for before: it must not find the entry back in WANTED."""
    state = State.FINISHED
    for type_ in (Type.WANT, Type.DATA, Type.ZEROS, Type.ASK_DIGESTS, Type.DIGESTS):
        state = next_state(1, state, type_)
        assert state is State.FINISHED
    assert next_state(1, state, Type.RECEIPT) is State.ENDED


def test_every_state_can_be_reached_and_left_for_the_end() -> None:
    reached = {State.OFFERED}
    while more := {to for state in reached for to in ENTRY[state].values()} - reached:
        reached |= more
    assert reached == set(State)
    for state in State:
        assert state is State.ENDED or State.ENDED in ENTRY[state].values()


# --- A session that measures ---------------------------------------------------------------------------


@pytest.mark.parametrize("type_", Type, ids=lambda type_: type_.name)
def test_a_control_lane_that_measures_carries_what_its_table_says(type_: Type) -> None:
    for role, side in ((Role.SENDER, Side.SENDER), (Role.RECEIVER, Side.RECEIVER)):
        ours, theirs = LaneOrder(dialer=True), LaneOrder(dialer=False)
        talk(ours, theirs, dialer=True, control=True)
        ours.opened(role, Mode.MEASURE)
        theirs.opened(Role.RECEIVER if role is Role.SENDER else Role.SENDER, Mode.MEASURE)
        allowed = type_ in MEASURING_LANE[side, Phase.CONTROL]
        assert allows(ours.send, type_) == allows(theirs.receive, type_) == allowed


@pytest.mark.parametrize("state", Measuring, ids=lambda state: state.value)
def test_each_state_of_a_measuring_takes_what_the_table_says(state: Measuring) -> None:
    for type_ in Type:
        if type_ in MEASURING[state]:
            assert next_measuring(state, type_) is MEASURING[state][type_]
        else:
            with pytest.raises(ProtocolError, match=f"{type_.name} makes no sense while measuring"):
                next_measuring(state, type_)
