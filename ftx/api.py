"""What the command line and Python programs call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftx.options import Exists, ReceiveOptions, SendOptions, checked, sources
from ftx.transfer.crew import Stop
from ftx.transfer.events import (
    EntryEnded,
    Event,
    Finished,
    Listening,
    OnEvent,
    Paused,
    Progress,
    Resumed,
    Retry,
    SessionEnd,
    SessionUp,
    Start,
    Warn,
)

if TYPE_CHECKING:
    from ftx.transfer.registry import Receiver

__all__ = [
    "EntryEnded",
    "Event",
    "Exists",
    "Finished",
    "Listening",
    "OnEvent",
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
    "Warn",
    "send",
]


def send(
    paths: Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]],
    options: SendOptions,
    *,
    on_event: OnEvent | None = None,
    stop: Stop | None = None,
    confirm: Callable[[str, str], bool] | None = None,
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

    Returns:
        The last event. ``code`` is 0 if everything is committed; nothing is raised for a transfer that fails.

    Raises:
        TypeError, ValueError: ``paths`` are none, or one that is not in a list.
    """
    from ftx.transfer import dialer  # here, and the receiver below: neither side loads the other's

    return dialer.run(checked("paths", sources, paths), options, on_event or _ignore, stop or Stop(), confirm)


def __getattr__(name: str) -> Any:
    if name != "Receiver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ftx.transfer.registry import Receiver

    return Receiver


def _ignore(event: Event) -> None:
    pass
