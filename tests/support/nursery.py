"""Processes of ``ftx`` that begin where Python and its modules have been loaded already.

A run of this very file loads ftx once and forks for each order; it has one thread only, so it may. What it forks is a
process as any other: a pid, signals, streams, an environment and a folder of its own, and it ends as the interpreter
ends. Only what comes before ``main()`` is not its own: whoever tests how Python starts, which signals are ignored then,
which modules a command loads or how much memory it takes starts Python itself, as ``tests/cli`` does.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: One number: first a pid, later how that process ended.
NUMBER = struct.Struct("=i")
MAX_ORDER = 1 << 20
#: How often it is asked whether a process has ended.
TICK_S = 0.002
#: With what these load, all that a sender and a receiver load.
LOADED = (
    "concurrent.futures.thread", "cryptography.hazmat.primitives.serialization", "cryptography.x509", "encodings.idna",
    "ftx.api", "ftx.cli.process", "ftx.cli.receive", "ftx.cli.send", "ftx.net.tls", "ftx.transfer.dialer",
    "ftx.transfer.registry", "shutil", "spake2",
)  # fmt: skip


class Forked:
    """One process, as ``subprocess.Popen`` has it.

    Attributes:
        stdout: what it writes to standard output.
        returncode: None while it runs; negative if a signal ended it.
    """

    def __init__(self, orders: socket.socket, order: dict[str, Any], stderr: int) -> None:
        reading, writing = os.pipe()
        self._status, status = os.pipe()
        try:
            socket.send_fds(orders, [json.dumps(order).encode()], [writing, stderr, status])
        finally:
            os.close(writing)
            os.close(status)
        self.stdout = os.fdopen(reading, "rb")
        self.returncode: int | None = None
        self._lock = threading.Lock()  # one thread may wait for it, and another one kill it
        self.pid: int = NUMBER.unpack(os.read(self._status, NUMBER.size))[0]

    def poll(self) -> int | None:
        """How it ended, if it has."""
        with self._lock:
            if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                self.returncode = os.waitstatus_to_exitcode(NUMBER.unpack(os.read(self._status, NUMBER.size))[0])
                os.close(self._status)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(TICK_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and nobody has said so yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks. A context manager; inside it, ``start`` makes a process of ``ftx``.

    Attributes:
        running: the one that may be used; None: Python has to be started for each process.
        pid: of the process that forks.
    """

    running: Nursery | None = None

    def __init__(self) -> None:
        self._orders, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FTX_")}
        with far:
            self._popen = subprocess.Popen([sys.executable, "-W", "error", __file__], stdin=far, env=environ)
        self.pid = self._popen.pid

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[None]:
        """Let processes be forked meanwhile."""
        cls.running = nursery = cls()
        try:
            yield
        finally:
            cls.running = None
            nursery._orders.close()
            nursery._popen.wait()

    def start(
        self, arguments: Sequence[str | bytes | Path], *, stderr: int, environ: dict[str, str], cwd: Path
    ) -> Forked:
        """``ftx`` with these arguments, and nothing to read."""
        order = {"arguments": [os.fsdecode(argument) for argument in arguments], "environ": environ, "cwd": str(cwd)}
        return Forked(self._orders, order, stderr)


# --- In the process that forks ---------------------------------------------------------------------------------------


def _orders() -> dict[str, Any] | None:
    """Fork for each order, until nobody gives any. In a child: its order; in the process itself: None."""
    orders = socket.socket(fileno=os.dup(0))
    wakes, woken = socket.socketpair()
    wakes.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    running: dict[int, int] = {}
    with orders, wakes, woken, selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        selector.register(wakes, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is wakes:
                    wakes.recv(4096)
                    _reap(running)
                    continue
                text, fds, _, _ = socket.recv_fds(orders, MAX_ORDER, 3)
                if not text:
                    return None
                *streams, status = fds
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for fd in (status, *running.values()):
                        os.close(fd)
                    return json.loads(text) | {"streams": streams}
                for fd in streams:
                    os.close(fd)
                running[pid] = status
                os.write(status, NUMBER.pack(pid))


def _reap(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        fd = running.pop(pid)
        try:
            os.write(fd, NUMBER.pack(status))
        except BrokenPipeError:
            continue  # who asked for it is gone
        finally:
            os.close(fd)


def _become(order: dict[str, Any]) -> None:
    """Take on what a new process has and a forked one has not."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, fd in enumerate([null, *order["streams"]]):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["cwd"])
    sys.argv[1:] = order["arguments"]


if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # to look for cycles would copy what is shared
    if (order := _orders()) is not None:
        _become(order)
        from ftx.cli.main import main

        main()
