"""The rate that a run keeps to: on a simulated clock, and on the wire."""

from __future__ import annotations

import contextlib
import heapq
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ftx.errors import LinkLost
from ftx.net import tls
from ftx.net.lane import ALIVE_BYTES, Lane
from ftx.net.pace import STEP_S, Pace
from ftx.protocol import messages as m
from tests.support.lanes import lane_pair

KIB = 1024
RATES = st.integers(KIB, 4 * 1024**3)


class Simulated:
    """Lanes that send bulk without end, and whoever sleeps comes back late, on a clock of its own.

    Attributes:
        sent: (second, bytes), in order.
    """

    def __init__(self, rate: int, lanes: int, seed: int, late_s: float) -> None:
        self.pace = Pace(rate)
        self._rate, self._total = rate, 0
        self.sent: list[tuple[float, int]] = []
        self._rng = random.Random(seed)
        self._late_s = late_s
        self._due = [(0.0, number) for number in range(lanes)]

    def run(self, until_s: float) -> None:
        while self._due[0][0] < until_s:
            now_s, number = heapq.heappop(self._due)
            cost = self._rng.randint(1, self.pace.step) if self._rng.random() < 0.1 else self.pace.step
            wait_s = self.pace.ask(cost, now_s)
            if wait_s == 0.0:
                self.sent.append((now_s, cost))
                self._total += cost
                assert self._total <= 2 * self._rate * (until_s + 1), "far above the rate"
            # The next step's call comes a little later in any case.
            heapq.heappush(self._due, (now_s + max(wait_s, 1e-6) + self._rng.uniform(0, self._late_s), number))

    def most_within(self, seconds: float) -> int:
        """Bytes in the fullest window of this length."""
        most = total = first = 0
        for now_s, cost in self.sent:
            total += cost
            while self.sent[first][0] <= now_s - seconds:
                total -= self.sent[first][1]
                first += 1
            most = max(most, total)
        return most


@settings(deadline=None, max_examples=60, phases=[Phase.explicit, Phase.generate])  # a seed says enough
@given(rate=RATES, lanes=st.integers(1, 8), seed=st.integers(0, 99), late_s=st.sampled_from([0.0, 0.005, STEP_S]))
def test_bulk_is_accurate_and_smooth(rate: int, lanes: int, seed: int, late_s: float) -> None:
    simulated = Simulated(rate, lanes, seed, late_s)
    simulated.run(10.0)
    total = sum(cost for _, cost in simulated.sent)
    assert 0.95 * 10 * rate <= total <= 1.05 * 10 * rate
    for seconds in (0.001, 0.1, 1.0, 5.0):
        assert simulated.most_within(seconds) <= rate * (seconds + 2 * STEP_S) + 1


@settings(deadline=None, max_examples=60)
@given(
    rate=RATES,
    frames=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 70_000)), max_size=20),
    seed=st.integers(0, 99),
)
def test_control_frames_are_paid_for_by_the_bulk_behind_them(
    rate: int, frames: list[tuple[float, int]], seed: int
) -> None:
    simulated = Simulated(rate, 3, seed, 0.0)
    for at_s, size in sorted(frames):
        simulated.run(at_s)
        simulated.pace.count(size, at_s)
    simulated.run(10.0)
    for at_s, size in frames:
        behind = (sent_s for sent_s, _ in simulated.sent if sent_s >= at_s)
        assert next(behind, 10.0) >= min(10.0, at_s + size / rate - 2 * STEP_S)
    assert sum(size for _, size in (*frames, *simulated.sent)) >= 0.95 * 10 * rate


def test_who_has_waited_long_has_saved_no_more_than_a_step() -> None:
    pace = Pace(1000)
    assert pace.ask(pace.step, 0.0) == 0.0
    assert pace.ask(pace.step, 100.0) == pace.ask(pace.step, 100.0) == 0.0
    assert pace.ask(pace.step, 100.0) == pytest.approx(STEP_S)


def test_many_control_frames_are_a_debt_and_bulk_is_none() -> None:
    pace = Pace(10 * KIB)
    assert pace.ask(pace.step, 0.0) == 0.0
    assert not pace.indebted(0.0)
    pace.count(5 * KIB, 0.0)
    assert pace.indebted(0.0)
    assert not pace.indebted(0.5)


# --- on the wire ---


class Meter:
    """Reads what a lane sends, and notes how much came at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.came: list[int] = []
        self._sock = sock
        self._thread = threading.Thread(target=self._read, name="meter", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._sock.recv(65536):
                self.came.append(len(data))

    def join(self) -> None:
        self._thread.join()

    @property
    def count(self) -> int:
        return sum(self.came)


@contextlib.contextmanager
def metered(rate: int) -> Iterator[tuple[Lane, Meter]]:
    """A sender's lane at this rate, ready for DATA, and what comes out of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # each call comes by itself
    with theirs, contextlib.closing(Lane(ours, dialer=True, pace=Pace(rate))) as lane:
        lane.order.send = lambda _type: None  # type: ignore[method-assign]  # what is said does not matter here
        meter = Meter(theirs)
        yield lane, meter
        lane.shutdown()
        meter.join()


def data(size: int) -> m.Data:
    return m.Data(1, 0, bytes(16), size)


def test_a_chunk_far_above_the_rate_goes_out_in_small_steps() -> None:
    with metered(200 * KIB) as (lane, meter):
        began_s = time.monotonic()
        lane.queue_data(data(100 * KIB), bytes(100 * KIB))
        passed_s = time.monotonic() - began_s
        assert passed_s >= 0.4
        assert lane.last_sent_s >= began_s + 0.4
    assert meter.count == 48 + 100 * KIB
    assert max(meter.came) <= 200 * KIB * STEP_S


def test_small_payloads_are_bulk_too() -> None:
    with metered(20 * KIB) as (lane, meter):
        began_s = time.monotonic()
        for _ in range(10):
            lane.queue_data(data(KIB), bytes(KIB))
        lane.flush()
        assert time.monotonic() - began_s >= 0.35


def test_control_frames_go_out_at_once_behind_bulk_of_another_lane() -> None:
    with metered(KIB) as (lane, meter):
        pace = lane.pace
        assert pace is not None
        pace.count(100 * KIB, time.monotonic())
        began_s = time.monotonic()
        lane.send(m.Ping())
        assert time.monotonic() - began_s < 1.0
        assert lane.indebted


def test_g9_whoever_waits_for_the_rate_leaves_at_once() -> None:
    """The end of a session, Ctrl-C too: nobody sits a slow rate out."""
    found: list[BaseException] = []

    def work(lane: Lane) -> None:
        try:
            lane.queue_data(data(1024 * KIB), bytes(1024 * KIB))
        except LinkLost as error:
            found.append(error)

    with metered(KIB) as (lane, meter):
        assert lane.pace is not None
        lane.pace.count(12 * KIB, time.monotonic())
        thread = threading.Thread(target=work, args=(lane,))
        thread.start()
        began_s = time.monotonic()
        lane.shutdown()
        thread.join()
        assert time.monotonic() - began_s < 5.0
    assert found


def test_what_tls_adds_is_counted() -> None:
    assert [tls.on_wire(size) for size in (1, 16 * KIB, 16 * KIB + 1)] == [23, 16 * KIB + 22, 16 * KIB + 45]


def test_the_least_rate_gives_signs_of_life_in_time() -> None:
    from ftx.options import MIN_RATE

    assert ALIVE_BYTES / MIN_RATE <= 5


def test_a_lane_without_a_rate_waits_for_nobody() -> None:
    with lane_pair() as (dialer, _):
        assert dialer.pace is None
        assert not dialer.indebted
