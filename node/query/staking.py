"""What the state says of an account as a validator (docs/spec/staking.md)."""

from __future__ import annotations

from typing import Any

from chain import records as r
from chain.jail import JailReason
from chain.state import State
from chain.types import PubKey

SETS_AHEAD = 2  # sets frozen beyond the epoch in progress


def jail(state: State, account: PubKey) -> dict[str, Any] | None:
    """Why an account is jailed, and until when; None if it is not."""
    held = state.get(r.JailRecord, r.jail_key(account))
    if held is None:
        return None
    head = state.head
    return {
        "reason": JailReason(held.reason).name.lower(),
        "until": held.until,
        "until_ms": held.until_ms,
        "over": head.height + 1 >= held.until and head.time_ms >= held.until_ms,
    }


def missed_turns(state: State, account: PubKey) -> int:
    """Turns to lead that it has missed since its last block."""
    held = state.get(r.Attendance, r.attendance_key(account))
    return held.row if held is not None else 0


def sets(state: State, account: PubKey) -> list[dict[str, int]]:
    """The epochs, from the one in progress, whose frozen sets have it, and with what stake."""
    first = state.head.epoch
    return [
        {"epoch": number, "stake": int(member.stake)}
        for number in range(first, first + SETS_AHEAD + 1)
        if (record := state.get(r.EpochRecord, r.epoch_key(number))) is not None
        for member in record.validators.members
        if member.account == account
    ]
