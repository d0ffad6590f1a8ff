"""What a run is told to do: frozen dataclasses, shared by the CLI and the Python API."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ftx.errors import UsageError
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import DEFAULT_PORT


class Exists(Enum):
    """What the receiver does about a different file of the same name."""

    REPLACE = "replace"  #: put the new one in its place
    KEEP = "keep"  #: leave it, skip the new one
    RENAME = "rename"  #: leave it, put the new one beside it as ``NAME.1``, ``NAME.2`` …
    FAIL = "fail"  #: leave it, fail the new one


def config_dir() -> Path:
    """The configuration folder: ``$FTX_CONFIG_DIR``, else ``$XDG_CONFIG_HOME/ftx``, else ``~/.config/ftx``."""
    if own := os.environ.get("FTX_CONFIG_DIR"):
        return Path(own)
    if xdg := os.environ.get("XDG_CONFIG_HOME"):
        return Path(xdg) / "ftx"
    try:
        return Path.home() / ".config" / "ftx"
    except RuntimeError as error:
        raise UsageError("this user has no home folder; say where keys are kept with $FTX_CONFIG_DIR") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """What both sides are told.

    Attributes:
        port: TCP port; for a receiver 0 lets the system choose.
        timeout_s: a connection that is silent for so many seconds is dead.
        secret_file: a file with a key shared by both sides; a receiver makes a missing one.
        config_dir: where the run key and this user's identity are kept.
    """

    port: int = DEFAULT_PORT
    timeout_s: float = 30.0
    secret_file: Path | None = None
    config_dir: Path = field(default_factory=config_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions(CommonOptions):
    """What a sender is told.

    Attributes:
        host: name or address of the receiver.
        lanes: connections to use, 1 to 64; 0: ftx chooses.
        folder: where to put the files below the receiver's ``--dir``; empty for ``--dir`` itself.
        retry_for_s: give up on a broken link after so many seconds without progress; 0: do not retry.
        accept_new: take an ``--open`` receiver that proves nothing.
        digest: the digest of chunks and receipts.
    """

    host: str
    folder: str = ""
    lanes: int = 0
    retry_for_s: float = 300.0
    accept_new: bool = False
    digest: DigestName = DigestName.XXH3_128


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveOptions(CommonOptions):
    """What a receiver is told.

    Attributes:
        dir: where files go; made if missing.
        bind: addresses to listen on; empty for all, IPv6 and IPv4.
        once: end when the first sender's job is over.
        open: take files from anyone who can reach the port.
        exists: what happens to a different file of the same name; None: it is replaced, but never by strangers
            (``open``), whose file gets another name.
        fsync: wait for the disk before a receipt is given.
        reserve: bytes of free space to leave on the disk.
        expire_s: what nobody has touched for so many seconds, and was not finished, is removed.
    """

    dir: Path = field(default_factory=Path)
    bind: tuple[str, ...] = ()
    once: bool = False
    open: bool = False
    exists: Exists | None = None
    fsync: bool = True
    reserve: int = 256 * 1024 * 1024
    expire_s: float = 7 * 86_400.0

    @property
    def policy(self) -> Exists:
        """What ``exists`` comes to."""
        return self.exists or (Exists.RENAME if self.open else Exists.REPLACE)
