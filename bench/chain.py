"""What the ledger costs: executing, certifying, storing, proving and catching up.

    python -m bench.chain [--json] [--only GROUP]... [--small]

Every row stands beside its floor from the same run where there is one. Exit code 1 if a target is
missed. `--small` does little: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or `chain` would be this file

from bench import chain_execute, light_chain
from bench.measure import Row


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    execute: chain_execute.Amount = field(default_factory=chain_execute.Amount)
    light: light_chain.Amount = field(default_factory=light_chain.Amount)


SMALL = Amount(chain_execute.SMALL, light_chain.SMALL)

GROUPS: dict[str, Callable[[Amount], Iterator[Row]]] = {
    "transfers": lambda amount: chain_execute.transfers(amount.execute),
    "headers": lambda amount: chain_execute.headers(amount.execute),
    "proof": lambda amount: chain_execute.proofs(amount.execute),
    "light": lambda amount: light_chain.rows(amount.light),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--only", action="append", choices=GROUPS, help="one group")
    parser.add_argument("--small", action="store_true", help="do little: figures mean nothing")
    options = parser.parse_args()
    amount, rows = SMALL if options.small else Amount(), []
    for group in options.only or GROUPS:
        for row in GROUPS[group](amount):
            rows.append(row)
            if not options.json:
                print(row.as_text(), flush=True)
    if options.json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
