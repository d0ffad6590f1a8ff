"""Many senders at once: children of one process that has loaded ftx, let go together.

``Crowd`` starts this very file as that process. It has one thread only, so it may fork; a child sends, reports and
ends without ever starting Python. What a child's time is begins when all of them are ready.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Crowd:
    """Senders that are ready; ``go`` lets them start. A context manager: leaving it kills those that still run.

    Args:
        base: folder of the test; its configuration is theirs.
        port: of the receiver.
        runs: the paths of each sender.
        options: of ``SendOptions``, for all of them.
    """

    def __init__(self, base: Path, port: int, runs: Sequence[Sequence[Path | str]], **options: Any) -> None:
        defaults = {"host": "127.0.0.1", "port": port, "config_dir": str(base / "config")}
        orders = {"runs": [[str(path) for path in paths] for paths in runs], "options": defaults | options}
        self._popen = subprocess.Popen(
            [sys.executable, __file__, json.dumps(orders["options"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("FTX_")},
        )
        try:
            assert self._popen.stdin is not None and self._popen.stdout is not None
            self._popen.stdin.write(json.dumps(orders["runs"]).encode() + b"\n")
            self._popen.stdin.flush()
            assert self._popen.stdout.readline() == b"ready\n", "the senders could not be made"
        except BaseException:
            self._kill()
            raise

    def go(self) -> None:
        """Let all of them start."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def results(self) -> list[dict[str, Any]]:
        """How each ended, in the order of ``runs``: ``code``, ``message``, ``seconds``, ``sent``, ``reused``."""
        assert self._popen.stdout is not None
        found = sorted((json.loads(line) for line in self._popen.stdout), key=lambda result: result["number"])
        assert self._popen.wait() == 0
        return found

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        if self._popen.returncode is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()


def _send(number: int, paths: list[str], options: dict[str, Any], barrier: int) -> None:
    """In a child: wait for the others, send, report. A line this short is written in one piece."""
    import ftx

    os.read(barrier, 1)
    started = time.monotonic()
    finished = ftx.send(paths, ftx.SendOptions(**options))
    report = {
        "number": number,
        "code": finished.code,
        "message": finished.message[:500],
        "seconds": time.monotonic() - started,
        "sent": finished.bytes_sent,
        "reused": finished.bytes_reused,
    }
    os.write(1, json.dumps(report).encode() + b"\n")


def main() -> None:
    """The process that forks. Its standard input says what to send; when that ends, they go."""
    options = json.loads(sys.argv[1])
    options["config_dir"] = Path(options["config_dir"])
    runs = json.loads(sys.stdin.buffer.readline())
    import ftx.api  # noqa: F401  so that no child has to load it

    barrier, let_go = os.pipe()
    children = []
    for number, paths in enumerate(runs):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(let_go)
                _send(number, paths, options, barrier)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.write(1, b"ready\n")
    sys.stdin.buffer.read()
    os.close(let_go)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)


if __name__ == "__main__":
    main()
