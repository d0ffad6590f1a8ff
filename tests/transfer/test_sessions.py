"""Thousands of whole sessions: a plan against a ledger, without sockets, disks or threads.

Each session is made from its seed: what the sender has, what the receiver holds of it, how many lanes there
are, how fast each thread is, what is damaged, what the disk loses, when a source changes. Every thread of
the two shells is a small actor here; the seed picks whose turn it is, after every step that could be
interrupted. Frames keep their order within a lane and none across lanes. Every message goes through the
codec and every lane is held to the order of frames. Chunks have 8 bytes, so that a file has many.
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
from ftx.protocol.manifest import ChunkDigests, DigestName, Entry, Grid, Kind, Pin
from ftx.protocol.messages import Type
from ftx.protocol.ranges import RangeSet
from ftx.protocol.session import LaneOrder
from ftx.transfer import ledger, plan

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
    (ledger, "COMPARE_STEP", 3),
    (ledger, "COMPARES_OPEN", 2),
)


# --- What the two sides have ---------------------------------------------------------------------------


@dataclass(eq=False)
class Source:
    """A file of the sender's. ``stamp`` stands for all that a look at its metadata tells, but for its size."""

    path: bytes
    kind: Kind
    data: bytes
    holes: set[int]
    start: str  #: what the receiver has of it, see ``World.look``
    stamp: int = 0
    offers: int = 0
    past: list[bytes] = field(default_factory=list)  #: all contents that it ever had

    def __post_init__(self) -> None:
        self.past.append(self.data)

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
    root: bytes


@dataclass
class Record:
    """What a session left to be judged."""

    seed: int
    steps: int = 0
    sources: list[Source] = field(default_factory=list)
    offers: dict[int, Offer] = field(default_factory=dict)
    outcomes: list[tuple[int, plan.Outcome]] = field(default_factory=list)
    published: dict[int, Published] = field(default_factory=dict)
    overtaken: list[str] = field(default_factory=list)  #: jobs taken while missing chunks waited
    late_wants: list[int] = field(default_factory=list)  #: entries not asked for at once
    totals: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    reused: tuple[int, int] = (0, 0)
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

        self.record.sources = [self.make_source(number) for number in range(rng.randint(1, 4))]
        self.to_offer = deque(self.record.sources)
        self.again: deque[Source] = deque()
        self.scanned = False
        self.offers = self.record.offers
        self.paused = False

        self.disks: dict[bytes, dict[int, bytes | None]] = {}
        self.looks: deque[Entry] = deque()
        self.tasks: list[ledger.Action | tuple[int, int]] = []
        self.said_bye = False

        self.changes = {rng.randrange(400): self.change_source for _ in range(rng.choice((0, 0, 1, 3)))}
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

    def make_source(self, number: int) -> Source:
        rng = self.rng
        kind = rng.choices((Kind.FILE, Kind.SYMLINK), (19, 1))[0]
        size = rng.choice((0, 1, CHUNK, rng.randrange(3 * CHUNK), rng.randrange(14 * CHUNK)))
        data = bytearray(rng.randbytes(size if kind is Kind.FILE else 0))
        count = -(-len(data) // CHUNK)
        holes = set()
        for index in rng.sample(range(count), rng.choice((0, 0, count // 3))):
            data[index * CHUNK : (index + 1) * CHUNK] = bytes(len(data[index * CHUNK : (index + 1) * CHUNK]))
            if rng.random() < 0.7:
                holes.add(index)
        start = rng.choices(("fresh", "partial", "same", "kept", "rejected"), (4, 12, 1, 1, 1))[0]
        return Source(b"file %d" % number, kind, bytes(data), holes, start)

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
        record.reused = (self.plan.bytes_held, self.ledger.bytes_held)
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
            self.plan.folder_end(m.FolderEnd(b"", m.FolderFlags.WHOLE, 0, 0))
            self.plan.scan_done()
            self.scanned = True
            return True
        queue = self.again or self.to_offer
        room = self.plan.room()
        if not queue or room < 1:
            return False
        if queue is self.again:
            self.offer([queue.popleft()])
            self.plan.offered_again()
            self.events["offered again"] += 1
        else:
            self.offer([queue.popleft() for _ in range(self.rng.randint(1, min(room, len(queue))))])
        return True

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
            items.append((m.Offered(source.kind, source.path, size, allocated, 0o644, 0, tag), holes, known))
        for source, entry_id in zip(sources, self.plan.offer(b"", items), strict=True):
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
                frame = codec.encode_data(message.entry, message.index, message.digest, message.length)
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
                if self.paused:
                    self.record.overtaken.append(f"{job} in a pause")
            case plan.HashChunk() | plan.AnswerDigests() | plan.CheckSource() if not self.paused:
                waiting = [entry_id for entry_id, offer in self.offers.items() if offer.wanted]
                if waiting:
                    self.record.overtaken.append(f"{job} while {waiting} waited")

    def carry_out(self, lane: int, job: plan.Job) -> Iterator[None]:
        if isinstance(job, plan.Say):
            self.send(lane, job.message)
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
                        payload = data
                        if self.rng.random() < self.damage:
                            payload = bytes([data[0] ^ 1]) + data[1:]
                            self.events["damaged"] += 1
                            offer.lost[job.index] += 1
                        transit = DigestName.XXH3_128.function(data)
                        self.send(lane, m.Data(job.entry, job.index, transit, len(data)), payload)
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
            case m.Want() if self.plan.entry(message.entry):
                offer = self.offers[message.entry]
                if not offer.given_up:
                    for item in message.ranges:
                        offer.wanted |= set(range(item.first, item.first + item.count)) - offer.holes
            case m.Pause():
                self.paused = True
            case m.Resume():
                self.paused = False
        for outcome in self.plan.receive(message):
            self.events[outcome.state] += 1
            self.record.outcomes.append((outcome.entry.id, outcome))
            offer = self.offers[outcome.entry.id]
            offer.wanted.clear()
            if outcome.state == "withdrawn":
                self.again.append(offer.source)
        return True

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
                case ledger.Say():
                    if hold or actor in self.unsaid:
                        self.unsaid.setdefault(actor, []).append(action.message)
                    else:
                        self.answer(action.message)
                case ledger.Look():
                    self.looks.append(action.entry)
                case ledger.Rehash():
                    self.tasks += [
                        (action.entry, index) for start, stop in action.ranges for index in range(start, stop)
                    ]
                case ledger.Release():
                    self.events["released"] += 1
                case _:
                    self.tasks.append(action)

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
                            self.disk(receiving.entry)[index] = bytes(receiving.grid.length(index))
                    self.act(actor, self.ledger.zeroed(receiving, ranges))
            case m.Unknown():
                pass
            case _:
                self.act(actor, self.ledger.receive(message))
        return True

    def disk(self, entry: Entry) -> dict[int, bytes | None]:
        return self.disks.setdefault(entry.path, {})

    def take_chunk(self, actor: str, data: m.Data, payload: bytes) -> Iterator[None]:
        receiving = self.ledger.begin(data)
        yield
        if receiving is None:
            self.events["late"] += 1
            return
        if DigestName.XXH3_128.function(payload) != data.digest:
            self.act(actor, self.ledger.damaged(receiving, data.index))
            return
        if self.ledger.get(data.entry) is receiving:
            self.disk(receiving.entry)[data.index] = payload
            self.offers[data.entry].fresh.add(data.index)
        yield
        self.act(actor, self.ledger.written(receiving, data.index, self.hash(payload)))

    def look(self) -> bool:
        if self.say_now("look"):
            return True
        if "look" in self.under_way:
            return self.go_on("look")
        if not self.looks:
            return False
        return self.go_on("look", self.answer_offer(self.looks.popleft()))

    def answer_offer(self, entry: Entry) -> Iterator[None]:
        verdict = self.verdict(entry)
        yield
        alive = self.ledger.get(entry.id) is not None
        actions = self.ledger.looked(entry.id, verdict)
        if isinstance(verdict, ledger.Take) and alive:
            says = [action for action in actions if isinstance(action, ledger.Say)]
            if not isinstance(says[0].message, m.Want):
                self.record.late_wants.append(entry.id)
        self.act("look", actions)

    def verdict(self, entry: Entry) -> ledger.Verdict:
        """What the disk has: at first as the seed says, later what earlier offers left there."""
        rng = self.rng
        offer = self.offers[entry.id]
        start = offer.source.start if entry.path not in self.disks else "again"
        disk = self.disk(entry)
        held, doubted = RangeSet(), RangeSet()
        digests = ChunkDigests(offer.grid, self.name)
        match start:
            case "same":
                return ledger.Leave(m.SkipReason.SAME)
            case "kept":
                return ledger.Leave(m.SkipReason.KEPT)
            case "rejected":
                return ledger.Reject(Exists.wire, "it is there")
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
        return bytes([data[0] ^ 1]) + data[1:] if self.rng.random() < 0.8 else None

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
        offer, receiving = self.offers.get(entry_id), self.ledger.get(entry_id)
        if receiving is None or offer is None or not offer.fresh:
            return False
        lost = set(offer.fresh)
        offer.fresh.clear()
        for index in lost:
            self.disk(receiving.entry)[index] = None
        offer.lost.update(lost)
        self.events["lost"] += 1
        self.act("work", self.ledger.lost(entry_id, RangeSet([(index, index + 1) for index in lost])))
        return True

    def do_task(self, task: ledger.Action | tuple[int, int]) -> Iterator[None]:
        match task:
            case (entry_id, index):
                if receiving := self.ledger.get(entry_id):
                    data = self.disk(receiving.entry)[index]
                    yield
                    self.act("work", self.ledger.rehashed(entry_id, index, None if data is None else self.hash(data)))
            case ledger.Compare():
                if receiving := self.ledger.get(task.entry):
                    found: list[tuple[int, bytes | None]] = []
                    for at in range(0, len(task.digests), task.digest.size):
                        index = task.first + at // task.digest.size
                        data = self.disk(receiving.entry)[index]
                        theirs = task.digests[at : at + task.digest.size]
                        same = data is not None and task.digest.function(data) == theirs
                        found.append((index, self.hash(data) if same and data is not None else None))
                        yield
                    self.act("work", self.ledger.compared(task.entry, found))
                    self.events["compared"] += 1
            case ledger.Commit():
                yield from self.publish(task.entry)

    def publish(self, entry_id: int) -> Iterator[None]:
        receiving, offer = self.ledger.get(entry_id), self.offers[entry_id]
        if receiving is None or not receiving.committing:
            return  # what it was to publish was lost meanwhile
        if self.rng.random() < self.disk_trouble and self.lose(entry_id):
            return
        if self.rng.random() < self.disk_trouble / 5:
            self.events["no space"] += 1
            self.act("work", self.ledger.fail(entry_id, NoSpace.wire, "the disk is full"))
            return
        disk = self.disk(receiving.entry)
        data = b"".join(disk[index] or b"lost" for index in range(receiving.grid.count))
        assert receiving.root is not None
        durable = self.rng.random() < 0.5
        self.record.published[entry_id] = Published(offer, data, durable, receiving.root)
        yield
        self.act("work", self.ledger.committed(entry_id, durable=durable))


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
            grid, name = published.offer.grid, DigestName.SHA_256 if len(published.root) == 32 else DigestName.XXH3_128
            assert len(published.data) == grid.size, (record.seed, entry_id)
            digests = ChunkDigests(grid, name)
            for index in range(grid.count):
                digests.set(index, name.function(published.data[index * CHUNK : (index + 1) * CHUNK]))
            assert digests.root() == published.root, (record.seed, entry_id)


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
            published = record.published[entry_id]
            assert (outcome.durable, outcome.root) == (published.durable, published.root), (record.seed, entry_id)


@every_session
def test_both_sides_agree_on_what_was_reused(seeds_from: int) -> None:
    for record in sessions(seeds_from):
        if all(outcome.state in ("done", "skipped") for _, outcome in record.outcomes):
            assert record.reused[0] == record.reused[1], record.seed


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
        "damaged", "lost", "late", "zeros", "pause", "no space", "done", "skipped", "failed",
    }  # fmt: skip
    assert codes.keys() >= {0, IntegrityError.wire, NoSpace.wire, Exists.wire}
