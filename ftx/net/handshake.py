"""From a fresh connection to a session: HELLOs, proofs, OPEN (``protocol.md``, "Handshake").

G7: nobody gets in without a key, unless the receiver was started with ``--open`` and the dialer agreed. The
dialer says no name before the listener has proven a key or the dialer's user took it without one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

from ftx.errors import FtxError, NetworkError, ProtocolError, Refused, Unproven, VersionMismatch, from_wire
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.messages import Method
from ftx.protocol.session import Side

#: What a refused stranger and the person who started it read. One text, so that nothing tells them apart.
NOT_ALLOWED = (
    "not allowed in. Give both sides the same `--secret-file FILE`, or start the receiver with `--open` "
    "to take files from anyone who can reach it"
)


class Greeting(NamedTuple):
    """What a handshake has shown of the dialer."""

    peer: bytes
    method: Method


def _hello(identity: bytes) -> m.Hello:
    return m.Hello(m.MAGIC, m.PROTOCOL_VERSION, m.PROTOCOL_VERSION, secrets.token_bytes(32), identity)


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


def dial(
    lane: Lane,
    keys: Mapping[Method, bytes],
    identity: bytes,
    *,
    accept_open: bool,
) -> Method:
    """The dialer's half, up to the listener's proof; how the listener let us in.

    Args:
        keys: what this side can prove.
        identity: 32 bytes that name this side.
        accept_open: go on with a listener that proves nothing.

    Raises:
        Refused: the listener does not let us in, or proves nothing and must.
        Unproven: it proves nothing, and that was not accepted.
    """
    hello_frame = lane.send(_hello(identity))
    hello, their_frame = _expect(lane, m.Hello)
    _check_version(hello)
    transcript = proof.transcript(hello_frame, their_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
    lane.send(m.Proof(b"", proof.prove(keys, transcript)))
    lane.send_grease()
    answer, _ = _expect(lane, m.Proof)
    assert isinstance(answer, m.Proof)
    if len(answer.proofs) != 1:
        raise ProtocolError(f"{len(answer.proofs)} proofs from a listener, which gives one")
    item = answer.proofs[0]
    if item.method != Method.OPEN:
        method = proof.confirmed(keys, item, transcript)
        if method is None:
            raise Refused("the receiver could not prove that it holds the key; it is not the one you mean")
        return method
    # A run that was given a credential never settles for none: whoever answers may not be the one meant.
    if Method.SECRET in keys:
        raise Refused(
            "the receiver takes files from anyone and does not know the key in your `--secret-file`; "
            "it may not be the one you mean. Nothing was sent"
        )
    if not accept_open:
        raise Unproven(
            "the receiver takes files from anyone (`--open`), so nothing proves that it is the one you mean. "
            "If you trust the way to it, add `--accept-new`. Nothing was sent"
        )
    return Method.OPEN


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


def listen(lane: Lane, keys: Mapping[Method, bytes], *, open_: bool) -> tuple[Greeting, m.Open | m.Attach]:
    """The listener's half, up to and with the dialer's OPEN or ATTACH. ``lane.deadline_s`` limits it.

    Raises:
        Refused: no proof holds and this listener is not open.
        NotFtx, ProtocolError, NetworkError: as the bytes are.
    """
    hello, their_frame = _expect(lane, m.Hello)
    our_frame = lane.send(_hello(bytes(32)))
    _check_version(hello)
    their_proof, _ = _expect(lane, m.Proof)
    assert isinstance(hello, m.Hello) and isinstance(their_proof, m.Proof)
    transcript = proof.transcript(their_frame, our_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
    method = proof.accept(keys, their_proof.proofs, transcript)
    if method is None:
        if not open_:
            raise Refused(NOT_ALLOWED)
        method = Method.OPEN
    mac = bytes(32) if method is Method.OPEN else proof.mac(keys[method], Side.LISTENER, method, transcript)
    lane.send(m.Proof(b"", (m.ProofItem(method, mac),)))
    lane.send_grease()
    request, _ = _expect(lane, m.Open, m.Attach)
    assert isinstance(request, m.Open | m.Attach)
    return Greeting(proof.peer_id(proof.credential(keys, method), hello.identity), method), request


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
