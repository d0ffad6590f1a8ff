"""What README.md tells people to copy is run: units, the cron line, the script, and the Python program."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ftx
from ftx.cli import main
from tests.support.files import fill, same

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
FTX = f"{sys.executable} -m ftx"
SIZE = 3_000_000
#: What every process needs to find this ftx, wherever it lies.
BARE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(ftx.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}


def chapter(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no chapter {title!r}"
    return found[1]


def blocks(title: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", chapter(title), re.MULTILINE | re.DOTALL)


def exit_codes(text: str) -> list[int]:
    """The codes in the first column of the table of exit codes."""
    rows = text.partition("\n| exit code | ")[2].partition("\n\n")[0]
    return [int(code) for row in re.findall(r"^\| ([\d, ]+) \|", rows, re.MULTILINE) for code in row.split(",")]


# --- unattended ---

UNATTENDED = "Unattended: cron and systemd"


class Unit:
    """A unit file: what is set, the last word of each, and all words of what may be set often."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.settings: dict[str, str] = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))

    def codes(self, setting: str) -> set[int]:
        return {int(code) for code in self.settings[setting].split()}


def files(language: str) -> dict[str, str]:
    """Name -> contents of the files to write: the first comment says where each goes."""
    found = {}
    for block in blocks(UNATTENDED, language):
        comment = re.search(r"^# (/\S+)", block, re.MULTILINE)
        assert comment, block
        found[Path(comment[1]).name] = block
    return found


class Machine:
    """One of the two machines: its folders, and the README's lines with its paths in them."""

    def __init__(self, folder: Path) -> None:
        self.state, self.backup, self.data = folder / "lib", folder / "backup", folder / "data"
        (self.state / "ftx").mkdir(parents=True)

    def here(self, text: str) -> str:
        paths = {
            "/opt/ftx/bin/ftx": FTX,
            "/opt/ftx/bin/python": sys.executable,
            "%S": str(self.state),
            "/var/lib": str(self.state),
            "/srv/backup": str(self.backup),
            "/srv/data": str(self.data),
            "backup.example.org": "127.0.0.1",
        }
        for there, here in paths.items():
            text = text.replace(there, here)
        return text

    def command(self, unit: Unit) -> tuple[list[str], dict[str, str]]:
        """``ExecStart`` and its environment: the unit's, and nothing that systemd would not give."""
        name, _, value = self.here(unit.settings["Environment"]).partition("=")
        return shlex.split(self.here(unit.settings["ExecStart"])), BARE | {name: value}


@pytest.fixture
def web1(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "web1")
    made.data.mkdir()
    fill(made.data / "one", SIZE)
    fill(made.data / "two", 5, seed=2)
    return made


@pytest.fixture
def receiver(tmp_path: Path, web1: Machine) -> Iterator[tuple[Machine, dict[str, str]]]:
    """The receiver's service, and the variables that lead a sender to it."""
    backup = Machine(tmp_path / "backup")
    unit = Unit(files("ini")["ftx-receive.service"])
    command, environment = backup.command(unit)
    # A free port, which the receiver tells; the command line itself stays as it is.
    environment |= {"FTX_RECEIVE_PORT": "0", "FTX_RECEIVE_BIND": "127.0.0.1", "FTX_RECEIVE_RESERVE": "0"}
    process = subprocess.Popen(
        command,
        env=environment | {"FTX_RECEIVE_JSON": "1"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        port = json.loads(process.stdout.readline())["addresses"][0][1]
        shutil.copy(backup.state / "ftx" / "key", web1.state / "ftx" / "key")
        yield backup, {"FTX_SEND_PORT": str(port)}
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
        assert process.returncode in unit.codes("SuccessExitStatus")
        assert err == "ftx: stopped.\n"
    finally:
        process.kill()
        process.communicate()


def ran(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )


def cron_line(machine: Machine) -> tuple[str, dict[str, str]]:
    """The command of the crontab, and the environment that cron gives it."""
    (table,) = files("crontab").values()
    *_, line = table.splitlines()
    fields = line.split(None, 6)
    assert re.fullmatch(r"[\d*]+ [\d*]+ [\d*]+ [\d*]+ [\d*]+", " ".join(fields[:5]))
    assert fields[5] == "root"
    assert "%" not in fields[6], "which is the end of the line to cron"
    variables = dict(re.findall(r"^(\w+)=(.*)$", machine.here(table), re.MULTILINE))
    assert variables.pop("MAILTO")
    given = {"HOME": "/nonexistent", "LOGNAME": "root", "SHELL": "/bin/sh"}
    return machine.here(fields[6]), BARE | given | variables


def test_the_units_send_a_backup(web1: Machine, receiver: tuple[Machine, dict[str, str]]) -> None:
    backup, where = receiver
    command, environment = web1.command(Unit(files("ini")["ftx-backup.service"]))
    done = ran(command, environment | where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in ("one", "two"):
        assert same(web1.data / name, backup.backup / "web1" / name)
    # The identity stays where the next run finds it, and nothing else was written.
    assert sorted(path.name for path in (web1.state / "ftx").iterdir()) == ["identity", "key"]
    assert sorted(path.name for path in web1.state.iterdir()) == ["ftx"]


def test_the_cron_line_sends_a_backup(web1: Machine, receiver: tuple[Machine, dict[str, str]]) -> None:
    backup, where = receiver
    line, environment = cron_line(web1)
    done = ran(["/bin/sh", "-c", line], environment | where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert same(web1.data / "one", backup.backup / "web1" / "one")


def test_the_script_prints_figures(web1: Machine, receiver: tuple[Machine, dict[str, str]]) -> None:
    (script,) = files("sh").values()
    _, where = receiver
    done = ran(["/bin/sh", "-c", web1.here(script)], BARE | where)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"2 files, {SIZE + 5} bytes sent, 0 held,"
    done = ran(["/bin/sh", "-c", web1.here(script)], BARE | where | {"FTX_SEND_TIMEOUT": "never"})
    assert done.returncode == 2
    assert done.stdout == ""


def test_a_receiver_that_is_down_is_tried_again_and_told_by_mail(web1: Machine) -> None:
    (web1.state / "ftx" / "key").touch(mode=0o600)
    (web1.state / "ftx" / "key").write_text("5e" * 32)
    line, environment = cron_line(web1)
    done = ran(["/bin/sh", "-c", line], environment | {"FTX_SEND_PORT": "1"})
    assert done.stdout == ""
    assert re.fullmatch(r"ftx: .*\n", done.stderr)
    unit = Unit(files("ini")["ftx-backup.service"])
    assert unit.settings["Restart"] == "on-failure"
    assert done.returncode == 3
    assert {*range(1, 10)} - unit.codes("RestartPreventExitStatus") == {3}


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_flock_lets_the_older_run_go_on(web1: Machine, tmp_path: Path) -> None:
    found = re.search(r"`(flock [^`]*)`", chapter(UNATTENDED))
    assert found
    lock = tmp_path / "lock"
    flock = re.sub(r"/run/\S+", shlex.quote(str(lock)), found[1])
    line, environment = cron_line(web1)
    held = f"{flock} {flock} {line}"  # the inner one finds it locked
    done = ran(["/bin/sh", "-c", held], environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name, text in files("ini").items():
        (tmp_path / name).write_text(text.replace("/opt/ftx/bin/ftx", FTX))
    units = [str(path) for path in sorted(tmp_path.iterdir())]
    assert len(units) == 3
    done = ran(["systemd-analyze", "verify", "--man=no", *units], dict(os.environ))
    # Other units of this machine may be wrong; ours are not even mentioned.
    assert not [line for line in done.stderr.splitlines() if "ftx" in line], done.stderr


def test_every_exit_code_is_in_both_tables() -> None:
    all_codes = exit_codes(README.replace(chapter(UNATTENDED), ""))
    assert sorted({1, *all_codes}) == sorted(exit_codes(chapter(UNATTENDED)))


# --- from Python ---

PYTHON = "From Python"


def test_the_python_program(tmp_path: Path) -> None:
    fill(tmp_path / "disk.img", SIZE)
    program = "\n".join(blocks(PYTHON, "python"))
    environment = BARE | {"FTX_CONFIG_DIR": str(tmp_path / "config"), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    *_, sent, failed = done.stdout.splitlines()
    assert sent == f"0 1 {SIZE}"
    assert failed == "6 no such file: no such file"
    assert same(tmp_path / "disk.img", tmp_path / "in" / "disk.img")


def test_every_option_of_the_commands_is_one_of_the_dataclasses() -> None:
    only_here = {"over_ssh", "json", "quiet", "verbose", "version", "help", "paths", "remote", "code_fd"}
    renamed = {"timeout": "timeout_s", "retry_for": "retry_for_s", "expire": "expire_s", "no_fsync": "fsync"}
    for command, options in (("send", ftx.SendOptions), ("receive", ftx.ReceiveOptions)):
        names = {parameter.name or "" for parameter in main.load(command).params} - only_here
        assert {renamed.get(name, name) for name in names} <= set(options.__dataclass_fields__)


def test_the_package_exports_the_api_and_imports_it_late() -> None:
    from ftx import api

    assert set(ftx.__all__) == set(api.__all__)
    for name in ftx.__all__:
        assert getattr(ftx, name) is getattr(api, name)
        assert name in dir(ftx)
        assert name == "OnEvent" or inspect.getdoc(getattr(ftx, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = ftx.nothing  # type: ignore[attr-defined]
    code = "import sys, ftx; print([name for name in sys.modules if name.startswith(('ftx.', 'xxhash'))])"
    assert ran([sys.executable, "-c", code], BARE).stdout == "[]\n"
