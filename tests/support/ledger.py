"""A ledger that is told of one thing at a time, as tests of its rules do."""

from __future__ import annotations

from ftx.protocol import messages as m
from ftx.transfer.actions import Action, Verdict
from ftx.transfer.ledger import Ledger
from ftx.transfer.receiving import Receiving, Small


class OneByOne(Ledger):
    def begin_one(self, data: m.Data) -> Receiving | Small | None:
        (where,) = self.begin([data])
        return where

    def written_one(self, where: Receiving | Small | None, index: int, digest: bytes) -> list[Action]:
        assert where is not None
        return self.written([(where, index, digest)])

    def looked_one(self, entry_id: int, verdict: Verdict) -> list[Action]:
        return self.looked([(entry_id, verdict)])

    def committed_one(self, entry_id: int, *, durable: bool, path: bytes | None = None) -> list[Action]:
        live = self.get(entry_id)
        assert live is not None
        return self.committed([(entry_id, path or live.entry.path)], durable=durable)
