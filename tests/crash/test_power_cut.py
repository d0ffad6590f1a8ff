"""G1, G4, G5: the power fails at every disk call of the receiver, and what was not synced is gone.

Which part of it is gone is up to the file system, so each part is tried.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.lossy import Lost
from tests.crash.processes import Setting
from tests.crash.test_every_disk_call import SETTINGS, TREES, crash_at_every_call


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.value)
@pytest.mark.parametrize(
    "name",
    [
        "into-new-folders",
        pytest.param("small-over-an-old-file", marks=pytest.mark.long),
        "small-into-new-folders",
        pytest.param("small-beside-an-old-file", marks=pytest.mark.long),
        pytest.param("over-an-old-file", marks=pytest.mark.long),
        pytest.param("beside-an-old-file", marks=pytest.mark.long),
        pytest.param("resumed-at-the-end", marks=pytest.mark.long),
    ],
)
def test_g1_g4_g5_a_power_cut_at_any_disk_call(setting: Setting, shm: Path, name: str, lost: Lost) -> None:
    crash_at_every_call(replace(setting, **SETTINGS[name]), shm, "of_receiver", after=True, lost=lost)


@pytest.mark.timeout_s(300)
@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.value)
@pytest.mark.parametrize("name", TREES)
@pytest.mark.long
def test_g1_g4_g5_a_power_cut_at_any_disk_call_of_a_tree(setting: Setting, shm: Path, name: str, lost: Lost) -> None:
    crash_at_every_call(replace(setting, **TREES[name]), shm, "of_receiver", after=True, lost=lost)


@pytest.mark.timeout_s(60)
@pytest.mark.parametrize(
    ("name", "lost"),
    [("over-an-old-file", Lost.ALL), ("synced-one-by-one", Lost.ALL), ("where-nothing-was", Lost.NAMES)],
    ids=lambda value: getattr(value, "value", value),
)
def test_g1_g4_g5_a_power_cut_at_the_telling_disk_calls_of_a_tree(
    setting: Setting, shm: Path, name: str, lost: Lost
) -> None:
    """One of each kind, for every day."""
    crash_at_every_call(replace(setting, **TREES[name]), shm, "of_receiver", after=True, lost=lost, every=False)
