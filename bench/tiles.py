"""What tiles cost: loading, verifying, moving, importing and changing them.

    python bench/tiles.py [--json] [--only NAME]... [--small] [--dir DIRECTORY]

Exit code 1 if a target is missed. Every row stands beside its floor from the same run, taken in
turns with it. *Warm*: the file is in the kernel's memory. *Cold*: the kernel has forgotten it
(posix_fadvise, checked page by page); a disk's own cache, or that of a virtual machine's host,
may still have it. Files go to --dir (by default a new directory below the current one), so that
they lie on a disk and not in memory.

`--only NAME` runs one group or one row; `--small` moves little, for a look at whether it works.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or `tiles` would be this file

from bench import tile_import, tile_proof, tile_store, tile_transfer
from bench.measure import Row, Sizes

GROUPS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
    "load_warm": tile_store.load_warm,
    "load_cold": tile_store.load_cold,
    "expert": tile_store.load_expert,
    "transfer": tile_transfer.transfer,
    "peers": tile_transfer.peers,
    "import": tile_import.imported,
    "reroot": tile_store.reroot,
    "aggregate": tile_store.aggregated,
    "version": tile_store.new_version,
    "proof": tile_proof.proof,
}


def measure(sizes: Sizes, only: list[str], tell: Callable[[Row], None]) -> list[Row]:
    """The rows of the groups that `only` names, or of all."""
    rows = []
    for group, measured in GROUPS.items():
        wanted = [name for name in only if name.startswith(group)]
        if only and not wanted:
            continue
        for row in measured(sizes):
            if not only or group in wanted or row.name in wanted:
                rows.append(row)
                tell(row)
    return rows


def small(directory: Path) -> Sizes:
    """Sizes whose figures mean nothing, for a look at whether everything works."""
    return Sizes(
        directory, shard_mib=8, checkpoint_mib=8, transfer_mib=8, samples=5, servers=2, repeats=1
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one row")
    parser.add_argument("--small", action="store_true", help="move little: figures mean nothing")
    parser.add_argument("--dir", type=Path, help="where files are written [a new one, here]")
    options = parser.parse_args()
    unknown = [n for n in options.only if not n.startswith(tuple(GROUPS))]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; groups: {', '.join(GROUPS)}")
    with tempfile.TemporaryDirectory(dir=options.dir or Path.cwd(), prefix=".bench-") as name:
        sizes = small(Path(name)) if options.small else Sizes(Path(name))
        rows = measure(sizes, options.only, lambda row: None if options.json else show(row))
    if options.json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
    return 0 if all(row.met for row in rows) else 1


def show(row: Row) -> None:
    print(row.as_text(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
