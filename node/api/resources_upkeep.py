"""The forms of answers about a node's own disk; see `node.api.resources`."""

from __future__ import annotations

from node.api.resources import Resource


class ScrubRepair(Resource):
    shard: int
    name: str
    root: str
    tile: int
    subtile: int | None
    action: str
    detail: str


class ScrubReport(Resource):
    store: str
    started_ms: int
    ended_ms: int
    tiles: int
    damaged: int
    rebuilt: int
    fetched: int
    left: int
    clean: bool
    error: str
    repairs: list[ScrubRepair]


class Scrub(Resource):
    running: bool
    done_tiles: int
    total_tiles: int
    last: ScrubReport | None
