"""Two lanes that lead to each other, and both halves of what is said on them, each in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ftx.errors import FtxError
from ftx.net.lane import Lane


@contextmanager
def lane_pair() -> Iterator[tuple[Lane, Lane]]:
    """A dialer's and a listener's, with five seconds for all that is said."""
    one, other = socket.socketpair()
    with closing(Lane(one, dialer=True)) as dialer, closing(Lane(other, dialer=False)) as listener:
        dialer.deadline_s = listener.deadline_s = time.monotonic() + 5
        yield dialer, listener


def both(dialer: Callable[[], Any], listener: Callable[[], Any]) -> tuple[Any, Any]:
    """What each half returned or raised."""
    found: list[Any] = [None, None]

    def run(at: int, half: Callable[[], Any]) -> None:
        try:
            found[at] = half()
        except FtxError as error:
            found[at] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate((dialer, listener))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0], found[1]
