"""``ftx bench``: what limits the path to a receiver, as a table and in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftx.cli import params
from ftx.cli.main import CONTEXT
from ftx.cli.params import Remote
from ftx.options import BenchOptions

if TYPE_CHECKING:
    from ftx.transfer.events import BenchFinished, Measured

CHECKS = BenchOptions.CHECKS
MIB = 1024 * 1024
HEAD = f"{'LANES':>7}  {'MiB/s':>9}  {'WRITTEN':>9}  {'AGAIN':>7}"
#: ``limit`` of the last event -> the sentence.
LIMITS = {
    "network": "The network limits",
    "sender_disk": "The disk of this side limits",
    "receiver_disk": "The disk of the receiver limits",
    "sender_processor": "A processor of this side limits",
    "receiver_processor": "A processor of the receiver limits",
}


@click.command(context_settings=CONTEXT)
@click.argument("remote", metavar="REMOTE", callback=params.remote)
@params.options_of_both(CHECKS, "TCP port of the receiver.")
@click.option(
    "--lanes",
    type=click.IntRange(min=1),
    default=4,
    callback=params.checked(CHECKS["lanes"]),
    metavar="N",
    show_default=True,
    help="Connections to measure with at most, 1 to 64.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(),
    default=".",
    callback=params.checked(CHECKS["dir"]),
    metavar="DIR",
    help="Where the files are that you would send: its disk is measured.  [default: here]",
)
@click.option(
    "--step",
    type=float,
    default=2,
    callback=params.checked(CHECKS["step_s"]),
    metavar="SECONDS",
    show_default=True,
    help="How long each step measures, 0.1 to 5.",
)
@params.options_of_callers(CHECKS)
@click.pass_context
def bench(
    context: click.Context,
    remote: Remote,
    port: int,
    timeout: float,
    secret_file: Path | None,
    plain: bool,
    json: bool,
    quiet: bool,
    verbose: int,
    lanes: int,
    folder: Path,
    step: float,
    accept_new: bool,
    ssh: bool,
    rsh: tuple[str, ...] | None,
    remote_ftx: str,
    congestion: str | None,
    code_fd: int | None,
) -> int:
    """Measure what limits the path to a receiver: the network, a disk, or a processor.

    REMOTE is as for `ftx send`, and so is what it takes to be let in. It takes some 20 seconds, in which it uses all
    of the path. The receiver first drops what arrives, then writes it (WRITTEN) to a file that nobody sees; the disk
    of this side is measured with such a file, too. Nothing is left on either side.

    \b
    Examples:
      ftx bench nas
      ftx bench nas:backup --dir /srv/data --lanes 16
      ftx bench --ssh me@nas:backup

    Every option can also be a variable of the environment: FTX_BENCH_PORT=9000 is --port 9000.
    """
    over_ssh = params.starts_over_ssh(context)

    # Here and not above: help and wrong usage need none of it.
    from ftx import api
    from ftx.cli import process
    from ftx.cli.report import Output, Report, printable
    from ftx.cli.send import confirm_open
    from ftx.transfer.crew import Stop
    from ftx.transfer.events import BenchFinished, Event, Measured

    process.start_log(verbose)
    report = Report(receiving=False, label="measuring", json_lines=json, quiet=quiet, verbose=verbose)
    options = BenchOptions(
        host=remote.host,
        ssh=over_ssh,
        rsh=rsh or ("ssh",),
        remote_ftx=remote_ftx,
        folder=remote.folder,
        port=port,
        timeout_s=timeout,
        secret_file=None if over_ssh else secret_file,
        plain=plain and not over_ssh,
        accept_new=accept_new and not over_ssh,
        lanes=lanes,
        dir=folder,
        step_s=step,
        congestion=congestion,
    )
    table = Table()
    out = None if json else Output(sys.stdout)

    def on_event(event: Event) -> None:
        report(event)
        lines: Iterator[str] = iter(())
        if isinstance(event, Measured):
            lines = table.rows(event)
        elif isinstance(event, BenchFinished) and event.code == 0:
            lines = table.end(event)
        if out is not None:
            for line in lines:
                out.write(line + "\n")

    def work(stop: Stop) -> api.Finished:
        way = "over ssh" if over_ssh else f"port {port}"
        report.say(f"measuring the path to {printable(remote.host)}, {way}")
        code = None if over_ssh else process.pairing_code(remote.host, code_fd)
        return api.bench(options, on_event=on_event, stop=stop, confirm=confirm_open, code=code)

    return process.run(report, work)


class Table:
    """What was measured, a line for each number of lanes, and what it means."""

    def __init__(self) -> None:
        self._path: Measured | None = None  # whose line waits for what was written
        self._sent_again: dict[int, float] = {}  # by number of lanes
        self._begun = False

    def rows(self, event: Measured) -> Iterator[str]:
        if event.step == "path":
            yield from self._row(None)
            self._path = event
            self._sent_again[event.lanes] = event.sent_again or 0.0
        elif event.step == "receiver_disk":
            yield from self._row(event)
        else:
            yield from self._row(None)
            yield f"the disk of this side reads {_mib(event.rate).strip()} MiB/s"

    def _row(self, written: Measured | None) -> Iterator[str]:
        path, self._path = self._path, None
        if path is None:
            return
        if not self._begun:
            self._begun = True
            yield HEAD
        again = "" if path.sent_again is None else f"{path.sent_again:.2%}"
        yield f"{path.lanes:>7}  {_mib(path.rate)}  {_mib(written.rate) if written else '-':>9}  {again:>7}"

    def end(self, event: BenchFinished) -> Iterator[str]:
        yield from self._row(None)
        if event.round_trip_s:
            yield f"a round trip takes {event.round_trip_s * 1000:.1f} ms"
        yield ""
        yield from _sentences(event, self._sent_again.get(event.lanes, 0.0))


def _mib(rate: float) -> str:
    return f"{rate / MIB:>9.1f}"


def _sentences(event: BenchFinished, sent_again: float) -> Iterator[str]:
    """What limits, and what that means for `ftx send`. Nothing is said that was not measured."""
    lanes = "one lane" if event.lanes == 1 else f"{event.lanes} lanes"
    yield f"{LIMITS[event.limit or '']}: {_mib(event.rate).strip()} MiB/s, with {lanes}."
    if event.rate < event.path * 0.9:
        yield f"Without that disk the path carries {_mib(event.path).strip()} MiB/s."
    if event.lanes > 1:
        one = f"one lane alone carries {_mib(event.one_lane).strip()} MiB/s"
        yield f"`ftx send --lanes {event.lanes}` uses it; {one}."
    if event.more_help and event.lanes > 1:
        yield f"More lanes may carry more: `--lanes {min(4 * event.lanes, 64)}` tells."
    elif event.limit == "network" and event.lanes == 1:
        yield "More lanes do not help."
    if event.limit == "network" and sent_again >= 0.001:
        yield f"Of its packets {sent_again:.1%} had to be sent again."
