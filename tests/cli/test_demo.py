"""``ftx demo``: a kill and a resume by real processes, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MIB = 1024 * 1024


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ftx", "demo", *arguments]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return os.environ | {"TMPDIR": str(temporary)}


def left_behind(temporary: Path) -> list[str]:
    """Files in ``temporary``, and processes that know it."""
    found = [str(path) for path in temporary.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(temporary).encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_demo_kills_and_resumes(tmp_path: Path, environment: dict[str, str]) -> None:
    file = tmp_path / "file.bin"
    with file.open("wb") as out:
        for _ in range(24):
            out.write(os.urandom(8 * MIB))
    done = subprocess.run(command(str(file)), capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "killed (SIGKILL)" in done.stdout
    assert re.search(r"second run .* [\d.]+ MiB sent, [\d.]+ MiB already there", done.stdout)
    assert re.search(r"first byte +[\d.]+ s after", done.stdout)
    assert "sent twice" in done.stdout
    assert "throughput" in done.stdout
    assert f"all {192 * MIB} bytes are identical" in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 100 + len(str(tmp_path))
    assert left_behind(Path(environment["TMPDIR"])) == []
    assert file.stat().st_size == 192 * MIB


@pytest.mark.parametrize("size", [0, 1])
def test_demo_with_a_file_too_small_to_be_interrupted(tmp_path: Path, environment: dict[str, str], size: int) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(b"x" * size)
    done = subprocess.run(command(str(file)), capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"all {size} bytes are identical" in done.stdout


#: Stages of a demo, each with a file that is there from then on.
STAGES = {"making": "demo.bin", "sending": "received/.ftx/*.part", "resuming": "received/.ftx/*.part"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_demo_leaves_nothing(environment: dict[str, str], number: int, code: int, stage: str) -> None:
    temporary = Path(environment["TMPDIR"])
    demo = subprocess.Popen(command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert demo.stdout is not None
    if stage == "resuming":
        while "first run" not in demo.stdout.readline():
            assert demo.poll() is None
    while not list(temporary.glob(f"ftx-demo-*/{STAGES[stage]}")):
        assert demo.poll() is None
        time.sleep(0.002)
    demo.send_signal(number)
    out, err = demo.communicate(timeout=20)
    assert demo.returncode == code
    assert "compared" not in out
    assert err == "ftx: interrupted\n"
    assert left_behind(temporary) == []


def test_demo_of_no_file(tmp_path: Path, environment: dict[str, str]) -> None:
    for path, code in ((tmp_path / "missing", 6), (tmp_path, 6)):
        done = subprocess.run(command(str(path)), capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == code
        assert done.stderr.startswith("ftx: ")
        assert str(path) in done.stderr
    assert left_behind(Path(environment["TMPDIR"])) == []


def test_demo_ignores_the_users_settings(tmp_path: Path, environment: dict[str, str]) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(b"x" * 100)
    environment |= {"FTX_SEND_SECRET_FILE": "/nowhere/key", "FTX_RECEIVE_EXISTS": "fail", "FTX_CONFIG_DIR": "/nowhere"}
    done = subprocess.run(command(str(file)), capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
