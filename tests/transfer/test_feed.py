"""What a run still has to offer: its order over breaks, and its end, also while a thread is stuck in the walk."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftx.protocol.manifest import DigestName
from ftx.storage import scan
from ftx.storage.source import Source
from ftx.transfer import crew, feed, send
from ftx.transfer.crew import Stop
from ftx.transfer.feed import Feed
from tests.support.local import LocalReceiver, local_send

PATIENCE_S = 10


@pytest.fixture
def found(shm: Path) -> Iterator[list[scan.Found]]:
    """A walk's finds: six files in a folder with two others below it, each behind what is in it."""
    for name in ("tree/b/1", "tree/b/2", "tree/c/3", "tree/4", "tree/5", "tree/6"):
        (shm / name).parent.mkdir(parents=True, exist_ok=True)
        (shm / name).touch()
    places: list[Any] = []
    yield list(scan.walk([os.fsencode(shm / "tree")], bytes(32), DigestName.XXH3_128, places))
    for place in places:
        place.close()


class StuckWalk:
    """A walk that waits before its ``at``-th find until it is let go."""

    def __init__(self, finds: list[scan.Found], at: int) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.ended = 0
        self.generator = self._walk(finds, at)

    def _walk(self, finds: list[scan.Found], at: int) -> Iterator[scan.Found]:
        for number, one in enumerate(finds):
            if number == at:
                self.inside.set()
                assert self.go_on.wait(PATIENCE_S)
            yield one

    def close(self) -> None:
        self.generator.close()  # type: ignore[attr-defined]
        self.ended += 1


def drain(line: Feed) -> list[Any]:
    """Take all there is; sources without their items."""
    taken: list[Any] = []
    while (some := line.take(256, lambda _: True)) is not None:
        taken += [item.source for item in some] if isinstance(some, list) else [some]
    return taken


@pytest.mark.parametrize("batch", [1, 2, 256])
@pytest.mark.parametrize("at", range(12))
def test_what_a_broken_session_left_goes_before_what_its_stuck_scan_finds_later(
    found: list[scan.Found], monkeypatch: pytest.MonkeyPatch, at: int, batch: int
) -> None:
    """Else a folder's own entry, which was left, would come before a file of it, or one before it in another."""
    monkeypatch.setattr(feed, "BATCH", batch)
    walk = StuckWalk(found, at)
    line = Feed(walk.generator)
    under_way: list[feed.Item] = []
    passed: list[scan.Found] = []

    def first_session(what: Any) -> bool:
        if walk.inside.is_set():
            return False
        if isinstance(what, list):
            under_way.extend(what)
        else:
            passed.append(what)
        return True

    def scanning() -> None:
        while line.take(256, first_session) is not None:
            pass

    scanner = threading.Thread(target=scanning)
    scanner.start()
    assert walk.inside.wait(PATIENCE_S)
    line.put_back(under_way)
    walk.go_on.set()
    scanner.join()
    left = [item.source for item in under_way]
    assert drain(line) == left + [one for one in found if one not in left and one not in passed]


def test_what_was_left_twice_keeps_its_order_whoever_comes_first(found: list[scan.Found]) -> None:
    """A late take that may not have what was left, and the end of its session, which puts back what went before."""
    items = [feed.Item(one) for one in found if isinstance(one, Source)]
    same = [item for item in items if item.source.folder == b"tree"]
    line = Feed(iter(()))
    line.put_back(same)
    under_way = line.take(2, lambda _: True)
    assert isinstance(under_way, list)
    ending = threading.Thread(target=lambda: line.put_back(under_way))

    def too_late(_: Any) -> bool:
        ending.start()
        ending.join(0.05)  # it may have to wait for this one
        return False

    assert line.take(2, too_late) is None
    ending.join()
    assert drain(line) == [item.source for item in same]


def test_what_was_left_is_handed_out_while_another_session_is_stuck_in_the_walk(found: list[scan.Found]) -> None:
    walk = StuckWalk(found, 1)
    line = Feed(walk.generator)
    first = line.take(1, lambda _: True)
    assert isinstance(first, list)
    late = threading.Thread(target=lambda: line.take(1, lambda _: False))
    late.start()
    assert walk.inside.wait(PATIENCE_S)
    taken: list[Any] = []
    line.put_back(first)
    following = threading.Thread(target=lambda: taken.append(line.take(1, lambda _: True)))
    following.start()
    following.join(PATIENCE_S / 10)
    in_time = list(taken)
    walk.go_on.set()
    late.join()
    following.join()
    assert in_time == [first]


# --- The end of a run ----------------------------------------------------------------------------------


def test_a_run_that_ends_closes_its_walk(found: list[scan.Found]) -> None:
    walk = StuckWalk(found, -1)
    line = Feed(walk.generator, walk.close)
    line.take(1, lambda _: True)
    line.close()
    assert walk.ended == 1
    assert line.take(1, lambda _: True) is None


def test_a_walk_that_somebody_is_stuck_in_ends_when_he_comes_out(found: list[scan.Found]) -> None:
    """Only then: what it uses must not be closed under it, and nobody waits for it."""
    walk = StuckWalk(found, 1)
    line = Feed(walk.generator, walk.close)
    line.take(1, lambda _: True)
    stuck = threading.Thread(target=lambda: line.take(1, lambda _: False))
    stuck.start()
    assert walk.inside.wait(PATIENCE_S)
    line.close()
    assert walk.ended == 0
    walk.go_on.set()
    stuck.join()
    assert walk.ended == 1


def open_below(path: Path) -> int:
    return sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(path)) for fd in os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ["listdir", "fstat"])
@pytest.mark.parametrize("at", [1, 2])
def test_g11_a_run_is_interrupted_while_its_scan_is_at_a_slow_disk(
    shm: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    """It ends as interrupted; and what the scan does when it comes back, it does in the folder it was in."""
    monkeypatch.setattr(send, "LEAVE_S", 0.01)
    monkeypatch.setattr(send, "LAST_WORD_S", 0.01)
    monkeypatch.setattr(crew, "SETTLE_S", 0.01)
    (shm / "tree" / "below").mkdir(parents=True)
    (shm / "tree" / "a").touch()
    (shm / "tree" / "below" / "b").touch()
    inside, go_on = threading.Event(), threading.Event()
    scanner: list[threading.Thread] = []
    opened: list[Any] = []
    calls = 0

    class Slow:
        """``os`` as the scan sees it."""

        def __getattr__(self, attribute: str) -> Any:
            real = getattr(os, attribute)
            if attribute not in (name, "open", "stat"):
                return real

            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                if attribute == name:
                    calls += 1
                    if calls == at:
                        scanner.append(threading.current_thread())
                        inside.set()
                        assert go_on.wait(PATIENCE_S)
                elif inside.is_set():
                    opened.append(kwargs.get("dir_fd"))
                return real(*args, **kwargs)

            return call

    stop = Stop()

    def interrupt() -> None:
        assert inside.wait(PATIENCE_S)
        stop.request(signal.SIGINT)

    monkeypatch.setattr(scan, "os", Slow())
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with LocalReceiver(shm) as receiver:
            finished = local_send(shm, shm / "tree", receiver.port, stop=stop)
    finally:
        go_on.set()
        interrupter.join()
        scanner[0].join(PATIENCE_S)
    assert finished.code == 128 + signal.SIGINT
    assert None not in opened
    assert open_below(shm / "tree") == 0
