"""The two lines with which a session over ssh starts (``protocol.md``, "Started over ssh"). Pure.

The dialer says in the first where the files go, the far side in the second where it listens and what lets in.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from typing import Any

from ftx.errors import DestinationError, FtxError, InternalError, NetworkError, ProtocolError, Refused
from ftx.protocol.messages import MAX_MESSAGE

#: Of these lines; not that of the protocol, which the HELLOs agree on.
SSH_VERSION = 1
#: What the far side's line begins with. Before it a login may have said anything.
SSH_MARK = b"ftx-ssh "
SSH_KEY = 32
MAX_SSH_REQUEST = 32 * 1024
MAX_SSH_ANSWER = 8 * 1024
#: What a login may say before the far side's line.
MAX_SSH_NOISE = 64 * 1024

#: A far side that cannot serve says so with its exit code.
_FAILURES = {cls.exit_code: cls for cls in (InternalError, NetworkError, ProtocolError, DestinationError, Refused)}


@dataclass(frozen=True, slots=True)
class Request:
    """What the dialer wants.

    Attributes:
        folder: where the files go: absolute, or relative to the far user's home folder.
        timeout_s: a connection that is silent for so many seconds is dead.
    """

    folder: bytes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the far side listens.

    Attributes:
        port: on all its addresses.
        fingerprint: of its identity.
        key: 32 random bytes; who proves them is let in, and nobody else.
        address: by which its machine was reached, if it knows.
    """

    port: int
    fingerprint: str
    key: bytes = field(repr=False)
    address: str | None = None


def encode_request(request: Request) -> bytes:
    """The dialer's line. A byte of the folder that is not UTF-8 travels as a lone surrogate (U+DC80 to U+DCFF)."""
    folder = request.folder.decode("utf-8", "surrogateescape")
    return _line({"version": SSH_VERSION, "folder": folder, "timeout_s": request.timeout_s})


def decode_request(line: bytes) -> Request:
    """What the dialer wants.

    Raises:
        ProtocolError: the line means nothing here.
    """
    said = _decode(line, MAX_SSH_REQUEST)
    folder, timeout_s = said.get("folder"), said.get("timeout_s")
    # Whoever sends has logged in as this user: this keeps mistakes out, not attackers.
    if not isinstance(folder, str) or not isinstance(timeout_s, int | float):
        raise ProtocolError("the line that starts a far side has no folder or no timeout")
    try:
        return Request(folder.encode("utf-8", "surrogateescape"), float(timeout_s))
    except UnicodeEncodeError as error:
        raise ProtocolError("the folder in the line that starts a far side is no text") from error


def encode_answer(answer: Answer) -> bytes:
    """The far side's line. The newline before it ends whatever a login has left open."""
    said = {
        "version": SSH_VERSION,
        "port": answer.port,
        "fingerprint": answer.fingerprint,
        "key": answer.key.hex(),
        "address": answer.address,
    }
    return b"\n" + SSH_MARK + _line(said)


def encode_failure(code: int, message: str) -> bytes:
    """The far side's line when it cannot serve: its exit code, and why."""
    return b"\n" + SSH_MARK + _line({"version": SSH_VERSION, "code": code, "message": message[:MAX_MESSAGE]})


def decode_answer(line: bytes) -> Answer:
    """What the far side has said behind ``SSH_MARK``.

    Raises:
        ProtocolError: it means nothing here.
        FtxError: it cannot serve, and says why.
    """
    said = _decode(line, MAX_SSH_ANSWER)
    if "code" in said:
        code = said["code"]
        kind: type[FtxError] = _FAILURES.get(code if type(code) is int else 0, DestinationError)
        raise kind(str(said.get("message", ""))[:MAX_MESSAGE], from_peer=True)
    try:
        port, fingerprint, key = said["port"], said["fingerprint"], bytes.fromhex(said["key"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError("the far side does not say where it listens") from error
    if type(port) is not int or not 0 < port < 65536 or not isinstance(fingerprint, str) or len(key) != SSH_KEY:
        raise ProtocolError("the far side does not say where it listens")
    return Answer(port, fingerprint, key, _address(said.get("address")))


def _address(text: Any) -> str | None:
    """An address that means the same on every machine, or None: a name or a zone would not."""
    try:
        return str(ipaddress.ip_address(text)) if isinstance(text, str) and "%" not in text else None
    except ValueError:
        return None


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode("ascii") + b"\n"


def _decode(line: bytes, most: int) -> dict[str, Any]:
    if len(line) > most:
        raise ProtocolError(f"a line of {len(line)} bytes over ssh, where {most} are the most")
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a line over ssh that means nothing") from error
    if not isinstance(said, dict) or said.get("version") != SSH_VERSION:
        raise ProtocolError("the two sides start over ssh in different ways; update the older one")
    return said
