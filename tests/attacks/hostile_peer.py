"""A hostile peer, client and validator against a network of real nodes on loopback.

    python -m tests.attacks.hostile_peer [--rounds N] [--seed S] [--only NAME] [--base PORT]

Each round runs every attack, in an order drawn from the seed, and after each looks whether all
nodes live, agree, have new blocks within seconds, stay small, trust each other, and wrote no
secret and no flood of tracebacks into their logs. Prints one JSON summary; exit code 1 if
anything failed. The seed and the names replay a run, as far as a network can be replayed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.attacks import (
    hostile_gossip,
    hostile_http,
    hostile_links,
    hostile_peers,
    hostile_validator,
)
from tests.kit.victims import Victims

Attack = Callable[[Victims, random.Random], Coroutine[Any, Any, None]]
BASE_PORT = 31000
GROWTH_MB = 40  # of a node's memory over a whole campaign

ATTACKS: tuple[Attack, ...] = (
    hostile_gossip.flood_of_stale_transactions,
    hostile_gossip.junk_blocks_at_the_tip,
    hostile_gossip.distinct_useless_transactions,
    hostile_gossip.wrong_transactions,
    hostile_gossip.flood_of_valid_transactions,
    hostile_peers.garbage_on_streams,
    hostile_peers.half_open_connections,
    hostile_peers.forged_votes,
    hostile_peers.random_bytes_as_messages,
    hostile_peers.messages_of_other_epochs,
    hostile_peers.wrong_certificates,
    hostile_peers.proposals_by_strangers,
    hostile_peers.flood_of_small_messages,
    hostile_peers.packets_full_of_requests,
    hostile_peers.hostile_requests,
    hostile_peers.readers_that_never_read,
    hostile_peers.poisoned_peer_exchange,
    hostile_peers.no_room_for_others,
    hostile_links.garbage_at_the_link_port,
    hostile_links.links_of_nobody,
    hostile_links.slow_handshakes,
    hostile_links.garbage_on_links,
    hostile_links.one_byte_a_second,
    hostile_links.flood_of_tile_requests,
    hostile_links.pings_and_credits,
    hostile_links.removed_tiles_beside_liars,
    hostile_links.huge_provider_records,
    hostile_http.wrong_bodies,
    hostile_http.paths_and_parameters,
    hostile_http.clients_that_do_not_read,
    hostile_http.slowloris,
    hostile_http.markup_in_names,
    hostile_validator.stripped_proposals,
    hostile_validator.liars_serve_a_joiner,
    hostile_validator.kill_and_restart,
)
LAST = hostile_validator.equivocation  # its validator is slashed and jailed


def name_of(attack: Attack) -> str:
    return str(attack.__name__)


def run(attack: Attack, victims: Victims, seed: str) -> dict[str, Any]:
    """One attack and the look at the network after it."""
    name, began = name_of(attack), time.monotonic()
    row: dict[str, Any] = {"attack": name, "ok": True}
    try:
        asyncio.run(attack(victims, random.Random(f"{seed}/{name}")))
        row["took_s"] = round(time.monotonic() - began, 1)
        row["next_block_s"] = round(victims.check(name), 2)
        row["memory_mb"] = max(victims.memory())
    except Exception as error:  # the campaign goes on and tells all that failed
        row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def campaign(options: argparse.Namespace) -> dict[str, Any]:
    chosen = [a for a in (*ATTACKS, LAST) if not options.only or name_of(a) in options.only]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(options.dir) if options.dir else Path(directory)
        with Victims(place, 4, options.base, followers=1, slack=options.slack) as victims:
            victims.check("the start")
            before = max(victims.memory())
            for number in range(options.rounds):
                seed = f"{options.seed}/{number}"
                order = [a for a in chosen if a is not LAST]
                random.Random(seed).shuffle(order)
                rows += [run(attack, victims, seed) for attack in order]
            if LAST in chosen:
                rows.append(run(LAST, victims, str(options.seed)))
            after = max(victims.memory())
    failed = [row["attack"] for row in rows if not row["ok"]]
    if after - before > GROWTH_MB:
        failed.append(f"memory grew from {before} to {after} MB")
    return {
        "seed": options.seed,
        "rounds": options.rounds,
        "attacks": len(rows),
        "failed": failed,
        "memory_mb": {"before": before, "after": after},
        "next_block_s": max((r["next_block_s"] for r in rows if "next_block_s" in r), default=None),
        "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="times that each attack runs [1]")
    parser.add_argument("--seed", type=int, default=1, help="what the attacks draw from [1]")
    parser.add_argument("--only", action="append", default=[], help="run this attack (repeat)")
    parser.add_argument("--base", type=int, default=BASE_PORT, help=f"API ports [{BASE_PORT}]")
    parser.add_argument("--dir", help="keep the homes here [a temporary directory]")
    parser.add_argument("--slack", type=float, default=1.0, help="factor on times [1]")
    summary = campaign(parser.parse_args())
    print(json.dumps(summary, indent=1))
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
