"""Both ends of a pairing: the code that is shown beside a receiver, and the one that is typed beside a sender."""

from __future__ import annotations

import time
from collections.abc import Callable

import ftx
from ftx.errors import FtxError, Interrupted, PeerSilent, ProtocolError, Superseded, UsageError, WrongCode
from ftx.net import dial, handshake, keys, known, pairing
from ftx.net.identity import Identity, fingerprint
from ftx.net.known import KnownHosts
from ftx.net.lane import Lane
from ftx.net.pairing import Codes, Fate, Paired
from ftx.options import CallOptions, InviteOptions, PairOptions
from ftx.protocol import messages as m
from ftx.transfer import events
from ftx.transfer.crew import Stop

#: A code that is at hand, or who asks a person for one, as often as it was wrong; None or "": there is none.
Code = str | Callable[[], str | None]
#: How often a person is asked.
MAX_ASKED = 3
LOOK_S = 0.2
#: Why a new code is shown.
REASONS = {
    Fate.EXPIRED: "the last one has run out",
    Fate.VOID: f"the last one is void: it was tried {m.PAIR_TRIES} times",
}


class Invitation:
    """A code that people are shown, and a new one when it is over. For one thread.

    Args:
        name: see ``Codes.make``.

    Each method raises:
        UsageError: the file of codes cannot be used.
    """

    def __init__(self, codes: Codes, emit: events.OnEvent, name: str = "") -> None:
        self._codes = codes
        self._emit = emit
        self._name = name
        self._code = ""
        self._aside = False

    def show(self, reason: str = "") -> None:
        """Show a new code."""
        self._aside = False
        self._code = self._codes.make(self._name)
        self._emit(events.Code(self._code, m.CODE_S, reason))

    def look(self) -> Fate | Paired:
        """What has become of the code that is shown."""
        return self._codes.look(self._code)

    def renew(self) -> None:
        """Show a new code if this one is over, but not as long as another process shows its own."""
        fate = self.look()
        if fate is Fate.REPLACED:
            self._aside = True
        elif fate is not Fate.GOOD:
            self.show("" if self._aside or isinstance(fate, Paired) else REASONS[fate])

    def withdraw(self) -> None:
        """The code is shown no more."""
        self._codes.withdraw(self._code)


class Pairer:
    """A sender's part: with the receiver that its options name."""

    def __init__(self, options: CallOptions | PairOptions, code: Code | None, emit: events.OnEvent, stop: Stop) -> None:
        self._options = options
        self._code = code
        self._emit = emit
        self._stop = stop

    def pair(self, identity: Identity, remember: Callable[[bytes], None]) -> bool:
        """Pair, and have the receiver's public key remembered; False if no code can be had.

        Raises:
            WrongCode: the code was wrong, and nobody can be asked again.
            FtxError: it could not be carried through.
        """
        for asked in range(1, MAX_ASKED + 1):
            code = self._code() if callable(self._code) else self._code
            if not code:
                return False
            try:
                public = self._exchange(identity, pairing.normalised(code))
            except WrongCode as error:
                if not callable(self._code) or asked == MAX_ASKED:
                    raise
                self._emit(events.Warn(str(error)))
                continue
            remember(public)
            host, port = self._options.host, self._options.port
            self._emit(events.Paired(fingerprint(public), known.name_of(host, port), f"{host}:{port}"))
            return True
        raise AssertionError("the last time is not left without a code")

    def _exchange(self, identity: Identity, code: str) -> bytes:
        options = self._options
        lane = Lane(dial.connect(options.host, options.port, options.timeout_s, self._stop.check), dialer=True)
        lane.check = self._stop.check
        try:
            lane.deadline_s = time.monotonic() + options.timeout_s
            return handshake.pair(lane, identity, code, plain=options.plain)
        except ProtocolError as error:
            if not error.from_peer:
                handshake.refuse(lane, error)
            raise
        finally:
            lane.close()


def pair(options: PairOptions, code: Code, emit: events.OnEvent, stop: Stop) -> events.Finished:
    """Pair with a receiver; see ``api.pair``."""

    def work() -> None:
        identity, lasting = keys.identity(options.config_dir)
        if not lasting:
            raise UsageError(f"{options.config_dir} ($FTX_CONFIG_DIR) cannot be written to: no key would last")
        trusted = KnownHosts(options.config_dir)

        def remember(public: bytes) -> None:
            name = known.name_of(options.host, options.port)
            before = trusted.find(name)
            if before not in (None, public):
                old = fingerprint(before or b"")
                emit(events.Warn(f"{name} had another key, {old}, which is not trusted any more"))
            try:
                trusted.add(name, public)
            except OSError as error:
                raise UsageError(
                    f"{trusted.path}: {error.strerror}: the receiver knows this side now, but not the other way round"
                ) from error

        if not Pairer(options, code, emit, stop).pair(identity, remember):
            raise UsageError("without a code nothing can be paired; `ftx pair` on the receiver's machine shows one")

    return _run(work, emit)


def invite(options: InviteOptions, emit: events.OnEvent, stop: Stop) -> events.Finished:
    """Show a code for the receivers of this user, until somebody came with it; see ``api.invite``."""

    def work() -> None:
        invitation = Invitation(Codes(options.config_dir), emit, options.name)
        invitation.show()
        try:
            while True:
                stop.wait(LOOK_S)
                stop.check()
                match invitation.look():
                    case Paired() as peer:
                        emit(events.Paired(peer.fingerprint, peer.name, peer.address))
                        return
                    case Fate.VOID:
                        invitation.show(REASONS[Fate.VOID])
                    case Fate.EXPIRED:
                        raise PeerSilent("nobody came with the code in time; the same command shows a new one")
                    case Fate.REPLACED:
                        raise Superseded("another process of this user shows a code now, and this one is void")
                    case Fate.GOOD:
                        pass
        finally:
            invitation.withdraw()

    return _run(work, emit)


def _run(work: Callable[[], None], emit: events.OnEvent) -> events.Finished:
    """From the first event to the last."""
    started = time.monotonic()
    emit(events.Start(ftx.__version__, m.PROTOCOL_VERSION, "pair"))
    code, message = 0, ""
    try:
        work()
    except Interrupted as error:
        code, message = error.exit_code, f"{error}. Nothing was paired."
    except FtxError as error:
        code, message = error.exit_code, str(error)
    finished = events.PairFinished(code, message, seconds=time.monotonic() - started)
    emit(finished)
    return finished
