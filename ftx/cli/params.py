"""What the commands share: option types, and the options of both sides.

Rules: what a value may be is said in ``ftx.options``, for Python programs too; here it is refused as wrong usage.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from ftx.cli.main import version_option
from ftx.options import Check, far_folder, login, relative
from ftx.protocol.messages import DEFAULT_PORT

F = TypeVar("F", bound=Callable[..., Any])


def checked(check: Check) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback: what ``check`` makes of the value, if there is one."""

    def callback(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        try:
            return None if value is None else check(value)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(f"{error}.") from error

    return callback


class Remote(NamedTuple):
    """Where to send: a host, and a folder there (empty for the receiver's ``--dir``, or the far home folder)."""

    host: str
    folder: str


def parse_remote(text: str) -> Remote:
    """The parts of ``HOST[:FOLDER]``.

    Raises:
        ValueError: the text means nothing, or something else than its writer thinks; says what to write.
    """
    if _is_ipv6(text):
        raise ValueError(f"write an IPv6 address in brackets: [{text}]")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [IPV6-ADDRESS] or [IPV6-ADDRESS]:FOLDER")
        folder = rest[1:]
    else:
        host, _, folder = text.partition(":")
    if not host:
        raise ValueError(f"{text!r} names no host; write HOST or HOST:FOLDER")
    if "/" in host or host in (".", ".."):
        raise ValueError(f"{text!r} is a path, and the last argument is the receiver: HOST or HOST:FOLDER")
    if "@" in host:
        raise ValueError(f"{text!r}: no user is needed here, only HOST or HOST:FOLDER")
    if folder.isdecimal():
        raise ValueError(
            f"{text!r}: {folder} is a folder here; for the port write --port {folder}, "
            f"for a folder of that name {text[: -len(folder)]}./{folder}"
        )
    return Remote(host, relative(folder))


def parse_login(text: str) -> Remote:
    """The parts of ``[USER@]HOST[:FOLDER]``, as scp has them.

    Raises:
        ValueError: the text means nothing; says what to write.
    """
    user, at, rest = text.partition("@")
    if not at or ":" in user or "/" in user:  # the @ is part of the folder
        user, at, rest = "", "", text
    if rest.startswith("["):
        name, bracket, tail = rest[1:].partition("]")
        if not bracket or not _is_ipv6(name) or (tail and not tail.startswith(":")):
            raise ValueError(f"{text!r} is not [USER@][IPV6-ADDRESS] or [USER@][IPV6-ADDRESS]:FOLDER")
        folder = tail[1:]
    elif _is_ipv6(rest):
        raise ValueError(f"write an IPv6 address in brackets: {user}{at}[{rest}]")
    else:
        name, _, folder = rest.partition(":")
        if "/" in name or name in (".", ".."):
            raise ValueError(
                f"{text!r} is a path, and the last argument is a machine: [USER@]HOST or [USER@]HOST:FOLDER"
            )
    return Remote(login(f"{user}{at}{name}"), far_folder(folder))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


verbose_option = click.option(
    "-v",
    "--verbose",
    "verbose",
    count=True,
    help="A line for each file; -vv: the protocol as a trace.",
)


code_option = click.option(
    "--code-fd",
    type=click.IntRange(min=0),
    metavar="N",
    help="Read the pairing code from this descriptor.  [default: $FTX_CODE, else asked for]",
)


def port_option(check: Check, port_help: str) -> Callable[[F], F]:
    """``--port``."""
    return click.option(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        callback=checked(check),
        metavar="N",
        show_default=True,
        help=port_help,
    )


def timeout_option(check: Check) -> Callable[[F], F]:
    """``--timeout``."""
    return click.option(
        "--timeout",
        type=float,
        default=30,
        callback=checked(check),
        metavar="SECONDS",
        show_default=True,
        help="A connection that is silent for so long is dead.",
    )


plain_option = click.option("--plain", is_flag=True, help="Do not encrypt; both sides must say so.")


def options_of_both(checks: Mapping[str, Check], port_help: str) -> Callable[[F], F]:
    """The options that sender and receiver share, as one decorator.

    Args:
        checks: of the side's options.
        port_help: help of ``--port``.
    """
    options = [
        port_option(checks["port"], port_help),
        timeout_option(checks["timeout_s"]),
        click.option(
            "--secret-file",
            type=click.Path(),
            metavar="FILE",
            callback=checked(checks["secret_file"]),
            help="A key that both sides share; `ftx receive` makes a missing one.",
        ),
        plain_option,
        click.option("--json", is_flag=True, help="One JSON object a line on standard output."),
        click.option("--quiet", is_flag=True, help="No progress; errors only."),
        verbose_option,
        version_option,
    ]

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


#: What is for receivers that run already.
NOT_OVER_SSH = ("port", "secret_file", "accept_new", "plain", "code_fd")


def remote(context: click.Context, parameter: click.Parameter, text: Any) -> Any:
    """Callback of ``REMOTE``: what it means hangs on ``--ssh`` and ``--rsh``."""
    over_ssh = context.params["ssh"] or context.params["rsh"]
    return checked(parse_login if over_ssh else parse_remote)(context, parameter, text)


def options_of_callers(checks: Mapping[str, Check]) -> Callable[[F], F]:
    """The options of whoever calls a receiver, beside those of both, as one decorator."""
    options = [
        click.option("--accept-new", is_flag=True, help="Trust a receiver on first contact, and remember its key."),
        click.option(
            "--ssh", is_flag=True, is_eager=True, help="Start the receiver over ssh; REMOTE is as scp has it."
        ),
        click.option(
            "--rsh",
            is_eager=True,
            callback=checked(lambda text: checks["rsh"](shlex.split(text))),
            metavar="COMMAND",
            help="What to use for ssh, with its options; implies --ssh.  [default: ssh]",
        ),
        click.option(
            "--remote-ftx",
            default="ftx",
            callback=checked(checks["remote_ftx"]),
            metavar="PATH",
            show_default=True,
            help="With --ssh: the program ftx there.",
        ),
        click.option(
            "--congestion",
            callback=checked(checks["congestion"]),
            metavar="NAME",
            help="TCP's congestion control.  [default: the system's; bbr where packets get lost]",
        ),
        code_option,
    ]

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def starts_over_ssh(context: click.Context) -> bool:
    """Whether the receiver is started over ssh.

    Raises:
        click.UsageError: with an option for one that runs already.
    """
    over_ssh = bool(context.params["ssh"] or context.params["rsh"] is not None)
    for name in NOT_OVER_SSH if over_ssh else ():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is for receivers that run already, not for --ssh")
    return over_ssh
