"""What it costs to come level with a long chain: by a snapshot of the state, and by every block.

    python -m bench.snapshot_sync [--blocks N] [--replayed N] [--json]

Servers and newcomer are one process without sockets, so that what is compared is what they do, not
what a network carries. The state has an account for each block of the chain; of the chain itself so
many blocks are made and replayed as `--replayed` says, and the rest is taken to cost the same.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Row, at_least, at_most, report, seconds
from chain.codec import encode
from chain.errors import invariant
from chain.snapshot import plan
from chain.transactions import Transfer
from chain.tree import subtree_hash
from chain.types import Grains
from node.services.snapshot_wire import PROTOCOL, ManifestRequest
from tests.kit.local_chain import LocalChain
from tests.kit.sync_nodes import SyncNode, SyncPort, serve_chain

TARGET_FASTER = 50.0
EPOCH_BLOCKS = 128
SERVERS = 4
COMMIT_EVERY = 2  # blocks that one certificate makes final


@dataclass(frozen=True, slots=True)
class Amount:
    """`blocks`: of the chain, each with one transfer. `replayed`: how many of them are made."""

    blocks: int = 100_000
    replayed: int = 4 * EPOCH_BLOCKS


SMALL = Amount(200, EPOCH_BLOCKS)


def syncs(amount: Amount) -> Iterator[Row]:
    """Everything from nothing to a store that is level with the others: asking, verifying, writing,
    and opening the new file. Floor of the snapshot: hashing its leaves once."""
    replayed = max(1, min(amount.replayed, amount.blocks) // EPOCH_BLOCKS) * EPOCH_BLOCKS
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        source = LocalChain(
            _made(Path(name) / "source"),
            learners=amount.blocks,
            epoch_blocks=EPOCH_BLOCKS,
            snapshot_epochs=1,
            evidence_ms=10**9,  # so that genesis is trusted
            unbonding_ms=2 * 10**9,
        )
        with source:
            for i in range(replayed):
                payer, payee = source.learners[i % 64], source.learners[-1 - i % amount.blocks]
                source.send(Transfer(payee.public, Grains(1)), payer)
                source.block(certify=(i + 1) % COMMIT_EVERY == 0)
            others = _servers(source)
            by_blocks = _sync(Path(name) / "blocks", source, others, "blocks")
            by_snapshot = _sync(Path(name) / "snapshot", source, others, "snapshot")
            tree = source.state.tree
            leaves = list(tree.subtree(0, 0).leaves())
            floor = seconds(partial(subtree_hash, leaves, 0, 0))
            size = sum(part.size for part in plan(tree))
    replay = by_blocks * amount.blocks / replayed
    yield at_most("replay_block", 1000 * by_blocks / replayed, "ms", None)
    yield at_most("replay", replay, "s", None)
    yield at_most("snapshot_size", size / 2**20, "MiB", None)
    yield at_most("snapshot_sync", by_snapshot, "s", None, floor)
    yield at_least("snapshot_sync_faster", replay / by_snapshot, "times", TARGET_FASTER)


def _servers(source: LocalChain) -> dict[str, SyncPort]:
    """Peers that share what they have made: here it costs the newcomer's time, elsewhere theirs."""
    others: dict[str, SyncPort] = {}
    first = serve_chain(source, "server 0", others)
    for i in range(1, SERVERS):
        SyncPort(f"server {i}", others).handlers = first.handlers
    newest = encode(ManifestRequest(source.chain.tip.height))
    asyncio.run(_answered(first, newest))
    return others


async def _answered(port: SyncPort, request: bytes) -> None:
    await port.handlers[PROTOCOL]("bench", request)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _sync(path: Path, source: LocalChain, others: dict[str, SyncPort], mode: str) -> float:
    """Seconds of a newcomer's sync. Making its genesis, which both need, is not counted."""
    node = SyncNode(path, source, SyncPort(mode, others), mode=mode)
    port = others.pop(mode)
    gc.collect()
    gc.freeze()  # as a node does when it has started
    began = time.perf_counter()
    asyncio.run(node.sync._catch_up())
    if node.entered:
        node.reopen()
        asyncio.run(node.sync._catch_up())
    took = time.perf_counter() - began
    gc.unfreeze()
    invariant(node.chain.tip_hash == source.chain.tip_hash, f"{port.name} is level")
    invariant(node.adopted == (mode == "snapshot"), "each came as it was told")
    node.close()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--blocks", type=int, default=Amount().blocks, help="of the chain")
    parser.add_argument("--replayed", type=int, default=Amount().replayed, help="of them, measured")
    options = parser.parse_args()
    rows = syncs(Amount(options.blocks, options.replayed))
    return report(rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
