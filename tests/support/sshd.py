"""A real sshd for the length of some tests, with keys of its own, and what runs behind it."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.process import Process, wait_until

REPOSITORY = Path(__file__).parents[2]
#: Runs the far side, writes its line down, and may name another port in it. What follows passes unchanged.
FILTER = """
import os, re, subprocess, sys
port, note = sys.argv[1:3]
child = subprocess.Popen(sys.argv[3:], stdout=subprocess.PIPE)
data = b""
while not (found := re.search(rb"^ftx-ssh .*\\n", data, re.M)) and (more := os.read(child.stdout.fileno(), 65536)):
    data += more
open(note, "wb").write(data)
if port:
    data = re.sub(rb'"port":[0-9]+', b'"port":' + port.encode(), data)
while data:
    data = data[os.write(1, data):]
    data = data or os.read(child.stdout.fileno(), 65536)
sys.exit(child.wait())
"""


class Sshd:
    """A server, and how to log in to it.

    Attributes:
        path: where a far shell looks for programs first.
    """

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self.path = folder / "bin"
        self.path.mkdir()
        for name in ("host", "user"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = folder / "sshd_config"
        server.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\n"
            f"PermitRootLogin yes\nPrintMotd no\nSetEnv PATH={self.path}:/usr/bin:/bin\n"
        )
        # Behind "hidden" there is a server, too, but no TCP leads to that address.
        self.config = folder / "config"
        self.config.write_text(
            f"Host far\n  HostName 127.0.0.1\n  Port {port}\n"
            f"Host hidden\n  HostName 255.255.255.255\n  ProxyCommand {program} -i -f {server}\n"
            f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  BatchMode yes\n  LogLevel ERROR\n"
            f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking accept-new\n"
        )
        self.rsh = f"ssh -F {self.config}"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([program, "-D", "-e", "-f", server], stderr=log)


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd | str]:
    """A server that lets this user in; or why there is none."""
    program = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None or shutil.which("ssh") is None:
        yield "no OpenSSH here"
        return
    server = Sshd(folder, program)
    try:
        reached: list[int] = []

        def log_in() -> bool:
            command = [*shlex.split(server.rsh), "far", "true"]
            reached.append(
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode
            )
            return reached[-1] == 0 or len(reached) == 20 or server.process.poll() is not None

        wait_until(log_in)
        yield server if reached[-1] == 0 else f"sshd does not let this user in: {server.log.read_text()[-300:]}"
    finally:
        server.process.kill()
        server.process.wait()


class Far:
    """A machine behind ``Sshd``: a home folder, and a program ftx there.

    Args:
        base: the test's folder.
        noise: what a login says, as a line of a shell script.
        port: which the far side is made to name; empty for its own.
    """

    def __init__(self, server: Sshd, base: Path, *, noise: str = "", port: str = "") -> None:
        self.server = server
        self.base = base
        self.home = base / "home"
        self.home.mkdir()
        self.config = base / "far-config"
        self._note = base / "line"
        filter_ = base / "filter.py"
        filter_.write_text(FILTER)
        program = [sys.executable, filter_, port, self._note, sys.executable, "-m", "ftx"]
        variables = {"HOME": self.home, "FTX_CONFIG_DIR": self.config, "PYTHONPATH": REPOSITORY}
        self.ftx = base / "far ftx"
        self.ftx.write_text(
            "#!/bin/sh\n"
            + "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in variables.items())
            + f'{noise}\ncd "$HOME"\nexec {shlex.join(map(str, program))} "$@"\n'
        )
        self.ftx.chmod(0o755)

    def sender(self, path: Path, remote: str, *arguments: str, **more: Any) -> Process:
        """``ftx send --ssh``, under way."""
        way = ("--rsh", self.server.rsh, "--remote-ftx", str(self.ftx))
        return Process(self.base, "send", *way, *arguments, "--", path, remote, **more)

    def bench(self, remote: str, *arguments: str | Path) -> Process:
        """``ftx bench --ssh``, to its end."""
        way = ("--rsh", self.server.rsh, "--remote-ftx", str(self.ftx))
        with Process(self.base, "bench", *way, *arguments, "--", remote) as process:
            process.wait()
        return process

    def send(self, path: Path, remote: str, *arguments: str) -> Process:
        """The same, to its end."""
        with self.sender(path, remote, *arguments) as process:
            process.wait()
        return process

    def line(self) -> bytes:
        """What the far side that was started last has said."""
        return self._note.read_bytes()

    def processes(self) -> list[int]:
        """The far sides that run."""
        mark = f"FTX_CONFIG_DIR={self.config}".encode()
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # not a process, or gone meanwhile
                words = (process / "cmdline").read_bytes().split(b"\0")
                environ = (process / "environ").read_bytes().split(b"\0")
                if b"-m" in words[:2] and b"--over-ssh" in words and mark in environ:
                    found.append(int(process.name))
        return found

    def gone(self, patience_s: float = 10) -> None:
        """Wait until none runs."""
        wait_until(lambda: not self.processes(), patience_s)


def child(parent: int, name: str) -> int:
    """The process of this name that another has started, waiting for it."""
    found: list[int] = []

    def look() -> list[int]:
        for task in Path(f"/proc/{parent}/task").iterdir():
            for pid in (task / "children").read_text().split():
                with suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                        found.append(int(pid))
        return found

    wait_until(look)
    return found[0]
