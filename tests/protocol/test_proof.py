"""Who is let in: right proofs are taken, and every proof that was moved, mirrored or replayed is refused."""

from __future__ import annotations

import itertools

import pytest

from ftx.protocol import codec, proof
from ftx.protocol import messages as m
from ftx.protocol.messages import Method, ProofItem
from ftx.protocol.session import Side

KEY, OTHER = b"k" * 32, b"o" * 32
KEYS = {Method.SECRET: KEY}
LATER = Method.KNOWN  # has no key; any number does for a second one


def hello(nonce: bytes, identity: bytes = bytes(32)) -> bytes:
    return codec.encode(m.Hello(m.MAGIC, 1, 1, nonce * 32, identity))


DIALER, LISTENER = hello(b"d", b"i" * 32), hello(b"l")


def transcript(
    dialer: bytes = DIALER, listener: bytes = LISTENER, *, encrypted: bool = False, fingerprint: bytes = bytes(32)
) -> bytes:
    return proof.transcript(dialer, listener, encrypted=encrypted, fingerprint=fingerprint)


def answer(method: Method = Method.SECRET, key: bytes = KEY, script: bytes | None = None) -> ProofItem:
    return ProofItem(method, proof.mac(key, Side.LISTENER, method, script or transcript()))


# --- Proofs --------------------------------------------------------------------------------------------


def test_g7_who_holds_the_key_is_let_in_and_is_known_for_the_listener() -> None:
    proofs = proof.prove(KEYS, transcript())
    assert [item.method for item in proofs] == [Method.SECRET]
    assert proof.accept(KEYS, proofs, transcript()) is Method.SECRET
    assert proof.confirmed(KEYS, answer(), transcript())


def test_g7_one_key_of_several_is_enough() -> None:
    dialer = {LATER: OTHER, Method.SECRET: KEY}
    listener = {LATER: b"another" * 5, Method.SECRET: KEY}
    assert proof.accept(listener, proof.prove(dialer, transcript()), transcript()) is Method.SECRET
    assert proof.accept(dialer, proof.prove(dialer, transcript()), transcript()) is LATER  # the first


def test_g12_a_method_of_a_later_version_is_passed_over() -> None:
    (item,) = proof.prove(KEYS, transcript())
    later = ProofItem(200, item.mac)
    assert proof.accept(KEYS, (later, item), transcript()) is Method.SECRET
    assert proof.accept(KEYS, (later,), transcript()) is None
    assert not proof.confirmed(KEYS, later, transcript())


def test_g7_without_a_proof_nobody_is_let_in() -> None:
    assert proof.accept(KEYS, (), transcript()) is None
    assert proof.accept({}, proof.prove(KEYS, transcript()), transcript()) is None
    assert not proof.confirmed({}, answer(), transcript())


def test_g7_another_key_is_refused() -> None:
    assert proof.accept(KEYS, proof.prove({Method.SECRET: OTHER}, transcript()), transcript()) is None
    assert not proof.confirmed(KEYS, answer(key=OTHER), transcript())


def test_g7_each_bit_of_a_proof_counts() -> None:
    (item,) = proof.prove(KEYS, transcript())
    for at in range(32):
        damaged = bytearray(item.mac)
        damaged[at] ^= 1
        assert proof.accept(KEYS, (item._replace(mac=bytes(damaged)),), transcript()) is None
    for wrong in (b"", item.mac[:31], item.mac + b"\0"):
        assert proof.accept(KEYS, (item._replace(mac=wrong),), transcript()) is None


def test_g7_a_proof_for_one_method_is_none_for_another() -> None:
    both = {LATER: KEY, Method.SECRET: KEY}
    (item,) = proof.prove(KEYS, transcript())
    assert proof.accept(both, (item._replace(method=LATER),), transcript()) is None
    assert not proof.confirmed(both, answer()._replace(method=LATER), transcript())


def test_g7_a_proof_cannot_be_sent_back_to_who_made_it() -> None:
    """A listener without the key that mirrors the dialer's proof, and a dialer that mirrors the listener's."""
    (item,) = proof.prove(KEYS, transcript())
    assert not proof.confirmed(KEYS, item, transcript())
    assert proof.accept(KEYS, (answer(),), transcript()) is None


OTHER_TRANSCRIPTS = {
    "new dialer nonce": transcript(hello(b"e", b"i" * 32)),
    "new listener nonce": transcript(listener=hello(b"m")),
    "another identity": transcript(hello(b"d", b"j" * 32)),
    "HELLOs swapped": transcript(LISTENER, DIALER),
    "TLS for plain": transcript(encrypted=True),
    "another certificate": transcript(encrypted=True, fingerprint=b"f" * 32),
    "a fingerprint in plain": transcript(fingerprint=b"f" * 32),
    "a byte moved from one HELLO to the other": transcript(DIALER + LISTENER[:1], LISTENER[1:]),
    "a byte moved to the fingerprint": transcript(listener=LISTENER[:-1], fingerprint=LISTENER[-1:] + bytes(32)),
}


@pytest.mark.parametrize("name", OTHER_TRANSCRIPTS)
def test_g7_a_proof_is_none_in_another_handshake(name: str) -> None:
    other = OTHER_TRANSCRIPTS[name]
    assert proof.accept(KEYS, proof.prove(KEYS, transcript()), other) is None
    assert proof.accept(KEYS, proof.prove(KEYS, other), transcript()) is None
    assert not proof.confirmed(KEYS, answer(), other)
    assert not proof.confirmed(KEYS, answer(script=other), transcript())


def test_all_transcripts_differ() -> None:
    assert len({*OTHER_TRANSCRIPTS.values(), transcript()}) == len(OTHER_TRANSCRIPTS) + 1
    assert {len(value) for value in OTHER_TRANSCRIPTS.values()} == {32}


def test_g7_what_is_signed_names_its_maker_and_the_handshake() -> None:
    cases = itertools.product((Side.DIALER, Side.LISTENER), (transcript(), *OTHER_TRANSCRIPTS.values()))
    found = [proof.signed(*case) for case in cases]
    assert len(set(found)) == len(found)


def test_all_macs_differ() -> None:
    cases = itertools.product((KEY, OTHER), (Side.DIALER, Side.LISTENER), Method, (transcript(), bytes(32)))
    macs = [proof.mac(*case) for case in cases]
    assert len(set(macs)) == len(macs)


# --- Names that are made of keys -----------------------------------------------------------------------


def test_peer_ids_are_distinct() -> None:
    keys = [bytes([value]) * 32 for value in (1, 2, 3)]
    found = {proof.peer_id(key) for key in keys}
    assert len(found) == 3 and not found & set(keys)


def test_job_ids_of_ambiguous_names_are_distinct() -> None:
    jobs: list[tuple[list[bytes], bytes]] = [
        ([], b"abc"),
        ([b""], b"abc"),
        ([b"a"], b"bc"),
        ([b"ab"], b"c"),
        ([b"abc"], b""),
        ([b"a", b"b"], b"c"),
        ([b"b", b"a"], b"c"),
        ([b"a", b"b", b"c"], b""),
        ([b"", b"abc"], b""),
        ([b"a\0\0\0\1b"], b"c"),
    ]
    assert len({proof.job_id(*job) for job in jobs}) == len(jobs)
    assert proof.job_id([b"a", b"b"], b"c") == proof.job_id([b"a", b"b"], b"c")
