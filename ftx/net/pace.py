"""At most so many bytes a second, over all lanes of a run (``--bwlimit``). Pure but for its lock: time is an argument.

What is sent has its time when it would have taken that long at the rate, and bulk waits until all before it has had its
time. Control frames wait for nobody, and the bulk behind them pays for them.
"""

from __future__ import annotations

import threading

#: Bulk goes out in steps of so many seconds' worth, and as much may be made up for after a wait that took too long. So
#: no burst is longer than twice that.
STEP_S = 0.05


class Pace:
    """The account of one run; any thread may use it.

    Args:
        rate: bytes a second.

    Attributes:
        step: bytes of bulk to ask for at a time, at most.
    """

    def __init__(self, rate: int) -> None:
        self.step = max(1, int(rate * STEP_S))
        self._rate = rate
        self._paid_s = float("-inf")  # when what was sent has had its time
        self._lock = threading.Lock()

    def ask(self, cost: int, now_s: float) -> float:
        """0.0 if ``cost`` bytes of bulk may be sent now, which counts them; else seconds after which to ask again."""
        with self._lock:
            if (wait_s := self._paid_s - now_s) > 0:
                return wait_s
            self._count(cost, now_s)
            return 0.0

    def count(self, cost: int, now_s: float) -> None:
        """``cost`` bytes are sent, whatever the account says."""
        with self._lock:
            self._count(cost, now_s)

    def indebted(self, now_s: float) -> bool:
        """Control frames have taken more than bulk ever does: whoever makes many of them should wait."""
        with self._lock:
            return self._paid_s - now_s > 2 * STEP_S

    def _count(self, cost: int, now_s: float) -> None:
        self._paid_s = max(self._paid_s, now_s - STEP_S) + cost / self._rate
