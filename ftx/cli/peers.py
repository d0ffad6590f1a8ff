"""``ftx peers``: who may come here, what each may do, and which receivers this user trusts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ftx.cli import params
from ftx.cli.main import CONTEXT, version_option
from ftx.options import config_dir, relative, size

if TYPE_CHECKING:
    from ftx.transfer.events import Event
    from ftx.transfer.trusted import Peer

ANY = "-"


class ListByDefault(click.Group):
    """A group that lists when nothing else is said."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*ctx.help_option_names, "--version"}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ListByDefault, context_settings=CONTEXT)
@version_option
def peers() -> None:
    """Show and change who may send here, and which receivers you trust.

    What is on file is in two files of the configuration folder, `peers` and `known_hosts`, which can also be edited. A
    change counts from the next connection on; nothing has to be started again.

    \b
    Examples:
      ftx peers
      ftx peers restrict laptop --dir backup/laptop --rights append-only --quota 200G
      ftx peers remove laptop
    """


@peers.command("list", context_settings=CONTEXT)
@click.option("--json", is_flag=True, help="One JSON object a line on standard output.")
def list_(json: bool) -> int:
    """Show your own fingerprint, who may send here, and which receivers you trust.

    \b
    Examples:
      ftx peers
      ftx peers list --json
    """
    # Here and not above: help and wrong usage need none of it.
    from json import dumps

    from ftx.cli.report import Output
    from ftx.transfer.trusted import Trusted

    told: list[Event] = []
    Trusted(config_dir()).tell(told.append)
    out = Output(sys.stdout)
    lines = [dumps(event.as_json()) for event in told] if json else tables(told)
    for line in lines:
        out.write(line.encode(out.encoding, "backslashreplace").decode(out.encoding) + "\n")
    return 0


@peers.command(context_settings=CONTEXT)
@click.argument("name")
@click.argument("fingerprint")
def add(name: str, fingerprint: str) -> int:
    """Let the peer with this fingerprint send here, and call it NAME.

    `ftx peers` on the other machine shows its fingerprint. Whoever may send here has to trust this machine as well: by
    its own fingerprint, which a sender is asked about.

    \b
    Example:
      ftx peers add laptop ed25519:Kay64UG8yvCyLhqU000LxzYeUm0L_hLIl5S8kyKWbdc
    """
    from ftx.transfer.trusted import Trusted

    found = Trusted(config_dir()).add(name, fingerprint)
    known = "" if found == name else f" (it was on file already; `ftx peers name {found} {name}` renames it)"
    say(f"{found} may send here{known}; `ftx peers restrict {found}` narrows that")
    return 0


@peers.command("name", context_settings=CONTEXT)
@click.argument("old")
@click.argument("new")
def rename(old: str, new: str) -> int:
    """Call a peer something else. OLD may be its fingerprint.

    \b
    Example:
      ftx peers name laptop-2 "desk"
    """
    from ftx.transfer.trusted import Trusted

    Trusted(config_dir()).change(old, name=new)
    say(f"{old} is called {new} now")
    return 0


def _rights(text: str) -> Any:
    from ftx.transfer.trusted import rights

    return rights(text)


@peers.command(context_settings=CONTEXT)
@click.argument("name")
@click.option(
    "--dir",
    callback=params.checked(relative),
    metavar="DIR",
    help="All that it sends goes below this folder of the receiver's --dir.",
)
@click.option("--no-dir", is_flag=True, help="Below all of the receiver's --dir.")
@click.option(
    "--rights",
    callback=params.checked(_rights),
    metavar="RIGHTS",
    help="One or more of read, write, append-only, with commas. append-only adds files and changes none.",
)
@click.option("--quota", callback=params.checked(size), metavar="SIZE", help="What its folder may hold; needs a --dir.")
@click.option("--no-quota", is_flag=True, help="As much as there is room for.")
@click.option("--max-size", callback=params.checked(size), metavar="SIZE", help="The largest file that is taken.")
@click.option("--no-max-size", is_flag=True, help="Files of any size.")
def restrict(
    name: str,
    dir: str | None,
    no_dir: bool,
    rights: frozenset[Any] | None,
    quota: int | None,
    no_quota: bool,
    max_size: int | None,
    no_max_size: bool,
) -> int:
    """Narrow what a peer may do here, or lift a limit. What is not said stays as it is.

    \b
    Examples:
      ftx peers restrict laptop --dir backup/laptop --rights append-only
      ftx peers restrict laptop --quota 200G --max-size 10G
      ftx peers restrict laptop --rights read,write --no-quota --no-max-size

    Sizes: K, M, G, T are powers of 1024, as are KiB, MiB …; kB, MB … powers of 1000. What its folder holds are bytes on
    the disk, 4 KiB at least for anything that has a name.
    """
    fields: dict[str, Any] = {}
    for field, value, lifted, to in (
        ("folder", None if dir is None else os.fsencode(dir), no_dir, b""),
        ("rights", rights, False, None),
        ("quota", quota, no_quota, None),
        ("max_size", max_size, no_max_size, None),
    ):
        if value is not None and lifted:
            option = {"folder": "dir"}.get(field, field.replace("_", "-"))
            raise click.UsageError(f"--{option} and --no-{option} exclude each other")
        if value is not None or lifted:
            fields[field] = to if lifted else value
    if not fields:
        raise click.UsageError("say what to narrow: --dir, --rights, --quota or --max-size")
    from ftx.transfer.trusted import Trusted

    say(described(Trusted(config_dir()).change(name, **fields)))
    return 0


@peers.command(context_settings=CONTEXT)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> int:
    """Let these peers send here no longer, and trust these receivers no longer. NAME may be a fingerprint.

    A session under way ends by itself; what was sent stays.

    \b
    Example:
      ftx peers remove laptop nas
    """
    from ftx.transfer.trusted import Trusted

    for kind, name in Trusted(config_dir()).remove(names):
        say(f"{name} may not send here any more" if kind == "peer" else f"the receiver {name} is not trusted any more")
    return 0


def say(text: str) -> None:
    """A line for people, on standard error."""
    from ftx.cli.report import printable

    click.echo(f"ftx: {printable(text)}", err=True)


def described(peer: Peer) -> str:
    """What a peer may do, in words."""
    from ftx.transfer.trusted import terms

    narrowed = ", ".join(f"{term} {value}" for term, value in terms(peer).items())
    return f"{peer.name}: {narrowed or 'read and write'}"


def tables(told: Sequence[Event]) -> list[str]:
    """What was told, for people."""
    from ftx.cli.report import human_bytes, printable
    from ftx.transfer import events

    lines: list[str] = []
    may_come = [["MAY SEND HERE", "RIGHTS", "QUOTA", "MAX SIZE", "FINGERPRINT", "DIR"]]
    receivers = [["TRUSTED RECEIVER", "FINGERPRINT"]]
    for event in told:
        match event:
            case events.OwnKey():
                lines.append(f"your fingerprint: {event.fingerprint}")
            case events.MayCome():
                sizes = (ANY if one is None else human_bytes(one) for one in (event.quota, event.max_size))
                words = [printable(event.name), ",".join(event.rights), *sizes, event.fingerprint]
                may_come.append([*words, printable(event.dir) or ANY])
            case events.KnownReceiver():
                receivers.append([printable(event.name), event.fingerprint])
    for table, none in ((may_come, "nobody else may send here"), (receivers, "no receiver is trusted yet")):
        lines += ["", *(columns(table) if len(table) > 1 else [none])]
    return lines


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its longest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
