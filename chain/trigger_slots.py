"""Who has a slot in a round: a learner's delta is work for everyone, so slots are scarce
whatever a stamp has cost. Bytes that wait for an audit: chain/hosting.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from chain import quotas
from chain import records as r
from chain.errors import TxError
from chain.hashes import EVENT_SEED, Hash32
from chain.limits import MAX_DELTAS, MAX_LEARNERS
from chain.params import Params
from chain.state import State
from chain.types import PubKey

NEWCOMER_SHARE = 4  # of slots that are short, 1/4 is for accounts without merit
TRUSTED_JOINS = MAX_LEARNERS // 4  # places in a round's list that newcomers cannot take


def check_join(state: State, params: Params, current: r.RoundRecord, sender: PubKey) -> None:
    """TxError if a round's list of learners has no place for this one. Newcomers may be three times
    as many as have slots, and a lot decides; but they cannot keep the trusted out."""
    most = MAX_LEARNERS
    if not quotas.is_trusted(state, params, sender):
        most -= TRUSTED_JOINS
        held = sum(not quotas.is_trusted(state, params, a) for a in current.joined)
    else:
        held = len(current.joined)
    if held >= most or len(current.joined) >= MAX_LEARNERS:
        raise TxError(
            "no_slot", f"round {current.number} has {held} learners of your standing, its limit"
        )


def draw(
    state: State, params: Params, seed: Hash32, joined: Sequence[PubKey], slots: int = MAX_DELTAS
) -> tuple[PubKey, ...]:
    """Who of those who declared has a delta's slot, in their order: all if there are slots for all.
    Else those with most merit have 3/4 of them and newcomers, by a lot that nobody knew when they
    declared, the rest; what one side leaves is the other's."""
    if len(joined) <= slots:
        return tuple(joined)
    lots = {a: EVENT_SEED.hash(b"learner", seed, a) for a in joined}
    trusted = [a for a in joined if quotas.is_trusted(state, params, a)]
    trusted.sort(key=lambda a: (-state.account(a).merit, lots[a]))
    new = sorted(set(joined) - set(trusted), key=lambda a: lots[a])
    for_new = min(len(new), max(slots // NEWCOMER_SHARE, slots - len(trusted)))
    chosen = {*new[:for_new], *trusted[: slots - for_new]}
    return tuple(a for a in joined if a in chosen)
