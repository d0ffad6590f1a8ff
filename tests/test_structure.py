"""The structure that the documents promise: the layers, and a place for each guarantee."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ftx"
GUARANTEES = [f"G{number}" for number in range(1, 13)]

#: What each layer may import of ftx. ``errors`` and ``options`` are leaves; ``protocol`` is pure.
MAY_IMPORT = {
    "errors": set(),
    "options": {"errors", "protocol"},
    "protocol": {"errors", "protocol"},
    "storage": {"errors", "options", "protocol", "storage"},
    "net": {"errors", "options", "protocol", "net"},
    "transfer": {"errors", "options", "protocol", "storage", "net", "transfer", ""},
    "api": {"errors", "options", "transfer"},
    "cli": {"errors", "options", "protocol", "api", "transfer", "cli", ""},
    "__main__": {"cli"},
    "__init__": {"api"},
}
#: Modules that make a layer impure.
IMPURE = {"socket", "threading", "time", "os", "pathlib", "logging", "select", "subprocess", "queue", "random"}


def imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downwards(file: Path) -> None:
    layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(file):
        first, _, rest = name.partition(".")
        if first == "ftx":
            below = rest.split(".")[0]
            below = "" if below == "__version__" or not below else below
            assert below in MAY_IMPORT[layer], f"{layer} imports {name}"
        elif layer == "protocol" or file.name in ("actions.py", "plan.py", "ledger.py"):
            allowed = IMPURE - {"threading"} if layer == "transfer" else IMPURE
            assert first not in allowed, f"{file.name} is pure and imports {name}"


def test_only_commit_renames() -> None:
    for file in modules():
        if file.name not in ("commit.py", "disk.py"):
            assert not re.search(r"\bdisk\.(rename|link)\(|\bos\.(rename|replace)\(", file.read_text()), file


def test_storage_touches_the_disk_through_one_module() -> None:
    calls = re.compile(r"\bos\.(pwrite|preadv|pread|write|ftruncate|fsync|fdatasync|rename|link|unlink|mkdir|fchmod)\(")
    for file in (PACKAGE / "storage").glob("*.py"):
        if file.name != "disk.py":
            assert not calls.search(file.read_text()), file


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_each_guarantee_stands_in_document_code_and_tests(guarantee: str) -> None:
    number = re.compile(rf"\b{guarantee}\b")
    assert number.search((REPOSITORY / "protocol.md").read_text())
    assert number.search((REPOSITORY / "README.md").read_text())
    assert any(number.search(file.read_text()) for file in modules())
    name = re.compile(rf"def test_\w*{guarantee}_", re.IGNORECASE)
    assert any(name.search(file.read_text()) for file in (REPOSITORY / "tests").rglob("test_*.py"))


def test_the_top_level_is_what_was_agreed() -> None:
    agreed = {"pyproject.toml", "README.md", "ftx", "tests", "protocol.md", "CHANGELOG.md", "LICENSE"}
    built = {"build", "ftx_transfer.egg-info"}
    found = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")} - built
    assert found == agreed
