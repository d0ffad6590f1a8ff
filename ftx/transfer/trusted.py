"""Whom this user trusts: the peers that may come here, and the receivers that are the ones that are meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftx.errors import NameRefused, UsageError
from ftx.net import keys
from ftx.net.identity import fingerprint, public_key
from ftx.net.known import KnownHosts
from ftx.net.peers import Peer, Peers, Right, rights, terms
from ftx.storage.paths import components
from ftx.transfer import events

__all__ = ["Peer", "Trusted", "rights", "terms"]


class Trusted:
    """Both files in the configuration folder, and this user's own key.

    Every call raises ``UsageError`` for what is wrong with a file or a name, or cannot be written.
    """

    def __init__(self, config: Path) -> None:
        self._config = config
        self._peers = Peers(config)
        self._known = KnownHosts(config)

    def tell(self, on_event: events.OnEvent) -> None:
        """Of this user's own key, then of each peer, then of each receiver."""
        own, lasting = keys.identity(self._config)
        if not lasting:
            raise UsageError(f"{self._config} ($FTX_CONFIG_DIR) cannot be written to: this user has no lasting key")
        on_event(events.OwnKey(fingerprint(own.public)))
        for peer in self._peers.all():
            may = tuple(right.value for right in Right if right in peer.rights)
            shown = fingerprint(peer.public)
            on_event(events.MayCome(peer.name, shown, may, peer.folder, peer.quota, peer.max_size))
        for name, public in self._known.all().items():
            on_event(events.KnownReceiver(name, fingerprint(public)))

    def add(self, name: str, text: str) -> str:
        """Let the peer with this fingerprint come here; the name that it has on file."""
        try:
            public = public_key(text)
        except ValueError as error:
            raise UsageError(f"{text!r} is no fingerprint, as `ftx peers` shows them") from error
        if public == keys.identity(self._config)[0].public:
            raise UsageError("that is your own fingerprint; the same user may always come here")
        with self._written(self._peers.path):
            return self._peers.add(name, public)

    def change(self, name: str, /, **fields: Any) -> Peer:
        """Give a peer other values for these fields; what it is then."""
        try:
            components(fields.get("folder", b""))
        except NameRefused as error:
            raise UsageError(str(error)) from error
        with self._written(self._peers.path):
            return self._peers.change(name, **fields)

    def remove(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Take these peers and receivers, by name or fingerprint, off both files; what went: which kind, its name.

        Nothing goes if one of them is on neither.
        """
        for name in names:
            if not self._peers.has(name) and not self._known.has(name):
                raise UsageError(f"{name} is neither a peer that may come here nor a receiver that you trust")
        for name in names:
            with self._written(self._peers.path):
                yield from (("peer", gone) for gone in self._peers.remove(name))
            with self._written(self._known.path):
                yield from (("receiver", gone) for gone in self._known.remove(name))

    @contextmanager
    def _written(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
