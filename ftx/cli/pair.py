"""``ftx pair``: beside a receiver it shows a code, elsewhere it is given one."""

from __future__ import annotations

import os

import click

from ftx.cli import params
from ftx.cli.main import CONTEXT, version_option
from ftx.cli.params import Remote
from ftx.errors import UsageError
from ftx.options import InviteOptions, PairOptions, config_dir


def parse_host(text: str) -> str:
    """A host, as ``REMOTE`` has it."""
    remote: Remote = params.parse_remote(text)
    if remote.folder:
        raise ValueError(f"{text!r}: only a host is needed here")
    return remote.host


@click.command(context_settings=CONTEXT)
@click.argument("host", required=False, callback=params.checked(parse_host))
@params.port_option(PairOptions.CHECKS["port"], "TCP port of the receiver.")
@params.timeout_option(PairOptions.CHECKS["timeout_s"])
@params.plain_option
@params.code_option
@click.option(
    "--name",
    metavar="NAME",
    callback=params.checked(InviteOptions.CHECKS["name"]),
    help="Without HOST: what the other machine is called here.  [default: its address]",
)
@click.option("--json", is_flag=True, help="One JSON object a line on standard output.")
@params.verbose_option
@version_option
def pair(
    host: str | None,
    port: int,
    timeout: float,
    plain: bool,
    code_fd: int | None,
    name: str | None,
    json: bool,
    verbose: int,
) -> int:
    """Let a sender in by a code, once and for all.

    Without HOST, on the machine of a receiver and as its user: show a code, and wait until somebody came with it. It is
    good for ten minutes and for one machine. With HOST, on the other machine: give that code. `ftx send` asks for it,
    too. From then on each side knows the other by its key.

    \b
    Examples:
      ftx pair
      ftx pair --name laptop
      ftx pair nas

    The code is read from --code-fd, from $FTX_CODE, or asked for on a terminal; it is no argument, since other users of
    a machine can see these. Every option can also be a variable of the environment: FTX_PAIR_PORT=9000 is --port 9000.
    """
    if host is None and code_fd is not None:
        raise click.UsageError("--code-fd needs HOST: without it a code is made here")
    if host is not None and name is not None:
        raise click.UsageError("--name is for the receiver's machine, where `ftx pair` has no HOST")

    # Here and not above: help and wrong usage need none of it.
    from ftx import api
    from ftx.cli import process
    from ftx.cli.receive import line_to_type, own_address
    from ftx.cli.report import Report, printable
    from ftx.transfer.crew import Stop
    from ftx.transfer.events import Code, Event

    process.start_log(verbose)
    report = Report(receiving=host is None, label="pairing", json_lines=json, verbose=verbose)

    more = ["--plain"] if plain else []

    def on_event(event: Event) -> None:
        report(event)
        if isinstance(event, Code):
            report.say(f"for receivers of this user whose keys are in {printable(os.fsencode(config_dir()))}")
            report.say(f"on the other machine: {line_to_type(own_address(), port, *more)}")

    def give(stop: Stop) -> api.Finished:
        assert host is not None
        code = process.pairing_code(host, code_fd)
        if code is None:
            raise UsageError("no code: set FTX_CODE or --code-fd, or run it on a terminal")
        options = PairOptions(host=host, port=port, timeout_s=timeout, plain=plain)
        return api.pair(options, code, on_event=report, stop=stop)

    def show(stop: Stop) -> api.Finished:
        return api.invite(InviteOptions(name=name or ""), on_event=on_event, stop=stop)

    return process.run(report, show if host is None else give)
