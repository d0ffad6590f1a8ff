"""The two lines that start a session over ssh: what is taken, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ftx.errors import DestinationError, FtxError, NetworkError, ProtocolError
from ftx.protocol import ssh
from ftx.protocol.ssh import Answer, Request

ANSWER = Answer(40123, "ed25519:x", bytes(range(32)), "192.0.2.7")
SAID = {"version": 1, "port": 40123, "fingerprint": "ed25519:x", "key": "00" * 32, "address": "::1"}


def line(**changed: Any) -> bytes:
    return json.dumps({name: value for name, value in (SAID | changed).items() if value != "absent"}).encode()


FOLDERS = (
    b"",
    b"in",
    b"/srv/a b",
    b"$(touch x)\n'\"",
    "\u00fc \u2028".encode(),
    b"\xff\xfe",
    b"x" * 4096,
    b"\xff" * 4096,
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: repr(folder[:20]))
def test_a_request_comes_back(folder: bytes) -> None:
    request = Request(folder, 7.5)
    encoded = ssh.encode_request(request)
    assert ssh.decode_request(encoded) == request
    assert encoded.count(b"\n") == 1 and encoded.isascii() and len(encoded) <= ssh.MAX_SSH_REQUEST


def test_an_answer_comes_back_and_does_not_show_its_key() -> None:
    encoded = ssh.encode_answer(ANSWER)
    assert encoded.startswith(b"\n" + ssh.SSH_MARK)
    assert ssh.decode_answer(encoded.removeprefix(b"\n" + ssh.SSH_MARK)) == ANSWER
    assert ANSWER.key.hex() not in repr(ANSWER) and str(ANSWER.key) not in repr(ANSWER)


@pytest.mark.parametrize("end", range(0, 60, 3))
def test_a_line_that_is_cut_off(end: int) -> None:
    with pytest.raises(ProtocolError):
        ssh.decode_answer(line()[:end])
    with pytest.raises(ProtocolError):
        ssh.decode_request(ssh.encode_request(Request(b"a folder with a name of some length", 7.0))[:end])


@pytest.mark.parametrize(
    "changed",
    [
        *({"version": value} for value in ("absent", 2, None, "1")),
        *({"port": value} for value in ("absent", 0, 65536, -1, "1", 1.0, True, None)),
        *({"fingerprint": value} for value in ("absent", 7, None)),
        *({"key": value} for value in ("absent", "", "00" * 31, "00" * 33, "xx" * 32, 7, None)),
        {"more": "x" * ssh.MAX_SSH_ANSWER},
    ],
    ids=repr,
)
def test_g8_an_answer_that_means_nothing(changed: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        ssh.decode_answer(line(**changed))


@pytest.mark.parametrize("said", [b"[]", b"7", b"null", b"{}", b"[" * 9000, b"\xff"], ids=repr)
def test_what_is_no_object(said: bytes) -> None:
    for decode in (ssh.decode_answer, ssh.decode_request):
        with pytest.raises(ProtocolError):
            decode(said)


@pytest.mark.parametrize(
    "said",
    [{"folder": 7, "timeout_s": 1}, {"folder": "", "timeout_s": "1"}, {"timeout_s": 1}, {"folder": ""},
     {"folder": "\ud800", "timeout_s": 1}, {"folder": "x" * ssh.MAX_SSH_REQUEST, "timeout_s": 1}],
    ids=lambda said: repr(said)[:40],
)  # fmt: skip
def test_g8_a_request_that_means_nothing(said: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        ssh.decode_request(json.dumps({"version": 1} | said).encode())


@pytest.mark.parametrize(
    ("address", "taken"),
    [("192.0.2.7", "192.0.2.7"), ("::1", "::1"), ("fe80::1%eth0", None), ("UNKNOWN", None), ("a.example", None),
     ("-x", None), (7, None), (None, None), ("absent", None)],
)  # fmt: skip
def test_an_address_is_one_everywhere_or_none(address: Any, taken: str | None) -> None:
    assert ssh.decode_answer(line(address=address)).address == taken


@pytest.mark.parametrize(
    ("code", "kind"),
    [(7, DestinationError), (3, NetworkError), (4, ProtocolError), (99, DestinationError), ([], DestinationError)],
)
def test_a_far_side_that_cannot_serve(code: Any, kind: type[FtxError]) -> None:
    with pytest.raises(kind, match="no room") as raised:
        ssh.decode_answer(json.dumps({"version": 1, "code": code, "message": "no room"}).encode())
    assert raised.value.from_peer
