"""``ftx send``: from the command line to ``api.send``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ftx.cli import params
from ftx.cli.main import CONTEXT
from ftx.cli.params import Remote
from ftx.options import Compress, SendOptions, size

CHECKS = SendOptions.CHECKS


@click.command(context_settings=CONTEXT)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(readable=False))
@click.argument("remote", metavar="REMOTE", callback=params.remote)
@params.options_of_both(CHECKS, "TCP port of the receiver.")
@click.option(
    "--retry-for",
    type=float,
    default=300,
    callback=params.checked(CHECKS["retry_for_s"]),
    metavar="SECONDS",
    show_default=True,
    help="Give up on a broken link after so long without progress; 0: do not retry.",
)
@click.option(
    "--lanes",
    type=click.IntRange(min=1),
    callback=params.checked(CHECKS["lanes"]),
    metavar="N",
    help="Connections to use, 1 to 64; the receiver may grant fewer.  [default: as many as help]",
)
@click.option(
    "--bwlimit",
    callback=params.checked(lambda text: CHECKS["bwlimit"](size(text))),
    metavar="RATE",
    help="Send at most so many bytes a second: 10M, 1.5G; over all connections.",
)
@click.option(
    "--compress",
    type=click.Choice([choice.value for choice in Compress]),
    default=Compress.AUTO.value,
    show_default=True,
    help="Compress on the way: where that is faster and both sides have zstd, or not at all.",
)
@params.options_of_callers(CHECKS)
@click.pass_context
def send(
    context: click.Context,
    paths: tuple[str, ...],
    remote: Remote,
    port: int,
    timeout: float,
    secret_file: Path | None,
    plain: bool,
    json: bool,
    quiet: bool,
    verbose: int,
    retry_for: float,
    lanes: int | None,
    compress: str,
    bwlimit: int | None,
    accept_new: bool,
    ssh: bool,
    rsh: tuple[str, ...] | None,
    remote_ftx: str,
    congestion: str | None,
    code_fd: int | None,
) -> int:
    """Send files and folders to a machine that runs `ftx receive`.

    REMOTE is HOST or HOST:FOLDER, with an IPv6 address in brackets. FOLDER lies below the receiver's --dir and is
    made if it is missing. A folder DIR becomes DIR there; DIR/ stands for what is in it. What is there already, by size
    and time, is skipped.

    With --ssh nothing has to run there: ftx starts it with the ssh that you have set up. REMOTE is [USER@]HOST or
    [USER@]HOST:FOLDER, and FOLDER is absolute or lies in the home folder there.

    \b
    Examples:
      ftx send big.iso nas
      ftx send photos notes.txt nas:backup
      ftx send big.iso nas:images --secret-file key
      ftx send big.iso "[fd00::7]" --port 9000
      ftx send --ssh photos me@nas:backup

    A receiver that does not know this machine lets it in with a pairing code, from --code-fd, from $FTX_CODE, or asked
    for on a terminal; once is enough. If it is interrupted, run the same command again: it resumes. Every option can
    also be a variable of the environment: FTX_SEND_PORT=9000 is --port 9000.
    """
    over_ssh = params.starts_over_ssh(context)

    # Here and not above: help and wrong usage need none of it.
    from ftx import api
    from ftx.cli import process
    from ftx.cli.report import Report, printable
    from ftx.transfer.crew import Stop

    process.start_log(verbose)
    name = printable(os.fsencode(paths[0].rstrip("/").rpartition("/")[2] or paths[0]))
    if len(paths) > 1:
        name += f" and {len(paths) - 1} more"
    report = Report(receiving=False, label=name, json_lines=json, quiet=quiet, verbose=verbose)
    options = SendOptions(
        host=remote.host,
        ssh=over_ssh,
        rsh=rsh or ("ssh",),
        remote_ftx=remote_ftx,
        folder=remote.folder,
        port=port,
        timeout_s=timeout,
        secret_file=None if over_ssh else secret_file,
        plain=plain and not over_ssh,
        retry_for_s=retry_for,
        lanes=lanes or 0,
        compress=Compress(compress),
        bwlimit=bwlimit,
        congestion=congestion,
        accept_new=accept_new and not over_ssh,
        tell_all=json or verbose > 0,
    )

    def work(stop: Stop) -> api.Finished:
        folder = f", folder {printable(remote.folder)}" if remote.folder else ""
        way = "over ssh" if over_ssh else f"port {port}"
        report.say(f"sending {name} to {printable(remote.host)}{folder}, {way}")
        code = None if over_ssh else process.pairing_code(remote.host, code_fd)
        return api.send(paths, options, on_event=report, stop=stop, confirm=confirm_open, code=code)

    return process.run(report, work)


def confirm_open(host: str, fingerprint: str) -> bool:
    """Ask whether a receiver is to be trusted on first contact; False where nobody can be asked."""
    from ftx.cli import process
    from ftx.cli.report import printable

    return process.ask(
        f"Nothing proves that the receiver on {printable(host)} is the one you mean. Its fingerprint is {fingerprint}. "
        "Send to it, and trust it from now on?"
    )
