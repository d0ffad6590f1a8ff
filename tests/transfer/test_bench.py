"""Measuring between two sides in one process: steps, limits of the peer, and what is left (nothing)."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ftx
from ftx.errors import DestinationError, Interrupted, NetworkError, Refused
from ftx.protocol import messages as m
from ftx.protocol.manifest import MIB
from ftx.storage import disk, trial
from ftx.storage.trial import Trial
from ftx.transfer import bench, events, measure
from ftx.transfer.steps import Noise, data_lanes, next_lanes
from ftx.transfer.verdict import Limit
from tests.support.local import LocalReceiver, on_file


@dataclass
class Run:
    """What one run has told."""

    finished: events.BenchFinished = field(init=False)
    steps: list[events.Measured] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def note(self, event: events.Event) -> None:
        match event:
            case events.Measured():
                self.steps.append(event)
            case events.Warn(message=message):
                self.warned.append(message)
            case _:
                pass

    @property
    def code(self) -> int:
        return self.finished.code

    @property
    def message(self) -> str:
        return self.finished.message

    def names(self) -> list[str]:
        return [event.step for event in self.steps]


def measured(base: Path, port: int, stop: ftx.Stop | None = None, **options: Any) -> Run:
    """A run that takes little time; it leaves nothing on its own side."""
    mine = base / "mine"
    mine.mkdir(exist_ok=True)
    defaults: dict[str, Any] = {
        "host": "127.0.0.1", "port": port, "config_dir": base / "config", "dir": mine, "step_s": 0.1, "lanes": 1,
        "timeout_s": 10.0,
    }  # fmt: skip
    run = Run()
    run.finished = ftx.bench(ftx.BenchOptions(**defaults | options), on_event=run.note, stop=stop)
    assert not list(mine.iterdir())
    return run


def left(receiver: LocalReceiver) -> list[str]:
    return [str(path.relative_to(receiver.into)) for path in receiver.into.rglob("*")]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TRIAL_BYTES", 32 * MIB)


@pytest.mark.parametrize("plain", [False, True], ids=["encrypted", "plain"])
def test_each_step_is_measured_and_nothing_is_left(shm: Path, plain: bool) -> None:
    with LocalReceiver(shm, plain=plain) as receiver:
        run = measured(shm, receiver.port, plain=plain, folder="a/b")
        assert run.code == 0, run.message
        assert [(event.step, event.lanes) for event in run.steps] == [
            ("path", 1), ("receiver_disk", 1), ("sender_disk", 1),
        ]  # fmt: skip
        assert all(event.bytes > 0 and event.seconds > 0 and event.rate > 0 for event in run.steps)
        path = run.steps[0]
        for share in (path.sender_processor, path.receiver_processor, path.receiver_waiting):
            assert share is not None and 0 <= share <= 1
        assert run.finished.limit in [limit.value for limit in Limit]
        assert (run.finished.lanes, run.finished.one_lane, run.finished.path) == (1, path.rate, path.rate)
        assert not left(receiver)
    (end,) = receiver.of_type(events.SessionEnd)
    assert (end.code, end.files, end.bytes_received > 0) == (0, 0, True)
    assert receiver.finished is not None
    assert (receiver.finished.files, receiver.finished.bytes_sent) == (0, 0)


def test_more_lanes_until_they_bring_nothing(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "more_help", lambda steps: len(steps) < 3)
    with LocalReceiver(shm) as receiver:
        run = measured(shm, receiver.port, lanes=64)
        assert run.code == 0, run.message
        assert [event.lanes for event in run.steps if event.step == "path"] == [1, 3, 5]
        assert [event.lanes for event in run.steps if event.step == "receiver_disk"] == [1, 3, 5]


def test_lanes_are_those_of_a_transfer() -> None:
    """All but the first carry data, unless that is alone: so a second one brings nothing."""
    assert [data_lanes(lanes) for lanes in (1, 2, 3, 5)] == [1, 1, 2, 4]
    found: list[int | None] = [1]
    while found[-1] is not None:
        found.append(next_lanes(found[-1], 12))
    assert found == [1, 3, 5, 9, 12, None]
    assert next_lanes(1, 2) is None
    assert next_lanes(3, 4) == 4


def test_no_chunk_can_be_compressed_or_was_there_before() -> None:
    noise = Noise()
    chunks = [bytes(noise.chunk(65536)) for _ in range(3)]
    assert len(set(chunks)) == 3
    assert len(zlib.compress(b"".join(chunks))) >= 3 * 65536


# --- what the peer may do ---


def test_G7_who_may_not_write_may_not_measure(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "rights=read")
        run = measured(shm, receiver.port, config_dir=config)
        assert (run.code, run.steps) == (Refused.exit_code, [])
        assert "ftx peers restrict laptop --rights read,write" in run.message


def test_G7_a_stranger_may_not_measure(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        run = measured(shm, receiver.port, config_dir=shm / "other")
        assert run.code == Refused.exit_code


def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each file that a receiver measures with."""
    found: list[int] = []

    class Noted(Trial):
        def __init__(self, folder: int, size: int, *, durable: bool = True) -> None:
            found.append(size)
            super().__init__(folder, size, durable=durable)

    monkeypatch.setattr(measure, "Trial", Noted)
    return found


@pytest.mark.parametrize(
    ("terms", "most"),
    [("dir=own quota=3M", 3 * MIB), ("max-size=2M", 2 * MIB), ("", m.MEASURE_BYTES)],
)
def test_G8_the_file_keeps_to_the_limits_of_its_peer(
    shm: Path, monkeypatch: pytest.MonkeyPatch, terms: str, most: int
) -> None:
    found = sizes(monkeypatch)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", terms)
        run = measured(shm, receiver.port, config_dir=config)
        assert run.code == 0, run.message
    assert found and MIB <= max(found) <= most


def test_a_quota_that_is_used_up_leaves_the_disk_unmeasured(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sizes(monkeypatch)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=own quota=1M")
        (receiver.into / "own").mkdir(parents=True)
        (receiver.into / "own/file").write_bytes(os.urandom(MIB // 2))
        run = measured(shm, receiver.port, config_dir=config)
        assert run.code == 0, run.message
        assert run.names() == ["path", "sender_disk"]
        assert any("no room" in message for message in run.warned)
    assert not found


def test_a_quota_is_given_back(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=own quota=3M")
        for _ in range(2):
            run = measured(shm, receiver.port, config_dir=config)
            assert "receiver_disk" in run.names()


def test_G8_the_reserve_is_not_touched(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when the file is made, nor when others fill the disk meanwhile."""
    free = disk.free_space
    with LocalReceiver(shm, reserve=2**62) as receiver:
        run = measured(shm, receiver.port)
        assert (run.code, run.names()) == (0, ["path", "sender_disk"])
    with LocalReceiver(shm, reserve=MIB) as receiver:
        made: list[object] = []

        def filled(fd: int) -> int:
            return 0 if made else free(fd)

        class Full(Trial):
            def __init__(self, folder: int, size: int, *, durable: bool = True) -> None:
                super().__init__(folder, size, durable=durable)
                made.append(self)

        monkeypatch.setattr(disk, "free_space", filled)
        monkeypatch.setattr(measure, "Trial", Full)
        run = measured(shm, receiver.port)
        assert run.code == DestinationError.exit_code
        assert "kept in reserve" in run.message
        assert not left(receiver)


def test_a_folder_that_cannot_be_written_to(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object, **_options: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "open_unnamed", refused)
    monkeypatch.setattr(trial.disk, "open_at", refused)
    with LocalReceiver(shm) as receiver:
        run = measured(shm, receiver.port)
        assert run.code == DestinationError.exit_code
        assert "not writable" in run.message


def test_G6_no_folder_is_made_and_none_outside_is_entered(shm: Path) -> None:
    outside = shm / "outside"
    outside.mkdir()
    with LocalReceiver(shm) as receiver:
        (receiver.into / "link").symlink_to(outside)
        run = measured(shm, receiver.port, folder="link")
        assert run.code == DestinationError.exit_code
        run = measured(shm, receiver.port, folder="not/there")
        assert run.code == 0
        assert left(receiver) == ["link"]


# --- ends ---


def test_G9_nobody_measures_for_ever(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MEASURE_S", 0.3)
    with LocalReceiver(shm) as receiver:
        run = measured(shm, receiver.port, step_s=5.0)
        assert run.code == Refused.exit_code
        assert "nobody may measure for more than" in run.message
        assert not left(receiver)


def test_who_is_stopped_leaves_nothing(shm: Path) -> None:
    stop = ftx.Stop()
    with LocalReceiver(shm) as receiver:
        stop.request(2)
        run = measured(shm, receiver.port, stop=stop)
        assert run.code == Interrupted(2).exit_code
        assert "Nothing is left" in run.message


def test_nobody_is_there(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        port = receiver.port
    run = measured(shm, port)
    assert run.code == NetworkError.exit_code
    assert "Is `ftx receive` running there" in run.message


def test_a_measuring_is_no_job_for_a_receiver_that_takes_one(shm: Path) -> None:
    """With --once it waits on for the first that sends."""
    with LocalReceiver(shm, once=True) as receiver:
        assert measured(shm, receiver.port).code == 0
        assert measured(shm, receiver.port).code == 0


def test_a_disk_that_cannot_be_measured_here_is_only_left_out(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        run = measured(shm, receiver.port, dir=shm / "missing")
        assert run.code == 0
        assert "sender_disk" not in run.names()
        assert any("the disk of this side is not measured" in message for message in run.warned)
