"""G11: a full disk pauses a session once; who found that nobody makes room does not wait again."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import LinkLost, NoSpace
from ftx.protocol import messages as m
from ftx.storage import disk
from ftx.transfer import events, room
from ftx.transfer.room import Room
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until


class FullStore:
    """A store; ``short`` times less is free than it keeps in reserve."""

    def __init__(self, short: int = 0) -> None:
        self.short = short

    def check_reserve(self) -> None:
        if self.short:
            self.short -= 1
            raise NoSpace("less is free than is kept in reserve")


def no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOM_S", 0.001)


def make(said: list[m.Message], give_up_s: float, store: FullStore | None = None) -> Room:
    return Room(store or FullStore(), give_up_s, said.append, lambda event: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("between", [lambda: None, no_room], ids=["what-fits-between", "nothing-fits"])
def test_g11_who_gave_up_does_not_wait_again(tries: None, between: Callable[[], None]) -> None:
    """Also where something small fitted meanwhile: each of a million files would wait as long again."""
    said: list[m.Message] = []
    full = make(said, 0)
    with pytest.raises(NoSpace, match="nobody made room"):
        full.use(b"first", no_room)
    assert [type(message) for message in said] == [m.Pause, m.Resume]
    try:
        full.use(b"between", between)
    except NoSpace:
        assert between is no_room
    with pytest.raises(NoSpace):
        full.use(b"second", no_room)
    assert [type(message) for message in said] == [m.Pause, m.Resume]


def test_g11_who_found_room_waits_again(tries: None) -> None:
    said: list[m.Message] = []
    full = make(said, 60)
    for path in (b"first", b"second"):
        answers = iter([no_room, no_room, lambda: None])
        full.use(path, lambda answers=answers: next(answers)())
    assert [type(message) for message in said] == [m.Pause, m.Resume] * 2


def test_what_is_kept_in_reserve_is_not_taken(tries: None) -> None:
    said: list[m.Message] = []
    store = FullStore(short=3)
    seen: list[int] = []
    make(said, 60, store).use(b"path", lambda: seen.append(store.short))
    assert seen == [0]
    assert [type(message) for message in said] == [m.Pause, m.Resume]


def test_g11_while_several_wait_the_session_pauses_once(tries: None) -> None:
    """And goes on when the last of them has found room."""
    said: list[m.Message] = []
    full = make(said, 60)
    fits: set[bytes] = set()

    def write(name: bytes) -> None:
        if name not in fits:
            no_room()

    waiting = [threading.Thread(target=full.use, args=(name, write, name)) for name in (b"one", b"two")]
    for thread in waiting:
        thread.start()
    wait_until(lambda: full._waiting == 2)
    fits.add(b"one")
    waiting[0].join()
    between = [type(message) for message in said]
    fits.add(b"two")
    waiting[1].join()
    assert between == [m.Pause]
    assert [type(message) for message in said] == [m.Pause, m.Resume]


def test_g9_when_the_session_is_over_nobody_waits_any_longer(tries: None) -> None:
    full = make([], 0)
    full.close()
    with pytest.raises(LinkLost, match="the session is over"):
        full.use(b"path", no_room)


def test_g11_a_burst_that_found_no_room_pauses_once(tries: None, shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of its files waits; there is room for the others then."""
    (shm / "tree").mkdir()
    for number in range(300):
        fill(shm / "tree" / f"{number}", 300)
    write_at = disk.write_at
    written = 0

    def write(fd: int, data: Any, offset: int) -> None:
        nonlocal written
        written += 1
        if written > 10 and not receiver.of_type(events.Paused):
            no_room()
        write_at(fd, data, offset)

    monkeypatch.setattr(disk, "write_at", write)
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, shm / "tree", receiver.port, retry_for_s=60)
    assert (finished.code, finished.files) == (0, 300), finished.message
    assert len(receiver.of_type(events.Paused)) == 1


def test_g11_a_tree_for_which_nobody_makes_room_pauses_once(
    tries: None, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits arrives, everything else fails, and its receiver has waited once."""
    tree = shm / "tree"
    tree.mkdir()
    for number in range(10):
        fill(tree / f"{number}", 500 + number % 2)
    write_at = disk.write_at

    def written(fd: int, data: Any, offset: int) -> None:
        if len(data) == 501:
            no_room()
        write_at(fd, data, offset)

    monkeypatch.setattr(disk, "write_at", written)
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, tree, receiver.port)
    assert (finished.code, finished.files, finished.failed) == (9, 5, 5)
    assert {event.code for event in receiver.of_type(events.EntryEnded)} == {0, NoSpace.exit_code}
    assert len(receiver.of_type(events.Paused)) == 1
    assert sorted(os.listdir(receiver.into / "tree")) == ["0", "2", "4", "6", "8"]
