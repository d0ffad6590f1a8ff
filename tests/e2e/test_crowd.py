"""G9: many senders at once, and none of them waits for another one that is slow, stuck or gone."""

from __future__ import annotations

import secrets
import signal
import socket
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from ftx.errors import FtxError, NotPaired, Refused
from ftx.net import handshake, keys
from ftx.net.handshake import Trust
from ftx.net.identity import Identity
from ftx.net.lane import Lane
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.protocol.manifest import ChunkDigests, DigestName, Grid
from ftx.protocol.messages import Method, Role
from tests.hostile import peer
from tests.support.crowd import Crowd
from tests.support.files import MIB, fill, partials, same
from tests.support.local import local_send
from tests.support.meter import Meter
from tests.support.process import Receiver, send, sender, wait_until
from tests.support.proxy import Call, Dribble, Proxy, Stall
from tests.support.trees import assert_same

#: In the default run it is smaller: on a busy machine many more could not even finish their handshakes in time.
CROWD, LARGE_CROWD = 60, 200
#: Of the receiver's memory, with a whole crowd connected: some 40 MiB of Python, and a buffer of a chunk for each.
MOST = 200 * MIB
XXH3 = DigestName.XXH3_128.function
REFUSED = 64


# --- what the senders have -----------------------------------------------------------------------------


def _files(base: Path, count: int, size: int = 64 * 1024) -> list[list[Path]]:
    """For each sender one file of its own, ``size`` to four times as large."""
    (base / "from").mkdir()
    return [[fill(base / "from" / f"{number}", size + number * 3 * size // count, number)] for number in range(count)]


def _tree(path: Path, seed: int) -> Path:
    """A small tree: two folders, some small files, and one of more than a chunk."""
    (path / "sub").mkdir(parents=True)
    for number in range(6):
        fill(path / "sub" / f"{number}", 1000 * number, seed=seed + number)
    fill(path / "large", MIB + seed, seed=seed)
    return path


def _all_well(results: list[dict[str, object]]) -> None:
    assert Counter((result["code"], result["message"]) for result in results) == {(0, ""): len(results)}


# --- peers that are in the way -------------------------------------------------------------------------


@contextmanager
def _session(base: Path, port: int, lanes: int = 1) -> Iterator[tuple[Lane, m.Open]]:
    """A session of this very user, of a job that nobody else has, right behind OPENED."""
    own, _ = keys.identity(base / "config")
    with closing(Lane(peer.connected(port), dialer=True)) as lane:
        handshake.dial(lane, own, {}, Trust("there"), plain=False)
        session, process, job = secrets.token_bytes(16), secrets.token_bytes(16), secrets.token_bytes(32)
        lane.order.opened(Role.SENDER)
        request = m.Open(session, process, job, Role.SENDER, m.Mode.TRANSFER, lanes, 60, DigestName.XXH3_128, b"")
        handshake.open_session(lane, request, peer.PATIENCE_S)
        yield lane, request


@contextmanager
def _in_the_handshake(port: int, said: bytes) -> Iterator[None]:
    """A connection that says so much and no more."""
    with peer.connected(port) as sock:
        sock.sendall(said)
        yield


@contextmanager
def _dribbling(base: Path, port: int) -> Iterator[None]:
    """In the middle of a chunk, byte by byte, until it counts as silent: so few bytes are no sign of life."""
    with _session(base, port) as (lane, _):
        payload = bytes(range(256)) * (MIB // 256)
        lane.send(m.Folder(b"", 1, (peer.offered(secrets.token_hex(8).encode(), 2 * MIB),)))
        peer.heard(lane, m.Want)
        lane.send_raw(codec.encode_data(1, 0, XXH3(payload), MIB) + payload[:1000])
        over = threading.Event()

        def dribble() -> None:
            with suppress(OSError):
                for byte in payload[1000:]:
                    if over.wait(1.0):
                        break
                    lane.send_raw(bytes([byte]))

        thread = threading.Thread(target=dribble, name="dribble")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def _deaf(base: Path, port: int) -> Iterator[None]:
    """Offers all that it may and reads no answer: the receiver's writing thread for it gets stuck."""
    own, _ = keys.identity(base / "config")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    with closing(Lane(sock, dialer=True)) as lane:
        handshake.dial(lane, own, {}, Trust("there"), plain=False)
        lane.order.opened(Role.SENDER)
        ids = secrets.token_bytes(16), secrets.token_bytes(16), secrets.token_bytes(32)
        request = m.Open(*ids, Role.SENDER, m.Mode.TRANSFER, 1, 60, DigestName.XXH3_128, b"")
        opened = handshake.open_session(lane, request, peer.PATIENCE_S)
        # A name that is refused gets the longest answer.
        name = b"x" * 200 + b"/"
        for first in range(1, opened.window - 50, 50):
            lane.send(m.Folder(b"y" * 200, first, tuple(peer.offered(name, 1) for _ in range(50))))
        yield


@contextmanager
def _trouble(base: Path, port: int, times: int = 1) -> Iterator[int]:
    """All of them at once; how many have a session."""
    hello = codec.encode(m.Hello(m.MAGIC, 1, 1, bytes(32), bytes(32)))
    with ExitStack() as many:
        for _ in range(times):
            many.enter_context(_in_the_handshake(port, b""))
            many.enter_context(_in_the_handshake(port, hello[:5]))
            many.enter_context(_in_the_handshake(port, hello))
            many.enter_context(_dribbling(base, port))
            many.enter_context(_deaf(base, port))
        yield 2 * times


# --- a crowd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [CROWD, pytest.param(LARGE_CROWD, marks=pytest.mark.long)])
def test_G9_G8_a_crowd_between_peers_that_are_stuck(shm: Path, count: int) -> None:
    """Nothing is lost, nobody is refused, memory is bounded; and whoever is stuck is so still when all are done."""
    runs = _files(shm, count)
    for number in range(0, count, 10):
        runs[number] = [_tree(shm / f"tree {number}", number)]
    with Receiver(shm, forked=False) as receiver, _trouble(shm, receiver.port, 5):
        with Crowd(shm, receiver.port, runs) as crowd:
            crowd.go()
            _all_well(crowd.results())
        # Whoever dribbles counts as silent after 30 s; until then nobody has ended but the senders.
        wait_until(lambda: len(receiver.of_type("session_end")) >= count)
        assert Counter(end["code"] for end in receiver.of_type("session_end"))[0] >= count
        for (path,) in runs:
            if path.is_dir():
                assert_same(path, receiver.into / path.name)
            else:
                assert same(path, receiver.into / path.name)
        print(f"{receiver.peak_rss() / MIB:.0f} MiB")
        assert receiver.peak_rss() < MOST


def test_G9_a_crowd_with_lanes(shm: Path) -> None:
    runs = _files(shm, 40, MIB)
    with Receiver(shm, forked=False) as receiver:
        with Crowd(shm, receiver.port, runs, lanes=4) as crowd:
            crowd.go()
            _all_well(crowd.results())
        assert all(same(path, receiver.into / path.name) for (path,) in runs)
        assert {event["lanes"] for event in receiver.of_type("session")} == {4}
        assert receiver.peak_rss() < MOST


@pytest.mark.long
@pytest.mark.parametrize("lanes", [1, 4])
def test_G9_nobody_waits_much_longer_than_the_others(shm: Path, lanes: int) -> None:
    runs = _files(shm, LARGE_CROWD)
    with Receiver(shm, forked=False) as receiver, _trouble(shm, receiver.port, 5):
        with Crowd(shm, receiver.port, runs, lanes=lanes) as crowd:
            crowd.go()
            results = crowd.results()
        _all_well(results)
        took = sorted(result["seconds"] for result in results)
        median = statistics.median(took)
        print(f"{lanes} lanes: {took[0]:.2f} s to {took[-1]:.2f} s, median {median:.2f} s")
        assert took[-1] < 5 * median
        assert receiver.peak_rss() < MOST


@pytest.mark.long
def test_G9_a_crowd_with_much_to_send(shm: Path) -> None:
    """The receiver is busy with all of them for longer than a handshake may take."""
    runs = _files(shm, LARGE_CROWD, 2 * MIB)
    with Receiver(shm) as receiver:
        with Crowd(shm, receiver.port, runs) as crowd:
            crowd.go()
            results = crowd.results()
        _all_well(results)
        assert all(same(path, receiver.into / path.name) for (path,) in runs)


@pytest.mark.alone
def test_G9_stuck_peers_do_not_delay_a_sender(shm: Path) -> None:
    """Every kind of them is there, many times, and stays; a sender needs what it needs alone, or nearly so."""
    with Receiver(shm) as receiver, _trouble(shm, receiver.port, 8) as stuck:
        took = []
        for number in range(4):
            sent = send(shm, fill(shm / "file", 3 * MIB + number, seed=number), receiver.port)
            assert sent.wait() == 0, sent.err
            took.append(sent.finished["seconds"])
            assert same(shm / "file", receiver.into / "file")
        # Any of them would hold for 10 s at least: that is what a handshake may take, and the timeout is 30 s.
        assert min(took) < 5.0
        wait_until(lambda: len(receiver.of_type("session_end")) >= 4)
        assert [end["code"] for end in receiver.of_type("session_end")] == [0] * 4
        assert len(receiver.of_type("session")) == stuck + 4


def test_G9_a_slow_link_does_not_delay_a_sender(shm: Path) -> None:
    """A real sender behind a link that passes on some bytes a second."""
    slow = fill(shm / "slow", 2 * MIB)
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[Dribble(600_000, step=64, wait_s=0.5)]) as proxy:
        with sender(shm, slow, proxy.port) as process:
            wait_until(lambda: proxy.links and proxy.up >= 600_000)
            _files(shm, 10)
            for number in range(3):
                sent = send(shm, shm / "from" / f"{number}", receiver.port)
                assert sent.wait() == 0, sent.err
            assert process.popen.poll() is None
        assert partials(receiver.into)
        receiver.kill()  # or the proxy would go on dribbling


# --- two jobs, one name --------------------------------------------------------------------------------


class _Held:
    """A link that stops at a byte, and goes on when it is told to."""

    def __init__(self, at: int) -> None:
        self.there, self._go_on = threading.Event(), threading.Event()
        self.fault = Call(at, self._hold)

    def _hold(self) -> None:
        self.there.set()
        self._go_on.wait(40)

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


@pytest.mark.parametrize("lanes", [1, 2])
def test_G9_two_jobs_meet_on_one_path(shm: Path, lanes: int) -> None:
    """The later one is refused for that entry alone, and all else of it arrives; the first is intact."""
    one, other = _tree(shm / "1" / "tree", 1), _tree(shm / "2" / "tree", 2)
    fill(other / "another", 100_000, seed=3)
    fill(one / "large", 8 * MIB, seed=4)
    with Receiver(shm) as receiver, Proxy(receiver.port, on=None) as proxy, _Held(MIB) as held:
        proxy.up_faults = [held.fault]
        with sender(shm, one, proxy.port, "--lanes", str(lanes)) as first:
            assert held.there.wait(40)
            # Small files of the first run may be under way or there, so those of the second are not counted.
            second = send(shm, other, receiver.port, "--lanes", str(lanes))
            assert second.wait() == 9, second.err
            failed = {entry["path"]: entry for entry in second.of_type("entry") if entry["state"] == "failed"}
            assert failed["tree/large"]["code"] == 7
            assert "another transfer" in failed["tree/large"]["message"]
            assert same(other / "another", receiver.into / "tree" / "another")
            with held:
                pass
            assert first.wait() == 0, first.err
        assert same(one / "large", receiver.into / "tree" / "large")
        assert not partials(receiver.into)


def test_G9_many_jobs_meet_on_one_path(shm: Path) -> None:
    """Whoever of them is refused is told so; what is there in the end is one of them, whole."""
    runs = []
    for number in range(30):
        (shm / f"{number}").mkdir()
        runs.append([fill(shm / f"{number}" / "file", 200_000 + number, seed=number)])
    with Receiver(shm) as receiver:
        with Crowd(shm, receiver.port, runs) as crowd:
            crowd.go()
            results = crowd.results()
        codes = Counter(result["code"] for result in results)
        assert set(codes) <= {0, 7} and codes[0] >= 1
        assert all("another transfer" in result["message"] for result in results if result["code"])
        done = [path for (path,), result in zip(runs, results, strict=True) if result["code"] == 0]
        assert any(same(path, receiver.into / "file") for path in done)
        assert not partials(receiver.into)


# --- one job, many runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_tree_that_is_sent_twice_at_once(shm: Path, lanes: int) -> None:
    """The newer run takes over; the older ends with 8, and does not come back."""
    top = _tree(shm / "tree", 1)
    fill(top / "larger", 12 * MIB, seed=2)
    with Receiver(shm) as receiver, Proxy(receiver.port, up=[Stall(MIB)], on=None) as proxy:
        with sender(shm, top, proxy.port, "--lanes", str(lanes)) as older:
            wait_until(lambda: any(link.up.count >= MIB for link in proxy.links))
            newer = send(shm, top, receiver.port, "--lanes", str(lanes))
            assert newer.wait() == 0, newer.err
            assert older.wait() == 8, older.err
            assert "newer run" in older.finished["message"]
            assert not older.of_type("retry")
            assert len(older.of_type("session")) == 1
        assert_same(top, receiver.into / "tree")
        assert not partials(receiver.into)


def test_one_job_is_started_many_times_at_once(shm: Path) -> None:
    """One at least is done; the others had done it already, or were taken over. Nobody is refused, nobody retries."""
    top = _tree(shm / "tree", 1)
    fill(top / "larger", 4 * MIB, seed=2)
    with Receiver(shm) as receiver:
        with Crowd(shm, receiver.port, [[top]] * 24, retry_for_s=30.0) as crowd:
            crowd.go()
            results = crowd.results()
        codes = Counter(result["code"] for result in results)
        print(codes, Counter(result["message"] for result in results))
        assert set(codes) <= {0, 8} and codes[0] >= 1
        assert all("newer run" in result["message"] for result in results if result["code"])
        assert_same(top, receiver.into / "tree")
        assert not partials(receiver.into)


@pytest.mark.alone
@pytest.mark.parametrize("lanes", [1, 4])
def test_G2_a_killed_job_goes_on_at_once(shm: Path, lanes: int) -> None:
    """Killed and started again in the same moment, over and over: nobody waits for a ghost, nothing is busy."""
    source = fill(shm / "file", 48 * MIB)
    with Receiver(shm) as receiver, Meter(receiver.port) as meter:
        for _ in range(3):
            meter.at = meter.up + 6 * MIB
            with sender(shm, source, meter.port, "--lanes", str(lanes)) as process:
                meter.call = process.popen.kill
                assert process.wait() == -signal.SIGKILL
        last = send(shm, source, receiver.port, "--lanes", str(lanes))
        assert last.wait() == 0, last.err
        # It would take 30 s to see that a link is dead, or that a partial is not let go of.
        assert last.finished["seconds"] < 10.0
        assert not last.of_type("retry")
        assert last.finished["bytes_reused"] > 0
        assert same(source, receiver.into / "file")
        assert not [entry for entry in receiver.of_type("entry") if entry["state"] == "failed"]


@pytest.mark.alone
def test_G2_a_killed_crowd_goes_on_at_once(shm: Path) -> None:
    runs = _files(shm, 20, 2 * MIB)
    with Receiver(shm) as receiver:
        with Crowd(shm, receiver.port, runs) as crowd:
            crowd.go()
            wait_until(lambda: len(receiver.of_type("session_end")) >= 3)
        with Crowd(shm, receiver.port, runs) as crowd:
            crowd.go()
            results = crowd.results()
        _all_well(results)
        assert max(result["seconds"] for result in results) < 25.0
        assert all(same(path, receiver.into / path.name) for (path,) in runs)
        assert not partials(receiver.into)


# --- lanes that nobody has granted ---------------------------------------------------------------------


def _attach(port: int, session: bytes, number: int, who: Identity, secret: Path | None = None) -> FtxError:
    """How an ATTACH is refused."""
    given = {Method.SECRET: keys.secret(secret).key} if secret else {}
    with closing(Lane(peer.connected(port), dialer=True)) as lane:
        try:
            handshake.dial(lane, who, given, peer.ANYONE, plain=False)
            handshake.attach(lane, m.Attach(session, number), Role.SENDER)
        except FtxError as error:
            return error
    raise AssertionError("it was let in")


@pytest.mark.parametrize("lanes", [1, 3])
def test_G9_lanes_that_are_not_to_be_had(shm: Path, lanes: int) -> None:
    """Refused on that connection alone; the session that was meant goes on, and so does everybody else's."""
    source, secret = fill(shm / "file", 24 * MIB), shm / "secret"
    with (
        Receiver(shm, "--secret-file", secret) as receiver,
        Proxy(receiver.port, on=None) as proxy,
        _Held(3 * MIB) as held,
    ):
        proxy.up_faults = [held.fault]
        with sender(shm, source, proxy.port, "--lanes", str(lanes), "--retry-for", "0") as process:
            assert held.there.wait(40)
            wait_until(lambda: len(proxy.links) == lanes and all(link.down.count > 150 for link in proxy.links))
            session = bytes.fromhex(process.event("session")["session"])
            own, _ = keys.identity(shm / "config")
            stranger = Identity(secrets.token_bytes(32))
            assert type(_attach(receiver.port, session, 2, stranger)) is NotPaired
            refusals = [_attach(receiver.port, session, number, stranger, secret) for number in (1, 2, 9)]
            refusals += [_attach(receiver.port, secrets.token_bytes(16), 2, own)]
            taken = range(lanes + 1)
            refusals += [_attach(receiver.port, session, number, own) for number in (*taken, 64, 255)]
            assert {(type(error), error.from_peer) for error in refusals} == {(Refused, True)}
            assert Refused.wire == REFUSED
            # One that its session has not granted, though it is not taken.
            more = _attach(receiver.port, session, lanes + 1, own)
            assert (type(more), more.from_peer) == (Refused, True)
            assert local_send(shm, fill(shm / "other", 100), receiver.port).code == 0
            with held:
                pass
            assert process.wait() == 0, process.err
            assert not process.of_type("retry")
        assert same(source, receiver.into / "file")


def test_g12_granted_lanes_come_late_or_never(shm: Path) -> None:
    """Of eight one joins, in no order, and in the middle of the session."""
    source = fill(shm / "file", 2 * MIB)
    payloads = source.read_bytes()[:MIB], source.read_bytes()[MIB:]
    digests = ChunkDigests(Grid.of(2 * MIB), DigestName.XXH3_128)
    with Receiver(shm, "--timeout", "5") as receiver, _session(shm, receiver.port, lanes=8) as (lane, request):
        lane.send(m.Folder(b"", 1, (peer.offered(b"file", 2 * MIB),)))
        peer.heard(lane, m.Want)
        assert receiver.event("session")["lanes"] == 8
        own, _ = keys.identity(shm / "config")
        with closing(Lane(peer.connected(receiver.port), dialer=True)) as late:
            for index, (way, payload) in enumerate(zip((lane, late), payloads, strict=True)):
                if way is late:
                    handshake.dial(late, own, {}, Trust("there"), plain=False)
                    handshake.attach(late, m.Attach(request.session, 5), Role.SENDER)
                digests.set(index, XXH3(payload))
                way.queue_data(m.Data(1, index, XXH3(payload), MIB), payload)
            lane.send(m.Finish(1, digests.root()))
            peer.heard(lane, m.Receipt)
            lane.send(m.Bye(1, 0, 0))
            peer.heard(lane, m.Bye)
        assert same(source, receiver.into / "file")


def test_G9_a_session_that_is_over_has_no_lanes(shm: Path) -> None:
    source = fill(shm / "file", 100)
    with Receiver(shm) as receiver:
        sent = send(shm, source, receiver.port)
        session = bytes.fromhex(sent.event("session")["session"])
        receiver.event("session_end")
        own, _ = keys.identity(shm / "config")
        assert type(_attach(receiver.port, session, 2, own)) is Refused
        assert send(shm, source, receiver.port).wait() == 0
