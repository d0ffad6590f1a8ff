"""``ftx receive``: from the command line to ``api.Receiver``."""

from __future__ import annotations

import ipaddress
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftx.cli import params
from ftx.cli.main import CONTEXT
from ftx.options import Exists, ReceiveOptions, size
from ftx.protocol.messages import DEFAULT_PORT

if TYPE_CHECKING:
    from ftx.transfer.events import Listening

CHECKS = ReceiveOptions.CHECKS
DAY_S = 86_400


@click.command(context_settings=CONTEXT)
@click.option(
    "--dir",
    type=click.Path(),
    callback=params.checked(CHECKS["dir"]),
    metavar="DIR",
    help="Where files go; made if missing.  [default: the current folder]",
)
@click.option(
    "--bind",
    multiple=True,
    callback=params.checked(CHECKS["bind"]),
    metavar="ADDR",
    help="Address to listen on; repeatable.  [default: all, IPv6 and IPv4]",
)
@params.options_of_both(CHECKS, "TCP port to listen on; 0: the system chooses.")
@click.option("--once", is_flag=True, help="Exit when the first sender's job is over, with its exit status.")
@click.option(
    "--open", is_flag=True, help="Take files from anyone who can reach the port; needs --dir, does not replace."
)
@click.option(
    "--exists",
    type=click.Choice([policy.value for policy in Exists]),
    help="What happens to a different file of the same name.  [default: replace; with --open: rename]",
)
@click.option("--no-fsync", is_flag=True, help="Do not wait for the disk; receipts say so.")
@click.option(
    "--reserve",
    default="256M",
    callback=params.checked(lambda text: CHECKS["reserve"](size(text))),
    metavar="SIZE",
    show_default=True,
    help="Free space to leave on the disk.",
)
@click.option(
    "--expire",
    type=float,
    default=7,
    callback=params.checked(lambda days: CHECKS["expire_s"](days * DAY_S) / DAY_S),
    metavar="DAYS",
    show_default=True,
    help="Remove unfinished transfers that nobody has gone on with for so long.",
)
@click.option("--over-ssh", is_flag=True, hidden=True, allow_from_autoenv=False)
def receive(
    dir: Path | None,
    bind: tuple[str, ...],
    port: int,
    timeout: float,
    secret_file: Path | None,
    plain: bool,
    json: bool,
    quiet: bool,
    verbose: int,
    once: bool,
    open: bool,
    exists: str | None,
    no_fsync: bool,
    reserve: int,
    expire: float,
    over_ssh: bool,
) -> int:
    """Wait for senders and take what they send, until Ctrl-C.

    \b
    Examples:
      ftx receive --dir /srv/incoming --secret-file key
      ftx receive --dir /srv/incoming --open --once
      ftx receive --bind 127.0.0.1 --port 0 --json

    The same user on this machine may always send, and so may who is on file (`ftx peers`), within its limits. Everyone
    else is paired once, by a code that is shown here on a terminal, or by `ftx pair`; or needs the key in
    --secret-file, or --open. Sizes: K, M, G, T are powers of 1024, as are KiB, MiB …; kB, MB … powers of 1000. Every
    option can also be a variable of the environment: FTX_RECEIVE_PORT=9000 is --port 9000.
    """
    if over_ssh:
        return _over_ssh()
    if open and dir is None:
        raise click.UsageError("--open needs --dir: say which folder strangers may fill")

    # Here and not above: help and wrong usage need none of it.
    from ftx import api
    from ftx.cli import process
    from ftx.cli.report import Report
    from ftx.transfer.crew import Stop
    from ftx.transfer.events import Event, Listening, SessionEnd, SessionUp

    process.start_log(verbose)
    process.serve_many()
    report = Report(receiving=True, label="receiving", json_lines=json, quiet=quiet, verbose=verbose)
    options = ReceiveOptions(
        port=port,
        timeout_s=timeout,
        secret_file=secret_file,
        plain=plain,
        dir=dir or Path(),
        bind=bind,
        once=once,
        open=open,
        exists=Exists(exists) if exists else None,
        fsync=not no_fsync,
        reserve=reserve,
        expire_s=expire * DAY_S,
        # Who gave another credential tells people to use that one.
        show_code=report.on_terminal and not (json or quiet or open or secret_file),
        tell_all=json or verbose > 0,
    )

    sessions = 0

    def on_event(event: Event) -> None:
        nonlocal sessions
        report(event)
        if isinstance(event, SessionUp | SessionEnd):
            sessions += 1 if isinstance(event, SessionUp) else -1
            process.share(sessions)
        if isinstance(event, Listening) and report.on_terminal:
            for line in invitation(event, options):
                report.say(line)

    def work(stop: Stop) -> api.Finished:
        return api.Receiver(options, on_event=on_event).run(stop)

    return process.run(report, work)


def _over_ssh() -> int:
    """The far side of `ftx send --ssh`, which tells it over standard input what to do: no option counts."""
    from ftx.cli import process
    from ftx.transfer import far
    from ftx.transfer.crew import Stop

    process.start_log(0)
    process.serve_many()
    process.rarely_look_for_cycles()
    stop = Stop()
    with process.signals_stop(stop):
        return far.serve(stop)


def invitation(event: Listening, options: ReceiveOptions) -> list[str]:
    """What a person has to know who now goes to the other machine."""
    host, port = event.addresses[0]
    listened = ipaddress.ip_address(host.partition("%")[0])
    where = "on this machine" if listened.is_loopback else "on the other machine"
    if listened.is_unspecified:
        host = own_address()
    more = ["--plain"] if options.plain else []
    if options.secret_file is not None:
        more += ["--secret-file", options.secret_file.name]
    lines = [f"{where}: {line_to_type(host, port, *more)}"]
    if options.open:  # a sender is asked whether it trusts this one
        lines.append(f"this receiver's fingerprint: {event.fingerprint}")
    return lines


def line_to_type(host: str, port: int, *more: str) -> str:
    """What to type to send a file to a receiver here."""
    words = ["ftx", "send", "FILE", f"[{host}]" if ":" in host else host]
    if port != DEFAULT_PORT:
        words += ["--port", str(port)]
    return shlex.join([*words, *more])


def own_address() -> str:
    """The address of this machine on its default route, else its name. Sends nothing."""
    # Documentation addresses (RFC 5737, RFC 3849): connecting a UDP socket only looks up the route.
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                host: str = probe.getsockname()[0]
        except OSError:
            continue
        return host
    return socket.gethostname()
