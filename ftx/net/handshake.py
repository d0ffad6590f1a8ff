"""From a fresh connection to a session: HELLOs, proofs, OPEN (``protocol.md``, "Handshake").

G7: nobody gets in without a key, unless the receiver was started with ``--open``; and the dialer says no name
before the listener has proven that it is the one meant, or the dialer's user took it without a proof.

A connection that pairs is for nothing else: HELLOs, what each makes of the code, proofs of it, and the end.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ftx.errors import (
    FtxError,
    NetworkError,
    NotPaired,
    ProtocolError,
    Refused,
    Unproven,
    Unsupported,
    VersionMismatch,
    WrongCode,
    from_wire,
)
from ftx.net.identity import Identity, fingerprint, signed_by
from ftx.net.lane import Lane
from ftx.protocol import compression, proof
from ftx.protocol import messages as m
from ftx.protocol.messages import Method
from ftx.protocol.session import Side

if TYPE_CHECKING:
    from ftx.net.pairing import Pairing
    from ftx.net.tls import Credentials

TLS = b"\x16"  #: a TLS handshake begins with it, a HELLO with another
#: One side was told to encrypt and the other not to. Each text names both.
PLAIN_HERE = "the receiver was started with `--plain`, and the sender without; give it to both, or to none"
PLAIN_THERE = "the sender was started with `--plain`, and the receiver without; give it to both, or to none"
#: What a stranger reads who speaks something else (a browser, a port scanner, a person with telnet).
NOT_FTX = b"This port speaks ftx, a file-transfer protocol, and nothing else.\r\n"

P = TypeVar("P")

#: What a refused stranger and the person who started it read. One text, so that nothing tells them apart.
NOT_ALLOWED = (
    "not allowed in. Pair the two: `ftx pair` on the receiver's machine shows a code for it. Or give both sides the "
    "same `--secret-file FILE`, or start the receiver with `--open` to take files from anyone who can reach it"
)


class Trust(NamedTuple):
    """Whom a dialer takes for the one that its user means.

    Attributes:
        name: what the user calls it, for messages.
        known: the public key that is on file for that name; None for none.
        anyone: also one that is not on file and proves nothing, as the user said.
        receivers: whom the user's credential belongs to; empty for everyone who has it.
    """

    name: str
    known: bytes | None = None
    anyone: bool = False
    receivers: frozenset[bytes] = frozenset()


class Met(NamedTuple):
    """The listener that a dialer has met.

    Attributes:
        public: its key.
        unproven: only the user's word says that it is the one that is meant.
    """

    public: bytes
    unproven: bool


def _hello(identity: Identity, *, receives: bool) -> m.Hello:
    tlvs = (m.Tlv(m.TLV_ZSTD, b""),) if receives and compression.available() else ()
    return m.Hello(m.MAGIC, m.PROTOCOL_VERSION, m.PROTOCOL_VERSION, secrets.token_bytes(32), identity.public, tlvs)


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


def dial(lane: Lane, identity: Identity, keys: Mapping[Method, bytes], trust: Trust, *, plain: bool) -> Met:
    """The dialer's half, up to the listener's proof.

    Args:
        identity: who this side is.
        keys: what it can prove.
        trust: whom it takes for the one that is meant.
        plain: without TLS, as its user said.

    Raises:
        NotPaired: the listener does not know us.
        Refused: it does not let us in, or is not the one that is meant.
        Unproven: nothing says whether it is, and that was not accepted.
    """
    hello, transcript = _call(lane, identity, plain=plain)
    if Method.SSH not in keys:
        _check_known(hello.identity, trust)  # before its refusal: it may not know us because it is another one
    lane.send(m.Proof(identity.sign(proof.signed(Side.DIALER, transcript)), proof.prove(keys, transcript)))
    lane.send_grease()
    item = _answer(lane, hello, transcript)
    credential = item.method not in (Method.OPEN, Method.KNOWN)
    if credential and proof.confirmed(keys, item, transcript) is None:
        raise Refused("the receiver could not prove that it holds the key; it is not the one you mean")
    return _met(hello.identity, identity, keys, trust, credential=credential)


def pair(lane: Lane, identity: Identity, code: str, *, plain: bool) -> bytes:
    """The dialer's half of a pairing: the listener's public key. Then nothing more is said on this lane.

    Args:
        code: normalised.
        plain: without TLS, as its user said.

    Raises:
        WrongCode: it is not the listener's.
        Refused: the listener does not have it, so it is not the one that is meant.
    """
    hello, transcript = _call(lane, identity, plain=plain)
    from ftx.net.pairing import Exchange  # here, and below: hardly any run needs it

    exchange = Exchange(Side.DIALER, code)
    lane.send(m.Pair(exchange.element))
    theirs, _ = _expect(lane, m.Pair)
    assert isinstance(theirs, m.Pair)
    keys = {Method.PAIRED: exchange.key(theirs.element)}
    lane.send(m.Proof(identity.sign(proof.signed(Side.DIALER, transcript)), proof.prove(keys, transcript)))
    if proof.confirmed(keys, _answer(lane, hello, transcript), transcript) is None:
        raise Refused("the receiver could not prove that it has the pairing code; it is not the one you mean")
    return hello.identity


def _call(lane: Lane, identity: Identity, *, plain: bool) -> tuple[m.Hello, bytes]:
    """The dialer's HELLO and the listener's, and the transcript of both."""
    if not plain:
        from ftx.net import tls  # here: a plain run needs none of it

        lane.encrypt(tls.dialing())
    hello_frame = lane.send(_hello(identity, receives=False))
    hello, their_frame = _expect(lane, m.Hello)
    _check_version(hello)
    assert isinstance(hello, m.Hello)
    lane.zstd = any(tlv.type == m.TLV_ZSTD for tlv in hello.tlvs)
    return hello, _transcript(lane, hello_frame, their_frame)


def _answer(lane: Lane, hello: m.Hello, transcript: bytes) -> m.ProofItem:
    """The one item of the listener's PROOF; its signature holds."""
    answer, _ = _expect(lane, m.Proof)
    assert isinstance(answer, m.Proof)
    if len(answer.proofs) != 1:
        raise ProtocolError(f"{len(answer.proofs)} proofs from a listener, which gives one")
    if not signed_by(hello.identity, answer.signature, proof.signed(Side.LISTENER, transcript)):
        raise Refused("the receiver could not prove that it holds the key that it shows")
    return answer.proofs[0]


def _check_known(public: bytes, trust: Trust) -> None:
    """Whether a listener shows the key that is on file for the name by which it was called (G7)."""
    if trust.known not in (None, public):
        raise Refused(
            f"{trust.name} has another key than it had. It shows {fingerprint(public)}, and "
            f"{fingerprint(trust.known or b'')} is on file: somebody may be in its place. If you know why it has "
            f"changed, `ftx peers remove {shlex.quote(trust.name)}` and pair or accept it anew. Nothing was sent"
        )


def _met(public: bytes, own: Identity, keys: Mapping[Method, bytes], trust: Trust, *, credential: bool) -> Met:
    """The listener with this key, which has proven a credential or not; if it is the one that the user means (G7)."""
    if Method.SSH in keys and not (credential and public == trust.known):
        raise Refused("it is not the receiver that ssh has started. Nothing was sent")
    if credential and trust.receivers and public not in trust.receivers:
        raise Refused(
            f"it holds the key in your `--secret-file`, but is not the receiver that the file names: it shows "
            f"{fingerprint(public)}. If it is one too, add that as a line to the file. Nothing was sent"
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


def _transcript(lane: Lane, dialer_hello: bytes, listener_hello: bytes) -> bytes:
    """Of what both have said: that there is TLS, and by which certificate, is part of it."""
    return proof.transcript(dialer_hello, listener_hello, encrypted=lane.encrypted, fingerprint=lane.fingerprint)


def nobody(public: bytes) -> None:
    """Nobody is on file."""


def listen(
    lane: Lane,
    identity: Identity,
    keys: Mapping[Method, bytes],
    credentials: Credentials | None,
    *,
    open_: bool,
    known: Callable[[bytes], P | None] = nobody,
    pairing: Pairing | None = None,
    address: str = "",
) -> tuple[bytes, P | None, m.Open | m.Attach] | None:
    """The listener's half, up to and with the dialer's OPEN or ATTACH: its peer id, what is on file of it,
    and that; None: it was paired.

    ``lane.deadline_s`` limits it.

    Args:
        credentials: for TLS; None: without TLS, as its user said.
        known: what is on file of the holder of a public key, who is let in then. It is asked whatever else would let
            it in (G7); but not for this very user, who is never on file.
        pairing: None: this listener does not pair.
        address: the dialer's.

    Raises:
        NotPaired: nothing lets it in.
        WrongCode: it has not proven that it has the pairing code.
        Refused: it is not whom it says.
        NotFtx, ProtocolError, NetworkError: as the bytes are.
    """
    begins_tls = lane.first_byte() == TLS
    if credentials is None:
        if begins_tls:
            raise Refused(PLAIN_HERE)
    elif begins_tls:
        lane.encrypt(*credentials)
    hello, their_frame = _expect(lane, m.Hello)
    if credentials is not None and not lane.encrypted:
        raise Refused(PLAIN_THERE)
    our_frame = lane.send(_hello(identity, receives=True))
    _check_version(hello)
    theirs, _ = _expect(lane, m.Proof, m.Pair)
    assert isinstance(hello, m.Hello)
    transcript = _transcript(lane, their_frame, our_frame)
    if isinstance(theirs, m.Pair):
        if pairing is None:
            raise Unsupported("this receiver does not pair")
        _let_pair(lane, identity, hello, transcript, theirs, pairing, address)
        return None
    assert isinstance(theirs, m.Proof)
    _check_signature(hello, theirs, transcript)
    own = hello.identity == identity.public
    on_file = None if own else known(hello.identity)
    method = proof.accept(keys, theirs.proofs, transcript)
    if method is None:
        if Method.SSH in keys:
            raise Refused(NOT_ALLOWED)  # it was started for one run, which has the key
        if own or on_file is not None:
            method = Method.KNOWN
        elif open_:
            method = Method.OPEN
        else:
            raise NotPaired(NOT_ALLOWED)
    _prove(lane, identity, keys, method, transcript)
    lane.send_grease()
    request, _ = _expect(lane, m.Open, m.Attach)
    assert isinstance(request, m.Open | m.Attach)
    return proof.peer_id(hello.identity), on_file, request


def _let_pair(
    lane: Lane, identity: Identity, hello: m.Hello, transcript: bytes, theirs: m.Pair, pairing: Pairing, address: str
) -> None:
    """The listener's half of a pairing, from the dialer's PAIR on. The dialer proves first (G7)."""
    from ftx.net.pairing import WRONG_CODE, Exchange

    assert lane.deadline_s is not None
    code = pairing.begin(lane.deadline_s)
    try:
        exchange = Exchange(Side.LISTENER, code)
        lane.send(m.Pair(exchange.element))
        keys = {Method.PAIRED: exchange.key(theirs.element)}
        proven, _ = _expect(lane, m.Proof)
        assert isinstance(proven, m.Proof)
        _check_signature(hello, proven, transcript)
        if proof.accept(keys, proven.proofs, transcript) is None:
            raise WrongCode(WRONG_CODE)
        pairing.paired(code, address, hello.identity)
    except BaseException:
        pairing.failed(code)
        raise
    _prove(lane, identity, keys, Method.PAIRED, transcript)


def _check_signature(hello: m.Hello, theirs: m.Proof, transcript: bytes) -> None:
    if not signed_by(hello.identity, theirs.signature, proof.signed(Side.DIALER, transcript)):
        raise Refused("it could not prove that it holds the key that it shows")


def _prove(lane: Lane, identity: Identity, keys: Mapping[Method, bytes], method: Method, transcript: bytes) -> None:
    """The listener's PROOF, by the method that has let the dialer in."""
    mac = proof.mac(keys[method], Side.LISTENER, method, transcript) if method in keys else bytes(32)
    signature = identity.sign(proof.signed(Side.LISTENER, transcript))
    lane.send(m.Proof(signature, (m.ProofItem(method, mac),)))


def turn_away(lane: Lane) -> None:
    """Tell somebody who speaks something else, in a line of text, what this is."""
    try:
        lane.deadline_s = time.monotonic() + m.DRAIN_S
        lane.send_raw(NOT_FTX)
        lane.drain(m.DRAIN_S)
    except NetworkError:
        pass


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
