"""How many datasets and bytes wait for an audit, and for whom (docs/spec/datasets.md).

Hosts must keep what is submitted until it is decided, so room is scarce: in all, for new accounts
together, and for each. An index keeps what each block asks, whatever the datasets themselves are.
"""

from __future__ import annotations

from dataclasses import replace

from chain import price_records as p
from chain import quotas
from chain import records as r
from chain.codec import decode
from chain.errors import TxError
from chain.hashes import Hash32
from chain.limits import MAX_DATASETS, MAX_NEWCOMER_DATASET_BYTES
from chain.params import Params
from chain.state import State
from chain.trigger_slots import NEWCOMER_SHARE
from chain.types import Height, PubKey

_EMPTY = p.DatasetIndex(0, 0, 0, 0, (), (), ())


def index(state: State) -> p.DatasetIndex:
    """Of all datasets. A state that was written without one has it from here on."""
    held = state.get(p.DatasetIndex, p.DATASETS)
    if held is not None:
        return held
    rows = [decode(r.DatasetRecord, raw) for _, raw in state.items(b"data/")]
    if not rows:
        return _EMPTY
    found = {s: tuple(d.id for d in rows if d.status == s) for s in r.DatasetStatus}
    status = r.DatasetStatus
    vacant = (*found[status.REJECTED], *found[status.PENDING])
    made = p.DatasetIndex(
        len(rows), 0, 0, 0, found[status.APPROVED], found[status.ACTIVE], tuple(sorted(vacant))
    )
    put(state, made)
    return made


def put(state: State, changed: p.DatasetIndex) -> None:
    state.put(p.DATASETS, changed)


def admit(
    state: State, params: Params, sender: PubKey, dataset: Hash32, size: int, *, known: bool
) -> None:
    """A dataset waits for an audit from now on; TxError `no_slot` if there is no room for it. The
    first that is vacant gives its slot up: rejected, or nobody could audit it for long. Otherwise
    256 names of nothing would keep everyone out for ever."""
    now = index(state)
    new = not quotas.is_trusted(state, params, sender)
    own = state.get(p.HostedOf, p.hosted_of_key(sender)) or p.HostedOf(0)
    _check_bytes(params, now, own, size, new)
    vacant = tuple(d for d in now.vacant if d != dataset)
    held = now.held
    if not known:
        if held >= MAX_DATASETS:
            if not vacant:
                raise TxError(
                    "no_slot", f"the network holds {MAX_DATASETS} datasets, its limit for now"
                )
            state.delete(r.dataset_key(vacant[0]))
            vacant, held = vacant[1:], held - 1
        held += 1
    changed = replace(
        now,
        held=held,
        pending_bytes=now.pending_bytes + size,
        newcomer_bytes=now.newcomer_bytes + size * new,
        newcomers=now.newcomers + new,
        vacant=vacant,
    )
    put(state, changed)
    head = state.head
    due = Height(head.height + params.audit_patience.blocks)
    row = p.HostedBytes(sender, size, head.height, head.time_ms, int(new), due)
    state.put(p.hosted_key(dataset), row)
    state.put(p.hosted_due_key(due, dataset), p.HostedDue(dataset))
    state.put(p.hosted_of_key(sender), p.HostedOf(own.size_bytes + size))


def _check_bytes(
    params: Params, now: p.DatasetIndex, own: p.HostedOf, size: int, new: bool
) -> None:
    most = params.hosted_bytes_most
    if now.pending_bytes + size > most:
        raise TxError("no_slot", f"at most {most} bytes may wait for an audit; try again later")
    if not new:
        return
    if own.size_bytes + size > MAX_NEWCOMER_DATASET_BYTES:
        raise TxError(
            "no_slot",
            f"a new account has at most {MAX_NEWCOMER_DATASET_BYTES} bytes waiting for an audit",
        )
    if (now.newcomer_bytes + size) * NEWCOMER_SHARE > most:
        raise TxError("no_slot", "the bytes of new accounts that may wait for an audit are full")
    if (now.newcomers + 1) * NEWCOMER_SHARE > MAX_DATASETS:
        raise TxError("no_slot", "as many datasets of new accounts wait for an audit as may")


def release(state: State, dataset: Hash32) -> None:
    """It waits no longer."""
    row = state.get(p.HostedBytes, p.hosted_key(dataset))
    if row is None:  # it began to wait before this was counted
        return
    state.delete(p.hosted_key(dataset))
    state.delete(p.hosted_due_key(row.due, dataset))
    now, owner = index(state), p.hosted_of_key(row.submitter)
    own = state.need(p.HostedOf, owner).size_bytes - row.size_bytes
    if own:
        state.put(owner, p.HostedOf(own))
    else:
        state.delete(owner)
    changed = replace(
        now,
        pending_bytes=now.pending_bytes - row.size_bytes,
        newcomer_bytes=now.newcomer_bytes - row.size_bytes * row.newcomer,
        newcomers=now.newcomers - row.newcomer,
    )
    put(state, changed)


def decide(state: State, dataset: Hash32, *, approved: bool) -> None:
    """It was audited: it waits for its split seed, or for another to take its slot."""
    release(state, dataset)
    now = index(state)
    vacant = tuple(d for d in now.vacant if d != dataset)
    if approved:
        put(state, replace(now, vacant=vacant, approved=(*now.approved, dataset)))
    else:
        put(state, replace(now, vacant=(*vacant, dataset)))


def activate(state: State, dataset: Hash32) -> None:
    """It has its split seed."""
    now = index(state)
    approved = tuple(d for d in now.approved if d != dataset)
    put(state, replace(now, approved=approved, active=tuple(sorted((*now.active, dataset)))))


def sweep(state: State, params: Params) -> None:
    """At the end of a block: what has waited for too long counts no more and may lose its slot.
    What has waited for blocks but not for time is looked at again soon."""
    head, window = state.head, params.audit_patience
    for due, raw in list(state.items(p.hosted_due_prefix(head.height))):
        dataset = decode(p.HostedDue, raw).dataset
        row = state.need(p.HostedBytes, p.hosted_key(dataset))
        if head.time_ms < row.time_ms + window.ms:
            state.delete(due)
            later = Height(head.height + max(1, window.blocks // 8))
            state.put(p.hosted_key(dataset), replace(row, due=later))
            state.put(p.hosted_due_key(later, dataset), p.HostedDue(dataset))
            continue
        release(state, dataset)
        now = index(state)
        put(state, replace(now, vacant=(*now.vacant, dataset)))
