"""The messages of the protocol as named tuples, with their type numbers and limits.

``protocol.md`` describes each in the same four parts (purpose, layout, fields, behaviour); ``codec.LAYOUTS``
says how each becomes bytes. A test reads the document's tables and holds both to them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ftx.protocol.manifest import DigestName, Entry, Kind

PROTOCOL_VERSION = 1
MAGIC = b"ftx\0"
DEFAULT_PORT = 7389

MAX_NAME = 255  #: bytes of one path component
MAX_PATH = 4096  #: bytes of a whole path
MAX_MESSAGE = 1024  #: bytes of a message for people
MAX_PROOFS = 4
MAX_TLVS = 32
MAX_TLV_VALUE = 1024
MAX_FOLDER_ENTRIES = 1024
MAX_ANSWERS = 1024
MAX_RANGES = 4096
MAX_ASKED = 4096  #: chunk digests that one ASK_DIGESTS may ask for
MAX_ASKS = 16  #: ASK_DIGESTS that may be unanswered for one entry
INITIAL_WINDOW = 64  #: entries that a sender may offer before OPENED has told it the window
MAX_REPAIRS = 3  #: times that one chunk is sent again because its digest was wrong
MAX_OFFERS = 5  #: times that one changing source is offered
MEASURE_S = 120  #: how long a session that only measures may last
MEASURE_BYTES = 2**30  #: of the file that it writes, at most
WITHDRAWN = 0  #: code in CANCEL and REFUSE: no failure, the entry is offered anew under another id

#: AES-GCM keys bear about 2**24.5 records (RFC 8446, section 5.5).
MAX_RECORDS = 2**24
HANDSHAKE_S = 10  #: from accept() to OPEN
CODE_S = 600  #: how long a pairing code is good
PAIR_TRIES = 5  #: exchanges that may begin with one code
PAIR_S = 1  #: between two exchanges that a listener begins
PING_S = 1  #: a side that has sent nothing for so long sends PING or BUSY
DRAIN_S = 2  #: how long a side that sent its last ERROR goes on reading
DRAIN_BYTES = 256 * 1024

FINAL = 0x02  #: frame flag of DATA: it is all of a file, and stands for FINISH too
COMPRESSED = 0x04  #: frame flag of DATA: its payload is a zstd frame of the chunk
CRITICAL = 0x01  #: frame flag, and bit 15 of a TLV's type: refuse what you do not know
CRITICAL_TLV = 0x8000
TLV_ZSTD = 0x0001  #: in HELLO: as the receiver, this side takes compressed payloads
MAX_ZSTD_WINDOW = 2**23  #: bytes; what RFC 8878 asks every decoder to have


class Type(IntEnum):
    """Frame types. GREASE_FIRST to GREASE_LAST will never mean anything; every side sends one at random."""

    HELLO = 0x01
    PROOF = 0x02
    OPEN = 0x03
    OPENED = 0x04
    ATTACH = 0x05
    ATTACHED = 0x06
    PAIR = 0x07

    FOLDER = 0x10
    FOLDER_END = 0x11
    SKIP = 0x12
    WANT = 0x13
    REFUSE = 0x14
    ASK_DIGESTS = 0x15
    DIGESTS = 0x16
    WANT_ALL = 0x18

    DATA = 0x20
    ZEROS = 0x21
    FINISH = 0x22
    RECEIPT = 0x23
    CANCEL = 0x24

    PING = 0x30
    BUSY = 0x31
    PAUSE = 0x32
    RESUME = 0x33

    BYE = 0x3E
    ERROR = 0x3F

    STEP = 0x50
    SAMPLE = 0x51
    MEASURED = 0x52


GREASE_FIRST = 0xE0
GREASE_LAST = 0xEF

#: The longest body of each type, checked before anything is allocated. DATA's is without its payload.
MAX_BODY: dict[int, int] = {
    Type.HELLO: 4_096,
    Type.PROOF: 4_096,
    Type.OPEN: 8_192,
    Type.OPENED: 4_096,
    Type.ATTACH: 1_024,
    Type.ATTACHED: 1_024,
    Type.PAIR: 4_096,
    Type.FOLDER: 262_144,
    Type.FOLDER_END: 8_192,
    Type.SKIP: 16_384,
    Type.WANT: 262_144,
    Type.REFUSE: 65_536,
    Type.ASK_DIGESTS: 64,
    Type.DIGESTS: 262_144,
    Type.WANT_ALL: 16_384,
    Type.DATA: 32,
    Type.ZEROS: 65_568,
    Type.FINISH: 64,
    Type.RECEIPT: 131_072,
    Type.CANCEL: 2_048,
    Type.PING: 0,
    Type.BUSY: 8,
    Type.PAUSE: 2_048,
    Type.RESUME: 0,
    Type.BYE: 24,
    Type.ERROR: 2_048,
    Type.STEP: 17,
    Type.SAMPLE: 0,
    Type.MEASURED: 48,
}
MAX_UNKNOWN_BODY = 65_536  #: of an optional frame that is skipped


class Role(IntEnum):
    SENDER = 1
    RECEIVER = 2


class Mode(IntEnum):
    """What a session is for."""

    TRANSFER = 0
    MEASURE = 1  #: nothing is kept: how fast is the path?


class Method(IntEnum):
    """What a proof was made with."""

    OPEN = 0  #: nothing: this listener lets everybody in
    KNOWN = 1  #: nothing more than the signature: the listener knows the dialer's key
    SECRET = 2
    SSH = 3  #: a one-time key that came over ssh
    PAIRED = 4  #: the key that both made of a pairing code


class SkipReason(IntEnum):
    SAME = 1  #: a file of this size and time is there
    KEPT = 2  #: a different file is there, and the receiver keeps what it has


class FolderFlags:
    """Bits of FOLDER_END's flags."""

    WHOLE = 0x01  #: the folder was read without error to its end


class ReceiptFlags:
    """Bits of a receipt's flags."""

    DURABLE = 0x01  #: a power cut cannot take the entry back (G5)


class StepFlags:
    """Bits of STEP's flags."""

    DISK = 0x01  #: what arrives is written to the disk


class Tlv(NamedTuple):
    """An optional extra field: a type and a value. A type with ``CRITICAL_TLV`` must be known."""

    type: int
    value: bytes


class Hello(NamedTuple):
    """Both, first: who speaks which versions, and who it is: ``identity`` is its public key."""

    magic: bytes
    version_min: int
    version_max: int
    nonce: bytes
    identity: bytes
    tlvs: tuple[Tlv, ...] = ()


class ProofItem(NamedTuple):
    """One proof. ``method`` is a ``Method``, or one that a later version has: a listener passes over it."""

    method: int
    mac: bytes


class Proof(NamedTuple):
    """Both: that the speaker is whom its HELLO names, and that it holds a key."""

    signature: bytes
    proofs: tuple[ProofItem, ...]
    tlvs: tuple[Tlv, ...] = ()


class Open(NamedTuple):
    """Dialer, on the first lane: makes the session."""

    session: bytes
    process: bytes
    job: bytes
    role: Role
    mode: Mode
    lanes: int
    retry_for_s: int
    digest: DigestName
    folder: bytes
    tlvs: tuple[Tlv, ...] = ()


class Opened(NamedTuple):
    """Listener: the session stands. ``lanes`` and ``window`` are what it grants."""

    lanes: int
    window: int
    tlvs: tuple[Tlv, ...] = ()


class Attach(NamedTuple):
    """Dialer, on every other lane: joins a session."""

    session: bytes
    lane: int


class Attached(NamedTuple):
    """Listener: the lane has joined."""


class Pair(NamedTuple):
    """Both, in place of a session: what each makes of a pairing code and a secret of its own."""

    element: bytes
    tlvs: tuple[Tlv, ...] = ()


class Offered(NamedTuple):
    """One entry of a FOLDER batch. Its id is the batch's ``first`` plus its place in the batch."""

    kind: Kind
    name: bytes
    size: int
    allocated: int
    mode: int
    mtime_ns: int
    tag: bytes
    target: bytes = b""
    tlvs: tuple[Tlv, ...] = ()

    def entry(self, entry_id: int, folder: bytes) -> Entry:
        """The entry that is offered with this id in ``folder``, which is empty for the destination itself."""
        path = folder + b"/" + self.name if folder else self.name
        allocated = min(self.allocated, self.size)
        return Entry(entry_id, self.kind, path, self.size, allocated, self.mode, self.mtime_ns, self.tag, self.target)


class Folder(NamedTuple):
    """Sender: a batch of entries of one folder. ``path`` is relative to the destination, empty for itself."""

    path: bytes
    first: int
    entries: tuple[Offered, ...]


class FolderEnd(NamedTuple):
    """Sender: no more entries of this folder come. ``flags`` are ``FolderFlags``."""

    path: bytes
    flags: int


class SkipItem(NamedTuple):
    entry: int
    reason: SkipReason


class Skip(NamedTuple):
    """Receiver: these entries need nothing."""

    items: tuple[SkipItem, ...]


class Range(NamedTuple):
    first: int
    count: int  # type: ignore[assignment]  # hides the tuple's method


class Want(NamedTuple):
    """Receiver: send these chunks too. ``held``, in the first WANT: the bytes it holds already."""

    entry: int
    held: int
    ranges: tuple[Range, ...]


class WantAll(NamedTuple):
    """Receiver: it holds nothing of these entries and wants every chunk of them."""

    entries: tuple[int, ...]


class RefuseItem(NamedTuple):
    entry: int
    code: int
    message: str


class Refuse(NamedTuple):
    """Receiver: these entries cannot be taken; the others go on."""

    items: tuple[RefuseItem, ...]


class AskDigests(NamedTuple):
    """Receiver: which digests do the sender's chunks ``[first, first + count)`` have?"""

    entry: int
    digest: DigestName
    first: int
    count: int  # type: ignore[assignment]


class Digests(NamedTuple):
    """Sender: the digests of chunks from ``first`` on, one behind the other."""

    entry: int
    digest: DigestName
    first: int
    digests: bytes


class Data(NamedTuple):
    """Sender: one chunk. Its payload of ``length`` bytes follows on the lane and is not part of the message.

    ``final``: it is all of a file, and stands for the FINISH too. ``compressed``: the payload is a zstd frame.
    """

    entry: int
    index: int  # type: ignore[assignment]
    digest: bytes
    length: int
    final: bool = False
    compressed: bool = False


class Zeros(NamedTuple):
    """Sender: these chunks are all zeros."""

    entry: int
    ranges: tuple[Range, ...]


class Finish(NamedTuple):
    """Sender: everything wanted so far was sent; this is the root digest of the source as it was read."""

    entry: int
    root: bytes


class ReceiptItem(NamedTuple):
    entry: int
    flags: int
    root: bytes


class Receipt(NamedTuple):
    """Receiver: these entries are committed. ``flags`` are ``ReceiptFlags``."""

    items: tuple[ReceiptItem, ...]


class Cancel(NamedTuple):
    """Sender: the source of this entry failed or changed. The receiver answers with REFUSE."""

    entry: int
    code: int
    message: str


class Ping(NamedTuple):
    """Both: alive and idle."""


class Busy(NamedTuple):
    """Listener or receiver: alive and at work that needs no frames; ``counter`` counts its steps."""

    counter: int


class Pause(NamedTuple):
    """Receiver: send no DATA until RESUME."""

    code: int
    message: str


class Resume(NamedTuple):
    """Receiver: go on."""


class Bye(NamedTuple):
    """Both, last: how many entries ended how. The two must agree."""

    done: int
    skipped: int
    failed: int


class Error(NamedTuple):
    """Both, last: why the session ends."""

    code: int
    message: str


class Step(NamedTuple):
    """Sender, measuring: from here on DATA is of step ``number``. ``flags`` are ``StepFlags``.

    ``bytes``: of payload that it has sent so far, all of which are to have arrived before.
    """

    number: int
    flags: int
    bytes: int


class Sample(NamedTuple):
    """Sender, measuring: how far is the receiver?"""


class Measured(NamedTuple):
    """Receiver, measuring: what it has counted since the session began. Times are of all its reading threads together.

    ``room``: bytes that its file may have; ``clock_ns``: when it counted, by a clock of its own; ``bytes``: of payload
    that it has verified. Where the time went: ``waiting_ns`` for bytes to arrive, ``processor_ns`` on a processor or in
    the queue for one, ``disk_ns`` for the disk.
    """

    room: int
    clock_ns: int
    bytes: int
    waiting_ns: int
    processor_ns: int
    disk_ns: int


class Unknown(NamedTuple):
    """An optional frame that this version does not know. Receivers drop it; its bytes were checked."""

    type: int


Message = (
    Hello
    | Proof
    | Open
    | Opened
    | Attach
    | Attached
    | Pair
    | Folder
    | FolderEnd
    | Skip
    | Want
    | WantAll
    | Refuse
    | AskDigests
    | Digests
    | Data
    | Zeros
    | Finish
    | Receipt
    | Cancel
    | Ping
    | Busy
    | Pause
    | Resume
    | Bye
    | Error
    | Step
    | Sample
    | Measured
)
