"""The forms of answers about custody; see `node.api.resources`."""

from __future__ import annotations

from node.api.resources import Resource


class CustodyRow(Resource):
    event: str
    anchor: int
    epoch: int
    phase: str
    closed: int | None
    places: int
    custodians: int
    asked: int
    committed: int
    missed: int
    convicted: int
    disputed: int


class CustodyList(Resource):
    current: CustodyRow | None
    next_anchor: int
    interval_blocks: int
    replicas: int
    bond: int
    slash_permille: int
    commit_blocks: int
    commit_ms: int
    events: list[CustodyRow]
    next: int | None


class PlaceCustodian(Resource):
    rank: int
    account: str
    status: str
    commitment: str | None


class CustodyPlace(Resource):
    position: int
    shard: int
    name: str
    tile: int
    subtile: int
    tile_bytes: int
    shard_root: str
    tile_root: str
    custodians: list[PlaceCustodian]


class CustodyMember(Resource):
    account: str
    status: str
    committed: int | None
    places: list[int]


class CustodyDispute(Resource):
    height: int
    what: str
    custodian: str
    position: int
    disputer: str | None
    finder: str | None
    bond: int | None
    lost: int | None
    reward: int | None


class CustodyEvent(CustodyRow):
    model_root: str
    phase_height: int
    deadline_height: int
    deadline_ms: int
    place_list: list[CustodyPlace]
    members: list[CustodyMember]
    disputes: list[CustodyDispute]
