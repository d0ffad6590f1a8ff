"""What a receiver's session has open on its disk, by entry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ftx.storage.partial import Partial, PartialStore
from ftx.storage.paths import Root
from ftx.storage.quota import Account
from ftx.storage.scratch import Scratch, Whole


class UnderWay:
    """Partials and small files of one session. Any thread of it may ask for one; whoever has it closes it once.

    Args:
        store: the partials of the destination.
        scratch: where what is small is written.
        root: the peer's view of the destination.
        account: of a peer with a quota.
    """

    def __init__(
        self, store: PartialStore, scratch: Scratch, root: Root | None = None, account: Account | None = None
    ) -> None:
        self.store = store
        self.scratch = scratch
        self.root = root or store.root
        self.account = account
        self._open: dict[int, Partial | Whole] = {}
        self.count = 0  # of the partials among them
        self._over = False
        self._lock = threading.Lock()

    def add(self, entry_id: int, partial: Partial) -> None:
        """Have this from now on; let go of it at once if nobody waits for it any more, because the disk was slow."""
        with self._lock:
            self._open[entry_id] = partial
            self.count += 1
            over = self._over
        if over:
            self.release(entry_id)

    def add_small(self, wholes: Mapping[int, Whole]) -> None:
        """The same for several that are written in one go."""
        with self._lock:
            self._open.update(wholes)
            over = self._over
        if over:
            for entry_id in wholes:
                self.release(entry_id)

    def get(self, entry_id: int) -> Partial | Whole | None:
        return self._open.get(entry_id)

    def do(self, entry_id: int, what: Callable[[Partial | Whole], None]) -> bool:
        """Do this with what an entry is written to; False if it was let go of."""
        one = self._open.get(entry_id)
        if isinstance(one, Whole):
            with self.scratch.turn:
                there = self._open.get(entry_id) is one
                if there:
                    what(one)
                return there
        if one is None:
            return False
        with one.use() as alive:
            if alive:
                what(one)
            return alive

    @property
    def empty(self) -> bool:
        """No entry is under way."""
        return not self._open

    def partials(self) -> list[tuple[int, Partial]]:
        with self._lock:
            return [(entry_id, one) for entry_id, one in self._open.items() if isinstance(one, Partial)]

    def pop(self, entry_id: int) -> Partial | Whole | None:
        """Take it out; ``let_go`` is the caller's to call."""
        with self._lock:
            partial = self._open.pop(entry_id, None)
            self.count -= isinstance(partial, Partial)
            return partial

    def release(self, entry_id: int) -> None:
        """The entry ended without being published: a partial is kept, for another session."""
        if (partial := self.pop(entry_id)) is not None:
            self.let_go(partial, committed=False)

    def published(self, entry_ids: Sequence[int]) -> None:
        """These were published in one go: their paths are free again."""
        with self._lock:
            wholes = [whole for entry_id in entry_ids if (whole := self._open.pop(entry_id, None))]
        self._free([whole for whole in wholes if isinstance(whole, Whole)])

    def let_go(self, partial: Partial | Whole, *, committed: bool) -> None:
        if isinstance(partial, Partial):
            self.store.release(partial, committed=committed)
            return
        self._free([partial])  # first: whoever has the turn may be stuck at the disk
        with self.scratch.turn, suppress(OSError):  # what stays goes with the folder
            partial.forget()

    def close(self) -> None:
        """The session is over. ``scratch`` is closed by who knows that nobody writes into it any more."""
        with self._lock:
            self._over = self.scratch.over = True
            left, self._open = self._open, {}
            placing = self.scratch.placing  # behind `over`: what is not renamed yet will not be
            if placing is not None and placing.entry.id in left:
                self._open[placing.entry.id] = left.pop(placing.entry.id)  # whoever renames it gives its path back
        for partial in left.values():
            if isinstance(partial, Partial):
                self.let_go(partial, committed=False)
        self._free([whole for whole in left.values() if isinstance(whole, Whole)])

    def _free(self, wholes: Sequence[Whole]) -> None:
        """Others may have the paths of these."""
        self.store.unclaim([whole.entry.path for whole in wholes if whole.claimed])
        if self.account is not None:
            for whole in wholes:
                if not whole.claimed:  # of the others `unclaim` has told it
                    self.account.end(whole.entry.path)
