"""``known_hosts``: which receivers this user trusts, and by which key. A file that people can read and edit.

A line is a name and a fingerprint; more words are a comment. The name is what the user typed, with the port where it is
not the usual one. Lines of other names are not looked at, whatever is in them.
"""

from __future__ import annotations

import os
from pathlib import Path

from ftx.errors import UsageError
from ftx.net.identity import fingerprint, public_key
from ftx.net.lines import Lines, appended, said
from ftx.protocol.messages import DEFAULT_PORT

FILE = "known_hosts"
_HEAD = b"# Receivers that this user trusts, a name and a fingerprint a line.\n"


def name_of(host: str, port: int) -> str:
    """What a receiver is called there: its host, and its port if that is not the usual one."""
    return host if port == DEFAULT_PORT else f"[{host}]:{port}"


class KnownHosts:
    """The file in the configuration folder."""

    def __init__(self, config: Path) -> None:
        self.path = config / FILE
        self._lines = Lines(self.path, _HEAD)

    def find(self, name: str) -> bytes | None:
        """The public key on file for this name; the last, if there are several.

        Raises:
            UsageError: the file cannot be read, others can write to it, or the line of this name means nothing.
        """
        found: bytes | None = None
        for number, words in self._lines.words():
            if words[0] == os.fsencode(name):
                found = self._key(number, words)
        return found

    def all(self) -> dict[str, bytes]:
        """The public key of each name.

        Raises:
            UsageError: the file cannot be read, others can write to it, or a line of it means nothing.
        """
        return {os.fsdecode(words[0]): self._key(number, words) for number, words in self._lines.words()}

    def names(self, public: bytes) -> list[str]:
        """The names under which this key is on file.

        Raises:
            UsageError: the file cannot be read, or others can write to it.
        """
        wanted = fingerprint(public).encode()
        return [os.fsdecode(words[0]) for _, words in self._lines.words() if words[1:2] == [wanted]]

    def has(self, name: str) -> bool:
        """Whether a line is about the receiver of this name or fingerprint.

        Raises:
            UsageError: the file cannot be read, or others can write to it.
        """
        return any(os.fsencode(name) in words[:2] for _, words in self._lines.words())

    def add(self, name: str, public: bytes) -> None:
        """Trust this key, and no other, under this name from here on.

        Raises:
            OSError: it cannot be written down.
            UsageError: others can write to the file.
        """
        words = [os.fsencode(name), fingerprint(public).encode()]

        def edit(lines: list[bytes]) -> list[bytes]:
            mine = [line for line in lines if said(line)[:1] == words[:1]]
            if mine and said(mine[-1])[:2] == words:
                return lines  # another process was faster
            return appended([line for line in lines if line not in mine], b" ".join(words))

        self._lines.change(edit)

    def remove(self, name: str) -> list[str]:
        """Trust the receiver of this name, or all with this fingerprint, no longer; the names that went.

        Raises:
            OSError, UsageError: as ``add``.
        """
        wanted = os.fsencode(name)
        gone: list[str] = []

        def edit(lines: list[bytes]) -> list[bytes]:
            gone.extend(os.fsdecode(said(line)[0]) for line in lines if wanted in said(line)[:2])
            return [line for line in lines if wanted not in said(line)[:2]]

        self._lines.change(edit)
        return gone

    def _key(self, number: int, words: list[bytes]) -> bytes:
        try:
            return public_key(words[1].decode())
        except (IndexError, ValueError) as error:
            raise UsageError(f"{self.path}, line {number}: no fingerprint behind the name") from error
