"""Pairing: a short code that a person carries from one machine to the other becomes a key that both prove.

G7: a code is worth one guess to each who begins an exchange, whatever becomes of it, and ``PAIR_TRIES`` to all
together. So a try is on the disk before anything is answered, and a code pairs once. It is kept in a file of the
configuration folder, which every process of this user goes by: the receiver that shows one on its terminal, the
``ftx pair`` that waits beside a service, and the receiver that pairs.

The file is written in place, under a lock. Half of it after a power cut is no code, which costs nobody anything.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from ftx.errors import ProtocolError, Refused, UsageError, WrongCode
from ftx.net.identity import fingerprint, of_small_order
from ftx.net.words import WORDS
from ftx.protocol import messages as m
from ftx.protocol.session import Side

FILE = "pairing"
#: Who comes behind so many gets no turn before its time is over.
MAX_WAITING = int(m.HANDSHAKE_S / m.PAIR_S)
DIALER_ID, LISTENER_ID = b"ftx/1 dialer", b"ftx/1 listener"
TOO_MANY = "too many try to pair at this moment; try again in a while"
#: What a stranger is told, whatever is wrong with the code: also where there is none.
WRONG_CODE = "the pairing code is wrong, was used already, or has run out; `ftx pair` on its machine shows one"


def new_code() -> str:
    """A code as people read it: four digits and two different words."""
    words = secrets.SystemRandom().sample(WORDS, 2)
    return "-".join([f"{secrets.randbelow(10_000):04}", *words])


def normalised(code: str) -> str:
    """The code that a person has typed, as both sides must have it: lower case, with ``-`` between its parts."""
    return re.sub(r"[\s_-]+", "-", code.strip(" \t\r\n_-")).lower()


class Exchange:
    """One side's part: SPAKE2 over Ed25519, with the code as the password (``protocol.md``, "Pairing").

    Args:
        side: dialer or listener.
        code: normalised.
        random: so many random bytes, for the secret scalar.

    Attributes:
        element: 32 bytes for the other side.
    """

    def __init__(self, side: Side, code: str, random: Callable[[int], bytes] = os.urandom) -> None:
        # Here and not above: most runs never pair.
        from spake2 import SPAKE2_A, SPAKE2_B  # type: ignore[import-untyped]

        ours, self._theirs = (b"A", b"B") if side is Side.DIALER else (b"B", b"A")
        kind = SPAKE2_A if side is Side.DIALER else SPAKE2_B
        self._spake2 = kind(code.encode(), idA=DIALER_ID, idB=LISTENER_ID, entropy_f=random)
        # The library marks who speaks with a byte in front. On the wire the direction says that.
        message: bytes = self._spake2.start()
        self.element = message.removeprefix(ours)

    def key(self, element: bytes) -> bytes:
        """The 32 bytes that both have if both have the code; ``element`` is the other side's.

        Raises:
            ProtocolError: it is no element of the group, the neutral one, or ours sent back.
        """
        from spake2 import SPAKEError
        from spake2.ed25519_basic import NotOnCurve  # type: ignore[import-untyped]

        # The library takes two unusual encodings of the neutral element for an element of the group.
        if of_small_order(element):
            raise ProtocolError("PAIR: an element of small order")
        try:
            key: bytes = self._spake2.finish(self._theirs + element)
        except (SPAKEError, NotOnCurve, ValueError) as error:
            raise ProtocolError(f"PAIR: no element that takes part ({error})") from error
        return key


class Paired(NamedTuple):
    """Who was let in by a code, under which name, and from where it came."""

    code: str
    name: str
    fingerprint: str
    address: str


class Fate(Enum):
    """What has become of a code that is being shown."""

    GOOD = "good"
    EXPIRED = "expired"  #: nobody came in time
    VOID = "void"  #: too many wrong tries, or withdrawn
    REPLACED = "replaced"  #: another process shows another one


@dataclass(frozen=True, slots=True)
class _State:
    """What the file holds. Times are seconds since the epoch: the clock that processes share.

    Attributes:
        tries: exchanges that have begun with ``code``.
        name: what to file the holder of ``code`` under; empty: its address.
        last: the last that was paired.
    """

    code: str = ""
    expires_s: float = 0.0
    tries: int = 0
    name: str = ""
    last: Paired | None = None

    @property
    def good(self) -> bool:
        """Whether it pairs. A code that is good for longer than any was made before the clock was set back."""
        return self.code != "" and 0 < self.expires_s - time.time() <= m.CODE_S

    @classmethod
    def decode(cls, data: bytes) -> _State:
        """The state; an empty one, if what is there means nothing."""
        try:
            code, expires_s, tries, name, last = json.loads(data)
            return cls(str(code), float(expires_s), int(tries), str(name), last and Paired(*map(str, last)))
        except (ValueError, TypeError, OverflowError):
            return cls()

    def encode(self) -> bytes:
        return json.dumps([self.code, self.expires_s, self.tries, self.name, self.last]).encode()


class _File:
    """The file, open and locked."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> _State:
        return _State.decode(os.pread(self._fd, 4096, 0))

    def write(self, state: _State) -> None:
        """In place, and to the disk before this returns."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, state.encode(), 0)
        os.fsync(self._fd)


class Codes:
    """The file ``pairing`` of a configuration folder: one code at a time, for all processes of this user.

    Each method raises:
        UsageError: the file cannot be used, or is open to others.
    """

    def __init__(self, config: Path) -> None:
        self.path = config / FILE

    def make(self, name: str = "") -> str:
        """A new code, in place of any other. Whoever comes with it is filed under ``name``; empty: its address."""
        code = new_code()
        with self._locked() as file:
            file.write(_State(code, time.time() + m.CODE_S, 0, name, file.read().last))
        return code

    def begin(self) -> str | None:
        """The code, for one exchange; None if there is no good one. The try is on the disk before this returns (G7)."""
        with self._locked() as file:
            state = file.read()
            if not state.good or state.tries >= m.PAIR_TRIES:
                file.write(state)  # so that it takes as long: nobody learns whether there is a good one
                return None
            file.write(replace(state, tries=state.tries + 1))
            return state.code

    def failed(self, code: str) -> None:
        """An exchange with this code has failed. If it was the last one, the code is gone."""
        with self._locked() as file:
            state = file.read()
            if state.code == code and state.tries >= m.PAIR_TRIES:
                file.write(_State(last=state.last))

    def used(self, code: str, address: str, public: bytes, add: Callable[[str, bytes], str]) -> Paired | None:
        """Use a code up, for the holder of this key: who that is from now on. None: it pairs no more (G7).

        Args:
            add: files the key under a name, or one like it, which it gives. Where it fails the code is used up too.
        """
        with self._locked() as file:
            state = file.read()
            if not state.good or state.code != code:
                return None
            file.write(_State(last=state.last))  # first: whatever comes, it pairs no more
            peer = Paired(code, add(state.name or address, public), fingerprint(public), address)
            file.write(_State(last=peer))
            return peer

    def withdraw(self, code: str) -> None:
        """This code is shown no more."""
        with self._locked() as file:
            state = file.read()
            if state.code == code:
                file.write(_State(last=state.last))

    def look(self, code: str) -> Fate | Paired:
        """What has become of a code: whom it has paired, or else why it does no more."""
        with self._locked() as file:
            state = file.read()
        if state.last is not None and state.last.code == code:
            return state.last
        if state.code != code:
            return Fate.REPLACED if state.good else Fate.VOID
        return Fate.GOOD if state.good else Fate.EXPIRED

    @contextmanager
    def _locked(self) -> Iterator[_File]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(fd).st_mode & 0o077:
                    raise UsageError(f"{self.path} is open to others; remove it, and see who could read it")
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield _File(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}: nobody can be paired") from error


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except (OSError, UsageError) as error:
        raise Refused("this receiver cannot pair: the files in its configuration folder cannot be used") from error


class Pairing:
    """A receiver's part in pairing, for all its connections: exchanges begin one after the other, at its own pace.

    Each method raises:
        Refused: a file of the configuration folder cannot be used.

    Args:
        add: files a peer's key under a name, or one like it, which it gives back.
        on_paired: told of each.
    """

    def __init__(self, codes: Codes, add: Callable[[str, bytes], str], on_paired: Callable[[Paired], None]) -> None:
        self._codes = codes
        self._add = add
        self._on_paired = on_paired
        self._places = threading.Semaphore(MAX_WAITING)
        self._turn = threading.Lock()
        self._next_s = 0.0

    def begin(self, deadline_s: float) -> str:
        """Wait for a turn, and count the exchange: its code; one that nobody has, where none is good.

        So a stranger does not learn whether there is one.

        Raises:
            Refused: too many others wait for theirs.
        """
        # Who waits here does not hear that its connection is closed: a thread for each would be one too many (G8).
        if not self._places.acquire(blocking=False):
            raise Refused(TOO_MANY)
        try:
            if not self._turn.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
                raise Refused(TOO_MANY)
            try:
                time.sleep(max(0.0, self._next_s - time.monotonic()))
                self._next_s = time.monotonic() + m.PAIR_S
                with _usable():
                    return self._codes.begin() or new_code()
            finally:
                self._turn.release()
        finally:
            self._places.release()

    def failed(self, code: str) -> None:
        """An exchange with this code has failed."""
        with _usable():
            self._codes.failed(code)

    def paired(self, code: str, address: str, public: bytes) -> None:
        """The dialer with this key has proven that it has the code: let it in from now on.

        Raises:
            WrongCode: the code was used by another one meanwhile, or has run out.
        """
        with _usable():
            peer = self._codes.used(code, address, public, self._add)
            if peer is None:
                raise WrongCode(WRONG_CODE)
        self._on_paired(peer)
