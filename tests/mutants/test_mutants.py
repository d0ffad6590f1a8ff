"""Takes each guard out of the code in turn, and demands that the named test fails without it.

A test of a guarantee counts only when it was seen to fail. ``mutants.py`` is the list.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.core import CORE
from tests.mutants.mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns("__pycache__", "mutants", ".*")


def run_test(tree: Path, test: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", test]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_guard_is_held_by_its_test(mutant: Mutant, tmp_path: Path) -> None:
    check(mutant, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("mutant", CORE, ids=lambda mutant: mutant.name)
def test_guard_of_the_core_is_held_by_its_test(mutant: Mutant, tmp_path: Path) -> None:
    check(mutant, tmp_path)


def check(mutant: Mutant, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("ftx", "tests"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "protocol.md", "README.md"):
        shutil.copy(REPOSITORY / name, tree / name)
    file = tree / mutant.file
    text = file.read_text()
    assert text.count(mutant.guard) == 1, f"{mutant.file} has its guard {text.count(mutant.guard)} times"
    file.write_text(text.replace(mutant.guard, mutant.instead))
    result = run_test(tree, mutant.test)
    assert result.returncode == 1, f"{mutant.test} does not fail without the guard\n{result.stdout[-3000:]}"
    assert "= FAILURES =" in result.stdout


def test_every_guarantee_has_a_mutant() -> None:
    covered = {number for mutant in MUTANTS for number in mutant.guarantees}
    assert covered >= {f"G{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)}
