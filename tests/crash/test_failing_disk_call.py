"""G1, G11: every call of the receiver that touches the disk fails, once and for good."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.crash.processes import Fault, Report, Setting, is_there, leftovers, side_by_side, transfer, wrong
from tests.crash.test_every_disk_call import counted, matrix

#: A success after repair, integrity, destination.
ALLOWED = (0, 5, 7)

NUMBERS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES}


def fail(setting: Setting, base: Path, fault: Fault) -> Callable[[Report], None]:
    """Three sends to one receiver with a fault, and one to another without.

    Two runs do not make quite the same calls, so a fault that comes once may come in the second send.
    """

    def work(report: Report) -> None:
        setting.prepare(base)
        run = transfer(setting, base, of_receiver=fault, sends=3)
        found: dict[str, Any] = {
            "receiver": run.receiver_code,
            "status": run.receiver_status,
            "senders": [(sent.code, sent.message) for sent in run.senders],
            "wrong": wrong(setting, base),
        }
        (again,) = transfer(setting, base).senders
        found["again"] = {
            "code": again.code,
            "message": again.message,
            "wrong": wrong(setting, base),
            "there": is_there(setting, base),
            "left": leftovers(base),
        }
        shutil.rmtree(base)
        report(found)

    return work


def problems(found: dict[str, Any], *, for_good: bool) -> list[str]:
    if "again" not in found:
        return [f"a hang, or a crash: {found}"]
    bad = []
    again, senders = found["again"], found["senders"]
    if found["wrong"] or again["wrong"]:
        bad.append(f"G1: {found['wrong'] or again['wrong']}")
    if not senders and found["receiver"] != 7:
        bad.append(f"G11: the receiver never listened and ends with {found['receiver']}")
    if senders and found["receiver"] != 143:
        bad.append(f"G11: the receiver does not go on: {found['receiver']}, status {found['status']}")
    bad += [f"G11: exit code {code}: {message}" for code, message in senders if code not in ALLOWED]
    if senders and not for_good and senders[-1][0] != 0:
        bad.append(f"the next send to the same receiver ends with {senders[-1]}")
    if again["code"] != 0 or not again["there"]:
        bad.append(f"the next run ends with {again['code']}: {again['message']}")
    if again["left"]:
        bad.append(f"left behind: {again['left']}")
    return bad


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize(
    ("change", "number"),
    matrix(
        ("beside-an-old-file", "ENOSPC"),
        ("resumed-and-compared", "EIO"),
        ("small-into-new-folders", "ENOSPC"),
        others=NUMBERS,
    ),
)
def test_g1_g11_any_disk_call_may_fail_once(setting: Setting, shm: Path, change: dict[str, Any], number: str) -> None:
    setting = replace(setting, **change)
    names, _ = counted(setting, shm / "count")
    positions = range(1, len(names) + 1)
    works = (fail(setting, shm / str(at), Fault(at, NUMBERS[number])) for at in positions)
    bad = []
    for at, found in zip(positions, side_by_side(works), strict=True):
        bad += [f"call {at} ({names[at - 1]}): {problem}" for problem in problems(found, for_good=False)]
    assert bad == []


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize(
    ("change", "number"),
    matrix(
        ("resumed-and-compared", "EIO"),
        ("small-into-new-folders", "EACCES"),
        others=NUMBERS,
    ),
)
def test_g1_g11_any_disk_function_may_fail_for_good(
    setting: Setting, shm: Path, change: dict[str, Any], number: str
) -> None:
    """From its first or its second call on."""
    setting = replace(setting, **change)
    names, _ = counted(setting, shm / "count")
    faults = [
        Fault(at, NUMBERS[number], only=function, for_good=True) for function in sorted(set(names)) for at in (1, 2)
    ]
    works = (fail(setting, shm / f"{fault.only}-{fault.at}", fault) for fault in faults)
    bad = []
    for fault, found in zip(faults, side_by_side(works), strict=True):
        bad += [f"{fault.only} from call {fault.at} on: {problem}" for problem in problems(found, for_good=True)]
    assert bad == []
