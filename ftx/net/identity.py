"""A key pair that *is* a peer: Ed25519 (RFC 8032). Its public key names it, its signature proves that it is there."""

from __future__ import annotations

import base64
import hashlib

from ftx.options import FINGERPRINT

#: What a fingerprint begins with.
#: The y coordinates of the points of order 1, 2, 4 and 8, in every encoding; the highest bit is the sign of x.
_P = 2**255 - 19
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset(y.to_bytes(32, "little") for y in (0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8))


class Identity:
    """This side's key pair.

    Args:
        seed: 32 random bytes, the private key.

    Attributes:
        key: the key pair itself.
        public: 32 bytes that name it.
        tag_key: 32 bytes that only this side knows, for source tags.
    """

    def __init__(self, seed: bytes) -> None:
        # Here and not above: help and wrong usage need none of it.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self.key.public_key().public_bytes_raw()
        self.tag_key = hashlib.sha256(b"ftx/1 source tags" + seed).digest()

    def pem(self) -> bytes:
        """The private key as TLS libraries read it (RFC 8410)."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, data: bytes) -> bytes:
        """64 bytes that only the holder of this key can make."""
        return self.key.sign(data)


def signed_by(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the holder of the key pair whose public key this is has signed ``data`` (G7)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if of_small_order(public):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def of_small_order(public: bytes) -> bool:
    """Whether anybody can sign for this key: its point lies in the small subgroup of the curve."""
    return len(public) == 32 and public[:31] + bytes([public[31] & 0x7F]) in _SMALL_ORDER


def fingerprint(public: bytes) -> str:
    """A public key as people read and compare it: a key is as short as a digest of it, so it is all of it."""
    return FINGERPRINT + base64.urlsafe_b64encode(public).decode().rstrip("=")


def public_key(text: str) -> bytes:
    """The public key that a fingerprint stands for.

    Raises:
        ValueError: it is none.
    """
    key = base64.b64decode(text.removeprefix(FINGERPRINT) + "=", altchars=b"-_", validate=True)
    if len(key) != 32 or fingerprint(key) != text:
        raise ValueError(f"{text!r} is no fingerprint")
    return key
