"""Models with a name, from which a genesis is made: each with the rule that it is trained by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from learning.spec import HASHED, NANO_MODEL, NANO_TRAINING, ModelSpec, TrainingSpec


@dataclass(frozen=True, slots=True)
class Size:
    """What `model` and `training` of a genesis say, and the windows of a round that need more than
    the usual time: (blocks, milliseconds) by parameter. A phase ends early if all are done."""

    model: ModelSpec
    training: TrainingSpec
    windows: Mapping[str, tuple[int, int]] = field(default_factory=dict)


TINY_MODEL = replace(
    NANO_MODEL,
    width=128,
    experts=8,
    expert_width=128,
    init_seed="blyan-tiny-1",
    routing=HASHED,  # learns faster than a learned router here: docs/spec/model.md, "Why"
)
# An attention shard is one tile of 4 MiB, and each expert three.
SMALL_MODEL = ModelSpec(
    layers=3,
    width=512,
    heads=8,
    experts=6,
    top_k=2,
    expert_width=2048,
    context=128,
    init_seed="blyan-small-1",
)
SMALL_TRAINING = replace(
    NANO_TRAINING,
    steps=30,
    segment_steps=5,
    batch=8,
    learning_rate_nano=1_000_000,
    warmup_steps=30,
    densities=(512, 256, 128, 64),
)

# A step takes 3 s of a core, a holdout's loss 100 s.
SMALL_WINDOWS = {
    "train": (60, 1_200_000),
    "screen": (20, 600_000),
    "aggregate": (15, 240_000),
    "settle": (3, 60_000),
}

SIZES = {
    "nano": Size(NANO_MODEL, NANO_TRAINING),
    "tiny": Size(TINY_MODEL, replace(NANO_TRAINING, learning_rate_nano=3_000_000)),
    "small": Size(SMALL_MODEL, SMALL_TRAINING, SMALL_WINDOWS),
}
