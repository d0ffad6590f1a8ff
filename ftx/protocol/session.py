"""Who may say what when, as literal tables: the order of frames on a lane, the states of an entry, and of a measuring.

Two rules, taken from h11. Everything about order lives here and in the tables; no other module keeps a
flag of its own. And nothing here knows which side it runs on: both sides apply the same tables to what
they send and to what they receive.
"""

from __future__ import annotations

from enum import Enum

from ftx.errors import ProtocolError
from ftx.protocol.messages import Mode, Role, Type

# --- The order of frames on a lane ---------------------------------------------------------------------


class Side(Enum):
    """Who speaks. Before OPENED only who dialled matters; afterwards only who has the files."""

    __hash__ = object.__hash__  # each is one object, and the tables are looked into for every frame

    DIALER = "dialer"
    LISTENER = "listener"
    SENDER = "sender"
    RECEIVER = "receiver"


class Phase(Enum):
    """What one side of a lane has said so far. Each side of a lane is in a phase of its own."""

    __hash__ = object.__hash__

    START = "start"  #: nothing said; next GREETED
    GREETED = "greeted"  #: HELLO said; next PROVEN or PAIRING
    PAIRING = "pairing"  #: PAIR said; next ENDED
    PROVEN = "proven"  #: PROOF said; next CONTROL (lane 1) or BULK (other lanes)
    CONTROL = "control"  #: lane 1 of a session; next ENDED
    BULK = "bulk"  #: another lane; next ENDED
    ENDED = "ended"  #: BYE, ERROR, or PROOF behind PAIR said; nothing more comes


_S, _G, _A, _P = Phase.START, Phase.GREETED, Phase.PAIRING, Phase.PROVEN
_C, _B, _E = Phase.CONTROL, Phase.BULK, Phase.ENDED

#: (who speaks, its phase) -> {what it may say: its next phase}. Everything else is a protocol error.
#: Optional unknown frames may come anywhere after HELLO and change nothing.
LANE: dict[tuple[Side, Phase], dict[Type, Phase]] = {
    (Side.DIALER, _S): {Type.HELLO: _G},
    (Side.DIALER, _G): {Type.PROOF: _P, Type.PAIR: _A, Type.ERROR: _E},
    (Side.DIALER, _A): {Type.PROOF: _E, Type.ERROR: _E},
    (Side.DIALER, _P): {Type.OPEN: _C, Type.ATTACH: _B, Type.PING: _P, Type.ERROR: _E},
    (Side.LISTENER, _S): {Type.HELLO: _G, Type.ERROR: _E},
    (Side.LISTENER, _G): {Type.PROOF: _P, Type.PAIR: _A, Type.ERROR: _E},
    (Side.LISTENER, _A): {Type.PROOF: _E, Type.ERROR: _E},
    (Side.LISTENER, _P): {Type.OPENED: _C, Type.ATTACHED: _B, Type.BUSY: _P, Type.ERROR: _E},
    (Side.SENDER, _C): {
        Type.FOLDER: _C, Type.FOLDER_END: _C, Type.DIGESTS: _C, Type.DATA: _C, Type.ZEROS: _C,
        Type.FINISH: _C, Type.CANCEL: _C, Type.PING: _C, Type.BYE: _E, Type.ERROR: _E,
    },
    (Side.RECEIVER, _C): {
        Type.SKIP: _C, Type.WANT: _C, Type.WANT_ALL: _C, Type.REFUSE: _C, Type.ASK_DIGESTS: _C, Type.RECEIPT: _C,
        Type.PING: _C, Type.BUSY: _C, Type.PAUSE: _C, Type.RESUME: _C, Type.BYE: _E, Type.ERROR: _E,
    },
    (Side.SENDER, _B): {Type.DATA: _B, Type.PING: _B, Type.ERROR: _E},
    (Side.RECEIVER, _B): {Type.PING: _B, Type.ERROR: _E},
}  # fmt: skip

#: The same where a session measures (``Mode.MEASURE``): its control lane. All else is as above.
MEASURING_LANE: dict[tuple[Side, Phase], dict[Type, Phase]] = {
    (Side.SENDER, _C): {
        Type.STEP: _C, Type.SAMPLE: _C, Type.DATA: _C, Type.PING: _C, Type.BYE: _E, Type.ERROR: _E,
    },
    (Side.RECEIVER, _C): {Type.MEASURED: _C, Type.PING: _C, Type.BUSY: _C, Type.BYE: _E, Type.ERROR: _E},
}  # fmt: skip
_ORDERS = {Mode.TRANSFER: LANE, Mode.MEASURE: LANE | MEASURING_LANE}

#: The phases in which it counts who dialled; in the others the roles count.
HANDSHAKE = frozenset({Phase.START, Phase.GREETED, Phase.PAIRING, Phase.PROVEN})


class LaneOrder:
    """Holds both directions of one lane to ``LANE``. ``dialer``: this side dialled."""

    def __init__(self, *, dialer: bool) -> None:
        self._us = self._our_role = Side.DIALER if dialer else Side.LISTENER
        self._them = self._their_role = Side.LISTENER if dialer else Side.DIALER
        self._sent = self._received = Phase.START
        self._order = LANE

    def opened(self, our_role: Role, mode: Mode = Mode.TRANSFER) -> None:
        """OPEN or ATTACH was said, so who is sender is known, and what for. A lane that attaches need not know that.

        Each direction goes by it once its own handshake is over: what does not depend on an answer is said
        without waiting for it.
        """
        self._order = _ORDERS[mode]
        sender = our_role is Role.SENDER
        self._our_role = Side.SENDER if sender else Side.RECEIVER
        self._their_role = Side.RECEIVER if sender else Side.SENDER

    def send(self, type_: Type) -> None:
        """Note that this side says ``type_``.

        Raises:
            ProtocolError: it must not, now: a bug on this side.
        """
        self._sent = self._step(self._us if self._sent in HANDSHAKE else self._our_role, self._sent, type_)

    def receive(self, type_: Type) -> None:
        """Note that the peer said ``type_``.

        Raises:
            ProtocolError: it must not, now.
        """
        side = self._them if self._received in HANDSHAKE else self._their_role
        self._received = self._step(side, self._received, type_)

    @property
    def peer_greets(self) -> bool:
        """The peer has not said OPEN or ATTACH yet (or OPENED or ATTACHED)."""
        return self._received in HANDSHAKE

    @property
    def peer_ended(self) -> bool:
        """The peer has said its last word: the end of its bytes is no accident."""
        return self._received is Phase.ENDED

    def _step(self, side: Side, phase: Phase, type_: Type) -> Phase:
        try:
            return self._order[side, phase][type_]
        except KeyError:
            raise ProtocolError(f"{type_.name} from the {side.value} is out of order ({phase.value})") from None


# --- The states of an entry ----------------------------------------------------------------------------


class State(Enum):
    """Where an entry stands between the two sides."""

    __hash__ = object.__hash__

    OFFERED = "offered"  #: from FOLDER; next WANTED, CANCELLED or ENDED
    WANTED = "wanted"  #: the receiver asked for chunks; next FINISHED, CANCELLED or ENDED
    FINISHED = "finished"  #: the sender told the root digest; repairs change nothing; next CANCELLED or ENDED
    CANCELLED = "cancelled"  #: the sender gave it up; next ENDED
    ENDED = "ended"  #: by the receiver's RECEIPT, SKIP or REFUSE; late frames are dropped


_O, _W, _F, _K, _X = State.OFFERED, State.WANTED, State.FINISHED, State.CANCELLED, State.ENDED

#: State -> {message about the entry: next state}. Messages cross on the way and lanes overtake each other,
#: so a state allows what the other side may still have sent in the state before. Only the receiver ends
#: an entry, so both sides always count the same.
ENTRY: dict[State, dict[Type, State]] = {
    _O: {Type.SKIP: _X, Type.REFUSE: _X, Type.RECEIPT: _X, Type.WANT: _W, Type.CANCEL: _K},
    _W: {
        Type.WANT: _W, Type.DATA: _W, Type.ZEROS: _W, Type.ASK_DIGESTS: _W, Type.DIGESTS: _W,
        Type.FINISH: _F, Type.REFUSE: _X, Type.CANCEL: _K,
    },
    _F: {
        Type.WANT: _F, Type.DATA: _F, Type.ZEROS: _F, Type.ASK_DIGESTS: _F, Type.DIGESTS: _F,
        Type.FINISH: _F, Type.RECEIPT: _X, Type.REFUSE: _X, Type.CANCEL: _K,
    },
    _K: {
        Type.WANT: _K, Type.DATA: _K, Type.ZEROS: _K, Type.ASK_DIGESTS: _K, Type.DIGESTS: _K,
        Type.RECEIPT: _X, Type.SKIP: _X, Type.REFUSE: _X,
    },
    _X: {
        Type.DATA: _X, Type.ZEROS: _X, Type.DIGESTS: _X, Type.FINISH: _X, Type.CANCEL: _X,
    },
}  # fmt: skip


def next_state(entry: int, state: State, type_: Type) -> State:
    """The state of ``entry`` after a message about it.

    Raises:
        ProtocolError: the message makes no sense in this state.
    """
    try:
        return ENTRY[state][type_]
    except KeyError:
        raise ProtocolError(f"{type_.name} for entry {entry} makes no sense ({state.value})") from None


# --- The states of a measuring -------------------------------------------------------------------------


class Measuring(Enum):
    """Where a session that measures stands between the two sides."""

    __hash__ = object.__hash__

    IDLE = "idle"  #: no STEP yet; next BEGINNING
    BEGINNING = "beginning"  #: STEP was said: what belongs to the step before still arrives; next RUNNING
    RUNNING = "running"  #: MEASURED has answered; next BEGINNING or SAMPLED
    SAMPLED = "sampled"  #: SAMPLE was said; next RUNNING


#: State -> {message: next state}. One question at a time is open, and it never stops the DATA of its own step.
MEASURING: dict[Measuring, dict[Type, Measuring]] = {
    Measuring.IDLE: {Type.STEP: Measuring.BEGINNING},
    Measuring.BEGINNING: {Type.DATA: Measuring.BEGINNING, Type.MEASURED: Measuring.RUNNING},
    Measuring.RUNNING: {
        Type.DATA: Measuring.RUNNING, Type.SAMPLE: Measuring.SAMPLED, Type.STEP: Measuring.BEGINNING,
    },
    Measuring.SAMPLED: {Type.DATA: Measuring.SAMPLED, Type.MEASURED: Measuring.RUNNING},
}  # fmt: skip


def next_measuring(state: Measuring, type_: Type) -> Measuring:
    """The state of a measuring after a message.

    Raises:
        ProtocolError: the message makes no sense in this state.
    """
    try:
        return MEASURING[state][type_]
    except KeyError:
        raise ProtocolError(f"{type_.name} makes no sense while measuring ({state.value})") from None
