"""``ftx demo``: a receiver and a sender on this machine, a SIGKILL half-way, and the resume, with figures.

Rules: what runs here is the program itself, in processes of its own, never parts of it. What the demo says was
sent is what the receiver counted, and what it calls identical it has compared. However it ends, no process, port
or file of it is left: its processes may be killed at any moment, which is what it is about.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click

import ftx
from ftx.cli import params
from ftx.cli.main import CONTEXT, version_option
from ftx.cli.report import Output, human_bytes, printable
from ftx.errors import FtxError, IntegrityError, NetworkError, NoSpace, SourceError, SourceMissing
from ftx.transfer.crew import Stop

#: What the demo makes when it is given no file, and in what pieces.
DEMO_BYTES = 512 * 1024 * 1024
PIECE = 8 * 1024 * 1024
#: A source that changed more recently is compared before it is resumed (``protocol.md``, "The source tag").
YOUNG_S = 2.0
#: How long the receiver may take to start, or to see the end of a session.
STEP_S = 30.0
#: How often the receiver's partial is looked at while figures depend on it.
LOOK_S = 0.001


@click.command(context_settings=CONTEXT)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@params.verbose_option
@version_option
def demo(file: Path | None, verbose: int) -> int:
    """Show a kill and a resume on this machine.

    Starts a receiver, sends FILE to it (or 512 MiB that are made for it), kills the sender half-way, sends again,
    and compares the two files byte for byte. All of it happens in a temporary folder, which needs room for the file
    and is removed again. With -v or -vv the two sides say more.

    \b
    Examples:
      ftx demo
      ftx demo big.iso
      TMPDIR=/var/tmp ftx demo big.iso
    """
    from ftx.cli import process

    process.start_log(verbose)
    stop = Stop()
    with process.signals_stop(stop, second_leaves=False):
        try:
            with tempfile.TemporaryDirectory(prefix="ftx-demo-", ignore_cleanup_errors=True) as folder:
                return run(file, Path(folder), verbose, stop)
        except FtxError as error:
            click.echo(f"ftx: {error}", err=True)
            return error.exit_code


def run(file: Path | None, folder: Path, verbose: int, stop: Stop) -> int:
    """The demo, in the empty ``folder``. Returns the exit status.

    Raises:
        FtxError: it could not be carried through.
    """
    size = size_of(file) if file else DEMO_BYTES
    room = shutil.disk_usage(folder).free
    need = size if file else 2 * size
    if room < need:
        raise NoSpace(f"{folder.parent} has room for {human_bytes(room)} of {human_bytes(need)}; set TMPDIR")
    say = Output(sys.stdout).write
    say(f"{human_bytes(size)} from one process to another on this machine, in {printable(str(folder))}\n")
    source = file.absolute() if file else made(folder / "demo.bin", size, stop)
    wait_for(lambda: time.time() - source.stat().st_ctime > YOUNG_S, stop)

    into = folder / "received"
    target = into / source.name
    arguments = ["receive", "--bind", "127.0.0.1", "--port", "0", "--dir", str(into), "--reserve", "0"]
    with Side(arguments, folder, verbose, stop) as receiver:
        receiver.wait(lambda: bool(receiver.of_type("listening")))
        port = receiver.of_type("listening")[0]["addresses"][0][1]
        arguments = ["send", str(source), "127.0.0.1", "--port", str(port), "--retry-for", "5"]

        half = min(size, source.stat().st_blocks * 512) // 2
        with Side(arguments, folder, verbose, stop) as sender:
            wait_for(lambda: sender.ended or allocated(into) >= max(half, 1), stop, LOOK_S)
            first_s = time.time() - sender.started
            killed = not sender.ended
            sender.kill()
            if not killed and sender.code():
                return failed(sender)
        receiver.wait(lambda: receiver.idle)
        held = allocated(into)
        if killed:
            say(f"  first run    sender killed (SIGKILL) after {first_s:.2f} s; {human_bytes(held)} had arrived\n")
        else:
            say(f"  first run    {first_s:.2f} s: such a small file is there before its sender can be killed\n")

        with Side(arguments, folder, verbose, stop) as sender:
            wait_for(lambda: sender.ended or target.exists() or allocated(into) > held, stop, LOOK_S)
            new_byte = time.time()
            wait_for(lambda: sender.ended, stop)
            second_s = time.time() - sender.started
            if sender.code():
                return failed(sender)
            finished = sender.finished()
            first_byte_s = new_byte - sender.started
            connected = sender.of_type("session")[0]["time"]
        receiver.wait(lambda: receiver.idle)
        received = sum(event["bytes_received"] for event in receiver.of_type("session_end"))

    sent, reused = finished["bytes_sent"], finished["bytes_reused"]
    say(f"  second run   {second_s:.2f} s: {human_bytes(sent)} sent, {human_bytes(reused)} already there\n")
    if sent:
        say(
            f"  first byte   {max(0.0, new_byte - connected):.3f} s after the second session stood, "
            f"{first_byte_s:.2f} s after its process was started\n"
        )
    say(f"  sent twice   {human_bytes(max(0, received - size))}, in whole chunks, as the receiver counted\n")
    if sent and finished["seconds"]:
        say(
            f"  throughput   {human_bytes(sent / finished['seconds'])}/s in the second run, "
            f"{human_bytes(size / (first_s + second_s))}/s in both, with the start of their processes\n"
        )
    if not identical(source, target, stop):
        say("  compared     THE FILES DIFFER\n")
        raise IntegrityError("the file that was received is not the one that was sent; please report this")
    say(f"  compared     all {size} bytes are identical\n")
    return 0


class Side:
    """One side in a process of its own. A context manager: leaving it kills what still runs.

    Attributes:
        started: when it was started, seconds since the epoch.
    """

    def __init__(self, arguments: list[str], folder: Path, verbose: int, stop: Stop) -> None:
        self._stop = stop
        self._name = arguments[0]
        self._events: list[dict[str, Any]] = []
        # -P: no module is taken from the folder the user happens to be in.
        command = [sys.executable, "-P", "-m", "ftx", *arguments, "--json", *(["-" + "v" * verbose] * bool(verbose))]
        self._log = folder / f"{self._name}.log"
        self.started = time.time()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if verbose else log,
                env=environment(folder),
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its processes
            )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # half a line: it was killed
                    self._events.append(json.loads(line))

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, if it still runs. All that it reported is known afterwards."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def idle(self) -> bool:
        """Receiver: every session that began is over."""
        return len(self.of_type("session")) == len(self.of_type("session_end"))

    def code(self) -> int:
        """Exit status, waiting for the end; 1 for a death by a signal."""
        code = self._process.wait()
        self._reader.join()
        return code if code >= 0 else 1

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type so far."""
        return [event for event in list(self._events) if event["type"] == kind]

    def finished(self) -> dict[str, Any]:
        """Its last event; empty if it has not got that far."""
        return next(iter(self.of_type("finished")), {})

    def message(self) -> str:
        """Why it failed, in its own words."""
        text: str = self.finished().get("message") or self._log.read_text("utf-8", "replace")[-500:].strip()
        return text or "it gave no reason"

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait for something that it does by itself.

        Raises:
            FtxError: it ended, or did not do it in time.
        """
        deadline = time.monotonic() + STEP_S
        wait_for(lambda: ready() or self.ended or time.monotonic() > deadline, self._stop, LOOK_S)
        if not ready():
            raise NetworkError(f"the demo's {self._name} process did not do its part: {printable(self.message())}")


def environment(folder: Path) -> dict[str, str]:
    """The environment of both sides: the user's, without what steers ftx, and with a configuration of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("FTX_")}
    own["FTX_CONFIG_DIR"] = str(folder / "config")
    package = str(Path(ftx.__file__).parent.parent)
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [package, own.get("PYTHONPATH")]))
    return own


def wait_for(ready: Callable[[], bool], stop: Stop, every_s: float = 0.02) -> None:
    """Look at ``ready`` every so many seconds until it is true.

    Raises:
        Interrupted: ``stop`` was asked meanwhile.
    """
    while not ready():
        stop.wait(every_s)
        stop.check()


def size_of(file: Path) -> int:
    """Size of the file that the user named.

    Raises:
        SourceError: there is none, or it is something else.
    """
    try:
        if not file.is_file():
            file.stat()
            raise SourceError(f"{printable(str(file))} is not a file")
        return file.stat().st_size
    except OSError as error:
        raise SourceMissing(f"{printable(str(file))}: {error.strerror}") from error


def made(path: Path, size: int, stop: Stop) -> Path:
    """Make a file that looks random: one random piece, turned a little further each time, so no two are equal."""
    piece = os.urandom(PIECE)
    with path.open("wb") as file:
        for turn in range(size // PIECE):
            stop.check()
            file.write(piece[turn:])
            file.write(piece[:turn])
    return path


def allocated(into: Path) -> int:
    """Bytes that the receiver's partials below ``into`` occupy on the disk at this moment."""
    total = 0
    for partial in into.glob(".ftx/*.part"):
        with contextlib.suppress(FileNotFoundError):
            total += partial.stat().st_blocks * 512
    return total


def identical(one: Path, other: Path, stop: Stop) -> bool:
    """Whether two files have the same bytes."""
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            stop.check()
            here, there = left.read(PIECE), right.read(PIECE)
            if here != there:
                return False
            if not here:
                return True


def failed(side: Side) -> int:
    """Say why a side failed, and return its exit status."""
    click.echo(f"ftx: {printable(side.message())}", err=True)
    return side.code()
