"""A TCP relay that only counts. Unlike ``proxy``, a direction that is stuck does not hold up the other one.

So a receiver that reads nothing for a while can still be heard.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

PIECE = 64 * 1024


class Meter:
    """Relays to ``port`` of this machine until the with-block ends.

    Args:
        port: may be changed for later connections.
        at: when so many bytes have gone up, over all connections, ``call`` is called, once and by who relays them.

    Attributes:
        up: bytes that dialers have sent.
    """

    def __init__(self, port: int, at: int = 0, call: Callable[[], object] | None = None) -> None:
        self.target = port
        self.at, self.call = at, call
        self.up = 0
        self._lock = threading.Lock()
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Meter:
        self._start(self._serve)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shut(self._listener)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._socks):
            sock.close()

    def cut(self) -> None:
        """Break every connection; later ones are relayed."""
        for sock in list(self._socks):
            self._shut(sock)

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=work, args=args, name="meter", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            try:
                dialer, _ = self._listener.accept()
            except OSError:
                return
            self._socks.append(dialer)
            try:
                listener = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                self._shut(dialer)
                continue
            self._socks.append(listener)
            self._start(self._up, dialer, listener)
            self._start(self._pump, listener, dialer)

    def _up(self, source: socket.socket, sink: socket.socket) -> None:
        self._pump(source, sink, self._count)

    def _count(self, size: int) -> None:
        with self._lock:
            self.up += size
            if self.call is not None and self.up >= self.at:
                call, self.call = self.call, None
                call()

    def _pump(self, source: socket.socket, sink: socket.socket, count: Callable[[int], None] | None = None) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE):
                sink.sendall(data)
                if count is not None:
                    count(len(data))
        self._shut(sink)
        self._shut(source)
