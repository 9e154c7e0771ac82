"""Proposals, votes, and what is in force (docs/spec/governance.md).

The state holds the proposals that are not over; those that ended come from history.
"""

from __future__ import annotations

from typing import Any

from chain import governance, model_versions, parameters
from chain.codec import U64, decode
from chain.governance_records import (
    FIRST_VERSION,
    VERSION,
    ModelDocuments,
    ModelVersion,
    ProposalRecord,
    ProposalStatus,
    documents_key,
)
from chain.model_versions import Documents
from chain.params import Params
from chain.types import PubKey
from node.query.base import MAX_LIMIT, Json, NotFound, Reader, unhex
from node.query.plain import address, verdict_name

LAST = 2**62  # above every height
STEP, VOTE, END = "proposal", "proposal_vote", "proposal_end"  # rows in history


class GovernanceQueries(Reader):
    def governance(self, before: int | None = None, limit: int | None = None) -> Json:
        """What is voted on or waits, and what ended below height `before`, newest first."""
        most, state, params = self.limit(limit), self.state, self._params
        below = (LAST if before is None else before, 0)
        rows = self.node.store.history(END, limit=most, before=below)
        return {
            "height": state.head.height,
            "model_version": model_versions.current(state),
            "changed": [row for row in self._settings() if row["value"] != row["genesis"]],
            "soonest": governance.soonest(params, state.head.height),
            "epoch_blocks": params.epoch_blocks,
            "vote_blocks": params.vote.blocks,
            "vote_ms": params.vote.ms,
            "deposit": params.proposal_deposit_grains,
            "proposals": [self._proposal_row(p, None) for p in governance.proposals(state)],
            "ended": [self._proposal_row(_decoded(r.data["record"]), r.height) for r in rows],
            "next": rows[-1].height if len(rows) == most else None,
        }

    def parameters(self) -> Json:
        """Every parameter: in force, in genesis, and what a vote may make of it."""
        return {"height": self.state.head.height, "parameters": self._settings()}

    def model_documents(self, version: str | None = None) -> Json:
        """The model's documents of a version, by default of rounds that anchor now."""
        state = self.state
        wanted = version or model_versions.current(state)
        key = documents_key(wanted)
        if wanted != FIRST_VERSION and state.get(ModelDocuments, key) is None:
            raise NotFound(f"version {wanted!r} of the model was never in force")
        found = model_versions.documents(state, self.node.genesis, wanted)
        return {"version": wanted, "model": dict(found.model), "training": dict(found.training)}

    def version_at(self, height: int) -> str:
        """The version of the model's documents in the state after a final block: what a round that
        is anchored next would be of. All of them stay in the state, their heights in history."""
        held = self.state.get(ModelVersion, VERSION)
        if held is None:
            return FIRST_VERSION
        if held.height <= height + 1:  # the next block is the first that it counts for
            return held.version
        below = (height + 1, 0)
        while rows := self.node.store.history(END, limit=MAX_LIMIT, before=below):
            for row in rows:
                record = _decoded(row.data["record"])
                if record.status == ProposalStatus.ACTIVE and (version := _version(record)):
                    return version
            below = (rows[-1].height, rows[-1].position)
        return FIRST_VERSION

    def proposal(self, which: str) -> Json:
        """One proposal by its id: what it changes, who voted how, and what became of it."""
        key = unhex(which, "proposal (the id of its transaction)")
        known = {p.id: p for p in governance.proposals(self.state)}
        ended, why = None, {}
        record = known.get(key)  # type: ignore[call-overload]
        if record is None:
            for row in self.node.store.history(END, key, limit=1):
                record, ended, why = _decoded(row.data["record"]), row.height, row.data
        if record is None:
            raise NotFound(f"there is no proposal {which}; see /governance for those there are")
        steps = reversed(self.node.store.history(STEP, record.id))
        return {
            **self._proposal_row(record, ended),
            "code": why.get("code"),
            "reason": why.get("reason"),
            "changes": self._proposed_changes(record),
            "steps": [{"height": s.height, "status": s.data["status"]} for s in steps],
            "ballots": self._ballots(record),
        }

    # --- helpers ---------------------------------------------------------------------

    @property
    def _params(self) -> Params:
        return self.state.params(self.node.genesis.params)

    def _settings(self) -> list[Json]:
        now, genesis = self._params, self.node.genesis.params
        return [
            {
                "name": name,
                "value": parameters.value_of(now, name),
                "genesis": parameters.value_of(genesis, name),
                "least": parameters.CHANGEABLE[name][0] if name in parameters.CHANGEABLE else None,
                "most": parameters.CHANGEABLE[name][1] if name in parameters.CHANGEABLE else None,
            }
            for name in parameters.names(genesis)
        ]

    def _proposal_row(self, record: ProposalRecord, ended: int | None) -> Json:
        yes, no = record.yes, record.no
        if record.status == ProposalStatus.OPEN:
            yes, no = governance.count(self.state, record)
        version = _version(record)
        return {
            "id": record.id.hex(),
            "proposer": address(record.proposer),
            "parameter": record.parameter,
            "value": decode(U64, record.value) if version is None else None,
            "version": version,
            "activate": record.activate,
            "height": record.height,
            "epoch": record.epoch,
            "deadline_height": record.deadline_height,
            "deadline_ms": record.deadline_ms,
            "deposit": record.deposit,
            "status": ProposalStatus(record.status).name.lower(),
            "yes": yes,
            "no": no,
            "total": record.total,
            "ended": ended,
        }

    def _proposed_changes(self, record: ProposalRecord) -> list[Json]:
        """Field by field, against what is in force now."""
        if record.parameter != governance.MODEL:
            now = parameters.value_of(self._params, record.parameter)
            new = decode(U64, record.value)
            return [{"name": record.parameter, "now": now, "proposed": new}]
        state = self.state
        version = model_versions.current(state)
        old = model_versions.documents(state, self.node.genesis, version)
        return _differences(old, model_versions.parse_document(record.value).documents)

    def _ballots(self, record: ProposalRecord) -> list[Json]:
        """Who voted, and how; all electors while the vote is open."""
        cast: dict[PubKey, tuple[int, int]] = {}
        for row in self.node.store.history(VOTE, record.id):  # newest first: the last word
            elector = PubKey(bytes.fromhex(row.data["elector"]))
            cast.setdefault(elector, (row.data["verdict"], row.height))
        stakes: dict[PubKey, int | None] = dict.fromkeys(cast)
        if record.status == ProposalStatus.OPEN:
            stakes = {e.account: e.stake for e in governance.electors(self.state, record)}
        return [
            {
                "account": address(account),
                "stake": stake,
                "verdict": verdict_name(cast[account][0]) if account in cast else None,
                "height": cast[account][1] if account in cast else None,
            }
            for account, stake in stakes.items()
        ]


def _decoded(record: str) -> ProposalRecord:
    found: ProposalRecord = decode(ProposalRecord, bytes.fromhex(record))
    return found


def _version(record: ProposalRecord) -> str | None:
    if record.parameter != governance.MODEL:
        return None
    return model_versions.format_version(model_versions.parse_document(record.value).number)


def _differences(old: Documents, new: Documents) -> list[Json]:
    found: list[Json] = []
    for part in ("model", "training"):
        before: dict[str, Any] = dict(getattr(old, part))
        after: dict[str, Any] = dict(getattr(new, part))
        found += [
            {"name": f"{part}.{name}", "now": before.get(name), "proposed": after.get(name)}
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    return found
