"""G4, G8: senders whose compressed payloads are not what they say."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from ftx.errors import IntegrityError, ProtocolError
from ftx.net.lane import Lane
from ftx.protocol import compression
from ftx.protocol import messages as m
from ftx.protocol.manifest import DigestName
from ftx.transfer import events
from tests.hostile import peer
from tests.hostile.test_fuzz import bent, seeds
from tests.support.compressible import MIB, lines
from tests.support.local import LocalReceiver
from tests.support.process import wait_until

XXH3 = DigestName.XXH3_128.function


def rle(size: int, claimed: int = 0) -> bytes:
    """A frame of ``size`` zeros, 4 bytes for each 128 KiB of them; its header says that they are ``claimed``."""
    blocks = [min(128 * 1024, size - at) for at in range(0, size, 128 * 1024)]
    body = b"".join(
        struct.pack("<I", (at == len(blocks) - 1) | 2 | length << 3)[:3] + b"\0" for at, length in enumerate(blocks)
    )
    return b"\x28\xb5\x2f\xfd\xc0" + bytes([10 << 3]) + struct.pack("<Q", claimed or size) + body


def offer(lane: Lane, *sizes: int) -> None:
    """Offer files of these sizes; they are called by their ids."""
    items = tuple(peer.offered(b"%d" % entry, size) for entry, size in enumerate(sizes, 1))
    lane.send(m.Folder(b"", 1, items))


def wanted(lane: Lane) -> m.Want | m.Refuse | m.Receipt | m.WantAll:
    message = peer.heard(lane, m.Want, m.Refuse, m.Receipt, m.WantAll)
    assert isinstance(message, m.Want | m.Refuse | m.Receipt | m.WantAll)
    return message


def send(lane: Lane, entry: int, chunk: bytes, payload: bytes) -> None:
    """A file of one chunk, as this payload."""
    lane.queue_data(m.Data(entry, 0, XXH3(chunk), len(payload), final=True, compressed=True), payload)


@seeds
def test_g4_what_comes_of_a_bent_payload_is_right_or_wanted_again(shm: Path, seed: int) -> None:
    """Each file is asked for until its payload is good, or refused; none is published wrong."""
    rng = random.Random(f"compressed {seed}")
    sizes = [rng.choice((5000, 60_000, 200_000)) for _ in range(30)]
    chunks = {entry: lines(size, entry) for entry, size in enumerate(sizes, 1)}
    compress = compression.compressor()
    good = {entry: compress(chunk) for entry, chunk in chunks.items()}
    with LocalReceiver(shm, open=True) as receiver, peer.sender(receiver.port) as lane:
        offer(lane, *sizes)
        open_, done, refused = set(chunks), set(), set()
        while open_:
            match wanted(lane):
                case m.WantAll(entries):
                    asked = list(entries)
                case m.Want(entry):
                    asked = [entry]
                case m.Refuse(items):
                    assert {item.code for item in items} == {IntegrityError.wire}
                    refused |= {item.entry for item in items}
                    asked = []
                case m.Receipt(items):
                    done |= {item.entry for item in items}
                    asked = []
            open_ -= done | refused
            for entry in asked:
                payload = bent(rng, good[entry]) if rng.random() < 0.6 else good[entry]
                send(lane, entry, chunks[entry], payload[: len(chunks[entry]) - 1])
            lane.flush()
        lane.send(m.Bye(len(done), 0, len(refused)))
        peer.heard(lane, m.Bye)
        assert len(done) > 5
        found = {int(path.name): path.read_bytes() for path in receiver.into.iterdir() if path.name != ".ftx"}
        assert found == {entry: chunks[entry] for entry in done}
    assert not [one for one in receiver.of_type(events.Warn) if "a bug in ftx" in one.message]


BOMBS = {
    "1 GiB": rle(1 << 30),
    "1 GiB under the right size": rle(1 << 30, MIB),
    "skippable frames": struct.pack("<II", 0x184D2A5F, 0) * 100_000,
    "of another chunk's length": rle(MIB - 1),
}


@pytest.mark.parametrize("payload", BOMBS.values(), ids=BOMBS)
def test_g8_a_bomb_is_asked_for_three_times_more_and_refused(shm: Path, payload: bytes) -> None:
    with LocalReceiver(shm, open=True) as receiver, peer.sender(receiver.port) as lane:
        offer(lane, MIB)
        tracemalloc.start()
        try:
            for _ in range(1 + m.MAX_REPAIRS):
                assert isinstance(wanted(lane), m.Want | m.WantAll)
                send(lane, 1, bytes(MIB), payload)
                lane.flush()
            refusal = wanted(lane)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert isinstance(refusal, m.Refuse) and refusal.items[0].code == IntegrityError.wire
        assert peak < 6 * MIB
        assert not (receiver.into / "1").exists()


def test_g8_a_burst_of_tiny_payloads_is_not_held_in_memory_at_once(shm: Path) -> None:
    """Files of 1 MiB each, which arrive in one read of the socket."""
    count = 60
    with LocalReceiver(shm, open=True) as receiver, peer.sender(receiver.port) as lane:
        offer(lane, *[MIB] * count)
        asked = 0
        while asked < count:
            message = wanted(lane)
            asked += len(message.entries) if isinstance(message, m.WantAll) else 1
        payload = rle(MIB)
        tracemalloc.start()
        try:
            for entry in range(1, count + 1):
                send(lane, entry, bytes(MIB), payload)
            lane.flush()
            done = 0
            while done < count:
                message = wanted(lane)
                assert isinstance(message, m.Receipt)
                done += len(message.items)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(payload) * count < 64 * 1024
        assert peak < 8 * MIB


def test_g8_a_payload_that_is_no_smaller_than_its_chunk_ends_the_session(shm: Path) -> None:
    with LocalReceiver(shm, open=True) as receiver, peer.sender(receiver.port) as lane:
        offer(lane, 1000)
        wanted(lane)
        send(lane, 1, bytes(1000), bytes(1000))
        lane.flush()
        said = peer.heard(lane, m.Error)
        assert isinstance(said, m.Error) and said.code == ProtocolError.wire
        assert "compressed and no smaller" in said.message
        wait_until(lambda: receiver.of_type(events.SessionEnd))
    assert not (receiver.into / "1").exists()
