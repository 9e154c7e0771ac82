"""What holds before a payload is looked at: chain, nonce, signer, signature, and the price.

A fee, a stamp, or a duty that the sender owes to the chain (docs/spec/transactions.md).
"""

from __future__ import annotations

from chain import custody, quotas, stamps
from chain import records as r
from chain.codec import encode
from chain.costs import spend
from chain.crypto import verify
from chain.errors import TxError
from chain.params import Genesis
from chain.state import State
from chain.transactions import (
    Attest,
    AuditReport,
    Custody,
    CustodyOpening,
    FraudProof,
    LatencyReport,
    PolVote,
    TileUpdate,
    Transaction,
)

DUTIES = (
    *(PolVote, TileUpdate, Attest, AuditReport, FraudProof),
    *(Custody, CustodyOpening, LatencyReport),
)


def check_transaction(
    state: State,
    genesis: Genesis,
    tx: Transaction,
    gap: int = 0,
    *,
    is_signed: bool = False,
    size: int | None = None,
) -> None:
    """Everything that holds before a payload is looked at. `gap`: nonces the mempool may skip;
    `is_signed`: the signature is known to be the signer's; `size`: of the encoded transaction,
    where the caller has it."""
    if tx.chain_id != genesis.chain_id:
        raise TxError("wrong_chain", "the transaction is signed for another chain")
    account = state.account(tx.sender)
    if not account.nonce <= tx.nonce <= account.nonce + gap:
        raise TxError("bad_nonce", f"the nonce is {tx.nonce}; {account.nonce} is next")
    _check_signer(state, tx, is_signed)
    _check_price(state, genesis, tx, len(encode(tx)) if size is None else size)
    if tx.fee > account.balance:
        raise TxError(
            "insufficient_funds", f"the fee is {tx.fee} grains; the account has {account.balance}"
        )


def _check_signer(state: State, tx: Transaction, is_signed: bool) -> None:
    if tx.signer != tx.sender:
        node = state.get(r.NodeRecord, r.node_key(tx.sender))
        duty = isinstance(tx.payload, DUTIES)
        if not duty or node is None or node.node_key != tx.signer:
            raise TxError(
                "bad_signer", "only the account key signs this, or its node key for duties"
            )
        if tx.fee:
            raise TxError("bad_fee", "the node key pays no fee: it has no say over grains")
    if not (is_signed or verify(tx.signer, tx.digest(), tx.signature)):
        raise TxError("bad_signature", "the signature is not the signer's over this transaction")


def _check_price(state: State, genesis: Genesis, tx: Transaction, size: int) -> None:
    """A fee, a stamp, or a duty of a validator (bounded by the round's slots)."""
    params = state.params(genesis.params)
    if isinstance(tx.payload, DUTIES):
        if is_free_duty(state, tx):
            if tx.stamp is None:
                return
        elif not isinstance(tx.payload, CustodyOpening):
            raise TxError("not_a_validator", "only validators of this epoch do this")
    asked = spend(tx.payload, size, stamped=tx.stamp is not None)
    if tx.stamp is not None:
        quotas.check(state, params, tx.sender)
        stamps.check(state, params, tx, asked)
        return
    least = params.min_fee_grains * asked.units
    if tx.fee < least:
        raise TxError("fee_too_low", f"the fee is {tx.fee} grains; pay {least} or add a stamp")


def is_free_duty(state: State, tx: Transaction) -> bool:
    """Whether the sender owes this to the chain, which then asks nothing for it."""
    if not isinstance(tx.payload, DUTIES):
        return False
    return state.validator(tx.sender) is not None or custody.is_asked(state, tx.sender, tx.payload)
