"""What a run still has to offer, over all its sessions: the walk, and in front of it what a broken session left.

G8: the walk goes on where it stood, and no more than a window's entries come back to be offered again. So a retry
begins with the first entry that has no receipt, and memory does not grow with the number of files.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ftx.storage.scan import Found
from ftx.storage.source import Source

#: A batch of offers ends at so many entries, or bytes of names and targets.
BATCH = 256
BATCH_BYTES = 64 * 1024


@dataclass(slots=True)
class Item:
    """A source and what the run knows of it.

    Attributes:
        stale: it must be looked at again before it is offered.
        offers: in this session.
        sent: payload bytes, over all sessions of the run.
        reused: bytes that the receiver held before the run sent anything; None until it answered.
        missing: the fewest bytes that it missed when a session began.
    """

    source: Source
    stale: bool = False
    offers: int = 0
    sent: int = 0
    reused: int | None = None
    missing: int | None = None


class Feed:
    """Hands out what is to be offered, to one session after the other.

    What broken sessions left always goes before what else there is, so that a folder's own entry stays behind what
    is in it. A thread may be stuck in the walk long after its session has ended; nobody but a later ``take`` waits
    for it.

    Args:
        found: the walk.
        close: ends the walk, and closes what its sources hold open; may be called again.
    """

    def __init__(self, found: Iterator[Found], close: Callable[[], None] = lambda: None) -> None:
        self._found = found
        self._close_found = close
        self._walking = threading.Lock()  # held by whoever is in the walk
        self._again: deque[Item | Found] = deque()  # found by somebody who could not take it; goes with the walk
        self._lock = threading.Lock()  # covers what was left; never held while a disk is waited for
        self._left: deque[Item | Found] = deque()
        self._closed = False

    def take(self, most: int, have: Callable[[list[Item] | Found], bool]) -> list[Item] | Found | None:
        """The next entries of one folder, ``most`` at most; or something else that was found; None at the end.

        Whoever takes says in ``have`` whether it still can. If not, because its session ended while the disk was
        slow, what was found stays here and None is returned; meanwhile the next session's take waits.
        """
        with self._lock:
            if self._left:
                return _take(self._left, iter(()), most, have)
        try:
            with self._walking:
                return None if self._closed else _take(self._again, self._found, most, have)
        finally:
            if self._closed:
                self._end()

    def put_back(self, items: Sequence[Item]) -> None:
        """These come next, in this order."""
        with self._lock:
            self._left.extendleft(reversed(items))

    def waiting(self) -> list[Item]:
        """What a broken session left."""
        with self._lock:
            return [item for item in self._left if isinstance(item, Item)]

    def close(self) -> None:
        """The run is over. A thread that is still in the walk ends that when it comes out: nobody else can."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        # Whoever holds the lock looks at `_closed` once it has let go of it, and that was set before.
        if self._walking.acquire(blocking=False):
            try:
                self._close_found()
            finally:
                self._walking.release()


def _take(
    ready: deque[Item | Found], more: Iterator[Found], most: int, have: Callable[[list[Item] | Found], bool]
) -> list[Item] | Found | None:
    found = _next(ready, more, most)
    if found is None or have(found):
        return found
    ready.extendleft(reversed(found) if isinstance(found, list) else [found])
    return None


def _next(ready: deque[Item | Found], more: Iterator[Found], most: int) -> list[Item] | Found | None:
    first = _pull(ready, more)
    if not isinstance(first, Item):
        return first
    items, size, folder = [first], 0, first.source.folder
    most = min(most, BATCH)
    while len(items) < most and size < BATCH_BYTES:
        following = _pull(ready, more)
        if following is None:
            break
        if not isinstance(following, Item) or following.source.folder != folder:
            ready.appendleft(following)
            break
        items.append(following)
        size += len(following.source.name) + len(following.source.offered.target)
    return items


def _pull(ready: deque[Item | Found], more: Iterator[Found]) -> Item | Found | None:
    found = ready.popleft() if ready else next(more, None)
    return Item(found) if isinstance(found, Source) else found
