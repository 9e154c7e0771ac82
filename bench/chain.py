"""What the ledger costs: executing, certifying, storing, proving and catching up.

    python -m bench.chain [--json] [--only GROUP]... [--small]

The groups are `transfers`, `headers`, `proof`, `light`, `state` (on disk, 10^6 keys), `store` (10^6
transactions; height 10^6) and `sync` (by snapshot and by blocks). Every row stands beside its floor
from the same run where there is one. Exit code 1 if a target is missed. `--small` does little: its
figures mean nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or `chain` would be this file

from bench import chain_execute, chain_heights, chain_state, chain_store, light_chain, snapshot_sync
from bench.measure import Row, run_groups


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    execute: chain_execute.Amount = field(default_factory=chain_execute.Amount)
    light: light_chain.Amount = field(default_factory=light_chain.Amount)
    state: chain_state.Amount = field(default_factory=chain_state.Amount)
    sync: snapshot_sync.Amount = field(default_factory=snapshot_sync.Amount)
    txs: int = 1_000_000
    high: int = 1_000_000


SMALL = Amount(
    chain_execute.SMALL, light_chain.SMALL, chain_state.SMALL, snapshot_sync.SMALL, 2000, 1200
)


def stored(amount: Amount) -> Iterator[Row]:
    """The chain's file: opening, appending, asking, and whether it gets slower with its length."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        yield from chain_store.measured(chain_store.StoreSizes(Path(name), amount.txs))
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        yield from chain_heights.growth(chain_heights.Heights(Path(name), high=amount.high))


GROUPS: dict[str, Callable[[Amount], Iterator[Row]]] = {
    "transfers": lambda amount: chain_execute.transfers(amount.execute),
    "headers": lambda amount: chain_execute.headers(amount.execute),
    "proof": lambda amount: chain_execute.proofs(amount.execute),
    "light": lambda amount: light_chain.rows(amount.light),
    "state": lambda amount: chain_state.rows(amount.state),
    "store": stored,
    "sync": lambda amount: snapshot_sync.syncs(amount.sync),
}


if __name__ == "__main__":
    sys.exit(run_groups(__doc__, GROUPS, Amount(), SMALL))
