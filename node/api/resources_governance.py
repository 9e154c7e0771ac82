"""The forms of answers about governance; see `node.api.resources`."""

from __future__ import annotations

from typing import Any

from node.api.resources import Resource


class Parameter(Resource):
    name: str
    value: int
    genesis: int
    least: int | None
    most: int | None


class Parameters(Resource):
    height: int
    parameters: list[Parameter]


class ProposalRow(Resource):
    id: str
    proposer: str
    parameter: str
    value: int | None
    version: str | None
    activate: int
    height: int
    epoch: int
    deadline_height: int
    deadline_ms: int
    deposit: int
    status: str
    yes: int
    no: int
    total: int
    ended: int | None


class Governance(Resource):
    height: int
    model_version: str
    changed: list[Parameter]
    soonest: int
    epoch_blocks: int
    vote_blocks: int
    vote_ms: int
    deposit: int
    proposals: list[ProposalRow]
    ended: list[ProposalRow]
    next: int | None


class Change(Resource):
    name: str
    now: Any
    proposed: Any


class Step(Resource):
    height: int
    status: str


class BallotRow(Resource):
    account: str
    stake: int | None
    verdict: str | None
    height: int | None


class Proposal(ProposalRow):
    code: str | None
    reason: str | None
    changes: list[Change]
    steps: list[Step]
    ballots: list[BallotRow]


class ModelDocuments(Resource):
    version: str
    model: dict[str, Any]
    training: dict[str, Any]
