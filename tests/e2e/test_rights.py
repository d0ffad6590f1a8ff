"""What a peer on file may do to a receiver, and what it cannot, whatever it sends. G7: rights hang on the key."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ftx import api
from ftx.errors import DestinationError, Exists, Refused, TooLarge
from ftx.net import handshake, keys
from ftx.net.handshake import Trust
from ftx.net.lane import Lane
from ftx.net.peers import FILE, Peers
from ftx.protocol import codec
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName, Kind
from ftx.protocol.messages import Role
from ftx.transfer import events
from ftx.transfer.registry import MISTAKE
from tests.hostile import peer
from tests.support.files import MIB, fill, partials, same
from tests.support.local import LocalReceiver, local_send, on_file
from tests.support.process import wait_until

QUOTA = 8 * MIB
XXH3 = DigestName.XXH3_128.function


def tree_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in a folder but ftx's own: mode, time, and contents or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0] == ".ftx":
            continue
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            content = os.fsencode(os.readlink(path))
        else:
            content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        # The time of a folder tells that names appeared in it.
        found[name] = (info.st_mode, 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns, content)
    return found


def failures(base: Path, path: Path, port: int, **options: object) -> tuple[api.Finished, list[events.EntryEnded]]:
    """A run, and the entries of it that failed."""
    ended: list[events.EntryEnded] = []

    def note(event: api.Event) -> None:
        if isinstance(event, events.EntryEnded) and event.state == "failed":
            ended.append(event)

    return local_send(base, path, port, on_event=note, **options), ended


@contextmanager
def session(config: Path, port: int, folder: bytes = b"", **fields: object) -> Iterator[Lane]:
    """A session of a peer that says what it likes, right behind OPENED."""
    own, _ = keys.identity(config)
    with closing(Lane(peer.connected(port), dialer=True)) as lane:
        handshake.dial(lane, own, {}, Trust("there", anyone=True), plain=False)
        defaults = {"session": secrets.token_bytes(16), "process": secrets.token_bytes(16), "job": bytes(32)}
        lane.order.opened(Role.SENDER)
        request = m.Open(
            **defaults, role=Role.SENDER, mode=m.Mode.TRANSFER, lanes=1, retry_for_s=60,
            digest=DigestName.XXH3_128, folder=folder,
        )  # fmt: skip
        handshake.open_session(lane, request._replace(**fields), peer.PATIENCE_S)
        yield lane


# --- who is let in -------------------------------------------------------------------------------------


def test_G7_who_is_on_file_may_send_until_it_is_removed(shm: Path) -> None:
    source = fill(shm / "file", MIB)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop")
        assert local_send(shm, source, receiver.port, config_dir=config).code == 0
        assert same(source, receiver.into / "file")
        assert Peers(shm / "config").remove("laptop") == ["laptop"]
        again = local_send(shm, source, receiver.port, config_dir=config)
        assert (again.code, again.message) == (Refused.exit_code, handshake.NOT_ALLOWED)


@pytest.mark.parametrize("option", ["secret_file", "open"])
def test_G7_what_lets_anybody_in_lifts_no_limit(shm: Path, option: str) -> None:
    source = fill(shm / "file", MIB)
    secret = {"secret_file": shm / "key"} if option == "secret_file" else {}
    with LocalReceiver(shm, open=option == "open", **secret) as receiver:
        config = on_file(receiver, shm, "laptop", "rights=read")
        sent = local_send(shm, source, receiver.port, config_dir=config, **secret)
        assert sent.code == Refused.exit_code
        assert "ftx peers restrict laptop --rights read,write" in sent.message
        stranger = local_send(shm, source, receiver.port, config_dir=shm / "other", accept_new=True, **secret)
        assert stranger.code == 0
        assert local_send(shm, source, receiver.port).code == 0


def test_G7_a_peer_whose_line_means_nothing_is_not_let_in_and_others_are(shm: Path) -> None:
    source = fill(shm / "file", 10)
    with LocalReceiver(shm, open=True) as receiver:
        config, other = (on_file(receiver, shm, *of) for of in (("laptop", "quota=1G"), ("desk", "")))
        sent = local_send(shm, source, receiver.port, config_dir=config)
        assert (sent.code, sent.message) == (Refused.exit_code, MISTAKE)
        wait_until(lambda: receiver.of_type(events.Warn))
        (warning,) = receiver.of_type(events.Warn)
        assert f"{FILE}, line 1: a quota needs a folder" in warning.message
        assert local_send(shm, source, receiver.port, config_dir=other).code == 0


# --- its folder ----------------------------------------------------------------------------------------


def test_G6_all_that_it_sends_is_below_its_folder(shm: Path) -> None:
    source = fill(shm / "file", MIB)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=backup/my%20laptop")
        assert local_send(shm, source, receiver.port, config_dir=config).code == 0
        assert local_send(shm, source, receiver.port, config_dir=config, folder="a/b").code == 0
        below = receiver.into / "backup" / "my laptop"
        assert same(source, below / "file") and same(source, below / "a" / "b" / "file")
        assert [name for name in os.listdir(receiver.into) if name != ".ftx"] == ["backup"]


@pytest.mark.parametrize("folder", [b"..", b"../other", b"a/../../other", b"/other", b"a//b", b".ftx", b"a\0"])
def test_G6_its_folder_is_not_left_by_open(shm: Path, folder: bytes) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine")
        with pytest.raises(DestinationError), session(config, receiver.port, folder):
            pass
        assert not (receiver.into / "mine").exists() and not (shm / "other").exists()


@pytest.mark.parametrize(
    ("folder", "name"),
    [(b"..", b"x"), (b"../mine", b"x"), (b"/", b"x"), (b"a/../..", b"x"), (b"", b".."), (b"link", b"x")],
)
def test_G6_its_folder_is_not_left_by_an_entry(shm: Path, folder: bytes, name: bytes) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine")
        (receiver.into / "mine").mkdir(parents=True)
        (receiver.into / "mine" / "link").symlink_to("..")
        with session(config, receiver.port) as lane:
            lane.send(m.Folder(folder, 1, (peer.offered(name, 0),)))
            answer = peer.heard(lane, m.Refuse, m.WantAll)
        assert isinstance(answer, m.Refuse)
        assert [name for name in os.listdir(receiver.into) if name != ".ftx"] == ["mine"]
        assert os.listdir(receiver.into / "mine") == ["link"]


def test_G6_a_folder_of_a_peer_that_is_a_link_is_not_followed(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine")
        (shm / "outside").mkdir()
        (receiver.into / "mine").symlink_to(shm / "outside")
        assert local_send(shm, fill(shm / "f", 10), receiver.port, config_dir=config).code == DestinationError.exit_code
        assert os.listdir(shm / "outside") == []


# --- append-only: what a peer with this key and no good will can be made to do, one by one ---------------


@pytest.fixture
def there(shm: Path) -> Path:
    """What is at the destination already, in the folder of the peer."""
    folder = shm / "into" / "mine"
    (folder / "folder").mkdir(parents=True)
    for name, size in (("small", 100), ("large", 3 * MIB), ("folder/below", 10), ("target", 10)):
        os.utime(fill(folder / name, size), ns=(0, 10**18))
    (folder / "link").symlink_to("target")
    (folder / "to folder").symlink_to("folder")
    (folder / "folder").chmod(0o750)
    os.utime(folder / "folder", ns=(0, 10**18))
    return folder


def _replaced(source: Path) -> None:
    for name, size in (("small", 100), ("large", 3 * MIB), ("folder/below", 11)):
        (source / name).parent.mkdir(exist_ok=True)
        fill(source / name, size, seed=9)


def _through_links(source: Path) -> None:
    fill(source / "link", 50, seed=9)
    (source / "to folder").mkdir()
    fill(source / "to folder" / "below", 50, seed=9)


def _links_over_files(source: Path) -> None:
    for name in ("small", "large", "target"):
        (source / name).symlink_to("/dev/null")


def _other_link(source: Path) -> None:
    (source / "link").symlink_to("elsewhere")


def _file_for_folder(source: Path) -> None:
    fill(source / "folder", 50)


def _folder_for_file(source: Path) -> None:
    (source / "small").mkdir()
    (source / "link").mkdir(0o700)


def _modes(source: Path) -> None:
    """The very same files and folders, closed to everybody: by size and time they are what is there."""
    for name, size in (("small", 100), ("large", 3 * MIB), ("target", 10)):
        os.utime(fill(source / name, size), ns=(0, 10**18))
        (source / name).chmod(0o400)
    (source / "folder").mkdir()
    (source / "folder").chmod(0o500)


def _empty(source: Path) -> None:
    for name in ("small", "large", "link", "folder/below"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()


@pytest.mark.parametrize("exists", [None, api.Exists.REPLACE], ids=["by default", "replace"])
@pytest.mark.parametrize(
    "attack",
    [_replaced, _through_links, _links_over_files, _other_link, _file_for_folder, _folder_for_file, _modes, _empty],
)
def test_G1_append_only_changes_nothing_that_is_there(
    shm: Path, there: Path, attack: Callable[[Path], None], exists: api.Exists | None
) -> None:
    source = shm / "from"
    source.mkdir()
    attack(source)
    before = tree_of(there)
    with LocalReceiver(shm, exists=exists) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine rights=append-only")
        for _ in range(2):
            local_send(shm, os.fsencode(source) + b"/", receiver.port, config_dir=config)
            after = tree_of(there)
            assert {name: after.get(name) for name in before} == before
        assert partials(receiver.into) == []


def test_append_only_adds(shm: Path, there: Path) -> None:
    """What is new as it is called, another version beside the first; and the same again adds nothing more."""
    source = shm / "from"
    (source / "new").mkdir(parents=True)
    fill(source / "new" / "file", 3 * MIB)
    fill(source / "large", 3 * MIB, seed=9)
    (source / "new").chmod(0o755)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine rights=append-only")
        for _ in range(2):
            assert local_send(shm, os.fsencode(source) + b"/", receiver.port, config_dir=config).code == 0
            assert same(source / "new" / "file", there / "new" / "file")
            assert same(source / "large", there / "large.1")
            assert not (there / "large.2").exists()


@pytest.mark.parametrize(("exists", "code"), [(api.Exists.KEEP, 0), (api.Exists.FAIL, Exists.exit_code)])
def test_append_only_is_no_more_than_the_receiver_takes(shm: Path, there: Path, exists: api.Exists, code: int) -> None:
    before = tree_of(there)
    with LocalReceiver(shm, exists=exists) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine rights=read,append-only")
        assert local_send(shm, fill(shm / "small", 100, seed=9), receiver.port, config_dir=config).code == code
        assert tree_of(there) == before


def test_who_may_write_replaces(shm: Path, there: Path) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine rights=write")
        assert local_send(shm, fill(shm / "small", 100, seed=9), receiver.port, config_dir=config).code == 0
        assert same(shm / "small", there / "small")


# --- one peer is no other ------------------------------------------------------------------------------


def test_G7_another_peers_partials_and_sessions_are_out_of_reach(shm: Path) -> None:
    """Two keys on file, one folder, one path, one job: neither ends, joins or goes on with what the other has."""
    with LocalReceiver(shm) as receiver:
        one, other = (on_file(receiver, shm, name, "dir=both") for name in ("one", "other"))
        session_id = secrets.token_bytes(16)
        with session(one, receiver.port, session=session_id) as lane:
            lane.send(m.Folder(b"", 1, (peer.offered(b"file", 3 * MIB),)))
            peer.heard(lane, m.Want)
            (mine,) = partials(receiver.into)
            own, _ = keys.identity(other)
            with closing(Lane(peer.connected(receiver.port), dialer=True)) as joining:
                handshake.dial(joining, own, {}, Trust("there", anyone=True), plain=False)
                with pytest.raises(Refused, match="no such session"):
                    handshake.attach(joining, m.Attach(session_id, 2), Role.SENDER)
            with session(other, receiver.port, session=session_id) as second:
                second.send(m.Folder(b"", 1, (peer.offered(b"file", 3 * MIB),)))
                refusal = peer.heard(second, m.Refuse)
                assert isinstance(refusal, m.Refuse) and refusal.items[0].code == 53
            lane.send(m.Ping(), m.Folder(b"", 2, (peer.offered(b"next", 3 * MIB),)))
            peer.heard(lane, m.Want)  # the session goes on
        wait_until(lambda: len(receiver.of_type(events.SessionEnd)) == 2)
        with session(other, receiver.port) as second:
            second.send(m.Folder(b"", 1, (peer.offered(b"file", 3 * MIB),)))
            want = peer.heard(second, m.Want)
            assert isinstance(want, m.Want) and want.held == 0
            assert mine in partials(receiver.into) and len(partials(receiver.into)) == 3


# --- sizes ---------------------------------------------------------------------------------------------


def test_a_file_above_the_largest_is_refused_by_itself(shm: Path) -> None:
    source = shm / "from"
    source.mkdir()
    for name, size in (("fits", 2 * MIB), ("large", 2 * MIB + 1), ("small", 1)):
        fill(source / name, size)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "max-size=2M")
        sent, failed = failures(shm, source, receiver.port, config_dir=config)
        assert (sent.code, sent.failed, sent.files) == (9, 1, 2)
        assert [(entry.path, entry.code) for entry in failed] == [(b"from/large", TooLarge.exit_code)]
        assert "2097152 are the most" in failed[0].message
        assert sorted(os.listdir(receiver.into / "from")) == ["fits", "small"]
        assert partials(receiver.into) == []


# --- quota ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_the_quota_is_refused_by_itself(shm: Path) -> None:
    source = shm / "from"
    source.mkdir()
    for name, size in (("a", 5 * MIB), ("b", 5 * MIB), ("c", 2 * MIB), ("d", 100)):
        fill(source / name, size)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        sent, failed = failures(shm, os.fsencode(source) + b"/", receiver.port, config_dir=config, retry_for_s=60.0)
        assert (sent.code, sent.failed) == (9, 1)
        assert [(entry.path, entry.code) for entry in failed] == [(b"b", DestinationError.exit_code)]
        assert f"do not fit into the quota of laptop, {QUOTA} bytes" in failed[0].message
        assert receiver.of_type(events.Paused) == []
        assert sorted(os.listdir(receiver.into / "mine")) == ["a", "c", "d"]
        assert partials(receiver.into) == []


def test_what_was_there_before_counts_and_what_goes_makes_room(shm: Path) -> None:
    below = shm / "into" / "mine" / "deep" / "er"
    below.mkdir(parents=True)
    os.link(fill(below / "there", 6 * MIB), below / "twice")
    source = fill(shm / "file", 3 * MIB)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        with session(config, receiver.port):  # it has an account, and the next one shares it
            assert local_send(shm, source, receiver.port, config_dir=config).code == DestinationError.exit_code
            (below / "there").unlink()
            (below / "twice").unlink()
            fill(shm / "into" / "outside", 6 * MIB)
            small = fill(shm / "small", 10)
            assert local_send(shm, small, receiver.port, config_dir=config).code == 0
            assert local_send(shm, source, receiver.port, config_dir=config).code == 0


def test_each_session_begins_with_what_is_there(shm: Path) -> None:
    """Also where another one has counted already, and everything it had counted fitted."""
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        with session(config, receiver.port):
            assert local_send(shm, fill(shm / "small", 10), receiver.port, config_dir=config).code == 0
            fill(receiver.into / "mine" / "theirs", 6 * MIB)
            again = local_send(shm, fill(shm / "file", 3 * MIB), receiver.port, config_dir=config)
            assert again.code == DestinationError.exit_code


def test_what_is_unfinished_counts(shm: Path) -> None:
    payload = fill(shm / "chunk", MIB).read_bytes()
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        with session(config, receiver.port) as lane:
            lane.send(m.Folder(b"", 1, (peer.offered(b"unfinished", 20 * MIB),)))
            peer.heard(lane, m.Want)
            for index in range(6):
                lane.send_raw(codec.encode_data(1, index, XXH3(payload), MIB) + payload)
            wait_until(lambda: [path.stat().st_blocks * 512 for path in partials(receiver.into)] == [6 * MIB])
        wait_until(lambda: receiver.of_type(events.SessionEnd))
        for size, code in ((3 * MIB, DestinationError.exit_code), (MIB, 0)):
            assert local_send(shm, fill(shm / "file", size), receiver.port, config_dir=config).code == code


def test_new_versions_do_not_count_twice_once_they_are_there(shm: Path) -> None:
    source = shm / "file"
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        with session(config, receiver.port):
            for seed in range(6):
                fill(source, 3 * MIB, seed=seed)
                assert local_send(shm, source, receiver.port, config_dir=config).code == 0
        assert same(source, receiver.into / "mine" / "file")


def test_G8_a_large_file_that_is_said_to_be_a_hole_stays_within_the_quota(shm: Path) -> None:
    """What it occupies is what its sender says, and then sends."""
    payload = fill(shm / "chunk", MIB).read_bytes()
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        for _ in range(2):  # what is there of it by then counts
            with session(config, receiver.port) as lane:
                lane.send(m.Folder(b"", 1, (peer.offered(b"file", 100 * MIB),)))
                want = peer.heard(lane, m.Want)
                assert isinstance(want, m.Want)
                for index in range(want.ranges[0].first, want.ranges[0].first + 12):
                    lane.send_raw(codec.encode_data(1, index, XXH3(payload), MIB) + payload)
                refused = peer.heard(lane, m.Refuse)
            assert isinstance(refused, m.Refuse)
            assert (refused.items[0].code, "quota of laptop" in refused.items[0].message) == (48, True)
            wait_until(lambda: len(receiver.of_type(events.SessionEnd)) == len(receiver.of_type(events.SessionUp)))
            (partial,) = partials(receiver.into)
            assert QUOTA - MIB <= partial.stat().st_blocks * 512 <= QUOTA


def test_G8_small_files_that_are_said_to_be_holes_stay_within_the_quota(shm: Path) -> None:
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        with session(config, receiver.port) as lane:
            lane.send(m.Folder(b"", 1, tuple(peer.offered(b"%d" % number, MIB) for number in range(12))))
            assert refusals(lane, 4) == [9, 10, 11, 12]


def test_G8_names_count_as_well(shm: Path) -> None:
    """Empty files, folders and links: a disk has only so many."""
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", "dir=mine quota=12K")
        with session(config, receiver.port) as lane:
            folder = m.Offered(Kind.FOLDER, b"folder", 0, 0, 0o755, 10**18, bytes(16))
            link = m.Offered(Kind.SYMLINK, b"link", 0, 0, 0o777, 10**18, bytes(16), b"there")
            lane.send(m.Folder(b"", 1, (peer.offered(b"empty", 0), folder, link, peer.offered(b"one more", 0))))
            assert refusals(lane, 1) == [4]


def test_G8_what_cannot_be_looked_through_is_not_taken_for_empty(shm: Path) -> None:
    """A peer that may write makes a folder what it likes."""
    (shm / "into" / "mine" / "closed").mkdir(parents=True)
    with LocalReceiver(shm) as receiver:
        config = on_file(receiver, shm, "laptop", f"dir=mine quota={QUOTA}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", _closed)
            sent = local_send(shm, fill(shm / "file", 10), receiver.port, config_dir=config)
        assert sent.code == DestinationError.exit_code
        assert "cannot be looked through" in sent.message and "Permission denied" in sent.message


def _closed(_fd: int) -> None:
    raise PermissionError(13, os.strerror(13))


def refusals(lane: Lane, count: int) -> list[int]:
    """The entries that are refused, so many; because of the quota and nothing else."""
    items: list[m.RefuseItem] = []
    while len(items) < count:
        message = peer.heard(lane, m.Refuse)
        assert isinstance(message, m.Refuse)
        items += message.items
    assert all(item.code == DestinationError.wire and "quota" in item.message for item in items)
    return [item.entry for item in items]
