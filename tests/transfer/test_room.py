"""G11: a full disk pauses a session once; who found that nobody makes room does not wait again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftx.errors import NoSpace
from ftx.protocol import messages as m
from ftx.storage import disk
from ftx.transfer import events, room
from ftx.transfer.room import Room
from tests.support.files import fill
from tests.support.local import LocalReceiver, local_send


class FullStore:
    """A store that keeps nothing in reserve."""

    def check_reserve(self) -> None:
        pass


def no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOM_S", 0.001)


def make(said: list[m.Message], give_up_s: float) -> Room:
    return Room(FullStore(), give_up_s, said.append, lambda event: None)  # type: ignore[arg-type]


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
