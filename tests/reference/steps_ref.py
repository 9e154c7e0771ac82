"""A tile's step straight from its definition (docs/spec/versions.md), element by element.

Shares no code with `tiles.steps` and what that uses. Run it to write the vectors:
`python -m tests.reference.steps_ref`.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack

from tests.reference.aggregate_ref import SUBTILE, new_value
from tests.reference.delta_ref import INT8, LOW_RANK, section_of, units, values_of
from tests.reference.merkle_ref import h, noise, tile_roots

VECTORS = Path(__file__).parent.parent / "vectors" / "tiles" / "steps.json"

# Of each delta: density, weight in units of 2**-20, whether it has trained the shard.
CASES: list[dict[str, Any]] = [
    {"label": "nobody", "coding": "sparse", "elements": 10, "deltas": []},
    {"label": "one", "coding": "sparse", "elements": 5000, "deltas": [[64, 1048576, True]]},
    {
        "label": "three of five, two subtiles",
        "coding": "sparse",
        "elements": 66000,
        "deltas": [[16, 1, True], [64, 0, True], [8, 300000, True], [8, 9, False], [32, 7, True]],
    },
    {
        "label": "dense",
        "coding": "dense",
        "elements": 4200,
        "deltas": [[1, 600000, True]],
    },
    {
        "label": "int8",
        "coding": "sparse",
        "elements": 4200,
        "deltas": [[INT8, 600000, True], [INT8, 5, True]],
    },
    {
        "label": "low rank",
        "coding": "sparse",
        "elements": 900,
        "deltas": [[LOW_RANK + 1, 600000, True], [LOW_RANK + 2, 5, True]],
    },
]
SHARD, TILE = 3, 0


def delta_label(case: dict[str, Any], number: int) -> str:
    return f"{case['label']} delta {number}"


def base_of(case: dict[str, Any]) -> list[float]:
    raw = noise(f"{case['label']} base", 2 * case["elements"])
    return [n * 2.0**-17 for n in struct.unpack(f"<{case['elements']}h", raw)]


def step(case: dict[str, Any]) -> tuple[list[Any], list[float]]:
    """(the step as plain MessagePack values, the new tile's values)"""
    densities, weights, sections, live = [], [], [], []
    for number, (density, weight, trained) in enumerate(case["deltas"]):
        if not weight or not trained:
            continue
        whole = units(values_of(delta_label(case, number), case["elements"], 22))
        got: list[int] = []
        cuts = []
        for start in range(0, len(whole), SUBTILE):
            part = whole[start : start + SUBTILE]
            out, raw = section_of(part, case["coding"], density)
            got += out
            cuts.append(raw)
        densities.append(density)
        weights.append(weight)
        sections.append(cuts)
        live.append(got)
    base = base_of(case)
    new = [new_value(b, [d[k] for d in live], weights) for k, b in enumerate(base)]
    roots = [tile_roots(struct.pack(f"<{len(v)}f", *v))[0] for v in (base, new)]
    return [108, SHARD, TILE, *roots, densities, weights, sections], new


def vectors() -> list[dict[str, Any]]:
    made = []
    for case in CASES:
        plain, _ = step(case)
        raw = msgpack.packb(plain)
        more = {
            "base_root": plain[3].hex(),
            "new_root": plain[4].hex(),
            "step_bytes": len(raw),
            "step_hash": h("test", raw).hex(),
            "step": raw.hex() if len(raw) < 4000 else "",
        }
        made.append(case | more)
    return made


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
