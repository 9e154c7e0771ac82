"""A part of the model: the trunk and some experts (docs/spec/model.md, "A part of the model").

A learner that holds a part trains and sends the shards of that part alone. Everywhere else, None
stands for the whole model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chain.errors import InputError
from learning.spec import ModelSpec, expert_name
from tiles.layout import ShardSpec


@dataclass(frozen=True, slots=True)
class Held:
    """`experts[i]`: the experts of layer i that are here, ascending, at least one."""

    experts: tuple[tuple[int, ...], ...]


def held_experts(spec: ModelSpec, shards: Collection[int]) -> Held | None:
    """The part that is these shards, as a manifest lists them: none stands for all. Raises
    InputError if one is no shard, the trunk is not whole, or a layer has no expert."""
    layout = spec.shards()
    if not shards or len(set(shards)) == len(layout):
        return None
    if strange := sorted(set(shards) - {shard.index for shard in layout}):
        raise InputError(f"shard {strange[0]}: the model has {len(layout)}")
    names = {layout[index].name for index in shards}
    held = Held(
        tuple(
            tuple(j for j in range(spec.experts) if expert_name(i, j) in names)
            for i in range(spec.layers)
        )
    )
    for i, experts in enumerate(held.experts):
        if not experts:
            raise InputError(f"layer {i}: a part of the model has an expert of every layer")
    if lacking := [s.name for s in layout_of(spec, held) if s.name not in names]:
        raise InputError(f"shard {lacking[0]}: every learner holds it")
    return held


def shards_of(spec: ModelSpec, held: Held | None) -> tuple[int, ...]:
    """The inverse of `held_experts`: what a manifest lists."""
    return () if held is None else tuple(shard.index for shard in layout_of(spec, held))


def imbalance(loads: npt.NDArray[np.int64], held: Held | None = None) -> tuple[float, ...]:
    """Of each layer the busiest expert's load over the mean one, of the experts that are here; 1 is
    even. `loads`: int64 [layers, experts]."""
    kept = list(loads)
    if held is not None:
        kept = [load[list(here)] for load, here in zip(loads, held.experts, strict=True)]
    return tuple(float(load.max() * len(load) / max(1, load.sum())) for load in kept)


def layout_of(spec: ModelSpec, held: Held | None) -> tuple[ShardSpec, ...]:
    """The shards of a part, with their numbers in the whole model."""
    if held is None:
        return spec.shards()
    absent = {
        expert_name(i, j)
        for i, experts in enumerate(held.experts)
        for j in range(spec.experts)
        if j not in experts
    }
    return tuple(shard for shard in spec.shards() if shard.name not in absent)
