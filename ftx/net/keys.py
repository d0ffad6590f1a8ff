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

from ftx.errors import UsageError
from ftx.net.identity import Identity
from ftx.protocol.messages import Method

KEY_SIZE = 32
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
        return Identity(_read(path)), True
    except OSError:
        return Identity(secrets.token_bytes(KEY_SIZE)), False


def secret_key(path: Path, *, make: bool) -> bytes:
    """The key in a secret file: 32 bytes, written as 64 hexadecimal digits. A receiver makes a missing file.

    Raises:
        UsageError: it is missing, open to others, or holds something else.
    """
    try:
        if make:
            _make(path)
        return _read(path)
    except OSError as error:
        raise UsageError(f"the secret file {path}: {error.strerror}") from error


def keys(secret_file: Path | None, *, listener: bool) -> dict[Method, bytes]:
    """All keys that a side can prove or check.

    Raises:
        UsageError: one cannot be read, made, or holds something else.
    """
    return {} if secret_file is None else {Method.SECRET: secret_key(secret_file, make=listener)}


def _make(path: Path) -> None:
    if not path.exists():
        write_private(path, secrets.token_hex(KEY_SIZE).encode() + b"\n")


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


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        text = file.read(256) if stat.S_ISREG(info.st_mode) else b""
    if not stat.S_ISREG(info.st_mode):
        raise UsageError(f"{path} is not a file")
    if info.st_mode & 0o077:
        raise UsageError(f"{path} is open to others; `chmod 600` it, if it is what it should be")
    if not re.fullmatch(rb"[0-9a-fA-F]{64}\s*", text):
        raise UsageError(f"{path} does not hold a key (64 hexadecimal digits)")
    return bytes.fromhex(text.decode())
