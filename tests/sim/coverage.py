"""What a run must have reached to prove anything: every branch of every rule, each fault, each lie.

Rules report themselves (`consensus.simplex.rules`); faults and lies are counted where they happen,
a lie only if it differs from what an honest node would have said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from consensus.simplex.rules import Rule
from tests.sim.byzantine import KINDS
from tests.sim.disk import POINTS

NETWORK = (
    *("lost", "doubled", "reordered", "cut off", "partitions", "held back by the adversary"),
    *("exiles", "kept down", "liars with exactly a third"),
)
MACHINES = (
    *("crashes", "power failures", "crash between effects", "recoveries", "rotations"),
    *("pauses", "clocks askew", "clock jumps", "blocks from the future"),
    *("unsynced writes lost", "torn tails", "torn sectors", "misdirected writes", "failed syncs"),
    *("disk full", "lost logs", "logs opened with a loss", "refusals to start"),
    *("damaged logs moved away", "synced", "logs compared with what had left"),
)
# A finalize vote is signed on a certificate that leaves its view in the same input and frame, so no
# timer of that view comes after it; a unit test takes the branch (tests/unit/test_simplex.py).
UNREACHABLE = frozenset({Rule.R5_FINALIZED})
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "rules": tuple(rule.value for rule in Rule if rule not in UNREACHABLE),
    "crash points": tuple(f"crash {point}" for point in POINTS),
    "network": NETWORK,
    "machines": MACHINES,
    "liars": tuple(kind.label() for kind in KINDS),
}


def report(counts: Counter[str]) -> tuple[str, list[str]]:
    """(a table of how often each was reached, those that never were)."""
    lines, missing = [], []
    for section, names in SECTIONS.items():
        lines.append(f"{section}:")
        for name in names:
            lines.append(f"{counts[name]:11,d}  {name}")
            if not counts[name]:
                missing.append(name)
    return "\n".join(lines), missing
