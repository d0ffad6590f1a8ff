"""Whether compressing pays on a lane, and the compressing. All is measured; nothing is done on a fast link.

Compressing a chunk pays when doing it and sending less takes less time than sending the chunk as it is. ``Worth``
knows what sending costs from the time that the lane's writer spends in it while it sends chunks as they are. Where a
byte costs less than ``SLOW_S``, nothing is ever looked at: that is so on loopback and in a fast local network; and
what the rule says is held against the outcome: a receiver whose disk is the limit looks like a slow link, and gains
nothing by it. So each way of sending is measured for a span of time, and the better one goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ftx.net.lane import Lane
from ftx.protocol import compression
from ftx.protocol.manifest import Buffer

#: Seconds that sending a byte takes, from which on compressing is tried: a link of less than 200 Mbit/s. Who gets a few
#: times that from a machine nearby has a busy processor there or here, and no slow link.
SLOW_S = 1 / 25e6
FAR_SLOW_S = 1 / 80e6  #: the same over a long way
SPAN_S = 0.5
FIRST_S = 0.1  #: of the first span over a long way: a small transfer is soon over
BETTER = 0.95  #: compressing must take at most this part of the time of sending as it is
#: From so long a round trip on, a connection begins slowly, whatever the link is; so the first chunk is compressed.
FAR_S = 0.005
#: Spans until the worse way of sending is tried again, twice as many each time that it still is; this at most.
LONGEST = 16
SURER = 8  #: times as many, where chunks are compressed and the link is seen to be slow
#: Chunks that are not looked at, at most, behind those that were not worth it.
MOST_UNSEEN = 16
LEAST = 4096  #: bytes of a chunk that is looked at
SAMPLE = 32 * 1024
FIRST_TRUST = 2 * SURER, 4 * SURER


class Worth:
    """Whether compressing pays on one lane. Pure: times are arguments.

    Args:
        lanes: that carry chunks at the same time, over one link as far as anybody knows.
        far: the way is long.

    Attributes:
        on: chunks are to be looked at.
        in_doubt: the last one that was looked at was not worth it, or there was none: a sample first.
    """

    def __init__(self, lanes: int, *, far: bool = False) -> None:
        self.on = far
        self.in_doubt = True
        self._lanes = lanes
        self._slow_s = FAR_SLOW_S if far else SLOW_S
        self._send_s = SLOW_S if far else 0.0  # seconds that the link takes for a byte; at first, a guess
        self._plain_s = math.inf  # that a byte of a file took altogether, in the last span of chunks sent as they are
        self._span_s = FIRST_S if far else SPAN_S
        self._size, self._wire, self._all_s, self._sending_s = 0, 0, 0.0, 0.0  # of this span
        self._rest, self._next_rest = 0, 1  # spans until compressing is tried again, and after the next failure
        self._trust, self._next_trust = FIRST_TRUST  # spans until sending as it is is tried again
        self._unseen = self._misses = 0

    def sent(self, size: int, wire: int, all_s: float, sending_s: float) -> None:
        """Bytes of files were read, and sent as ``wire`` bytes; that took ``all_s``, ``sending_s`` of it in sending."""
        self._size += size
        self._wire += wire
        self._all_s += all_s
        self._sending_s += sending_s
        if self._all_s < self._span_s or not self._size:
            return
        took_s, send_s = self._all_s / self._size, self._sending_s / self._wire / self._lanes
        if self._wire < self._size:
            self._compressed(took_s, slow=send_s >= self._slow_s)
        else:
            self._plain_s, self._send_s = took_s, send_s
            if self.on:
                self._failed()  # nothing of all that was looked at was worth it
            else:
                self._rest = max(0, self._rest - 1)
                self.on = not self._rest and send_s >= self._slow_s
        self._span_s = SPAN_S
        self._size, self._wire, self._all_s, self._sending_s = 0, 0, 0.0, 0.0

    def _compressed(self, took_s: float, *, slow: bool) -> None:
        """A span with compressing is over, in which a byte of a file took so long; the link was seen to be slow."""
        if took_s > self._plain_s * BETTER:
            self._failed()
            self._trust, self._next_trust = FIRST_TRUST
            return
        self._next_rest = 1
        # While the processor is the limit, the link may have become faster.
        self._trust -= 1 if slow else SURER
        if self._trust <= 0:
            self.on = False
            self._trust, self._next_trust = self._next_trust, min(2 * self._next_trust, SURER * LONGEST)

    def _failed(self) -> None:
        self.on = False
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST)

    def looks(self) -> bool:
        """Whether to look at the next chunk."""
        if self._unseen:
            self._unseen -= 1
            return False
        return True

    def pays(self, size: int, compressed: int, seconds: float) -> bool:
        """Whether it is worth it to make ``compressed`` bytes of ``size`` in so many seconds of a processor."""
        return seconds < (size - compressed) * self._send_s

    def found(self, *, worth_it: bool) -> None:
        """What came of the chunk that was looked at."""
        self.in_doubt = not worth_it
        self._misses = 0 if worth_it else self._misses + 1
        self._unseen = min(self._misses, MOST_UNSEEN)


class Compressor:
    """Compresses what one lane sends where that pays; for the lane's writing thread.

    Attributes:
        saved: bytes that did not have to travel.
    """

    def __init__(self, lane: Lane, lanes: int) -> None:
        self.saved = self._saved = 0
        self._lane = lane
        self._worth = Worth(lanes, far=lane.round_trip_s >= FAR_S)
        self._compress: Callable[[Buffer], bytes] | None = None
        self._begun_s = self._sending_s = 0.0

    @property
    def on(self) -> bool:
        """``compress`` may have something to do, until the next ``sent``."""
        return self._worth.on

    def begin(self) -> None:
        """Something is to be read and sent."""
        self._begun_s, self._sending_s, self._saved = time.monotonic(), self._lane.sending_s, self.saved

    def sent(self, size: int) -> None:
        """It was sent: so many bytes of files."""
        lane, wire = self._lane, size - (self.saved - self._saved)
        self._worth.sent(size, wire, time.monotonic() - self._begun_s, lane.sending_s - self._sending_s)

    def compress(self, payload: memoryview) -> bytes | None:
        """What to send in place of this; None if it is better sent as it is."""
        worth, size = self._worth, len(payload)
        if size < LEAST or not worth.looks():
            return None
        found = None
        if not worth.in_doubt or size <= SAMPLE or self._tried(payload[:SAMPLE]) is not None:
            found = self._tried(payload)
        worth.found(worth_it=found is not None)
        if found is not None:
            self.saved += size - len(found)
        return found

    def _tried(self, payload: memoryview) -> bytes | None:
        """``payload`` compressed, if that was worth it."""
        if self._compress is None:
            self._compress = compression.compressor()
            self._compress(payload[:SAMPLE])  # the first call is slow: it makes room
        # Of the processor: a wait for its turn says nothing of this chunk, and shows in what the span took.
        begun_s = time.thread_time()
        found = self._compress(payload)
        paid = self._worth.pays(len(payload), len(found), time.thread_time() - begun_s)
        return found if paid else None
