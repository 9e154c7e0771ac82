"""What holds before a payload is looked at: chain, nonce, signer, signature, and the price.

A fee, a stamp, or a duty that the sender owes to the chain (docs/spec/transactions.md).
"""

from __future__ import annotations

from chain import custody
from chain import records as r
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
    Payload,
    PolVote,
    SubmitEvidence,
    TileUpdate,
    Transaction,
    stamp_digest,
)
from chain.types import ConflictingCertificates, PubKey

DUTIES = (
    *(PolVote, TileUpdate, Attest, AuditReport, FraudProof),
    *(Custody, CustodyOpening, LatencyReport),
)
# What an opening costs who owes none, and evidence of a light-client attack anyone, in ordinary
# transactions: both are large, and the latter has up to 1,024 signatures to verify.
LARGE_WEIGHT = 8


def check_transaction(
    state: State, genesis: Genesis, tx: Transaction, gap: int = 0, *, is_signed: bool = False
) -> None:
    """Everything that holds before a payload is looked at. `gap`: nonces the mempool may skip;
    `is_signed`: the signature is known to be the signer's."""
    if tx.chain_id != genesis.chain_id:
        raise TxError("wrong_chain", "the transaction is signed for another chain")
    account = state.account(tx.sender)
    if not account.nonce <= tx.nonce <= account.nonce + gap:
        raise TxError("bad_nonce", f"the nonce is {tx.nonce}; {account.nonce} is next")
    _check_signer(state, tx, is_signed)
    _check_price(state, genesis, tx)
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


def _check_price(state: State, genesis: Genesis, tx: Transaction) -> None:
    """A fee, a stamp, or a duty of a validator (bounded by the round's slots)."""
    params = genesis.params
    if is_free_duty(state, tx):
        return
    if isinstance(tx.payload, DUTIES) and not isinstance(tx.payload, CustodyOpening):
        raise TxError("not_a_validator", "only validators of this epoch do this")
    if tx.stamp is None:
        least = params.min_fee_grains * _weight(tx.payload)
        if tx.fee < least:
            raise TxError("fee_too_low", f"the fee is {tx.fee} grains; pay {least} or add a stamp")
        return
    head = state.head
    age = head.height - tx.stamp.height
    if not 0 < age <= min(params.stamp_window_blocks, len(head.recent_parents)):
        raise TxError("stale_stamp", "the stamp's block is not among the recent ones; stamp anew")
    parent = head.recent_parents[-age]
    digest = stamp_digest(tx.chain_id, tx.sender, tx.nonce, parent, tx.payload, tx.stamp.work)
    bits = stamp_bits(state, genesis, tx.sender) + _weight(tx.payload).bit_length() - 1
    if int.from_bytes(digest, "big") >> (256 - bits):
        raise TxError("weak_stamp", f"the stamp needs {bits} leading zero bits")


def is_free_duty(state: State, tx: Transaction) -> bool:
    """Whether the sender owes this to the chain, which then asks nothing for it."""
    if not isinstance(tx.payload, DUTIES):
        return False
    return state.validator(tx.sender) is not None or custody.is_asked(state, tx.sender, tx.payload)


def _weight(payload: Payload) -> int:
    """What a payload costs, in ordinary transactions; a power of two."""
    large = isinstance(payload, CustodyOpening) or (
        isinstance(payload, SubmitEvidence)
        and isinstance(payload.evidence, ConflictingCertificates)
    )
    return LARGE_WEIGHT if large else 1


def stamp_bits(state: State, genesis: Genesis, sender: PubKey) -> int:
    """Difficulty for this sender: an account's first costs 2**stamp_new_account_bits more."""
    params = genesis.params
    new = state.account(sender).nonce == 0
    return params.stamp_bits + (params.stamp_new_account_bits if new else 0)
