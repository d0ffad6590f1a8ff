"""A receiver and a sender as forked processes, one of which dies or is failed at a chosen call of ``ftx.storage``.

Forking a warmed-up process costs milliseconds where starting Python costs a tenth of a second, and there are hundreds
of runs. Each scenario is a process of its own too, so that several run side by side and none can hang the test.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ftx import api
from ftx.options import Exists
from ftx.storage import disk, partial, scan, scratch, source
from ftx.storage.source import Source
from ftx.transfer import crew, events, publish
from tests.crash.lossy import Lost, UnsyncedDisk
from tests.support import local  # noqa: F401 - a receiver that ends does not wait for a tick of its listener
from tests.support.trees import Node, size_of, snapshot, without_top

PATIENCE_S = 30
SIDE_BY_SIDE = 6
KILLED = 137
#: Before a process dies: what its other threads have to say by then is heard.
LAST_WORDS_S = 0.02

#: Functions of ``disk`` that ask the system for nothing.
PURE = {"show", "is_own_file", "destination_error", "destination_errors", "source_errors"}
DISK = [
    name
    for name, value in vars(disk).items()
    if inspect.isfunction(value) and value.__module__ == disk.__name__ and not name.startswith("_") and name not in PURE
]
#: Functions that raise nothing, as they say themselves.
NEVER_RAISES = {"drop_cache", "file_system"}
SOURCE = ["renewed", "holes", "read", "read_small", "check", "rest"]


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th call that is watched.

    Attributes:
        at: counted from 1.
        number: the error that the call ends with; 0: the process dies.
        after: once the call is over, not before it begins.
        only: count the calls of this function alone.
        for_good: at every later call that is counted too.
        lost: the machine dies and not the process alone, and this is gone.
    """

    at: int
    number: int = 0
    after: bool = False
    only: str = ""
    for_good: bool = False
    lost: Lost | None = None


class Watch:
    """Counts calls and carries out a fault."""

    def __init__(self, fault: Fault | None, unsynced: UnsyncedDisk | None = None) -> None:
        self.calls: list[str] = []
        self._fault = fault
        self._unsynced = unsynced
        self._lock = threading.Lock()

    def wrap(self, owner: Any, names: Iterable[str]) -> None:
        for name in names:
            setattr(owner, name, self._wrapped(name, getattr(owner, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            fault = self._due(name)
            if fault and not fault.after:
                self._strike(fault)
            try:
                return real(*args, **kwargs)
            finally:
                if fault and fault.after:
                    self._strike(fault)

        return watched

    def _due(self, name: str) -> Fault | None:
        with self._lock:
            self.calls.append(name)
            fault = self._fault
            if fault is None or fault.only not in ("", name) or (fault.number and name in NEVER_RAISES):
                return None
            count = self.calls.count(name) if fault.only else len(self.calls)
            return fault if count == fault.at or (fault.for_good and count > fault.at) else None

    def _strike(self, fault: Fault) -> None:
        if not fault.number:
            with self._unsynced.lock if self._unsynced else nullcontext():
                time.sleep(LAST_WORDS_S)
                if self._unsynced and fault.lost:
                    self._unsynced.cut(fault.lost)
                os._exit(KILLED)
        raise OSError(fault.number, os.strerror(fault.number))


# --- Processes -------------------------------------------------------------------------------------------------------

Report = Callable[[Any], None]


class Forked:
    """A forked process that reports in lines of JSON. It does not live longer than ``PATIENCE_S``."""

    def __init__(self, work: Callable[[Report], None]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            self._be(work, writing)
        os.close(writing)
        self._lines = os.fdopen(reading)

    @staticmethod
    def _be(work: Callable[[Report], None], fd: int) -> NoReturn:
        status = 1
        try:
            for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(PATIENCE_S)
            work(lambda value: _write_all(fd, json.dumps(value).encode() + b"\n"))
            status = 0
        finally:
            os._exit(status)

    def next(self) -> Any:
        """The next thing that it reports; None when it is over."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def wait(self) -> tuple[int, list[Any]]:
        """Its exit status, and what it reported until then."""
        with self._lines:
            reports = [json.loads(line) for line in self._lines]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), reports


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def side_by_side(works: Iterable[Callable[[Report], None]]) -> Iterator[Any]:
    """Run each in a process of its own, some at a time; what each reports last, in order."""
    running: deque[Forked] = deque()

    def first() -> Any:
        status, reports = running.popleft().wait()
        return reports[-1] if status == 0 else {"died": status}

    try:
        for work in works:
            if len(running) == SIDE_BY_SIDE:
                yield first()
            running.append(Forked(work))
        while running:
            yield first()
    finally:
        while running:
            first()


# --- One transfer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What is transferred, and what is there before.

    Attributes:
        source: the file.
        config: folder with the keys.
        policy: what happens to another file of its name.
        folder: where it goes, below the destination.
        old: contents of the file that has its name; None: there is none.
        target: where the new file will be, below the destination.
        begin: the fault of a run that went before; None: there was none.
        young: the source is too young to be trusted.
        small: the file beside the source is sent, which is written in one go.
        tree: the tree beside the source is sent; ``target`` is the file in it that may have an old version.
        together: one sync stands for a group of small files, whatever file system the test runs on.
    """

    source: Path
    config: Path
    policy: Exists = Exists.REPLACE
    folder: str = ""
    old: bytes | None = b"the old file"
    target: str = "file"
    begin: Fault | None = None
    young: bool = False
    small: bool = False
    tree: bool = False
    together: bool = True

    def __post_init__(self) -> None:
        if self.small:
            object.__setattr__(self, "source", self.source.parents[1] / "small" / self.source.name)
        if self.tree:
            object.__setattr__(self, "source", self.source.parents[1] / "tree")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return size_of(snapshot(self.source)) if self.tree else self.source.stat().st_size

    @property
    def old_name(self) -> str:
        """What has the old contents, below the destination."""
        return self.target if self.tree else "file"

    def prepare(self, base: Path) -> None:
        into = base / "into"
        (into / self.old_name).parent.mkdir(parents=True)
        if self.old is not None:
            (into / self.old_name).write_bytes(self.old)
        if self.begin:
            run = transfer(self, base, of_receiver=self.begin)
            assert run.receiver_status == KILLED, run


@dataclass
class Run:
    """How one receiver and its senders ended. A sender that died has no code; there is none if it could not begin."""

    receiver_status: int = 0
    receiver_code: int | None = None
    receiver_calls: list[str] = field(default_factory=list)
    senders: list[Sent] = field(default_factory=list)


@dataclass
class Sent:
    """How one sender ended."""

    status: int
    code: int | None = None
    message: str = ""
    receipts: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    calls: list[str] = field(default_factory=list)


def transfer(
    setting: Setting,
    base: Path,
    *,
    of_receiver: Fault | None = None,
    of_sender: Fault | None = None,
    sends: int = 1,
) -> Run:
    """A receiver and, one after the other, so many senders."""
    run = Run()
    receiver = Forked(lambda report: _receive(setting, base, of_receiver, report))
    listening = receiver.next()
    if listening and "port" in listening:
        port = listening["port"]
        for _ in range(sends):
            status, reports = Forked(lambda report: _send(setting, port, of_sender, report)).wait()
            last = reports[-1] if status == 0 else {}
            receipts = [report["path"] for report in reports if report.get("state") == "done"]
            run.senders.append(Sent(status, receipts=receipts, **last))
        os.kill(receiver.pid, signal.SIGTERM)
    run.receiver_status, reports = receiver.wait()
    if run.receiver_status == 0:
        last = reports[-1] if reports else listening
        run.receiver_code, run.receiver_calls = last["code"], last["calls"]
    return run


def _receive(setting: Setting, base: Path, fault: Fault | None, report: Report) -> None:
    partial.JOURNAL_S = 0  # so that the calls of two runs are the same
    scratch._syncs_together = lambda fd: setting.together
    scratch.GROUP_SLOW_S = PATIENCE_S
    publish.GATHER_S = 0.05 if setting.tree else publish.GATHER_S  # a group is whole on a busy machine too
    unsynced = None
    if fault and fault.lost:
        unsynced = UnsyncedDisk(base / "unsynced")
        unsynced.install()
    watch = Watch(fault, unsynced)
    watch.wrap(disk, DISK)
    stop = api.Stop()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.request(number))

    def on_event(event: api.Event) -> None:
        if isinstance(event, events.Listening):
            report({"port": event.addresses[0][1]})

    options = api.ReceiveOptions(
        dir=base / "into",
        bind=("127.0.0.1",),
        port=0,
        reserve=0,
        exists=setting.policy,
        plain=True,  # TLS would take a quarter of the time, and touches no disk
        config_dir=setting.config,
    )
    finished = api.Receiver(options, on_event=on_event).run(stop)
    report({"code": finished.code, "calls": watch.calls})


def _send(setting: Setting, port: int, fault: Fault | None, report: Report) -> None:
    crew.SETTLE_S = 0.02  # nobody has more to say than that the connection broke
    source.TRUSTED_AGE_NS = 10**18 if setting.young else 0
    watch = Watch(fault)
    watch.wrap(disk, DISK)
    watch.wrap(Source, SOURCE)
    watch.wrap(scan, ["_entry"])

    def on_event(event: api.Event) -> None:
        if isinstance(event, events.EntryEnded):
            report({"state": event.state, "path": os.fsdecode(event.path)})

    options = api.SendOptions(
        host="127.0.0.1",
        port=port,
        folder=setting.folder,
        retry_for_s=0,
        timeout_s=10,
        lanes=1,  # a busy machine looks far away, and gets more
        plain=True,
        config_dir=setting.config,
    )
    finished = api.send([setting.source], options, on_event=on_event)
    report(
        {
            "code": finished.code,
            "message": finished.message,
            "bytes_sent": finished.bytes_sent,
            "calls": watch.calls,
        }
    )


# --- What became of it -----------------------------------------------------------------------------------------------


def wrong(setting: Setting, base: Path) -> str:
    """What G1 forbids: anything under a final name but the whole old file or the whole new one."""
    if setting.tree:
        return _wrong_in_tree(setting, base)
    into, new = base / "into", setting.source.read_bytes()
    for path in into.rglob("*"):
        name = str(path.relative_to(into))
        if path.is_dir() or name.startswith(".ftx"):
            continue
        data = path.read_bytes()
        whole = {"file": [setting.old]}.get(name, [])
        if name == setting.target:
            whole = [*whole, new]
        if data not in whole:
            return f"{name} has {len(data)} bytes that are neither the old nor the new file"
    if setting.old is not None and not (into / "file").exists():
        return "the old file is gone"
    return ""


def _wrong_in_tree(setting: Setting, base: Path) -> str:
    """Everything but folders comes with its metadata, or not at all. Folders get theirs when they are complete."""
    new, now = offered(setting), without_top(snapshot(base / "into"))
    old = os.fsencode(setting.old_name)
    is_old = old in now and (base / "into" / setting.old_name).read_bytes() == setting.old
    for path, node in now.items():
        if node.kind == "folder":
            if path not in new or new[path].kind != "folder":
                return f"{path!r} is a folder that nobody has sent"
        elif node != new.get(path) and (path != old or not is_old):
            return f"{path!r} is neither old nor new: {node}"
    if setting.old is not None and old not in now:
        return "the old file is gone"
    return ""


def offered(setting: Setting) -> dict[bytes, Node]:
    """What a tree is to be at the destination, by path."""
    name = os.fsencode(setting.source.name)
    return {os.path.join(name, path) if path else name: node for path, node in snapshot(setting.source).items()}


def broken_receipts(setting: Setting, base: Path, receipts: list[str]) -> list[str]:
    """What a receipt was given for, and is not there."""
    if not setting.tree:
        return receipts if receipts and not is_there(setting, base) else []
    new, now = offered(setting), snapshot(base / "into")
    return [path for path in receipts if now.get(os.fsencode(path)) != new[os.fsencode(path)]]


def held_by_receipts(setting: Setting, receipts: list[str]) -> int:
    """Bytes that are not to be sent again."""
    if not setting.tree:
        return setting.size if receipts else 0
    new = offered(setting)
    return sum(new[os.fsencode(path)].size for path in receipts)


def is_there(setting: Setting, base: Path) -> bool:
    """Whether what is new is there, whole, under its final name; a tree with all its metadata and nothing else."""
    if setting.tree:
        return without_top(snapshot(base / "into")) == offered(setting)
    path = base / "into" / setting.target
    return path.exists() and path.read_bytes() == setting.source.read_bytes()


def leftovers(base: Path) -> list[str]:
    own = base / "into" / ".ftx"
    return sorted(os.listdir(own)) if own.exists() else []
