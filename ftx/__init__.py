"""ftx: resumable, verified, durable file transfer over TCP.

From Python, ``ftx.send`` and ``ftx.Receiver`` do what the commands do::

    import ftx

    finished = ftx.send(["disk.img"], ftx.SendOptions(host="nas"))
    assert finished.code == 0, finished.message

They and everything else in ``__all__`` come from ``ftx.api``, which is imported when one of them is used:
``import ftx`` alone costs nothing. The wire is specified in ``protocol.md``; the guarantees G1 to G12 that the code
refers to stand there.
"""

from __future__ import annotations

# Type checkers take it for true, and know the names; importing it from typing would take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftx.api import (
        EntryEnded,
        Event,
        Exists,
        Finished,
        Listening,
        OnEvent,
        Paused,
        Progress,
        ReceiveOptions,
        Receiver,
        Resumed,
        Retry,
        SendOptions,
        SessionEnd,
        SessionUp,
        Start,
        Stop,
        Warn,
        send,
    )

__version__ = "0.1.0"

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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import ``ftx.api`` when the first of its names is asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ftx import api

        globals().update({each: getattr(api, each) for each in __all__})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
