"""What a sender has to send next. Twin of ``ledger``.

Pure: messages and results go in, jobs come out; one lock, no I/O, no thread, no clock. Any lane's writer
takes the next job from the one plan and carries it out outside the lock.

Rules kept here:

* G3: chunks that the receiver misses come before everything else that takes time; digests it asked for come next;
  what it holds already is read (for the root digest) only when there is nothing to send.
* G10: a chunk that reads differently the second time means that the source changed.
* FINISH is given only when every chunk has been read by this process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, assert_never

from ftx.errors import ProtocolError, SourceChanged
from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Grid, Kind, Pin, root_of_one
from ftx.protocol.messages import Type
from ftx.protocol.ranges import RangeSet
from ftx.protocol.session import State, next_state
from ftx.transfer.actions import (
    KEPT,
    SMALL,
    AnswerDigests,
    CheckSource,
    HashChunk,
    Job,
    Outcome,
    Say,
    SendChunk,
    SendSmall,
)
from ftx.transfer.sending import Need, Sending, Small

#: Chunks hashed for one DIGESTS message: a step is bounded, so PING is never late behind it.
DIGESTS_STEP = 16
#: Entries that a sender has outstanding, at most.
MOST_OUTSTANDING = 65_536
#: Small files that one job sends.
SMALL_STEP = 32
_SAME = m.SkipReason.SAME
_DURABLE = int(m.ReceiptFlags.DURABLE)  # arithmetic with the flags themselves takes longer than all else of a receipt


#: What is offered, the chunks of it that are holes, and the digests that are known of it.
Offer = tuple[m.Offered, RangeSet | None, ChunkDigests | None]


class Live(NamedTuple):
    """What is under way: sums over the entries that have not ended, for those who watch.

    Attributes:
        all_offered: no more entries come, so the sums of a run are known.
    """

    all_offered: bool
    files: int
    size: int
    sent: int
    held: int
    zeros: int


class Plan:
    """The sender's half of one session.

    Attributes:
        digest: of chunks and roots in this session.
    """

    def __init__(self, digest: DigestName) -> None:
        self._lock = threading.Lock()
        self.digest = digest
        self._say: deque[m.Message] = deque()
        self._live: dict[int, Sending | Small] = {}
        self._small: deque[int] = deque()  # small files that are wanted
        self._ready: dict[Need, dict[int, Sending]] = {need: {} for need in Need}
        self._next_id = 1
        self._window = m.INITIAL_WINDOW
        self._scanned = False
        self._paused: m.Pause | None = None
        self._owed = 0  # entries that were withdrawn and not offered anew yet
        self._said_bye = False
        self._bye: m.Bye | None = None
        self._closed = False
        self.done = self.skipped = self.failed = 0

    # --- what the shell puts in ---

    def opened(self, window: int) -> None:
        with self._lock:
            # A receiver always takes so many; and what it grants is no reason to have them all in memory (G8).
            self._window = min(max(window, m.INITIAL_WINDOW), MOST_OUTSTANDING)

    @property
    def window(self) -> int:
        """Entries that may be outstanding."""
        return self._window

    def room(self) -> int:
        """How many more entries may be offered now."""
        with self._lock:
            return self._window - len(self._live)

    def offer(self, folder: bytes, items: Sequence[Offer]) -> list[int]:
        """Offer entries of one folder, ``room()`` at most; their ids.

        Each comes with the chunks that lie wholly in holes of the source, and with the digests this process
        knows already (a source that was read in an earlier session of this run is not read again). A small file
        needs neither.
        """
        with self._lock:
            first = self._next_id
            self._next_id += len(items)
            for entry_id, (offered, holes, digests) in enumerate(items, first):
                if offered.kind is Kind.FILE and offered.size <= SMALL:
                    self._live[entry_id] = Small(offered.entry(entry_id, folder))
                    continue
                entry = offered.entry(entry_id, folder)
                grid = Grid.of(offered.size if offered.kind is Kind.FILE else 0)
                digests = ChunkDigests(grid, self.digest) if digests is None else digests
                holes = RangeSet() if holes is None else holes
                digests.set_ranges_zero(holes)
                sending = Sending(entry, grid, digests, holes)
                sending.unread = digests.known.complement(sending.grid.count)
                self._live[entry_id] = sending
            self._say.append(m.Folder(folder, first, tuple(offered for offered, _, _ in items)))
            return list(range(first, self._next_id))

    def say(self, message: m.Message) -> None:
        """Send this on the control lane, behind what waits there: the other lanes carry DATA and nothing else."""
        with self._lock:
            self._say.append(message)

    def scan_done(self) -> None:
        """No more offers come, unless a source changes."""
        with self._lock:
            self._scanned = True

    def owe(self) -> None:
        """Something will be offered anew: the session waits for it."""
        with self._lock:
            self._owed += 1

    def offered_again(self) -> None:
        """A withdrawn entry was offered anew, or could not be: the session does not wait for it any more."""
        with self._lock:
            self._owed -= 1

    def close(self) -> None:
        """The session is over: what a thread that it left behind brings counts nowhere.

        For what is known of chunks is the next session's, and may only be touched under one lock.
        """
        with self._lock:
            self._closed = True

    def small_begun(self, entry_ids: Sequence[int]) -> list[int]:
        """Those of a SendSmall's files that are still to be read: the receiver may have ended others meanwhile."""
        with self._lock:
            return [entry_id for entry_id in entry_ids if isinstance(self._live.get(entry_id), Small)]

    def small_read(self, read: Sequence[tuple[int, bytes]]) -> list[bool]:
        """Small files were read and found unchanged: (entry, digest). Whether each is to be sent, with its FINISH."""
        wanted = []
        with self._lock:
            for entry_id, digest in read:
                live = self._live.get(entry_id)
                wanted.append(isinstance(live, Small))
                if isinstance(live, Small):
                    live.digest = digest
                    live.state = State.FINISHED
        return wanted

    def chunk_read(self, entry_id: int, index: int, digest: bytes) -> None:
        """A chunk was read from the source.

        Raises:
            SourceChanged: it had another digest before (G10).
        """
        with self._lock:
            sending = self._get(entry_id)
            if sending is None:
                return
            before = sending.digests.get(index)
            if before is not None and before != digest:
                raise SourceChanged("it changed while it was being read")
            sending.digests.set(index, digest)
            sending.unread.discard(index, index + 1)
            self._file(sending)

    def chunk_sent(self, entry_id: int, index: int, *, zeros: bool = False) -> None:
        """A SendChunk job is over: the chunk is on its way (as ZEROS, it cost no payload)."""
        with self._lock:
            sending = self._get(entry_id)
            if sending is None:
                return
            sending.working -= 1
            length = sending.grid.length(index)
            if zeros:
                sending.zeros += length
            else:
                sending.sent += length
            self._file(sending)

    def job_over(self, entry_id: int) -> None:
        """A HashChunk or AnswerDigests job is over."""
        with self._lock:
            if sending := self._get(entry_id):
                sending.working -= 1
                self._file(sending)

    def checked(self, entry_id: int, pin: Pin, holes: RangeSet | None = None) -> bool:
        """What the look at the source found (answers CheckSource); with the chunks that are holes now.

        Returns:
            False if the entry must be given up as changed: the caller cancels it and offers it anew.
        """
        with self._lock:
            sending = self._get(entry_id)
            if sending is None or sending.state is State.CANCELLED:
                return True
            sending.checking = False
            if pin is Pin.REREAD and not sending.reread:
                # A log that is written to would never hold still. What was offered is its first `size`
                # bytes: they are read a second time, and if they are as before they are what it was at one
                # moment (G10: between the end of the first reading and the beginning of the second). The same
                # goes for a source whose times were too young to show a change.
                sending.reread = True
                still = sending.holes.copy()
                still.difference_update((holes or RangeSet()).complement(sending.grid.count))
                sending.unread = still.complement(sending.grid.count)
                self._file(sending)
                return True
            if pin is Pin.CHANGED:
                return False
            sending.state = next_state(entry_id, sending.state, Type.FINISH)
            self._say.append(m.Finish(entry_id, sending.digests.root()))
            self._file(sending)
            return True

    def cancel(self, entry_id: int, code: int, message: str) -> None:
        """Give up an entry because of its source. The receiver's answer ends it; code ``WITHDRAWN`` is no failure."""
        with self._lock:
            sending = self._get(entry_id)
            if sending is None or sending.state is State.CANCELLED:
                return
            sending.state = next_state(entry_id, sending.state, Type.CANCEL)
            sending.withdrawn = code == m.WITHDRAWN
            sending.wanted = RangeSet()
            sending.asks.clear()
            self._say.append(m.Cancel(entry_id, code, message))
            self._file(sending)

    # --- what the peer says ---

    def receive(self, message: m.Message) -> list[Outcome]:
        """Take in a message of the receiver; the entries that ended by it.

        Raises:
            ProtocolError: it breaks a rule.
        """
        with self._lock:
            match message:
                case m.Want():
                    self._want(message)
                case m.WantAll():
                    self._want_all(message)
                case m.AskDigests():
                    self._ask(message)
                case m.Skip():
                    return self._skips(message.items)
                case m.Refuse():
                    return [outcome for refusal in message.items if (outcome := self._refuse(refusal))]
                case m.Receipt():
                    return self._receipts(message.items)
                case m.Pause():
                    self._pause(message)
                case m.Resume():
                    self._pause(None)
                case m.Bye():
                    if (message.done, message.skipped, message.failed) != (self.done, self.skipped, self.failed):
                        raise ProtocolError("the two sides count differently at the end")
                    if not self._said_bye:
                        raise ProtocolError("BYE from the receiver before ours")
                    self._bye = message
                case m.Ping() | m.Busy():
                    pass
                case _:
                    raise ProtocolError(f"{type(message).__name__} is not for a sender")
            return []

    def _get(self, entry_id: int) -> Sending | None:
        """A live entry, with all that there is to know of it; None if it has ended, or the session has."""
        live = None if self._closed else self._live.get(entry_id)
        if isinstance(live, Small):
            live = self._live[entry_id] = live.grown(self.digest)
            self._file(live)
        return live

    def _want_all(self, message: m.WantAll) -> None:
        for entry_id in message.entries:
            live = self._live.get(entry_id)
            if isinstance(live, Small) and live.state is State.OFFERED:
                live.state = State.WANTED
                self._small.append(entry_id)
                continue
            sending = self._step(entry_id, Type.WANT)
            if sending is not None and sending.state is not State.CANCELLED:
                count = sending.grid.count
                self._want_more(sending, [m.Range(0, count)] if count else [])

    def _step(self, entry_id: int, type_: Type) -> Sending | None:
        """Move an entry's state on; None if it has ended (the message is late and dropped)."""
        if not 0 < entry_id < self._next_id:
            raise ProtocolError(f"{type_.name} for entry {entry_id}, which was never offered")
        sending = self._get(entry_id)
        if sending is not None:
            sending.state = next_state(entry_id, sending.state, type_)
        return sending

    def _want(self, message: m.Want) -> None:
        first_answer = (live := self._live.get(message.entry)) is not None and live.state is State.OFFERED
        sending = self._step(message.entry, Type.WANT)
        if sending is None or sending.state is State.CANCELLED:
            return
        if first_answer:
            sending.held = min(message.held, sending.grid.size)
        self._want_more(sending, message.ranges)
        if first_answer:
            sending.missing = sending.grid.bytes_in(sending.wanted)

    def _want_more(self, sending: Sending, ranges: Sequence[m.Range]) -> None:
        for item in ranges:
            stop = item.first + item.count
            if stop > sending.grid.count or item.count == 0:
                raise ProtocolError(f"WANT for chunks {item.first} to {stop} of {sending.grid.count}")
            for again in sending.sent_once.overlap(item.first, stop):
                if (index := sending.repairs.add(*again)) is not None:
                    raise ProtocolError(f"chunk {index} of entry {sending.entry.id} is wanted again and again")
            sending.wanted.add(item.first, stop)
        self._file(sending)

    def _ask(self, message: m.AskDigests) -> None:
        sending = self._step(message.entry, Type.ASK_DIGESTS)
        if sending is None or sending.state is State.CANCELLED:
            return
        stop = message.first + message.count
        if stop > sending.grid.count or not 0 < message.count <= m.MAX_ASKED:
            raise ProtocolError(f"ASK_DIGESTS for chunks {message.first} to {stop} of {sending.grid.count}")
        if len(sending.asks) >= m.MAX_ASKS:
            raise ProtocolError("too many ASK_DIGESTS unanswered")
        sending.asks.append(AnswerDigests(message.entry, message.digest, message.first, stop))
        self._file(sending)

    def _skips(self, items: Sequence[m.SkipItem]) -> list[Outcome]:
        """The small ones that are there already in one go, as in ``_receipts``."""
        ended: list[Outcome] = []
        for item in items:
            entry_id, reason = item
            live = self._live.get(entry_id)
            if isinstance(live, Small) and live.state is State.OFFERED and reason is _SAME:
                self.skipped += 1
                del self._live[entry_id]
                ended.append(Outcome(live.entry, "skipped", 0, "", b"", False, 0, live.entry.size))
            elif (outcome := self._skip(item)) is not None:
                ended.append(outcome)
        return ended

    def _skip(self, item: m.SkipItem) -> Outcome | None:
        sending = self._step(item.entry, Type.SKIP)
        if sending is None:
            return None
        self.skipped += 1
        if item.reason is m.SkipReason.KEPT:
            return self._end(sending, "skipped", message=KEPT)
        sending.held = sending.grid.size
        return self._end(sending, "skipped")

    def _refuse(self, item: m.RefuseItem) -> Outcome | None:
        sending = self._step(item.entry, Type.REFUSE)
        if sending is None:
            return None
        withdrawn = item.code == m.WITHDRAWN
        if withdrawn and not sending.withdrawn:
            raise ProtocolError(f"entry {item.entry} was refused as withdrawn and was not")
        self.failed += not withdrawn
        self._owed += withdrawn
        return self._end(sending, "withdrawn" if withdrawn else "failed", code=item.code, message=item.message)

    def _receipts(self, items: Sequence[m.ReceiptItem]) -> list[Outcome]:
        """The small ones, of which there may be millions, in one go."""
        ended: list[Outcome] = []
        for item in items:
            entry_id, flags, root = item
            live = self._live.get(entry_id)
            if isinstance(live, Small) and live.digest is not None:
                entry = live.entry
                if root != root_of_one(self.digest, live.digest, entry.size):
                    raise ProtocolError(f"a receipt for entry {entry_id} with another root digest")
                self.done += 1
                del self._live[entry_id]
                ended.append(Outcome(entry, "done", 0, "", root, bool(flags & _DURABLE), entry.size))
            elif (outcome := self._receipt(item, live)) is not None:
                ended.append(outcome)
        return ended

    def _receipt(self, item: m.ReceiptItem, live: Sending | Small | None) -> Outcome | None:
        if live is not None and live.state is State.OFFERED and live.entry.kind is Kind.FILE:
            raise ProtocolError(f"a receipt for entry {item.entry}, of which nothing was sent")
        sending = self._step(item.entry, Type.RECEIPT)
        if sending is None:
            return None
        if item.root != sending.digests.root():
            raise ProtocolError(f"a receipt for entry {item.entry} with another root digest")
        self.done += 1
        return self._end(sending, "done", root=item.root, durable=bool(item.flags & _DURABLE))

    def _end(self, sending: Sending, state: str, *, code: int = 0, message: str = "",
             root: bytes = b"", durable: bool = False) -> Outcome:  # fmt: skip
        del self._live[sending.entry.id]
        if sending.filed is not None:
            del self._ready[sending.filed][sending.entry.id]
        if state == "done":
            # Doubted chunks that turned out to be the same are known only now.
            reused = sending.grid.size - sending.grid.bytes_in(sending.sent_once)
            sending.held = reused
        return Outcome(sending.entry, state, code, message, root, durable, sending.sent, sending.held)

    # --- what the shell takes out ---

    def next(self, *, control: bool, bulk: bool) -> Job | None:
        """The next job for a lane's writer; None when there is nothing to do now.

        What a lane without control finds to say waits for the control lane's writer, who may have to be woken.

        Args:
            control: this lane carries control frames (lane 1).
            bulk: this lane carries chunks.
        """
        with self._lock:
            if control and self._say:
                return Say(self._say.popleft())
            if bulk and self._small and self._paused is None:
                return self._send_small()
            while bulk and (found := self._first_ready()):
                sending, need = found
                job = self._job(sending, need)
                self._file(sending)
                if control or not isinstance(job, Say):
                    return job
                self._say.append(job.message)
            if control and self._scanned and not self._live and not self._owed and not self._said_bye:
                self._said_bye = True
                return Say(m.Bye(self.done, self.skipped, self.failed))
            return None

    def _send_small(self) -> SendSmall:
        return SendSmall(tuple(self._small.popleft() for _ in range(min(SMALL_STEP, len(self._small)))))

    def _pause(self, message: m.Pause | None) -> None:
        """Chunks rest or go on; answers and reading go on in any case."""
        self._paused = message
        for live in self._live.values():
            if isinstance(live, Sending):
                self._file(live)

    def _first_ready(self) -> tuple[Sending, Need] | None:
        """An entry that needs something, the most urgent first."""
        for need, ready in self._ready.items():
            if ready:
                return next(iter(ready.values())), need
        return None

    def _file(self, sending: Sending) -> None:
        """Put the entry among those that need what it needs first, so that ``next`` never searches."""
        need = sending.need(paused=self._paused is not None)
        if need is not sending.filed:
            if sending.filed is not None:
                del self._ready[sending.filed][sending.entry.id]
            if need is not None:
                self._ready[need][sending.entry.id] = sending
            sending.filed = need

    def _job(self, sending: Sending, need: Need) -> Job:
        entry_id = sending.entry.id
        match need:
            case Need.SEND:
                start, stop = sending.wanted.first()
                if zeros := sending.holes.overlap(start, stop)[: m.MAX_RANGES]:
                    sending.wanted.difference_update(zeros)
                    sending.sent_once.update(zeros)
                    sending.zeros += sending.grid.bytes_in(RangeSet(zeros))
                    return Say(m.Zeros(entry_id, tuple(m.Range(a, b - a) for a, b in zeros)))
                index, _ = sending.wanted.pop_first(1)
                sending.sent_once.add(index, index + 1)  # now, because its receipt may overtake ``chunk_sent``
                sending.unread.discard(index, index + 1)  # no other lane need read it
                sending.working += 1
                return SendChunk(entry_id, index)
            case Need.ANSWER:
                ask = sending.asks.popleft()
                known = ask.digest is self.digest and sending.digests.known.covers(ask.first, ask.stop)
                if known:
                    return Say(m.Digests(entry_id, ask.digest, ask.first, sending.digests.slice(ask.first, ask.stop)))
                if ask.stop - ask.first > DIGESTS_STEP:
                    sending.asks.appendleft(ask._replace(first=ask.first + DIGESTS_STEP))
                    ask = ask._replace(stop=ask.first + DIGESTS_STEP)
                sending.working += 1
                return ask
            case Need.HASH:
                index, _ = sending.unread.pop_first(1)
                sending.working += 1
                return HashChunk(entry_id, index)
            case Need.CHECK:
                sending.checking = True
                return CheckSource(entry_id)
            case _:
                assert_never(need)

    @property
    def finished(self) -> bool:
        """Both have said BYE."""
        with self._lock:
            return self._bye is not None

    @property
    def said_bye(self) -> bool:
        with self._lock:
            return self._said_bye

    def live(self) -> Live:
        """What is under way."""
        with self._lock:
            live = [one for one in self._live.values() if isinstance(one, Sending)]
            small = [one for one in self._live.values() if isinstance(one, Small)]
            return Live(
                all_offered=self._scanned,
                files=sum(sending.entry.kind is not Kind.FOLDER for sending in live) + len(small),
                size=sum(sending.grid.size for sending in live) + sum(one.entry.size for one in small),
                sent=sum(sending.sent for sending in live) + sum(one.entry.size for one in small if one.digest),
                held=sum(sending.held for sending in live),
                zeros=sum(sending.zeros for sending in live),
            )

    def moved(self, entry_id: int) -> tuple[int, int]:
        """Payload bytes sent for a live entry in this session, and bytes that the receiver held of it."""
        with self._lock:
            sending = self._get(entry_id)
            return (sending.sent, sending.held) if sending else (0, 0)

    def missing(self, entry_id: int) -> int | None:
        """Bytes of a live entry that the receiver neither held nor doubted when it answered; None before that."""
        with self._lock:
            sending = self._get(entry_id)
            return sending.missing if sending else None

    @property
    def pause_reason(self) -> str | None:
        """Why chunks rest; None while they do not."""
        with self._lock:
            return self._paused.message if self._paused else None
