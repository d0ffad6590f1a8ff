"""Listening: the sockets of a receiver."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Sequence

from ftx.errors import NetworkError

BACKLOG = 256
TICK_S = 0.2


class Listener:
    """The listening sockets of one receiver.

    Args:
        bind: addresses; empty for all, IPv4 and IPv6.
        port: 0 lets the system choose one, the same for all addresses.

    Raises:
        NetworkError: an address cannot be had.
    """

    def __init__(self, bind: Sequence[str], port: int) -> None:
        self._sockets: list[socket.socket] = []
        try:
            for host in bind or ("0.0.0.0", "::"):
                try:
                    self._add(host, port)
                except (OSError, UnicodeError) as error:
                    if not bind and host == "::" and self._sockets:
                        continue  # a machine without IPv6
                    reason = getattr(error, "strerror", None) or error
                    raise NetworkError(f"cannot listen on {host} port {port}: {reason}") from error
                port = self.addresses[0][1]
        except BaseException:
            self.close()
            raise

    def _add(self, host: str, port: int) -> None:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = info[0]
        sock = socket.socket(family, kind, protocol)
        self._sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of each socket."""
        return tuple(sock.getsockname()[:2] for sock in self._sockets)

    def accept(self, handle: Callable[[socket.socket, str], None], stopped: Callable[[], bool]) -> None:
        """Give every connection, with its peer's address, to ``handle``, which must not block; until ``stopped``."""
        with selectors.DefaultSelector() as selector:
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ)
            while not stopped():
                for key, _ in selector.select(TICK_S):
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        connection, address = key.fileobj.accept()
                    except BlockingIOError:
                        continue
                    except OSError:
                        # No descriptor left, say: whoever is connected goes on, and accepting rests for a moment.
                        time.sleep(TICK_S)
                        continue
                    connection.setblocking(True)
                    handle(connection, str(address[0]))

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
