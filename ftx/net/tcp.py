"""What TCP tells of a connection, and its congestion control. Only Linux says and takes all of it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ftx.errors import UsageError

#: ``struct tcp_info`` of ``linux/tcp.h``. It has only ever grown at its end: what an older kernel has is shorter.
_ROUND_TRIP = struct.Struct("=68xI")  #: in microseconds
#: Also, in this order: repeated segments, acknowledged bytes, bytes that were not sent yet, the shortest round trip,
#: and segments with data. Linux 4.6 and later have them all.
_SEEN = struct.Struct("=68xI28xI16xQ16xII4xI")
NEVER_S = (2**32 - 1) / 1e6  #: for the shortest round trip, when none was measured yet
#: Where the system lists what may be chosen: by this user, and by who may administer the network.
_ALLOWED, _AVAILABLE = (
    Path(f"/proc/sys/net/ipv4/tcp_{which}_congestion_control") for which in ("allowed", "available")
)
_NAME_BYTES = 16  #: of a congestion control, ``TCP_CA_NAME_MAX``


class Tcp(Protocol):
    """A socket, or TLS over one."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...
    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A connection at a moment, as the sending TCP has it; counts are since it began.

    Attributes:
        round_trip_s, shortest_s: to the peer and back, now and at its best.
        segments: sent with data, repeated ones too.
        repeated: of these, because they were taken for lost.
        acked: bytes that have arrived.
        unsent: bytes that wait for the path.
    """

    round_trip_s: float
    shortest_s: float
    segments: int
    repeated: int
    acked: int
    unsent: int


def _info(sock: Tcp, size: int) -> bytes:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    except (AttributeError, OSError):  # no such system, no TCP, no connection any more
        return b""


def round_trip_s(sock: Tcp) -> float:
    """Seconds to the peer and back, at best: a busy machine is not far away. 0 where the system does not tell."""
    if (whole := seen(sock)) is not None and whole.shortest_s < NEVER_S:
        return whole.shortest_s
    info = _info(sock, _ROUND_TRIP.size)
    if len(info) < _ROUND_TRIP.size:
        return 0.0
    (micros,) = _ROUND_TRIP.unpack(info)
    return float(micros) / 1e6


def seen(sock: Tcp) -> Seen | None:
    """The connection at this moment; None where the system does not tell all of it."""
    info = _info(sock, _SEEN.size)
    if len(info) < _SEEN.size:
        return None
    round_trip, repeated, acked, unsent, shortest, segments = _SEEN.unpack(info)
    return Seen(round_trip / 1e6, shortest / 1e6, segments, repeated, acked, unsent)


def congestion(sock: Tcp) -> str:
    """The name of its congestion control; empty where the system does not tell."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES).rstrip(b"\0").decode("ascii")
    except (AttributeError, OSError):
        return ""


def choose(sock: Tcp, name: str) -> None:
    """Give a connection this congestion control.

    Raises:
        UsageError: it cannot have it; says which it can have.
    """
    if not hasattr(socket, "TCP_CONGESTION"):
        raise UsageError("this system lets no program choose how TCP avoids congestion")
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode("ascii"))
    except PermissionError:
        why = f"this user may not choose the congestion control {name!r}"
        raise UsageError(f"{why}{_listed(_ALLOWED, 'it may choose')}") from None
    except OSError:
        raise UsageError(f"this kernel has no congestion control {name!r}{_listed(_AVAILABLE, 'it has')}") from None


def check(name: str) -> None:
    """Raises ``UsageError`` if connections of this process cannot have this congestion control."""
    with socket.socket() as sock:
        choose(sock, name)


def _listed(path: Path, verb: str) -> str:
    try:
        return f"; {verb} {', '.join(path.read_text().split())}"
    except OSError:
        return ""
