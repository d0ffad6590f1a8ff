"""Servers, and programs that are timed. What is started here ends here, with all that it has started."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

Command = Sequence[str | Path]

START_S = 20.0
#: How often the memory of a running program is looked at. The kernel keeps the peak, so only the very end is missed.
LOOK_S = 0.02
#: So many in a row are free.
PORTS = 6
#: States in /proc/net/tcp, of include/net/tcp_states.h.
LISTENING, CONNECTED = "0A", "01"


class Failed(Exception):
    """A tool did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed program.

    Attributes:
        seconds: wall clock, from its start until it and the receiver started for it, if any, had ended.
        cpu_s: user and system time of the sender and the children it waited for.
        peak: memory of the sender, resident bytes at most.
        code: exit status of the sender; None if it was stopped.
    """

    seconds: float
    cpu_s: float
    peak: int
    code: int | None


def free_port() -> int:
    """A TCP port that nobody uses, nor the next few, which some servers take as well.

    It lies below those that the kernel gives to connections, or one of these could be in the way on another host.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with ExitStack() as opened, suppress(OSError):
            for number in range(PORTS):
                opened.enter_context(socket.create_server(("127.0.0.1", port + number)))
            return port


def peak_rss(pid: int) -> int:
    """Resident bytes that a process has used at most so far; 0 if it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _family(pid: int) -> list[int]:
    """A process and what it has started, down to the last descendant."""
    found = [pid]
    for process in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process of ours and its descendants."""
    if process.returncode is None:
        for pid in _family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def start(command: Command, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=log.parent
        )


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path, state: str = LISTENING) -> None:
    """Wait until a port in the process's network namespace is in a state, without connecting to it.

    Raises:
        Failed: the process ended, or nothing came.
    """
    deadline = time.monotonic() + START_S
    while state not in _states(process.pid, port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"it does not listen; {tail(log)}")
        time.sleep(0.002)


def _states(pid: int, port: int) -> set[str]:
    """The states of the sockets of a local port."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # no IPv6, or the process is gone
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if int(local.rpartition(":")[2], 16) == port:
                    found.add(state)
    return found


def tail(log: Path) -> str:
    """The end of a log, on one line."""
    return " ".join(log.read_text("utf-8", "replace").split())[-300:] if log.exists() else ""


class Timer:
    """Times a sender from before it is started until it has ended. Leaving the with-block kills what still runs."""

    def __init__(self, sender: Command, environment: Mapping[str, str], log: Path) -> None:
        self._begun = time.monotonic()
        self.sender = start(sender, environment, log)
        self._receiver: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *_: object) -> None:
        kill(self.sender)

    def wait(
        self, receiver: subprocess.Popen[bytes] | None, patience_s: float, stop: Callable[[], bool] | None = None
    ) -> Run:
        """Wait until the sender, and the receiver that was started for it, have ended.

        Args:
            stop: asked all the time; both are killed when it says yes.

        Raises:
            Failed: they did not end in time.
        """
        running = {os.pidfd_open(process.pid): process for process in (self.sender, receiver) if process}
        peak, ended_s, code, cpu_s = 0, 0.0, None, 0.0
        try:
            while running:
                peak = max(peak, peak_rss(self.sender.pid))
                ready, _, _ = select.select(list(running), [], [], 0.0005 if stop else LOOK_S)
                ended_s = time.monotonic() - self._begun
                for fd in ready:
                    os.close(fd)
                    process = running.pop(fd)
                    if process is self.sender:
                        # Popen's own wait would not tell what it has used.
                        _, status, used = os.wait4(process.pid, 0)
                        process.returncode = code = os.waitstatus_to_exitcode(status)
                        cpu_s = used.ru_utime + used.ru_stime
                if running and stop and stop():
                    return Run(ended_s, cpu_s, peak, None)
                if running and ended_s > patience_s:
                    raise Failed(f"stopped after {patience_s:g} s")
        finally:
            for fd in running:
                os.close(fd)
            kill(self.sender)
            if receiver:
                kill(receiver)
        return Run(ended_s, cpu_s, peak, code)
