"""One tool in one place: its server, its folder, and its timed runs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.material import Material, Verdict, judge, survey
from tests.benchmarks.peers import Peer, Site, environment
from tests.benchmarks.places import Place
from tests.benchmarks.processes import (
    CONNECTED,
    Command,
    Failed,
    Run,
    Timer,
    free_port,
    kill,
    peak_rss,
    start,
    tail,
    wait_for_port,
)

#: How often a transfer is tried that shall be killed and was faster.
ATTEMPTS = 5


class Contestant:
    """A tool that is ready to be timed, for the length of a with-block.

    Args:
        folder: made, and removed at the end.
        patience_s: what takes longer is stopped and counts as failed.

    Attributes:
        commands: the command lines that were used, with words for what is another one in each run: OWN and SOURCE for
            folders, PORT.
    """

    def __init__(self, peer: Peer, place: Place, folder: Path, patience_s: float) -> None:
        self.peer, self.place = peer, place
        self.commands: list[str] = []
        self._folder, self._patience_s = folder, patience_s
        self._target = folder / "root" / "target"
        self._site = Site(folder, self._target, place.here, place.there)
        self._environment = environment(self._site, peer)
        self._server: subprocess.Popen[bytes] | None = None
        self._receiver: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Contestant:
        self._target.mkdir(parents=True)
        try:
            self._serve()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything. May be called twice."""
        for process in (self._server, self._receiver):
            if process:
                kill(process)
        if self._folder.exists():
            self._target.parent.chmod(0o755)
            shutil.rmtree(self._folder)

    @property
    def receiver_peak(self) -> int:
        """Memory that the server has used at most since it was started, bytes."""
        return peak_rss(self._server.pid) if self._server else 0

    def copy(self, source: Path) -> tuple[Run, int]:
        """Send into the empty target; and the bytes on the wire."""
        return self._done(self.peer.send, source)

    def again(self, source: Path) -> tuple[Run, int]:
        """Send what is there already."""
        assert self.peer.again
        return self._done(self.peer.again, source)

    def crash(self, source: Path, at: int) -> None:
        """Send, and kill both sides when so many bytes have passed. The server is started anew."""
        at *= self.peer.wire_copies
        for _ in range(ATTEMPTS):
            run, _ = self._run(self.peer.send, source, kill_at=at)
            if run.code is None:
                break
            self.clear()
        else:
            raise Failed(f"over before it could be killed, exit status {run.code}; {tail(self._log('send'))}")
        if self._server:
            kill(self._server)
            self._serve()

    def resume(self, source: Path) -> tuple[Run, int]:
        """Go on after a crash."""
        assert self.peer.resume
        return self._done(self.peer.resume, source)

    def verdict(self, material: Material) -> Verdict:
        """
        Raises:
            Failed: a file is missing or wrong.
        """
        verdict = judge(material.contents, survey(self._target / material.path.name))
        if verdict.wrong:
            raise Failed(f"{len(verdict.wrong)} files are missing or wrong, {verdict.wrong[0]!r} for one")
        return verdict

    def clear(self) -> None:
        """Make the target empty."""
        for entry in self._target.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _note(self, command: Command, source: Path | None = None) -> Command:
        program, *words = map(str, command)
        line = shlex.join([Path(program).name, *words])
        means = {str(self._folder): "OWN", str(self._site.port): "PORT"}
        if source:
            means |= {str(source): "SOURCE", str(source.parent): "SOURCES"}
        for what, word in means.items():
            line = line.replace(what, word)
        if line not in self.commands:
            self.commands.append(line)
        return command

    def _serve(self) -> None:
        if self.peer.server:
            self._site.port = free_port()
            command = [*self.place.receiving, *self._note(self.peer.server(self._site))]
            self._server = start(command, self._environment, self._log("server"))
            wait_for_port(self._server, self._site.port, self._log("server"))

    def _receive(self, source: Path) -> subprocess.Popen[bytes]:
        assert self.peer.receiver
        command = [*self.place.receiving, *self._note(self.peer.receiver(self._site, source), source)]
        self._receiver = start(command, self._environment, self._log("receive"))
        return self._receiver

    def _run(
        self, command: Callable[[Site, Path], Command], source: Path, kill_at: int | None = None
    ) -> tuple[Run, int]:
        self._log("send").unlink(missing_ok=True)
        receiver, before = None, self.place.passed()
        if self.peer.receiver:
            self._site.port = free_port()
            if self.peer.receiver_listens:
                receiver = self._receive(source)
                wait_for_port(receiver, self._site.port, self._log("receive"))
        line = [*self.place.sending, *self._note(command(self._site, source), source)]
        with Timer(line, self._environment, self._log("send")) as timer:
            if self.peer.receiver and not self.peer.receiver_listens:
                # It comes to its own port as well, and must have done so before the receiver does.
                wait_for_port(timer.sender, self._site.port, self._log("send"), CONNECTED)
                receiver = self._receive(source)
            stop = None if kill_at is None else lambda: self.place.passed() - before >= kill_at
            run = timer.wait(receiver, self._patience_s, stop)
        return run, self.place.passed() - before

    def _done(self, command: Callable[[Site, Path], Command], source: Path) -> tuple[Run, int]:
        run, wire = self._run(command, source)
        if run.code != 0:
            raise Failed(f"exit status {run.code}; {tail(self._log('send'))}")
        return run, wire
