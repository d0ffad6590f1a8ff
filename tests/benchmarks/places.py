"""Where both sides run: on the loopback device, or on two hosts joined by an emulated wide-area link."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.wanlink import Unavailable, WideAreaLink

YARDSTICK_S = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Two hosts, perhaps the same one.

    Attributes:
        sending, receiving: what stands before a command line to run it there.
        here, there: the addresses of both.
        passed: bytes that have gone over the wire so far, with TCP/IP headers. Towards the receiver only on a link;
            both ways on loopback.
    """

    sending: tuple[str, ...]
    receiving: tuple[str, ...]
    here: str
    there: str
    passed: Callable[[], int]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the emulated path is."""

    loss: float
    congestion: str
    rtt_ms: float = 80
    rate_mbit: float = 200


def _words(command: list[str | bytes | Path]) -> tuple[str, ...]:
    return tuple(map(str, command))


def _device_bytes(table: Path, device: str) -> int:
    """Bytes that a device has received, from a /proc/…/net/dev."""
    for line in table.read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == device:
            return int(counts.split()[0])
    raise LookupError(f"no {device} in {table}")


@contextmanager
def loopback() -> Iterator[Place]:
    """A loopback device of its own where this is allowed, since others' bytes on the machine's would count."""
    with ExitStack() as opened:
        try:
            link = opened.enter_context(WideAreaLink(rate_mbit=0, rtt_ms=0))
            into, table, note = _words(link.b.command()), link.devices_of_b, ""
        except Unavailable as why:
            into, table = (), Path("/proc/net/dev")
            note = f"over the machine's own loopback device, on which others' bytes count too: {why}"
        yield Place(into, into, "127.0.0.1", "127.0.0.1", lambda: _device_bytes(table, "lo"), note)


@contextmanager
def wide_area(shape: Shape) -> Iterator[Place]:
    """
    Raises:
        Unavailable: not here, or not with this congestion control.
    """
    with WideAreaLink(
        rtt_ms=shape.rtt_ms, rate_mbit=shape.rate_mbit, loss=shape.loss, congestion=shape.congestion
    ) as link:
        yield Place(
            _words(link.a.command()),
            _words(link.b.command()),
            link.a.ip,
            link.b.ip,
            lambda: link.counts()[0].carried_bytes,
        )


def yardstick(place: Place, streams: int) -> float:
    """What iperf3 gets through with so many connections, Mbit/s."""
    server = subprocess.Popen([*place.receiving, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        client = [*place.sending, "iperf3", "-J", "-t", str(YARDSTICK_S), "-P", str(streams), "-c", place.there]
        for _ in range(50):  # until the server listens
            done = subprocess.run(client, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6
            time.sleep(0.1)
        raise RuntimeError(f"iperf3: {done.stdout[-300:]}")
    finally:
        server.kill()
        server.wait()
