"""What an account's next transaction costs, and how many stamps it has left (docs/spec/api.md)."""

from __future__ import annotations

from typing import Any

from chain import quotas, stamps
from chain.costs import UNIT_BYTES, UNIT_US, StampClass
from chain.params import Params
from chain.state import State
from chain.types import PubKey


def price(state: State, params: Params, account: PubKey) -> dict[str, Any]:
    """Of one unit: the least fee, or the tries that a stamp made now takes on average, by class,
    for this account (a new one's first is dearer)."""
    factor = stamps.newcomer_factor(state, params, account)
    height = state.head.height
    return {
        "unit_us": UNIT_US,
        "unit_bytes": UNIT_BYTES,
        "fee": params.min_fee_grains,
        "newcomer_factor": factor,
        "tries": {
            kind.name.lower(): factor * stamps.difficulty(state, params, kind, height)
            for kind in StampClass
        },
    }


def quota(state: State, params: Params, account: PubKey) -> dict[str, Any]:
    """Stamped transactions of the account's day; it is over when both `resets` have passed."""
    now = quotas.standing(state, params, account)
    return {
        "trusted": quotas.is_trusted(state, params, account),
        "limit": now.limit,
        "used": now.used,
        "left": max(0, now.limit - now.used),
        "resets": now.resets if now.used else None,
        "resets_ms": now.resets_ms if now.used else None,
    }
