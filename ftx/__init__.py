"""ftx: resumable, verified, durable file transfer over TCP.

From Python, ``ftx.send`` and ``ftx.Receiver`` do what the commands do::

    import ftx

    finished = ftx.send(["disk.img"], ftx.SendOptions(host="nas"))
    assert finished.code == 0, finished.message

They and everything else in ``ftx.api.__all__`` come from there when one of them is used: ``import ftx`` alone costs
nothing. The wire is specified in ``protocol.md``; the guarantees G1 to G12 that the code refers to stand there.
"""

from __future__ import annotations

# Type checkers take it for true, and know the names; importing it from typing would take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftx.api import *  # noqa: F403
    from ftx.api import __all__ as __all__

__version__ = "0.1.0"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import ``ftx.api`` when the first of its names is asked for."""
        import ftx.api as api  # not `from ftx`, which would ask here for it

        if name != "__all__" and name not in api.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
