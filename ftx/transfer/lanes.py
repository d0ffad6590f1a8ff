"""How many lanes a session uses, and when their congestion control is the wrong one: told by what TCP has seen.

``Growth`` and ``Losses`` are pure: they are shown the lanes now and then and say what to do. ``Tuner`` carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftx.errors import UsageError
from ftx.net import tcp
from ftx.net.lane import Lane
from ftx.net.tcp import Seen
from ftx.options import SendOptions
from ftx.transfer import events

#: From so long a round trip on one connection alone rarely fills the path: a lost packet stops it for long.
FAR_S = 0.005
FAR_LANES = 4
#: Asked for where ftx chooses. Those that never come cost nobody anything.
MOST_LANES = 8
#: Within so short a round trip no path is slower than the processors at its ends.
NEAR_S = 0.001
#: Throughput is measured over so long, and not before new lanes have had as much to find their speed.
MEASURED_S = 1.0
#: The path is what writers wait for if so often there are bytes that it has not taken, although it is not full.
WAITING = 0.7
#: What has helped is at least so many times as fast as before.
HELPED = 1.2

#: A path is full, and a queue stands before it, where the round trip is more than so many times the shortest.
QUEUE = 1.25
#: One burst is an accident: loss must be seen at so many looks, and be this share of what was sent.
LOSSES = 5
LOSS_SHARE = 0.0005
#: It goes by the bandwidth that it has measured, and takes no lost packet for a full path.
STEADY = "bbr"


def _full(lane: Seen) -> bool:
    return lane.round_trip_s > lane.shortest_s * QUEUE


def how_many(options: SendOptions, round_trip_s: float) -> tuple[int, int]:
    """How many lanes to begin with, and how many there may be."""
    first = options.lanes or (1 if round_trip_s < FAR_S else FAR_LANES)
    return first, first if options.lanes or options.bwlimit else MOST_LANES


class Growth:
    """Doubles the lanes with chunks for as long as the path is what is waited for and the last ones helped.

    Args:
        lanes: how many there are at first.
        most: how many there may be.
    """

    def __init__(self, lanes: int, most: int) -> None:
        self._lanes = lanes
        self._most = most
        self._before = 0.0  # bytes a second before the last were added
        self._settled = False
        self._since_s: float | None = None  # since when it is measured

    def _begin(self, now_s: float, acked: int) -> None:
        self._since_s, self._acked = now_s, acked
        self._waiting = self._looks = 0

    def more(self, now_s: float, lanes: Sequence[Seen]) -> int:
        """How many to add now; called some times a second with those that have joined."""
        acked = sum(lane.acked for lane in lanes)
        if len(lanes) < self._lanes or self._most <= self._lanes or self._since_s is None:
            self._begin(now_s, acked)  # some are on their way, or nothing is left to do
            return 0
        bulk = lanes[1:] or lanes
        self._waiting += sum(lane.unsent > 0 and not _full(lane) for lane in bulk)
        self._looks += len(bulk)
        passed_s = now_s - self._since_s
        if passed_s < MEASURED_S:
            return 0
        rate, waiting = (acked - self._acked) / passed_s, self._waiting / self._looks
        self._begin(now_s, acked)
        if not self._settled or waiting < WAITING or min(lane.shortest_s for lane in lanes) < NEAR_S:
            self._settled = True
            return 0
        if rate < self._before * HELPED:
            self._most = self._lanes
            return 0
        self._before, self._settled = rate, False
        # Lane 1 carries chunks only as long as it is alone.
        more = min(max(2, self._lanes - 1), self._most - self._lanes)
        self._lanes += more
        return more


class Losses:
    """Finds out whether a path loses packets without being full."""

    def __init__(self) -> None:
        self._repeated: list[int] = []  # of each lane, at the last look
        self._lost = self._looks = 0

    def found(self, lanes: Sequence[Seen]) -> bool:
        """Whether it does; called some times a second with all lanes, in the same order."""
        before = self._repeated + [0] * (len(lanes) - len(self._repeated))
        self._repeated = [lane.repeated for lane in lanes]
        lost = sum(
            lane.repeated - known
            for lane, known in zip(lanes, before, strict=True)
            if lane.shortest_s >= FAR_S and not _full(lane)
        )
        self._lost += lost
        self._looks += lost > 0
        return self._looks >= LOSSES and self._lost >= LOSS_SHARE * sum(lane.segments for lane in lanes)


class Tuner:
    """Watches the lanes of one session.

    Args:
        options: of the run; what is said there stays.
        lanes, most: how many there are at first, and how many there may be.
        emit: gets an event for what is done differently.
    """

    def __init__(self, options: SendOptions, lanes: int, most: int, emit: events.OnEvent) -> None:
        self._growth = Growth(lanes, most)
        self._losses = Losses()
        self._emit = emit
        self._told = lanes
        self._loses = False
        self._settled = 0  # lanes whose congestion control is as it should be
        self._may_choose = options.congestion is None

    def look(self, now_s: float, lanes: Sequence[Lane]) -> int:
        """How many lanes to add now; called some times a second with those that have joined, lane 1 first."""
        seen = [one for lane in lanes if (one := tcp.seen(lane.sock)) is not None]
        if len(seen) < len(lanes):
            return 0  # the system does not tell, or the session is ending
        if self._may_choose:
            self._choose(lanes, seen)
        if len(lanes) > self._told:
            self._told = len(lanes)
            self._tell(lanes, f"{len(lanes)} connections now: the path was what the sender waited for")
        return self._growth.more(now_s, seen)

    def _choose(self, lanes: Sequence[Lane], seen: Sequence[Seen]) -> None:
        """Where packets get lost, let go of a congestion control that takes each for a path that is full."""
        self._loses = self._loses or self._losses.found(seen)
        if not self._loses or self._settled == len(lanes):
            return
        first, self._settled = self._settled, len(lanes)
        change = [lane for lane in lanes[first:] if tcp.congestion(lane.sock) != STEADY]
        try:
            for lane in change:
                tcp.choose(lane.sock, STEADY)
        except UsageError:
            self._may_choose = False
            return
        if change and first == 0:
            self._tell(lanes, f"packets get lost on the way: {STEADY} instead of the system's congestion control")

    def _tell(self, lanes: Sequence[Lane], reason: str) -> None:
        self._emit(events.Tuned(len(lanes), tcp.congestion(lanes[-1].sock), reason))
