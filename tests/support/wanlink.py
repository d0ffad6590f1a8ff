"""Two hosts on this machine, joined by a wide-area link: a delay, a rate, a drop-tail queue, random loss.

The hosts are network namespaces, and every packet between them passes a process (``wanrelay``) that holds it back, so
TCP on both sides behaves as on a real path. What runs in them sees the same files. It takes root, iproute2, nsenter
and /dev/net/tun; where they are missing, ``Unavailable`` says which. Any number of links can be there at once.

    with WideAreaLink(rtt_ms=80, rate_mbit=200) as link:
        subprocess.Popen(link.b.command("ftx", "receive", ...))
        subprocess.run(link.a.command("ftx", "send", "file", link.b.ip))
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support import wanrelay


class Unavailable(Exception):
    """This machine or this user cannot have such a link."""


@dataclass(frozen=True, slots=True)
class Host:
    """One end of the link.

    Attributes:
        namespace: path of its network namespace, while the link is there.
        ip, ip6: its addresses.
    """

    namespace: Path
    ip: str
    ip6: str

    def command(self, *words: str | bytes | Path) -> list[str | bytes | Path]:
        """The command line that runs ``words`` on this host. It becomes the program, under one process id."""
        return ["nsenter", f"--net={self.namespace}", "--", *words]


@dataclass(frozen=True, slots=True)
class Counts:
    """What one direction has carried, packets and bytes with their IP headers, and what it has not."""

    packets: int
    carried_bytes: int
    lost: int  #: by chance, or while the link was cut
    dropped: int  #: because the queue was full


class WideAreaLink:
    """The link, for the length of a with-block; its shape can be changed meanwhile.

    Args:
        rtt_ms: round-trip time that it adds.
        rate_mbit: of each direction, in Mbit/s; 0: unlimited.
        loss: packets lost by chance in each direction, percent.
        queue_ms: what waits before the line, milliseconds at its rate; by default one round trip, at least 20.
        congestion: TCP's congestion control in both hosts; by default the machine's.
        seed: of the losses.

    Raises:
        Unavailable: on entering.
    """

    def __init__(
        self,
        *,
        rtt_ms: float = 50,
        rate_mbit: float = 100,
        loss: float = 0,
        queue_ms: float | None = None,
        congestion: str = "",
        seed: int = 1,
    ) -> None:
        queue_ms = max(rtt_ms, 20) if queue_ms is None else queue_ms
        self._shape = [str(value) for value in (rtt_ms, rate_mbit, loss, queue_ms, seed)] + [congestion]

    def __enter__(self) -> WideAreaLink:
        for program in ("ip", "nsenter"):
            if shutil.which(program) is None:
                raise Unavailable(f"no {program} here")
        self._relay = subprocess.Popen(
            [sys.executable, "-P", wanrelay.__file__, *self._shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._relay.stdout and self._relay.stderr
        line = self._relay.stdout.readline()
        if not line:
            why = self._relay.stderr.read().strip()
            self.__exit__(None, None, None)
            raise Unavailable(why)
        descriptors = Path(f"/proc/{self._relay.pid}/fd")
        self.a, self.b = (
            Host(descriptors / str(fd), *addresses)
            for fd, addresses in zip(json.loads(line), wanrelay.ADDRESSES, strict=True)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):
            self._relay.communicate()  # the end of its input is its own

    @property
    def devices_of_b(self) -> Path:
        """The counters of the devices on ``b``, as /proc/net/dev has them: the relay itself stays on that host."""
        return Path(f"/proc/{self._relay.pid}/net/dev")

    def cut(self) -> None:
        """From now on nothing arrives, in either direction, but what is on its way already."""
        self._ask("cut")

    def heal(self) -> None:
        self._ask("heal")

    def set_loss(self, percent: float) -> None:
        self._ask(f"loss {percent}")

    def set_rate(self, mbit: float) -> None:
        self._ask(f"rate {mbit}")

    def set_rtt(self, ms: float) -> None:
        self._ask(f"rtt {ms}")

    def counts(self) -> tuple[Counts, Counts]:
        """What has been carried so far, from ``a`` to ``b`` and from ``b`` to ``a``."""
        there, back = json.loads(self._ask("counts"))
        return Counts(**there), Counts(**back)

    def _ask(self, line: str) -> str:
        assert self._relay.stdin and self._relay.stdout
        self._relay.stdin.write(line + "\n")
        self._relay.stdin.flush()
        return self._relay.stdout.readline().strip()


@contextmanager
def link_or_skip(
    *, rtt_ms: float = 50, rate_mbit: float = 100, loss: float = 0, congestion: str = ""
) -> Iterator[WideAreaLink]:
    """For tests: a link, or the test is skipped with the reason."""
    import pytest

    with ExitStack() as opened:
        try:
            link = opened.enter_context(
                WideAreaLink(rtt_ms=rtt_ms, rate_mbit=rate_mbit, loss=loss, congestion=congestion)
            )
        except Unavailable as why:
            pytest.skip(str(why))
        yield link
