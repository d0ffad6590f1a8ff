"""Every way a run can end badly: one class each, with its exit code, wire code and rank.

Two rules live here. An error class fixes what the process exits with (``cli.md``'s table, G11) and which
code the peer is told (``protocol.md``, "Errors"); nothing else in ftx chooses either number. And when
several things went wrong at once, ``rank`` says which of them is the cause: a local disk error explains a
broken link, never the other way round.
"""

from __future__ import annotations

from typing import ClassVar


class FtxError(Exception):
    """A failure with a documented exit code. ``str(error)`` is a message for people.

    Attributes:
        exit_code: the process's exit status.
        wire: the code in ERROR, REFUSE and CANCEL; 0 where a failure never travels.
        rank: the lower, the nearer to the cause (0 usage and disk, 1 told by the peer, 2 protocol, 3 network).
        retry: whether the same command may succeed a moment later without anybody doing anything.
    """

    exit_code: int = 1
    wire: ClassVar[int] = 1
    rank: ClassVar[int] = 0
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, from_peer: bool = False) -> None:
        super().__init__(message)
        self.from_peer = from_peer


class InternalError(FtxError):
    """A bug in ftx."""


class UsageError(FtxError):
    """Wrong use of the command line."""

    exit_code = 2
    wire = 0


class NetworkError(FtxError):
    """The network failed; the same command resumes."""

    exit_code = 3
    wire = 0
    rank = 3
    retry = True


class LinkLost(NetworkError):
    """A connection broke, or a frame arrived damaged (a wrong frame check)."""


class KeysWorn(LinkLost):
    """A connection has encrypted as much as its keys may; a new one goes on at once."""


class PeerSilent(NetworkError):
    """No byte arrived for ``--timeout`` seconds."""


class NotStarted(NetworkError):
    """ssh cannot be started here, or ftx not on the other machine: it is not installed there, or elsewhere."""

    retry = False


class UnknownHost(NetworkError):
    """The name does not resolve: it is mistyped; or, where a link stood before, the name server is out of reach."""


class ProtocolError(FtxError):
    """The peer broke a rule of ``protocol.md``."""

    exit_code = 4
    wire = 2
    rank = 2


class VersionMismatch(ProtocolError):
    """No protocol version in common."""

    wire = 3
    rank = 1


class Unsupported(ProtocolError):
    """A critical frame or capability that this side does not know."""

    wire = 4


class NotFtx(ProtocolError):
    """Something else answers on the port."""

    wire = 0


class IntegrityError(FtxError):
    """Digests still disagree after repair."""

    exit_code = 5
    wire = 16


class SourceError(FtxError):
    """The source cannot be read."""

    exit_code = 6
    wire = 32


class SourceMissing(SourceError):
    """No such file."""

    wire = 33


class SourceChanged(SourceError):
    """The source kept changing while it was being sent."""

    wire = 34


class DestinationError(FtxError):
    """The destination cannot take the entry."""

    exit_code = 7
    wire = 48


class Exists(DestinationError):
    """A different file of that name is there, and the receiver does not replace."""

    wire = 49


class NoSpace(DestinationError):
    """The disk is full, or the reserve would be touched."""

    wire = 50


class NameRefused(DestinationError):
    """The name could leave the destination, or is reserved."""

    wire = 51


class IsFolder(DestinationError):
    """A folder has the name that a file wants."""

    wire = 52


class Busy(DestinationError):
    """Another job is writing to the same destination path."""

    wire = 53


class TooLarge(DestinationError):
    """Larger than this receiver or the protocol takes."""

    wire = 54


class Refused(FtxError):
    """Not allowed in."""

    exit_code = 8
    wire = 64
    rank = 1


class Unproven(Refused):
    """Nothing proves that the receiver is the one meant; the user has not agreed to that.

    Attributes:
        public: its key.
    """

    wire = 0

    def __init__(self, message: str, public: bytes) -> None:
        super().__init__(message)
        self.public = public


class Superseded(Refused):
    """A newer run of the same job took over."""

    wire = 65


class NotPaired(Refused):
    """The receiver does not know this sender, which has proven no credential either."""

    wire = 66


class WrongCode(Refused):
    """The pairing code is another one, was used already, or has run out."""

    wire = 67


class SomeFailed(FtxError):
    """Finished, but some entries failed; each was reported."""

    exit_code = 9
    wire = 0


class Leaving(FtxError):
    """The peer was told to stop (a signal); what is under way is kept."""

    exit_code = 3
    wire = 80
    rank = 1
    retry = True


class Interrupted(FtxError):
    """This process was told to stop by a signal. ``exit_code`` is 128 + the signal's number."""

    wire = 80

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number


def _classes(base: type[FtxError]) -> list[type[FtxError]]:
    return [base, *(found for sub in base.__subclasses__() for found in _classes(sub))]


#: Wire code -> class. ``Interrupted`` is what the leaving side raises; its peer sees ``Leaving``.
WIRE_CODES: dict[int, type[FtxError]] = {
    cls.wire: cls for cls in _classes(FtxError) if cls.wire and cls is not Interrupted
}
WIRE_CODES[InternalError.wire] = InternalError


def from_wire(code: int, message: str) -> FtxError:
    """The error a peer's ERROR, REFUSE or CANCEL stands for. An unknown code maps by its group of 16."""
    cls = WIRE_CODES.get(code) or WIRE_CODES.get(code & ~15) or ProtocolError
    return cls(message, from_peer=True)
