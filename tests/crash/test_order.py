"""G1, G4, G5: the order in which a session touches the disk and speaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftx.net.lane import Lane
from ftx.protocol import messages as m
from ftx.storage import disk, scratch
from ftx.storage import source as storage_source
from ftx.transfer.ledger import Ledger
from tests.support.files import MIB, fill
from tests.support.local import LocalReceiver, local_send


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What touches the disk, and RECEIPT, SKIP and BYE as they are sent, in order."""
    found: list[str] = []

    def watch(owner: Any, name: str, words: Any) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.extend(words(args))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for name in (
        "write_at", "read_at", "drop_cache", "sync_data", "set_times", "set_mode", "sync_file", "rename", "link",
        "unlink", "sync_folder",
    ):  # fmt: skip
        watch(disk, name, lambda args, name=name: [name])
    told = (m.Receipt, m.Skip, m.Bye)
    watch(Lane, "send", lambda args: [type(arg).__name__ for arg in args if isinstance(arg, told)])
    return found


def know_the_file_system(shm: Path, receiver: LocalReceiver) -> None:
    """Whether it folds names is found out once, by a file that is made and removed."""
    warm = fill(shm / "warm", 1)
    for _ in range(2):
        assert local_send(shm, warm, receiver.port).code == 0


def between(steps: list[str], first: str, last: str) -> list[str]:
    return steps[steps.index(first) : steps.index(last) + 1]


def test_g1_g5_a_receipt_is_the_last_thing_of_a_commit(shm: Path, steps: list[str]) -> None:
    source = fill(shm / "file", 3 * MIB - 5)
    with LocalReceiver(shm) as receiver:
        know_the_file_system(shm, receiver)
        steps.clear()
        assert local_send(shm, source, receiver.port, folder="a").code == 0
    ordered = [step for step in steps if step not in ("read_at", "write_at", "Bye")]
    if ordered[-2:] == ["unlink", "Receipt"]:  # two threads: the journal goes while the receipt does
        ordered[-2:] = ["Receipt", "unlink"]
    assert ordered == [
        "unlink",  # of a partial that is not there
        "sync_data",
        "set_times",
        "set_mode",
        "sync_file",
        "rename",
        "sync_folder",
        "sync_folder",
        "Receipt",
        "unlink",  # of the journal
    ]


def test_g1_g5_a_receipt_is_the_last_thing_for_a_small_file_too(shm: Path, steps: list[str]) -> None:
    source = fill(shm / "file", 5000)
    with LocalReceiver(shm) as receiver:
        know_the_file_system(shm, receiver)
        steps.clear()
        assert local_send(shm, source, receiver.port, folder="a").code == 0
    assert [step for step in steps if step not in ("read_at", "Bye")] == [
        "write_at",
        "set_times",
        "set_mode",
        "sync_file",
        "rename",
        "sync_folder",
        "sync_folder",
        "Receipt",
    ]


def test_g1_g5_receipts_come_behind_the_syncs_of_their_group(
    shm: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are published together: all contents, all names, all folders, and only then a word of it."""
    tree = shm / "tree"
    for folder in ("a", "b"):
        (tree / folder).mkdir(parents=True)
        for number in range(6):
            fill(tree / folder / f"f{number}", 5000 + number)
    monkeypatch.setattr(scratch, "_syncs_together", lambda fd: False)
    real = Ledger.committed

    def committed(*args: Any, **kwargs: Any) -> Any:
        steps.append("committed")
        return real(*args, **kwargs)

    monkeypatch.setattr(Ledger, "committed", committed)
    with LocalReceiver(shm) as receiver:
        know_the_file_system(shm, receiver)
        steps.clear()
        assert local_send(shm, tree, receiver.port).code == 0
    ordered = [step for step in steps if step in ("sync_file", "rename", "sync_folder", "committed")]
    assert (ordered.count("sync_file"), ordered.count("rename")) == (12, 12)
    state = "committed"
    for step in ordered:
        assert (state, step) in {
            ("committed", "sync_file"), ("sync_file", "sync_file"), ("sync_file", "rename"), ("rename", "rename"),
            ("sync_folder", "rename"),
            ("rename", "sync_folder"), ("sync_folder", "sync_folder"), ("sync_folder", "committed"),
            ("committed", "sync_folder"),
        }, ordered  # fmt: skip
        state = step
    assert state == "committed"


def test_g5_one_sync_for_a_group_is_behind_the_last_write_and_the_last_name(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system can sync everything at once."""
    tree = shm / "tree"
    tree.mkdir()
    for number in range(40):
        fill(tree / f"f{number}", 5000 + number)
    found: list[tuple[str, str]] = []

    def watch(owner: Any, name: str, which: Callable[..., str] = lambda *_: "") -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            file = which(*args)
            if name.startswith("sync"):  # it covers what was there when it began
                found.append((name, file))
                return real(*args, **kwargs)
            result = real(*args, **kwargs)
            found.append((name, file))
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(disk, "write_at", lambda fd, *_: Path(f"/proc/self/fd/{fd}").readlink().name)
    watch(disk, "rename", lambda old, *_: os.fsdecode(old))
    for name in ("sync_file_system", "sync_file", "sync_folder"):
        watch(disk, name)
    watch(Ledger, "committed")
    monkeypatch.setattr(scratch, "_syncs_together", lambda fd: True)
    with LocalReceiver(shm) as receiver:
        know_the_file_system(shm, receiver)
        found.clear()
        assert local_send(shm, tree, receiver.port).code == 0
    assert [name for name, _ in found].count("rename") == 40
    assert ("sync_file_system", "") in found
    synced: set[str] = set()
    written: set[str] = set()
    names_synced = True
    for name, file in found:
        match name:
            case "write_at":
                written.add(file)
            case "sync_file_system" | "sync_file":
                synced |= written
                names_synced = True
            case "sync_folder":
                names_synced = True
            case "rename":
                assert file in synced
                names_synced = False
            case "committed":
                assert names_synced


def test_without_fsync_a_receipt_does_not_say_durable(
    shm: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[int] = []
    real = Lane.send

    def send(lane: Lane, *messages: m.Message) -> bytes:
        flags.extend(item.flags for message in messages if isinstance(message, m.Receipt) for item in message.items)
        return real(lane, *messages)

    monkeypatch.setattr(Lane, "send", send)
    source = fill(shm / "file", 3 * MIB)
    for fsync in (True, False):
        with LocalReceiver(shm, fsync=fsync, dir=shm / f"into-{fsync}") as receiver:
            steps.clear()
            assert local_send(shm, source, receiver.port).code == 0
        assert ("sync_data" in steps) == ("sync_file" in steps) == fsync
    assert flags == [m.ReceiptFlags.DURABLE, 0]


@pytest.mark.parametrize("young", [False, True], ids=["held", "compared"])
def test_g4_what_is_held_is_synced_and_dropped_from_the_cache_before_it_is_read(
    shm: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, young: bool
) -> None:
    """So that it is read from the disk, and a sync that fails later has nothing of it to lose."""
    source = fill(shm / "file", 3 * MIB)
    monkeypatch.setattr(storage_source, "TRUSTED_AGE_NS", 10**18 if young else 0)
    with LocalReceiver(shm) as receiver, monkeypatch.context() as patch:
        patch.setattr(disk, "set_times", lambda fd, mtime_ns: 1 / 0)
        assert local_send(shm, source, receiver.port).code == 1
    with LocalReceiver(shm) as receiver:
        steps.clear()
        finished = local_send(shm, source, receiver.port)
        assert (finished.code, finished.bytes_sent) == (0, 0)
    assert steps.count("read_at") == 1 + 3 + (6 if young else 3)  # the journal, the partial, and the source
    of_partial = between(steps, "sync_data", "sync_file")
    assert of_partial[:2] == ["sync_data", "drop_cache"]
    assert steps.count("drop_cache") == 1
    before = steps[: steps.index("drop_cache")]
    assert before.count("read_at") <= 1 + (6 if young else 3)


def test_g5_a_name_that_is_there_already_is_durable_before_that_is_told(shm: Path, steps: list[str]) -> None:
    """The receiver before this one died between its rename and the sync of the folder."""
    source = fill(shm / "file", 3 * MIB)
    with pytest.MonkeyPatch.context() as patch, LocalReceiver(shm) as receiver:
        patch.setattr(disk, "sync_folder", lambda fd: 1 / 0)
        assert local_send(shm, source, receiver.port).code == 1
    with LocalReceiver(shm) as receiver:
        steps.clear()
        assert local_send(shm, source, receiver.port).code == 0
    assert between(steps, "sync_folder", "Skip") == ["sync_folder", "unlink", "unlink", "unlink", "Skip"]
