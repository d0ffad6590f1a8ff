"""What a run is told to do: frozen dataclasses, shared by the CLI and the Python API.

A value that could not mean anything is refused here, before anything is opened or connected; what depends on the
world (a missing file, an unknown host) is not looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from ftx.errors import UsageError
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import DEFAULT_PORT, MAX_PATH

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]iB|[kKMGT]B|[kKmMgGtT]|B)?", re.ASCII)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


MAX_LANES = 64  #: of one session
#: Bytes a second. Much slower, and the 4096 bytes that a receiver takes for a sign of life would take too long.
MIN_RATE = 1024
FINGERPRINT = "ed25519:"  #: what a fingerprint begins with
_CONGESTION = re.compile(r"[!-~]{1,15}")
_PEER_NAME = re.compile(r"[^\s#\x00-\x1f\x7f][^\s\x00-\x1f\x7f]{0,63}")


class Exists(Enum):
    """What the receiver does about a different file of the same name."""

    REPLACE = "replace"  #: put the new one in its place
    KEEP = "keep"  #: leave it, skip the new one
    RENAME = "rename"  #: leave it, put the new one beside it as ``NAME.1``, ``NAME.2`` …
    FAIL = "fail"  #: leave it, fail the new one


class Compress(Enum):
    """Whether chunks are compressed on their way."""

    AUTO = "auto"  #: where that is faster, and both sides can
    NO = "no"  #: never


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


#: Gives a value in its final form, or raises ``TypeError`` or ``ValueError``, which do not name the option.
Check = Callable[[Any], Any]


def number(least: float, most: float, unit: str = "", *, whole: bool = False) -> Check:
    """A number from ``least`` to ``most``."""

    def check(value: Any) -> Any:
        if type(value) is not int and (whole or type(value) is not float):
            raise TypeError(f"{value!r} is no{' whole' if whole else ''} number")
        if not least <= value <= most:  # compared this way round, "nan" is refused too
            raise ValueError(f"{value} is not between {least} and {most}{unit}")
        return value

    return check


def truth(value: Any) -> bool:
    """True or False, and nothing that only counts as one of them: ``"no"`` would open a receiver."""
    if type(value) is not bool:
        raise TypeError(f"{value!r} is neither True nor False")
    return value


def text(value: Any) -> str:
    """A name that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no str")
    if not os.fsencode(value) or "\0" in value:
        raise ValueError(f"{value!r} is no name")
    return value


def peer_name(value: Any) -> str:
    """What a peer is called: one word, and no fingerprint."""
    name = text(value)
    if not _PEER_NAME.fullmatch(name) or name.startswith(FINGERPRINT):
        raise ValueError(f"{value!r} is no name for a peer: one word of at most 64 characters, and no fingerprint")
    return name


def path(value: Any) -> Path:
    """A path, as str, bytes or PathLike."""
    return Path(text(os.fsdecode(os.fsencode(value))))


def relative(value: Any) -> str:
    """A folder below the receiver's ``--dir``, without what changes nothing: ``a//b/./c/`` is ``a/b/c``."""
    folder = text(value) if value != "" else ""
    if folder.startswith("/"):
        raise ValueError(f"the folder {folder!r} is absolute; it must be relative, it lies below the receiver's --dir")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"the folder {folder!r} has a '..' in it; it must stay below the receiver's --dir")
    folder = "/".join(parts)
    if (length := len(os.fsencode(folder))) > MAX_PATH:
        raise ValueError(f"the folder's path has {length} bytes, where {MAX_PATH} are the most")
    return folder


def size(text: str) -> int:
    """Bytes. ``K M G T`` and ``KiB MiB …`` are powers of 1024, ``kB MB …`` powers of 1000."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size; write 256M, 1.5G, 500MB or a number of bytes")
    number, unit = found[1], found[2] or "B"
    base = 1000 if unit.endswith("B") and "i" not in unit else 1024
    factor: int = base ** _POWERS.get(unit[0].upper(), 0)
    return round(float(number) * factor) if "." in number else int(number) * factor


#: What no name of a host or user needs; ssh puts these names into commands of the user's configuration, for a shell.
_NO_NAME = frozenset("'`\"$;&<>|(){}")


def login(value: Any) -> str:
    """``[USER@]HOST`` as ssh takes it, and nothing that it, or a shell, would take for something else."""
    whole = text(value)
    user, at, host = whole.rpartition("@")
    if not host or (at and not user):
        raise ValueError(f"{whole!r} is not [USER@]HOST")
    if whole.startswith("-") or host.startswith("-"):
        raise ValueError(f"{whole!r} would be an option of ssh; no host or user begins with a dash")
    if not _NO_NAME.isdisjoint(whole) or "\\" in host or not whole.isprintable() or " " in whole:
        raise ValueError(f"{whole!r} has characters in it that no host or user has")
    return whole


def far_folder(value: Any) -> str:
    """A folder on a machine that is reached over ssh: absolute, or relative to the home folder; that, if empty."""
    folder = text(value) if value != "" else ""
    if (length := len(os.fsencode(folder))) > MAX_PATH:
        raise ValueError(f"the folder's path has {length} bytes, where {MAX_PATH} are the most")
    return folder


def congestion_name(value: Any) -> str:
    """What a kernel may call a congestion control."""
    name = text(value)
    if not _CONGESTION.fullmatch(name):
        raise ValueError(f"{value!r} is no congestion control: one word of at most 15 characters")
    return name


def command(value: Any) -> tuple[str, ...]:
    """A program and its arguments."""
    words: tuple[str, ...] = several(text)(value)
    if not words:
        raise ValueError(f"{value!r} is no command")
    return words


def not_over_ssh(value: Any) -> Any:
    """Nothing: ssh starts a receiver that lets this run in."""
    if value:
        raise ValueError(f"{value!r} is for a receiver that runs already, not for one that ssh starts")
    return value


def several(check: Check) -> Check:
    """Any number of what ``check`` takes, but not one alone."""

    def check_all(values: Any) -> tuple[Any, ...]:
        if isinstance(values, (str, bytes, os.PathLike)):
            raise TypeError(f"{values!r} must be in a list, also if it is the only one")
        return tuple(map(check, values))

    return check_all


def sources(values: Any) -> tuple[bytes, ...]:
    """What to send: paths as the file system has them, so that ``DIR/`` stays what it is."""
    found: tuple[bytes, ...] = several(os.fsencode)(values)
    if not found or any(b"\0" in path for path in found):
        raise ValueError(f"{values!r} is nothing that can be sent")
    return found


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return lambda value: None if value is None else check(value)


def checked(name: str, check: Check, value: Any) -> Any:
    """What ``check`` makes of a value.

    Raises:
        TypeError, ValueError: it means nothing; the message begins with ``name``.
    """
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from None


class _Checked:
    """Options that are checked, each by its name, when they are made."""

    __slots__ = ()
    CHECKS: ClassVar[Mapping[str, Check]]

    def checks(self) -> Mapping[str, Check]:
        """What each option may be."""
        return self.CHECKS

    def __post_init__(self) -> None:
        for name, check in self.checks().items():
            object.__setattr__(self, name, checked(name, check, getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions(_Checked):
    """What both sides are told.

    Raises:
        TypeError, ValueError: an option's value cannot mean anything; the message begins with the option's name.

    Attributes:
        port: TCP port; for a receiver 0 lets the system choose.
        timeout_s: a connection that is silent for so many seconds is dead.
        secret_file: a file with a key shared by both sides; a receiver makes a missing one.
        config_dir: where this user's identity and the receivers it trusts are kept.
        plain: without TLS, where the other side says so too: whoever is on the way can read what travels.
        tell_all: an event for each entry; otherwise only for those that fail, which is less work for a million files.
    """

    port: int = DEFAULT_PORT
    timeout_s: float = 30.0
    secret_file: Path | None = None
    config_dir: Path = field(default_factory=config_dir)
    plain: bool = False
    tell_all: bool = True

    #: ``--timeout`` reaches the kernel as milliseconds in 32 bits, of which 0 would mean something else.
    CHECKS: ClassVar[Mapping[str, Check]] = {
        "port": number(0, 65535, whole=True),
        "timeout_s": number(0.001, 86_400, " seconds"),
        "secret_file": optional(path),
        "config_dir": path,
        "plain": truth,
        "tell_all": truth,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions(CommonOptions):
    """What is told to whoever calls a receiver.

    Attributes:
        host: name or address of the receiver; with ``ssh`` ``[USER@]HOST``.
        folder: where to put the files below the receiver's ``--dir``; empty for ``--dir`` itself. With ``ssh`` it is
            absolute or relative to the far user's home folder.
        accept_new: take an ``--open`` receiver that proves nothing.
        congestion: the congestion control of each connection; None: the system's, and another where packets get lost.
        ssh: start the receiver over ssh. Its port, and what lets this side in, come that way: ``port`` does not
            count, and ``secret_file`` and ``accept_new`` are refused.
        rsh: the command for that, and its options.
        remote_ftx: the program ftx there: a name, or a path.
    """

    host: str
    folder: str = ""
    accept_new: bool = False
    congestion: str | None = None
    ssh: bool = False
    rsh: tuple[str, ...] = ("ssh",)
    remote_ftx: str = "ftx"

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **CommonOptions.CHECKS,
        "port": number(1, 65535, whole=True),
        "host": text,
        "folder": relative,
        "accept_new": truth,
        "congestion": optional(congestion_name),
        "ssh": truth,
        "rsh": command,
        "remote_ftx": text,
    }

    #: What is something else with ``ssh``.
    OVER_SSH: ClassVar[Mapping[str, Check]] = {
        "host": login,
        "folder": far_folder,
        "secret_file": not_over_ssh,
        "accept_new": not_over_ssh,
        "plain": not_over_ssh,
    }

    def checks(self) -> Mapping[str, Check]:
        return {**self.CHECKS, **self.OVER_SSH} if self.ssh else self.CHECKS


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions(CallOptions):
    """What a sender is told.

    Attributes:
        lanes: connections to use, 1 to 64; 0: ftx chooses.
        retry_for_s: give up on a broken link after so many seconds without progress; 0: do not retry.
        bwlimit: send at most so many bytes a second, over all lanes; None: as fast as it goes.
        compress: whether chunks are compressed on their way, with zstd.
        digest: the digest of chunks and receipts.
    """

    lanes: int = 0
    retry_for_s: float = 300.0
    bwlimit: int | None = None
    compress: Compress = Compress.AUTO
    digest: DigestName = DigestName.XXH3_128

    #: ``--retry-for`` travels in 32 bits.
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **CallOptions.CHECKS,
        "lanes": number(0, MAX_LANES, whole=True),
        "retry_for_s": number(0, 2**32 - 1, " seconds"),
        "bwlimit": optional(number(MIN_RATE, 2**63 - 1, " bytes a second", whole=True)),
        "compress": Compress,
        "digest": DigestName,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions(CallOptions):
    """What is told to whoever measures the path to a receiver.

    Attributes:
        lanes: connections to measure with, at most.
        dir: the folder whose disk the files come from.
        step_s: seconds that each step measures; it takes half as long again to come up to speed.
    """

    lanes: int = 4
    dir: Path = field(default_factory=Path)
    step_s: float = 2.0

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **CallOptions.CHECKS,
        "lanes": number(1, MAX_LANES, whole=True),
        "dir": path,
        "step_s": number(0.1, 5, " seconds"),
    }


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
        show_code: show a pairing code (events ``Code``), and a new one when it is over.
    """

    dir: Path = field(default_factory=Path)
    bind: tuple[str, ...] = ()
    once: bool = False
    open: bool = False
    exists: Exists | None = None
    fsync: bool = True
    reserve: int = 256 * 1024 * 1024
    expire_s: float = 7 * 86_400.0
    show_code: bool = False

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **CommonOptions.CHECKS,
        "dir": path,
        "bind": several(text),
        "once": truth,
        "open": truth,
        "exists": optional(Exists),
        "fsync": truth,
        "reserve": number(0, 2**63 - 1, " bytes", whole=True),
        "expire_s": number(0.001, 36_500 * 86_400, " seconds"),
        "show_code": truth,
    }

    @property
    def policy(self) -> Exists:
        """What ``exists`` comes to."""
        return self.exists or (Exists.RENAME if self.open else Exists.REPLACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions(_Checked):
    """What a sender that only pairs is told: where, as ``SendOptions`` says.

    Raises:
        TypeError, ValueError: an option's value cannot mean anything; the message begins with the option's name.
    """

    host: str
    port: int = DEFAULT_PORT
    timeout_s: float = 30.0
    config_dir: Path = field(default_factory=config_dir)
    plain: bool = False

    CHECKS: ClassVar[Mapping[str, Check]] = {
        name: SendOptions.CHECKS[name] for name in ("host", "port", "timeout_s", "config_dir", "plain")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteOptions(_Checked):
    """What is told to whoever shows a pairing code for the receivers of this user.

    Attributes:
        name: what to file the one under who comes with the code; empty: its address.
        config_dir: that of the receiver.
    """

    name: str = ""
    config_dir: Path = field(default_factory=config_dir)

    CHECKS: ClassVar[Mapping[str, Check]] = {"name": lambda value: value and peer_name(value), "config_dir": path}
