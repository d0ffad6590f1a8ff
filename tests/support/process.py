"""Both sides as processes of their own, their JSON events parsed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.nursery import Forked, Nursery

PATIENCE_S = 40.0
#: Becomes another user, who may not be able to read Python's own modules, and then the program.
AS_USER = """
import os, sys
import encodings.idna, shutil, ftx.cli.main, ftx.cli.process, ftx.cli.receive, ftx.cli.report, ftx.cli.send, ftx.api
import ftx.transfer.dialer, ftx.transfer.registry, ftx.transfer.status, ftx.net.tls
import cryptography.x509, ssl  # before another user may not read them
uid = int(sys.argv.pop(1))
os.setgroups([]); os.setgid(uid); os.setuid(uid)
ftx.cli.main.main()
"""


def environment(base: Path) -> dict[str, str]:
    """The environment without what steers ftx, with a configuration of its own below ``base``, and with one lane.

    That is what ftx chooses on one machine, unless that is busy and so looks far away.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("FTX_")}
    return own | {"FTX_CONFIG_DIR": str(base / "config"), "FTX_SEND_LANES": "1", "PYTHONWARNINGS": "error"}


def wait_until(ready: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for something that another process or thread does."""
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class Process:
    """One run of ``ftx``. A context manager: leaving it kills what still runs.

    Args:
        base: folder of the test; configuration and logs go there.
        arguments: of the command line; ``--json`` is added unless ``json_lines`` is false.
        uid: run as this user.
        prefix: what stands before the program, to run it on a host of ``wanlink``.
        forked: by the nursery, if there is one; else Python is started for it, as it is for what a nursery cannot give.
    """

    def __init__(
        self,
        base: Path,
        *arguments: str | bytes | Path,
        json_lines: bool = True,
        uid: int | None = None,
        stdin: int | None = subprocess.DEVNULL,
        close_stdin: bool = False,
        environ: dict[str, str] | None = None,
        prefix: Sequence[str | bytes | Path] = (),
        forked: bool = True,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.out = ""
        self._err = base / f"stderr-{threading.get_ident()}-{time.monotonic_ns()}"
        options = [arguments[0], *(["--json"] * json_lines), *arguments[1:]]
        own = environment(base) | (environ or {})
        ordinary = uid is None and stdin == subprocess.DEVNULL and not close_stdin and not prefix
        nursery = Nursery.running if forked and ordinary else None
        self.popen: Forked | subprocess.Popen[bytes]
        with self._err.open("wb") as err:
            if nursery:
                self.popen = nursery.start(options, stderr=err.fileno(), environ=own, cwd=base)
            else:
                program = ["-m", "ftx"] if uid is None else ["-c", AS_USER, str(uid)]
                self.popen = subprocess.Popen(
                    [*prefix, sys.executable, *program, *options],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    env=own,
                    preexec_fn=(lambda: os.close(0)) if close_stdin else None,
                    cwd=base,
                )
        self._reader = threading.Thread(target=self._read, args=(json_lines,), name="events", daemon=True)
        self._reader.start()

    def _read(self, json_lines: bool) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                if json_lines and line.endswith(b"\n"):
                    self.events.append(json.loads(line))
                else:
                    self.out += line.decode("utf-8", "replace")

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def err(self) -> str:
        """What it has written to standard error."""
        return self._err.read_text("utf-8", "replace")

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"] == kind]

    def event(self, kind: str, number: int = 0) -> dict[str, Any]:
        """An event of a type, waiting for it."""
        wait_until(lambda: len(self.of_type(kind)) > number or not self._reader.is_alive())
        found = self.of_type(kind)
        assert len(found) > number, f"no {kind} event; {self.events[-1:]} {self.err}"
        return found[number]

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.popen.kill()
        self.popen.wait()
        self._reader.join()

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit status."""
        try:
            code = self.popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; {self.events[-3:]} {self.err}") from None
        self._reader.join()
        return code

    @property
    def finished(self) -> dict[str, Any]:
        return self.event("finished")

    def peak_rss(self) -> int:
        """Bytes of memory that it has used at most so far."""
        # Gone for good, it has no such file; ended and not waited for, no such line.
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0


class Receiver(Process):
    """``ftx receive``, ready for senders."""

    def __init__(self, base: Path, *arguments: str | Path, into: Path | None = None, bind: str = "127.0.0.1",
                 **more: Any) -> None:  # fmt: skip
        self.into = into or base / "into"
        options = ("--bind", bind, "--port", "0", "--dir", self.into, "--reserve", "0")
        super().__init__(base, "receive", *options, *arguments, **more)
        self.port = 0
        try:
            self.port = self.event("listening")["addresses"][0][1]
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 128 + signal.SIGTERM, self.err


def sender(base: Path, path: Path | str | bytes, port: int, *arguments: str | bytes | Path, host: str = "127.0.0.1",
           **more: Any) -> Process:  # fmt: skip
    """``ftx send``, under way."""
    options = ("--port", str(port), *arguments)
    return Process(base, "send", *options, "--", path, host, **more)


def send(base: Path, path: Path | str | bytes, port: int, *arguments: str | bytes | Path, **more: Any) -> Process:
    """``ftx send``, to its end."""
    with sender(base, path, port, *arguments, **more) as process:
        process.wait()
    return process
