"""What proves who a side is and which keys it holds, over all that both have said (``protocol.md``, "Handshake").

Pure: keys and nonces come in as bytes. Each proof is HMAC-SHA256 over a label that names its maker, the
method and the transcript, so that none can be replayed in another session, reflected to its maker, or
moved between plain and TLS. The same goes for what each side signs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from ftx.protocol.messages import Method, ProofItem
from ftx.protocol.session import Side

NO_FINGERPRINT = bytes(32)  #: the listener's certificate fingerprint, in plain mode


def transcript(dialer_hello: bytes, listener_hello: bytes, *, encrypted: bool, fingerprint: bytes) -> bytes:
    """32 bytes that stand for the handshake so far.

    ``dialer_hello`` and ``listener_hello`` are the whole HELLO frames as they were on the wire;
    ``fingerprint`` is SHA-256 of the listener's certificate, ``NO_FINGERPRINT`` in plain mode.
    """
    hash_ = hashlib.sha256(b"ftx/1 transcript" + (b"\x01" if encrypted else b"\x00"))
    for part in (dialer_hello, listener_hello, fingerprint):
        hash_.update(len(part).to_bytes(4, "big") + part)
    return hash_.digest()


def signed(maker: Side, transcript_: bytes) -> bytes:
    """What ``maker`` (dialer or listener) signs to prove that it is whom its HELLO names (G7)."""
    return b"ftx/1 signature " + maker.value.encode() + b"\0" + transcript_


def mac(key: bytes, maker: Side, method: int, transcript_: bytes) -> bytes:
    """The proof of ``maker`` (dialer or listener) that it holds ``key``: 32 bytes."""
    label = b"ftx/1 proof " + maker.value.encode() + b"\0" + bytes([method])
    return hmac.digest(key, label + transcript_, "sha256")


def prove(keys: Mapping[Method, bytes], transcript_: bytes) -> tuple[ProofItem, ...]:
    """The dialer's proofs, one for each key it has."""
    return tuple(ProofItem(method, mac(key, Side.DIALER, method, transcript_)) for method, key in keys.items())


def accept(keys: Mapping[Method, bytes], proofs: tuple[ProofItem, ...], transcript_: bytes) -> Method | None:
    """The first of the dialer's proofs that one of the listener's keys confirms; None if none does (G7)."""
    for item in proofs:
        for method, key in keys.items():
            if item.method == method and hmac.compare_digest(mac(key, Side.DIALER, method, transcript_), item.mac):
                return method
    return None


def confirmed(keys: Mapping[Method, bytes], answer: ProofItem, transcript_: bytes) -> Method | None:
    """The method of the listener's proof, if it shows that it holds that key of ours; else None (G7)."""
    for method, key in keys.items():
        if answer.method == method and hmac.compare_digest(mac(key, Side.LISTENER, method, transcript_), answer.mac):
            return method
    return None


def peer_id(identity: bytes) -> bytes:
    """What partials, eviction and rights hang on: 32 bytes. A peer is a key, whatever let it in."""
    return hashlib.sha256(b"ftx/1 peer" + identity).digest()


def job_id(sources: list[bytes], destination: bytes) -> bytes:
    """What makes two sessions the same job: absolute source paths and the destination; 32 bytes."""
    hash_ = hashlib.sha256(b"ftx/1 job")
    for part in (*sources, destination):
        hash_.update(len(part).to_bytes(4, "big") + part)
    return hash_.digest()
