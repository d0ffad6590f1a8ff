"""A full disk pauses a session; it does not end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ftx.errors import LinkLost, NoSpace
from ftx.protocol import messages as m
from ftx.storage import disk
from ftx.storage.partial import PartialStore
from ftx.transfer import events

T = TypeVar("T")

ROOM_S = 0.5  #: how often a full disk is tried again


class Room:
    """Lets the threads of one session wait for room on the disk, and tells the sender why.

    Args:
        store: knows how much is to be kept in reserve.
        give_up_s: seconds without any room, then what needs it fails.
        say: sends a message to the sender.
        on_event: told when the session pauses and goes on.
    """

    def __init__(
        self, store: PartialStore, give_up_s: float, say: Callable[[m.Message], None], on_event: events.OnEvent
    ) -> None:
        self._store = store
        self._give_up_s = give_up_s
        self._say = say
        self._on_event = on_event
        self._lock = threading.Lock()
        self._waiting = 0
        self._given_up = False
        self._over = threading.Event()

    @property
    def patient(self) -> bool:
        """Whether what finds no room waits for it."""
        return self._give_up_s > 0 and not self._given_up and not self._over.is_set()

    def close(self) -> None:
        """The session is over: nobody waits any longer."""
        self._over.set()

    def use(self, path: bytes, action: Callable[..., T], *args: Any) -> T:
        """Do ``action(*args)``, which needs space for ``path``; wait while there is none.

        Raises:
            NoSpace: there was none for as long as the sender retries.
            LinkLost: the session is over.
            DestinationError: it cannot be done.
        """
        try:
            self._store.check_reserve()
            return action(*args)
        except NoSpace as error:
            return self.wait(error, path, action, *args)
        except OSError as error:
            failure = disk.destination_error(path, error)
            if not isinstance(failure, NoSpace):
                raise failure from error
            return self.wait(failure, path, action, *args)

    def wait(self, error: NoSpace, path: bytes, action: Callable[..., T], *args: Any, reserve: bool = True) -> T:
        """There was no space for ``action``: pause until it can be done. Who gave up once does not wait again.

        Args:
            reserve: it is not tried while that is touched.
        """
        if self._given_up:
            raise error
        give_up_s = time.monotonic() + self._give_up_s
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self._say(m.Pause(error.wire, str(error)))
                self._on_event(events.Paused(str(error)))
        try:
            while True:
                if self._over.wait(ROOM_S):
                    raise LinkLost("the session is over")  # which is no failure of what waited
                try:
                    if reserve:
                        self._store.check_reserve()
                    with disk.destination_errors(path):
                        return action(*args)
                except NoSpace as again:
                    if time.monotonic() >= give_up_s:
                        self._given_up = True
                        raise NoSpace(f"{again}; nobody made room for {self._give_up_s:g} s") from again
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._say(m.Resume())
                    if not self._given_up:  # there is no room
                        self._on_event(events.Resumed(str(error)))
