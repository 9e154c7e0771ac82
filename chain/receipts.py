"""What became of a transaction that stands in a block (docs/spec/storage.md)."""

from __future__ import annotations

from dataclasses import dataclass

from chain.types import TxId

OK = "ok"


@dataclass(frozen=True, slots=True)
class Receipt:
    """`code` is `ok` or the refusing rule's (TxError.code); `reason` is for people."""

    tx_id: TxId
    code: str
    reason: str

    @property
    def ok(self) -> bool:
        return self.code == OK
