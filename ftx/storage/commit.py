"""The only module that renames: what makes a partial a file of the destination.

G1 and G5, in this order and no other: the caller has verified every chunk and agreed on the root digest;
sync of the contents; metadata, and a sync of it; rename; sync of the folders; only then may a receipt be given,
and the journal go. A crash before the rename leaves the old file and a partial that resumes; one after it leaves
the new file. What was written in one go is published in groups, each step for all of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, groupby

from ftx.errors import DestinationError, Exists, FtxError, NoSpace
from ftx.options import Exists as Policy
from ftx.protocol.manifest import Entry, Kind
from ftx.storage import disk
from ftx.storage.look import other_names
from ftx.storage.partial import Partial
from ftx.storage.paths import Folder, Root, check_name, components, file_components
from ftx.storage.scratch import Scratch, Whole


def publish(root: Root, partial: Partial, policy: Policy, *, fsync: bool) -> bytes:
    """Give a verified partial its final name, durably; the path it got.

    Raises:
        SyncFailed: its contents did not reach the disk; nothing was published.
        Exists, IsFolder, DestinationError: the name cannot be had; the partial is kept.
    """
    entry = partial.entry
    parts = file_components(entry.path)
    with disk.destination_errors(entry.path):
        if disk.size(partial.fd) != entry.size:
            raise DestinationError(f"{disk.show(entry.path)}: somebody else changed its partial")
        if fsync:
            partial.seal()  # the long one: a crash in it leaves a partial that can be opened again
        disk.set_times(partial.fd, entry.mtime_ns)
        disk.set_mode(partial.fd, entry.mode)
        if fsync:
            disk.sync_file(partial.fd)
        with root.folder(parts[:-1], make=True) as folder:
            folder.make_writable()
            name = _place(partial.name, partial.folder, folder, parts[-1], policy, entry)
            if fsync:
                try:
                    root.sync(parts[:-1], folder)
                except OSError as error:
                    raise _unsure(entry, error) from error
        return b"/".join((*parts[:-1], name))


def publish_group(
    root: Root, scratch: Scratch, wholes: Sequence[Whole], policy: Policy, *, fsync: bool
) -> list[tuple[Whole, bytes | FtxError]]:
    """Give everything in ``wholes`` its final name, durably and in groups: the path it got, or why it has none.

    Raises:
        SyncFailed, NoSpace: what was written did not reach the disk; nothing was published, and it can be tried again.
    """
    results: list[tuple[Whole, bytes | FtxError]] = []
    ready: list[Whole] = []
    with scratch.turn:
        for whole in wholes:
            try:
                if not whole.there:
                    whole.complete()
            except OSError as error:
                failure = disk.destination_error(whole.entry.path, error)
                if isinstance(failure, NoSpace):
                    raise failure from error  # nothing was published yet: it can be tried again
                results.append((whole, failure))
            else:
                ready.append(whole)
    if fsync:
        scratch.sync(ready)
    together = fsync and scratch.syncs_together(len(ready))
    for above, members in groupby(ready, lambda whole: whole.entry.path.rpartition(b"/")[0]):
        results += _publish_in(root, scratch, above, list(members), policy, sync=fsync and not together)
    if together:
        try:
            scratch.sync_all()
        except OSError as error:
            return [(whole, _unsure(whole.entry, error)) for whole, _ in results]
    return results


def _unsure(entry: Entry, error: OSError) -> DestinationError:
    """Its name is there, and a sync failed behind that. Never NoSpace: what was renamed cannot be tried again."""
    return DestinationError(f"{disk.show(entry.path)}: its name may not be on the disk ({error.strerror})")


def _publish_in(
    root: Root, scratch: Scratch, above: bytes, wholes: Sequence[Whole], policy: Policy, *, sync: bool
) -> list[tuple[Whole, bytes | FtxError]]:
    """Those of a group that belong to the folder ``above``; with ``sync`` their names are made durable."""
    results: list[tuple[Whole, bytes | FtxError]] = []
    with ExitStack() as stack:
        with scratch.turn:
            try:
                parts = components(above)
                with disk.destination_errors(above):
                    folder = stack.enter_context(root.folder(parts, make=True))
            except FtxError as error:
                return [(whole, error) for whole in wholes]
            try:
                folder.make_writable()
            except OSError as error:
                return [(whole, disk.destination_error(whole.entry.path, error)) for whole in wholes]
            for whole in wholes:
                path = whole.entry.path
                scratch.placing = whole
                try:
                    if scratch.over:
                        raise DestinationError(f"{disk.show(path)}: the session is over")
                    name = path[len(above) + 1 :] if above else path
                    check_name(name, path)
                    name = _publish_one(scratch, whole, folder, name, policy, sync=sync)
                except FtxError as error:
                    results.append((whole, error))
                except OSError as error:
                    results.append((whole, disk.destination_error(path, error)))
                else:
                    results.append((whole, above + b"/" + name if above else name))
                finally:
                    scratch.placing = None
        if sync:
            try:
                root.sync(parts, folder)
            except OSError as error:
                return [(whole, _unsure(whole.entry, error)) for whole in wholes]
    return results


def _publish_one(scratch: Scratch, whole: Whole, folder: Folder, name: bytes, policy: Policy, *, sync: bool) -> bytes:
    """One of a group; the name it got."""
    entry = whole.entry
    if entry.kind is not Kind.FOLDER:
        name = _place(whole.name, scratch.folder(), folder, name, policy, entry)
        whole.there = False
        if whole.fd >= 0:
            whole.close()
        return name
    ours = policy is Policy.REPLACE
    try:
        fd = disk.open_folder(name, folder=folder.fd)
    except FileNotFoundError:
        disk.make_folder(name, 0o700, folder=folder.fd)
        ours = True
        fd = disk.open_folder(name, folder=folder.fd)
    try:
        folder.refuse_folded(name, entry.path)
        if ours:  # one that came meanwhile is kept as it is
            disk.set_mode(fd, entry.mode)
            disk.set_times(fd, entry.mtime_ns)
        if sync:
            disk.sync_folder(fd)
    finally:
        os.close(fd)
    return name


def _place(old: bytes, old_folder: Folder, folder: Folder, name: bytes, policy: Policy, entry: Entry) -> bytes:
    """Rename or link what was written to its name; the name it got."""
    if folder.may_fold(name) and disk.look(name, folder=folder.fd) is not None:
        folder.refuse_folded(name, entry.path)
    if policy is Policy.REPLACE:
        disk.rename(old, name, old_folder=old_folder.fd, new_folder=folder.fd)
        folder.note(name)
        return name
    shown = disk.show(entry.path)
    for candidate in chain([name], other_names(name) if policy is Policy.RENAME else ()):
        try:
            disk.link(old, candidate, old_folder=old_folder.fd, new_folder=folder.fd)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                text = "the file system has no hard links, so only `--exists replace` works there"
                raise DestinationError(f"{shown}: {text}") from error
            raise
        try:
            disk.unlink(old, folder=old_folder.fd)
        except OSError as error:  # not to be tried again: it would get another name
            text = f"{shown}: it is there, and its old name could not be taken away ({error.strerror})"
            raise DestinationError(text) from error
        folder.note(candidate)
        return candidate
    raise Exists(f"{shown}: a file of this name appeared at the destination")
