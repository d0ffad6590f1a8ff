"""The far side of a run over ssh: a receiver for one session, which ends when ssh does.

What it is told comes over standard input, what it says goes to standard output (``protocol.md``, "Started over ssh"):
one line each. After that they carry nothing, unless the dialer speaks there: then they are a connection like any other.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

from ftx.errors import DestinationError, FtxError
from ftx.options import ReceiveOptions
from ftx.protocol import ssh
from ftx.transfer import events
from ftx.transfer.crew import Stop
from ftx.transfer.registry import Receiver

IN, OUT = 0, 1
PIECE = 256 * 1024
#: Who started it and has no session after so long is gone, and sshd has not noticed.
IDLE_S = 60.0
#: How long the last words may take on their way out.
LAST_WORDS_S = 2.0


class _FarSide:
    def __init__(self, request: ssh.Request, stop: Stop) -> None:
        self._stop = stop
        self._key = secrets.token_bytes(ssh.SSH_KEY)
        options = ReceiveOptions(
            dir=Path(os.path.join(Path.home(), _from_home(request.folder))),
            port=0,
            timeout_s=request.timeout_s,
            tell_all=False,
        )
        self._receiver = Receiver(options, on_event=self._on_event, one_time_key=self._key)
        self._idle = threading.Timer(IDLE_S, self._end)
        self._idle.daemon = True
        self._listened = False
        self._back: threading.Thread | None = None

    def run(self) -> int:
        """Receive one session. Returns the exit status."""
        finished = self._receiver.run(self._stop)
        self._idle.cancel()
        if not self._listened:
            _say(ssh.encode_failure(finished.code, finished.message))
        if self._back is not None:
            self._back.join(LAST_WORDS_S)
        return finished.code

    def _end(self) -> None:
        self._stop.request(signal.SIGHUP)

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.Listening():
                self._listened = True
                self._idle.start()
                # The third of its four parts is the address of this machine.
                reached = os.environ.get("SSH_CONNECTION", "").split()[2:3]
                port = event.addresses[0][1]
                _say(ssh.encode_answer(ssh.Answer(port, event.fingerprint, self._key, *reached)))
                threading.Thread(target=self._listen, name="ftx-stdin", daemon=True).start()
            case events.SessionUp():
                self._idle.cancel()
            case events.SessionEnd():
                self._end()  # for the next one ssh is started again
            case _:
                pass

    def _listen(self) -> None:
        """Wait for the end of ssh; meanwhile for a dialer that comes this way."""
        try:
            if first := os.read(IN, PIECE):
                self._relay(first)
        except OSError:
            pass  # it broke: that is its end as well
        finally:
            self._end()

    def _relay(self, data: bytes) -> None:
        ours, theirs = socket.socketpair()
        self._back = threading.Thread(target=_forward, args=(ours,), name="ftx-stdout", daemon=True)
        self._back.start()
        self._receiver.connected(theirs, "ssh")
        try:
            while data:
                ours.sendall(data)
                data = os.read(IN, PIECE)
        finally:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_WR)


def _forward(sock: socket.socket) -> None:
    """What the receiver says, to standard output."""
    with sock, suppress(OSError):  # the receiver closed it in the middle of what came: that is its end as well
        while data := sock.recv(PIECE):
            _say(data)


def _from_home(folder: bytes) -> str:
    """As a shell takes it: relative to the home folder, with or without ``~/``."""
    return os.fsdecode(folder.removeprefix(b"~/") if folder != b"~" else b"")


def _say(data: bytes) -> None:
    view = memoryview(data)
    with suppress(OSError):  # nobody listens any more: then standard input ends, too
        while view:
            view = view[os.write(OUT, view) :]


def _read_line() -> bytes:
    """The dialer's line, and nothing behind it: that would be a connection's."""
    line = b""
    while not line.endswith(b"\n") and len(line) <= ssh.MAX_SSH_REQUEST:
        byte = os.read(IN, 1)
        if not byte:
            break
        line += byte
    return line


def serve(stop: Stop) -> int:
    """Be the far side until the session, or ssh, is over. Returns the exit status."""
    try:
        try:
            far = _FarSide(ssh.decode_request(_read_line()), stop)
        except (ValueError, RuntimeError) as error:  # a folder that no system has, a user without a home
            raise DestinationError(str(error)) from error
    except FtxError as error:
        _say(ssh.encode_failure(error.exit_code, str(error)))
        return error.exit_code
    return far.run()
