"""``peers``: who may come here besides this user, and what each may do. A file that people can read and edit.

A line is a name, a fingerprint, and what narrows the rights of that peer, in any order:

    NAME FINGERPRINT [dir=FOLDER] [rights=RIGHT,…] [quota=SIZE] [max-size=SIZE] [# comment]

G7: rights hang on the key. A peer on file has those of its line, whatever else would let it in; one whose line means
nothing is not let in. Lines of others are not looked at then, whatever is in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain, count
from pathlib import Path
from typing import Any

from ftx.errors import UsageError
from ftx.net.identity import fingerprint, public_key
from ftx.net.lines import Lines, appended, said
from ftx.options import peer_name, relative, size

FILE = "peers"
_HEAD = b"""\
# Who may come here, and what each may do: a name and a fingerprint a line, and what narrows it.
#   dir=FOLDER         everything goes below this folder of the receiver's --dir (a space is %20)
#   rights=read,write  which of read and write; append-only in place of write adds, and changes nothing
#   quota=SIZE         what FOLDER may hold
#   max-size=SIZE      the largest file
"""


class Right(Enum):
    """What a peer may do."""

    READ = "read"  #: get what is there
    WRITE = "write"  #: send files, also in the place of others
    APPEND_ONLY = "append-only"  #: send files; nothing that is there changes


READ_WRITE = frozenset({Right.READ, Right.WRITE})


@dataclass(frozen=True, slots=True)
class Peer:
    """A line of the file.

    Raises:
        ValueError: it means nothing.

    Attributes:
        name: what this user calls it.
        public: its key.
        folder: below the receiver's ``--dir``, where all goes that it sends; empty for ``--dir`` itself.
        rights: what it may do.
        quota: bytes that its folder may hold; None for any.
        max_size: bytes of a file; None for any.
    """

    name: str
    public: bytes
    folder: bytes = b""
    rights: frozenset[Right] = READ_WRITE
    quota: int | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        peer_name(self.name)
        if not self.rights or self.rights >= {Right.WRITE, Right.APPEND_ONLY}:
            raise ValueError("rights are one or more of read, write and append-only; the last two exclude each other")
        if self.quota is not None and not self.folder:
            raise ValueError("a quota needs a folder of the peer's own; give it a dir")


def rights(text: str) -> frozenset[Right]:
    """Rights as they are written, ``read,write``.

    Raises:
        ValueError: they mean nothing.
    """
    try:
        return frozenset(map(Right, text.split(",")))
    except ValueError:
        raise ValueError(f"{text!r} are no rights; write one or more of read, write, append-only") from None


#: What narrows a peer: how it is written, the field of ``Peer``, and how it is read.
_TERMS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "dir": ("folder", lambda text: os.fsencode(relative(_plain(text)))),
    "rights": ("rights", rights),
    "quota": ("quota", size),
    "max-size": ("max_size", size),
}


class Peers:
    """The file in the configuration folder. It is read anew by each call, so that a change counts from then on."""

    def __init__(self, config: Path) -> None:
        self.path = config / FILE
        self._lines = Lines(self.path, _HEAD)

    def find(self, public: bytes) -> Peer | None:
        """Who has this key; None if it is not on file.

        Raises:
            UsageError: the file cannot be read, others can write to it, the peer's line means nothing, or it has two.
        """
        wanted = fingerprint(public).encode()
        mine = [(number, words) for number, words in self._lines.words() if wanted in words]
        if len(mine) > 1:
            raise UsageError(f"{self.path}, line {mine[1][0]}: this peer has a line already, line {mine[0][0]}")
        return self._peer(*mine[0]) if mine else None

    def all(self) -> list[Peer]:
        """Everybody on file.

        Raises:
            UsageError: the file cannot be read, others can write to it, or a line means nothing.
        """
        return [self._peer(number, words) for number, words in self._lines.words()]

    def count(self) -> int:
        """How many lines there are.

        Raises:
            UsageError: the file cannot be read, or others can write to it.
        """
        return sum(1 for _ in self._lines.words())

    def has(self, name: str) -> bool:
        """Whether a line, be it one that means nothing, is about the peer of this name or fingerprint.

        Raises:
            UsageError: the file cannot be read, or others can write to it.
        """
        return any(os.fsencode(name) in words[:2] for _, words in self._lines.words())

    def add(self, name: str, public: bytes) -> str:
        """Let the peer with this key come here, to read and write; the name that it has then.

        What is on file for the key stays as it is. A name that is in use gets a number.

        Raises:
            UsageError: that is no name, or others can write to the file.
            OSError: it cannot be written down.
        """
        wanted = fingerprint(public).encode()
        found = ""

        def edit(lines: list[bytes]) -> list[bytes]:
            nonlocal found
            there = [words for line in lines if (words := said(line))]
            if mine := next((words for words in there if wanted in words), None):
                found = os.fsdecode(mine[0])
                return lines
            taken = {words[0] for words in there}
            names = chain([name], (f"{name}-{number}" for number in count(2)))
            found = next(one for one in names if os.fsencode(one) not in taken)
            return appended(lines, _line(_meant("", Peer, found, public)))

        self._lines.change(edit)
        return found

    def change(self, name: str, /, **fields: Any) -> Peer:
        """Give the peer of this name or fingerprint other values for these fields of ``Peer``; what it is then.

        Raises:
            UsageError: nobody is called so, or several are; what it was or is to be means nothing; the new name is
                another's; others can write to the file.
            OSError: it cannot be written down.
        """
        changed: list[Peer] = []

        def edit(lines: list[bytes]) -> list[bytes]:
            at = self._only(lines, name)
            before = self._peer(at + 1, said(lines[at]))
            after = _meant(f"{before.name}: ", replace, before, **fields)
            others = [words[0] for other, line in enumerate(lines) if other != at and (words := said(line))]
            if os.fsencode(after.name) in others:
                raise UsageError(f"another peer is called {after.name} already")
            changed.append(after)
            return [*lines[:at], _line(after) + _behind(lines[at]), *lines[at + 1 :]]

        self._lines.change(edit)
        return changed[0]

    def remove(self, name: str) -> list[str]:
        """Take the peer of this name or fingerprint off the file; the names that went. What it has sent stays.

        Raises:
            UsageError: others can write to the file.
            OSError: it cannot be written down.
        """
        gone: list[str] = []

        def edit(lines: list[bytes]) -> list[bytes]:
            gone.extend(os.fsdecode(said(line)[0]) for line in lines if _is_about(line, name))
            return [line for line in lines if not _is_about(line, name)]

        self._lines.change(edit)
        return gone

    def _only(self, lines: list[bytes], name: str) -> int:
        """Which line is about the peer of this name."""
        found = [at for at, line in enumerate(lines) if _is_about(line, name)]
        if not found:
            raise UsageError(f"nobody is called {name} in {self.path}")
        if len(found) > 1:
            raise UsageError(f"{self.path}, line {found[1] + 1}: {name} has a line already, line {found[0] + 1}")
        return found[0]

    def _peer(self, number: int, words: list[bytes]) -> Peer:
        return _meant(f"{self.path}, line {number}: ", _parse, words)


def _meant(where: str, make: Callable[..., Peer], *args: Any, **kwargs: Any) -> Peer:
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        raise UsageError(f"{where}{error}") from error


def _is_about(line: bytes, name: str) -> bool:
    """Whether a line is about the peer of this name or fingerprint, also one that means nothing."""
    return os.fsencode(name) in said(line)[:2]


def _parse(words: list[bytes]) -> Peer:
    try:
        public = public_key(words[1].decode())
    except (IndexError, ValueError):
        raise ValueError("no fingerprint behind the name") from None
    fields: dict[str, Any] = {}
    for word in words[2:]:
        term, _, value = os.fsdecode(word).partition("=")
        if term not in _TERMS:
            raise ValueError(f"{term!r} means nothing; write {', '.join(_TERMS)}, each with = and a value")
        field, read = _TERMS[term]
        if field in fields:
            raise ValueError(f"{term} is there twice")
        fields[field] = read(value)
    return Peer(os.fsdecode(words[0]), public, **fields)


def terms(peer: Peer) -> dict[str, str]:
    """What narrows a peer, as it is written."""
    found = {}
    if peer.folder:
        found["dir"] = _escaped(peer.folder)
    if peer.rights != READ_WRITE:
        found["rights"] = ",".join(right.value for right in Right if right in peer.rights)
    if peer.quota is not None:
        found["quota"] = _size(peer.quota)
    if peer.max_size is not None:
        found["max-size"] = _size(peer.max_size)
    return found


def _line(peer: Peer) -> bytes:
    narrowed = [f"{term}={value}" for term, value in terms(peer).items()]
    return os.fsencode(" ".join([peer.name, fingerprint(peer.public), *narrowed]))


def _behind(line: bytes) -> bytes:
    """The end of a line that says nothing: its comment, and its newline."""
    found = re.search(rb"\s+#|\s*\Z", line)
    return line[found.start() :] if found else b""


def _escaped(folder: bytes) -> str:
    """A folder as one word."""
    return re.sub(r"[%\s\x00-\x1f\x7f]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()),
                  os.fsdecode(folder))  # fmt: skip


def _plain(text: str) -> str:
    """The folder that such a word stands for."""
    return os.fsdecode(re.sub(rb"%([0-9a-fA-F]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(text)))


def _size(number: int) -> str:
    """A size as people write it, to the byte."""
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if number and number % 1024**power == 0:
            return f"{number >> 10 * power}{unit}"
    return str(number)
