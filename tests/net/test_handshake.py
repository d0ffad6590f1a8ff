"""The handshake, each half against a peer that cheats. G7: nobody gets in without a key."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ftx.errors import FtxError, PeerSilent, ProtocolError, Refused, Unproven, VersionMismatch
from ftx.net import handshake
from ftx.net.handshake import Met, Trust
from ftx.net.identity import Identity, fingerprint
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol import proof
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import Method, Role
from ftx.protocol.session import Side
from tests.support.lanes import both, lane_pair

KEY = b"k" * 32
DIALER, LISTENER, STRANGER = (Identity(seed * 32) for seed in (b"d", b"l", b"s"))
NOBODY, ANYONE = Trust("there"), Trust("there", anyone=True)
OPEN = m.Open(
    bytes(16), bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 1, 0, DigestName.XXH3_128, b""
)  # fmt: skip


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    """A dialer's and a listener's."""
    with lane_pair() as pair:
        yield pair


def _dial(lane: Lane, keys: dict[Method, bytes], trust: Trust = NOBODY, who: Identity = DIALER) -> Met:
    """The dialer's half, with OPEN; where it says none, it closes the lane."""
    try:
        met = handshake.dial(lane, who, keys, trust, plain=True)
    except FtxError:
        lane.close()
        raise
    lane.send(OPEN)
    return met


def _listen(
    lane: Lane,
    keys: dict[Method, bytes],
    who: Identity = LISTENER,
    *,
    open_: bool = False,
    known: Callable[[bytes], str | None] = handshake.nobody,
) -> Any:
    try:
        return handshake.listen(lane, who, keys, None, open_=open_, known=known)
    except Refused as error:
        handshake.refuse(lane, error)
        raise


SECRET = {Method.SECRET: KEY}
SSH = {Method.SSH: KEY}
STARTED = Trust("there", known=LISTENER.public)


def test_a_key_on_both_sides(lanes: tuple[Lane, Lane]) -> None:
    met, (peer, _, request) = both(lambda: _dial(lanes[0], SECRET), lambda: _listen(lanes[1], SECRET))
    assert met == Met(LISTENER.public, unproven=False)
    assert (peer, request) == (proof.peer_id(DIALER.public), OPEN)


def test_the_same_user_on_both_sides(lanes: tuple[Lane, Lane]) -> None:
    met, (peer, _, request) = both(lambda: _dial(lanes[0], {}), lambda: _listen(lanes[1], {}, DIALER))
    assert met == Met(DIALER.public, unproven=False)
    assert (peer, request) == (proof.peer_id(DIALER.public), OPEN)


ON_FILE = Trust("there", LISTENER.public)


def test_a_dialer_on_file(lanes: tuple[Lane, Lane]) -> None:
    """Without any credential, on either side."""
    on_file = {DIALER.public: "laptop"}
    met, (peer, known, _) = both(lambda: _dial(lanes[0], {}, ON_FILE), lambda: _listen(lanes[1], {}, known=on_file.get))
    assert met == Met(LISTENER.public, unproven=False)
    assert (peer, known) == (proof.peer_id(DIALER.public), "laptop")


@pytest.mark.parametrize(("keys", "open_"), [(SECRET, False), ({}, True)], ids=["a secret", "open"])
def test_g7_who_is_on_file_is_so_whatever_lets_it_in(
    lanes: tuple[Lane, Lane], keys: dict[Method, bytes], open_: bool
) -> None:
    """Its line narrows what it may do, and rights hang on the key."""
    on_file = {DIALER.public: "laptop"}
    _, (_, known, _) = both(
        lambda: _dial(lanes[0], keys, ON_FILE), lambda: _listen(lanes[1], keys, open_=open_, known=on_file.get)
    )
    assert known == "laptop"


def test_g7_who_says_to_be_on_file_and_is_not(lanes: tuple[Lane, Lane]) -> None:
    asked: list[bytes] = []
    posing = Identity(b"p" * 32)
    posing.public = DIALER.public
    told, _ = both(
        lambda: _dial(lanes[0], {}, ON_FILE, posing), lambda: _listen(lanes[1], {}, known=lambda key: asked.append(key))
    )
    assert "could not prove" in str(told)
    assert asked == []


def test_g7_others_on_file_let_nobody_in(lanes: tuple[Lane, Lane]) -> None:
    told, _ = both(
        lambda: _dial(lanes[0], {}, ON_FILE), lambda: _listen(lanes[1], {}, known={STRANGER.public: "desk"}.get)
    )
    assert str(told) == handshake.NOT_ALLOWED


@pytest.mark.parametrize("keys", [{}, {Method.SECRET: b"x" * 32}], ids=["none", "a wrong one"])
def test_g7_no_key_and_a_wrong_one(lanes: tuple[Lane, Lane], keys: dict[Method, bytes]) -> None:
    told, refused = both(lambda: _dial(lanes[0], keys), lambda: _listen(lanes[1], SECRET))
    assert isinstance(refused, Refused) and not refused.from_peer
    assert isinstance(told, Refused) and told.from_peer
    assert str(told) == handshake.NOT_ALLOWED


def test_a_one_time_key_that_came_over_ssh(lanes: tuple[Lane, Lane]) -> None:
    met, (peer, _, _) = both(lambda: _dial(lanes[0], SSH, STARTED), lambda: _listen(lanes[1], SSH))
    assert met == Met(LISTENER.public, unproven=False)
    assert peer == proof.peer_id(DIALER.public)


@pytest.mark.parametrize("keys", [{}, SECRET, {Method.SSH: b"x" * 32}], ids=["none", "another method", "a wrong one"])
@pytest.mark.parametrize("who", [STRANGER, LISTENER], ids=["a stranger", "the listener's own user"])
def test_g7_a_far_side_lets_nobody_in_but_who_has_its_key(
    lanes: tuple[Lane, Lane], keys: dict[Method, bytes], who: Identity
) -> None:
    told, refused = both(lambda: _dial(lanes[0], keys, ANYONE, who), lambda: _listen(lanes[1], SSH, open_=True))
    assert isinstance(refused, Refused) and not refused.from_peer
    assert isinstance(told, Refused) and told.from_peer


@pytest.mark.parametrize("keys", [{}, SSH], ids=["without the key", "with the key"])
@pytest.mark.parametrize("who", [STRANGER, DIALER], ids=["a stranger", "the dialer's own user"])
def test_g7_only_the_far_side_that_ssh_has_started(
    lanes: tuple[Lane, Lane], keys: dict[Method, bytes], who: Identity
) -> None:
    """Not even this very user's receiver, nor one that has got at the key and shows another identity."""
    told, _ = both(
        lambda: _dial(lanes[0], SSH, STARTED._replace(anyone=True), who=DIALER),
        lambda: _listen(lanes[1], keys, who, open_=True),
    )
    assert isinstance(told, Refused) and "ssh has started" in str(told)


def test_g7_the_far_side_must_prove_the_key_too(lanes: tuple[Lane, Lane]) -> None:
    """It is the one that is on file, which does not count here."""
    told, _ = both(lambda: _dial(lanes[0], SSH, STARTED), lambda: _listen(lanes[1], {}, LISTENER, open_=True))
    assert isinstance(told, Refused) and "ssh has started" in str(told)


def test_g7_who_says_to_be_this_user_and_is_not(lanes: tuple[Lane, Lane]) -> None:
    """It names this user's public key, and signs with its own."""
    posing = Identity(b"p" * 32)
    posing.public = LISTENER.public
    told, refused = both(lambda: _dial(lanes[0], SECRET, ANYONE, posing), lambda: _listen(lanes[1], SECRET, open_=True))
    assert isinstance(refused, Refused) and not refused.from_peer
    assert "could not prove" in str(told)


@pytest.mark.parametrize("known", [None, LISTENER.public], ids=["on first contact", "on file"])
@pytest.mark.parametrize("pose", [DIALER, LISTENER], ids=["as the dialer's user", "as the one on file"])
def test_g7_a_listener_that_shows_a_key_that_it_does_not_hold(
    lanes: tuple[Lane, Lane], known: bytes | None, pose: Identity
) -> None:
    posing = Identity(b"p" * 32)
    posing.public = pose.public
    dialled, heard = both(
        lambda: _dial(lanes[0], {}, Trust("there", known, anyone=True)),
        lambda: _listen(lanes[1], {}, posing, open_=True),
    )
    assert isinstance(dialled, Refused)
    assert not isinstance(heard, tuple)


def test_g7_a_listener_that_nothing_proves_gets_no_open(lanes: tuple[Lane, Lane]) -> None:
    """Without the user's word: refused, and not a name was said."""
    dialled, heard = both(lambda: _dial(lanes[0], {}), lambda: _listen(lanes[1], {}, open_=True))
    assert isinstance(dialled, Unproven)
    assert dialled.public == LISTENER.public and fingerprint(LISTENER.public) in str(dialled)
    assert not isinstance(heard, tuple)


def test_a_listener_on_first_contact_and_a_user_who_agrees(lanes: tuple[Lane, Lane]) -> None:
    met, (peer, _, _) = both(lambda: _dial(lanes[0], {}, ANYONE), lambda: _listen(lanes[1], {}, open_=True))
    assert met == Met(LISTENER.public, unproven=True)
    assert peer == proof.peer_id(DIALER.public)


def test_a_listener_that_is_on_file_needs_no_word(lanes: tuple[Lane, Lane]) -> None:
    trust = Trust("there", LISTENER.public)
    met, _ = both(lambda: _dial(lanes[0], {}, trust), lambda: _listen(lanes[1], {}, open_=True))
    assert met == Met(LISTENER.public, unproven=False)


@pytest.mark.parametrize("keys", [{}, SECRET], ids=["open", "with the secret"])
def test_g7_a_listener_whose_key_has_changed(lanes: tuple[Lane, Lane], keys: dict[Method, bytes]) -> None:
    """Also where the user says that anyone will do, and where it holds the secret: so do others."""
    trust = Trust("there", STRANGER.public, anyone=True)
    dialled, heard = both(lambda: _dial(lanes[0], keys, trust), lambda: _listen(lanes[1], keys, open_=True))
    assert type(dialled) is Refused
    assert all(text in str(dialled) for text in ("there", fingerprint(STRANGER.public), fingerprint(LISTENER.public)))
    assert not isinstance(heard, tuple)


def test_g7_a_secret_never_settles_for_less(lanes: tuple[Lane, Lane]) -> None:
    """Also where the key is on file: whoever gives a secret means one who has it."""
    trust = Trust("there", LISTENER.public, anyone=True)
    dialled, heard = both(lambda: _dial(lanes[0], SECRET, trust), lambda: _listen(lanes[1], {}, open_=True))
    assert isinstance(dialled, Refused)
    assert not isinstance(heard, tuple)


@pytest.mark.parametrize("receivers", [{LISTENER.public}, {LISTENER.public, b"o" * 32}])
def test_a_secret_of_this_receiver(lanes: tuple[Lane, Lane], receivers: set[bytes]) -> None:
    trust = Trust("there", receivers=frozenset(receivers))
    met, _ = both(lambda: _dial(lanes[0], SECRET, trust), lambda: _listen(lanes[1], SECRET))
    assert met == Met(LISTENER.public, unproven=False)


def test_g7_a_holder_of_the_secret_cannot_play_the_receiver(lanes: tuple[Lane, Lane]) -> None:
    trust = Trust("there", anyone=True, receivers=frozenset([b"o" * 32]))
    dialled, heard = both(lambda: _dial(lanes[0], SECRET, trust), lambda: _listen(lanes[1], SECRET))
    assert isinstance(dialled, Refused) and fingerprint(LISTENER.public) in str(dialled)
    assert not isinstance(heard, tuple)


def test_a_secret_that_the_same_user_does_not_need(lanes: tuple[Lane, Lane]) -> None:
    """It may come from a variable for all runs. Nobody else has this user's key, so nothing is settled for."""
    met, (peer, _, _) = both(lambda: _dial(lanes[0], SECRET), lambda: _listen(lanes[1], {}, DIALER))
    assert met == Met(DIALER.public, unproven=False)
    assert peer == proof.peer_id(DIALER.public)


Fake = Callable[[m.Proof, bytes], m.Proof]


def _fake_listener(lane: Lane, answer: Fake) -> list[m.Message]:
    """A listener that proves something else; what it hears after its PROOF."""
    hello, their_frame = lane.receive()
    our_frame = lane.send(m.Hello(m.MAGIC, 1, 1, secrets.token_bytes(32), LISTENER.public))
    theirs, _ = lane.receive()
    assert isinstance(hello, m.Hello) and isinstance(theirs, m.Proof)
    transcript = proof.transcript(their_frame, our_frame, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
    lane.send(answer(theirs, transcript))
    heard: list[m.Message] = []
    try:
        while True:
            heard.append(lane.receive()[0])
    except FtxError:
        return heard


def _proof(transcript: bytes, method: int, mac: bytes) -> m.Proof:
    """With the right signature."""
    signature = LISTENER.sign(proof.signed(Side.LISTENER, transcript))
    return m.Proof(signature, (m.ProofItem(method, mac),))


def _mac(transcript: bytes, method: Method = Method.SECRET, key: bytes = KEY) -> bytes:
    return proof.mac(key, Side.LISTENER, method, transcript)


FAKES: dict[str, Fake] = {
    "random": lambda _, script: _proof(script, Method.SECRET, secrets.token_bytes(32)),
    "zeros": lambda _, script: _proof(script, Method.SECRET, bytes(32)),
    "reflected": lambda theirs, script: _proof(script, *theirs.proofs[0]),
    "another method": lambda _, script: _proof(script, 3, _mac(script)),
    "another key": lambda _, script: _proof(script, Method.SECRET, _mac(script, key=b"x" * 32)),
    "replayed": lambda _, script: _proof(script, Method.SECRET, _mac(bytes(32))),
    "no signature": lambda _, script: _proof(script, Method.SECRET, _mac(script))._replace(signature=b""),
    "a reflected signature": lambda theirs, script: _proof(script, Method.SECRET, _mac(script))._replace(
        signature=theirs.signature
    ),
    "a replayed signature": lambda _, script: _proof(bytes(32), Method.SECRET, _mac(script)),
    "the dialer's label": lambda _, script: _proof(script, Method.SECRET, _mac(script))._replace(
        signature=LISTENER.sign(proof.signed(Side.DIALER, script))
    ),
}


@pytest.mark.parametrize("fake", FAKES)
def test_g7_a_listeners_fake_proof_gets_no_open(lanes: tuple[Lane, Lane], fake: str) -> None:
    dialled, heard = both(
        lambda: _dial(lanes[0], SECRET, Trust("there", LISTENER.public, anyone=True)),
        lambda: _fake_listener(lanes[1], FAKES[fake]),
    )
    assert isinstance(dialled, Refused)
    assert heard == []


REFLECTED: dict[str, Callable[[bytes, bytes], m.Proof]] = {
    "a mac of another handshake": lambda script, swapped: m.Proof(
        DIALER.sign(proof.signed(Side.DIALER, script)), proof.prove(SECRET, swapped)
    ),
    "a signature of another handshake": lambda script, swapped: m.Proof(
        DIALER.sign(proof.signed(Side.DIALER, swapped)), proof.prove(SECRET, script)
    ),
    "the listener's label": lambda script, _: m.Proof(
        DIALER.sign(proof.signed(Side.LISTENER, script)), proof.prove(SECRET, script)
    ),
    "no signature": lambda script, _: m.Proof(b"", proof.prove(SECRET, script)),
}


@pytest.mark.parametrize("what", REFLECTED)
def test_g7_a_dialer_that_reflects_or_replays_is_refused(lanes: tuple[Lane, Lane], what: str) -> None:
    dialer, listener = lanes

    def reflect() -> None:
        frame = dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), DIALER.public))
        _, theirs = dialer.receive()
        script, swapped = (
            proof.transcript(*pair, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
            for pair in ((frame, theirs), (theirs, frame))
        )
        dialer.send(REFLECTED[what](script, swapped))

    _, refused = both(reflect, lambda: handshake.listen(listener, LISTENER, SECRET, None, open_=False))
    assert isinstance(refused, Refused)


@pytest.mark.alone
def test_a_deadline_from_accept_on(lanes: tuple[Lane, Lane]) -> None:
    """A dialer that greets and then says nothing does not keep its place."""
    dialer, listener = lanes
    listener.deadline_s = time.monotonic() + 0.2
    started = time.monotonic()
    dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), DIALER.public))
    with pytest.raises(PeerSilent):
        handshake.listen(listener, LISTENER, SECRET, None, open_=False)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("least", "most"), [(2, 9), (0, 0)])
def test_no_version_in_common(lanes: tuple[Lane, Lane], least: int, most: int) -> None:
    dialer, listener = lanes
    dialer.send(m.Hello(m.MAGIC, least, most, bytes(32), DIALER.public))
    with pytest.raises(VersionMismatch, match=f"version {least} to {most}"):
        handshake.listen(listener, LISTENER, {}, None, open_=True)


def test_a_range_of_versions_with_ours_in_it(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes

    def dial() -> None:
        frame = dialer.send(m.Hello(m.MAGIC, 0, 99, bytes(32), DIALER.public))
        _, theirs = dialer.receive()
        script = proof.transcript(frame, theirs, encrypted=False, fingerprint=proof.NO_FINGERPRINT)
        dialer.send(m.Proof(DIALER.sign(proof.signed(Side.DIALER, script)), ()), OPEN)

    _, (peer, _, request) = both(dial, lambda: handshake.listen(listener, LISTENER, {}, None, open_=True))
    assert (peer, request) == (proof.peer_id(DIALER.public), OPEN)


def test_two_proofs_from_a_listener(lanes: tuple[Lane, Lane]) -> None:
    dialer, listener = lanes

    def listen() -> None:
        listener.receive()
        listener.send(m.Hello(m.MAGIC, 1, 1, bytes(32), LISTENER.public))
        listener.receive()
        listener.send(m.Proof(b"", (m.ProofItem(Method.OPEN, bytes(32)),) * 2))

    dialled, _ = both(lambda: _dial(dialer, {}, ANYONE), listen)
    assert isinstance(dialled, ProtocolError)


@pytest.mark.parametrize("error", [PeerSilent("x"), FtxError("y")], ids=["no wire code", "a wire code"])
def test_refuse_says_only_what_has_a_code(lanes: tuple[Lane, Lane], error: FtxError) -> None:
    dialer, listener = lanes
    dialer.send(m.Hello(m.MAGIC, 1, 1, bytes(32), DIALER.public))
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
