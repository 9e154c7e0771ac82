"""Real processes: a fifth node begins with a snapshot, and a validator that was away comes back
with one and votes on."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from chain.address import format_address
from node.founding import FOUNDER_STAKE
from tests.kit.victims import Victim, Victims
from tests.kit.waiting import until

EPOCH_BLOCKS = 8
START_S, PROGRESS_S = 90.0, 120.0
BASE = 27_300


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    params = {"epoch_blocks": EPOCH_BLOCKS, "snapshot_epochs": 2, "empty_interval_ms": 300}
    params |= {"downtime_jail": {"blocks": 8, "ms": 1000}}
    directory = tmp_path_factory.mktemp("snapshots")
    with Victims(directory, 4, BASE, params=params) as made:
        yield made


def page(node: Victim, path: str) -> int:
    """The status of a page of the explorer."""
    url = f"{node.founded.config.api_url}/{path}"
    return httpx.get(url, trust_env=False, timeout=20).status_code


def grow(net: Victims, blocks: int) -> int:
    goal = max(net.heights()) + blocks
    until(lambda: max(net.heights()) >= goal, PROGRESS_S, f"block {goal}")
    return goal


def first_height(node: Victim) -> int:
    return int(node.status().get("sync", {}).get("first_height") or 0)


def level(net: Victims, node: Victim) -> None:
    until(
        lambda: node.height >= max(net.heights()) - 2 and node.status()["synced"],
        START_S,
        f"{node.home} is level with the others",
    )


def test_a_new_node_begins_with_a_snapshot(net: Victims) -> None:
    grow(net, 40)
    new = net.stranger([v.address for v in net.validators])
    new.start()
    try:
        until(lambda: first_height(new) > 0, START_S, "it has begun with a snapshot")
        level(net, new)
        first = first_height(new)
        assert first % (2 * EPOCH_BLOCKS) == 0
        goal = grow(net, 3)
        until(lambda: new.height >= goal, START_S, "it follows")
        assert new.get(f"blocks/{goal}")["hash"] == net.nodes[0].get(f"blocks/{goal}")["hash"]
        assert new.get("blocks/1") is None
        text = new.client.get("blocks/1").text
        assert f"this node started from a snapshot at {first}" in text
        assert page(new, "blocks/1") == 404
        for path in ("", f"blocks/{first}", "blocks", "shards", "shards/0", "rounds", "validators"):
            assert page(new, path) == 200, path
        assert not (new.home.path / "sync").exists()
        assert "Traceback" not in new.logs()
    finally:
        new.end()
        new.client.close()


def test_a_validator_that_was_away_comes_back_with_a_snapshot_and_votes(net: Victims) -> None:
    away = net.validators[3]
    away.end()
    left_at = grow_others(net, 60)
    away.start()
    until(lambda: first_height(away) > 0, START_S, "it has entered again")
    level(net, away)
    assert first_height(away) > left_at - 60 + 2 * EPOCH_BLOCKS - 1
    until(lambda: votes(net, away), PROGRESS_S, "it votes again")
    account = format_address(away.founded.keys.account.public)
    assert net.nodes[0].get(f"accounts/{account}")["bonded"] == FOUNDER_STAKE  # nothing is slashed
    net.check("a validator came back with a snapshot")


def grow_others(net: Victims, blocks: int) -> int:
    others = net.validators[:3]
    goal = max(v.height for v in others) + blocks
    until(lambda: max(v.height for v in others) >= goal, PROGRESS_S, f"block {goal}")
    return goal


def votes(net: Victims, node: Victim) -> bool:
    """Whether the newest certificates have its signature."""
    listed = net.nodes[0].get("validators")["validators"]
    own = node.founded.keys.consensus.public.hex()
    mine = next((v for v in listed if v["consensus_key"] == own), None)
    return mine is not None and mine["signed"] > 0
