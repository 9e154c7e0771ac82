"""Accounts, stakes, announced keys and epochs (docs/spec/state.md)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from chain import attendance
from chain import records as r
from chain.address import peer_id_of
from chain.codec import decode
from chain.crypto import is_prime_order_point, verify
from chain.errors import TxError
from chain.hashes import EPOCH_SEED, ZERO_HASH, Hash32
from chain.jail import JailReason, jail
from chain.params import Params
from chain.rules import Rules
from chain.standings import put_cutoffs, put_frozen
from chain.state import CHAIN_ACCOUNTS, REWARD_POOL, State
from chain.transactions import Announce, Bond, Transfer, Unbond, announce_digest
from chain.types import (
    ChainId,
    Epoch,
    EvidenceItem,
    Grains,
    Height,
    PubKey,
    TimeMs,
    accused,
    u64_be,
)
from chain.validator_sets import freeze_set


def transfer(state: State, sender: PubKey, tx: Transfer) -> None:
    if tx.amount == 0:
        raise TxError("zero_amount", "a transfer moves at least one grain")
    if tx.to in CHAIN_ACCOUNTS:
        raise TxError("bad_recipient", "the chain's own accounts take no transfers")
    state.move(sender, tx.to, tx.amount)


def bond(state: State, params: Params, sender: PubKey, tx: Bond) -> None:
    account = state.account(sender)
    if tx.amount < params.min_bond_grains:
        raise TxError("bond_too_small", f"a bond is at least {params.min_bond_grains} grains")
    if account.balance < tx.amount:
        raise TxError(
            "insufficient_funds",
            f"the account holds {account.balance} grains and {tx.amount} are to be bonded",
        )
    state.put_account(
        sender, balance=account.balance - tx.amount, bonded=account.bonded + tx.amount
    )


def unbond(state: State, params: Params, sender: PubKey, tx: Unbond) -> None:
    """The stake stops counting at the next frozen set and is paid out after the unbonding time,
    when also the last set that may count it is beyond all evidence."""
    account = state.account(sender)
    if tx.amount == 0 or account.bonded < tx.amount:
        raise TxError("insufficient_bond", f"the account has {account.bonded} grains bonded")
    head = state.head
    leaving = r.Unbonding(
        sender,
        tx.amount,
        Height(head.height + params.unbonding_blocks),
        TimeMs(head.time_ms + params.unbonding_ms),
        Epoch(head.epoch + 2),  # frozen already, unless this is an epoch's first block
    )
    put_unbonding(state, leaving)
    state.put_account(sender, bonded=account.bonded - tx.amount)


def put_unbonding(state: State, leaving: r.Unbonding) -> None:
    """What an account has due at one height is one sum, which waits for the latest of its parts."""
    key = r.unbonding_key(leaving.release, leaving.account)
    waiting = state.get(r.Unbonding, key)
    if waiting is not None:
        leaving = replace(
            leaving,
            amount=Grains(leaving.amount + waiting.amount),
            release_ms=max(leaving.release_ms, waiting.release_ms),
            epoch=max(leaving.epoch, waiting.epoch),
        )
    state.put(key, leaving)
    state.put(r.due_key(leaving.release, leaving.account), r.UnbondingDue(leaving.account))


def announce(state: State, chain_id: ChainId, sender: PubKey, tx: Announce) -> None:
    digest = announce_digest(chain_id, sender, tx)
    if not verify(tx.node_key, digest, tx.node_signature):
        raise TxError("bad_signature", "node_signature does not show that the node key is held")
    if not verify(tx.consensus_key, digest, tx.consensus_signature):
        raise TxError("bad_signature", "consensus_signature does not show that the key is held")
    if not is_prime_order_point(tx.vrf_key):
        raise TxError("bad_key", "vrf_key is no canonical Edwards25519 point of prime order")
    if tx.node_id != peer_id_of(tx.node_key):
        raise TxError("bad_node_id", f"the peer id of node_key is {peer_id_of(tx.node_key)}")
    owner = state.get(r.KeyOwner, r.consensus_key(tx.consensus_key))
    if owner is not None and owner.account != sender:
        raise TxError("key_taken", "another account has announced this consensus key")
    old = state.get(r.NodeRecord, r.node_key(sender))
    if old is not None and old.consensus_key != tx.consensus_key:
        state.delete(r.consensus_key(old.consensus_key))
    state.put(r.consensus_key(tx.consensus_key), r.KeyOwner(sender))
    state.put(
        r.node_key(sender),
        r.NodeRecord(
            sender,
            tx.roles,
            tx.capacity_tiles,
            tx.node_key,
            tx.consensus_key,
            tx.vrf_key,
            tx.node_id,
            tx.addresses,
        ),
    )


def slash(
    state: State, params: Params, chain_id: ChainId, rules: Rules, item: EvidenceItem
) -> None:
    """Evidence carries its own proof. Its epoch's set names the accounts; a key is slashed once an
    epoch, since one offence shows in several pairs. What convicts nobody anew is refused."""
    epoch = convictable(state, params, item.first.epoch)
    if epoch is None:
        raise TxError(
            "expired_evidence",
            f"epoch {item.first.epoch} is unknown, or ended more than {params.evidence_blocks} "
            f"blocks and {params.evidence_ms} ms ago",
        )
    _unpunished(state, epoch.epoch, accused(epoch.validators, item))  # before any signature
    guilty = rules.check_evidence(chain_id, epoch.validators, item)
    accounts = {v.consensus_key: v.account for v in epoch.validators.members}
    for key in _unpunished(state, epoch.epoch, guilty):
        account = accounts[key]
        lost = forfeit(state, account, params.slash_permille)
        jail(state, account, JailReason.EVIDENCE, params.evidence_jail)
        state.put_account(account, merit=0)  # its word counts like a newcomer's
        state.put_account(REWARD_POOL, balance=state.account(REWARD_POOL).balance + lost)
        record = r.EvidenceRecord(account, Grains(lost), state.head.height)
        state.put(r.evidence_key(key, epoch.epoch), record)
        state.emit("slash", account, lost=lost)


def _unpunished(state: State, epoch: Epoch, keys: Sequence[PubKey]) -> list[PubKey]:
    """Those of `keys` that were not slashed for this epoch yet; TxError if there are none."""
    found = [k for k in keys if state.raw(r.evidence_key(k, epoch)) is None]
    if not found:
        raise TxError("known_evidence", "whom it names has been slashed for this epoch already")
    return found


def convictable(state: State, params: Params, number: int) -> r.EpochRecord | None:
    """The record of an epoch whose offences can be punished, frozen ones that are to come included.
    They expire when *both* the height and the time since the epoch's end have passed their age, so
    that neither an idle nor a flooded chain lets anyone off."""
    record = state.get(r.EpochRecord, r.epoch_key(number))
    if record is None or has_expired(state, params, record):
        return None
    return record


def has_expired(state: State, params: Params, record: r.EpochRecord) -> bool:
    if record.ended_ms == 0:
        return False
    head, end = state.head, (record.epoch + 1) * params.epoch_blocks
    return (
        head.height > end + params.evidence_blocks
        and head.time_ms > record.ended_ms + params.evidence_ms
    )


def forfeit(state: State, account: PubKey, permille: int) -> int:
    """Take a part of an account's stake; the caller gives the grains to someone. What is on its way
    out stays at stake, or whoever leaves could sign anything."""
    held = state.account(account)
    lost = held.bonded * permille // 1000
    state.put_account(account, bonded=held.bonded - lost)
    for key, raw in list(state.items(r.unbondings_of(account))):
        waiting = decode(r.Unbonding, raw)
        part = waiting.amount * permille // 1000
        state.put(key, replace(waiting, amount=Grains(waiting.amount - part)))
        lost += part
    return lost


def release_unbonded(state: State, params: Params, held: Collection[PubKey] = ()) -> None:
    """Pay out what is due at this very height. Nothing is ever due at one that has passed: that of
    the accounts in `held` is due again at the next, and what has its time still to wait an epoch
    later, so that a block looks at few of those who wait."""
    height, time_ms = state.head.height, state.head.time_ms
    for due, raw in list(state.items(r.due_prefix(height))):
        account = decode(r.UnbondingDue, raw).account
        key = r.unbonding_key(height, account)
        waiting = state.need(r.Unbonding, key)
        state.delete(due)
        state.delete(key)
        if account in held:
            put_unbonding(state, replace(waiting, release=Height(height + 1)))
            continue
        if time_ms < waiting.release_ms or convictable(state, params, waiting.epoch) is not None:
            later = Height(height + params.epoch_blocks)
            put_unbonding(state, replace(waiting, release=later))
            continue
        state.put_account(account, balance=state.account(account).balance + waiting.amount)


def turn_epoch(state: State, params: Params, rules: Rules, vrf: Hash32) -> None:
    """At an epoch's first block jail who was absent and freeze the set of e+2; at its last draw the
    seed of e+2 and say who is full in e+1."""
    head = state.head
    first = (head.height - 1) % params.epoch_blocks == 0
    last = head.height % params.epoch_blocks == 0
    if first:
        ahead = Epoch(head.epoch + 2)
        attendance.judge(state, params)
        frozen = freeze_set(state, params, ahead)
        put_frozen(state, params, ahead, frozen, ZERO_HASH)
        _forget_epochs(state, params)
    if last:
        ahead = Epoch(head.epoch + 2)
        seed = EPOCH_SEED.hash(vrf, u64_be(ahead))
        state.put(r.epoch_key(ahead), replace(state.epoch(ahead), seed=seed))
        ended = replace(state.epoch(head.epoch), ended_ms=head.time_ms)
        state.put(r.epoch_key(head.epoch), ended)
        put_cutoffs(state, params, rules, Epoch(head.epoch + 1))


def _forget_epochs(state: State, params: Params) -> None:
    """Drop the epochs that nothing can be shown of any more, with what was punished in them."""
    for key, raw in list(state.items(b"epch/")):
        record = decode(r.EpochRecord, raw)
        if not has_expired(state, params, record):
            return  # epochs end in order
        state.delete(key)
        for used, _ in list(state.items(r.evidence_of(record.epoch))):
            state.delete(used)
