"""How many stamped transactions an account has a day, by merit.

A day is a window of height and time; it begins with an account's first stamped transaction after
the last one ended, and its record leaves the state when it is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chain import price_records as p
from chain.codec import decode
from chain.errors import TxError
from chain.params import Params
from chain.state import State
from chain.types import Height, PubKey, TimeMs


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one account: what it may, what it has used, and when its day has passed (both)."""

    limit: int
    used: int
    resets: Height
    resets_ms: TimeMs


def is_trusted(state: State, params: Params, account: PubKey) -> bool:
    """Whether its work has earned it a name: merged deltas and duties done."""
    return state.account(account).merit >= params.trusted_merit


def standing(state: State, params: Params, account: PubKey) -> Standing:
    """Where an account is in its day; one that has none could begin it now."""
    limit = params.quota_trusted if is_trusted(state, params, account) else params.quota_newcomer
    held = state.get(p.Quota, p.quota_key(account))
    if held is None or _is_over(state, params, held):
        head = state.head
        held = p.Quota(head.height, head.time_ms, 0, Height(0))
    day = params.quota_day
    resets, resets_ms = Height(held.height + day.blocks), TimeMs(held.time_ms + day.ms)
    return Standing(limit, held.used, resets, resets_ms)


def check(state: State, params: Params, account: PubKey) -> None:
    """TxError if an account has used up its day."""
    now = standing(state, params, account)
    if now.used >= now.limit:
        raise TxError(
            "quota_exceeded",
            f"{now.limit} stamped transactions are allowed a day; the next one from block "
            f"{now.resets} and {now.resets_ms} ms of Unix time on, or with a fee at once",
        )


def count(state: State, params: Params, account: PubKey) -> None:
    """An account has sent a stamped transaction."""
    key, head = p.quota_key(account), state.head
    held = state.get(p.Quota, key)
    if held is not None and not _is_over(state, params, held):
        state.put(key, replace(held, used=held.used + 1))
        return
    if held is not None:
        state.delete(p.quota_due_key(held.due, account))
    due = Height(head.height + params.quota_day.blocks)
    state.put(key, p.Quota(head.height, head.time_ms, 1, due))
    state.put(p.quota_due_key(due, account), p.QuotaDue(account))


def sweep(state: State, params: Params) -> None:
    """At the end of a block: drop the days that are over. One whose time has not come is looked at
    a day's blocks later. At one height due are at most those that began theirs in a few blocks, so
    the work is bounded by the stamps that blocks have room for."""
    height = state.head.height
    for due, raw in list(state.items(p.quota_due_prefix(height))):
        account = decode(p.QuotaDue, raw).account
        key = p.quota_key(account)
        held = state.need(p.Quota, key)
        state.delete(due)
        if _is_over(state, params, held):
            state.delete(key)
            continue
        later = Height(height + params.quota_day.blocks)
        state.put(key, replace(held, due=later))
        state.put(p.quota_due_key(later, account), p.QuotaDue(account))


def _is_over(state: State, params: Params, held: p.Quota) -> bool:
    head, day = state.head, params.quota_day
    return head.height >= held.height + day.blocks and head.time_ms >= held.time_ms + day.ms
