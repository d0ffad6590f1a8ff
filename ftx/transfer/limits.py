"""What one session may do at the destination: the receiver's rules, narrowed by what is on file of its peer.

G7: each limit of a line only takes away. Nothing that a peer sends is asked for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakValueDictionary

from ftx.errors import Refused
from ftx.net.peers import Peer, Right
from ftx.options import Exists
from ftx.protocol.manifest import MAX_FILE_SIZE
from ftx.storage.paths import Root, components
from ftx.storage.quota import Account


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may do.

    Attributes:
        root: its view of the destination.
        folder: where its paths begin, from the destination on.
        policy: what happens to a different file of the same name.
        max_size: bytes of the largest file that is taken.
        account: of a peer with a quota.
    """

    root: Root
    folder: bytes
    policy: Exists
    max_size: int = MAX_FILE_SIZE
    account: Account | None = None


class Accounts:
    """The accounts of peers with a quota, each for as long as one of their sessions has it."""

    def __init__(self) -> None:
        self._accounts: WeakValueDictionary[tuple[bytes, bytes], Account] = WeakValueDictionary()

    def of(self, peer: Peer, peer_id: bytes, root: Root) -> Account | None:
        """That of a peer; None without a quota. The caller lets nobody else in meanwhile."""
        if peer.quota is None:
            return None
        key = peer_id, peer.folder
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(root, peer.folder, peer_id, peer.name, peer.quota)
        account.renew(peer.quota)
        return account


def narrowed(
    root: Root, folder: bytes, policy: Exists, peer: Peer | None, peer_id: bytes, accounts: Accounts
) -> Limits:
    """What a sender may do.

    Args:
        root, folder, policy: of the receiver and of OPEN.
        peer: what is on file of it; None for whom nothing narrows.

    Raises:
        Refused: it may not send at all.
        NameRefused: the folder of OPEN, or its own, is none.
    """
    components(folder)
    if peer is None:
        return Limits(root, folder, policy)
    if not peer.rights & {Right.WRITE, Right.APPEND_ONLY}:
        raise Refused(
            f"{peer.name} may not send to this receiver. Whoever runs it lets it with "
            f"`ftx peers restrict {peer.name} --rights read,write` there"
        )
    adds_only = Right.WRITE not in peer.rights
    depth = len(components(peer.folder))
    return Limits(
        # What has no entry of the peer's own is not its to change: its folder, and those above.
        root=root.keeping(math.inf if adds_only else depth),
        folder=b"/".join(filter(None, (peer.folder, folder))),
        policy=Exists.RENAME if adds_only and policy is Exists.REPLACE else policy,
        max_size=MAX_FILE_SIZE if peer.max_size is None else min(peer.max_size, MAX_FILE_SIZE),
        account=accounts.of(peer, peer_id, root),
    )
