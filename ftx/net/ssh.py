"""Starting a receiver on another machine with the user's own ssh, and the connection that ssh is itself.

Rules: nothing secret stands in an argument or in the environment, where others can read it. What the user typed is
never part of what a shell reads, but for the far program's own path, quoted. ssh keeps the terminal, for passwords and
questions, and gets Ctrl-C like this process.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ftx.errors import FtxError, NetworkError, NotStarted
from ftx.protocol import ssh as start
from ftx.protocol.ssh import Request

#: How long the far side may take to answer: a person may have to type a password first.
START_S = 300.0
TICK_S = 0.1
#: How long ssh may take to end by itself when its input has ended, and then when it was told to.
END_S = 1.0
#: How long ``ssh -G`` may take.
LOOK_S = 3.0
#: Of what a login said instead, as much is shown.
SHOWN = 200
INSTALL = "pipx install ftx-transfer"
#: What scp gives ssh too: nothing of the user's configuration may get between the two sides. No control master: it
#: would end with this run, and with it what other programs have opened through it.
_PLAIN = ("-T", "-x", "-a", "-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-oRemoteCommand=none",
          "-oControlMaster=no")  # fmt: skip


class FarSide:
    """A receiver that ssh has started on another machine. A context manager: leaving it ends ssh, and so the receiver.

    Args:
        rsh: the command that starts a program on another machine, and its options.
        host: ``[USER@]HOST``, which does not begin with a dash.
        ftx: the program there: a name, or a path, from the far user's home folder.
        request: what it is to do.
        check: called a few times a second; may raise to end the attempt.

    Attributes:
        answer: where it listens.
        sock: ssh's standard input and output. Nothing moves there before this side sends.

    Raises:
        NotStarted: ssh or the far ftx cannot be started.
        NetworkError: ssh does not get there.
        FtxError: the far side cannot serve, and says why.
    """

    def __init__(self, rsh: Sequence[str], host: str, ftx: str, request: Request, check: Callable[[], None]) -> None:
        self._host = host
        self._rsh = rsh
        command: list[str] = [*rsh, *(_PLAIN if self._is_ssh else ()), *self._destination, remote_command(ftx)]
        self.sock, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
        except OSError as error:
            self.sock.close()
            raise NotStarted(f"{rsh[0]} cannot be started: {error.strerror}") from error
        try:
            with suppress(OSError):  # it has ended already; its exit status says more
                self.sock.sendall(start.encode_request(request))
            self.answer = start.decode_answer(self._line(check))
        except BaseException:
            self.close()
            raise

    @property
    def _is_ssh(self) -> bool:
        return os.path.basename(self._rsh[0]) == "ssh"

    @property
    def _destination(self) -> tuple[str, ...]:
        # Others than ssh may not know "--"; no host begins with a dash.
        return ("--", self._host) if self._is_ssh else (self._host,)

    def _line(self, check: Callable[[], None]) -> bytes:
        """The far side's line, without its mark."""
        deadline = time.monotonic() + START_S
        said = b""
        self.sock.settimeout(TICK_S)
        while (found := re.search(rb"^" + re.escape(start.SSH_MARK) + rb"([^\n]*)\n", said, re.MULTILINE)) is None:
            check()
            if len(said) > start.MAX_SSH_NOISE + len(start.SSH_MARK) + start.MAX_SSH_ANSWER:
                raise NotStarted(f"{self._host} does not start ftx, and says without end: {_shown(said)}")
            if time.monotonic() > deadline:
                raise NetworkError(f"{self._host} has not answered for {START_S:g} s")
            try:
                more = self.sock.recv(start.MAX_SSH_NOISE)
            except TimeoutError:
                continue
            except OSError:
                more = b""
            if not more:
                error = self._ended(said)
                check()  # Ctrl-C has ended ssh, too
                raise error
            said += more
        self.sock.settimeout(None)
        return found[1]

    def _ended(self, said: bytes) -> FtxError:
        """Why there was no line; ssh and the far shell have said it on standard error, too."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        status = self._process.returncode
        name = os.path.basename(self._rsh[0])
        hint = f"To install it there: `{INSTALL}`. If it is installed, say where it is with `--remote-ftx PATH`"
        saw = f"; instead it said: {_shown(said)}" if said.strip() else ""
        match status:
            case 255 | None:
                return NetworkError(f"{name} has no connection to {self._host}{saw}")
            case 126 | 127:
                return NotStarted(f"there is no ftx on {self._host}{saw}. {hint}")
            case _ if status < 0:
                return NetworkError(f"{name} was killed (signal {-status})")
            case _:
                return NotStarted(f"{self._host} does not start ftx (exit status {status}){saw}. {hint}")

    def addresses(self) -> list[str]:
        """By which the receiver may be reached without ssh: as its machine was reached, and as ssh calls it."""
        typed = self._host.rpartition("@")[2]
        named = (self._resolved() if self._is_ssh else None) or typed
        return list(dict.fromkeys(filter(None, (self.answer.address, named))))

    def _resolved(self) -> str | None:
        """The host that stands behind the name in ssh's configuration."""
        command = [*self._rsh, "-G", *self._destination]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LOOK_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(rb"^hostname (\S+)$", done.stdout, re.MULTILINE)
        return os.fsdecode(found[1]) if found else None

    def close(self) -> None:
        """End ssh. The far side ends when it sees that, within some seconds."""
        self.sock.close()
        for end in (self._process.terminate, self._process.kill):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
                return
            end()
        self._process.wait()

    def __enter__(self) -> FarSide:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def remote_command(ftx: str) -> str:
    """What the far user's shell is to run. Of what this side's user typed only the program's path is in it, quoted."""
    path = "./" + ftx[2:] if ftx.startswith("~/") else ftx  # a command starts in the home folder
    return f"{shlex.quote(path)} receive --over-ssh"


def _shown(said: bytes) -> str:
    text = said.strip()[:SHOWN].decode("utf-8", "replace")
    return repr(text)
