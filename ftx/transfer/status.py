"""What is unfinished below a destination, told as events. Neither a session nor a receiver has to be there."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from ftx.errors import DestinationError
from ftx.storage import disk
from ftx.storage import unfinished as storage
from ftx.storage.paths import OWN_FOLDER, Root
from ftx.transfer import events


@dataclass(slots=True)
class _Told:
    """What was told so far."""

    left: int = 0
    discarded: int = 0
    failed: int = 0


def status(
    folder: Path, *, path: bytes | None = None, discard: bool = False, on_event: events.OnEvent
) -> events.StatusFinished:
    """Tell of each transfer that is unfinished below the destination ``folder``, which is not made.

    Args:
        path: tell of the transfers to this destination path alone.
        discard: remove those that no session has.
        on_event: told of each as it is found, in no order, and of the end.

    Returns:
        The last event; nothing is raised for what the disk refuses.
    """
    told, started = _Told(), time.monotonic()
    code, message = 0, ""
    try:
        root = Root(folder, make=False)
        try:
            for found in storage.unfinished(root):
                if path is None or found.path == path:
                    _tell(root, found, discard, on_event, told)
        except OSError as error:
            raise DestinationError(_why_not(root, error)) from error
        finally:
            root.close()
        if told.failed:
            raise DestinationError(f"{told.failed} could not be discarded; each was reported")
    except DestinationError as error:
        code, message = error.exit_code, str(error)
    finished = events.StatusFinished(
        code,
        message,
        failed=told.failed,
        seconds=time.monotonic() - started,
        unfinished=told.left,
        discarded=told.discarded,
    )
    on_event(finished)
    return finished


def _tell(root: Root, found: storage.UnfinishedFile, discard: bool, on_event: events.OnEvent, told: _Told) -> None:
    running, gone = found.running, False
    if discard and not running:
        try:
            with disk.destination_errors(found.path):
                gone = storage.discard(root, found)
            running = not gone  # a session was faster
        except DestinationError as error:
            told.failed += 1
            on_event(events.Warn(str(error), found.path))
    told.discarded += gone
    told.left += not gone
    peer = found.peer.hex()
    on_event(events.Unfinished(found.path, found.size, found.held, found.age_s, peer, running, discarded=gone))


def _why_not(root: Root, error: OSError) -> str:
    """What to say when ``.ftx`` cannot be read."""
    own = root.path / os.fsdecode(OWN_FOLDER)
    info = disk.look(OWN_FOLDER, folder=root.fd)
    if info is not None and stat.S_ISDIR(info.st_mode) and info.st_uid != os.geteuid():
        return f"{own}: it belongs to user {info.st_uid}, and only that user may see what is in it"
    return f"{own}: {error.strerror}"
