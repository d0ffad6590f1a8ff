"""G1, G2, G5: one side dies at every single call that touches the disk, and the next run goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from ftx.options import Exists
from tests.crash.lossy import Lost
from tests.crash.processes import (
    KILLED,
    Fault,
    Report,
    Setting,
    broken_receipts,
    held_by_receipts,
    is_there,
    leftovers,
    side_by_side,
    transfer,
    wrong,
)

MIB = 1024 * 1024

#: Runs that went before, and died: at the second chunk, and when everything was there.
SECOND_CHUNK = Fault(6, only="write_at")
ALL_THERE = Fault(1, only="set_times")

#: Functions of ``disk`` and ``Source`` that leave another disk behind, or are all that a sender does.
CHANGES = {
    "write_at", "truncate", "set_times", "set_mode", "set_link_times", "make_folder", "make_link", "rename", "link",
    "unlink", "remove_folder", "sync_data", "sync_file", "sync_folder", "sync_file_system",
    "_entry", "holes", "read", "read_small", "check", "rest",
}  # fmt: skip
#: A tree, all of whose small things are published with one sync of the file system.
TREE: dict[str, Any] = {"tree": True, "target": "tree/a/small0"}

SETTINGS: dict[str, dict[str, Any]] = {
    "over-an-old-file": {},
    "into-new-folders": {"folder": "a/b", "old": None, "target": "a/b/file"},
    "beside-an-old-file": {"policy": Exists.RENAME, "target": "file.1"},
    "where-nothing-was": {"policy": Exists.FAIL, "old": None},
    "resumed": {"begin": SECOND_CHUNK},
    "resumed-at-the-end": {"begin": ALL_THERE},
    "resumed-and-compared": {"begin": SECOND_CHUNK, "young": True},
    "resumed-and-compared-at-the-end": {"begin": ALL_THERE, "young": True},
    "small-over-an-old-file": {"small": True},
    "small-into-new-folders": {"small": True, "folder": "a/b", "old": None, "target": "a/b/file"},
    "small-beside-an-old-file": {"small": True, "policy": Exists.RENAME, "target": "file.1"},
    "small-and-young-where-nothing-was": {"small": True, "policy": Exists.FAIL, "old": None, "young": True},
}


TREES: dict[str, dict[str, Any]] = {
    "over-an-old-file": TREE,
    "where-nothing-was": TREE | {"old": None},
    "resumed-in-a-group": TREE | {"begin": Fault(5, only="rename")},
    "resumed-behind-a-group": TREE | {"begin": Fault(2, only="sync_file_system", after=True)},
    "synced-one-by-one": TREE | {"together": False},
}


def matrix(*quick: tuple[str, str], others: Iterable[str]) -> list[ParameterSet]:
    """Each setting with each of ``others``; all but some take too long for every day."""
    return [
        pytest.param(
            SETTINGS[name], other, id=f"{name}-{other}", marks=() if (name, other) in quick else pytest.mark.long
        )
        for name in SETTINGS
        for other in others
    ]


def counted(setting: Setting, base: Path) -> tuple[list[str], list[str]]:
    """What a run without a fault asks of the disk: the receiver's calls, and the sender's."""
    setting.prepare(base)
    run = transfer(setting, base)
    (sent,) = run.senders
    assert sent.code == 0, run
    assert is_there(setting, base)
    assert leftovers(base) == []
    return run.receiver_calls, sent.calls


def crash(setting: Setting, base: Path, **faults: Fault) -> Callable[[Report], None]:
    """A run in which somebody dies, what it left, and the run after it."""

    def work(report: Report) -> None:
        setting.prepare(base)
        run = transfer(setting, base, **faults)
        receipts = [path for sent in run.senders for path in sent.receipts]
        found: dict[str, Any] = {
            "died": KILLED in (run.receiver_status, *(sent.status for sent in run.senders)),
            "wrong": wrong(setting, base),
            "broken": broken_receipts(setting, base, receipts),
            "held": held_by_receipts(setting, receipts),
        }
        (again,) = transfer(setting, base).senders
        found["again"] = {
            "code": again.code,
            "message": again.message,
            "sent": again.bytes_sent,
            "wrong": wrong(setting, base),
            "there": is_there(setting, base),
            "left": leftovers(base),
        }
        shutil.rmtree(base)
        report(found)

    return work


def problems(found: dict[str, Any], held: int, size: int) -> Iterator[str]:
    again = found["again"]
    if found["wrong"] or again["wrong"]:
        yield f"G1: {found['wrong'] or again['wrong']}"
    if found["broken"]:
        yield f"G5: receipts for what is not there: {found['broken']}"
    if again["code"] != 0 or not again["there"]:
        yield f"the next run ends with {again['code']}: {again['message']}"
    if again["sent"] > size - max(held, found["held"]):
        held = max(held, found["held"])
        yield f"G2: {again['sent']} bytes are sent again where {held} of {size} were written"
    if again["left"]:
        yield f"left behind: {again['left']}"


def journaled(names: list[str], size: int) -> int:
    """Bytes whose chunks were noted when these calls of a fresh run were over: chunk, record, chunk, record …"""
    records = (names.count("write_at") - 1) // 2  # the first one is the journal's header
    return min(max(records, 0) * MIB, size)


def telling(names: list[str]) -> list[int]:
    """Of the calls of a long run those that no earlier one is like: another function, or behind another function.

    Only of those that change the disk: to die at one that looks is to die behind the change before it.
    """
    changes = [(at, name) for at, name in enumerate(names, 1) if name in CHANGES]
    pairs: dict[tuple[str, str], int] = {}
    for (_, before), (at, name) in zip([(0, ""), *changes], changes, strict=False):
        pairs.setdefault((before, name), at)
    return list(pairs.values())


def crash_at_every_call(
    setting: Setting, shm: Path, side: str, *, after: bool, lost: Lost | None = None, every: bool = True
) -> None:
    """Until the transfer goes through: a few calls more or less than in the run that was counted."""
    names = counted(setting, shm / "count")[0 if side == "of_receiver" else 1]
    size = setting.size
    slack = 20 if setting.tree else 3  # how a tree's entries fall into groups is a matter of time
    positions = range(1, len(names) + slack + 1) if every else telling(names)

    def fault(at: int) -> Fault:
        if every:
            return Fault(at, after=after, lost=lost)
        name = names[at - 1]  # the same call, also where calls of other functions are more or less
        return Fault(names[:at].count(name), only=name, after=after, lost=lost)

    works = (crash(setting, shm / str(at), **{side: fault(at)}) for at in positions)
    bad, died = [], 0
    for at, found in zip(positions, side_by_side(works), strict=True):
        where = f"{'after' if after else 'before'} call {at} ({names[at - 1] if at <= len(names) else 'none'})"
        if "again" not in found:
            bad.append(f"{where}: the scenario ended with {found}")
            continue
        died += found["died"]
        fresh = side == "of_receiver" and not setting.begin and not setting.tree and not lost
        held = journaled(names[: at - 1], size) if fresh else 0
        bad += [f"{where}: {problem}" for problem in problems(found, held, size)]
    assert bad == []
    assert len(positions) - (2 * slack if every else 3) <= died
    assert died < len(positions) or not every


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize(
    ("change", "when"),
    matrix(
        ("over-an-old-file", "before"),
        ("resumed-and-compared-at-the-end", "before"),
        ("small-over-an-old-file", "before"),
        ("small-beside-an-old-file", "after"),
        others=("before", "after"),
    ),
)
def test_g1_g2_g5_a_receiver_that_dies_at_any_disk_call(
    setting: Setting, shm: Path, change: dict[str, Any], when: str
) -> None:
    crash_at_every_call(replace(setting, **change), shm, "of_receiver", after=when == "after")


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize(
    ("change", "when"),
    matrix(
        ("over-an-old-file", "before"),
        ("small-over-an-old-file", "before"),
        others=("before", "after"),
    ),
)
def test_g1_g10_a_sender_that_dies_at_any_call(setting: Setting, shm: Path, change: dict[str, Any], when: str) -> None:
    crash_at_every_call(replace(setting, **change), shm, "of_sender", after=when == "after")


def trees(*quick: tuple[str, str]) -> list[ParameterSet]:
    """The telling calls of some settings for every day; every call of each of them takes minutes."""
    rows = [(name, when) for name in TREES for when in ("before", "after")]
    return [pytest.param(TREES[name], when, False, id=f"{name}-{when}-telling") for name, when in quick] + [
        pytest.param(TREES[name], when, True, id=f"{name}-{when}", marks=pytest.mark.long) for name, when in rows
    ]


@pytest.mark.timeout_s(300)
@pytest.mark.parametrize(
    ("change", "when", "every"),
    trees(("over-an-old-file", "before"), ("resumed-in-a-group", "after")),
)
def test_g1_g2_g5_a_receiver_of_a_tree_that_dies_at_any_disk_call(
    setting: Setting, shm: Path, change: dict[str, Any], when: str, every: bool
) -> None:
    crash_at_every_call(replace(setting, **change), shm, "of_receiver", after=when == "after", every=every)


@pytest.mark.timeout_s(300)
@pytest.mark.parametrize(("change", "when", "every"), trees(("where-nothing-was", "before")))
def test_g1_g2_g10_a_sender_of_a_tree_that_dies_at_any_call(
    setting: Setting, shm: Path, change: dict[str, Any], when: str, every: bool
) -> None:
    crash_at_every_call(replace(setting, **change), shm, "of_sender", after=when == "after", every=every)
