"""Nothing runs on the other machine, and ssh starts it: a real sshd, real processes, and what may go wrong between."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.net import ssh
from tests.support.files import MIB, fill, partials, same, settled
from tests.support.local import LocalReceiver
from tests.support.process import Process, wait_until
from tests.support.sshd import Far, Sshd, child, sshd

BIG = 256 * MIB
PART = 24 * MIB


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ftx-ssh-", dir=base))
    try:
        fill(folder / "small", 3 * MIB)
        yield settled(fill(folder / "big", BIG)).parent
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    folder = Path(tempfile.mkdtemp(prefix="ftx-sshd-"))
    try:
        with sshd(folder) as found:
            if isinstance(found, str):
                pytest.skip(found)
            yield found
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def far(server: Sshd, shm: Path) -> Iterator[Far]:
    """A machine where ftx is installed. Whatever happens, nothing of it outlives the test."""
    machine = Far(server, shm)
    try:
        yield machine
        machine.gone()
    finally:
        for pid in machine.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def small(prepared: Path) -> Path:
    return prepared / "small"


@pytest.fixture
def big(prepared: Path) -> Path:
    return prepared / "big"


# --- the two ways --------------------------------------------------------------------------------------


def test_straight_to_a_port_that_can_be_reached(far: Far, small: Path) -> None:
    process = far.send(small, "far:in/deep", "--lanes", "3")
    assert process.wait() == 0, process.err
    assert same(small, far.home / "in/deep/small")
    session = process.event("session")
    assert (session["via"], session["lanes"]) == ("direct", 3)
    assert session["peer"].startswith("127.0.0.1:")
    assert not process.of_type("warning")
    assert not (far.base / "config" / "known_hosts").exists()
    far.gone()


def test_the_path_is_measured(far: Far, shm: Path) -> None:
    process = far.bench("far:in", "--step", "0.1", "--lanes", "1", "--dir", shm)
    assert process.wait() == 0, process.err
    assert [step["step"] for step in process.of_type("measured")] == ["path", "receiver_disk", "sender_disk"]
    assert not list((far.home / "in").iterdir())
    far.gone()


def test_over_ssh_itself_where_the_port_cannot_be_reached(far: Far, small: Path) -> None:
    process = far.send(small, "hidden:in", "--lanes", "3")
    assert process.wait() == 0, process.err
    assert same(small, far.home / "in/small")
    session = process.event("session")
    assert (session["via"], session["peer"], session["lanes"], session["encrypted"]) == ("ssh", "hidden", 1, True)
    [warning] = process.of_type("warning")
    assert "port on hidden cannot be reached" in warning["message"] and "slower" in warning["message"]


def test_a_tree_over_ssh_itself_comes_whole(far: Far, prepared: Path) -> None:
    process = far.send(prepared, "hidden:")
    assert process.wait() == 0, process.err
    for name in ("small", "big"):
        assert same(prepared / name, far.home / prepared.name / name)


def test_by_its_name_alone(far: Far, small: Path) -> None:
    """Without --remote-ftx it is looked for as any program; and what is typed may be a user as well."""
    program = far.server.path / "ftx"
    program.symlink_to(far.ftx)
    try:
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        with Process(far.base, "send", "--rsh", far.server.rsh, "--", small, f"{user}@far:~/in") as process:
            assert process.wait() == 0, process.err
    finally:
        program.unlink()
    assert same(small, far.home / "in/small")


STRANGERS = ["open receiver", "own receiver", "no ftx", "silent"]


@pytest.mark.parametrize("kind", STRANGERS)
def test_G7_another_machine_at_that_address_gets_nothing(server: Sshd, shm: Path, small: Path, kind: str) -> None:
    """The receiver's port leads to a stranger, or to another receiver of this very user."""
    config = shm / ("config" if kind == "own receiver" else "stranger-config")
    got: list[bytes] = []
    with LocalReceiver(shm, open=kind == "open receiver", config_dir=config) as receiver:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                if kind == "no ftx":
                    connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n" * 3)
                while data := connection.recv(65536):
                    got.append(data)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = receiver.port if kind.endswith("receiver") else listener.getsockname()[1]
        far = Far(server, shm, port=str(port))
        process = far.send(small, "far:in", "--timeout", "3")
        assert process.wait() == 0, process.err
        assert process.event("session")["via"] == "ssh"
        assert len(process.of_type("warning")) == 1
        assert same(small, far.home / "in/small")
        assert not list(receiver.into.rglob("*small*"))
        far.gone()
        if kind.endswith("receiver"):
            socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()
    assert b"small" not in b"".join(got)


def test_G7_nobody_else_is_let_in(far: Far, big: Path, small: Path) -> None:
    """Not the far user either, nor who is known: the key alone counts."""
    with far.sender(big, "far:in") as process:
        port = process.event("session")["peer"].rpartition(":")[2]
        process.signal(signal.SIGSTOP)
        for config in (far.config, far.base / "config", far.base / "third"):
            more = {"FTX_CONFIG_DIR": str(config)}
            with Process(far.base, "send", "--port", port, "--accept-new", small, "127.0.0.1", environ=more) as other:
                assert other.wait() == 8, other.err
        process.signal(signal.SIGCONT)
        assert process.wait() == 0, process.err
    assert [path.name for path in (far.home / "in").iterdir() if path.name != ".ftx"] == ["big"]


def test_G7_the_key_stands_nowhere(far: Far, big: Path) -> None:
    """Not in an argument, a variable or a trace."""
    with far.sender(big, "hidden:in", "-vv") as process:
        process.event("session")
        for pid in (process.popen.pid, *far.processes()):
            os.kill(pid, signal.SIGSTOP)
        found = re.search(rb'"key":"([0-9a-f]{64})"', far.line())
        assert found
        key = found[1]
        for each in Path("/proc").iterdir():
            for name in ("cmdline", "environ"):
                try:
                    text = (each / name).read_bytes()
                except OSError:
                    continue
                assert key not in text and bytes.fromhex(key.decode()) not in text
        for pid in (*far.processes(), process.popen.pid):
            os.kill(pid, signal.SIGCONT)
        assert process.wait() == 0, process.err
    assert key.decode() not in process.err + json.dumps(process.events)


# --- what breaks ---------------------------------------------------------------------------------------


def _arrived(far: Far) -> int:
    return sum(part.stat().st_blocks * 512 for part in partials(far.home / "in"))


@pytest.mark.parametrize("remote", ["far:in", "hidden:in"])
@pytest.mark.parametrize("victim", ["ssh", "far side"])
def test_G2_sigkill_on_the_way(far: Far, big: Path, victim: str, remote: str) -> None:
    """The same run starts ssh again and goes on."""
    with far.sender(big, remote) as process:
        process.event("session")
        pid = child(process.popen.pid, "ssh") if victim == "ssh" else far.processes()[0]
        wait_until(lambda: _arrived(far) > PART)
        os.kill(pid, signal.SIGKILL)
        assert process.wait() == 0, process.err
    assert process.of_type("retry")
    assert len(process.of_type("session")) == 2
    assert process.finished["bytes_sent"] < BIG + 64 * MIB
    assert same(big, far.home / "in/big")


@pytest.mark.parametrize("remote", ["far:in", "hidden:in"])
def test_G2_sigkill_of_the_sender(far: Far, big: Path, remote: str) -> None:
    with far.sender(big, remote) as process:
        wait_until(lambda: _arrived(far) > PART)
        process.kill()
    far.gone()
    again = far.send(big, remote)
    assert again.wait() == 0, again.err
    assert again.finished["bytes_reused"] >= PART - 17 * MIB
    assert same(big, far.home / "in/big")


def test_what_a_far_side_before_has_not_let_go_of_is_waited_for(far: Far, big: Path) -> None:
    """It stands still, as one does that has not noticed that its link is gone."""
    with far.sender(big, "far:in") as process:
        process.event("session")
        [old] = far.processes()
        wait_until(lambda: _arrived(far) > PART)
        os.kill(old, signal.SIGSTOP)
        process.kill()
    try:
        with far.sender(big, "far:in") as again:
            again.event("session")
            time.sleep(1)
            assert again.popen.poll() is None and not again.of_type("entry")
            os.kill(old, signal.SIGCONT)
            assert again.wait() == 0, again.err
    finally:
        if old in far.processes():
            os.kill(old, signal.SIGCONT)
    assert again.finished["bytes_reused"] > 0
    assert same(big, far.home / "in/big")


@pytest.mark.parametrize("both", [False, True], ids=["sender", "sender and ssh, as by Ctrl-C"])
def test_an_interrupt_ends_all_of_it(far: Far, big: Path, both: bool) -> None:
    with far.sender(big, "far:in") as process:
        below = child(process.popen.pid, "ssh")
        wait_until(lambda: _arrived(far) > PART)
        if both:
            os.kill(below, signal.SIGINT)
        process.signal(signal.SIGINT)
        assert process.wait(10) == 130, process.err
    far.gone()
    assert not Path(f"/proc/{below}").exists()
    assert partials(far.home / "in") and not (far.home / "in/big").exists()


# --- what does not start -------------------------------------------------------------------------------


def test_G11_where_there_is_no_ftx(far: Far, small: Path) -> None:
    far.ftx.unlink()
    process = far.send(small, "far:in")
    assert process.wait() == 3
    assert ssh.INSTALL in process.finished["message"] and "--remote-ftx" in process.finished["message"]
    assert not process.of_type("retry")


def test_G11_where_ssh_gets_nowhere(far: Far, small: Path) -> None:
    process = far.send(small, "nobody.invalid:in")
    assert process.wait() == 3
    assert "no connection to nobody.invalid" in process.finished["message"]
    assert "nobody.invalid" in process.err  # in ssh's own words
    with Process(far.base, "send", "--rsh", "/no/such/ssh", "--", small, "far:in") as process:
        assert process.wait() == 3
    assert "/no/such/ssh" in process.finished["message"]


def test_G11_a_far_folder_that_cannot_be(far: Far, small: Path) -> None:
    (far.home / "file").touch()
    process = far.send(small, "far:file/in")
    assert process.wait() == 7
    assert "file" in process.finished["message"]


def test_a_login_that_talks(server: Sshd, shm: Path, small: Path) -> None:
    far = Far(server, shm, noise="seq 5000; printf 'ftx-ssh\\nWelcome to ftx-ssh {}, '")
    process = far.send(small, "hidden:in")
    assert process.wait() == 0, process.err
    assert same(small, far.home / "in/small")
    far.gone()


def test_G8_a_login_that_talks_without_end(server: Sshd, shm: Path, small: Path) -> None:
    far = Far(server, shm, noise="exec yes 'I am here'")
    process = far.send(small, "far:in")
    assert process.wait() == 3
    assert "I am here" in process.finished["message"] and len(process.finished["message"]) < 1000


# --- what is typed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["$(touch x)", "`touch x`; touch x", "a'b\"c", "a\nb", "-x", "a b\\", "\udcff", "ü"])
def test_a_folder_is_only_a_name(far: Far, small: Path, folder: str) -> None:
    process = far.send(small, f"far:{folder}")
    assert process.wait() == 0, process.err
    assert [os.fsencode(path.name) for path in far.home.iterdir()] == [os.fsencode(folder)]
    assert same(small, far.home / folder / "small")


def test_absolute_and_home(far: Far, small: Path, tmp_path: Path) -> None:
    for remote, where in ((f"far:{tmp_path}/in", tmp_path / "in"), ("far", far.home), ("far:~", far.home)):
        process = far.send(small, remote)
        assert process.wait() == 0, process.err
        assert same(small, where / "small")
    assert process.finished["skipped"] == 1


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "me@-oProxyCommand=touch x", "$(touch x)", "-F:in"])
def test_a_host_is_no_option_and_no_command(far: Far, small: Path, host: str) -> None:
    process = far.send(small, host)
    assert process.wait() == 2
    assert not (far.base / "x").exists()


@pytest.mark.parametrize("option", [("--port", "9000"), ("--secret-file", "key"), ("--accept-new",)], ids=" ".join)
def test_what_is_for_receivers_that_run_already(far: Far, small: Path, option: tuple[str, ...]) -> None:
    process = far.send(small, "far:in", *option)
    assert process.wait() == 2
    assert f"{option[0]} is for receivers that run already" in process.err
