"""``ftx status``: what is unfinished below a destination, as a table or as JSON."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftx.cli import params
from ftx.cli.main import CONTEXT, version_option

if TYPE_CHECKING:
    from ftx.transfer.events import StatusFinished, Unfinished

#: The path comes last: of all columns only that one has no bound.
ROW = "{:>10}  {:>16}  {:>13}  {:8}  {:9}  {}"
HEAD = ROW.format("SIZE", "HELD", "UNTOUCHED FOR", "PEER", "STATE", "PATH")
#: Of a peer's 64 digits, as many as tell it from others.
PEER_DIGITS = 8


@click.command(context_settings=CONTEXT)
@click.argument("dir", required=False, type=click.Path(path_type=Path))
@click.option("--path", metavar="PATH", help="Only what is to become this file below DIR.")
@click.option("--discard", is_flag=True, help="Remove what is not running: it cannot be resumed any more.")
@click.option("--json", is_flag=True, help="One JSON object a line on standard output.")
@params.verbose_option
@version_option
def status(dir: Path | None, path: str | None, discard: bool, json: bool, verbose: int) -> int:
    """Show what is unfinished below a destination.

    DIR is what `ftx receive --dir` was given; the current folder, if it is left out. What is unfinished takes up space
    there until it is sent again, discarded, or expires.

    \b
    Examples:
      ftx status /srv/incoming
      ftx status /srv/incoming --discard
      ftx status /srv/incoming --discard --path images/big.iso

    What a receiver is working on is shown as running, and is never discarded. Every option can also be a variable of
    the environment: FTX_STATUS_JSON=1 is --json.
    """
    # Here and not above: help and wrong usage need none of it.
    from json import dumps

    from ftx.cli import process
    from ftx.cli.report import Output, printable
    from ftx.transfer import events
    from ftx.transfer.status import status as tell

    process.start_log(verbose)
    out = Output(sys.stdout)
    folder = dir or Path()
    begun = False

    def say(text: str) -> None:
        # Unlike standard error, standard output refuses what its encoding does not have.
        out.write(text.encode(out.encoding, "backslashreplace").decode(out.encoding) + "\n")

    def show(event: events.Event) -> None:
        nonlocal begun
        match event:
            case _ if json:
                out.write(dumps(event.as_json()) + "\n")
            case events.Unfinished():
                if not begun:
                    say(HEAD)
                begun = True
                say(row(event))
            case events.StatusFinished(code=0):
                say(summary(event, printable(os.fspath(folder.absolute() / (path or ""))), discard=discard))
            case _:
                pass
        if isinstance(event, events.Warn) or (isinstance(event, events.StatusFinished) and event.code):
            click.echo(f"ftx: {printable(event.message)}", err=True)

    finished = tell(folder, path=None if path is None else os.fsencode(path), discard=discard, on_event=show)
    return finished.code


def row(event: Unfinished) -> str:
    """A line of the table."""
    from ftx.cli.report import human_bytes, human_seconds, printable

    percent = 100 if event.held >= event.size else event.held * 100 // event.size
    state = "discarded" if event.discarded else "running" if event.running else "resumable"
    return ROW.format(
        human_bytes(event.size),
        f"{human_bytes(event.held)} {percent:3d} %",
        human_seconds(event.age_s),
        event.peer[:PEER_DIGITS],
        state,
        printable(event.path),
    )


def summary(event: StatusFinished, where: str, *, discard: bool) -> str:
    """The last line; ``where`` is what was asked about."""
    if not event.unfinished and not event.discarded:
        return f"nothing is unfinished in {where}"
    if discard:
        kept = f"; {event.unfinished} running, and kept" if event.unfinished else ""
        return f"{event.discarded} discarded{kept}"
    return f"{event.unfinished} unfinished; the same `ftx send` again goes on with what is resumable"
