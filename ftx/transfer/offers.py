"""What a session has in its hands: the sources behind the plan's entries, and those that are to be offered yet.

From when the feed gives an item until it has ended, it is in exactly one place:

    in hand ─► under way ─► ended
                 │   ▲
                 ▼   │
              to be offered anew ◄─ folders: answered, but something comes again into them

``close`` takes everything out of every place, for the next session. Whoever comes later, because it was stuck at a
slow disk, gets nothing and changes nothing.

Every call is made under the session's lock, and none waits for anything or touches a file. The plan's own lock is
taken below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ftx.errors import SourceChanged, SourceError
from ftx.protocol import messages as m
from ftx.protocol.manifest import Kind
from ftx.storage.source import Source
from ftx.transfer.actions import Outcome
from ftx.transfer.feed import Item
from ftx.transfer.plan import Offer, Plan


class Offers:
    """The items of one session.

    Attributes:
        closed: they are the next session's.
    """

    def __init__(self, plan: Plan) -> None:
        self.closed = False
        self._plan = plan
        self._in_hand: Sequence[Item] = ()
        self._under_way: dict[int, Item] = {}  # by entry id, in the order of their offers
        self._again: deque[Item] = deque()
        self._folders: dict[bytes, Item] = {}
        self._late: set[bytes] = set()  # folders into which something comes again, because it changed

    def have(self, items: Sequence[Item]) -> bool:
        """Take them from the feed; False if they are the next session's."""
        if not self.closed:
            self._in_hand = items
        return not self.closed

    def again(self) -> Item | None:
        """What is to be offered anew first. It stays here until it is."""
        return self._again[0] if self._again else None

    def offer(self, items: Sequence[Item], ready: Sequence[tuple[Item, Source, Offer]]) -> bool:
        """Offer those of ``items`` that are ``ready``, each as this look at it; the others have failed.

        Returns:
            False if the session is over, and nothing was offered and nothing has failed.
        """
        if self.closed:
            return False
        self._in_hand = ()
        if ready:
            ids = self._plan.offer(ready[0][0].source.folder, [offer for _, _, offer in ready])
            for entry_id, (item, source, _) in zip(ids, ready, strict=True):
                item.source, item.stale = source, False
                item.offers += 1
                self._under_way[entry_id] = item
        if self._again and items[0] is self._again[0]:
            self._again.popleft()
            if not ready:  # it is gone: nothing more of it comes into its folder
                self._came_again(items[0].source.folder)
            self._plan.offered_again()
        return True

    def source(self, entry_id: int) -> Source | None:
        """What was offered as this entry; None if it has ended meanwhile."""
        item = self._under_way.get(entry_id)
        return None if item is None else item.source

    def failed(self, entry_id: int, error: SourceError) -> None:
        """A source failed while it was read. One that only changed is offered anew, a few times."""
        item = self._under_way.get(entry_id)
        if item is not None:
            item.stale = True
            item.source.forget()
            again = isinstance(error, SourceChanged) and item.offers < m.MAX_OFFERS
            self._plan.cancel(entry_id, m.WITHDRAWN if again else error.wire, str(error))

    def receive(self, message: m.Message) -> list[tuple[Item, Outcome]]:
        """Take in what the receiver says; what has ended by it, and does not come again."""
        ended = []
        for outcome in () if self.closed else self._plan.receive(message):
            item = self._under_way.pop(outcome.entry.id)
            if outcome.state == "withdrawn":
                item.sent += outcome.sent
                self._late.add(item.source.folder)
                self._again.append(item)
            elif not (self._late or item.offers > 1) or not self._comes_again(item):
                ended.append((item, outcome))
        return ended

    def _comes_again(self, item: Item) -> bool:
        """A folder's entry that was answered before what came late into it: its time is not right any more.

        So it is offered anew when that has ended. The answer to the folder comes first, as the offers did.
        """
        source = item.source
        if source.offered.kind is Kind.FOLDER and source.target_path in self._late:
            self._folders[source.target_path] = item
            return True
        if item.offers > 1 and source.offered.kind is not Kind.FOLDER:
            self._came_again(source.folder)
        return False

    def _came_again(self, path: bytes) -> None:
        """Something that came late into a folder has ended. The last of it lets the folder's own entry come again."""
        rest = (*self._under_way.values(), *self._again)
        if any(other.offers > 1 and other.source.folder == path for other in rest):
            return
        self._late.discard(path)
        if (folder := self._folders.pop(path, None)) is not None:
            self._plan.owe()
            self._again.append(folder)

    def close(self) -> list[Item]:
        """The session is over: what is to be offered again in the next one, in this order.

        What came late into a folder goes before its own entry here too.
        """
        self.closed = True
        for entry_id, item in self._under_way.items():
            sent, held = self._plan.moved(entry_id)
            item.sent += sent
            item.reused = held if item.reused is None else item.reused
            if (missing := self._plan.missing(entry_id)) is not None:
                item.missing = missing if item.missing is None else min(item.missing, missing)
        self._plan.close()
        under_way = sorted(self._under_way.values(), key=lambda item: item.offers == 1)
        unfinished = [*self._again, *under_way, *self._in_hand, *self._folders.values()]
        self._under_way, self._again, self._in_hand, self._folders = {}, deque(), (), {}
        for item in unfinished:
            item.stale, item.offers = True, 0
        return unfinished
