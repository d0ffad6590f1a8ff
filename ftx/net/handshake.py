"""From a fresh connection to a session: HELLOs, proofs, OPEN (``protocol.md``, "Handshake").

G7: nobody gets in without a key, unless the receiver was started with ``--open``; and the dialer says no name
before the listener has proven that it is the one meant, or the dialer's user took it without a proof.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from ftx.errors import FtxError, NetworkError, ProtocolError, Refused, Unproven, VersionMismatch, from_wire
from ftx.net.identity import Identity, fingerprint, signed_by
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.messages import Method
from ftx.protocol.session import Side

P = TypeVar("P")

#: What a refused stranger and the person who started it read. One text, so that nothing tells them apart.
NOT_ALLOWED = (
    "not allowed in. Give both sides the same `--secret-file FILE`, or start the receiver with `--open` "
    "to take files from anyone who can reach it"
)


class Trust(NamedTuple):
    """Whom a dialer takes for the one that its user means.

    Attributes:
        name: what the user calls it, for messages.
        known: the public key that is on file for that name; None for none.
        anyone: also one that is not on file and proves nothing, as the user said.
    """

    name: str
    known: bytes | None = None
    anyone: bool = False


class Met(NamedTuple):
    """The listener that a dialer has met.

    Attributes:
        public: its key.
        unproven: only the user's word says that it is the one that is meant.
    """

    public: bytes
    unproven: bool


def _hello(identity: Identity) -> m.Hello:
    return m.Hello(m.MAGIC, m.PROTOCOL_VERSION, m.PROTOCOL_VERSION, secrets.token_bytes(32), identity.public)


def _expect(lane: Lane, *kinds: type[m.Message], patience_s: float = 0) -> tuple[m.Message, bytes]:
    """The next message, of one of ``kinds``, and its frame. A peer that is busy gets ``patience_s`` each time."""
    while True:
        message, frame = lane.receive()
        if isinstance(message, kinds):
            return message, frame
        match message:
            case m.Error():
                raise from_wire(message.code, message.message)
            case m.Busy():
                lane.deadline_s = time.monotonic() + patience_s
            case m.Ping():
                pass
            case _:
                raise ProtocolError(f"{type(message).__name__} in the middle of the handshake")


def _check_version(hello: m.Message) -> None:
    assert isinstance(hello, m.Hello)
    if hello.magic != m.MAGIC:
        raise ProtocolError("a HELLO without ftx's magic")
    if not hello.version_min <= m.PROTOCOL_VERSION <= hello.version_max:
        raise VersionMismatch(
            f"the peer speaks protocol version {hello.version_min} to {hello.version_max}, "
            f"this side {m.PROTOCOL_VERSION}; update the older one"
        )


def dial(lane: Lane, identity: Identity, keys: Mapping[Method, bytes], trust: Trust) -> Met:
    """The dialer's half, up to the listener's proof.

    Args:
        identity: who this side is.
        keys: what it can prove.
        trust: whom it takes for the one that is meant.

    Raises:
        Refused: the listener does not let us in, or is not the one that is meant.
        Unproven: nothing says whether it is, and that was not accepted.
    """
    hello_frame = lane.send(_hello(identity))
    hello, their_frame = _expect(lane, m.Hello)
    _check_version(hello)
    assert isinstance(hello, m.Hello)
    transcript = proof.transcript(hello_frame, their_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
    lane.send(m.Proof(identity.sign(proof.signed(Side.DIALER, transcript)), proof.prove(keys, transcript)))
    lane.send_grease()
    answer, _ = _expect(lane, m.Proof)
    assert isinstance(answer, m.Proof)
    if len(answer.proofs) != 1:
        raise ProtocolError(f"{len(answer.proofs)} proofs from a listener, which gives one")
    if not signed_by(hello.identity, answer.signature, proof.signed(Side.LISTENER, transcript)):
        raise Refused("the receiver could not prove that it holds the key that it shows")
    item = answer.proofs[0]
    credential = item.method not in (Method.OPEN, Method.KNOWN)
    if credential and proof.confirmed(keys, item, transcript) is None:
        raise Refused("the receiver could not prove that it holds the key; it is not the one you mean")
    return _met(hello.identity, identity, keys, trust, credential=credential)


def _met(public: bytes, own: Identity, keys: Mapping[Method, bytes], trust: Trust, *, credential: bool) -> Met:
    """The listener with this key, which has proven a credential or not; if it is the one that the user means (G7)."""
    if trust.known not in (None, public):
        raise Refused(
            f"{trust.name} has another key than it had. It shows {fingerprint(public)}, and "
            f"{fingerprint(trust.known or b'')} is on file: somebody may be in its place. If you know why it has "
            "changed, take its line out of `known_hosts` in the configuration folder. Nothing was sent"
        )
    if credential or public == own.public:  # nobody else has the key of this very user
        return Met(public, unproven=False)
    # A run that was given a credential never settles for none: whoever answers may not be the one meant.
    if Method.SECRET in keys:
        raise Refused(
            "the receiver does not know the key in your `--secret-file`; it may not be the one you mean. "
            "Nothing was sent"
        )
    unproven = public != trust.known
    if unproven and not trust.anyone:
        raise Unproven(
            f"nothing proves that this receiver is the one you mean. Its fingerprint is {fingerprint(public)}. "
            "If that is right, or if you trust the way to it, add `--accept-new`. Nothing was sent",
            public,
        )
    return Met(public, unproven)


def open_session(lane: Lane, request: m.Open, patience_s: float) -> m.Opened:
    """The dialer's OPEN and the listener's answer; BUSY until then means that an older session is ending."""
    lane.send(request)
    opened, _ = _expect(lane, m.Opened, patience_s=patience_s)
    assert isinstance(opened, m.Opened)
    return opened


def attach(lane: Lane, request: m.Attach, role: m.Role) -> None:
    """The dialer's ATTACH and the listener's answer: the lane has joined its session."""
    lane.send(request)
    lane.order.opened(role)
    _expect(lane, m.Attached)


def nobody(public: bytes) -> None:
    """Nobody is on file."""


def listen(
    lane: Lane,
    identity: Identity,
    keys: Mapping[Method, bytes],
    *,
    open_: bool,
    known: Callable[[bytes], P | None] = nobody,
) -> tuple[bytes, P | None, m.Open | m.Attach]:
    """The listener's half, up to and with the dialer's OPEN or ATTACH: its peer id, what is on file of it, and that.

    ``lane.deadline_s`` limits it.

    Args:
        known: what is on file of the holder of a public key, who is let in then. It is asked whatever else would let
            it in (G7); but not for this very user, who is never on file.

    Raises:
        Refused: it is not whom it says, or nothing lets it in.
        NotFtx, ProtocolError, NetworkError: as the bytes are.
    """
    hello, their_frame = _expect(lane, m.Hello)
    our_frame = lane.send(_hello(identity))
    _check_version(hello)
    theirs, _ = _expect(lane, m.Proof)
    assert isinstance(hello, m.Hello) and isinstance(theirs, m.Proof)
    transcript = proof.transcript(their_frame, our_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
    if not signed_by(hello.identity, theirs.signature, proof.signed(Side.DIALER, transcript)):
        raise Refused("it could not prove that it holds the key that it shows")
    own = hello.identity == identity.public
    on_file = None if own else known(hello.identity)
    method = proof.accept(keys, theirs.proofs, transcript)
    if method is None:
        if own or on_file is not None:
            method = Method.KNOWN
        elif open_:
            method = Method.OPEN
        else:
            raise Refused(NOT_ALLOWED)
    mac = proof.mac(keys[method], Side.LISTENER, method, transcript) if method in keys else bytes(32)
    signature = identity.sign(proof.signed(Side.LISTENER, transcript))
    lane.send(m.Proof(signature, (m.ProofItem(method, mac),)))
    lane.send_grease()
    request, _ = _expect(lane, m.Open, m.Attach)
    assert isinstance(request, m.Open | m.Attach)
    return proof.peer_id(hello.identity), on_file, request


def refuse(lane: Lane, error: FtxError) -> None:
    """Tell the peer why, and make sure that it can hear it. What has no wire code is not for the peer."""
    if error.wire == 0:
        return
    try:
        lane.deadline_s = time.monotonic() + m.DRAIN_S
        lane.send(m.Error(error.wire, str(error)))
        lane.drain(m.DRAIN_S)
    except (NetworkError, ProtocolError):
        pass  # it has gone, or never spoke our language
