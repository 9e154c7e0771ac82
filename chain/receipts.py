"""The outcome of one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from chain.types import TxId


@dataclass(frozen=True, slots=True)
class Receipt:
    """`code` is `ok` or the code of the error that refused the transaction; then it changed
    nothing but this receipt."""

    tx_id: TxId
    code: str
    reason: str

    @property
    def ok(self) -> bool:
        return self.code == "ok"
