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
        'if not part or part in _DOTS or b"/" in part:',
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
        "tests/net/test_handshake.py::test_g7_a_listeners_fake_proof_gets_no_open",
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
        "tests/net/test_handshake.py::test_g7_a_secret_never_settles_for_less",
    ),
    Mutant(
        "any dialer is whom it says",
        ("G7",),
        "ftx/net/handshake.py",
        "if not signed_by(hello.identity, theirs.signature, proof.signed(Side.DIALER, transcript)):",
        "if False:",
        "tests/net/test_handshake.py::test_g7_who_says_to_be_this_user_and_is_not",
    ),
    Mutant(
        "any listener is whom it says",
        ("G7",),
        "ftx/net/handshake.py",
        "if not signed_by(hello.identity, answer.signature, proof.signed(Side.LISTENER, transcript)):",
        "if False:",
        "tests/net/test_handshake.py::test_g7_a_listener_that_shows_a_key_that_it_does_not_hold",
    ),
    Mutant(
        "a listener's key may change",
        ("G7",),
        "ftx/net/handshake.py",
        "    if trust.known not in (None, public):",
        "    if False:",
        "tests/net/test_handshake.py::test_g7_a_listener_whose_key_has_changed",
    ),
    Mutant(
        "a listener is trusted on first contact",
        ("G7",),
        "ftx/net/handshake.py",
        "    if unproven and not trust.anyone:",
        "    if False:",
        "tests/net/test_handshake.py::test_g7_a_listener_that_nothing_proves_gets_no_open",
    ),
    Mutant(
        "who signs is not in what is signed",
        ("G7",),
        "ftx/protocol/proof.py",
        'b"ftx/1 signature " + maker.value.encode() + b"\\0"',
        'b"ftx/1 signature " + b"\\0"',
        "tests/net/test_handshake.py::test_g7_a_listeners_fake_proof_gets_no_open[the dialer's label]",
    ),
    Mutant(
        "a key that anybody holds is a peer",
        ("G7",),
        "ftx/net/identity.py",
        "    if _of_small_order(public):",
        "    if False:",
        "tests/net/test_known.py::test_g7_a_key_of_small_order_is_nobodys",
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
    # --- whole trees and crowds
    Mutant(
        "a folder does not wait for what is in it",
        ("G12",),
        "ftx/transfer/ledger.py",
        "elif entry.kind is Kind.FOLDER and self._inside.get(entry.path):",
        "elif False:",
        "tests/transfer/test_ledger.py::test_a_folder_waits_for_what_is_in_it_however_that_ends[skipped]",
    ),
    Mutant(
        "answers that nobody has read do not count",
        ("G8",),
        "ftx/transfer/ledger.py",
        "if len(self._live) + unsaid + len(message.entries) > self._window:",
        "if len(self._live) + len(message.entries) > self._window:",
        "tests/hostile/test_memory.py::test_g8_an_entry_is_outstanding_until_its_answer_is_on_its_way",
    ),
    Mutant(
        "a commit holds though a sync failed meanwhile",
        ("G5",),
        "ftx/transfer/ledger.py",
        "(live := self._live.get(entry_id)) and live.committing]",
        "self._live.get(entry_id)]",
        "tests/transfer/test_ledger.py::test_a_commit_is_void_when_a_failed_sync_came_between",
    ),
    Mutant(
        "a small file of any length is taken",
        ("G4",),
        "ftx/transfer/ledger.py",
        "data.index == 0 and data.length == live.entry.size > 0:",
        "data.index == 0 and live.entry.size > 0:",
        "tests/transfer/test_ledger.py::test_what_a_small_file_does_not_have",
    ),
    Mutant(
        "a small file is published before its FINISH",
        ("G1",),
        "ftx/transfer/ledger.py",
        "                    if live.final:",
        "                    if True:",
        "tests/transfer/test_ledger.py::test_g1_a_small_file_whose_data_is_not_final_waits_for_finish",
    ),
    Mutant(
        "a full disk does not stop small files",
        ("G11",),
        "ftx/transfer/plan.py",
        "if bulk and self._small and self._paused is None:",
        "if bulk and self._small:",
        "tests/transfer/test_plan.py::test_a_pause_holds_small_files_too",
    ),
    Mutant(
        "a small file is not looked at behind its reading",
        ("G10",),
        "ftx/storage/source.py",
        "same = self._stamps(now) == self._stamps(self._info)",
        "same = True",
        "tests/storage/test_source.py::test_g10_a_change_of_a_small_file_is_seen",
    ),
    Mutant(
        "whatever took a folder's place is walked",
        ("G6",),
        "ftx/storage/scan.py",
        "if (seen.st_dev, seen.st_ino) != (level.info.st_dev, level.info.st_ino):",
        "if False:",
        "tests/storage/test_scan.py::test_g6_another_folder_that_takes_the_place_of_one_is_not_walked[folder]",
    ),
    Mutant(
        "one entry that cannot be read ends the walk",
        ("G11",),
        "ftx/storage/scan.py",
        "yield Odd(os.path.join(level.target, name), text, SourceError(text))\n                    continue",
        "yield Odd(os.path.join(level.target, name), text, SourceError(text))\n                    break",
        "tests/storage/test_scan.py::test_g11_one_that_cannot_be_read_does_not_end_the_walk[an-entry]",
    ),
    Mutant(
        "what a session that is over has found is lost",
        ("G2",),
        "ftx/transfer/feed.py",
        "    ready.extendleft(reversed(found) if isinstance(found, list) else [found])\n",
        "",
        "tests/transfer/test_slow_source.py::test_what_nobody_can_take_any_more_stays_in_the_feed_in_its_order",
    ),
    Mutant(
        "outcomes are heaped up that nobody reports",
        ("G8",),
        "ftx/transfer/send.py",
        "while self._outcomes.qsize() >= MAX_UNTOLD:",
        "while False:",
        "tests/transfer/test_slow_source.py::test_g8_the_scan_waits_for_whoever_reports_what_it_found",
    ),
    Mutant(
        "each file waits for room anew",
        ("G11",),
        "ftx/transfer/room.py",
        "        if self._given_up:\n            raise error",
        "",
        "tests/transfer/test_room.py::test_g11_who_gave_up_does_not_wait_again[what-fits-between]",
    ),
    Mutant(
        "the reserve is written into",
        ("G11",),
        "ftx/transfer/room.py",
        "            self._store.check_reserve()\n            return action(*args)",
        "            return action(*args)",
        "tests/transfer/test_room.py::test_what_is_kept_in_reserve_is_not_taken",
    ),
    Mutant(
        "a group is renamed without a sync of its contents",
        ("G1", "G5"),
        "ftx/storage/commit.py",
        "        scratch.sync(ready)",
        "        pass",
        "tests/storage/test_scratch.py::test_g5_a_sync_for_all_that_is_given_up_at_the_contents_is_not_trusted_for_the_names",
    ),
    Mutant(
        "a group has receipts without a sync of its names",
        ("G5",),
        "ftx/storage/commit.py",
        "        try:\n            scratch.sync_all()",
        "        try:\n            pass",
        "tests/storage/test_scratch.py::test_g5_names_are_synced_together_behind_the_last_of_them",
    ),
    Mutant(
        "a small file that was closed is taken for synced",
        ("G5",),
        "ftx/storage/scratch.py",
        "elif whole.entry.kind is Kind.FILE and not whole.synced:",
        "elif False:",
        "tests/storage/test_scratch.py::test_g5_what_was_written_before_the_sync_for_all_was_given_up_is_synced_by_itself",
    ),
    Mutant(
        "one sync stands for all on any file system",
        ("G5",),
        "ftx/storage/scratch.py",
        '"syncfs") and disk.file_system(fd) in _TOGETHER',
        '"syncfs")',
        "tests/storage/test_scratch.py::test_g5_one_sync_for_all_is_trusted_where_it_tells_what_failed",
    ),
    Mutant(
        "what a failed sync of a group lost is not wanted again",
        ("G5",),
        "ftx/transfer/publish.py",
        "                if whole.chunks:",
        "                if False:",
        "tests/transfer/test_publish.py::test_g5_what_a_failed_sync_of_a_group_lost_is_wanted_again",
    ),
    Mutant(
        "what could not be published has a receipt too",
        ("G5",),
        "ftx/transfer/publish.py",
        "                if isinstance(result, bytes):",
        "                if result := whole.entry.path:",
        "tests/transfer/test_publish.py::test_g5_of_a_group_only_what_was_published_has_a_receipt",
    ),
    Mutant(
        "a folder that a session has is cleared away",
        ("G2",),
        "ftx/storage/unfinished.py",
        "or not disk.lock(folder.fd) or not _is_named",
        "or not _is_named",
        "tests/storage/test_unfinished.py::test_what_is_in_use_never_expires",
    ),
    Mutant(
        "folders whose names fold are mixed",
        ("G1",),
        "ftx/storage/paths.py",
        '                Folder(fd).refuse_folded(part, b"/".join((*above, part)))',
        "                pass",
        "tests/e2e/test_folded_names.py::test_g1_files_of_two_folders_that_fold_are_not_mixed",
    ),
    Mutant(
        "a name is looked at as it came",
        ("G6",),
        "ftx/storage/look.py",
        "        paths.check_name(name, entry.path)",
        "",
        "tests/storage/test_paths.py::test_g6_a_hostile_name_is_refused[own-look]",
    ),
    Mutant(
        "a link above a listed folder is followed",
        ("G6",),
        "ftx/storage/scan.py",
        "if (info.st_dev, info.st_ino) != (device, inode):",
        "if False:",
        "tests/storage/test_scan.py::test_g6_a_link_that_is_swapped_in_above_a_listed_folder_is_found",
    ),
    Mutant(
        "two transfers write one small file",
        ("G9",),
        "ftx/transfer/look.py",
        "        self._store.claim(entry.path, entry.allocated)",
        "",
        "tests/transfer/test_publish.py::test_g9_a_path_that_another_transfer_has_is_busy_for_what_is_small_too",
    ),
    Mutant(
        "a lane that was not granted is taken",
        ("G9",),
        "ftx/transfer/receive.py",
        "if not 2 <= number <= self._granted or number in",
        "if number in",
        "tests/e2e/test_crowd.py::test_G9_lanes_that_are_not_to_be_had[1]",
    ),
    Mutant(
        "any lane carries any frame",
        ("G12",),
        "ftx/protocol/session.py",
        "(Side.SENDER, _B): {Type.DATA: _B,",
        "(Side.SENDER, _B): {Type.FOLDER: _B, Type.FINISH: _B, Type.DATA: _B,",
        "tests/protocol/test_session.py::test_another_lane_carries_data_from_the_sender_and_nothing_else[SENDER]",
    ),
)
