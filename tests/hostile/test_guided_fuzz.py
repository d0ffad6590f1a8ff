"""G7, G8: the same as ``test_fuzz``, led by coverage: what takes a way that nothing before it took is bent further.

So it finds by itself what has to be right for the next check to be reached. Nothing is random beside the seed in the
test's id: nonces are fixed, so a proof that holds can be kept and bent.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from types import CodeType, FrameType
from typing import Any

import pytest

from ftx.errors import FtxError
from ftx.net import handshake
from ftx.net.lane import Lane
from ftx.protocol import codec, proof
from ftx.protocol import messages as m
from ftx.protocol.messages import Method
from ftx.protocol.session import Side
from tests.hostile import test_fuzz as fuzz
from tests.hostile.test_fuzz import CODE, DIALER, KEYS, LISTENER, any_frame, bent, frames, resealed

#: Cases of each day, and of a long run.
FEW, MANY = 600, 60_000
cases = pytest.mark.parametrize(
    ("seed", "count"), [(0, FEW), *(pytest.param(seed, MANY, marks=pytest.mark.long) for seed in range(1, 5))]
)
#: The code that is looked at: all that a stranger's bytes come through.
LED_BY = ("/ftx/protocol/", "/ftx/net/")

Case = tuple[bytes, ...]  # frames
Arc = tuple[CodeType, int, int]


class Guide:
    """Bends cases, and keeps those that find something new.

    Args:
        run: what is fed with a case.
    """

    def __init__(self, seed: str, corpus: Sequence[Case], run: Callable[[Case], None]) -> None:
        self._rng = random.Random(seed)
        self._run = run
        self.corpus = list(corpus)
        self.seen: set[Arc] = set()
        for case in corpus:
            self.seen |= self._arcs(case)

    def lead(self, count: int) -> None:
        """So many cases more."""
        for _ in range(count):
            case = self._bent(self._rng.choice(self.corpus))
            if not (found := self._arcs(case)) <= self.seen:
                self.seen |= found
                self.corpus.append(case)

    def _bent(self, case: Case) -> Case:
        rng, found = self._rng, list(case)
        at = rng.randrange(len(found))
        match rng.randrange(8):
            case 0:
                del found[at:]
            case 1:
                found.insert(at, rng.choice(rng.choice(self.corpus) or (b"",)))
            case 2:
                found.insert(at, any_frame(rng))
            case 3:
                found[at] = bent(rng, found[at])
            case _:
                found[at] = resealed(bent(rng, found[at]))
        return tuple(found) or (b"",)

    def _arcs(self, case: Case) -> set[Arc]:
        """Which line was behind which, in what this case was run through."""
        arcs: set[Arc] = set()

        def entered(frame: FrameType, _event: str, _argument: Any) -> Any:
            code = frame.f_code
            if not any(part in code.co_filename for part in LED_BY):
                return None
            before = 0

            def line(frame: FrameType, event: str, _argument: Any) -> Any:
                nonlocal before
                if event == "line":
                    arcs.add((code, before, frame.f_lineno))
                    before = frame.f_lineno
                return line

            return line

        others = sys.gettrace()
        sys.settrace(entered)
        try:
            self._run(case)
        finally:
            sys.settrace(others)
        return arcs


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same nonces in each handshake."""
    monkeypatch.setattr(handshake, "_hello", lambda who, **_: m.Hello(m.MAGIC, 1, 1, bytes(32), who.public))
    monkeypatch.setattr(m, "DRAIN_S", 0.01)


class Desk:
    """A listener that pairs, with a code that never wears out."""

    def begin(self, _deadline_s: float) -> str:
        return CODE

    def failed(self, _code: str) -> None:
        pass

    def paired(self, _code: str, _address: str, _public: bytes) -> None:
        pass


def heard(case: Case, half: Callable[[Lane], object], *, dialer: bool) -> None:
    """By one half of a handshake. All of it is there at once, and the end behind it: nothing is waited for."""
    one, other = socket.socketpair()
    with one, closing(Lane(other, dialer=dialer)) as lane:
        one.sendall(b"".join(case)[:150_000])
        one.shutdown(socket.SHUT_WR)
        lane.deadline_s = time.monotonic() + 5
        with suppress(FtxError):
            half(lane)


def heard_by_a_listener(case: Case) -> None:
    desk: Any = Desk()
    heard(case, lambda lane: handshake.listen(lane, LISTENER, KEYS, None, open_=False, pairing=desk), dialer=False)


def heard_by_a_dialer(case: Case) -> None:
    heard(case, lambda lane: handshake.dial(lane, DIALER, KEYS, fuzz.TRUST, plain=True), dialer=True)


def heard_by_the_codec(case: Case) -> None:
    for data in case:
        if len(data) < codec.HEADER_SIZE:
            continue
        with suppress(FtxError):
            header = codec.decode_header(data)
            codec.decode_body(header, data[codec.HEADER_SIZE : codec.HEADER_SIZE + codec.body_size(header)])
        with suppress(FtxError):
            codec.data_in(bytearray(data), 0, len(data))


def well_said(side: Side) -> list[Case]:
    """Handshakes that are kept to, by each method and to each end."""
    transcript = proof.transcript(
        fuzz.HELLOS[Side.DIALER], fuzz.HELLOS[Side.LISTENER], encrypted=False, fingerprint=proof.NO_FINGERPRINT
    )
    who = DIALER if side is Side.DIALER else LISTENER
    signature = who.sign(proof.signed(side, transcript))
    item = m.ProofItem(Method.SECRET, proof.mac(KEYS[Method.SECRET], side, Method.SECRET, transcript))
    proven, hello = m.Proof(signature, (item,)), fuzz.HELLOS[side]
    ends: list[m.Message] = [fuzz.OPEN, m.Attach(bytes(16), 2), m.Ping(), m.Error(64, "no")]
    if side is Side.LISTENER:
        ends = [m.Opened(1, 64), m.Error(64, "no")]
    found = [(hello, codec.encode(proven), codec.encode(end)) for end in ends]
    if side is Side.DIALER:
        found.append((hello, codec.encode(m.Pair(fuzz.Exchange(side, CODE).element)), codec.encode(proven)))
    return found


CORPORA = [
    pytest.param(lambda: [(frame,) for frame in frames()], heard_by_the_codec, id="codec"),
    pytest.param(lambda: well_said(Side.DIALER), heard_by_a_listener, id="listener"),
    pytest.param(lambda: well_said(Side.LISTENER), heard_by_a_dialer, id="dialer"),
]


@cases
@pytest.mark.parametrize(("corpus", "run"), CORPORA)
def test_g7_only_known_errors_come_of_what_strangers_say(
    corpus: Callable[[], list[Case]], run: Callable[[Case], None], seed: int, count: int
) -> None:
    guide = Guide(f"guided {seed}", corpus(), run)
    known, kept = len(guide.seen), len(guide.corpus)
    guide.lead(count)
    assert len(guide.seen) > known and len(guide.corpus) > kept  # it does find its way
