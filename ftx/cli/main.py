"""The console scripts ``ftx``, ``ftx-send`` and ``ftx-receive``, and how a process of theirs ends.

Rules: commands are imported when they are used (a cron job that runs every minute pays for what it uses);
every way out of the process goes through ``_exit_code``, so no user ever sees a traceback and every exit status
is one of ``cli.md``'s table (G11). A command returns its exit status; click's usage errors are 2.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys

import click
from click.core import ParameterSource

#: Command -> its one line in ``ftx --help``. The command ``send`` is the object ``send`` in ``ftx.cli.send``.
COMMANDS = {
    "receive": "Wait for senders and take what they send.",
    "send": "Send files and folders to a machine that runs `ftx receive`.",
    "pair": "Let a sender in by a code, once and for all.",
    "bench": "Measure what limits the path to a receiver.",
    "demo": "Show a kill and a resume on this machine.",
    "status": "Show what is unfinished below a destination.",
    "peers": "Show and change who may send here, and which receivers you trust.",
}

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

BUG = "this is a bug in ftx, please report it; with -vv the same command shows the trace"

log = logging.getLogger("ftx.cli")


def show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Callback of ``--version``: the program and the protocol it speaks."""
    if not wanted or context.resilient_parsing:
        return
    # Here and not above: the messages bring xxhash with them.
    from ftx import __version__
    from ftx.protocol.messages import PROTOCOL_VERSION

    click.echo(f"ftx {__version__} (protocol {PROTOCOL_VERSION})")
    context.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=show_version,
    help="Show the versions of program and protocol.",
)


class LazyGroup(click.Group):
    """A group whose commands are the modules named in ``COMMANDS``, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def load(name: str) -> click.Command:
    """Import a command of ``COMMANDS``."""
    command: click.Command = getattr(importlib.import_module(f"ftx.cli.{name}"), name)
    return command


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@version_option
def ftx() -> None:
    """Send files over TCP: resumable, verified, durable.

    \b
    Example, on the machine that shall get the file, and on the one that has it:
      ftx receive --dir /srv/incoming --secret-file key
      ftx send big.iso nas --secret-file key

    The same command again goes on where the last one ended, however it ended.
    """


def main() -> None:
    """Console script ``ftx``."""
    sys.exit(_exit_code(ftx, "ftx", "FTX"))


def send_main() -> None:
    """Console script ``ftx-send``: ``ftx send``, with the same environment variables."""
    sys.exit(_exit_code(load("send"), "ftx-send", "FTX_SEND"))


def receive_main() -> None:
    """Console script ``ftx-receive``: ``ftx receive``, with the same environment variables."""
    sys.exit(_exit_code(load("receive"), "ftx-receive", "FTX_RECEIVE"))


def _exit_code(command: click.Command, program: str, variables: str) -> int:
    """Run ``command`` with the process's arguments.

    Args:
        variables: prefix of the environment variables that stand for options.
    """
    try:
        code: int | None = command.main(prog_name=program, auto_envvar_prefix=variables, standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.BadParameter):
            _name_variable(error)
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        # Only before a transfer: from then on ftx.cli.process takes the signals.
        return 128 + signal.SIGINT
    except Exception as error:
        # Here and not above: usage errors and --help need none of it.
        from ftx.errors import FtxError

        if isinstance(error, FtxError):
            click.echo(f"ftx: {error}", err=True)
            return error.exit_code
        log.debug("! %s", error, exc_info=True)
        click.echo(f"ftx: {type(error).__name__}: {error}: {BUG}", err=True)
        return 1
    return code or 0


def _name_variable(error: click.BadParameter) -> None:
    """A value that came from a variable of the environment is on no command line: the message names the variable."""
    context, name = error.ctx, error.param.name if error.param else None
    if context and name and context.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
        error.param_hint = f"{context.auto_envvar_prefix}_{name.upper()}"
