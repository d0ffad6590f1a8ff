"""G9: who has not been let in cannot keep out who may come in."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from ftx.errors import LinkLost, ProtocolError, Refused, UsageError
from ftx.net import handshake, keys, pairing, tls
from ftx.net import lane as lane_module
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.net.pairing import Exchange
from ftx.options import ReceiveOptions
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName
from ftx.protocol.messages import Role
from ftx.protocol.session import Side
from ftx.transfer import registry
from ftx.transfer.registry import Receiver
from tests.hostile import keyed, peer
from tests.support import process
from tests.support.files import MIB, fill, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until

HELLO = codec.encode(m.Hello(m.MAGIC, 1, 1, bytes(32), bytes(32)))
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
WRONG_PROOF = codec.encode(m.Proof(b"", (m.ProofItem(m.Method.SECRET, bytes(32)),)))


def is_closed(sock: socket.socket, within_s: float = 5.0) -> bool:
    """Whether the other side ends the connection in time; what it says before is passed over."""
    deadline = time.monotonic() + within_s
    try:
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(65536):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("more", [False, True])
def test_g9_a_stranger_may_send_few_frames(more: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lane = Lane(ours, dialer=False)
        lane.deadline_s = time.monotonic() + peer.PATIENCE_S
        idle = lane_module.MAX_GREETING - 2 + more
        theirs.sendall(HELLO + codec.encode_grease(0, b"") * idle + codec.encode(m.Proof(b"", ())))
        assert isinstance(lane.receive()[0], m.Hello)
        if more:
            with pytest.raises(ProtocolError, match="before OPEN"):
                lane.receive()
        else:
            assert isinstance(lane.receive()[0], m.Proof)


def test_g9_a_dialer_waits_for_opened_as_long_as_it_is_told_to() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lane = Lane(ours, dialer=True)
        lane.deadline_s = time.monotonic() + peer.PATIENCE_S
        busy = codec.encode(m.Busy(0)) * (2 * lane_module.MAX_GREETING)
        theirs.sendall(HELLO + codec.encode(m.Proof(b"", ())) + busy + codec.encode(m.Opened(1, 64)))
        for _ in range(2 + 2 * lane_module.MAX_GREETING):
            lane.receive()
        assert isinstance(lane.receive()[0], m.Opened)


def test_g9_who_is_being_refused_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal takes seconds if the stranger does not go: it must not be a way around the limit."""
    monkeypatch.setattr(registry, "MAX_STRANGERS", 2)
    monkeypatch.setattr(m, "DRAIN_S", 20)
    with LocalReceiver(tmp_path, plain=True) as receiver:
        socks = []
        for _ in range(4):
            socks.append(peer.connected(receiver.port))
            socks[-1].sendall(HELLO + WRONG_PROOF)
            assert socks[-1].recv(1) == b"\x01"
        assert [is_closed(sock) for sock in socks[:2]] == [True, True]
        assert not is_closed(socks[-1], 0.2)
        for sock in socks:
            sock.close()


def test_g9_the_address_that_crowds_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender far away needs longer for its handshake than a flood takes to fill every place."""
    monkeypatch.setattr(registry, "MAX_STRANGERS", 4)
    with LocalReceiver(tmp_path, plain=True) as receiver, peer.connected(receiver.port, "127.0.0.2") as slow:
        flood = [peer.connected(receiver.port) for _ in range(12)]
        assert all(is_closed(sock) for sock in flood[:8])
        slow.sendall(HELLO)
        assert slow.recv(1) == b"\x01"
        for sock in flood:
            sock.close()


def test_g9_a_sender_comes_in_through_a_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_STRANGERS", 16)
    source = fill(tmp_path / "f", 1000)
    with LocalReceiver(tmp_path) as receiver:
        flood = []
        for number in range(200):
            flood.append(peer.connected(receiver.port, "127.0.0.3"))
            flood[-1].setblocking(False)
            flood[-1].send(HELLO + WRONG_PROOF)
            if number % 50 == 49:
                source.write_bytes(b"%d" % number)
                assert local_send(tmp_path, source, receiver.port).code == 0
        for sock in flood:
            sock.close()


#: A flood makes so many connections each tick, and goes on with a tenth of those that it has.
TICK_S, PER_TICK = 0.05, 25


class Flood:
    """Connections from several addresses that never finish their handshake. Where one is closed, another one comes.

    Attributes:
        made: how many there have been.
    """

    SOURCES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "::1")

    def __init__(self, port: int, six: int | None, at_once: int) -> None:
        self._ports = {False: port, True: six}
        self._at_once = at_once
        self._socks: list[socket.socket] = []
        self._over = threading.Event()
        self.made = 0
        self._thread = threading.Thread(target=self._run, name="flood")

    def _connect(self) -> None:
        source = self.SOURCES[self.made % (len(self.SOURCES) if self._ports[True] else 3)]
        port = self._ports[":" in source]
        assert port is not None
        self.made += 1
        sock = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
        self._socks.append(sock)
        sock.bind((source, 0))
        sock.settimeout(0.5)
        with suppress(OSError):
            sock.connect(("::1" if ":" in source else "127.0.0.1", port))
            sock.sendall(self.BEGIN[self.made // len(self.SOURCES) % len(self.BEGIN)])

    #: Some are silent, some have begun something that they go on with byte by byte.
    BEGIN = (b"", keyed.client_hello()[:60], keyed.client_hello(), HELLO, HELLO[:20])

    def _run(self) -> None:
        turn = 0
        while not self._over.wait(TICK_S):
            for _ in range(min(PER_TICK, self._at_once - len(self._socks))):
                self._connect()
            turn += 1
            self._socks = [sock for at, sock in enumerate(self._socks) if (at + turn) % 10 or self._goes_on(sock)]

    @staticmethod
    def _goes_on(sock: socket.socket) -> bool:
        """With another byte, if it may."""
        sock.settimeout(0)
        try:
            if sock.recv(65536):
                sock.send(b"\0")
                return True
        except BlockingIOError:
            with suppress(OSError):
                sock.send(b"\0")
            return True
        except OSError:
            pass
        sock.close()
        return False

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        for sock in self._socks:
            sock.close()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def flooded(folder: Path, source: Path, at_once: int, *, most_mib: int) -> tuple[float, float]:
    """Seconds that a sender needs without and with a flood of so many, which began before it."""
    bind = ("--bind", "::1") if has_ipv6() else ()
    with process.Receiver(folder, *bind, forked=False) as receiver:
        ports = {":" in host: port for host, port in receiver.event("listening")["addresses"]}
        flood = Flood(ports[False], ports.get(True), at_once)
        times = []
        for number in range(2):
            with ExitStack() as stack:
                if number:
                    stack.enter_context(flood)
                    wait_until(lambda: flood.made >= at_once)
                sent = process.send(folder, source, ports[False], "--timeout", "20", "--retry-for", "0")
                assert sent.wait() == 0, sent.finished["message"]
                assert same(source, receiver.into / source.name)
                times.append(sent.finished["seconds"])
                threads = len(os.listdir(f"/proc/{receiver.popen.pid}/task"))
            (receiver.into / source.name).unlink()
        assert flood.made >= at_once
        assert threads <= registry.MAX_STRANGERS + 30
        assert receiver.peak_rss() < most_mib * MIB, receiver.peak_rss() // MIB
        assert not [event for event in receiver.of_type("warning") if "a bug in ftx" in event["message"]]
        print(f"{flood.made} connections, {threads} threads, {receiver.peak_rss() // MIB} MiB, {times} s")
    return times[0], times[1]


@needs_proc
def test_g8_g9_a_flood_keeps_no_sender_out(shm: Path) -> None:
    flooded(shm, fill(shm / "f", 64 * MIB), 600, most_mib=200)


@needs_proc
@pytest.mark.long
def test_g9_two_thousand_strangers_take_less_than_half_of_a_senders_time(shm: Path) -> None:
    without, under = flooded(shm, fill(shm / "f", 2048 * MIB), 2000, most_mib=250)
    assert under <= 2 * without + 1


@pytest.mark.parametrize("what", ["a TLS hello", "a TLS record"])
def test_g9_who_dribbles_tls_has_no_more_time_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(m, "HANDSHAKE_S", 0.5)
    with LocalReceiver(tmp_path) as receiver:
        if what == "a TLS hello":
            sock, data = peer.connected(receiver.port), keyed.client_hello()
        else:
            dialer = keyed.Keyed(tmp_path, receiver.port)
            sock, data = dialer.sock, dialer.said(HELLO)
        with sock:
            for number in range(50):
                sock.sendall(data[number : number + 1])
                if is_closed(sock, 0.1):
                    break
        assert number < 20


def test_g8_who_asks_for_new_keys_again_and_again_is_sent_away(tmp_path: Path) -> None:
    """TLS answers each time, and the answers would wait until something else is said."""
    with LocalReceiver(tmp_path) as receiver:
        dialer = keyed.Keyed(tmp_path, receiver.port)
        with dialer.sock:
            dialer.sock.sendall(b"".join(dialer.asks_for_keys() for _ in range(100)) + dialer.said(HELLO))
            assert len(dialer.sock.recv(65536)) > 2000  # it is heard, and answered
            dialer.sock.sendall(b"".join(dialer.asks_for_keys() for _ in range(400)))
            assert is_closed(dialer.sock)
        wait_until(lambda: "asks for new keys" in receiver.warned())


def test_g8_a_tls_handshake_is_short(tmp_path: Path) -> None:
    with LocalReceiver(tmp_path) as receiver, peer.connected(receiver.port) as sock:
        size = 100_000
        sock.sendall(keyed.record(0x16, b"\x01" + size.to_bytes(3, "big") + bytes(8000)))
        assert not is_closed(sock, 0.2)
        sock.sendall(keyed.record(0x16, bytes(10000)))
        assert is_closed(sock)
        wait_until(lambda: "a TLS handshake of more than" in receiver.warned())


@pytest.mark.parametrize("dialer", [True, False])
def test_g8_a_stranger_begins_no_large_frame(dialer: bool) -> None:
    """Its length alone would make room for it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lane = Lane(ours, dialer=dialer)
        lane.deadline_s = time.monotonic() + peer.PATIENCE_S
        theirs.sendall(HELLO)
        lane.receive()
        theirs.sendall(codec.HEADER.pack(m.Type.FOLDER, m.CRITICAL, 0, m.MAX_BODY[m.Type.FOLDER], 0))
        with pytest.raises(ProtocolError, match="in the handshake"):
            lane.receive()


def test_g8_who_waits_to_pair_takes_no_place_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not notice that its connection was closed to make room."""
    monkeypatch.setattr(registry, "MAX_STRANGERS", 4)
    for name, seconds in (("HANDSHAKE_S", 3), ("PAIR_S", 0.3), ("DRAIN_S", 0.1)):
        monkeypatch.setattr(m, name, seconds)
    pair = codec.encode(m.Pair(Exchange(Side.DIALER, "0000-acorn-actor").element))
    with LocalReceiver(tmp_path, plain=True) as receiver, ExitStack() as flood:
        for _ in range(pairing.MAX_WAITING + 30):
            flood.enter_context(peer.connected(receiver.port)).sendall(HELLO + pair)
        wait_until(lambda: receiver.warned().count(pairing.TOO_MANY) >= 20, patience_s=2)
        waiting = [thread for thread in threading.enumerate() if thread.name == "ftx-greet"]
        assert len(waiting) <= pairing.MAX_WAITING + 4


@pytest.mark.parametrize(("one", "other", "same"), [
    ("192.0.2.1", "192.0.2.2", False),
    ("::ffff:192.0.2.1", "192.0.2.1", True),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
    ("2001:db8::1", "2001:db8:0:1::1", False),
    ("fe80::1%eth0", "fe80::2%eth0", True),
    ("::1", "127.0.0.1", False),
    ("ssh", "127.0.0.1", False),
])  # fmt: skip
def test_g9_an_ipv6_network_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (registry._origin(one) == registry._origin(other)) is same


def test_g9_a_flood_from_one_ipv6_network_crowds_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_STRANGERS", 4)
    receiver = Receiver(ReceiveOptions(config_dir=tmp_path))
    monkeypatch.setattr(receiver, "_greet", lambda *_: None)
    with ExitStack() as stack:
        pairs = [stack.enter_context(closing(sock)) for _ in range(9) for sock in socket.socketpair()]
        receiver.connected(pairs[0], "192.0.2.1")
        receiver.connected(pairs[2], "2001:db8:0:1::1")
        for number in range(2, 9):
            receiver.connected(pairs[2 * number], f"2001:db8::{number}")
        assert [is_closed(sock, 0.1) for sock in pairs[1::2]] == [False] * 2 + [True] * 5 + [False] * 2


# --- Keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", [True, False])
def test_g11_a_key_that_is_a_pipe_is_not_waited_for(tmp_path: Path, listener: bool) -> None:
    os.mkfifo(tmp_path / "secret", 0o600)
    with pytest.raises(UsageError, match="not a file"):
        keys.secret(tmp_path / "secret", make_for=b"r" * 32 if listener else None)


def test_g7_a_certificate_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    """The private key is in its file."""
    own = Identity(bytes(32))
    _, fingerprint = tls.listening(tmp_path, own)
    assert tls.listening(tmp_path, own)[1] == fingerprint
    (tmp_path / tls.CERTIFICATE).chmod(0o640)
    with pytest.raises(UsageError, match="open to others"):
        tls.listening(tmp_path, own)


# --- Lanes ---------------------------------------------------------------------------------------------


@contextmanager
def dialled(port: int, identity: Identity) -> Iterator[Lane]:
    with closing(Lane(peer.connected(port), dialer=True)) as lane:
        handshake.dial(lane, identity, {}, peer.ANYONE, plain=False)
        lane.order.opened(Role.SENDER)
        yield lane


@contextmanager
def with_lanes(port: int, identity: Identity, session: bytes) -> Iterator[Lane]:
    """Lane 1 of a session that is granted three, and has taken none of the others."""
    with dialled(port, identity) as lane:
        request = m.Open(session, bytes(16), bytes(32), Role.SENDER, m.Mode.TRANSFER, 3, 0, DigestName.XXH3_128, b"")
        assert handshake.open_session(lane, request, peer.PATIENCE_S).lanes == 3
        yield lane


def test_g7_a_lane_is_for_the_peer_and_the_session_that_it_was_granted_to(tmp_path: Path) -> None:
    own, other, session = Identity(b"1" * 32), Identity(b"2" * 32), b"3" * 32
    with LocalReceiver(tmp_path, open=True) as receiver, with_lanes(receiver.port, own, session[:16]):
        for identity, wanted in ((other, session[:16]), (own, bytes(16))):
            with dialled(receiver.port, identity) as lane, pytest.raises(Refused, match="no such session"):
                handshake.attach(lane, m.Attach(wanted, 2), Role.SENDER)
        with dialled(receiver.port, own) as lane:
            handshake.attach(lane, m.Attach(session[:16], 2), Role.SENDER)


def test_g2_a_lane_that_breaks_ends_its_session(tmp_path: Path) -> None:
    """At the receiver too, though its sender says nothing of it: what was on that lane is not waited for."""
    own, session = Identity(bytes(32)), bytes(16)
    with LocalReceiver(tmp_path, open=True) as receiver, with_lanes(receiver.port, own, session) as first:
        with dialled(receiver.port, own) as lane:
            handshake.attach(lane, m.Attach(session, 2), Role.SENDER)
        first.deadline_s = time.monotonic() + 5
        with pytest.raises(LinkLost):
            peer.heard(first, m.Error)


def test_g2_a_run_that_comes_back_takes_over_from_itself(tmp_path: Path) -> None:
    """Its old session is a ghost, and it is not the older of two runs."""
    own = Identity(bytes(32))
    with LocalReceiver(tmp_path, open=True) as receiver, ExitStack() as sessions:
        for number in range(3):
            sessions.enter_context(with_lanes(receiver.port, own, bytes([number]) * 16))
