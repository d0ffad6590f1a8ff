"""The guards, what replaces each, and the test that must notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One guard taken away.

    Attributes:
        name: what is missing then.
        guarantees: which of G1 to G12 the guard serves.
        file: where it stands.
        guard: its exact text, once in that file.
        instead: what stands there without it.
        test: the test that must fail.
    """

    name: str
    guarantees: tuple[str, ...]
    file: str
    guard: str
    instead: str
    test: str


STORAGE = "tests/storage/test_"
PROTOCOL = "tests/protocol/test_"
LEDGER = "tests/transfer/test_ledger.py::test_"
PLAN = "tests/transfer/test_plan.py::test_"

MUTANTS: tuple[Mutant, ...] = (
    # --- G1: verified and durable before the name
    Mutant(
        "published before the root digests agree",
        ("G1", "G4"),
        "ftx/transfer/ledger.py",
        "if digests.root() == receiving.root:",
        "if True:",
        LEDGER + "g4_rot_is_found_by_the_root_and_only_it_is_sent_again",
    ),
    Mutant(
        "published without a sync of the contents",
        ("G1", "G5"),
        "ftx/storage/commit.py",
        "            partial.seal()",
        "            pass",
        STORAGE + "commit.py::test_g1_g5_contents_then_metadata_then_name_then_folder",
    ),
    Mutant(
        "published without a sync of the metadata",
        ("G1", "G5"),
        "ftx/storage/commit.py",
        "            disk.sync_file(partial.fd)",
        "            pass",
        STORAGE + "commit.py::test_g1_g5_contents_then_metadata_then_name_then_folder",
    ),
    Mutant(
        "replaced where the policy is not to",
        ("G1",),
        "ftx/storage/commit.py",
        "if policy is Policy.REPLACE:\n        disk.rename",
        "if True:\n        disk.rename",
        STORAGE + "commit.py::test_g1_a_file_that_appears_is_kept",
    ),
    # --- G2: nothing is sent twice
    Mutant(
        "what a journal lists is not taken over",
        ("G2",),
        "ftx/storage/partial.py",
        "            self.held = listed\n",
        "            pass\n",
        STORAGE + "partial.py::test_g2_what_was_written_is_held_by_the_next_process",
    ),
    Mutant(
        "a journal that is written at the end only",
        ("G2",),
        "ftx/storage/partial.py",
        "if full or time.monotonic() - self._flushed >= JOURNAL_S:",
        "if False:",
        STORAGE + "partial.py::test_g2_a_journal_lags_behind_by_a_few_bytes_at_most",
    ),
    # --- G3: new bytes first
    Mutant(
        "held chunks are read before missing ones are sent",
        ("G3",),
        "ftx/transfer/sending.py",
        "        if self.wanted and not paused:\n            return Need.SEND\n",
        "        if self.wanted and not self.unread:\n            return Need.SEND\n",
        "tests/transfer/test_sessions.py::test_g3_missing_chunks_go_first",
    ),
    # --- G4: no damaged byte
    Mutant(
        "the frame check is ignored",
        ("G4",),
        "ftx/protocol/codec.py",
        "if xxhash.xxh3_64_intdigest(header.checked + bytes(body)) != header.check:",
        "if False:",
        PROTOCOL + "codec.py::test_g4_each_damaged_byte_is_noticed",
    ),
    Mutant(
        "the frame check of a burst is ignored",
        ("G4",),
        "ftx/protocol/codec.py",
        "if xxhash.xxh3_64_intdigest(checked) != check:",
        "if False:",
        PROTOCOL + "codec.py::test_g4_each_damaged_byte_of_a_data_that_has_arrived_whole_is_noticed",
    ),
    Mutant(
        "the order of a burst is not looked at",
        ("G12",),
        "ftx/net/lane.py",
        "            self.order.receive(Type.DATA)",
        "            pass",
        "tests/net/test_lane.py::test_g12_what_has_arrived_must_be_in_order",
    ),
    Mutant(
        "a payload's digest is ignored",
        ("G4",),
        "ftx/transfer/receive.py",
        "if _XXH3(payload) != data.digest:",
        "if False:",
        "tests/e2e/test_every_byte.py::test_G4_a_damaged_payload_is_repaired_in_place",
    ),
    Mutant(
        "the journal is believed under another source",
        ("G4", "G10"),
        "ftx/storage/journal.py",
        "return self.tag != ZERO_TAG and self == other",
        "return True",
        STORAGE + "journal.py::test_g4_chunks_are_trusted_only_under_the_very_same_header",
    ),
    Mutant(
        "a journal's records are not checked",
        ("G4",),
        "ftx/storage/journal.py",
        "if _CHECK.unpack_from(data, at + _RECORD.size)[0] != check or",
        "if",
        STORAGE + "journal.py::test_g4_a_journal_damaged_at_any_byte_holds_what_stands_before_the_damage",
    ),
    Mutant(
        "the journal runs ahead of the data",
        ("G4",),
        "ftx/storage/partial.py",
        "        disk.write_at(self.fd, payload, self.grid.offset(index))\n"
        "        self._mark(index, index + 1, len(payload), failures)",
        "        self._mark(index, index + 1, len(payload), failures)\n"
        "        disk.write_at(self.fd, payload, self.grid.offset(index))",
        STORAGE + "partial.py::test_g4_the_journal_never_runs_ahead_of_the_data",
    ),
    Mutant(
        "held chunks are committed without being read back",
        ("G4",),
        "ftx/transfer/ledger.py",
        "receiving.unread.difference_update(found.digests.known)",
        "receiving.unread.clear(); [found.digests.set(i, bytes(16)) for a, b in found.held for i in range(a, b)]",
        LEDGER + "g4_what_is_held_is_read_before_the_commit",
    ),
    Mutant(
        "a held chunk is taken from the journal and not from the disk",
        ("G4",),
        "ftx/transfer/publish.py",
        "            actions = self._ledger.rehashed(entry_id, index, digest)",
        "            actions = self._ledger.rehashed(entry_id, index, bytes(16))",
        "tests/e2e/test_resume.py::test_G4_damage_in_the_partial_is_repaired",
    ),
    # --- G5: a receipt is for ever
    Mutant(
        "a receipt without a sync of the folder",
        ("G5",),
        "ftx/storage/commit.py",
        "                root.sync(parts[:-1], folder)\n",
        "                pass\n",
        STORAGE + "commit.py::test_g1_g5_contents_then_metadata_then_name_then_folder",
    ),
    Mutant(
        "a failed sync is forgotten",
        ("G5",),
        "ftx/storage/partial.py",
        "                    self._lost.update(unsynced)\n",
        "",
        STORAGE + "partial.py::test_g5_a_good_sync_does_not_bring_back_what_a_failed_one_lost",
    ),
    # --- G6: inside the folder
    Mutant(
        "links are followed",
        ("G6",),
        "ftx/storage/disk.py",
        "SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC",
        "SAFE = os.O_NONBLOCK | os.O_CLOEXEC",
        STORAGE + "paths.py",
    ),
    Mutant(
        "dot dot is a name like any other",
        ("G6",),
        "ftx/storage/paths.py",
        'if part in (b"", b".", b"..") or b"/" in part:',
        "if False:",
        STORAGE + "paths.py",
    ),
    Mutant(
        "ftx's own folder can be written to",
        ("G6",),
        "ftx/storage/paths.py",
        "if is_reserved(part):",
        "if False:",
        STORAGE + "paths.py",
    ),
    Mutant(
        "setuid travels",
        ("G6",),
        "ftx/storage/disk.py",
        "os.fchmod(fd, mode & 0o777)",
        "os.fchmod(fd, mode)",
        STORAGE + "commit.py",
    ),
    # --- G7: nobody without a key
    Mutant(
        "any proof admits",
        ("G7",),
        "ftx/protocol/proof.py",
        "if item.method == method and hmac.compare_digest(mac(key, Side.DIALER, method, transcript_), item.mac):",
        "if item.method == method:",
        PROTOCOL + "proof.py",
    ),
    Mutant(
        "any listener is believed",
        ("G7",),
        "ftx/protocol/proof.py",
        "if answer.method == method and hmac.compare_digest(mac(key, Side.LISTENER, method, transcript_), answer.mac):",
        "if answer.method == method:",
        "tests/net/test_handshake.py::test_G7_a_listeners_fake_proof_gets_no_open",
    ),
    Mutant(
        "a proof can be sent back to its maker",
        ("G7",),
        "ftx/protocol/proof.py",
        'label = b"ftx/1 proof " + maker.value.encode() + b"\\0" + bytes([method])',
        'label = b"ftx/1 proof " + b"\\0" + bytes([method])',
        PROTOCOL + "proof.py",
    ),
    Mutant(
        "a secret settles for an open receiver",
        ("G7",),
        "ftx/net/handshake.py",
        "if Method.SECRET in keys:",
        "if False:",
        "tests/net/test_handshake.py::test_G7_a_secret_never_settles_for_less",
    ),
    # --- G8: bounded
    Mutant(
        "any length of a frame is allocated",
        ("G8",),
        "ftx/protocol/codec.py",
        '    if length > most:\n        raise ProtocolError(f"frame of type',
        '    if False:\n        raise ProtocolError(f"frame of type',
        "tests/net/test_lane.py::test_G8_a_length_is_checked_before_anything_is_allocated",
    ),
    Mutant(
        "any number of entries is taken",
        ("G8",),
        "ftx/transfer/ledger.py",
        "if len(self._live) + unsaid + len(message.entries) > self._window:",
        "if False:",
        LEDGER + "g8_no_more_entries_are_outstanding_than_the_window_has",
    ),
    # --- G9: one peer's trouble is its own
    Mutant(
        "connections are served one by one",
        ("G9",),
        "ftx/transfer/registry.py",
        'threading.Thread(target=self._greet, args=(lane, address), name="ftx-greet", daemon=True).start()',
        "self._greet(lane, address)",
        "tests/e2e/test_one_file.py::test_G9_a_sender_that_is_stuck_delays_nobody",
    ),
    # --- G10: never half old, half new
    Mutant(
        "a source that reads differently goes on",
        ("G10",),
        "ftx/transfer/plan.py",
        "if before is not None and before != digest:",
        "if False:",
        PLAN + "g10_a_chunk_that_reads_differently_is_a_changed_source",
    ),
    Mutant(
        "a source is not looked at again",
        ("G10",),
        "ftx/transfer/plan.py",
        "            if pin is Pin.CHANGED:\n                return False\n",
        "",
        PLAN + "g10_a_source_with_other_stamps_is_given_up",
    ),
    Mutant(
        "young times are trusted",
        ("G10",),
        "ftx/storage/source.py",
        "TRUSTED_AGE_NS = 2_000_000_000",
        "TRUSTED_AGE_NS = 0",
        STORAGE + "source.py",
    ),
    # --- G11: every end has a code and a reason
    Mutant(
        "the last word is not waited for",
        ("G11",),
        "ftx/net/lane.py",
        "            while left > 0 and (rest := deadline - time.monotonic()) > 0:",
        "            while False:",
        "tests/net/test_lane.py::test_g11_draining_lets_the_last_word_arrive",
    ),
    Mutant(
        "a disk error explains nothing",
        ("G11",),
        "ftx/storage/disk.py",
        "case errno.ENOSPC | errno.EDQUOT:",
        "case errno.EDQUOT:",
        STORAGE + "partial.py::test_g11_a_disk_that_fills_up_says_so",
    ),
    # --- G12: any language, any later version
    Mutant(
        "unknown critical frames are skipped",
        ("G12",),
        "ftx/protocol/codec.py",
        "        if header.flags & m.CRITICAL:",
        "        if False:",
        PROTOCOL + "codec.py::test_g12_unknown_optional_frames_are_skipped_and_critical_ones_refused_by_name",
    ),
    Mutant(
        "a late frame is an error",
        ("G12",),
        "ftx/transfer/ledger.py",
        "        if not 0 < entry_id <= self._highest:",
        "        if entry_id not in self._live:",
        LEDGER + "g12_late_frames_are_dropped_and_those_for_no_entry_refused",
    ),
    Mutant(
        "frames for what was never offered are dropped",
        ("G6", "G12"),
        "ftx/transfer/ledger.py",
        "        if not 0 < entry_id <= self._highest:",
        "        if False:",
        LEDGER + "g12_late_frames_are_dropped_and_those_for_no_entry_refused",
    ),
    Mutant(
        "chunks come unasked",
        ("G12",),
        "ftx/transfer/ledger.py",
        "if data.index not in receiving.missing:",
        "if False:",
        LEDGER + "chunks_that_were_not_asked_for",
    ),
    Mutant(
        "frames come in any order",
        ("G12",),
        "ftx/protocol/session.py",
        """            return LANE[side, phase][type_]
        except KeyError:
            raise""",
        """            return LANE[side, phase][type_]
        except KeyError:
            return phase
        if not phase:
            raise""",
        "tests/net/test_lane.py::test_out_of_order_in_either_direction",
    ),
)
