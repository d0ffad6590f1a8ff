"""A peer that says what it likes: a lane whose handshake was kept to, and nothing behind it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ftx.net import handshake, tls
from ftx.net.handshake import Trust
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Kind
from ftx.protocol.messages import Mode, Role

PATIENCE_S = 10.0
ANYONE = Trust("there", anyone=True)
NOWHERE = Path("/dev/null/nowhere")  #: nothing can be kept there


def connected(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A connection to this machine, from one of its own addresses."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0))


@contextmanager
def sender(
    port: int, digest: DigestName = DigestName.XXH3_128, *, deaf: bool = False, mode: Mode = Mode.TRANSFER
) -> Iterator[Lane]:
    """A session with an open receiver, right behind OPENED; with ``deaf`` little fits into what it does not read."""
    sock = connected(port)
    if deaf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with closing(Lane(sock, dialer=True)) as lane:
        handshake.dial(lane, Identity(secrets.token_bytes(32)), {}, ANYONE, plain=False)
        job, process, session = secrets.token_bytes(32), secrets.token_bytes(16), secrets.token_bytes(16)
        lane.order.opened(Role.SENDER, mode)
        request = m.Open(session, process, job, Role.SENDER, mode, 1, 0, digest, b"")
        handshake.open_session(lane, request, PATIENCE_S)
        yield lane


@contextmanager
def receiver(run_sender: Callable[[int], None]) -> Iterator[Lane]:
    """A session with a sender, right behind its first FOLDER. ``run_sender`` starts one that takes anybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        run_sender(server.getsockname()[1])
        sock, _ = server.accept()
        with closing(Lane(sock, dialer=False)) as lane:
            own = Identity(secrets.token_bytes(32))
            handshake.listen(lane, own, {}, tls.listening(NOWHERE, own), open_=True)
            lane.send(m.Opened(1, 64))
            lane.order.opened(Role.RECEIVER)
            heard(lane, m.Folder)
            yield lane


def heard(lane: Lane, *kinds: type[m.Message]) -> m.Message:
    """The next message of one of these kinds; payloads are read and dropped."""
    while True:
        message, _ = lane.receive()
        if isinstance(message, m.Data):
            lane.payload(message.length, memoryview(bytearray(message.length)))
        if isinstance(message, kinds):
            return message


def offered(name: bytes, size: int) -> m.Offered:
    return m.Offered(Kind.FILE, name, size, 0, 0o644, 10**18, b"tag" + bytes(13))
