"""Who leads when it is its turn: what the chain itself shows of it (docs/spec/staking.md, ADR 15).

A block of view v on a parent of view p shows that the views between were nullified, each by a
quorum: their leaders missed their turns. That is the same for everyone who has the chain, unlike
certificates, of which each node holds others. What it cannot show is who votes.
"""

from __future__ import annotations

from chain import records as r
from chain.codec import decode
from chain.jail import JailReason, jail
from chain.params import Params
from chain.rules import Rules
from chain.state import State
from chain.types import PubKey, View
from chain.validator_sets import MIN_SET, candidates

# Turns in a row that count as their leaders' fault; more are the network's. Those who may sleep
# without stopping the chain hold a third: 17 of their turns in a row come once in 10**8 blocks.
MAX_ROW = 16
JAIL_SHARE = 10  # at most one part in ten of the stake is jailed for downtime in one epoch


def count(state: State, rules: Rules, before: r.Head, proposer: PubKey) -> None:
    """Note whose turns lie between the parent, at `before`, and the block that is executed; each
    costs one merit. Whoever proposes has come back."""
    head = state.head
    first = before.view + 1 if before.epoch == head.epoch else 1
    record = state.epoch(head.epoch)
    members = record.validators.members
    if head.view - first <= MAX_ROW:
        for view in range(first, head.view):
            leader = rules.leader(record.seed, View(view), record.validators)
            _missed(state, members[leader].account)
    account = next((v.account for v in members if v.consensus_key == proposer), None)
    held = state.get(r.Attendance, r.attendance_key(account)) if account is not None else None
    if account is not None and held is not None and held.row:
        state.put(r.attendance_key(account), r.Attendance(account, 0, held.missed))


def _missed(state: State, account: PubKey) -> None:
    held = state.get(r.Attendance, r.attendance_key(account)) or r.Attendance(account, 0, 0)
    state.put(r.attendance_key(account), r.Attendance(account, held.row + 1, held.missed + 1))
    merit = state.account(account).merit
    if merit:
        state.put_account(account, merit=merit - 1)


def judge(state: State, params: Params) -> None:
    """At an epoch's first block, before a set freezes: jail who has missed `downtime_views` turns
    in a row, the longest absent first; never below four candidates, nor more than a tenth of their
    stake at once."""
    noted = [decode(r.Attendance, raw) for _, raw in state.items(r.ATTENDANCE)]
    absent = [a for a in noted if a.row >= params.downtime_views]
    if not absent:
        return
    standing = {v.account: v.stake for v in candidates(state, params)}
    left, budget = len(standing), sum(standing.values()) // JAIL_SHARE
    for one in sorted(absent, key=lambda a: (-a.row, a.account)):
        stake = standing.get(one.account)
        if stake is None or left <= MIN_SET or stake > budget:
            continue
        left, budget = left - 1, budget - stake
        jail(state, one.account, JailReason.DOWNTIME, params.downtime_jail)
