"""``known_hosts``, and fingerprints as people read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftx.errors import UsageError
from ftx.net.identity import Identity, fingerprint, public_key, signed_by
from ftx.net.known import FILE, KnownHosts, name_of

ONE, OTHER = (Identity(seed * 32).public for seed in (b"1", b"2"))


def test_who_is_not_on_file(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "config")
    assert known.find("there") is None
    assert not (tmp_path / "config").exists()


def test_what_is_written_down_is_found(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "config")
    known.add("there", ONE)
    known.add("[there]:7000", OTHER)
    known.add("there", ONE)  # again: nothing is new
    assert (known.find("there"), known.find("[there]:7000"), known.find("elsewhere")) == (ONE, OTHER, None)
    lines = known.path.read_text().splitlines()
    assert lines[1:] == [f"there {fingerprint(ONE)}", f"[there]:7000 {fingerprint(OTHER)}"]
    assert known.path.stat().st_mode & 0o777 == 0o600


def test_g7_a_name_has_one_key_and_may_have_an_earlier_one_again(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "config")
    for public in (ONE, OTHER, ONE):
        known.add("there", public)
        assert known.find("there") == public
    assert known.names(OTHER) == [] and known.names(ONE) == ["there"]


def test_a_file_that_a_person_has_edited(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(
        f"# ours\n\nthere   {fingerprint(ONE)}\nthere\t{fingerprint(OTHER)}\nlast {fingerprint(ONE)}"
    )
    known = KnownHosts(tmp_path)
    assert (known.find("there"), known.find("last")) == (OTHER, ONE)
    known.add("new", OTHER)
    assert (known.find("last"), known.find("new")) == (ONE, OTHER)


@pytest.mark.parametrize(
    "line", ["there", "there ed25519:short", "there ed25519:" + "!" * 43, "there rsa:x", "there #"]
)
def test_g7_a_line_that_means_nothing_is_not_passed_over(tmp_path: Path, line: str) -> None:
    """It is the one that counts, damaged. Those of other names do not matter."""
    (tmp_path / FILE).write_text(f"there {fingerprint(ONE)}\n{line}\nelse {fingerprint(OTHER)}  # ours\n")
    with pytest.raises(UsageError, match="line 2"):
        KnownHosts(tmp_path).find("there")
    assert KnownHosts(tmp_path).find("else") == OTHER


def test_what_is_no_text_is_kept(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\n")
    known = KnownHosts(tmp_path)
    assert known.find("there") is None
    known.add("there", ONE)
    assert known.find("there") == ONE
    assert known.path.read_bytes().startswith(b"\xff\xfe\n")


def test_g7_a_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path)
    known.add("there", ONE)
    known.path.chmod(0o620)
    with pytest.raises(UsageError, match="others can write"):
        known.find("there")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageError, match="known_hosts: Is a directory"):
        KnownHosts(tmp_path).find("there")


def test_names() -> None:
    assert name_of("there", 7389) == "there"
    assert name_of("there", 7000) == "[there]:7000"
    assert name_of("::1", 7389) == "::1"


def test_fingerprints() -> None:
    assert public_key(fingerprint(ONE)) == ONE
    assert len(fingerprint(ONE)) == len("ed25519:") + 43
    text = fingerprint(ONE)
    for wrong in (text[:-1], text + "A", text.removeprefix("ed25519:"), text.replace("ed25519", "rsa"), "ed25519:", ""):
        with pytest.raises(ValueError):
            public_key(wrong)


def test_a_key_has_one_fingerprint() -> None:
    """The last character has two bits that mean nothing: with others there it is no fingerprint."""
    text = fingerprint(ONE)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same = [text[:-1] + alphabet[alphabet.index(text[-1]) + extra] for extra in (1, 2, 3)]
    for other in same:
        with pytest.raises(ValueError, match="no fingerprint"):
            public_key(other)


@pytest.mark.parametrize("sign", [0, 0x80])
def test_g7_a_key_of_small_order_is_nobodys(sign: int) -> None:
    """A signature for it that holds for many messages can be made without any private key."""
    order_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
    other_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
    p = 2**255 - 19
    for key in (*((y % 2**256).to_bytes(32, "little") for y in (0, 1, p - 1, p, p + 1)), order_8, other_8):
        public = key[:31] + bytes([key[31] | sign])
        signatures = [point + bytes(32) for point in (b"\1" + bytes(31), public, key)]
        assert not any(signed_by(public, one, b"%d" % n) for n in range(16) for one in signatures)


def test_g7_a_signature_is_its_makers_alone() -> None:
    one, data = Identity(b"1" * 32), os.urandom(32)
    signature = one.sign(data)
    assert signed_by(ONE, signature, data)
    for public, what, signed in (
        (OTHER, data, signature),
        (ONE, data + b"x", signature),
        (ONE, data, signature[:-1]),
        (ONE, data, b""),
        (ONE, data, bytes(64)),
        (bytes(32), data, bytes(64)),
        (b"\xff" * 32, data, signature),
        (b"short", data, signature),
    ):
        assert not signed_by(public, signed, what)
