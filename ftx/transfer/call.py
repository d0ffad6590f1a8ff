"""How a run reaches the receiver that its user means, and proves who it is, whatever it then does there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ftx.errors import (
    FtxError,
    Interrupted,
    LinkLost,
    NetworkError,
    NotPaired,
    ProtocolError,
    Refused,
    UnknownHost,
    Unproven,
)
from ftx.net import handshake, keys, known, tcp
from ftx.net.handshake import Met, Trust
from ftx.net.identity import fingerprint
from ftx.net.known import KnownHosts
from ftx.net.lane import Lane
from ftx.net.pace import Pace
from ftx.options import CallOptions
from ftx.protocol import messages as m
from ftx.protocol.messages import Method, Role
from ftx.transfer import events
from ftx.transfer.crew import Stop
from ftx.transfer.reach import Way, ways

if TYPE_CHECKING:
    from ftx.transfer.pairing import Code

#: Asked, with the host's name and the fingerprint it shows, whether to send to a receiver that proves nothing more.
Confirm = Callable[[str, str], bool]
#: Joins a further lane of the session, and calls what it was given now and then, which may raise to end that.
Join = Callable[[int, Callable[[], None]], Lane]


class Caller:
    """Calls one receiver, as often as need be.

    Attributes:
        greeted: ftx answered, whatever came of it.
        asked_s: seconds for which a person was waited for.
    """

    def __init__(
        self, options: CallOptions, emit: events.OnEvent, stop: Stop, confirm: Confirm | None, code: Code | None,
        pace: Pace | None = None,
    ) -> None:  # fmt: skip
        self._options = options
        self._emit = emit
        self._stop = stop
        self._pace = pace
        self._confirm = confirm
        self._known = KnownHosts(options.config_dir)
        self._keys: dict[Method, bytes] = {}
        self._code = code
        self._code_at_hand = isinstance(code, str)  # a run that has a credential does not settle for none
        self._paired = False  # in this run
        anyone = options.accept_new and not self._code_at_hand
        self._trust = Trust(known.name_of(options.host, options.port), anyone=anyone)
        self._hidden = False  # the far side's port was out of reach, and that was said
        self.greeted = False
        self.asked_s = 0.0

    def prepare(self) -> None:
        """Read who this side is, what it can prove, and whom it trusts.

        Raises:
            UsageError: one of these files cannot be used, or not the congestion control that was asked for.
        """
        options = self._options
        if options.congestion is not None:
            tcp.check(options.congestion)
        self.identity, self._lasting = keys.identity(options.config_dir)
        if not self._lasting:
            where = f"{options.config_dir} ($FTX_CONFIG_DIR) cannot be written to"
            self._emit(events.Warn(f"{where}: a later run cannot go on with what this one leaves"))
        if not options.ssh:  # whom that starts has a key for this run alone
            self._trust = self._trust._replace(known=self._known.find(self._trust.name))
            if options.secret_file is not None:
                secret = keys.secret(options.secret_file)
                self._keys = {Method.SECRET: secret.key}
                self._trust = self._trust._replace(receivers=secret.receivers)

    def acquainted(self, error: NotPaired | Unproven) -> bool:
        """Whether the two sides know each other now: they were paired just now, or the user says yes.

        Between two links: a person takes longer to answer than a listener waits.
        """
        asked_s = time.monotonic()
        try:
            return self._acquainted(error)
        finally:
            self.asked_s += time.monotonic() - asked_s

    def _acquainted(self, error: NotPaired | Unproven) -> bool:
        if isinstance(error, NotPaired) or self._code_at_hand:
            # One that was given another credential would not be content with a receiver that is only known.
            if self._keys and isinstance(error, NotPaired):
                raise NotPaired("not allowed in: the receiver does not have the key in your `--secret-file`") from error
            if self._paired or self._keys or not self._lasting:
                return False
            from ftx.transfer.pairing import Pairer  # here: hardly any run needs it

            pairer = Pairer(self._options, self._code, self._emit, self._stop)
            self._paired = pairer.pair(self.identity, self._remember)
            return self._paired
        if names := self._known.names(error.public):
            self._emit(events.Warn(f"the receiver on {self._options.host} shows the key of {', '.join(names)}"))
        if self._confirm is None or not self._confirm(self._options.host, fingerprint(error.public)):
            return False
        self._remember(error.public)
        return True

    def _remember(self, public: bytes) -> None:
        """The user takes this receiver for the one that is meant; from here on it must be the same."""
        self._trust = self._trust._replace(known=public)
        try:
            self._known.add(self._trust.name, public)
        except OSError as error:
            self._emit(events.Warn(f"{self._known.path}: {error.strerror}: the next run does not know this receiver"))

    def open(
        self, stack: ExitStack, request: m.Open, lanes: Callable[[Lane], tuple[int, int]]
    ) -> tuple[Lane, m.Opened, int, Join]:
        """Open a session: its first lane, what the receiver grants, how many lanes there are to be at first, and who
        joins the others. ``stack`` ends it.

        Args:
            request: what for; the session's id and its lanes are filled in.
            lanes: says how many to begin with and how many to ask for, when it sees the first.

        Raises:
            NotPaired, Unproven: see ``acquainted``.
            FtxError: it did not come about.
        """
        way, lane, met = self._first_lane(stack)
        if met.unproven:
            self._remember(met.public)
        way = replace(way, trust=way.trust._replace(known=met.public))  # each lane leads to the same
        lane.deadline_s = time.monotonic() + self._options.timeout_s
        first, most = lanes(lane)
        request = request._replace(session=secrets.token_bytes(16), lanes=min(most, way.lanes))
        lane.order.opened(Role.SENDER, request.mode)
        opened = handshake.open_session(lane, request, self._options.timeout_s)
        if not 1 <= opened.lanes <= request.lanes:
            raise ProtocolError(f"{opened.lanes} lanes granted where {request.lanes} were asked for")
        lane.deadline_s = None
        first = min(first, opened.lanes)
        self._emit(events.SessionUp(request.session.hex(), way.name, lane.encrypted, first, way.via))

        def join(number: int, check: Callable[[], None]) -> Lane:
            return self._attach(request.session, number, way, check)

        return lane, opened, first, join

    def _first_lane(self, stack: ExitStack) -> tuple[Way, Lane, Met]:
        """The first lane by the best way that leads to the receiver, and nobody else; ``stack`` ends it."""
        found = stack.enter_context(ways(self._options, self._keys, self._trust, self._stop.check))
        *better, last = found
        hidden = ""
        for way in better:
            try:
                return way, *stack.enter_context(self._met(way))
            except Interrupted:
                raise
            except FtxError as error:
                # It may be a firewall, or another machine of this address: ssh leads to the right one.
                hidden = str(error) if isinstance(error, NetworkError) else f"{way.name}: {error}"
        if hidden and not self._hidden:
            self._hidden = True
            where = f"the receiver's port on {self._options.host} cannot be reached"
            self._emit(events.Warn(f"{where} ({hidden}); going over ssh itself, which is slower"))
        return last, *stack.enter_context(self._met(last))

    @contextmanager
    def _met(self, way: Way) -> Iterator[tuple[Lane, Met]]:
        """A first lane whose two ends have proven themselves."""
        lane = Lane(way.connect(self._stop.check), dialer=True, pace=self._pace)
        lane.check = self._stop.check
        try:
            lane.deadline_s = time.monotonic() + way.timeout_s
            yield lane, handshake.dial(lane, self.identity, way.keys, way.trust, plain=way.plain)
        except ProtocolError as error:
            if not error.from_peer:
                handshake.refuse(lane, error)
            raise
        finally:
            self.greeted = self.greeted or lane.greeted or lane.encrypted
            lane.close()

    def _attach(self, session: bytes, number: int, way: Way, check: Callable[[], None]) -> Lane:
        """A further lane of a session."""
        lane = Lane(way.connect(check), dialer=True, pace=self._pace)
        try:
            lane.check = check
            lane.deadline_s = time.monotonic() + self._options.timeout_s
            handshake.dial(lane, self.identity, way.keys, way.trust, plain=way.plain)
            handshake.attach(lane, m.Attach(session, number), Role.SENDER)
            lane.deadline_s = lane.check = None
        except Refused as error:
            # The session stood a moment ago: it is gone there, and this side has not heard it yet.
            lane.close()
            raise LinkLost(f"lane {number} was not let in any more ({error})") from error
        except BaseException:
            lane.close()
            raise
        return lane

    def explain(self, error: FtxError, *, established: bool) -> str:
        """What happened, and what to do about it (G11)."""
        text = str(error)
        if error.from_peer and not isinstance(error, Refused):
            text = f"the receiver says: {text}"
        started = self._options.ssh or established
        if isinstance(error, NetworkError) and not isinstance(error, UnknownHost) and not started:
            return f"{text}. Is `ftx receive` running there, on this port?"
        return text
