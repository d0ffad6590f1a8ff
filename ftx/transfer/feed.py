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
    """Hands out what is to be offered, to one session after the other."""

    def __init__(self, found: Iterator[Found]) -> None:
        self._found = found
        self._again: deque[Item | Found] = deque()
        self._lock = threading.Lock()

    def take(self, most: int, have: Callable[[list[Item] | Found], bool]) -> list[Item] | Found | None:
        """The next entries of one folder, ``most`` at most; or something else that was found; None at the end.

        Whoever takes says in ``have`` whether it still can. If not, because its session ended while the disk was
        slow, what was found stays here and None is returned; meanwhile the next session's take waits.
        """
        with self._lock:
            found = self._next(most)
            if found is None or have(found):
                return found
            self._again.extendleft(reversed(found) if isinstance(found, list) else [found])
            return None

    def _next(self, most: int) -> list[Item] | Found | None:
        first = self._pull()
        if not isinstance(first, Item):
            return first
        items, size = [first], 0
        while len(items) < min(most, BATCH) and size < BATCH_BYTES:
            following = self._pull()
            if following is None:
                break
            if not isinstance(following, Item) or following.source.folder != first.source.folder:
                self._again.appendleft(following)
                break
            items.append(following)
            size += len(following.source.name) + len(following.source.offered.target)
        return items

    def _pull(self) -> Item | Found | None:
        found = self._again.popleft() if self._again else next(self._found, None)
        return Item(found) if isinstance(found, Source) else found

    def put_back(self, items: Sequence[Item]) -> None:
        """These come next, in this order."""
        self._again.extendleft(reversed(items))

    def waiting(self) -> list[Item]:
        """What a broken session left."""
        return [item for item in self._again if isinstance(item, Item)]
