"""The attacks of `tests.attacks.hostile_peer` that are quick, on one network of four real nodes.

The whole campaign is a program: `python -m tests.attacks.hostile_peer`.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.attacks import hostile_gossip, hostile_http, hostile_links, hostile_peers
from tests.attacks.hostile_peer import Attack, name_of, run
from tests.kit.victims import P2P_OFFSET, Victims

NODES, FOLLOWERS = 3, 1
SLACK = 4.0  # on the seconds to the next block: a machine that runs other tests
GROWTH_MB = 25
SEED = "quick"

QUICK: tuple[Attack, ...] = (
    hostile_gossip.junk_blocks_at_the_tip,
    hostile_gossip.flood_of_stale_transactions,
    hostile_gossip.wrong_transactions,
    hostile_peers.forged_votes,
    hostile_peers.random_bytes_as_messages,
    hostile_peers.wrong_certificates,
    hostile_peers.proposals_by_strangers,
    hostile_peers.hostile_requests,
    hostile_links.garbage_at_the_link_port,
    hostile_links.huge_provider_records,
    hostile_http.paths_and_parameters,
    hostile_http.markup_in_names,
)


def free_base() -> int:
    """A port from which on the network's ports are free now."""
    chance = random.SystemRandom()
    for _ in range(100):
        base = chance.randrange(20_000, 40_000)
        ports = [base + i + o for i in range(NODES + FOLLOWERS) for o in (0, P2P_OFFSET)]
        try:
            for port in ports:
                with closing(socket.socket()) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    directory: Path = tmp_path_factory.mktemp("victims")
    with Victims(directory, NODES, free_base(), FOLLOWERS, SLACK) as made:
        made.check("the start")
        yield made


@pytest.mark.parametrize("attack", QUICK, ids=name_of)
def test_the_network_shrugs_it_off(victims: Victims, attack: Attack) -> None:
    before = max(victims.memory())
    row = run(attack, victims, SEED)
    assert row["ok"], row
    assert row["memory_mb"] - before < GROWTH_MB, row


def test_attackers_were_charged(victims: Victims) -> None:
    metrics = victims.nodes[0].metrics()
    assert metrics["net_banned"] >= 5
    assert metrics["consensus_refused"] >= 15
