"""A rolled back round at a node: the versions that it keeps, and what it shows of the round."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chain import records as r
from chain.records import DeltaStatus
from node.api.app import create_app
from node.query import Query
from node.services.retention_plan import RetentionRule
from node.services.versions import ShardVersion, VersionHistory
from tests.kit.follower import Follower
from tests.kit.http import ask, get
from tests.kit.local_chain import LocalChain

# The first round and the third are rolled back: after genesis, and after one that stands.
BAD, ROUNDS = (0, 2), 4


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """Nobody changes it."""
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        for number in range(ROUNDS):
            made.learn(worse=number in BAD)
        yield made


def numbers(versions: Iterator[ShardVersion]) -> list[int]:
    return [version.number for version in versions]


def test_the_line_leaves_out_what_was_rolled_back(chain: LocalChain) -> None:
    assert numbers(chain.history.newest_first(0)) == [6, 5, 4, 3, 2, 1, 0]
    assert numbers(chain.history.line(0)) == [6, 3, 0]
    for shard in range(len(chain.specs)):
        versions = {v.number: v for v in chain.history.newest_first(shard)}
        assert versions[2].tile_roots == versions[0].tile_roots != versions[1].tile_roots
        assert versions[5].root == versions[3].root
        line = list(chain.history.line(shard))
        for version, base in pairwise(line):
            assert chain.history.made_from(shard, version.root) == (version, base)
        undone, base_of_it = chain.history.made_from(shard, versions[4].root)
        assert base_of_it is not None
        assert (undone.number, base_of_it.root) == (4, versions[3].root)


def test_each_round_has_the_base_of_the_line(chain: LocalChain) -> None:
    roots = [chain.state.round(number).base_root for number in range(ROUNDS + 1)]
    results = [chain.state.round(number).result_root for number in range(ROUNDS)]
    assert roots == [roots[0], roots[0], results[1], results[1], results[3]]
    statuses = [
        {chain.state.delta(d).status for d in chain.state.round(n).deltas} for n in range(ROUNDS)
    ]
    merged, back = {DeltaStatus.MERGED}, {DeltaStatus.ROLLED_BACK}
    assert statuses == [back, merged, back, merged]


def test_a_node_goes_back_without_a_fetch(chain: LocalChain, tmp_path: Path) -> None:
    """The base is whole as long as the round may go back to it, and what is built on it later is
    made from steps as ever; what was rolled back is let go of."""
    follower = Follower(chain, tmp_path, RetentionRule(1, 1, 2))
    while follower.at < len(follower.past) - 1:
        follower.advance()
        for shard, root in enumerate(follower.newest.roots):
            held = root in follower.store.versions(shard)
            number = next(follower.history.newest_first(shard)).number
            assert held == (number in (2, 5))
        follower.write()
        follower.tidy()
        follower.check()
        assert follower.newest in follower.retained()
    for shard in range(len(chain.specs)):
        versions = {v.number: v.root for v in chain.history.newest_first(shard)}
        for undone in (1, 4):
            assert not follower.store.presence(shard, versions[undone])
        assert follower.store.has_steps(shard, versions[6])


class Later(VersionHistory):
    """Of a node that began with a snapshot of the version 4, which was rolled back."""

    def newest_first(self, shard: int) -> Iterator[ShardVersion]:
        return (v for v in super().newest_first(shard) if not 0 < v.number < 4)


def test_of_what_a_node_was_not_told_the_return_stands(chain: LocalChain) -> None:
    first = [chain.history.genesis(spec.index).tile_roots for spec in chain.specs]
    later = Later(chain.store, chain.specs, first)
    assert numbers(later.line(0)) == [6, 5, 0]
    version, base = later.made_from(0, next(chain.history.line(0)).root)
    assert (version.number, base and base.number) == (6, 5)


def test_what_is_shown(chain: LocalChain) -> None:
    query = Query(chain)
    stake = sum(v.stake for v in chain.state.validators())
    shown: list[dict[str, Any] | None] = [query.round(str(n))["guard"] for n in range(ROUNDS)]
    for number, guard in enumerate(shown):
        assert guard is not None
        worse = stake if number in BAD else 0
        assert guard == {
            "verdict": "rolled_back" if worse else "kept",
            "limit_ppm": 10_000,
            "worse": worse,
            "fine": stake - worse,
            "stake": stake,
        }
    assert [row["guard"] for row in query.rounds()["rounds"]] == [None, *shown[::-1]]
    losses = query.losses()["losses"]
    assert [row["rolled_back"] for row in losses] == [n in BAD for n in range(ROUNDS)]
    assert query.status()["loss"]["round"] == ROUNDS - 1
    delta = query.delta(chain.state.round(2).deltas[0].hex())
    assert delta["status"] == "rolled_back"
    assert delta["updates"]
    tile = query.tile("0", "0")
    assert [bool(v["deltas"]) for v in tile["versions"]][:4] == [True, False, True, True]
    record = chain.state.need(r.ShardRecord, r.shard_key(0))
    assert (record.version, record.root.hex()) == (6, tile["versions"][0]["shard_root"])


def test_pages_say_it(chain: LocalChain) -> None:
    app = create_app(chain)

    def page(path: str) -> str:
        answer = ask(app, "GET", path)
        assert answer.status_code == 200
        return answer.text

    said = page("/rounds/2")
    assert "and nobody was paid" in said
    assert "100.0 % of stake found it worse by more than 1.0 %" in said
    assert "and nobody was paid" not in page("/rounds/1")
    assert page("/rounds").count(">rolled back<") == len(BAD)
    assert page("/")
    assert get(app, "rounds/2")["guard"]["verdict"] == "rolled_back"
    assert get(app, "losses")["losses"][2]["rolled_back"]
