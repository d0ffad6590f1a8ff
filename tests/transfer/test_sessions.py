"""Thousands of whole sessions: a plan against a ledger, without sockets, disks or threads.

Each session is made from its seed: what the sender has, what the receiver holds of it, how many lanes there
are, how fast each thread is, what is damaged, what the disk loses, when a source changes. Every thread of
the two shells is a small actor here; the seed picks whose turn it is, after every step that could be
interrupted. Frames keep their order within a lane and none across lanes. Every message goes through the
codec and every lane is held to the order of frames. Chunks have 8 bytes, so that a file has many. What is
sent is a tree: files and links of several folders, each folder offered behind what is in it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest

from ftx.errors import Exists, IntegrityError, NoSpace, SourceChanged
from ftx.protocol import codec, manifest
from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Entry, Grid, Kind, Pin, root_of_one
from ftx.protocol.messages import Type
from ftx.protocol.ranges import RangeSet
from ftx.protocol.session import LaneOrder
from ftx.transfer import ledger, plan
from ftx.transfer.actions import FRESH

SESSIONS = 3500
AT_ONCE = 100
MOST_STEPS = 5_000
CHUNK = 8

#: Limits made small, so that small sessions meet them.
SMALL = (
    (manifest, "MIN_CHUNK", CHUNK),
    (m, "INITIAL_WINDOW", 1),
    (m, "MAX_RANGES", 3),
    (m, "MAX_ASKED", 4),
    (plan, "DIGESTS_STEP", 2),
    (plan, "SMALL_STEP", 2),
    (ledger, "COMPARE_STEP", 3),
    (ledger, "COMPARES_OPEN", 2),
)
#: Files up to so many bytes are small, in sessions of this remainder.
SMALL_SIZES = (-1, CHUNK, 1)
#: The folders of a tree.
TREES = ((), (), (b"d",), (b"d", b"d/e"), (b"d", b"d/e", b"d/f", b"g"))


# --- What the two sides have ---------------------------------------------------------------------------


@dataclass(eq=False)
class Source:
    """What the sender has. ``stamp`` stands for all that a look at its metadata tells, but for its size."""

    folder: bytes
    name: bytes
    kind: Kind
    data: bytes
    holes: set[int]
    start: str  #: what the receiver has of it, see ``World.look``
    stamp: int = 0
    offers: int = 0
    past: list[bytes] = field(default_factory=list)  #: all contents that it ever had

    def __post_init__(self) -> None:
        self.past.append(self.data)

    @property
    def path(self) -> bytes:
        return self.folder + b"/" + self.name if self.folder else self.name

    def write(self, data: bytes, *, stamped: bool) -> None:
        self.data = data
        self.holes = set()
        self.past.append(data)
        self.stamp += stamped


@dataclass(eq=False)
class Offer:
    """One entry: a source as it was when it was offered, and what became of it."""

    source: Source
    grid: Grid
    stamp: int
    holes: set[int]
    wanted: set[int] = field(default_factory=set)  #: and not taken by a lane yet
    right: dict[int, bytes] = field(default_factory=dict)  #: chunks that the receiver held rightly
    sent: Counter[int] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)  #: damaged on the way, or by the receiver's disk
    fresh: set[int] = field(default_factory=set)  #: written in this session and not synced
    given_up: bool = False

    def chunk(self, index: int) -> bytes:
        """The chunk as it is now."""
        return self.source.data[: self.grid.size][index * CHUNK : (index + 1) * CHUNK]


@dataclass(frozen=True)
class Published:
    offer: Offer
    data: bytes
    durable: bool


@dataclass
class Record:
    """What a session left to be judged."""

    seed: int
    steps: int = 0
    sources: list[Source] = field(default_factory=list)
    offers: dict[int, Offer] = field(default_factory=dict)
    outcomes: list[tuple[int, plan.Outcome]] = field(default_factory=list)
    published: dict[int, Published] = field(default_factory=dict)  #: in this order
    theirs: dict[int, plan.Outcome] = field(default_factory=dict)  #: how each entry ended for the receiver
    early: list[str] = field(default_factory=list)  #: folders whose turn came before that of what is in them
    overtaken: list[str] = field(default_factory=list)  #: jobs taken while missing chunks waited
    late_wants: list[int] = field(default_factory=list)  #: entries not asked for at once
    totals: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    held: int = 0  #: bytes, as the receiver counts
    files: tuple[int, int] = (0, 0)  #: that ended well, and that were skipped, as the receiver counts
    events: Counter[str] = field(default_factory=Counter)


class Stuck(AssertionError):
    """Nobody can do anything, and the session has not ended."""


def zero(data: bytes) -> bool:
    return not any(data)


# --- The simulated world -------------------------------------------------------------------------------


class World:
    """A session and its surroundings. Each actor's method does one step and says whether there was one to do."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"session {seed}")
        rng = self.rng
        self.record = Record(seed)
        self.events = self.record.events
        self.name = rng.choices(list(DigestName), (4, 1))[0]
        self.hash = self.name.function
        self.lanes = rng.choice((1, 1, 2, 3, 4))
        window = rng.randint(1, 4)
        self.plan = plan.Plan(self.name)
        self.plan.opened(window)
        self.ledger = ledger.Ledger(self.name, window)
        self.damage = rng.choice((0, 0, 0.05, 0.4))
        self.disk_trouble = rng.choice((0, 0, 0.1, 0.5))
        self.held_back = rng.choice((0, 0.3))

        self.forward: list[deque[tuple[bytes, bytes]]] = [deque() for _ in range(self.lanes)]
        self.backward: deque[bytes] = deque()
        self.orders = [opened_lane(rng.random() < 0.5, control=lane == 0) for lane in range(self.lanes)]
        self.under_way: dict[str, Iterator[None]] = {}
        self.unsaid: dict[str, list[m.Message]] = {}

        self.to_offer = deque(self.walk())
        self.record.sources = [found for found in self.to_offer if isinstance(found, Source)]
        self.again: deque[Source] = deque()
        self.scanned = False
        self.offers = self.record.offers
        self.paused = False

        self.answered: set[int] = set()  # entries whose end the sender has heard of
        self.over: set[int] = set()  # those that the receiver has ended
        self.disks: dict[bytes, dict[int, bytes | None]] = {}
        self.looks: deque[tuple[Entry, ...]] = deque()
        self.tasks: list[ledger.Action | tuple[int, int]] = []
        self.said_bye = False

        self.changes = {rng.randrange(400): self.change_source for _ in range(rng.choice((0, 0, 1, 3)))}
        self.changes |= {rng.randrange(200): self.recall for _ in range(rng.choice((0, 0, 0, 2)))}
        if rng.random() < 0.2:
            start = rng.randrange(120)
            self.changes |= {start: self.pause, start + rng.randrange(1, 150): self.resume}
        self.actors = self.make_actors()

    def make_actors(self) -> list[Callable[[], bool]]:
        """Every thread of both sides, the fast ones several times."""
        found: list[Callable[[], bool]] = [self.scan, self.read_answers, self.look, self.work]
        found += [lambda lane=lane: self.write(lane) for lane in range(self.lanes)]  # type: ignore[misc]
        found += [lambda lane=lane: self.read(lane) for lane in range(self.lanes)]  # type: ignore[misc]
        return [actor for actor in found for _ in range(self.rng.choice((1, 2, 6)))]

    def walk(self) -> Iterator[Source | m.FolderEnd]:
        """A tree in the order of the sender's walk: a folder's files, what is below it, its end, itself."""
        rng = self.rng
        folders = rng.choice(TREES)
        inside: dict[bytes, list[Source]] = {folder: [] for folder in (b"", *folders)}
        for number in range(rng.randint(0 if folders else 1, 4 if rng.random() < 0.7 else 8)):
            folder = rng.choice(list(inside))
            inside[folder].append(self.make_source(folder, number))

        def below(folder: bytes) -> Iterator[Source | m.FolderEnd]:
            yield from inside[folder]
            for sub in folders:
                above, _, name = sub.rpartition(b"/")
                if above == folder:
                    yield from below(sub)
                    yield self.make_source(folder, 0, name)
            yield m.FolderEnd(folder, m.FolderFlags.WHOLE)

        return below(b"")

    def make_source(self, folder: bytes, number: int, name: bytes = b"") -> Source:
        """A file or link; the folder ``name``, if there is one."""
        rng = self.rng
        kind = Kind.FOLDER if name else rng.choices((Kind.FILE, Kind.SYMLINK), (9, 1))[0]
        size = rng.choice((0, 1, CHUNK, rng.randrange(3 * CHUNK), rng.randrange(14 * CHUNK)))
        data = bytearray(rng.randbytes(size if kind is Kind.FILE else 0))
        count = -(-len(data) // CHUNK)
        holes = set()
        for index in rng.sample(range(count), rng.choice((0, 0, count // 3))):
            data[index * CHUNK : (index + 1) * CHUNK] = bytes(len(data[index * CHUNK : (index + 1) * CHUNK]))
            if rng.random() < 0.7:
                holes.add(index)
        start = rng.choices(("fresh", "partial", "same", "kept", "rejected"), (4, 12, 1, 1, 1))[0]
        return Source(folder, name or b"file %d" % number, kind, bytes(data), holes, start)

    def run(self) -> Record:
        rng, record = self.rng, self.record
        while not (self.plan.finished and self.still()):
            record.steps += 1
            if record.steps > MOST_STEPS:
                raise Stuck(f"no end after {MOST_STEPS} steps")
            if happening := self.changes.pop(record.steps, None):
                happening()
            first = rng.randrange(len(self.actors))
            in_turn = self.actors[first:] + self.actors[:first]
            # Twice: a bulk lane that finds nothing to send may leave something to say for lane 1.
            if not any(actor() for actor in in_turn * 2):
                if not self.paused:
                    raise Stuck(f"nobody can do anything after {record.steps} steps")
                self.resume()
        record.totals = (
            (self.plan.done, self.plan.skipped, self.plan.failed),
            (self.ledger.done, self.ledger.skipped, self.ledger.failed),
        )
        record.held = self.ledger.bytes_held
        record.files = (self.ledger.files, self.ledger.files_skipped)
        assert self.plan.live() == plan.Live(all_offered=True, files=0, size=0, sent=0, held=0, zeros=0)
        return record

    def still(self) -> bool:
        return not (any(self.forward) or self.backward or self.under_way or self.unsaid)

    def go_on(self, actor: str, work: Iterator[None] | None = None) -> bool:
        """One step of what ``actor`` is doing; ``work`` is what it does next if it has nothing to do."""
        steps = self.under_way.setdefault(actor, work) if work else self.under_way[actor]
        try:
            next(steps)
        except StopIteration:
            del self.under_way[actor]
        return True

    # --- what happens to both ---

    def change_source(self) -> None:
        rng = self.rng
        source = rng.choice(self.record.sources)
        if source.kind is not Kind.FILE:
            return
        how = rng.choice(("change", "grow", "rewrite"))
        self.events[how] += 1
        data = bytearray(source.data)
        if how != "grow":
            for _ in range(rng.randint(1, 3) if data else 0):
                data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        if how != "change" or rng.random() < 0.3:
            data += rng.randbytes(rng.randrange(1, 20))
        elif rng.random() < 0.3:
            del data[rng.randrange(len(data) + 1) :]
        # What grew in place shows nothing but its size, whatever else was done to it.
        source.write(bytes(data), stamped=how == "change")

    def recall(self) -> None:
        """The sender gives up what it has just offered, whatever it is and however far that has come."""
        live = [entry_id for entry_id, offer in self.offers.items() if entry_id not in self.answered]
        if live:
            self.events["recall"] += 1
            self.give_up(self.rng.choice(live))

    def pause(self) -> None:
        if not self.said_bye:
            self.answer(m.Pause(NoSpace.wire, "full"))
            self.events["pause"] += 1

    def resume(self) -> None:
        if not self.said_bye:
            self.answer(m.Resume())

    # --- the sender ---

    def scan(self) -> bool:
        if not self.to_offer and not self.scanned:
            self.plan.scan_done()
            self.scanned = True
            return True
        room = self.plan.room()
        if self.again and room:
            self.offer([self.again.popleft()])
            self.plan.offered_again()
            self.events["offered again"] += 1
            return True
        match self.to_offer[0] if self.to_offer else None:
            case m.FolderEnd() as end:
                self.to_offer.popleft()
                self.plan.say(end)
                return True
            case Source() as first if room:
                batch = [first]
                self.to_offer.popleft()
                most = self.rng.randint(1, room)
                while len(batch) < most and self.to_offer:
                    following = self.to_offer[0]
                    if not isinstance(following, Source) or following.folder != first.folder:
                        break
                    batch.append(following)
                    self.to_offer.popleft()
                self.offer(batch)
                return True
        return False

    def offer(self, sources: list[Source]) -> None:
        items = []
        for source in sources:
            source.offers += 1
            size = len(source.data)
            allocated = max(0, size - CHUNK * len(source.holes))
            known = ChunkDigests(Grid.of(size), self.name)
            if self.rng.random() < 0.2:  # read before, in an earlier session of this run
                for index in range(known.grid.count):
                    if self.rng.random() < 0.5:
                        known.set(index, self.hash(source.data[index * CHUNK : (index + 1) * CHUNK]))
            holes = RangeSet([(index, index + 1) for index in source.holes])
            tag = source.stamp.to_bytes(16, "big")
            target = b"t" if source.kind is Kind.SYMLINK else b""
            offered = m.Offered(source.kind, source.name, size, allocated, 0o644, 0, tag, target)
            items.append((offered, holes, known))
        for source, entry_id in zip(sources, self.plan.offer(sources[0].folder, items), strict=True):
            self.offers[entry_id] = Offer(source, Grid.of(len(source.data)), source.stamp, source.holes)

    def pin(self, offer: Offer) -> Pin:
        if offer.stamp != offer.source.stamp:
            return Pin.CHANGED
        young = self.rng.random() < 0.1
        return Pin.REREAD if young or len(offer.source.data) != offer.grid.size else Pin.SAME

    def give_up(self, entry_id: int) -> None:
        offer = self.offers[entry_id]
        offer.given_up = True
        offer.wanted.clear()
        withdrawn = offer.source.offers < m.MAX_OFFERS
        self.events["withdrawn" if withdrawn else "given up"] += 1
        self.plan.cancel(entry_id, m.WITHDRAWN if withdrawn else SourceChanged.wire, "it changed")

    def send(self, lane: int, message: m.Message, payload: bytes = b"") -> None:
        self.orders[lane][0].send(codec.TYPE_OF[type(message)])
        match message:
            case m.Data():
                frame = codec.encode_data(
                    message.entry, message.index, message.digest, message.length, final=message.final
                )
                self.offers[message.entry].sent[message.index] += 1
            case m.Zeros():
                frame = codec.encode(message)
                for item in message.ranges:
                    self.offers[message.entry].sent.update(range(item.first, item.first + item.count))
                self.events["zeros"] += 1
            case _:
                frame = codec.encode(message)
        self.forward[lane].append((frame, payload))

    def write(self, lane: int) -> bool:
        """A lane's writer: takes a job from the plan and carries it out."""
        actor = f"write {lane}"
        if actor in self.under_way:
            return self.go_on(actor)
        job = self.plan.next(control=lane == 0, bulk=lane > 0 or self.lanes == 1)
        if job is None:
            return False
        self.note_taken(job)
        return self.go_on(actor, self.carry_out(lane, job))

    def note_taken(self, job: plan.Job) -> None:
        match job:
            case plan.SendChunk():
                self.offers[job.entry].wanted.discard(job.index)
            case plan.SendSmall():
                for entry_id in job.entries:
                    if self.plan.small_begun((entry_id,)):
                        self.offers[entry_id].wanted.clear()
        match job:
            case plan.SendChunk() | plan.SendSmall() if self.paused:
                self.record.overtaken.append(f"{job} in a pause")
            case plan.HashChunk() | plan.AnswerDigests() if not self.paused:
                waiting = [entry_id for entry_id, offer in self.offers.items() if offer.wanted]
                if waiting:
                    self.record.overtaken.append(f"{job} while {waiting} waited")

    def carry_out(self, lane: int, job: plan.Job) -> Iterator[None]:
        if isinstance(job, plan.Say):
            self.send(lane, job.message)
            return
        if isinstance(job, plan.SendSmall):
            yield from self.send_small(lane, job)
            return
        offer = self.offers[job.entry]
        try:
            match job:
                case plan.SendChunk():
                    data, digest = self.read_source(job.entry, job.index)
                    yield
                    as_zeros = zero(data) and self.rng.random() < 0.5
                    if as_zeros:
                        zeros = m.Zeros(job.entry, (m.Range(job.index, 1),))
                        self.send(0, zeros) if self.lanes == 1 else self.plan.say(zeros)
                    else:
                        self.send_data(lane, job.entry, job.index, data)
                    yield
                    self.plan.chunk_sent(job.entry, job.index, zeros=as_zeros)
                case plan.HashChunk():
                    self.read_source(job.entry, job.index)
                    yield
                    self.plan.job_over(job.entry)
                case plan.AnswerDigests():
                    answer = b""
                    for index in range(job.first, job.stop):
                        answer += job.digest.function(self.read_source(job.entry, index)[0])
                        yield
                    digests = m.Digests(job.entry, job.digest, job.first, answer)
                    self.send(0, digests) if self.lanes == 1 else self.plan.say(digests)
                    self.plan.job_over(job.entry)
                    self.events["answered"] += 1
                case plan.CheckSource():
                    pin = self.pin(offer)
                    yield
                    if pin is Pin.REREAD:
                        self.events["reread"] += 1
                    if not self.plan.checked(job.entry, pin):
                        self.give_up(job.entry)
        except SourceChanged:
            self.give_up(job.entry)

    def send_data(self, lane: int, entry_id: int, index: int, data: bytes, *, final: bool = False) -> None:
        """Send a chunk, that may be damaged on the way."""
        payload = data
        if self.rng.random() < self.damage:
            payload = bytes([data[0] ^ 1]) + data[1:]
            self.events["damaged"] += 1
            self.offers[entry_id].lost[index] += 1
        transit = DigestName.XXH3_128.function(data)
        self.send(lane, m.Data(entry_id, index, transit, len(data), final), payload)

    def send_small(self, lane: int, job: plan.SendSmall) -> Iterator[None]:
        for entry_id in self.plan.small_begun(job.entries):
            offer = self.offers[entry_id]
            data = offer.chunk(0)
            yield
            pin = self.pin(offer)
            if pin is Pin.REREAD:
                yield
                self.events["reread"] += 1
            again_same = len(data) == offer.grid.size and data == offer.chunk(0)
            if pin is Pin.CHANGED or (pin is Pin.REREAD and not again_same):
                self.give_up(entry_id)
                continue
            if self.plan.small_read([(entry_id, self.hash(data) if data else b"")]) == [False]:
                continue
            yield
            self.events["small"] += 1
            if data:
                self.send_data(lane, entry_id, 0, data, final=True)
            else:
                finish = m.Finish(entry_id, root_of_one(self.name, b"", 0))
                self.send(0, finish) if self.lanes == 1 else self.plan.say(finish)

    def read_source(self, entry_id: int, index: int) -> tuple[bytes, bytes]:
        offer = self.offers[entry_id]
        data = offer.chunk(index)
        if len(data) != offer.grid.length(index):
            raise SourceChanged("cut short")
        digest = self.hash(data)
        self.plan.chunk_read(entry_id, index, digest)
        return data, digest

    def read_answers(self) -> bool:
        """The reader of lane 1: puts answers and receipts into the plan."""
        if not self.backward:
            return False
        frame = self.backward.popleft()
        message = decode(frame)
        if isinstance(message, m.Unknown):
            return True
        self.orders[0][0].receive(Type(frame[0]))
        match message:
            case m.Want():
                for item in message.ranges:
                    self.note_wanted(message.entry, set(range(item.first, item.first + item.count)))
            case m.WantAll():
                self.events["want all"] += 1
                for entry_id in message.entries:
                    self.note_wanted(entry_id, set(range(self.offers[entry_id].grid.count)))
            case m.Pause():
                self.paused = True
            case m.Resume():
                self.paused = False
        for outcome in self.plan.receive(message):
            self.events[outcome.state] += 1
            self.record.outcomes.append((outcome.entry.id, outcome))
            self.answered.add(outcome.entry.id)
            offer = self.offers[outcome.entry.id]
            offer.wanted.clear()
            if outcome.state == "withdrawn":
                self.again.append(offer.source)
        return True

    def note_wanted(self, entry_id: int, indexes: set[int]) -> None:
        offer = self.offers[entry_id]
        if entry_id not in self.answered and not offer.given_up:
            offer.wanted |= indexes - offer.holes

    # --- the receiver ---

    def answer(self, message: m.Message) -> None:
        self.orders[0][1].send(codec.TYPE_OF[type(message)])
        self.backward.append(codec.encode(message))
        self.said_bye = self.said_bye or isinstance(message, m.Bye)
        if not self.said_bye and self.rng.random() < 0.02:
            self.backward.append(codec.encode_grease(self.rng.randrange(99), b"?"))

    def act(self, actor: str, actions: list[ledger.Action]) -> None:
        """Carry actions out. Threads may be interrupted between deciding and saying."""
        hold = self.rng.random() < self.held_back
        for action in actions:
            match action:
                case ledger.Say(m.Skip() | m.Refuse() | m.Receipt() as message):
                    self.over |= {item.entry for item in message.items}
                case ledger.Look():
                    for entry in action.entries:
                        self.note_turn(entry.id)
                case ledger.Commit():
                    for entry_id in action.entries:
                        self.note_turn(entry_id)
        self.record.theirs |= {outcome.entry.id: outcome for outcome in self.ledger.ended()}
        for action in actions:
            match action:
                case ledger.Say():
                    if hold or actor in self.unsaid:
                        self.unsaid.setdefault(actor, []).append(action.message)
                    else:
                        self.answer(action.message)
                case ledger.Look():
                    self.looks.append(action.entries)
                case ledger.Rehash():
                    self.tasks += [
                        (action.entry, index) for start, stop in action.ranges for index in range(start, stop)
                    ]
                case ledger.Release():
                    self.events["released"] += 1
                case _:
                    self.tasks.append(action)

    def note_turn(self, entry_id: int) -> None:
        """A folder's own entry has its turn: what is right below it must be over, as far as it was offered before."""
        source = self.offers[entry_id].source
        if source.kind is not Kind.FOLDER:
            return
        before = {
            other for other, offer in self.offers.items() if other < entry_id and offer.source.folder == source.path
        }
        if before:
            self.events["folder behind its contents"] += 1
        if live := before - self.over:
            self.record.early.append(f"folder {entry_id} while {live} are live")

    def say_now(self, actor: str) -> bool:
        """Whether ``actor`` had something to say, and has said it."""
        messages = self.unsaid.pop(actor, [])
        for message in messages:
            self.answer(message)
        return bool(messages)

    def read(self, lane: int) -> bool:
        """A lane's reader."""
        actor = f"read {lane}"
        if self.say_now(actor):
            return True
        if actor in self.under_way:
            return self.go_on(actor)
        if not self.forward[lane]:
            return False
        frame, payload = self.forward[lane].popleft()
        self.orders[lane][1].receive(Type(frame[0]))
        message = decode(frame)
        match message:
            case m.Data():
                return self.go_on(actor, self.take_chunk(actor, message, payload))
            case m.Zeros():
                if place := self.ledger.zeros(message):
                    receiving, ranges = place
                    for start, stop in ranges:
                        for index in range(start, stop):
                            self.disk(message.entry)[index] = bytes(receiving.grid.length(index))
                    self.act(actor, self.ledger.zeroed(receiving, ranges))
            case m.Unknown():
                pass
            case _:
                self.act(actor, self.ledger.receive(message))
        return True

    def disk(self, entry_id: int) -> dict[int, bytes | None]:
        return self.disks.setdefault(self.offers[entry_id].source.path, {})

    def take_chunk(self, actor: str, data: m.Data, payload: bytes) -> Iterator[None]:
        (receiving,) = self.ledger.begin([data])
        yield
        if receiving is None:
            self.events["late"] += 1
            return
        if DigestName.XXH3_128.function(payload) != data.digest:
            self.act(actor, self.ledger.damaged(receiving, data.index))
            return
        if data.entry not in self.over:
            self.disk(data.entry)[data.index] = payload
            self.offers[data.entry].fresh.add(data.index)
        yield
        self.act(actor, self.ledger.written([(receiving, data.index, self.hash(payload))]))

    def look(self) -> bool:
        if self.say_now("look"):
            return True
        if "look" in self.under_way:
            return self.go_on("look")
        if not self.looks:
            return False
        return self.go_on("look", self.answer_offer(self.looks.popleft()))

    def answer_offer(self, entries: tuple[Entry, ...]) -> Iterator[None]:
        found = []
        for entry in entries:
            found.append((entry.id, self.verdict(entry)))
            yield
        taken = {entry_id for entry_id, verdict in found if isinstance(verdict, ledger.Take)} - self.over
        actions = self.ledger.looked(found)
        for action in actions:
            match action:
                case ledger.Say(m.Refuse() as refused):  # it was given up meanwhile
                    taken -= {item.entry for item in refused.items}
                case ledger.Say(m.Want() as want):
                    taken.discard(want.entry)
                case ledger.Say(m.AskDigests() as ask) if ask.entry in taken:
                    self.record.late_wants.append(ask.entry)
        self.record.late_wants += taken
        self.act("look", actions)

    def verdict(self, entry: Entry) -> ledger.Verdict:
        """What the disk has: at first as the seed says, later what earlier offers left there."""
        rng = self.rng
        offer = self.offers[entry.id]
        start = offer.source.start if entry.path not in self.disks else "again"
        disk = self.disk(entry.id)
        held, doubted = RangeSet(), RangeSet()
        digests = ChunkDigests(offer.grid, self.name)
        match start:
            case "same":
                return ledger.Leave(m.SkipReason.SAME)
            case "kept":
                return ledger.Leave(m.SkipReason.KEPT)
            case "rejected":
                return ledger.Reject(Exists.wire, "it is there")
            case _ if entry.kind is not Kind.FILE:
                return ledger.Make()
            case "fresh" | "again" if entry.size <= ledger.SMALL:
                disk.clear()  # nothing of what is small is kept
                return FRESH
            case "partial":
                tag_is_same = rng.random() < 0.6
                share = rng.choice((0.3, 0.8, 1))
                for index in range(offer.grid.count):
                    if rng.random() < share:
                        disk[index] = self.old_chunk(offer.chunk(index), tag_is_same)
                        (held if tag_is_same else doubted).add(index, index + 1)
                if tag_is_same and rng.random() < 0.3:  # verified before, in an earlier session of this process
                    for index, data in disk.items():
                        if data == offer.chunk(index) and rng.random() < 0.7:
                            digests.set(index, self.hash(data))
            case "again":
                for index in [index for index in disk if index >= offer.grid.count]:
                    del disk[index]
                for index in disk:
                    doubted.add(index, index + 1)
        offer.right = {index: data for index, data in disk.items() if data is not None and data == offer.chunk(index)}
        self.events[f"look: {start}"] += 1
        return ledger.Take(held, doubted, digests)

    def old_chunk(self, data: bytes, tag_is_same: bool) -> bytes | None:
        """A chunk as an earlier run left it; None if it cannot be read."""
        wrong = self.rng.random() < (0.1 if tag_is_same else 0.5)
        if not wrong:
            return data
        self.events["rot" if tag_is_same else "differs"] += 1
        return bytes([data[0] ^ 1]) + data[1:] if data and self.rng.random() < 0.8 else None

    def work(self) -> bool:
        """The committing thread: compares, re-hashes, publishes, and sometimes finds that the disk lost data."""
        if self.say_now("work"):
            return True
        if "work" in self.under_way:
            return self.go_on("work")
        if self.rng.random() < self.disk_trouble / 20:
            self.lose(self.rng.choice(list(self.offers) or [0]))
        if not self.tasks:
            return False
        return self.go_on("work", self.do_task(self.tasks.pop(self.rng.randrange(len(self.tasks)))))

    def lose(self, entry_id: int) -> bool:
        """A sync fails; whatever was written since the last one may be gone."""
        offer = self.offers.get(entry_id)
        if offer is None or entry_id in self.over or not offer.fresh:
            return False
        lost = set(offer.fresh)
        offer.fresh.clear()
        for index in lost:
            self.disk(entry_id)[index] = None
        offer.lost.update(lost)
        self.events["lost"] += 1
        self.act("work", self.ledger.lost(entry_id, RangeSet([(index, index + 1) for index in lost])))
        return True

    def do_task(self, task: ledger.Action | tuple[int, int]) -> Iterator[None]:
        match task:
            case (entry_id, index):
                if entry_id not in self.over:
                    data = self.disk(entry_id)[index]
                    yield
                    self.act("work", self.ledger.rehashed(entry_id, index, None if data is None else self.hash(data)))
            case ledger.Compare():
                if task.entry not in self.over:
                    found: list[tuple[int, bytes | None]] = []
                    for at in range(0, len(task.digests), task.digest.size):
                        index = task.first + at // task.digest.size
                        data = self.disk(task.entry)[index]
                        theirs = task.digests[at : at + task.digest.size]
                        same = data is not None and task.digest.function(data) == theirs
                        found.append((index, self.hash(data) if same and data is not None else None))
                        yield
                    self.act("work", self.ledger.compared(task.entry, found))
                    self.events["compared"] += 1
            case ledger.Commit():
                group = [*task.entries]
                if self.rng.random() < 0.5:
                    others = [other for other in self.tasks if isinstance(other, ledger.Commit)]
                    self.tasks = [other for other in self.tasks if not isinstance(other, ledger.Commit)]
                    group += [entry_id for other in others for entry_id in other.entries]
                yield from self.publish(group)

    def publish(self, group: list[int]) -> Iterator[None]:
        """These together, as far as there is no trouble."""
        ready = [entry_id for entry_id in group if self.may_publish(entry_id)]
        durable = self.rng.random() < 0.5
        for entry_id in ready:
            offer, disk = self.offers[entry_id], self.disk(entry_id)
            data = b"".join(disk[index] or b"lost" for index in range(offer.grid.count))
            self.record.published[entry_id] = Published(offer, data, durable)
            yield
        if ready:
            self.events["published together"] += len(ready) > 1
            paths = [(entry_id, self.offers[entry_id].source.path) for entry_id in ready]
            self.act("work", self.ledger.committed(paths, durable=durable))

    def may_publish(self, entry_id: int) -> bool:
        """Whether it is to be published still, and nothing goes wrong before."""
        if not self.ledger.committing([entry_id]):
            return False  # what it was to publish was lost meanwhile
        if self.rng.random() < self.disk_trouble and self.lose(entry_id):
            return False
        if self.rng.random() < self.disk_trouble / 5:
            self.events["no space"] += 1
            self.act("work", self.ledger.fail(entry_id, NoSpace.wire, "the disk is full"))
            return False
        return True


def decode(frame: bytes) -> m.Message | m.Unknown:
    header = codec.decode_header(frame)
    return codec.decode_body(header, frame[codec.HEADER_SIZE :])


def opened_lane(push: bool, *, control: bool) -> tuple[LaneOrder, LaneOrder]:
    """The sender's and the receiver's view of a lane whose handshake is over."""
    sender, receiver = LaneOrder(dialer=push), LaneOrder(dialer=not push)
    for order, dialled in ((sender, push), (receiver, not push)):
        opens = (Type.OPEN, Type.OPENED) if control else (Type.ATTACH, Type.ATTACHED)
        ours, theirs = opens if dialled else reversed(opens)
        for type_ in (Type.HELLO, Type.PROOF, ours):
            order.send(type_)
        for type_ in (Type.HELLO, Type.PROOF, theirs):
            order.receive(type_)
    sender.opened(m.Role.SENDER)
    receiver.opened(m.Role.RECEIVER)
    return sender, receiver


# --- Sessions, run once for all tests ------------------------------------------------------------------


@cache
def sessions(first: int) -> list[Record]:
    records = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in SMALL:
            patch.setattr(module, name, value)
        for seed in range(first, first + AT_ONCE):
            for module in (plan, ledger):
                patch.setattr(module, "SMALL", SMALL_SIZES[seed % len(SMALL_SIZES)])
            try:
                records.append(World(seed).run())
            except Exception as error:
                error.add_note(f"in the session of seed {seed}")
                raise
    return records


every_session = pytest.mark.parametrize("seeds_from", range(0, SESSIONS, AT_ONCE))


@every_session
def test_sessions_end_and_both_sides_count_the_same(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        ours, theirs = record.totals
        assert ours == theirs, record.seed
        states = Counter(outcome.state for _, outcome in record.outcomes)
        assert ours == (states["done"], states["skipped"], states["failed"]), record.seed
        # Each source came to one end, however often it was offered.
        ends = Counter(outcome.entry.path for _, outcome in record.outcomes if outcome.state != "withdrawn")
        assert ends == {source.path: 1 for source in record.sources}, record.seed
        assert all(source.offers <= m.MAX_OFFERS for source in record.sources), record.seed


@every_session
def test_g1_only_what_is_whole_and_agreed_is_published(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        for entry_id, published in record.published.items():
            grid, root = published.offer.grid, record.theirs[entry_id].root
            name = DigestName.SHA_256 if len(root) == 32 else DigestName.XXH3_128
            assert len(published.data) == grid.size, (record.seed, entry_id)
            digests = ChunkDigests(grid, name)
            for index in range(grid.count):
                digests.set(index, name.function(published.data[index * CHUNK : (index + 1) * CHUNK]))
            assert digests.root() == root, (record.seed, entry_id)


@every_session
def test_g2_nothing_held_is_sent_again(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        for entry_id, offer in record.offers.items():
            for index, sent in offer.sent.items():
                held = offer.right.get(index) == offer.chunk(index)  # and did not change since
                assert sent <= offer.lost[index] + (not held), (record.seed, entry_id, index)


@every_session
def test_g3_missing_chunks_go_first(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        assert not record.overtaken, record.seed
        assert not record.late_wants, record.seed


@every_session
def test_g4_g10_what_is_published_is_the_source_at_one_moment(seeds_from: int) -> None:
    """Whatever was damaged on the way, had rotted, was lost, or changed in the middle."""
    for record in sessions(seeds_from):
        for entry_id, published in record.published.items():
            size = published.offer.grid.size
            past = {data[:size] for data in published.offer.source.past if len(data) >= size}
            assert published.data in past, (record.seed, entry_id)


@every_session
def test_g5_a_receipt_is_given_for_what_was_published(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        done = {entry_id: outcome for entry_id, outcome in record.outcomes if outcome.state == "done"}
        assert done.keys() == record.published.keys(), record.seed
        for entry_id, outcome in done.items():
            assert outcome.durable == record.published[entry_id].durable, (record.seed, entry_id)


@every_session
def test_both_sides_agree_on_what_was_reused(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        for entry_id, outcome in record.outcomes:
            if outcome.state in ("done", "skipped"):
                assert outcome.reused == record.theirs[entry_id].reused, (record.seed, entry_id)
        if all(outcome.state in ("done", "skipped") for _, outcome in record.outcomes):
            assert sum(outcome.reused for _, outcome in record.outcomes) == record.held, record.seed


@every_session
def test_both_sides_tell_the_same_of_each_entry(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        ours = {entry_id: outcome for entry_id, outcome in record.outcomes if outcome.state != "withdrawn"}
        assert ours.keys() == record.theirs.keys(), record.seed
        for entry_id, outcome in ours.items():
            theirs = record.theirs[entry_id]
            for name in ("entry", "state", "code", "message", "root", "durable"):
                assert getattr(outcome, name) == getattr(theirs, name), (record.seed, entry_id, name)
        well = [record.offers[entry_id].source.kind for entry_id, outcome in ours.items() if outcome.state != "failed"]
        skipped = [
            record.offers[entry_id].source.kind for entry_id, outcome in ours.items() if outcome.state == "skipped"
        ]
        files = (len(well) - well.count(Kind.FOLDER), len(skipped) - skipped.count(Kind.FOLDER))
        assert files == record.files, record.seed


@every_session
def test_a_folder_has_its_turn_behind_what_is_in_it(seeds_from: int) -> None:
    """Each name that appears in it changes its time: what was offered before it has ended by then."""
    for record in sessions(seeds_from):
        assert not record.early, record.seed
        published = list(record.published)
        for at, entry_id in enumerate(published):
            source = record.offers[entry_id].source
            if source.kind is Kind.FOLDER:
                later = {other for other in published[at + 1 :] if record.offers[other].source.folder == source.path}
                assert all(other > entry_id for other in later), (record.seed, entry_id, later)


def test_the_sessions_meet_everything_that_they_are_for() -> None:
    events: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    for first in range(0, SESSIONS, AT_ONCE):
        for record in sessions(first):
            events += record.events
            codes.update(outcome.code for _, outcome in record.outcomes)
    assert min(events.values()) >= 20, events
    assert events.keys() >= {
        "change", "grow", "rewrite", "reread", "withdrawn", "offered again", "rot", "differs", "compared", "answered",
        "damaged", "lost", "late", "zeros", "pause", "no space", "done", "skipped", "failed", "small", "want all",
        "recall", "folder behind its contents", "published together",
    }  # fmt: skip
    assert codes.keys() >= {0, IntegrityError.wire, NoSpace.wire, Exists.wire}
