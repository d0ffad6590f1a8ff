"""G11: every mistake and failure has its exit code, and a message that says what happened and what to do."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftx import api
from ftx.net import handshake
from ftx.net.identity import fingerprint, public_key
from ftx.net.lane import Lane
from ftx.protocol import messages as m
from tests.support.files import MIB, fill, partials, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import Process, Receiver, send
from tests.support.proxy import Call, Proxy

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user, or mounts")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "file", 1000)


def _failed(run: Process, code: int, *words: str) -> None:
    """It ended with this code, and its last message has these words; the entry and the run say the same."""
    assert run.wait() == code, run.err
    finished = run.finished
    assert finished["code"] == code
    for word in words:
        assert word in finished["message"]
    assert f"ftx: {finished['message']}" in run.err or "\n" in finished["message"]


# --- the source ----------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    _failed(send(tmp_path, "missing", 1), 6, "missing: no such file")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_no_regular_file(tmp_path: Path, kind: str) -> None:
    """None of them is waited for."""
    path = tmp_path / "special"
    with socket.socket(socket.AF_UNIX) as sock:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            sock.bind(str(path))
        else:
            path = Path("/dev/null")
        assert send(tmp_path, path, 1).wait() == 6


@needs_root
def test_an_unreadable_source(shm: Path) -> None:
    shm.chmod(0o777)
    source = fill(shm / "file", 100)
    source.chmod(0o600)
    _failed(send(shm, source, 1, uid=NOBODY), 6, "file", "Permission denied")


# --- the way there -------------------------------------------------------------------------------------


def test_unknown_host(tmp_path: Path, source: Path) -> None:
    _failed(send(tmp_path, source, 1, host="no-such-host.invalid"), 3, "unknown host no-such-host.invalid")


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_closed_port(tmp_path: Path, source: Path) -> None:
    port = _closed_port()
    _failed(send(tmp_path, source, port), 3, f"port {port}", "refused", "Is `ftx receive` running there")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ("--bind", "127.0.0.1", "--port", str(port), "--dir", tmp_path / "into")
        with Process(tmp_path, "receive", *arguments) as receiver:
            _failed(receiver, 3, f"port {port}", "in use")


@contextmanager
def _listener(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """Something else on a port: ``talk`` has each connection; its port."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            server.settimeout(0.05)
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(10)
                    try:
                        talk(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


def _http(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def _say(words: bytes) -> Callable[[socket.socket], object]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(words)
        connection.recv(4096)

    return talk


OTHERS: dict[str, tuple[Callable[[socket.socket], object], str]] = {
    "HTTP": (_http, "a web server"),
    "ssh": (_say(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "an ssh server"),
    "FTP": (_say(b"220 hello\r\n"), "FTP"),
    "random": (_say(b"\x99" + secrets.token_bytes(3000)), "does not speak ftx"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_something_else_on_the_port(tmp_path: Path, source: Path, other: str) -> None:
    talk, words = OTHERS[other]
    with _listener(talk) as port:
        _failed(send(tmp_path, source, port), 4, words)


@pytest.mark.alone
def test_silence_on_the_port(tmp_path: Path, source: Path) -> None:
    with _listener(lambda connection: connection.recv(4096) and connection.recv(4096)) as port:
        started = time.monotonic()
        _failed(send(tmp_path, source, port, "--timeout", "1"), 3, "says nothing")
        assert time.monotonic() - started < 5


def test_a_port_that_closes_at_once(tmp_path: Path, source: Path) -> None:
    with _listener(lambda connection: None) as port:
        _failed(send(tmp_path, source, port), 3)


def _spoken_version(connection: socket.socket, version: int, *, dialer: bool) -> tuple[Lane, m.Message]:
    lane = Lane(connection, dialer=dialer)
    lane.deadline_s = time.monotonic() + 10
    lane.send(m.Hello(m.MAGIC, version, version, bytes(32), bytes(32)))
    return lane, lane.receive()[0]


def test_a_receiver_of_another_version(tmp_path: Path, source: Path) -> None:
    told: list[m.Message] = []

    def talk(connection: socket.socket) -> None:
        lane, _ = _spoken_version(connection, m.PROTOCOL_VERSION + 1, dialer=False)
        told.append(lane.receive()[0])

    with _listener(talk) as port:
        _failed(send(tmp_path, source, port, "--plain"), 4, f"version {m.PROTOCOL_VERSION + 1}", "update the older one")
    assert isinstance(told[0], m.Error) and told[0].code == 3


def test_a_sender_of_another_version(shm: Path) -> None:
    with (
        LocalReceiver(shm, plain=True) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)) as connection,
    ):
        lane, hello = _spoken_version(connection, m.PROTOCOL_VERSION + 1, dialer=True)
        assert isinstance(hello, m.Hello)
        error, _ = lane.receive()
        assert isinstance(error, m.Error)
        assert error.code == 3
        assert f"version {m.PROTOCOL_VERSION + 1}" in error.message


@pytest.mark.parametrize("plain", [True, False])
def test_a_stranger_gets_one_line_and_no_frames(shm: Path, plain: bool) -> None:
    """What does not speak ftx is told in words what this is."""
    with (
        LocalReceiver(shm, plain=plain) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)) as connection,
    ):
        connection.settimeout(10)
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.recv(1000) == handshake.NOT_FTX
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""


# --- the destination -----------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("existing", [True, False], ids=["dir exists", "dir to be made"])
def test_a_destination_that_is_not_writable(shm: Path, existing: bool) -> None:
    """A receiver that could not write anything says so when it starts, or when a file comes."""
    shm.chmod(0o755)
    (shm / "config").mkdir()
    os.chown(shm / "config", NOBODY, NOBODY)
    if not existing:
        arguments = ("--bind", "127.0.0.1", "--port", "0", "--dir", shm / "into" / "x")
        with Process(shm, "receive", *arguments, uid=NOBODY) as receiver:
            _failed(receiver, 7, "not writable")
        return
    (shm / "into").mkdir(mode=0o755)
    source = fill(shm / "file", 100)
    source.chmod(0o644)
    with Receiver(shm, uid=NOBODY):
        pass
    with Receiver(shm, uid=NOBODY) as receiver:
        _failed(send(shm, source, receiver.port, uid=NOBODY), 7, "file", "not writable")


def test_a_folder_has_the_name(tmp_path: Path, source: Path) -> None:
    with Receiver(tmp_path) as receiver:
        (receiver.into / "file").mkdir()
        _failed(send(tmp_path, source, receiver.port), 7, "file", "a folder has this name")
        assert (receiver.into / "file").is_dir()


def test_a_file_has_the_folders_name(shm: Path) -> None:
    source = fill(shm / "file", 100)
    with LocalReceiver(shm) as receiver:
        (receiver.into / "sub").write_bytes(b"")
        finished = local_send(shm, source, receiver.port, folder="sub")
        assert finished.code == 7
        assert "not a folder" in finished.message


@pytest.mark.parametrize("folder", ["../out", "/abs", ".ftx", "a/../../b", "x/.FTX/y"])
def test_G6_a_folder_outside(shm: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver refuses by itself, whatever a sender lets through."""
    monkeypatch.setattr(api.SendOptions, "CHECKS", {})
    source = fill(shm / "file", 100)
    with LocalReceiver(shm) as receiver:
        finished = local_send(shm, source, receiver.port, folder=folder)
        assert finished.code == 7, finished.message
        assert not list(receiver.into.rglob("file"))
        assert not (shm / "out").exists()


def test_G6_reserved_names(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        for name in (".ftx", ".FTX", ".ftx-0123.part"):
            finished = local_send(shm, fill(shm / name, 10), receiver.port)
            assert finished.code == 7, name
            assert "kept for ftx itself" in finished.message


POLICIES = {
    "replace": (0, {"file": "new"}),
    "keep": (0, {"file": "old"}),
    "rename": (0, {"file": "old", "file.1": "new"}),
    "fail": (7, {"file": "old"}),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_exists(tmp_path: Path, source: Path, policy: str) -> None:
    """What happens to a different file of the same name; the same file is never a question."""
    code, left = POLICIES[policy]
    contents = {"new": source.read_bytes(), "old": b"old"}
    with Receiver(tmp_path, "--exists", policy) as receiver:
        (receiver.into / "file").write_bytes(b"old")
        sent = send(tmp_path, source, receiver.port)
        assert sent.wait() == code, sent.err
        entry = sent.event("entry")
        assert entry["state"] == {"keep": "skipped", "fail": "failed"}.get(policy, "done")
        if policy == "fail":
            assert "different file" in entry["message"]
        if policy == "keep":
            assert "kept" in entry["message"]
        again = send(tmp_path, source, receiver.port)
        assert again.wait() == code
        if policy in ("replace", "rename"):
            assert again.event("entry")["state"] == "skipped"
        there = {path.name: path.read_bytes() for path in receiver.into.iterdir() if path.name != ".ftx"}
        assert there == {name: contents[which] for name, which in left.items()}
        assert not partials(receiver.into)


@contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_full_disk(shm: Path) -> None:
    """Refused before a byte of it is sent; after room was made the same command goes through."""
    source = fill(shm / "file", 12 * MIB)
    with _mounted(shm / "into", 20 * MIB) as into, Receiver(shm, into=into) as receiver:
        (into / "ballast").write_bytes(bytes(12 * MIB))
        full = send(shm, source, receiver.port, "--retry-for", "0")
        _failed(full, 7, "file")
        assert full.finished["bytes_sent"] == 0 and not full.of_type("paused")
        assert "free" in full.finished["message"] or "no space" in full.finished["message"]
        assert not (into / "file").exists()
        (into / "ballast").unlink()
        again = send(shm, source, receiver.port)
        assert again.wait() == 0, again.err
        assert same(source, into / "file")


@needs_root
def test_a_disk_that_fills_up_while_receiving(shm: Path) -> None:
    """Somebody else takes the room; the partial is kept, and the same command resumes it."""
    source = fill(shm / "file", 12 * MIB)
    with _mounted(shm / "into", 20 * MIB) as into, Receiver(shm, into=into) as receiver:

        def take() -> None:
            with (into / "ballast").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(MIB // 4))
                except OSError:
                    return

        with Proxy(receiver.port, up=[Call(2 * MIB, take)]) as proxy:
            _failed(send(shm, source, proxy.port, "--retry-for", "0"), 7, "file", "no space")
        assert not (into / "file").exists()
        assert partials(into)
        (into / "ballast").unlink()
        again = send(shm, source, receiver.port)
        assert again.wait() == 0, again.err
        assert same(source, into / "file")


@needs_root
def test_reserve(shm: Path) -> None:
    """Free space that is left on the disk, whoever sends."""
    source = fill(shm / "file", 4 * MIB)
    with _mounted(shm / "into", 20 * MIB) as into:
        arguments = ("--bind", "127.0.0.1", "--port", "0", "--dir", into)
        for reserve, code in (("18M", 7), ("10M", 0)):
            with Process(shm, "receive", *arguments, "--reserve", reserve) as receiver:
                port = receiver.event("listening")["addresses"][0][1]
                sent = send(shm, source, port)
                assert sent.wait() == code, sent.err
                if code:
                    assert "reserve" in sent.finished["message"]


# --- who may -------------------------------------------------------------------------------------------


def _other_user(base: Path) -> dict[str, str]:
    """The environment of somebody who is not this user of this machine."""
    (base / "theirs").mkdir(exist_ok=True)
    return {"FTX_CONFIG_DIR": str(base / "theirs")}


def test_G7_a_stranger_is_refused(tmp_path: Path, source: Path) -> None:
    """And told what to do on which side."""
    with Receiver(tmp_path) as receiver:
        refused = send(tmp_path, source, receiver.port, environ=_other_user(tmp_path))
        _failed(refused, 8, "not allowed in", "--secret-file", "--open")
        assert not (receiver.into / "file").exists()
        assert "not known here, and not let in; `ftx pair`" in receiver.event("warning")["message"]


def test_G7_a_secret_file(tmp_path: Path, source: Path) -> None:
    """The receiver makes it, for its user alone; with it a stranger is none."""
    secret = tmp_path / "secret"
    with Receiver(tmp_path, "--secret-file", secret) as receiver:
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        key, receiver_key = secret.read_text().split()
        assert len(bytes.fromhex(key)) == len(public_key(receiver_key)) == 32
        sent = send(tmp_path, source, receiver.port, "--secret-file", secret, environ=_other_user(tmp_path))
        assert sent.wait() == 0, sent.err
        assert same(source, receiver.into / "file")


def test_G7_a_secret_of_another_receiver(tmp_path: Path, source: Path) -> None:
    """Its copy was carried to a second receiver, which is none of the sender's."""
    secret = tmp_path / "secret"
    secret.write_text(f"{secrets.token_hex(32)}\n{fingerprint(secrets.token_bytes(32))}\n")
    secret.chmod(0o600)
    with Receiver(tmp_path, "--secret-file", secret) as receiver:
        assert "names another receiver" in receiver.event("warning")["message"]
        refused = send(tmp_path, source, receiver.port, "--secret-file", secret, environ=_other_user(tmp_path))
        _failed(refused, 8, "not the receiver that the file names")
    assert not (tmp_path / "into" / "file").exists()


def test_G7_a_wrong_secret(tmp_path: Path, source: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    wrong.chmod(0o600)
    with Receiver(tmp_path, "--secret-file", tmp_path / "right") as receiver:
        refused = send(tmp_path, source, receiver.port, "--secret-file", wrong, environ=_other_user(tmp_path))
        _failed(refused, 8, "not allowed in")
    with Receiver(tmp_path) as receiver:  # one that has no secret at all
        refused = send(tmp_path, source, receiver.port, "--secret-file", wrong, environ=_other_user(tmp_path))
        _failed(refused, 8, "not allowed in")
    assert not (tmp_path / "into" / "file").exists()


def test_G7_a_secret_is_never_dropped_for_an_open_receiver(tmp_path: Path, source: Path) -> None:
    """Whoever was given a key means the one who has it; `--accept-new` does not change that."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    with Receiver(tmp_path, "--open") as receiver:
        arguments = ("--secret-file", secret, "--accept-new")
        refused = send(tmp_path, source, receiver.port, *arguments, environ=_other_user(tmp_path))
        _failed(refused, 8, "does not know the key", "Nothing was sent")
        assert not (receiver.into / "file").exists()


def test_an_open_receiver(tmp_path: Path, source: Path) -> None:
    """Refused unless `--accept-new`; what is there is not replaced."""
    theirs = _other_user(tmp_path)
    with Receiver(tmp_path, "--open") as receiver:
        (receiver.into / "file").write_bytes(b"old")
        refused = send(tmp_path, source, receiver.port, environ=theirs)
        _failed(refused, 8, "--accept-new", "Nothing was sent")
        sent = send(tmp_path, source, receiver.port, "--accept-new", environ=theirs)
        assert sent.wait() == 0, sent.err
        assert (receiver.into / "file").read_bytes() == b"old"
        assert same(source, receiver.into / "file.1")


def test_g11_a_receiver_that_cannot_be_remembered(tmp_path: Path, source: Path) -> None:
    """The run goes on, and says that the next one does not know it."""
    theirs = {"FTX_CONFIG_DIR": "/dev/null/config"}
    with Receiver(tmp_path, "--open") as receiver:
        sent = send(tmp_path, source, receiver.port, "--accept-new", environ=theirs)
        assert sent.wait() == 0, sent.err
        assert any("known_hosts" in event["message"] for event in sent.of_type("warning")), sent.err


def test_open_needs_dir(tmp_path: Path) -> None:
    with Process(tmp_path, "receive", "--open", "--port", "0") as receiver:
        assert receiver.wait() == 2
        assert "--dir" in receiver.err


@pytest.mark.parametrize("side", ["send", "receive"])
@pytest.mark.parametrize(
    ("contents", "mode", "words"),
    [("0" * 64, 0o644, "open to others"), ("too short", 0o600, "does not hold a key")],
    ids=["open to others", "no key"],
)
def test_a_bad_secret_file(tmp_path: Path, source: Path, side: str, contents: str, mode: int, words: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(contents)
    secret.chmod(mode)
    if side == "send":
        _failed(send(tmp_path, source, 1, "--secret-file", secret), 2, words)
    else:
        with Process(tmp_path, "receive", "--port", "0", "--secret-file", secret) as receiver:
            _failed(receiver, 2, words)


def test_a_sender_does_not_make_a_secret_file(tmp_path: Path, source: Path) -> None:
    _failed(send(tmp_path, source, 1, "--secret-file", tmp_path / "none"), 2, "none")
    assert not (tmp_path / "none").exists()


# --- use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["send"],
        ["send", "file"],
        ["send", "file", "host:9000"],
        ["send", "file", "host:/abs"],
        ["send", "file", "host:../x"],
        ["send", "file", "::1"],
        ["send", "file", "host", "--port", "0"],
        ["send", "file", "host", "--timeout", "nan"],
        ["send", "file", "host", "--retry-for", "-1"],
        ["receive", "--port", "65536"],
        ["receive", "--reserve", "much"],
        ["receive", "--exists", "perhaps"],
        ["nonsense"],
        ["send", "--nonsense", "file", "host"],
    ],
    ids=" ".join,
)
def test_wrong_use(tmp_path: Path, arguments: list[str]) -> None:
    """In this process: the command line alone, before anything is opened."""
    from click.testing import CliRunner

    from ftx.cli.main import ftx

    result = CliRunner().invoke(ftx, arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output
