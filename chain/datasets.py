"""Datasets: submission, audit reports, approval, split seed (docs/spec/datasets.md).

For now a dataset is approved by agreeing audit reports of more than two thirds of stake;
votes and tiers have their forms and answer `not_active`.
"""

from __future__ import annotations

from dataclasses import replace

from chain import hosting
from chain import records as r
from chain.codec import decode
from chain.errors import TxError
from chain.hashes import DATASET, EVENT_SEED, ZERO_HASH, Hash32
from chain.model_versions import current, parse_version
from chain.params import Params
from chain.state import State
from chain.transactions import AuditReport, DatasetSubmit, Verdict
from chain.types import Height, PubKey, u64_be


def submit(state: State, params: Params, sender: PubKey, tx: DatasetSubmit) -> None:
    known = state.get(r.DatasetRecord, r.dataset_key(tx.dataset))
    if known is not None and known.status != r.DatasetStatus.REJECTED:
        raise TxError("known_dataset", f"dataset {tx.dataset.hex()} is on the chain already")
    if not tx.license:
        raise TxError("no_license", "a dataset needs a licence (an SPDX expression)")
    if tx.size_bytes == 0 or tx.documents == 0:
        raise TxError("empty_dataset", "a dataset holds at least one document")
    if tx.size_bytes > params.dataset_bytes_most:
        raise TxError(
            "dataset_too_large",
            f"{tx.size_bytes} bytes where at most {params.dataset_bytes_most} are allowed",
        )
    hosting.admit(state, params, sender, tx.dataset, tx.size_bytes, known=known is not None)
    record = r.DatasetRecord(
        tx.dataset,
        sender,
        state.head.height,
        tx.manifest,
        tx.manifest_bytes,
        tx.size_bytes,
        tx.documents,
        tx.license,
        tx.title,
        r.DatasetStatus.PENDING,
        Height(0),
        ZERO_HASH,
        (),
    )
    state.put(r.dataset_key(tx.dataset), record)
    state.emit("dataset", tx.dataset, status="pending")


def audit(state: State, sender: PubKey, tx: AuditReport) -> None:
    record = state.dataset(tx.dataset)
    if record.status != r.DatasetStatus.PENDING:
        raise TxError("decided", "the dataset has been decided")
    if any(v.auditor == sender for v in record.reports):
        raise TxError("duplicate", "this auditor has reported already")
    if tx.verdict not in (Verdict.NO, Verdict.YES):
        raise TxError("bad_verdict", "an audit says yes (1) or no (0)")
    report = r.AuditorReport(sender, tx.verdict, tx.score, tx.report_root)
    record = replace(record, reports=(*record.reports, report))
    stake_of = {v.account: v.stake for v in state.validators()}
    total = sum(stake_of.values())
    agreeing = sum(
        stake_of.get(v.auditor, 0)
        for v in record.reports
        if (v.verdict, v.report_root) == (tx.verdict, tx.report_root)
    )
    if 3 * agreeing > 2 * total:
        approved = tx.verdict == Verdict.YES
        status = r.DatasetStatus.APPROVED if approved else r.DatasetStatus.REJECTED
        record = replace(record, status=status, decided=state.head.height)
        hosting.decide(state, tx.dataset, approved=approved)
        state.emit("dataset", tx.dataset, status="approved" if approved else "rejected")
    state.put(r.dataset_key(tx.dataset), record)


def is_waiting(state: State) -> bool:
    """Whether an approved dataset waits for its split seed."""
    return bool(hosting.index(state).approved)


def active(state: State) -> tuple[Hash32, ...]:
    """Datasets in use, in the state's order."""
    return hosting.index(state).active


def all_datasets(state: State) -> list[r.DatasetRecord]:
    """Every one, whatever its status; a block's execution has no time to read them."""
    return [decode(r.DatasetRecord, raw) for _, raw in state.items(b"data/")]


def draw_splits(state: State, params: Params) -> None:
    """The seed that splits train from holdout is drawn after approval."""
    for name in hosting.index(state).approved:
        record = state.dataset(name)
        if state.head.height >= record.decided + params.seed_blocks:
            seed = event_seed(state, params, b"split" + record.id, record.decided)
            changed = replace(record, split_seed=seed, status=r.DatasetStatus.ACTIVE)
            state.put(r.dataset_key(record.id), changed)
            hosting.activate(state, record.id)
            state.emit("dataset", record.id, status="active")


def event_seed(state: State, params: Params, event: bytes, closed: int) -> Hash32:
    """H(event ‖ VRF outputs of the `seed_blocks` blocks after `closed`)."""
    head = state.head
    first = len(head.recent_vrf) - (head.height - closed)
    outputs = head.recent_vrf[first : first + params.seed_blocks]
    return EVENT_SEED.hash(event, *outputs)


def holdout_id(state: State, datasets: tuple[Hash32, ...]) -> Hash32:
    """Names a holdout: the same datasets with the same split seeds, in the state's order, and how a
    model is measured on it if that is not as in genesis."""
    parts = [d + state.dataset(d).split_seed for d in datasets]
    major, minor, _ = parse_version(current(state))
    if (major, minor) != (1, 0):
        parts.append(f"{major}.{minor}".encode())
    return DATASET.hash(u64_be(len(parts)), *parts)
