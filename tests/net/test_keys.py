"""Keys: made whole, read back, and refused where they cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftx.errors import UsageError
from ftx.net import keys
from ftx.net.identity import fingerprint

RECEIVER = b"r" * 32
TWO = fingerprint(RECEIVER)


def test_a_listener_makes_the_secret_and_its_dialer_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = keys.secret(path, make_for=RECEIVER)
    assert made.receivers == {RECEIVER}
    assert keys.secret(path) == made == keys.secret(path, make_for=b"o" * 32)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_secret_of_no_receiver_and_of_several(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for receivers in (set(), {RECEIVER}, {RECEIVER, b"o" * 32}):
        path.write_text("\n".join(["A1" * 32, *map(fingerprint, receivers)]) + "\n")
        path.chmod(0o600)
        assert keys.secret(path) == keys.Secret(b"\xa1" * 32, frozenset(receivers))


@pytest.mark.parametrize("more", ["x", "ed25519:x", "a1" * 32, f"{TWO} {TWO}", f" {TWO}", f"\n{TWO}"])
def test_g7_what_is_no_fingerprint_is_not_passed_over(tmp_path: Path, more: str) -> None:
    path = tmp_path / "secret"
    path.write_text("a1" * 32 + "\n" + more)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="fingerprints"):
        keys.secret(path)


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    (one, lasting), (other, _) = (keys.identity(tmp_path / "config") for _ in range(2))
    assert lasting
    assert (one.public, one.tag_key) == (other.public, other.tag_key)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "config").iterdir()}
    assert files == {keys.IDENTITY: 0o600}


def test_g7_an_identity_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    keys.identity(tmp_path)
    (tmp_path / keys.IDENTITY).chmod(0o640)
    with pytest.raises(UsageError, match="open to others"):
        keys.identity(tmp_path)


@pytest.mark.parametrize("text", [b"", b"zz" * 32, b"00" * 31, b"00" * 33])
def test_what_is_no_key(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="does not hold a key"):
        keys.secret(path, make_for=RECEIVER)


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    keys.secret(path, make_for=RECEIVER)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="open to others"):
        keys.secret(path)


def test_g11_a_configuration_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Whoever has none is somebody else each time."""
    (tmp_path / "file").touch()
    config = tmp_path / "file" / "config"
    (one, lasting), (other, _) = keys.identity(config), keys.identity(config)
    assert one.public != other.public and not lasting


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space"):
        keys.secret(tmp_path / "secret", make_for=RECEIVER)
    assert list(tmp_path.iterdir()) == []
