"""What a run tells the program that started it: one frozen dataclass for each JSON event of ``cli.md``.

Sizes are bytes, times seconds. Paths are bytes as the sender's file system has them.
"""

from __future__ import annotations

import base64
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar


class Event:
    """Something worth telling. ``type`` is the JSON event's type."""

    __slots__ = ()
    type: ClassVar[str] = ""

    def as_json(self) -> dict[str, Any]:
        """The event as the JSON object of ``cli.md``, with the time of this call."""
        result: dict[str, Any] = {"type": self.type, "time": time.time()}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # each kind of event is one
            value = getattr(self, field.name)
            if isinstance(value, bytes):
                result[field.name] = value.decode("utf-8", "replace")
                try:
                    value.decode("utf-8")
                except UnicodeDecodeError:
                    result[field.name + "_b64"] = base64.b64encode(value).decode()
            else:
                result[field.name] = _readable(value) if isinstance(value, str) else value
        return result


def _readable(text: str) -> str:
    """What strict readers of JSON take: a byte of a name that is not UTF-8 is no character for them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


OnEvent = Callable[[Event], None]

#: Events that wait to be told; at more, nothing is received that could make more (G8).
MAX_UNTOLD = 4096


class Untold:
    """Events on their way from a receiver's threads to the one that tells them. Putting one in never waits."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._told = 0

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> Iterator[Event]:
        """Those that wait now, each as it is told."""
        self._told = len(self._events)
        for _ in range(self._told):
            yield self._events.popleft()

    @property
    def many(self) -> bool:
        """There were many the last time, and so there will be soon."""
        return self._told >= MAX_UNTOLD // 4

    @property
    def full(self) -> bool:
        """Nobody looks: whoever could make more waits."""
        return len(self._events) >= MAX_UNTOLD


@dataclass(frozen=True, slots=True)
class Start(Event):
    """First of all. ``role`` is ``"send"``, ``"receive"`` or ``"bench"``."""

    type: ClassVar[str] = "start"
    version: str
    protocol: int
    role: str


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The receiver is ready for senders.

    ``addresses`` are (host, port) pairs, ``fingerprint`` is that of its key, ``peers`` are on file now.
    """

    type: ClassVar[str] = "listening"
    addresses: tuple[tuple[str, int], ...]
    dir: str
    pid: int
    fingerprint: str = ""
    peers: int = 0


@dataclass(frozen=True, slots=True)
class SessionUp(Event):
    """A session stands. ``peer`` is an address; ``session`` is hexadecimal.

    ``lanes`` are a sender's at first, and those that a receiver has granted. ``via`` is ``"direct"``, or ``"ssh"``
    where it goes through ssh itself.
    """

    type: ClassVar[str] = "session"
    session: str
    peer: str
    encrypted: bool
    lanes: int
    via: str = "direct"


@dataclass(frozen=True, slots=True)
class Tuned(Event):
    """The sender has changed how it uses the path: it has ``lanes`` now, the last with this ``congestion`` control."""

    type: ClassVar[str] = "tuned"
    lanes: int
    congestion: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """About once a second. Totals are None until they are known."""

    type: ClassVar[str] = "progress"
    bytes_total: int | None
    bytes_done: int
    bytes_sent: int
    bytes_reused: int
    files_total: int | None
    files_done: int


@dataclass(slots=True, unsafe_hash=True)  # frozen would take three times as long, for every file
class EntryEnded(Event):
    """An entry ended; ``state`` is ``"done"``, ``"skipped"`` or ``"failed"``, ``code`` an exit code.

    ``kind`` is ``"file"``, ``"folder"``, ``"link"`` or ``"other"``.
    """

    type: ClassVar[str] = "entry"
    path: bytes
    kind: str
    state: str
    size: int
    sent: int
    reused: int
    digest: str | None
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Warn(Event):
    """Something that a person should know and that does not fail the run."""

    type: ClassVar[str] = "warning"
    message: str
    path: bytes | None = None


@dataclass(frozen=True, slots=True)
class Retry(Event):
    """The link broke; the sender tries again after ``wait_s``."""

    type: ClassVar[str] = "retry"
    reason: str
    wait_s: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The receiver's disk is full: nothing is sent until there is room."""

    type: ClassVar[str] = "paused"
    reason: str


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """There is room again, or the session is over. ``reason`` is why it had paused."""

    type: ClassVar[str] = "resumed"
    reason: str


@dataclass(frozen=True, slots=True)
class SessionEnd(Event):
    """Receiver: a session is over. ``bytes_received`` counts payload, damaged chunks too."""

    type: ClassVar[str] = "session_end"
    session: str
    peer: str
    code: int
    message: str
    bytes_received: int
    bytes_reused: int
    files: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Code(Event):
    """A pairing code that others may come with for ``valid_s`` seconds, once. ``reason``: what became of the last."""

    type: ClassVar[str] = "code"
    code: str
    valid_s: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Paired(Event):
    """Two sides know each other from here on. ``name`` is what the other is on file as, ``address`` where it is."""

    type: ClassVar[str] = "paired"
    fingerprint: str
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """Last of all. ``files`` ended well, of which ``skipped`` needed nothing; ``code`` is the exit code.

    Of those skipped, ``kept`` are different there, and the receiver keeps what it has. ``left_out`` counts what is
    never sent, and is part of nothing else: sockets, devices, names that are ftx's own. ``bytes_wire`` is what
    ``bytes_sent`` came to on the wire: less, where chunks were compressed.
    """

    type: ClassVar[str] = "finished"
    code: int
    message: str
    files: int = 0
    failed: int = 0
    skipped: int = 0
    bytes_total: int = 0
    bytes_sent: int = 0
    bytes_reused: int = 0
    seconds: float = 0.0
    kept: int = 0
    left_out: int = 0
    bytes_wire: int = 0


@dataclass(frozen=True, slots=True)
class Measured(Event):
    """Bench: one step. ``step`` is ``"path"``, ``"receiver_disk"`` or ``"sender_disk"``; ``rate`` is bytes a second.

    Shares, from 0 to 1, are of the time of the threads that carry the data: on a processor or in the queue for one,
    waiting for bytes, for the disk. ``sent_again`` is the share of packets. What is not known is None. The lanes of a
    ``sender_disk`` are its readers.
    """

    type: ClassVar[str] = "measured"
    step: str
    lanes: int
    bytes: int
    seconds: float
    rate: int
    round_trip_s: float | None = None
    sent_again: float | None = None
    sender_processor: float | None = None
    receiver_processor: float | None = None
    receiver_waiting: float | None = None
    receiver_disk: float | None = None


@dataclass(frozen=True, slots=True)
class BenchFinished(Finished):
    """Bench: last of all. Nothing was sent that is kept.

    ``limit`` is one of ``verdict.Limit``, ``rate`` the bytes a second of a transfer, with ``lanes``; ``one_lane`` and
    ``path`` are the rates without a disk, of one lane and at best. ``more_help``: the most lanes were the fastest.
    ``round_trip_s`` is that of the path at rest, 0 where the system does not tell.
    """

    limit: str | None = None
    rate: int = 0
    lanes: int = 0
    one_lane: int = 0
    path: int = 0
    more_help: bool = False
    round_trip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Unfinished(Event):
    """Status: an unfinished transfer. ``peer`` is hexadecimal, ``held`` what the journal lists.

    ``running``: a session has it. ``discarded``: it was removed just now.
    """

    type: ClassVar[str] = "unfinished"
    path: bytes
    size: int
    held: int
    age_s: float
    peer: str
    running: bool
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class StatusFinished(Finished):
    """Status: last of all. ``unfinished`` are there still, ``discarded`` were removed, ``failed`` could not be."""

    unfinished: int = 0
    discarded: int = 0


@dataclass(frozen=True, slots=True)
class PairFinished(Finished):
    """Pairing: last of all. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class OwnKey(Event):
    """Peers: this user's own fingerprint, by which others know it."""

    type: ClassVar[str] = "identity"
    fingerprint: str


@dataclass(frozen=True, slots=True)
class MayCome(Event):
    """Peers: who may come here. ``dir`` is below the receiver's, empty for all of it; sizes are null for any."""

    type: ClassVar[str] = "peer"
    name: str
    fingerprint: str
    rights: tuple[str, ...]
    dir: bytes
    quota: int | None
    max_size: int | None


@dataclass(frozen=True, slots=True)
class KnownReceiver(Event):
    """Peers: a receiver that this user trusts, by the name it is called."""

    type: ClassVar[str] = "receiver"
    name: str
    fingerprint: str
