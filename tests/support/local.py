"""Both sides inside the test's process, where starting Python for each run would take too long."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from ftx import api
from ftx.net import keys, listen
from ftx.net.identity import fingerprint
from ftx.net.known import KnownHosts, name_of
from ftx.net.peers import FILE
from ftx.transfer import events

#: Hundreds of receivers end in the tests, and each waits for a tick of its listener.
listen.TICK_S = 0.01


class LocalReceiver:
    """``api.Receiver`` in a thread; ready when the with-block begins, ended when it is left."""

    def __init__(self, base: Path, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "dir": base / "into",
            "bind": ("127.0.0.1",),
            "port": 0,
            "reserve": 0,
            "config_dir": base / "config",
        }
        self.options = api.ReceiveOptions(**defaults | options)
        self.into = self.options.dir
        self.events: list[api.Event] = []
        self.finished: api.Finished | None = None
        self.stop = api.Stop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def _run(self) -> None:
        try:
            self.finished = api.Receiver(self.options, on_event=self._on_event).run(self.stop)
        finally:
            self._ready.set()

    def _on_event(self, event: api.Event) -> None:
        self.events.append(event)
        if isinstance(event, events.Listening):
            self.port = event.addresses[0][1]
            self._ready.set()

    def __enter__(self) -> LocalReceiver:
        self._thread.start()
        self._ready.wait()
        assert self.finished is None, self.finished
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.request(15)
        self._thread.join()

    def of_type(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in list(self.events) if isinstance(event, kind)]

    def warned(self) -> str:
        """All warnings so far, a line each."""
        return "\n".join(event.message for event in self.of_type(events.Warn))


def local_send(base: Path, path: Path | bytes, port: int, **options: Any) -> api.Finished:
    """``api.send`` to this machine, without retries unless told otherwise."""
    on_event = options.pop("on_event", None)
    stop, code = options.pop("stop", None), options.pop("code", None)
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "retry_for_s": 0.0,
        "timeout_s": 10.0,
        "lanes": 1,  # which is what ftx chooses on one machine, unless that is busy and so looks far away
        "config_dir": base / "config",
    }
    return api.send([path], api.SendOptions(**defaults | options), on_event=on_event, stop=stop, code=code)


def on_file(receiver: LocalReceiver, base: Path, name: str, terms: str = "") -> Path:
    """Let a peer of this name in, with these terms, and have it trust the receiver; its configuration folder."""
    config = base / f"config of {name}"
    public, theirs = (keys.identity(folder)[0].public for folder in (config, receiver.options.config_dir))
    path = receiver.options.config_dir / FILE
    lines = path.read_text() if path.exists() else ""
    path.write_text(f"{lines}{name} {fingerprint(public)} {terms}\n")
    KnownHosts(config).add(name_of("127.0.0.1", receiver.port), theirs)
    return config
