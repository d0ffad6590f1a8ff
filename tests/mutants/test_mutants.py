"""Takes each guard out of the code in turn, and demands that the named test fails without it.

A test of a guarantee counts only when it was seen to fail. ``mutants.py`` is the list.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutants.access import ACCESS
from tests.mutants.core import CORE
from tests.mutants.mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).parents[2]
SIDE_BY_SIDE = 4
#: pytest itself breaks now and then over the traceback of a failure: a frame of Python 3.11 may have no line. That
#: says nothing of the test.
TRIES = 3
#: What has been compiled comes along, so that a run need not compile all that it imports.
LEFT_OUT = shutil.ignore_patterns("mutants", ".*")


def run_test(tree: Path, test: str) -> subprocess.CompletedProcess[str]:
    # pytest's usual place for temporary files is cleared of what looks old, also by a run beside this one.
    own = ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tree / 'tmp'}"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", *own, "-m", "", test]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False)


def batches(mutants: Sequence[Mutant]) -> list[tuple[Mutant, ...]]:
    """A few at a time: most of a mutant's time is spent waiting."""
    return [tuple(mutants[at : at + SIDE_BY_SIDE]) for at in range(0, len(mutants), SIDE_BY_SIDE)]


def ids(batch: Sequence[Mutant]) -> str:
    return " | ".join(mutant.name for mutant in batch)


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize("batch", batches(MUTANTS), ids=ids)
def test_guards_are_held_by_their_tests(batch: tuple[Mutant, ...], tmp_path: Path) -> None:
    check_all(batch, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("batch", batches(CORE + ACCESS), ids=ids)
def test_guards_of_the_longer_lists_are_held_by_their_tests(batch: tuple[Mutant, ...], tmp_path: Path) -> None:
    check_all(batch, tmp_path)


def check_all(batch: Sequence[Mutant], tmp_path: Path) -> None:
    with ThreadPoolExecutor(len(batch)) as pool:
        folders = [tmp_path / str(at) for at in range(len(batch))]
        problems = [problem for problem in pool.map(check, batch, folders) if problem]
    assert not problems, "\n".join(problems)


def check(mutant: Mutant, tree: Path) -> str | None:
    """Run the mutant's test without its guard; what is wrong if it does not notice."""
    tree.mkdir()
    for name in ("ftx", "tests"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "protocol.md", "README.md"):
        shutil.copy(REPOSITORY / name, tree / name)
    file = tree / mutant.file
    text = file.read_text()
    if text.count(mutant.guard) != 1:
        return f"{mutant.name}: {mutant.file} has its guard {text.count(mutant.guard)} times"
    file.write_text(text.replace(mutant.guard, mutant.instead))
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()  # it may be as old and as long as what was compiled
    for _ in range(TRIES):
        result = run_test(tree, mutant.test)
        if result.returncode != pytest.ExitCode.INTERNAL_ERROR:
            break
    if result.returncode != 1 or "= FAILURES =" not in result.stdout:
        return f"{mutant.name}: {mutant.test} does not fail without the guard\n{result.stdout[:1500]}\n…\n{result.stdout[-1500:]}"
    return None


def test_every_guarantee_has_a_mutant() -> None:
    covered = {number for mutant in MUTANTS for number in mutant.guarantees}
    assert covered >= {f"G{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)}
