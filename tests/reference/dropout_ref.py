"""Masks of dropout, slowly and in plain Python (docs/spec/training.md, "Dropout"). Shares no code
with the project.

Run it to write the vectors: `python -m tests.reference.dropout_ref`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.reference.data_ref import TWO64, h, stream, words

VECTORS = Path(__file__).parent.parent / "vectors" / "learning" / "dropout.json"


def mask_key(seed: bytes, learner: bytes, round_: int) -> bytes:
    return stream(seed, "dropout", learner, round_, length=32)


def splitmix(seed: int, i: int) -> int:
    """Output i of SplitMix64, from 0."""
    x = (seed + (i + 1) * 0x9E3779B97F4A7C15) % TWO64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % TWO64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % TWO64
    return x ^ x >> 31


def cut(ppm: int) -> int:
    return (ppm * 65536 + 500_000) // 1_000_000


def kept(ppm: int) -> float:
    """What a value that is not dropped is multiplied with, rounded to fp32."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", 65536 / (65536 - cut(ppm))))
    return float(rounded)


def dropped(
    key: bytes, ppm: int, step: int, layer: int, branch: int, elements: Iterable[int]
) -> list[bool]:
    """Of elements of a batch: (window * context + position) * width + channel."""
    number = 2 * layer + branch
    seed = words(key, "mask", step, count=number + 1)[number]
    return [splitmix(seed, e // 4) // 65536 ** (e % 4) % 65536 < cut(ppm) for e in elements]


def text(mask: list[bool]) -> str:
    """A bit for each element: 1 is dropped."""
    return "".join("01"[bit] for bit in mask)


# Windows before those at hand, and what these are: windows, positions, channels.
PLACES = [
    (100_000, 0, 0, 0, (0, 2, 5, 6)),
    (100_000, 0, 0, 1, (0, 2, 5, 6)),
    (100_000, 1, 2, 0, (3, 1, 5, 6)),  # begins within a word
    (500_000, 99_999, 3, 1, (1, 3, 3, 10)),
    (900_000, 7, 0, 0, (0, 1, 8, 8)),
    (8, 7, 0, 0, (0, 1, 8, 8)),  # the least that drops anything
]


def vectors() -> dict[str, Any]:
    seed, learner = h("x", b"seed"), h("x", b"learner")
    key = mask_key(seed, learner, 3)
    masks = []
    for ppm, step, layer, branch, (before, windows, positions, channels) in PLACES:
        first = before * positions * channels
        elements = range(first, first + windows * positions * channels)
        masks.append(
            {
                "dropout_ppm": ppm,
                "step": step,
                "layer": layer,
                "branch": branch,
                "before": before,
                "shape": [windows, positions, channels],
                "kept": struct.pack("<f", kept(ppm)).hex(),
                "mask": text(dropped(key, ppm, step, layer, branch, elements)),
            }
        )
    return {
        "seed": seed.hex(),
        "learner": learner.hex(),
        "round": 3,
        "key": key.hex(),
        "splitmix": [[str(s), [str(splitmix(s, i)) for i in range(5)]] for s in SEEDS],
        "masks": masks,
    }


SEEDS = [1234567, 0, TWO64 - 1]

if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
