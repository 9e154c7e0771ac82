"""How far validators are from each other, as both ends say (docs/spec/election.md, "Latency").

Each says once an epoch how far every other member of the set is. Of a pair the farther word counts,
so nobody is near by its own word or by another's alone; and of a member the stake-weighted median
of its pairs, so nobody is moved beyond what honest ones say by less than half of the stake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain import records as r
from chain.codec import Bytes, decode, wire
from chain.errors import TxError
from chain.state import State
from chain.transactions import LatencyReport
from chain.types import Epoch, PubKey

CLASS_MS = (20, 50, 100, 200)  # round trips: class 0 up to the first, 1 up to the second, …
FARTHEST = len(CLASS_MS)  # beyond the last, and whatever is not known

REPORTS = b"ltnc/"


@wire(163)
@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """What a member says of the others in the epoch's set: a class each, in the set's order."""

    account: PubKey
    epoch: Epoch
    classes: Annotated[bytes, Bytes(limits.MAX_VALIDATORS)]


def latency_key(account: PubKey) -> bytes:
    return REPORTS + account


def has_reported(state: State, account: PubKey) -> bool:
    """Whether an account has said its word in this epoch."""
    known = state.get(LatencyRecord, latency_key(account))
    return known is not None and known.epoch == state.head.epoch


def report(state: State, sender: PubKey, tx: LatencyReport) -> None:
    if tx.epoch != state.head.epoch:
        raise TxError("wrong_epoch", f"epoch {tx.epoch} is not in progress")
    if has_reported(state, sender):
        raise TxError("duplicate", "this validator has reported in this epoch already")
    members = state.validators()
    if len(tx.classes) != len(members):
        raise TxError("wrong_count", f"{len(tx.classes)} classes; the set has {len(members)}")
    if max(tx.classes) > FARTHEST:
        raise TxError("bad_class", f"a latency class is 0 to {FARTHEST}")
    state.put(latency_key(sender), LatencyRecord(sender, tx.epoch, tx.classes))


def take_classes(state: State) -> dict[PubKey, int]:
    """The latency class of each member of the epoch that has just ended; its reports leave the
    state. Whoever is not in it is as far as can be."""
    head = state.head
    last = state.get(r.EpochRecord, r.epoch_key(head.epoch - 1)) if head.epoch else None
    said: dict[PubKey, bytes] = {}
    for key, raw in list(state.items(REPORTS)):
        record = decode(LatencyRecord, raw)
        if last is not None and record.epoch == last.epoch:
            said[record.account] = record.classes
        state.delete(key)
    if last is None or not said:
        return {}
    members = last.validators.members
    words = [said.get(member.account) for member in members]
    total = sum(member.stake for member in members)
    found = {}
    for i, member in enumerate(members):
        own = words[i]
        within = [0] * (FARTHEST + 1)  # stake of the others by class
        for j, other in enumerate(members):
            theirs = words[j]
            if i != j and own is not None and theirs is not None:
                within[max(own[j], theirs[i])] += other.stake
        found[member.account] = _median(within, total - member.stake)
    return found


def _median(within: list[int], total: int) -> int:
    """The nearest class within which more than half of the others' stake lies."""
    so_far = 0
    for latency_class, stake in enumerate(within):
        so_far += stake
        if 2 * so_far > total:
            return latency_class
    return FARTHEST
