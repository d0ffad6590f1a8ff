"""What the command line and Python programs call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftx.options import (
    BenchOptions,
    Compress,
    Exists,
    InviteOptions,
    PairOptions,
    ReceiveOptions,
    SendOptions,
    checked,
    sources,
)
from ftx.transfer.crew import Stop
from ftx.transfer.events import (
    BenchFinished,
    Code,
    EntryEnded,
    Event,
    Finished,
    Listening,
    Measured,
    OnEvent,
    Paired,
    Paused,
    Progress,
    Resumed,
    Retry,
    SessionEnd,
    SessionUp,
    Start,
    Tuned,
    Warn,
)

if TYPE_CHECKING:
    from ftx.transfer.registry import Receiver

__all__ = [
    "BenchFinished",
    "BenchOptions",
    "Code",
    "Compress",
    "EntryEnded",
    "Event",
    "Exists",
    "Finished",
    "InviteOptions",
    "Listening",
    "Measured",
    "OnEvent",
    "PairOptions",
    "Paired",
    "Paused",
    "Progress",
    "ReceiveOptions",
    "Receiver",
    "Resumed",
    "Retry",
    "SendOptions",
    "SessionEnd",
    "SessionUp",
    "Start",
    "Stop",
    "Tuned",
    "Warn",
    "bench",
    "invite",
    "pair",
    "send",
]


def send(
    paths: Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]],
    options: SendOptions,
    *,
    on_event: OnEvent | None = None,
    stop: Stop | None = None,
    confirm: Callable[[str, str], bool] | None = None,
    code: str | Callable[[], str | None] | None = None,
) -> Finished:
    """Send files and folders to a receiver and wait until they are committed.

    Args:
        paths: files and folders. A folder's path that ends with ``/`` stands for what is in it.
        options: where to, and how.
        on_event: called for every event, from the calling thread only.
        stop: lets another thread or a signal handler end the run; what was sent is kept.
        confirm: asked, with the host's name and the receiver's fingerprint, whether to send to a receiver of which
            nothing proves that it is the one that is meant, and which is remembered then; without it
            only ``options.accept_new`` counts.
        code: a pairing code, which is used where nothing else lets this side in or proves the receiver; neither
            ``confirm`` nor ``options.accept_new`` counts then. Or who is asked for one where nothing else lets it in,
            and again if it was wrong; None or "" from it: there is none.

    Returns:
        The last event. ``code`` is 0 if everything is committed; nothing is raised for a transfer that fails.

    Raises:
        TypeError, ValueError: ``paths`` are none, or one that is not in a list.
    """
    from ftx.transfer import dialer  # here, and the receiver below: neither side loads the other's

    return dialer.run(checked("paths", sources, paths), options, on_event or _ignore, stop or Stop(), confirm, code)


def bench(
    options: BenchOptions,
    *,
    on_event: OnEvent | None = None,
    stop: Stop | None = None,
    confirm: Callable[[str, str], bool] | None = None,
    code: str | Callable[[], str | None] | None = None,
) -> BenchFinished:
    """Measure the path to a receiver and tell what limits a transfer. Nothing is left on either side.

    Args:
        options: where to, and with what.
        on_event: called for every event, ``Measured`` among them, from the calling thread only.
        stop, confirm, code: as for ``send``.

    Returns:
        The last event. ``code`` is 0 if everything was measured, and ``limit`` says what limits then.
    """
    from ftx.transfer import bench as measuring  # here, as below

    return measuring.run(options, on_event or _ignore, stop or Stop(), confirm, code)


def pair(
    options: PairOptions,
    code: str | Callable[[], str | None],
    *,
    on_event: OnEvent | None = None,
    stop: Stop | None = None,
) -> Finished:
    """Pair with a receiver by a code that is shown beside it: each knows the other's key from then on.

    Args:
        code: the code; or who is asked for one, and again if it was wrong.

    Returns:
        The last event. ``code`` is 0 if they are paired.
    """
    from ftx.transfer import pairing

    return pairing.pair(options, code, on_event or _ignore, stop or Stop())


def invite(options: InviteOptions, *, on_event: OnEvent | None = None, stop: Stop | None = None) -> Finished:
    """Make a pairing code for the receivers of this user, tell it in ``Code``, and wait until somebody came with it.

    Returns:
        The last event. ``code`` is 0 if somebody was paired.
    """
    from ftx.transfer import pairing

    return pairing.invite(options, on_event or _ignore, stop or Stop())


def __getattr__(name: str) -> Any:
    if name != "Receiver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ftx.transfer.registry import Receiver

    return Receiver


def _ignore(event: Event) -> None:
    pass
