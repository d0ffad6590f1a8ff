"""The emulated link: it is as slow as it says, it can be cut, and nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.files import fill, same
from tests.support.process import Receiver, send, wait_until
from tests.support.wanlink import WideAreaLink, link_or_skip

SIZE = 2_000_000
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()"


def test_a_transfer_takes_the_way_over_the_link(tmp_path: Path) -> None:
    source = fill(tmp_path / "file", SIZE)
    with (
        link_or_skip(rtt_ms=20) as link,
        Receiver(tmp_path, bind=link.b.ip, prefix=link.b.command()) as receiver,
    ):
        sent = send(tmp_path, source, receiver.port, host=link.b.ip, prefix=link.a.command())
        assert sent.finished["code"] == 0, sent.err
        there, back = link.counts()
    assert same(source, receiver.into / "file")
    assert there.carried_bytes > SIZE > back.carried_bytes > 0
    assert (there.lost, back.lost) == (0, 0)


def _connect(link: WideAreaLink, port: int, patience_s: float) -> bool:
    command = link.a.command(sys.executable, "-c", CONNECT, link.b.ip6, str(port), str(patience_s))
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_the_link_is_cut_and_healed_and_reshaped(tmp_path: Path) -> None:
    with (
        link_or_skip(rtt_ms=0, rate_mbit=0) as link,
        Receiver(tmp_path, bind=link.b.ip6, prefix=link.b.command()) as receiver,
    ):
        assert _connect(link, receiver.port, 10)
        link.cut()
        assert not _connect(link, receiver.port, 0.1)
        assert link.counts()[0].lost > 0
        link.heal()
        link.set_rate(50)
        link.set_loss(0)
        link.set_rtt(400)
        begun = time.monotonic()
        assert _connect(link, receiver.port, 10)
        assert time.monotonic() - begun > 0.4
        receiver.stop()


def test_two_links_stand_side_by_side_and_vanish_with_their_process(tmp_path: Path) -> None:
    with link_or_skip(rtt_ms=0) as one, link_or_skip(rtt_ms=0) as other:
        assert one.b.ip == other.b.ip
        assert one.b.namespace.readlink() != other.b.namespace.readlink()
        with Receiver(tmp_path, bind=one.b.ip6, prefix=one.b.command()) as receiver:
            assert _connect(one, receiver.port, 10)
            assert not _connect(other, receiver.port, 0.1)
            receiver.signal(signal.SIGTERM)
            receiver.wait()
        namespace = one.b.namespace
    wait_until(lambda: not namespace.exists())
