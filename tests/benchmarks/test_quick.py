"""The benchmark itself: it runs with what is installed, judges what it measures, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks import material
from tests.benchmarks.__main__ import main
from tests.benchmarks.cases import Case, Contest, Measurement, Results
from tests.benchmarks.peers import PEERS, REPOSITORY, Peer
from tests.benchmarks.places import Place, loopback
from tests.benchmarks.ratios import Spread, paired, spread
from tests.benchmarks.report import rows

BY_NAME = {peer.name: peer for peer in PEERS}
SIZES = material.Sizes(big=300_000, medium=1000, files=20, mixed=200_000)


def test_ratios_are_those_of_the_same_round() -> None:
    assert paired({1: 2.0, 2: 9.0, 4: 1.0}, {1: 1.0, 2: 3.0, 3: 5.0}) == [2.0, 3.0]
    assert spread([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0, 3)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def _measured(peer: str, *seconds: float) -> list[Measurement]:
    return [Measurement("x/y", "copy", peer, number, each, 0, 0, 0, 0) for number, each in enumerate(seconds)]


def test_each_tool_is_compared_with_ftx_run_alike() -> None:
    """A slow round is slow for all: the ratio is not the one of the medians."""
    found = rows(
        _measured("ftx", 1, 10, 2)
        + _measured("ftx --plain", 1, 1, 1)
        + _measured("scp", 3, 40, 4)
        + _measured("cp", 0.5, 0.5, 0.5),
        "x/y",
        "copy",
    )
    assert [row.peer.name for row in found] == ["cp", "ftx --plain", "ftx", "scp"]
    ratios = {row.peer.name: row.ratio for row in found}
    assert ratios["scp"] == Spread(3.0, 2.0, 4.0, 3)
    assert ratios["cp"] == Spread(0.5, 0.5, 0.5, 3)
    assert rows(_measured("scp", 3), "x/y", "copy")[0].ratio is None


def test_a_copy_is_judged() -> None:
    sent = {"a": "1", "b": "2", "link": "-> a", "none": "empty folder"}
    assert material.judge(sent, dict(sent)) == material.Verdict([], [])
    assert material.judge(sent, {"a": "1", "b": "9", "link": "1"}) == material.Verdict(["b"], ["link", "none"])


def test_material_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("byte", "small", "mixed"):
        made = []
        for folder in (tmp_path / f"{name}-1", tmp_path / f"{name}-2"):
            folder.mkdir()
            made.append(material.make(folder, SIZES, name))
        assert made[0].contents == made[1].contents
        assert made[0].size > 0


def _left(folder: Path) -> list[str]:
    """Processes that were started for a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                line = (process / "cmdline").read_text("utf-8", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder) in line:
                found.append(line.replace("\0", " "))
    return found


@pytest.mark.timeout_s(180)
def test_the_smallest_case_with_all_that_is_installed(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    smallest = ("--quick", "--case", "loopback/byte")
    assert main([*smallest, "--work", str(work), "--out", str(out)]) == out
    written = json.loads((out / "results.json").read_text())
    done = {(each["peer"], each["step"]) for each in written["measurements"]}
    assert {("ftx", "copy"), ("ftx", "again"), ("ftx --plain", "copy"), ("cp", "copy")} <= done
    assert all(each["seconds"] > 0 for each in written["measurements"])
    assert all(each["receiver_peak"] > 0 for each in written["measurements"] if each["peer"] == "ftx")
    for peer in PEERS:
        if peer.only != "resume":
            assert (peer.name, "copy") in done or any(peer.name in who for who in written["left_out"]), peer.name
    assert "| ftx | encrypted |" in (out / "results.md").read_text()
    assert not list(work.iterdir())
    assert not _left(work)


@pytest.fixture
def place() -> Iterator[Place]:
    with loopback() as here:
        yield here


def _contest(folder: Path, *peers: Peer) -> Contest:
    return Contest(peers, 1, 30, folder, lambda _line: None)


def test_both_sides_are_killed_and_the_second_run_is_timed(tmp_path: Path, place: Place) -> None:
    results, case = Results(), Case("loopback", "big", 0.0)
    _contest(tmp_path, BY_NAME["ftx"]).run(case, place, material.make(tmp_path, SIZES, "big"), results)
    (second,) = results.measurements
    assert (second.step, second.peer) == ("resume", "ftx")
    assert second.wire_bytes > SIZES.big
    assert not results.left_out


@pytest.mark.parametrize(
    ("server", "line", "why"),
    [
        (["sh", "-c", "echo no such option; exit 1"], ["true"], "does not listen; no such option"),
        (None, ["true"], "1 files are missing or wrong"),
        (None, ["sh", "-c", "echo broken; exit 3"], "exit status 3; broken"),
    ],
)
def test_a_tool_that_fails_is_left_out_with_the_reason(
    tmp_path: Path, place: Place, server: list[str] | None, line: list[str], why: str
) -> None:
    results, case = Results(), Case("loopback", "byte")
    wrong = Peer(
        "wrong", False, (), (), send=lambda _site, _source: line, server=(lambda _site: server) if server else None
    )
    _contest(tmp_path, wrong, BY_NAME["cp"]).run(case, place, material.make(tmp_path, SIZES, "byte"), results)
    assert [each.peer for each in results.measurements] == ["cp"]
    assert why in results.left_out["wrong, loopback/byte"]


@pytest.mark.timeout_s(180)
def test_an_interrupt_leaves_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    options = ("--case", "loopback/byte", "--rounds", "1000", "--peer", "cp", "--work", str(work), "--out", str(out))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks", *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's job may ignore it
    ) as process:
        assert process.stderr
        while "round 1 of" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT
    assert json.loads((out / "results.json").read_text())["measurements"]
    assert not list(work.iterdir())
    assert not _left(work)
