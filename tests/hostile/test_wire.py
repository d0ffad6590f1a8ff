"""G7: what whoever is on the way can see, and what comes of it when it changes something there."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ftx import api
from ftx.errors import Refused
from ftx.net import handshake, keys, pairing, tls
from ftx.net.identity import Identity, fingerprint
from ftx.options import Exists
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.transfer import events
from tests.hostile import peer
from tests.support.files import MIB, fill, same
from tests.support.local import LocalReceiver, local_send
from tests.support.process import wait_until
from tests.support.proxy import Call, Proxy

NAME, TEXT = "annual-report", b"the wages of everybody"
SIZE = 6 * MIB
TAPE = 32 * 1024  #: bytes of a file that are looked for on the wire


# --- A sniffer -----------------------------------------------------------------------------------------


@pytest.fixture
def tree(shm: Path) -> Path:
    """A folder with a small file and one of several chunks."""
    folder = shm / f"{NAME}s"
    folder.mkdir()
    (folder / NAME).write_bytes(TEXT)
    fill(folder / f"{NAME}.tar", SIZE)
    return folder


def secrets_of(receiver: LocalReceiver, tree: Path, *configs: Path) -> dict[str, bytes]:
    """What nobody on the way may see."""
    large = (tree / f"{NAME}.tar").read_bytes()
    found = {"a name": NAME.encode(), "a small file": TEXT, "a large file": large[TAPE : TAPE + 64]}
    for config in {receiver.options.config_dir, *configs}:
        own, _ = keys.identity(config)
        found[f"the key of {config.name}"] = own.public
        found[f"the fingerprint of {config.name}"] = fingerprint(own.public).encode()
    return found


def seen(proxy: Proxy, secrets: dict[str, bytes]) -> list[str]:
    """Which of them have passed the wire."""
    everything = proxy.seen
    assert everything, "nothing has passed"
    return [what for what, data in secrets.items() if data in everything]


def whole(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy, **options: Any) -> None:
    assert local_send(shm, tree, proxy.port, **options).code == 0
    assert same(tree / f"{NAME}.tar", receiver.into / tree.name / f"{NAME}.tar")


def several_lanes(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy) -> None:
    whole(shm, tree, receiver, proxy, lanes=3)
    assert len(proxy.links) == 3
    assert sum(link.up.count for link in proxy.links) > SIZE


def cancelled(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy) -> None:
    stop = api.Stop()

    def interrupt() -> None:
        stop.request(2)
        time.sleep(0.3)  # nothing passes meanwhile

    proxy.up_faults = [Call(MIB, interrupt)]
    assert local_send(shm, tree, proxy.port, stop=stop, lanes=1).code == 130


def refused(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy) -> None:
    """A message about a file has its name in it."""
    (receiver.into / tree.name).mkdir()
    (receiver.into / tree.name / NAME).write_bytes(b"another")
    assert local_send(shm, tree, proxy.port).code == 9


def stranger(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy) -> None:
    assert local_send(shm, tree, proxy.port, config_dir=shm / "stranger").code == 8


def without_room(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy) -> None:
    """Both files are refused, and what is said of them has their names in it."""
    assert local_send(shm, tree, proxy.port).code == 7


def paired(shm: Path, tree: Path, receiver: LocalReceiver, proxy: Proxy) -> None:
    code = pairing.Codes(receiver.options.config_dir).make("stranger")
    assert local_send(shm, tree, proxy.port, config_dir=shm / "stranger", code=code).code == 0
    wait_until(lambda: receiver.of_type(events.Paired))
    assert code.encode() not in proxy.seen


RUNS = [whole, several_lanes, cancelled, refused, stranger, without_room, paired]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_g7_a_sniffer_sees_nothing(shm: Path, tree: Path, run: Callable[..., None]) -> None:
    options = {"reserve": 1 << 60} if run is without_room else {}
    with LocalReceiver(shm, exists=Exists.FAIL, **options) as receiver, Proxy(receiver.port, record=True) as proxy:
        run(shm, tree, receiver, proxy)
        assert seen(proxy, secrets_of(receiver, tree, shm / "stranger")) == []


def test_a_sniffer_sees_all_where_both_said_plain(shm: Path, tree: Path) -> None:
    """So it would see what there is to be seen."""
    with LocalReceiver(shm, plain=True) as receiver, Proxy(receiver.port, record=True) as proxy:
        whole(shm, tree, receiver, proxy, plain=True)
        secrets = {what: data for what, data in secrets_of(receiver, tree).items() if "fingerprint" not in what}
        assert seen(proxy, secrets) == list(secrets)


# --- Somebody in the middle ----------------------------------------------------------------------------


class Middle:
    """Ends TLS with a certificate of its own, and passes on what is said beneath.

    Attributes:
        said: by each side, in clear.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.said = {"dialer": bytearray(), "listener": bytearray()}
        self._context, _ = tls.listening(peer.NOWHERE, Identity(b"m" * 32))
        self._thread = threading.Thread(target=self._serve, name="middle")

    def _serve(self) -> None:
        with suppress(OSError):
            dialer = self._server.accept()[0]
            with self._context.wrap_socket(dialer, server_side=True) as to_dialer:
                listener = peer.connected(self._target)
                with tls.dialing().wrap_socket(listener) as to_listener:
                    other = threading.Thread(target=self._pass_on, args=(to_listener, to_dialer, "listener"))
                    other.start()
                    self._pass_on(to_dialer, to_listener, "dialer")
                    other.join()

    def _pass_on(self, source: ssl.SSLSocket, sink: ssl.SSLSocket, who: str) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.said[who] += data
                sink.sendall(data)
        for sock in (sink, source):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Middle:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def heard(self, who: str) -> list[type[m.Message] | type[m.Unknown]]:
        """The frames that one side has said, but for those that mean nothing."""
        data, found = bytes(self.said[who]), []
        while data:
            header = codec.decode_header(data)
            size = codec.HEADER_SIZE + header.length
            if not isinstance(message := codec.decode_body(header, data[codec.HEADER_SIZE : size]), m.Unknown):
                found.append(type(message))
            data = data[size:]
        return found


@pytest.mark.parametrize("blind", [False, True], ids=["the listener refuses", "the dialer refuses"])
@pytest.mark.parametrize("what", ["same user", "secret", "open", "on file"])
def test_g7_somebody_in_the_middle_with_a_certificate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, blind: bool
) -> None:
    """Both HELLOs and PROOFs are passed on. A listener that looks at no signature shows what the dialer does."""
    if blind:
        monkeypatch.setattr(handshake, "_check_signature", lambda *_: None)
    source = fill(tmp_path / NAME, 1000)
    secret = tmp_path / "secret"
    keys.secret(secret, make_for=bytes(32))
    secret.write_bytes(secret.read_bytes().split()[0])
    given = {"secret_file": secret} if what == "secret" else {}
    config = tmp_path / ("config" if what in ("same user", "on file") else "other")
    with LocalReceiver(tmp_path, open=what == "open", **given) as receiver:
        if what == "on file":
            assert local_send(tmp_path, source, receiver.port).code == 0
            wait_until(lambda: receiver.of_type(events.SessionEnd))
        before = len(receiver.of_type(events.SessionUp))
        with Middle(receiver.port) as middle:
            finished = local_send(tmp_path, source, middle.port, config_dir=config, accept_new=what == "open", **given)
        assert finished.code == Refused.exit_code
        # It makes no mac over another certificate either, so such a listener says the same to who has the secret.
        assert "could not prove" in finished.message or (blind and what == "secret")
        assert middle.heard("dialer") == [m.Hello, m.Proof]
        assert middle.heard("listener")[1:] == ([m.Proof] if blind and what != "secret" else [m.Error])
        assert len(receiver.of_type(events.SessionUp)) == before
        if not blind:
            wait_until(lambda: "could not prove that it holds the key" in receiver.warned())


# --- TLS is stripped -----------------------------------------------------------------------------------


@contextmanager
def answering(data: bytes) -> Iterator[tuple[int, bytearray]]:
    """Whoever answers each dialer with this, in clear: its port, and what dialers have said."""
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                with sock, suppress(OSError):
                    sock.settimeout(peer.PATIENCE_S)
                    said.extend(sock.recv(65536))
                    sock.sendall(data)
                    while more := sock.recv(65536):
                        said.extend(more)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], said
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


PLAIN_HELLO = codec.encode(m.Hello(m.MAGIC, 1, 1, bytes(32), Identity(b"m" * 32).public))


CLEAR = {
    "hello": PLAIN_HELLO,
    "hello and proof": PLAIN_HELLO + codec.encode(m.Proof(bytes(64), (m.ProofItem(0, bytes(32)),))),
    "data": codec.encode_data(1, 0, bytes(16), 16) + bytes(16),
} | {f"error {code}": codec.encode(m.Error(code, "in clear")) for code in (1, 2, 3, 7, 16, 48, 64, 65, 66, 67, 80, 999)}


@pytest.mark.parametrize("answer", CLEAR.values(), ids=CLEAR)
def test_g7_a_dialer_never_goes_on_in_clear(tmp_path: Path, answer: bytes) -> None:
    """Nor does what anybody on the way can say make it ask for a pairing code, or dial again."""
    asked: list[str] = []
    source = fill(tmp_path / NAME, 1000)
    dialled: list[events.Event] = []

    def code() -> str:
        asked.append("for a code")
        return "0000-acorn-actor"

    with answering(answer) as (port, said):
        finished = local_send(
            tmp_path, source, port, code=code, retry_for_s=5.0, accept_new=True, on_event=dialled.append
        )
    is_error = answer[0] == m.Type.ERROR
    assert finished.code == (Refused.exit_code if is_error else 4)
    assert asked == [] and not [event for event in dialled if isinstance(event, events.Retry)]
    # One dialer, its TLS hello, and nothing in clear but that it will not have it.
    records = bytes(said)
    assert records[0] == 0x16 and NAME.encode() not in records
    assert keys.identity(tmp_path / "config")[0].public not in records
    assert len(records) <= 5 + int.from_bytes(records[3:5], "big")


@pytest.mark.parametrize("plain", ["the sender", "the receiver"])
@pytest.mark.parametrize("dials", ["send", "pair"])
def test_g7_one_side_is_plain_and_the_other_is_not(tmp_path: Path, plain: str, dials: str) -> None:
    source = fill(tmp_path / NAME, 1000)
    here = plain == "the sender"
    with (
        LocalReceiver(tmp_path, plain=not here, open=True) as receiver,
        Proxy(receiver.port, record=True) as proxy,
    ):
        if dials == "send":
            finished = local_send(tmp_path, source, proxy.port, plain=here, accept_new=True)
        else:
            config = tmp_path / "config"
            options = api.PairOptions(host="127.0.0.1", port=proxy.port, plain=here, config_dir=config)
            finished = api.pair(options, "0000-acorn-actor")
        wait_until(receiver.warned)
        assert NAME.encode() not in proxy.seen
        assert len(proxy.links) == 1
        assert proxy.up < 1000
    other = "the receiver" if here else "the sender"
    assert finished.code == Refused.exit_code
    for text in (finished.message, receiver.warned()):
        assert f"{plain} was started with `--plain`, and {other} without" in text
    assert not receiver.of_type(events.SessionUp)
