"""G7: whom a sender takes for the receiver that is meant, by the keys on file and the word of its user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftx import api
from ftx.net import keys
from ftx.net.identity import fingerprint
from ftx.net.known import KnownHosts, name_of
from ftx.options import SendOptions
from tests.support.files import fill
from tests.support.local import LocalReceiver


def send(
    base: Path, source: Path, port: int, host: str = "127.0.0.1", **options: Any
) -> tuple[api.Finished, list[Any]]:
    """A run of another user than the receiver's, and its events."""
    seen: list[Any] = []
    confirm = options.pop("confirm", None)
    wanted = SendOptions(host=host, port=port, config_dir=base / "other", retry_for_s=0.0, **options)
    return api.send([source], wanted, on_event=seen.append, confirm=confirm), seen


def warnings(seen: list[Any]) -> list[str]:
    return [event.message for event in seen if event.type == "warning"]


def test_g7_a_receiver_that_is_trusted_once_is_known_from_then_on(shm: Path) -> None:
    source = fill(shm / "file", 1000)
    with LocalReceiver(shm, open=True) as receiver:
        refused, _ = send(shm, source, receiver.port)
        assert refused.code == 8 and "fingerprint" in refused.message and refused.bytes_sent == 0
        asked: list[tuple[str, str]] = []

        def yes(host: str, shown: str) -> bool:
            asked.append((host, shown))
            return True

        own, _ = keys.identity(shm / "config")
        assert send(shm, source, receiver.port, confirm=yes)[0].code == 0
        assert asked == [("127.0.0.1", fingerprint(own.public))]
        assert send(shm, source, receiver.port)[0].code == 0


def test_g7_a_known_key_under_a_new_name_is_asked_for_by_its_old_one(shm: Path) -> None:
    source = fill(shm / "file", 1000)
    with LocalReceiver(shm, open=True) as receiver:
        own, _ = keys.identity(shm / "config")
        KnownHosts(shm / "other").add("nas", own.public)
        refused, seen = send(shm, source, receiver.port)
        assert refused.code == 8
        assert warnings(seen) == ["the receiver on 127.0.0.1 shows the key of nas"]
        assert send(shm, source, receiver.port, accept_new=True)[0].code == 0


def test_g7_another_key_under_a_known_name_is_refused_whatever_the_user_said(shm: Path) -> None:
    """Both fingerprints are named, and what to do."""
    source = fill(shm / "file", 1000)
    with LocalReceiver(shm, open=True) as receiver:
        own, _ = keys.identity(shm / "config")
        other, _ = keys.identity(shm / "third")
        KnownHosts(shm / "other").add(name_of("127.0.0.1", receiver.port), other.public)
        for accept_new in (False, True):
            refused, _ = send(shm, source, receiver.port, accept_new=accept_new, confirm=lambda *_: True)
            assert refused.code == 8 and refused.bytes_sent == 0
            assert fingerprint(own.public) in refused.message and fingerprint(other.public) in refused.message
            assert "ftx peers remove" in refused.message
        assert not (receiver.into / "file").exists()


def test_g7_a_receiver_that_was_set_up_anew_is_not_paired_with_under_its_old_name(shm: Path) -> None:
    """It knows nobody any more, and would have senders asked for a code. The key on file says that it is another."""
    source = fill(shm / "file", 1000)
    with LocalReceiver(shm) as receiver:
        other, _ = keys.identity(shm / "third")
        KnownHosts(shm / "other").add(name_of("127.0.0.1", receiver.port), other.public)
        refused, seen = send(shm, source, receiver.port)
        assert refused.code == 8 and "another key than it had" in refused.message
        assert "paired" not in [event.type for event in seen]
