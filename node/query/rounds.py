"""Learning rounds, deltas, updates, losses and datasets as the API shows them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import zip_longest

from chain import datasets as dataset_rules
from chain import guard
from chain import records as r
from chain.codec import decode
from chain.errors import TxError
from chain.hashes import ZERO_HASH, Hash32
from chain.model_versions import of_round
from chain.records import DeltaStatus, RoundPhase
from chain.rounds import watchers
from chain.state import State
from chain.transactions import TileUpdate, Transaction
from chain.types import PubKey, TxId
from node.query.base import Json, NotFound, Reader, natural, unhex
from node.query.plain import (
    address,
    dataset_status,
    delta_status,
    guard_verdict,
    nats,
    phase_name,
    plain,
    verdict_name,
)

WEIGHT_ONE = 1 << 20  # a weight of 1 in a tile update
MAX_LOSSES = 1000  # rounds in the loss chart
MAX_LINEAGE_ROUNDS = 1000  # newest rounds looked through for what a dataset went into
PHASES = tuple(phase_name(p) for p in RoundPhase)


class RoundQueries(Reader):
    # --- rounds ----------------------------------------------------------------------

    def rounds(self, before: int | None = None, limit: int | None = None) -> Json:
        """Newest first, below round `before`."""
        most, state = self.limit(limit), self.state
        first = state.head.round if before is None else min(before - 1, state.head.round)
        numbers = range(first, max(first - most, -1), -1)
        listed = [_round_row(state, state.round(n)) for n in numbers]
        return {"rounds": listed, "next": numbers[-1] if numbers and numbers[-1] > 0 else None}

    def round(self, which: str) -> Json:
        """One round by number, or the `current` one: every field of its record, its deltas and
        its updates."""
        record, state = self._round(which), self.state
        deltas = [self._delta_row(state.delta(d)) for d in record.deltas]
        return {
            **_round_fields(state, record),
            "model_version": of_round(state, record.number),
            "current": record.number == state.head.round,
            "phases": self._timeline(record),
            "learners": [
                {"account": address(a), "delta": self._delta_of(record, a)} for a in record.joined
            ],
            "delta_list": deltas,
            "update_list": [self._update_row(u) for u in self._updates_of(record)],
        }

    def _round(self, which: str) -> r.RoundRecord:
        state = self.state
        current = state.head.round
        number = current if which == "current" else natural(which, "round (or `current`)")
        record = state.get(r.RoundRecord, r.round_key(number))
        if record is None:
            raise NotFound(f"there is no round {number} yet; round {current} is in progress")
        return record

    def _delta_of(self, record: r.RoundRecord, account: PubKey) -> str | None:
        state = self.state
        return next((d.hex() for d in record.deltas if state.delta(d).sender == account), None)

    def _timeline(self, record: r.RoundRecord) -> list[Json]:
        """Every phase in order with the height at which it began, None for those to come.

        A round without deltas skips from its jury to the end.
        """
        began: dict[str, tuple[int, int | None]] = {}
        began[PHASES[0]] = (record.opened, self._time(record.opened))
        key = record.number.to_bytes(8, "big")
        for event in reversed(self.node.store.history("phase", key)):
            began.setdefault(event.data["phase"], (event.height, self._time(event.height)))
        now = phase_name(record.phase)
        listed = []
        for index, name in enumerate(PHASES):
            height, time_ms = began.get(name, (None, None))
            state = "now" if name == now else "todo" if height is None else "done"
            if state == "todo" and index < record.phase:
                state = "skipped"
            if now == "done" and name == "done":
                state = "done"
            listed.append({"phase": name, "height": height, "time_ms": time_ms, "state": state})
        return listed

    def _time(self, height: int) -> int | None:
        header = self.node.store.header(height)  # type: ignore[arg-type]
        return header.time_ms if header is not None else None

    # --- deltas ----------------------------------------------------------------------

    def deltas(self, before: int | None = None, limit: int | None = None) -> Json:
        """Newest round first; `before` and `next` are round numbers, and a round is never cut."""
        most, state = self.limit(limit), self.state
        number = state.head.round if before is None else min(before - 1, state.head.round)
        listed: list[Json] = []
        while number >= 0 and len(listed) < most:
            record = state.round(number)
            listed += [self._delta_row(state.delta(d)) for d in reversed(record.deltas)]
            number -= 1
        return {"deltas": listed, "next": number + 1 if number >= 0 else None}

    def delta(self, text: str) -> Json:
        """One delta: its commit, manifest, votes, audit and where it went."""
        record = self._delta(text)
        state = self.state
        current = state.round(record.round)
        audit = None
        if current.audited == record.id:
            audit = {
                "segment": current.audit_segment,
                "auditors": [address(a) for a in current.auditors],
                "votes": [_audit_vote(v) for v in current.audit_votes],
            }
        merged_into = []
        if record.status in (DeltaStatus.MERGED, DeltaStatus.ROLLED_BACK):
            merged_into = [self._update_row(u) for u in self._updates_of(current)]
        return {
            **self._delta_row(record),
            "base_root": record.base_root.hex(),
            "commitment": record.commitment.hex(),
            "manifest_root": record.manifest_root.hex(),
            "blob": record.blob.hex(),
            "salt": record.salt.hex(),
            "manifest": plain(record.manifest) if record.manifest else None,
            "votes": [_juror_vote(v) for v in record.votes],
            "reward": record.reward,
            "jurors": [address(j) for j in current.jurors if j != record.sender],
            "audit": audit,
            "updates": merged_into,
        }

    def _delta(self, text: str) -> r.DeltaRecord:
        try:
            return self.state.delta(TxId(unhex(text, "delta id")))
        except TxError:
            raise NotFound(
                f"there is no delta {text}; a delta's id is the id of its delta_commit transaction"
            ) from None

    def _delta_row(self, record: r.DeltaRecord) -> Json:
        manifest = record.manifest
        said = [v for v in record.votes if v.revealed]
        gain = sum(v.gain for v in said) // len(said) if said else None
        return {
            "id": record.id.hex(),
            "round": record.round,
            "sender": address(record.sender),
            "height": record.height,
            "status": delta_status(record.status),
            "blob_bytes": record.blob_bytes,
            "proven": bool(manifest.proven) if manifest else None,
            "steps": manifest.steps if manifest else None,
            "density": manifest.density if manifest else None,
            "votes_yes": sum(v.verdict == 1 for v in said),
            "votes_no": sum(v.verdict == 0 for v in said),
            "votes_unavailable": sum(v.verdict == 2 for v in said),
            "votes_cast": len(record.votes),
            "gain": gain,
            "gain_nats": nats(gain) if gain else gain,
        }

    # --- updates ---------------------------------------------------------------------

    def update(self, text: str) -> Json:
        """A primary's tile update, with the tiles that it changed."""
        update_id = TxId(unhex(text, "update id"))
        state = self.state
        record = state.get(r.UpdateRecord, r.update_key(update_id))
        if record is None:
            raise NotFound(
                f"there is no update {text}; an update's id is that of its tile_update transaction"
            )
        current = state.round(record.round)
        return {
            **self._update_row(record),
            "deltas": [d.hex() for d in current.accepted],
            "watchers": [address(a) for a in watchers(current, record.primary)],
            "changes": list(self._changes(record)),
        }

    def _update_row(self, record: r.UpdateRecord) -> Json:
        return {
            "id": record.id.hex(),
            "round": record.round,
            "rank": record.rank,
            "primary": address(record.primary),
            "height": record.height,
            "tiles": record.tiles,
            "yes": [address(a) for a in record.yes],
            "no": [address(a) for a in record.no],
            "provisional": bool(record.provisional),
        }

    def _changes(self, record: r.UpdateRecord) -> Iterator[Json]:
        stored = self.node.store.tx(record.id)
        payload = decode(Transaction, stored.raw).payload if stored is not None else None
        if not isinstance(payload, TileUpdate):
            return
        for change in payload.changes:
            yield {
                "shard": change.shard,
                "name": self.node.tiles.specs[change.shard].name,
                "tile": change.tile,
                "base_root": change.base_root.hex(),
                "new_root": change.new_root.hex(),
                "gram_root": change.gram_root.hex(),
                "weights": list(change.weights),
                "weight_one": WEIGHT_ONE,
            }

    def _updates_of(self, record: r.RoundRecord) -> list[r.UpdateRecord]:
        """In order of arrival. Rounds follow one another, so the events between are this one's."""
        state, found = self.state, []
        done = record.phase == RoundPhase.DONE
        until = record.phase_height + 1 if done else state.head.height + 1
        for event in self.node.store.history("update", before=(until, 0)):
            if event.height < record.opened:
                break
            if event.data["round"] == record.number:
                found.append(state.need(r.UpdateRecord, r.update_key(TxId(event.key))))
        return found[::-1]

    # --- losses ----------------------------------------------------------------------

    def losses(self) -> Json:
        """Holdout loss before and after each round, oldest first."""
        state = self.state
        last = state.head.round
        numbers = range(max(0, last - MAX_LOSSES + 1), last + 1)
        records = [_record(state.raw(r.round_key(n)) or b"") for n in numbers]
        listed = [
            {
                "round": record.number,
                "holdout": record.holdout.hex(),
                "result_root": record.result_root.hex(),
                "loss_before": record.loss_before,
                "loss_after": record.loss_after,
                "loss_before_nats": nats(record.loss_before),
                "loss_after_nats": nats(record.loss_after),
                "rolled_back": is_rolled_back(record, following),
            }
            for record, following in zip_longest(records, records[1:])
            if record.loss_before or record.loss_after
        ]
        return {"losses": listed}

    def evals(self, root: str | None = None) -> Json:
        """Measured holdout losses, of one model root or of all."""
        prefix = b"eval/" + (unhex(root, "model root") if root else b"")
        listed = []
        for _, raw in self.state.tree.items(prefix):
            record: r.EvalRecord = decode(r.EvalRecord, raw)
            listed.append(
                {
                    "model_root": record.model_root.hex(),
                    "holdout": record.holdout.hex(),
                    "loss": record.loss,
                    "loss_nats": nats(record.loss),
                    "votes": [
                        {
                            "validator": address(v.validator),
                            "value": v.value,
                            "value_nats": nats(v.value),
                        }
                        for v in record.votes
                    ],
                }
            )
        return {"evals": listed}

    # --- datasets --------------------------------------------------------------------

    def datasets(self) -> Json:
        """Every dataset on the chain, newest first."""
        found = dataset_rules.all_datasets(self.state)
        found.sort(key=lambda d: (-d.height, d.id))
        return {"datasets": [_dataset_row(d) for d in found]}

    def dataset(self, text: str) -> Json:
        """One dataset with its audits, and what was trained on it."""
        try:
            record = self.state.dataset(Hash32(unhex(text, "dataset id")))
        except TxError:
            count = len(dataset_rules.all_datasets(self.state))
            raise NotFound(
                f"there is no dataset {text}; the chain holds {count}, see /datasets"
            ) from None
        rounds = list(self._trained_on(record.id))
        state = self.state
        deltas = [state.delta(d) for n in rounds for d in n.deltas]
        used = [d for d in deltas if d.manifest is not None and record.id in d.manifest.datasets]
        return {
            **_dataset_row(record),
            "manifest": record.manifest.hex(),
            "manifest_bytes": record.manifest_bytes,
            "split_seed": record.split_seed.hex(),
            "reports": [
                {
                    "auditor": address(report.auditor),
                    "verdict": verdict_name(report.verdict),
                    "score": report.score,
                    "report_root": report.report_root.hex(),
                }
                for report in record.reports
            ],
            "rounds": [_round_row(state, n) for n in rounds],
            "deltas": [self._delta_row(d) for d in used],
        }

    def _trained_on(self, dataset: Hash32) -> Iterator[r.RoundRecord]:
        state = self.state
        last = state.head.round
        for number in range(last, max(-1, last - MAX_LINEAGE_ROUNDS), -1):
            record = _record(state.raw(r.round_key(number)) or b"")
            if dataset in record.datasets:
                yield record


@lru_cache(maxsize=MAX_LOSSES)  # old rounds hardly change, and every overview reads them all
def _record(raw: bytes) -> r.RoundRecord:
    record: r.RoundRecord = decode(r.RoundRecord, raw)
    return record


def is_rolled_back(record: r.RoundRecord, following: r.RoundRecord | None) -> bool:
    """Whether the next round, if there is one, begins with another model than this one made."""
    ended = following is not None and record.result_root != ZERO_HASH
    return ended and following.base_root != record.result_root  # type: ignore[union-attr]


def _guard(state: State, record: r.RoundRecord) -> Json | None:
    found = guard.of_round(state, record.number)
    if found is None:
        return None
    return {
        "verdict": guard_verdict(found.verdict),
        "limit_ppm": found.limit_ppm,
        "worse": found.worse,
        "fine": found.fine,
        "stake": found.stake,
    }


def _round_row(state: State, record: r.RoundRecord) -> Json:
    return {
        "number": record.number,
        "phase": phase_name(record.phase),
        "opened": record.opened,
        "phase_height": record.phase_height,
        "joined_count": len(record.joined),
        "delta_count": len(record.deltas),
        "accepted_count": len(record.accepted),
        "base_root": record.base_root.hex(),
        "result_root": record.result_root.hex(),
        "loss_before": record.loss_before,
        "loss_after": record.loss_after,
        "loss_before_nats": nats(record.loss_before),
        "loss_after_nats": nats(record.loss_after),
        "guard": _guard(state, record),
    }


def _round_fields(state: State, record: r.RoundRecord) -> Json:
    fields: Json = plain(record)
    return {
        **fields,
        **_round_row(state, record),
        "phase_index": record.phase,
        "audit_votes": [_audit_vote(v) for v in record.audit_votes],
        "finished": record.result_root != ZERO_HASH,
    }


def _audit_vote(vote: r.AuditVote) -> Json:
    return {
        "auditor": address(vote.auditor),
        "verdict": verdict_name(vote.verdict),
        "state_hash": vote.state_hash.hex(),
    }


def _juror_vote(vote: r.JurorVote) -> Json:
    return {
        "juror": address(vote.juror),
        "commitment": vote.commitment.hex(),
        "revealed": bool(vote.revealed),
        "verdict": verdict_name(vote.verdict) if vote.revealed else None,
        "gain": vote.gain if vote.revealed else None,
        "gain_nats": vote.gain / 1e9 if vote.revealed else None,
        "lower": vote.lower if vote.revealed else None,
    }


def _dataset_row(record: r.DatasetRecord) -> Json:
    return {
        "id": record.id.hex(),
        "title": record.title,
        "license": record.license,
        "submitter": address(record.submitter),
        "height": record.height,
        "size_bytes": record.size_bytes,
        "documents": record.documents,
        "status": dataset_status(record.status),
        "decided": record.decided,
        "reports_count": len(record.reports),
    }
