"""Transactions whose signature was found to hold, by the hash of all their bytes.

A node meets each transaction twice or more: when it comes, in a proposal, in a block of its own.
Decoding and checking it says the same each time, since the hash covers every byte, the signature
included; so what was found once is remembered. What does not hold is not remembered: it would
push out what does.
"""

from __future__ import annotations

from collections import OrderedDict

from chain.transactions import Transaction
from chain.types import TxId

MAX_TXS = 32_768  # remembered: what waits at most, and the blocks that are not final yet
MAX_TX_BYTES = 1024  # larger ones are few, and take too much room


class SignedTransactions:
    """The newest ones, at most so many. A verdict never depends on what is in here."""

    def __init__(self, most: int = MAX_TXS) -> None:
        self._most = most
        self._known: OrderedDict[TxId, Transaction] = OrderedDict()

    def get(self, tx_id: TxId) -> Transaction | None:
        """The transaction with this hash, if its signature is known to hold."""
        return self._known.get(tx_id)

    def add(self, tx_id: TxId, tx: Transaction, size_bytes: int) -> None:
        """The signature of this transaction of `size_bytes` holds."""
        if size_bytes > MAX_TX_BYTES or tx_id in self._known:
            return
        self._known[tx_id] = tx
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()


signed = SignedTransactions()  # what this process has found
