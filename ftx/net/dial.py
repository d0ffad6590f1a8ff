"""Connecting: names and addresses, with deadlines that ``getaddrinfo`` and ``connect`` do not have themselves."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from ftx.errors import NetworkError, UnknownHost
from ftx.net import tcp

#: A second address is tried while the first is still silent (RFC 8305, section 5).
STAGGER_S = 0.25
TICK_S = 0.1

_Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


def connect(
    host: str, port: int, timeout_s: float, check: Callable[[], None], congestion: str | None = None
) -> socket.socket:
    """A connected, blocking socket: the first address of ``host`` that answers.

    Args:
        check: called a few times a second; may raise to end the attempt.
        congestion: the name of its congestion control, if not the system's choice.

    Raises:
        UsageError: it cannot have this congestion control.
        UnknownHost: the name does not resolve.
        NetworkError: nobody answers.
    """
    deadline = time.monotonic() + timeout_s
    addresses = _resolve(host, port, deadline, check)
    pending: dict[socket.socket, object] = {}
    problem = f"no answer within {timeout_s:g} s"
    next_start = 0.0
    try:
        while addresses or pending:
            check()
            now = time.monotonic()
            if now >= deadline:
                break
            if addresses and (now >= next_start or not pending):
                family, kind, protocol, _, address = addresses.pop(0)
                next_start = now + STAGGER_S
                try:
                    sock = socket.socket(family, kind, protocol)
                except OSError as error:  # a machine without IPv6, say
                    problem = error.strerror or str(error)
                    continue
                pending[sock] = address
                sock.setblocking(False)
                if congestion is not None:
                    tcp.choose(sock, congestion)
                code = sock.connect_ex(address)
                if code not in (0, errno.EINPROGRESS):
                    problem = os.strerror(code)
                    del pending[sock]
                    sock.close()
                continue
            _, ready, _ = select.select([], list(pending), [], min(TICK_S, deadline - now))
            for sock in ready:
                del pending[sock]
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    sock.setblocking(True)
                    return sock
                problem = os.strerror(code)
                sock.close()
    finally:
        for sock in pending:
            sock.close()
    raise NetworkError(f"cannot connect to {host} port {port}: {problem}")


def _resolve(host: str, port: int, deadline: float, check: Callable[[], None]) -> list[_Address]:
    found: list[_Address] = []
    problem: list[str] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            problem.append(error.strerror or str(error))
        except UnicodeError:
            problem.append("no host can have this name")

    # A resolver cannot be interrupted, only left behind.
    thread = threading.Thread(target=look_up, name="ftx-resolve", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(TICK_S)
        check()
    if problem:
        raise UnknownHost(f"unknown host {host} ({problem[0]})")
    if not found:
        raise NetworkError(f"cannot look up {host}: the name server does not answer")
    return found[:]
