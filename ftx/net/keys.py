"""The keys of this user on this machine: the identity and the secret file.

Each is made at first use, whole and with mode 0600 from its first moment on (written aside, then linked), so
that two processes that start at once agree on one.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import NamedTuple

from ftx.errors import UsageError
from ftx.net.identity import Identity, fingerprint, public_key

KEY_SIZE = 32
MOST = 16 * 1024  #: bytes of a file that are read
IDENTITY = "identity"


def identity(config: Path) -> tuple[Identity, bool]:
    """The key pair that names this user on this machine; and whether the next run has the same.

    Where the configuration folder cannot be used, one for this process only: transfers work where a credential lets
    it in, but a later run cannot resume what this one leaves.

    Raises:
        UsageError: what is there is open to others, or is no key.
    """
    path = config / IDENTITY
    try:
        config.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        return Identity(_key(path, read_private(path).rstrip())), True
    except OSError:
        return Identity(secrets.token_bytes(KEY_SIZE)), False


class Secret(NamedTuple):
    """What a secret file holds.

    Attributes:
        key: 32 bytes that all who have the file share.
        receivers: the public keys of those who may be the receiver (G7); empty: whoever has the key.
    """

    key: bytes
    receivers: frozenset[bytes] = frozenset()


def secret(path: Path, *, make_for: bytes | None = None) -> Secret:
    """Read a secret file: the key as 64 hexadecimal digits, and the fingerprints of its receivers, a line each.

    Args:
        make_for: a receiver's public key: it makes a missing file, with its fingerprint.

    Raises:
        UsageError: it is missing, open to others, or holds something else.
    """
    try:
        if make_for is not None:
            _make(path, fingerprint(make_for).encode() + b"\n")
        first, *more = read_private(path).rstrip().split(b"\n")
    except OSError as error:
        raise UsageError(f"the secret file {path}: {error.strerror}") from error
    key = _key(path, first.rstrip())
    try:
        return Secret(key, frozenset(public_key(line.rstrip().decode()) for line in more))
    except ValueError as error:
        raise UsageError(f"{path}: behind the key there are only fingerprints of receivers, a line each") from error


def _make(path: Path, more: bytes = b"") -> None:
    if not path.exists():
        write_private(path, secrets.token_hex(KEY_SIZE).encode() + b"\n" + more)


def write_private(path: Path, text: bytes) -> None:
    """Make a file, whole and for its owner alone from its first moment on; unless another process was faster.

    Raises:
        OSError: it cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.link(temporary, path)
    except FileExistsError:
        pass  # its file counts
    finally:
        temporary.unlink()


def read_private(path: Path) -> bytes:
    """What a file of this user's alone holds.

    Raises:
        UsageError: it is open to others, or no file.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        text = file.read(MOST) if stat.S_ISREG(info.st_mode) else b""
    if not stat.S_ISREG(info.st_mode):
        raise UsageError(f"{path} is not a file")
    if info.st_mode & 0o077:
        raise UsageError(f"{path} is open to others; `chmod 600` it, if it is what it should be")
    return text


def _key(path: Path, text: bytes) -> bytes:
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        raise UsageError(f"{path} does not hold a key (64 hexadecimal digits)")
    return bytes.fromhex(text.decode())
