"""What a waiting transaction is worth to a chain that cannot take all (docs/spec/mempool.md).

Its bid is the fee. A stamp bids for who has no grains: the least fee for the difficulty that
genesis names, twice that for each bit more. Worth is the bid by the units that it costs
(chain/costs.py).
"""

from __future__ import annotations

from enum import IntEnum

from chain.errors import TxError
from chain.params import Genesis
from chain.state import State
from chain.transactions import Bond, Transaction, Transfer, stamp_digest
from chain.types import Grains

RAISE_NUM, RAISE_DEN = 11, 10  # what displaces another bids a tenth more: churn has an end
MOST_EXTRA_BITS = 40  # of a stamp's work: more counts no more, and the product stays exact


class Kind(IntEnum):
    """Each has room of its own, so that no kind keeps the others out."""

    PAID = 0
    STAMPED = 1
    DUTY = 2


def kind_of(tx: Transaction, duty: bool) -> Kind:
    if duty:
        return Kind.DUTY
    return Kind.PAID if tx.stamp is None else Kind.STAMPED


def bid_of(state: State, genesis: Genesis, tx: Transaction, kind: Kind) -> int:
    """Grains that a transaction bids, or that its work stands for; `state` knows its stamp's
    block. A duty bids nothing."""
    if kind is Kind.PAID or tx.stamp is None:
        return 0 if kind is Kind.DUTY else tx.fee
    head = state.head
    parent = head.recent_parents[tx.stamp.height - head.height]
    digest = stamp_digest(tx.chain_id, tx.sender, tx.nonce, parent, tx.payload, tx.stamp.work)
    bits = 256 - int.from_bytes(digest, "big").bit_length()
    params = state.params(genesis.params)
    extra = min(max(bits - params.stamp_bits, 0), MOST_EXTRA_BITS)
    return params.min_fee_grains << extra


def spends(tx: Transaction) -> Grains:
    """Grains that surely leave the sender's balance when it is executed."""
    payload = tx.payload
    if isinstance(payload, Bond) or (isinstance(payload, Transfer) and payload.to != tx.sender):
        return Grains(tx.fee + payload.amount)
    return tx.fee


def least_to_displace(worth: float, cost: int) -> int:
    """The bid with which a transaction of this cost displaces one of this worth."""
    return int(worth * cost * RAISE_NUM / RAISE_DEN) + 1


def least_to_replace(bid: int) -> int:
    """The bid with which a transaction takes the place of one with the same nonce."""
    return max(bid + 1, -(-bid * RAISE_NUM // RAISE_DEN))


# --- what a sender is told, and what would do -------------------------------------------------


def underpriced(nonce: int, least: int) -> TxError:
    return TxError(
        "underpriced",
        f"another transaction with nonce {nonce} waits: a fee of {least} grains replaces it (of "
        "two stamps, the one of twice the work), or take the next nonce",
    )


def cannot_pay(waits: int, more: int, balance: int) -> TxError:
    before = f", and what waits before it {waits}" if waits else ""
    text = f"it spends {more} grains{before}; the account has {balance}"
    return TxError("insufficient_funds", text)


def no_room(kind: Kind, bid: int, least: int, *, own: bool) -> TxError:
    """`least`: the bid that would find room; `own`: what is worth least is the sender's."""
    if own:
        text = "the mempool is full, and nothing in it is worth less than what you have there"
    elif kind is Kind.STAMPED:
        bits = ((least - 1) // max(bid, 1)).bit_length()
        text = f"the mempool is full of stamps: one with {bits} more bits of work would get in"
    else:
        text = f"the mempool is full: a fee of {least} grains would get in"
    return TxError("mempool_full", text)
