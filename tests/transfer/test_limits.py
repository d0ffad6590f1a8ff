"""What a line of ``peers`` leaves of what a session may do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftx.errors import NameRefused, Refused
from ftx.net.peers import Peer, Right
from ftx.options import Exists
from ftx.protocol.manifest import MAX_FILE_SIZE
from ftx.storage.paths import Root
from ftx.transfer.limits import Accounts, Limits, narrowed
from tests.storage.support import NEEDS_ROOT, PEER, in_child

KEY = bytes(32)
APPEND_ONLY = frozenset({Right.APPEND_ONLY})


@pytest.fixture
def root(shm: Path) -> Iterator[Root]:
    (shm / "into" / "mine" / "closed").mkdir(parents=True)
    root = Root(shm / "into")
    yield root
    root.close()


def limits(root: Root, peer: Peer | None, folder: bytes = b"", policy: Exists = Exists.REPLACE) -> Limits:
    return narrowed(root, folder, policy, peer, PEER, Accounts())


def test_who_is_not_on_file_is_not_narrowed(root: Root) -> None:
    assert limits(root, None, b"a") == Limits(root, b"a", Exists.REPLACE, MAX_FILE_SIZE, None)


@pytest.mark.parametrize("policy", list(Exists))
@pytest.mark.parametrize("rights", [APPEND_ONLY, frozenset({Right.WRITE})], ids=["append-only", "write"])
def test_g1_the_policy_of_who_only_adds(root: Root, policy: Exists, rights: frozenset[Right]) -> None:
    replaces = policy is Exists.REPLACE and rights == APPEND_ONLY
    expected = Exists.RENAME if replaces else policy
    assert limits(root, Peer("laptop", KEY, rights=rights), policy=policy).policy is expected


def test_g7_who_may_only_read_may_not_send(root: Root) -> None:
    with pytest.raises(Refused, match="ftx peers restrict laptop --rights read,write"):
        limits(root, Peer("laptop", KEY, rights=frozenset({Right.READ})))


@pytest.mark.parametrize(("own", "opened"), [(b"", b"../x"), (b"mine", b".."), (b".ftx", b""), (b"a/.FTX", b"x")])
def test_g6_folders_that_are_none(root: Root, own: bytes, opened: bytes) -> None:
    with pytest.raises(NameRefused):
        limits(root, Peer("laptop", KEY, folder=own), opened)


def test_a_peer_lowers_no_more_than_the_protocol_does(root: Root) -> None:
    sizes = [limits(root, Peer("laptop", KEY, max_size=size)).max_size for size in (None, 0, 5, 2**60)]
    assert sizes == [MAX_FILE_SIZE, 0, 5, MAX_FILE_SIZE]


def test_the_sessions_of_a_peer_share_an_account(root: Root) -> None:
    accounts = Accounts()

    def account(quota: int | None, folder: bytes = b"mine", peer_id: bytes = PEER) -> object:
        peer = Peer("laptop", KEY, folder=folder, quota=quota)
        return narrowed(root, b"", Exists.REPLACE, peer, peer_id, accounts).account

    first = account(5)
    assert account(9) is first and first is not None
    assert account(None) is None
    assert first.quota == 9  # type: ignore[attr-defined]
    assert account(5, b"other") is not first
    assert account(5, peer_id=bytes(32)) is not first


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("rights", "changed"),
    [(APPEND_ONLY, []), (frozenset({Right.WRITE}), ["mine/closed"])],
    ids=["append-only", "write"],
)
def test_g6_what_a_peer_must_not_open_up(root: Root, rights: frozenset[Right], changed: list[str]) -> None:
    folders = ("mine/closed", "mine", "")
    for folder in folders:
        os.chown(root.path / folder, 65534, 65534)
        (root.path / folder).chmod(0o555)
    root.path.parent.chmod(0o755)

    def work() -> None:
        view = limits(root, Peer("laptop", KEY, folder=b"mine", rights=rights)).root
        for parts in ((), (b"mine",), (b"mine", b"closed")):
            with view.folder(parts) as folder:
                folder.make_writable()

    assert in_child(work, uid=65534) == 0
    assert [folder for folder in folders if (root.path / folder).stat().st_mode & 0o777 != 0o555] == changed
