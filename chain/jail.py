"""Who stays out of coming validator sets, for how long, and why (docs/spec/staking.md).

Jail says nothing about the sets that are frozen: whoever is in one acts, and answers, to its end.
"""

from __future__ import annotations

from enum import IntEnum

from chain import records as r
from chain.errors import TxError
from chain.params import Window
from chain.state import State
from chain.types import Height, PubKey, TimeMs


class JailReason(IntEnum):
    """In order of how soon one comes back into a set that is short of members."""

    DOWNTIME = 1
    EVIDENCE = 2


def jail(state: State, account: PubKey, reason: JailReason, term: Window) -> None:
    """Shut an account out of the sets that freeze from now on. Whoever is in jail stays for the
    longer of both terms, and for the worse of both reasons."""
    head = state.head
    until, until_ms = head.height + term.blocks, head.time_ms + term.ms
    held = state.get(r.JailRecord, r.jail_key(account))
    if held is not None:
        until, until_ms = max(until, held.until), max(until_ms, held.until_ms)
        reason = JailReason(max(reason, held.reason))
    record = r.JailRecord(account, int(reason), Height(until), TimeMs(until_ms))
    state.put(r.jail_key(account), record)
    state.put_account(account, jailed=1)
    state.emit("jail", account, reason=reason.name.lower(), until=until, until_ms=until_ms)


def unjail(state: State, account: PubKey) -> None:
    """The way back, on the account's own word, once both the height and the time have passed. Its
    absences are forgotten, or it would be jailed again before it is in any set."""
    held = state.get(r.JailRecord, r.jail_key(account))
    if held is None:
        raise TxError("not_jailed", "the account is not jailed")
    head = state.head
    if head.height < held.until or head.time_ms < held.until_ms:
        raise TxError(
            "still_jailed",
            f"the account is jailed until block {held.until} and {held.until_ms} ms of Unix time; "
            "send this again when both have passed",
        )
    state.delete(r.jail_key(account))
    state.delete(r.attendance_key(account))
    state.put_account(account, jailed=0)
    state.emit("unjail", account)
