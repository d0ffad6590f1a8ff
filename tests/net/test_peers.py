"""Keys: made whole, read back, and refused where they cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftx.errors import UsageError
from ftx.net import peers
from ftx.protocol.messages import Method


def test_a_listener_makes_keys_and_its_dialer_finds_them(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert peers.keys(tmp_path / "config", None, listener=False) == {}
    made = peers.keys(tmp_path / "config", secret, listener=True)
    assert set(made) == {Method.RUN_KEY, Method.SECRET}
    assert peers.keys(tmp_path / "config", secret, listener=False) == made
    files = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"secret": 0o600, peers.RUN_KEY: 0o600}


@pytest.mark.parametrize("text", [b"", b"zz" * 32, b"00" * 31, b"00" * 33])
def test_what_is_no_key(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="does not hold a key"):
        peers.secret_key(path, make=True)


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    peers.secret_key(path, make=True)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="open to others"):
        peers.secret_key(path, make=False)


def test_g11_a_configuration_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """It says which; and a dialer without one is somebody else each time."""
    (tmp_path / "file").touch()
    config = tmp_path / "file" / "config"
    with pytest.raises(UsageError, match="config"):
        peers.keys(config, None, listener=True)
    (one, lasting), (other, _) = peers.identity(config), peers.identity(config)
    assert one != other and not lasting


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space"):
        peers.secret_key(tmp_path / "secret", make=True)
    assert list(tmp_path.iterdir()) == []
