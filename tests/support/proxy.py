"""A TCP relay that counts what passes and breaks it at an exact byte.

``up`` is what the dialer says, ``down`` what the listener says. A fault acts when exactly ``at`` bytes of its
direction have been passed on, on one connection (the first, unless told otherwise).
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

PIECE = 256 * 1024
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Cut:
    """Break the connection: with a reset, or with an orderly end in both directions."""

    at: int
    reset: bool = True


@dataclass(frozen=True, slots=True)
class Flip:
    """Damage the byte at ``at``."""

    at: int
    mask: int = 0x10


@dataclass(frozen=True, slots=True)
class Freeze:
    """From here on nothing passes in either direction, not even the end; the connections stay open."""

    at: int


@dataclass(frozen=True, slots=True)
class Stall:
    """From here on nothing passes in this direction."""

    at: int


@dataclass(frozen=True, slots=True)
class HalfClose:
    """End this direction; the other goes on."""

    at: int


@dataclass(frozen=True, slots=True)
class Dribble:
    """From here on ``step`` bytes at a time, with a wait after each."""

    at: int = 0
    step: int = 1
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """Call ``function``: to kill a process at this byte, or to look at the clock."""

    at: int
    function: Callable[[], object]


Fault = Cut | Flip | Freeze | Stall | HalfClose | Dribble | Call


class _Gone(Exception):
    """This link is over."""


@dataclass(slots=True)
class Way:
    """One direction of a link."""

    source: socket.socket
    sink: socket.socket
    faults: list[Fault]
    count: int = 0
    step: int = PIECE
    wait_s: float = 0.0
    open: bool = True
    seen: bytearray | None = None  #: all that has passed, where it is recorded


@dataclass(slots=True)
class Link:
    """One relayed connection. Times are monotonic."""

    up: Way
    down: Way
    started_s: float = field(default_factory=time.monotonic)
    over: bool = False


class Proxy:
    """Relays to ``target`` until the with-block ends.

    Args:
        target: (host, port); may be changed for later connections.
        up, down: faults of the connection ``on``.
        on: number of the connection that has the faults, the first is 0; None: every one.
        record: keep what passes.
    """

    def __init__(
        self,
        target: tuple[str, int] | int,
        *,
        up: Sequence[Fault] = (),
        down: Sequence[Fault] = (),
        on: int | None = 0,
        record: bool = False,
    ) -> None:
        self.target = ("127.0.0.1", target) if isinstance(target, int) else target
        self.up_faults, self.down_faults, self.on = up, down, on
        self._record = record
        self.links: list[Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self._accept = threading.Thread(target=self._serve, name="proxy-accept", daemon=True)

    def __enter__(self) -> Proxy:
        self._accept.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.send(b"x")
        self._accept.join()
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, self._wake, self._woken):
            sock.close()

    @property
    def up(self) -> int:
        """Bytes passed on from dialers, over all connections."""
        return sum(link.up.count for link in self.links)

    @property
    def down(self) -> int:
        return sum(link.down.count for link in self.links)

    @property
    def seen(self) -> bytes:
        """All that has passed, either way."""
        return b"\n".join(bytes(way.seen or b"") for link in self.links for way in (link.up, link.down))

    def forget(self, *, up: Sequence[Fault] = (), down: Sequence[Fault] = ()) -> None:
        """Begin anew: no connections counted, and these faults for the next one."""
        self.links = []
        self.up_faults, self.down_faults = up, down

    def _serve(self) -> None:
        while True:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._woken, selectors.EVENT_READ)
                ready = [key.fileobj for key, _ in selector.select()]
            if self._woken in ready:
                return
            dialer, _ = self._listener.accept()
            try:
                listener = socket.create_connection(self.target)
            except OSError:
                dialer.close()
                continue
            for sock in (dialer, listener):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(PATIENCE_S)
            mine = self.on is None or len(self.links) == self.on
            link = Link(
                Way(dialer, listener, sorted(self.up_faults, key=lambda fault: fault.at) if mine else []),
                Way(listener, dialer, sorted(self.down_faults, key=lambda fault: fault.at) if mine else []),
            )
            if self._record:
                link.up.seen, link.down.seen = bytearray(), bytearray()
            self.links.append(link)
            thread = threading.Thread(target=self._relay, args=(link,), name="proxy-link", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _relay(self, link: Link) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            try:
                for way in (link.up, link.down):
                    selector.register(way.source, selectors.EVENT_READ, way)
                    self._act(link, way, selector)
                while link.up.open or link.down.open:
                    for key, _ in selector.select():
                        if key.data is None:
                            return
                        if key.data.open:
                            self._pass_on(link, key.data, selector)
            except (_Gone, OSError):
                pass
            finally:
                link.over = True
                for sock in (link.up.source, link.down.source):
                    sock.close()

    def _pass_on(self, link: Link, way: Way, selector: selectors.BaseSelector) -> None:
        try:
            data = way.source.recv(PIECE)
        except ConnectionResetError:
            self._cut(link, reset=True)
        if not data:
            selector.unregister(way.source)
            way.open = False
            way.sink.shutdown(socket.SHUT_WR)
            return
        while data and way.open:
            most = min(way.step, way.faults[0].at - way.count if way.faults else PIECE)
            if most == 0:
                fault = way.faults.pop(0)
                assert isinstance(fault, Flip)
                data = bytes([data[0] ^ fault.mask]) + data[1:]
                continue
            piece, data = data[:most], data[most:]
            way.sink.sendall(piece)
            way.count += len(piece)
            if way.seen is not None:
                way.seen += piece
            self._act(link, way, selector)
            if way.wait_s:
                time.sleep(way.wait_s)

    def _act(self, link: Link, way: Way, selector: selectors.BaseSelector) -> None:
        """Carry out the faults whose byte has come. Flip waits for the byte that it damages."""
        while way.faults and way.faults[0].at <= way.count and not isinstance(way.faults[0], Flip):
            match way.faults.pop(0):
                case Cut(reset=reset):
                    self._cut(link, reset=reset)
                case Freeze():
                    for each in (link.up, link.down):
                        if each.open and each.source in selector.get_map():
                            selector.unregister(each.source)
                        each.open = False
                    selector.select()  # the end of the proxy
                    raise _Gone
                case Stall():
                    selector.unregister(way.source)
                    way.open = False
                case HalfClose():
                    selector.unregister(way.source)
                    way.open = False
                    way.sink.shutdown(socket.SHUT_WR)
                case Dribble(step=step, wait_s=wait_s):
                    way.step, way.wait_s = step, wait_s
                case Call(function=function):
                    function()

    @staticmethod
    def _cut(link: Link, *, reset: bool) -> None:
        if reset:
            for sock in (link.up.source, link.down.source):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Gone
