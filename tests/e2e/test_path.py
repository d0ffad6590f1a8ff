"""What a sender makes of its path: the rate it keeps to, the lanes it adds, and loss."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftx import api
from ftx.transfer.lanes import Tuner
from tests.support.files import MIB, fill, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import environment, send, sender, wait_until
from tests.support.proxy import Call, Cut, Proxy
from tests.support.wanlink import Host, link_or_skip

KIB = 1024
NETWORK = Path("/proc/sys/net/ipv4")


# --- --bwlimit ---


class Sampled:
    """How many bytes a proxy has passed on upwards, some times a second."""

    def __init__(self, proxy: Proxy) -> None:
        self.samples: list[tuple[float, int]] = []
        self._proxy = proxy
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples")

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self.samples.append((time.monotonic(), self._proxy.up))

    def __enter__(self) -> Sampled:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def rate(self) -> float:
        """Bytes a second from the first byte to the last."""
        moving = [(at, count) for at, count in self.samples if 0 < count < self.samples[-1][1]]
        (began, first), (ended, last) = moving[0], moving[-1]
        return (last - first) / (ended - began)

    def by_second(self) -> list[int]:
        """Bytes of each second that was one of many."""
        found: list[int] = []
        begun, counted = self.samples[0]
        for at, count in self.samples:
            if at - begun >= 1.0:
                found.append(count - counted)
                begun, counted = at, count
        return [count for count in found if count]


@pytest.mark.parametrize(("plain", "lanes"), [(True, 1), (False, 1), (False, 4)])
def test_no_more_than_the_rate(shm: Path, plain: bool, lanes: int) -> None:
    """Over all lanes, and with what TLS adds."""
    source, rate = fill(shm / "file", 2 * MIB), MIB
    with LocalReceiver(shm, plain=plain) as receiver, Proxy(receiver.port) as proxy, Sampled(proxy) as sampled:
        done = local_send(shm, source, proxy.port, bwlimit=rate, lanes=lanes, plain=plain)
        assert done.code == 0, done.message
        assert done.seconds >= 0.95 * 2 * MIB / rate
        assert proxy.up <= 1.05 * 2 * MIB
    assert sampled.rate() <= 1.15 * rate
    assert same(source, receiver.into / "file")


@pytest.mark.long
@pytest.mark.parametrize("plain", [True, False])
def test_ten_seconds_at_the_rate(shm: Path, plain: bool) -> None:
    source, rate = fill(shm / "file", 20 * MIB), 2 * MIB
    with LocalReceiver(shm, plain=plain) as receiver, Proxy(receiver.port) as proxy, Sampled(proxy) as sampled:
        assert local_send(shm, source, proxy.port, bwlimit=rate, plain=plain).code == 0
    assert sampled.rate() == pytest.approx(rate, rel=0.05)
    seconds = sorted(sampled.by_second())
    assert seconds[len(seconds) * 8 // 10] <= 1.1 * rate


def test_g9_a_chunk_may_take_longer_than_the_timeout(shm: Path) -> None:
    """What moves is alive, however slowly it was told to."""
    source = fill(shm / "file", 48 * KIB)
    with LocalReceiver(shm, timeout_s=1.0) as receiver:
        done = local_send(shm, source, receiver.port, bwlimit=16 * KIB, timeout_s=1.0)
        assert (done.code, done.message) == (0, "")
    assert same(source, receiver.into / "file")


def test_g11_ctrl_c_does_not_wait_for_the_rate(shm: Path) -> None:
    source, stop = fill(shm / "file", 4 * MIB), api.Stop()
    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:
        found: list[api.Finished] = []
        thread = threading.Thread(
            target=lambda: found.append(local_send(shm, source, proxy.port, bwlimit=8 * KIB, stop=stop))
        )
        thread.start()
        wait_until(lambda: proxy.up > 12 * KIB)
        stop.request(2)
        thread.join(20)
        assert found[0].code == 130


# --- lanes ---


@pytest.fixture
def two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that adds two lanes as soon as its session stands, as over a long way."""
    looks = iter([2])
    monkeypatch.setattr(Tuner, "look", lambda _self, _now_s, _lanes: next(looks, 0))


def _until_others_carry(proxy: Proxy) -> None:
    """Hold lane 1 for so long."""
    wait_until(lambda: sum(link.up.count for link in proxy.links[1:]) > MIB)


def test_lanes_join_a_session_under_way(shm: Path, two_more: None) -> None:
    source = fill(shm / "file", 24 * MIB)
    told: list[api.Event] = []
    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:
        proxy.up_faults = [Call(MIB, lambda: _until_others_carry(proxy))]
        done = local_send(shm, source, proxy.port, lanes=0, on_event=told.append)
        assert done.code == 0, done.message
        assert len(proxy.links) == 3
    assert [event.lanes for event in told if isinstance(event, api.SessionUp)] == [1]
    assert same(source, receiver.into / "file")


def test_a_lane_that_does_not_come_about_is_done_without(shm: Path, two_more: None) -> None:
    """It would only have been faster: no session ends for that."""
    source = fill(shm / "file", 24 * MIB)
    told: list[api.Event] = []
    with LocalReceiver(shm) as receiver, Proxy(receiver.port) as proxy:

        def the_next_breaks() -> None:
            proxy.up_faults, proxy.on = [Cut(100)], 1

        proxy.up_faults = [Call(1, the_next_breaks), Call(MIB, lambda: _until_others_carry(proxy))]
        done = local_send(shm, source, proxy.port, lanes=0, on_event=told.append, retry_for_s=5.0)
        assert (done.code, done.message) == (0, "")
        assert len(proxy.links) == 3
    assert not [event for event in told if isinstance(event, api.Retry)]
    assert same(source, receiver.into / "file")


# --- --congestion ---


def test_a_congestion_control_that_the_kernel_has_not(shm: Path) -> None:
    """Wrong use, said before anybody is called."""
    process = send(shm, fill(shm / "file", 10), 9, "--congestion", "nosuch")
    assert process.wait() == 2
    assert "'nosuch'; it has " in process.finished["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_congestion_control_that_this_user_may_not_choose(tmp_path: Path) -> None:
    allowed, available = (
        (NETWORK / f"tcp_{which}_congestion_control").read_text().split() for which in ("allowed", "available")
    )
    kept = [name for name in available if name not in allowed]
    if not kept:
        pytest.skip("anybody may choose all that there are")
    source = fill(tmp_path / "file", 10)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with sender(tmp_path, source, 9, "--congestion", kept[0], uid=65534) as process:
        assert process.wait() == 2, process.err
        message = process.finished["message"]
    expected = f"this user may not choose the congestion control {kept[0]!r}; it may choose {', '.join(allowed)}"
    assert message == expected


# --- over a long way ---


@contextmanager
def _receiving(base: Path, host: Host) -> Iterator[Path]:
    """A receiver there, for one job; where its files go."""
    into = base / "into"
    command = host.command(
        sys.executable, "-m", "ftx", "receive", "--bind", host.ip, "--dir", into, "--reserve", "0", "--once", "--json"
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(base), cwd=base) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b'"listening"' in line:
                break
        try:
            yield into
        finally:
            process.terminate()
            process.stdout.read()


def _sent(base: Path, source: Path, there: Host, here: Host, *arguments: str) -> str:
    """What a sender says with ``-v``."""
    command = here.command(sys.executable, "-m", "ftx", "send", "-v", *arguments, source, there.ip)
    done = subprocess.run(
        command, env=environment(base), cwd=base, stderr=subprocess.PIPE, timeout=500, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.long
def test_where_packets_get_lost_bbr_takes_over(shm: Path) -> None:
    if "bbr" not in (NETWORK / "tcp_available_congestion_control").read_text().split():
        pytest.skip("this kernel has no bbr")
    source = fill(shm / "file", 24 * MIB)
    with link_or_skip(rtt_ms=40, rate_mbit=50, loss=1, congestion="reno") as link, _receiving(shm, link.b) as into:
        said = _sent(shm, source, link.b, link.a)
        assert "packets get lost on the way: bbr" in said
        assert same(source, into / "file")


@pytest.mark.long
def test_where_one_lane_is_slow_more_are_added(shm: Path) -> None:
    """What the user chose stays: then more lanes are all that helps."""
    source = fill(shm / "file", 24 * MIB)
    with link_or_skip(rtt_ms=40, rate_mbit=100, loss=1, congestion="reno") as link, _receiving(shm, link.b) as into:
        said = _sent(shm, source, link.b, link.a, "--congestion", "reno")
        assert "connections now" in said
        assert "bbr" not in said
        assert same(source, into / "file")
