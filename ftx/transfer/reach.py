"""How a sender's lanes reach the receiver: straight to its port, or through the ssh that has started it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ftx.errors import ProtocolError
from ftx.net import dial
from ftx.net.handshake import Trust
from ftx.net.identity import public_key
from ftx.options import MAX_LANES, CallOptions
from ftx.protocol import messages as m
from ftx.protocol.messages import Method

#: The port of a far side that does not answer so soon is taken for one that a firewall hides.
REACH_S = 3.0

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the receiver.

    Attributes:
        name: what it leads to, for people.
        via: ``"direct"`` or ``"ssh"``.
        keys: what this side can prove there.
        trust: whom it takes there for the one that is meant.
        connect: gives a connected socket; its argument is called a few times a second and may raise.
        timeout_s: how long the proofs may take.
        lanes: how many there may be, at most.
        plain: without TLS.
    """

    name: str
    via: str
    keys: Mapping[Method, bytes]
    trust: Trust
    connect: Callable[[Check], socket.socket]
    timeout_s: float
    lanes: int = MAX_LANES
    plain: bool = False


@contextmanager
def ways(options: CallOptions, keys: Mapping[Method, bytes], trust: Trust, check: Check) -> Iterator[Sequence[Way]]:
    """The ways to try for one session, the best first; with ``options.ssh`` the receiver lives as long as the block.

    Args:
        keys, trust: for a receiver that runs already.
        check: called a few times a second while ssh starts; may raise to end that.

    Raises:
        FtxError: ssh or the far side cannot be started, see ``FarSide``.
    """
    if options.ssh:
        with _over_ssh(options, check) as found:
            yield found
    else:
        yield [_direct(options, options.host, options.port, options.timeout_s, options.timeout_s, keys, trust)]


def _direct(
    options: CallOptions,
    host: str,
    port: int,
    reach_s: float,
    timeout_s: float,
    keys: Mapping[Method, bytes],
    trust: Trust,
) -> Way:
    def connect(check: Check) -> socket.socket:
        return dial.connect(host, port, reach_s, check, options.congestion)

    return Way(f"{host}:{port}", "direct", keys, trust, connect, timeout_s, plain=options.plain)


@contextmanager
def _over_ssh(options: CallOptions, check: Check) -> Iterator[Sequence[Way]]:
    # Here and not above: other runs need no subprocess.
    from ftx.net.ssh import FarSide
    from ftx.protocol.ssh import Request

    request = Request(os.fsencode(options.folder), options.timeout_s)
    with FarSide(options.rsh, options.host, options.remote_ftx, request, check) as far:
        answer = far.answer
        try:
            trust = Trust(options.host, known=public_key(answer.fingerprint))
        except ValueError as error:
            raise ProtocolError("the far side does not say who it is") from error
        keys = {Method.SSH: answer.key}
        direct = [
            _direct(options, address, answer.port, REACH_S, min(options.timeout_s, m.HANDSHAKE_S), keys, trust)
            for address in far.addresses()
        ]
        yield [*direct, Way(options.host, "ssh", keys, trust, lambda _check: far.sock, options.timeout_s, lanes=1)]
