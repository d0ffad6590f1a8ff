"""The process behind ``wanlink``: two network namespaces, and the packets between them.

Both namespaces and both devices are held by nothing but this process, and it ends with its standard input; so whatever
ends its parent, the kernel clears everything away. Commands come as lines on standard input, and each is answered by
one line on standard output when it has been carried out.

    rtt MS | rate MBIT | loss PERCENT | cut | heal | counts
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

CLONE_NEWNET = 0x40000000  # linux/sched.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
MTU = 1500
DEVICE = "wan"
ADDRESSES = (("10.213.0.1", "fd00:213::1"), ("10.213.0.2", "fd00:213::2"))
#: Packets are looked for so often while some are on their way; a tenth of the work of doing so for each.
BEAT_S = 0.0005
#: The link goes before the programs that use it, or their work would make it slower.
PRIORITY = -10


@dataclass(slots=True)
class Shape:
    """How the link is, in both directions. A rate of 0 is unlimited."""

    delay_s: float
    bytes_per_s: float
    loss: float
    queue_s: float
    cut: bool = False


@dataclass(slots=True)
class Way:
    """One direction: a queue before a line of a certain rate, then a fixed delay."""

    source: int
    sink: int
    rng: random.Random
    packets: int = 0
    carried_bytes: int = 0
    lost: int = 0
    dropped: int = 0  #: for want of room in the queue
    _line_free_at_s: float = 0.0
    _flying: deque[tuple[float, bytes]] = field(default_factory=deque)

    def accept(self, shape: Shape) -> None:
        """Take the packets that wait at the source."""
        now_s = time.monotonic()
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            start_s = max(now_s, self._line_free_at_s)
            if shape.cut or (shape.loss and self.rng.random() < shape.loss):
                self.lost += 1
            elif start_s - now_s > shape.queue_s:
                self.dropped += 1
            else:
                self._line_free_at_s = start_s + (len(packet) / shape.bytes_per_s if shape.bytes_per_s else 0)
                self._flying.append((self._line_free_at_s + shape.delay_s, packet))

    def deliver(self) -> None:
        """Hand over the packets whose time has come."""
        now_s, flying = time.monotonic(), self._flying
        while flying and flying[0][0] <= now_s:
            packet = flying.popleft()[1]
            try:
                self.carried_bytes += os.write(self.sink, packet)
                self.packets += 1
            except BlockingIOError:  # the kernel has no memory for it
                self.dropped += 1

    def next_s(self) -> float | None:
        """When the next packet is due."""
        return self._flying[0][0] if self._flying else None

    def counts(self) -> dict[str, int]:
        return {
            "packets": self.packets,
            "carried_bytes": self.carried_bytes,
            "lost": self.lost,
            "dropped": self.dropped,
        }


def make_host(addresses: tuple[str, str], congestion: str) -> tuple[int, int]:
    """A namespace, which this process is in from then on, and a device in it.

    Returns:
        Descriptors of both.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no new network namespace")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    v4, v6 = addresses
    # The algorithm hangs on the routes, since only the whole machine's settings can make some of them a default.
    by = f" congctl {congestion}" if congestion else ""
    setup = (
        "link set lo up",
        f"link set {DEVICE} mtu {MTU} txqueuelen 1000 up",
        f"address add {v4}/30 dev {DEVICE}",
        f"address add {v6}/126 dev {DEVICE} nodad",
        f"route replace 10.213.0.0/30 dev {DEVICE} src {v4}{by}",
        f"route replace fd00:213::/126 dev {DEVICE}{by}",
    )
    subprocess.run(["ip", "-batch", "-"], input="\n".join(setup), text=True, check=True, stdout=sys.stderr)
    return os.open("/proc/self/ns/net", os.O_RDONLY), device


def obey(line: str, shape: Shape, ways: tuple[Way, Way]) -> str:
    """Carry out a command; the answer."""
    match line.split():
        case ["rtt", ms]:
            shape.delay_s = float(ms) / 2000
        case ["rate", mbit]:
            shape.bytes_per_s = float(mbit) * 125_000
        case ["loss", percent]:
            shape.loss = float(percent) / 100
        case ["cut"]:
            shape.cut = True
        case ["heal"]:
            shape.cut = False
        case ["counts"]:
            return json.dumps([way.counts() for way in ways])
        case _:
            return f"unknown: {line}"
    return "done"


def carry(ways: tuple[Way, Way], shape: Shape) -> None:
    """Carry packets and obey, until standard input ends."""
    watched = [ways[0].source, ways[1].source, sys.stdin.fileno()]
    while True:
        for way in ways:
            way.accept(shape)
            way.deliver()
        due = [at for way in ways if (at := way.next_s()) is not None]
        if due:
            time.sleep(BEAT_S)
        # Unlike poll, whose milliseconds would add up in the round trip, select takes a fine timeout.
        ready = select.select(watched, [], [], max(0.0, min(due) - time.monotonic()) if due else None)[0]
        if sys.stdin.fileno() in ready:
            line = os.read(sys.stdin.fileno(), 4096).decode()
            if not line:
                return
            print(obey(line, shape, ways), flush=True)


def main() -> None:
    rtt_ms, rate_mbit, loss, queue_ms = map(float, sys.argv[1:5])
    seed, congestion = int(sys.argv[5]), sys.argv[6]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, who ends this
    (space_a, device_a), (space_b, device_b) = (make_host(addresses, congestion) for addresses in ADDRESSES)
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    print(json.dumps([space_a, space_b]), flush=True)
    ways = (
        Way(device_a, device_b, random.Random(seed)),
        Way(device_b, device_a, random.Random(seed + 1)),
    )
    carry(ways, Shape(rtt_ms / 2000, rate_mbit * 125_000, loss / 100, queue_ms / 1000))


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
