"""A state that comes from elsewhere, on its way into an empty store (docs/spec/storage.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chain.errors import VerifyError, invariant
from chain.hashes import Hash32
from chain.receipts import Receipt
from chain.store_rows import insert_block, insert_certificate, insert_events, insert_txs, tx_rows
from chain.store_tree import Transaction, TreeImport
from chain.types import Block, Certificate

if TYPE_CHECKING:
    from chain.state import Event


class StateImport:
    """A state on its way into an empty store, in as many transactions as it needs: a crash before
    the end of `finish` leaves the store empty."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._load = TreeImport(transaction)

    def add(self, leaves: Iterable[tuple[bytes, bytes]]) -> None:
        """Leaves in the order of their paths, which goes on from call to call; else VerifyError."""
        self._load.add(leaves)

    def finish(
        self,
        block: Block,
        block_hash: Hash32,
        finalization: Certificate | None = None,
        receipts: Sequence[Receipt] = (),
        events: Sequence[Event] = (),
    ) -> None:
        """The state is the one after `block`, which becomes the tip; else VerifyError."""
        header = block.header
        invariant(block_hash == header.hash(), "a block is stored under its own hash")
        top = self._load.build()
        if top.hash != header.state_root:
            raise VerifyError(f"the imported state is not the one of block {header.height}")
        with self._transaction() as db:
            insert_block(db, block, block_hash)
            if finalization is not None:
                insert_certificate(db, header.height, finalization)
            insert_txs(db, tx_rows(block, receipts) if receipts else [])
            insert_events(db, header.height, events)
            self._load.finish(db, top, header.height, header.time_ms)
