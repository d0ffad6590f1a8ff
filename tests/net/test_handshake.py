"""The handshake, each half against a peer that cheats. G7: nobody gets in without a key."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ftx.errors import FtxError, PeerSilent, ProtocolError, Refused, VersionMismatch
from ftx.net import handshake
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import Method, Role
from ftx.protocol.session import Side

KEY = b"k" * 32
IDENTITY = b"i" * 32
OPEN = m.Open(
    bytes(16), bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 1, 0, DigestName.XXH3_128, b""
)  # fmt: skip


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    """A dialer's and a listener's."""
    one, other = socket.socketpair()
    dialer, listener = Lane(one, dialer=True), Lane(other, dialer=False)
    dialer.deadline_s = listener.deadline_s = time.monotonic() + 5
    with one, other:
        yield dialer, listener


def _both(dialer: Callable[[], Any], listener: Callable[[], Any]) -> tuple[Any, Any]:
    """What each half returned or raised."""
    results: list[Any] = [None, None]

    def run(at: int, half: Callable[[], Any]) -> None:
        try:
            results[at] = half()
        except FtxError as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate((dialer, listener))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results[0], results[1]


def _dial(lane: Lane, keys: dict[Method, bytes], *, confirm: bool = False) -> Method:
    method = handshake.dial(lane, keys, IDENTITY, accept_open=confirm)
    lane.send(OPEN)
    return method


@pytest.mark.parametrize("method", [Method.RUN_KEY, Method.SECRET])
def test_a_key_on_both_sides(lanes: tuple[Lane, Lane], method: Method) -> None:
    dialer, listener = lanes
    keys = {method: KEY}
    took, (greeting, request) = _both(
        lambda: _dial(dialer, keys), lambda: handshake.listen(listener, keys, open_=False)
    )
    assert took is greeting.method is method
    assert request == OPEN
    assert greeting.peer == proof.peer_id(proof.credential(keys, method), IDENTITY)


def test_G7_no_key_and_a_wrong_one(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes

    def refuse() -> None:
        try:
            handshake.listen(listener, {Method.SECRET: KEY}, open_=False)
        except FtxError as error:
            handshake.refuse(listener, error)
            raise

    def dial() -> None:
        try:
            _dial(dialer, {Method.SECRET: b"x" * 32, Method.RUN_KEY: KEY})
        finally:
            dialer.close()

    told, refused = _both(dial, refuse)
    assert isinstance(refused, Refused) and not refused.from_peer
    assert isinstance(told, Refused) and told.from_peer
    assert str(told) == handshake.NOT_ALLOWED


def test_G7_a_listener_that_proves_nothing_gets_no_open(lanes: tuple[Lane, Lane]) -> None:
    """Without the user's word: refused, and not a name was said."""
    dialer, listener = lanes
    dialled, heard = _both(
        lambda: _close_after(dialer, lambda: _dial(dialer, {Method.RUN_KEY: KEY})),
        lambda: handshake.listen(listener, {}, open_=True),
    )
    assert isinstance(dialled, Refused)
    assert not isinstance(heard, tuple)


def test_an_open_listener_and_a_user_who_agrees(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes
    method, (greeting, _) = _both(
        lambda: _dial(dialer, {}, confirm=True), lambda: handshake.listen(listener, {}, open_=True)
    )
    assert method is greeting.method is Method.OPEN


def test_G7_a_secret_never_settles_for_less(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes
    dialled, heard = _both(
        lambda: _close_after(dialer, lambda: _dial(dialer, {Method.SECRET: KEY}, confirm=True)),
        lambda: handshake.listen(listener, {}, open_=True),
    )
    assert isinstance(dialled, Refused)
    assert not isinstance(heard, tuple)


def _close_after(lane: Lane, half: Callable[[], Any]) -> Any:
    try:
        return half()
    finally:
        lane.close()


def _fake_listener(lane: Lane, answer: Callable[[m.Proof, bytes], m.ProofItem]) -> list[m.Message]:
    """A listener without the key; what it hears after its PROOF."""
    hello, their_frame = lane.receive()
    our_frame = lane.send(m.Hello(m.MAGIC, 1, 1, secrets.token_bytes(32), bytes(32)))
    theirs, _ = lane.receive()
    assert isinstance(hello, m.Hello) and isinstance(theirs, m.Proof)
    transcript = proof.transcript(their_frame, our_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
    lane.send(m.Proof(b"", (answer(theirs, transcript),)))
    heard: list[m.Message] = []
    try:
        while True:
            heard.append(lane.receive()[0])
    except FtxError:
        return heard


FAKES: dict[str, Callable[[m.Proof, bytes], m.ProofItem]] = {
    "random": lambda _theirs, _transcript: m.ProofItem(Method.RUN_KEY, secrets.token_bytes(32)),
    "zeros": lambda _theirs, _transcript: m.ProofItem(Method.RUN_KEY, bytes(32)),
    "reflected": lambda theirs, _transcript: theirs.proofs[0],
    "another method": lambda _theirs, transcript: m.ProofItem(
        Method.SECRET, proof.mac(KEY, Side.LISTENER, Method.SECRET, transcript)
    ),
    "another key": lambda _theirs, transcript: m.ProofItem(
        Method.RUN_KEY, proof.mac(b"x" * 32, Side.LISTENER, Method.RUN_KEY, transcript)
    ),
    "replayed": lambda _theirs, _transcript: m.ProofItem(
        Method.RUN_KEY, proof.mac(KEY, Side.LISTENER, Method.RUN_KEY, bytes(32))
    ),
}


@pytest.mark.parametrize("fake", FAKES)
def test_G7_a_listeners_fake_proof_gets_no_open(lanes: tuple[Lane, Lane], fake: str) -> None:
    dialer, listener = lanes
    dialled, heard = _both(
        lambda: _close_after(dialer, lambda: _dial(dialer, {Method.RUN_KEY: KEY}, confirm=True)),
        lambda: _fake_listener(listener, FAKES[fake]),
    )
    assert isinstance(dialled, Refused)
    assert heard == []


def test_G7_a_dialer_that_reflects_is_refused(lanes: tuple[Lane, Lane]) -> None:
    """The same HELLO back, and a proof copied from another handshake of the same key."""
    dialer, listener = lanes

    def reflect() -> None:
        frame = dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), IDENTITY))
        _, theirs = dialer.receive()
        swapped = proof.transcript(theirs, frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
        dialer.send(m.Proof(b"", proof.prove({Method.RUN_KEY: KEY}, swapped)))

    _, refused = _both(reflect, lambda: handshake.listen(listener, {Method.RUN_KEY: KEY}, open_=False))
    assert isinstance(refused, Refused)


def test_a_deadline_from_accept_on(lanes: tuple[Lane, Lane]) -> None:
    """A dialer that greets and then says nothing does not keep its place."""
    dialer, listener = lanes
    listener.deadline_s = time.monotonic() + 0.2
    started = time.monotonic()
    dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), IDENTITY))
    with pytest.raises(PeerSilent):
        handshake.listen(listener, {Method.RUN_KEY: KEY}, open_=False)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("least", "most"), [(2, 9), (0, 0)])
def test_no_version_in_common(lanes: tuple[Lane, Lane], least: int, most: int) -> None:
    dialer, listener = lanes
    dialer.send(m.Hello(m.MAGIC, least, most, bytes(32), IDENTITY))
    with pytest.raises(VersionMismatch, match=f"version {least} to {most}"):
        handshake.listen(listener, {}, open_=True)


def test_a_range_of_versions_with_ours_in_it(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes
    dialer.send(m.Hello(m.MAGIC, 0, 99, bytes(32), IDENTITY))
    dialer.send(m.Proof(b"", ()))
    dialer.send(OPEN)
    greeting, request = handshake.listen(listener, {}, open_=True)
    assert (greeting.method, request) == (Method.OPEN, OPEN)


def test_two_proofs_from_a_listener(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes

    def listen() -> None:
        listener.receive()
        listener.send(m.Hello(m.MAGIC, 1, 1, bytes(32), bytes(32)))
        listener.receive()
        listener.send(m.Proof(b"", (m.ProofItem(Method.OPEN, bytes(32)),) * 2))

    dialled, _ = _both(lambda: _dial(dialer, {}, confirm=True), listen)
    assert isinstance(dialled, ProtocolError)


@pytest.mark.parametrize("error", [PeerSilent("x"), FtxError("y")], ids=["no wire code", "a wire code"])
def test_refuse_says_only_what_has_a_code(lanes: tuple[Lane, Lane], error: FtxError) -> None:
    dialer, listener = lanes
    dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), IDENTITY))
    listener.receive()
    thread = threading.Thread(target=lambda: (handshake.refuse(listener, error), listener.close()))
    thread.start()
    if error.wire:
        message, _ = dialer.receive()
        assert message == m.Error(error.wire, str(error))
        dialer.close()
    else:
        with pytest.raises(FtxError, match="closed the connection|broke"):
            dialer.receive()
    thread.join()
