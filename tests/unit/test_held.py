"""Learners that hold the trunk and some experts: what they compute, train and send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from chain.errors import DecodeError, InputError
from chain.hashes import Hash32
from learning.compress import Compressed, add_delta, compress
from learning.evaluate import holdout_loss, holdout_windows, measure
from learning.held import Held, held_experts, layout_of
from learning.init import initial_shards
from learning.model import forward, shards_from_weights, weights_from_shards
from learning.spec import ModelSpec, expert_name
from learning.state import (
    TrainState,
    deserialize_state,
    residual_root,
    sections_root,
    serialize_state,
)
from learning.train import train_segment
from tests.kit.nano import TINY, TINY_TRAINING, library, tiny_batches
from tiles import merkle
from tiles.aggregate import aggregate_tile
from tiles.delta import PayloadTile, decode_delta
from tiles.parts import NoDelta

LEARNED = replace(TINY, shared_experts=1)
HASHED = replace(TINY, routing="hash", shared_experts=1)
FORMS = {"learned": LEARNED, "hash": HASHED}
PART = Held(((0, 1, 3), (0,)))
BATCHES = tiny_batches()


def part_of(spec: ModelSpec, sections: Sequence[bytes], held: Held | None) -> list[bytes]:
    return [sections[shard.index] for shard in layout_of(spec, held)]


def train(spec: ModelSpec, state: TrainState, held: Held | None, last: int = 8) -> TrainState:
    rule = replace(TINY_TRAINING, learning_rate_nano=10_000_000, aux_loss_ppm=10_000)
    return train_segment(spec, rule, state, BATCHES.__getitem__, last, held=held)


# --- which shards ------------------------------------------------------------------------


def test_a_part_is_named_by_its_shards() -> None:
    every = range(len(LEARNED.shards()))
    assert held_experts(LEARNED, []) is None
    assert held_experts(LEARNED, every) is None
    named = [shard.index for shard in layout_of(LEARNED, PART)]
    assert held_experts(LEARNED, named) == PART
    assert layout_of(LEARNED, None) == LEARNED.shards()
    absent = {s.name for s in LEARNED.shards() if s.index not in named}
    assert absent == {expert_name(0, 2), *(expert_name(1, j) for j in (1, 2, 3))}


@pytest.mark.parametrize(
    ("lacking", "more", "reason"),
    [
        ("layers.1.router", [], "shard layers.1.router: every learner holds it"),
        ("layers.0.shared.0", [], "shard layers.0.shared.0"),
        ("layers.1.experts.0", [], "layer 1: a part of the model has an expert of every layer"),
        (None, [99], "shard 99: the model has 17"),
    ],
)
def test_what_is_no_part_is_refused(lacking: str | None, more: list[int], reason: str) -> None:
    named = [shard.index for shard in layout_of(LEARNED, PART) if shard.name != lacking]
    with pytest.raises(InputError, match=reason):
        held_experts(LEARNED, [*named, *more])


# --- the rule of routing -----------------------------------------------------------------


def test_a_learned_router_chooses_among_those_that_are_here() -> None:
    """As if the others had a bias that is never reached; to the bit."""
    base = initial_shards(LEARNED)
    part = weights_from_shards(LEARNED, part_of(LEARNED, base, PART), PART)
    whole = weights_from_shards(replace(LEARNED, top_k=1), base)
    for i, experts in enumerate(PART.experts):
        for j in set(range(LEARNED.experts)) - set(experts):
            whole[f"layers.{i}.router.bias"][j] = -torch.inf
    tokens = torch.from_numpy(BATCHES[0].astype(np.int64))[:, :-1]
    one = replace(LEARNED, top_k=1)
    found, expected = forward(one, part, tokens, held=PART), forward(one, whole, tokens)
    assert torch.equal(found.logits, expected.logits)
    for a, b in zip(found.routed, expected.routed, strict=True):
        assert torch.equal(a.loads, b.loads)
    two = forward(LEARNED, part, tokens, held=PART).routed  # layer 1 has one expert to choose
    assert [int(layer.loads.sum()) for layer in two] == [2 * tokens.numel(), tokens.numel()]


def test_a_hashed_expert_that_is_absent_adds_nothing() -> None:
    base = initial_shards(HASHED)
    whole = weights_from_shards(HASHED, base)
    part = weights_from_shards(HASHED, part_of(HASHED, base, PART), PART)
    assert set(whole) > set(part)
    for name in set(whole) - set(part):
        whole[name].zero_()
    tokens = torch.from_numpy(BATCHES[0].astype(np.int64))[:, :-1]
    found, expected = forward(HASHED, part, tokens, held=PART), forward(HASHED, whole, tokens)
    assert torch.equal(found.logits, expected.logits)
    for layer, experts in zip(found.routed, PART.experts, strict=True):
        assert set(layer.loads.nonzero().flatten().tolist()) <= set(experts)
    nowhere = replace(HASHED, experts=64, top_k=1)  # most bytes have no expert at all
    only = Held(((3,), (5,)))
    few = weights_from_shards(nowhere, part_of(nowhere, initial_shards(nowhere), only), only)
    assert bool(torch.isfinite(forward(nowhere, few, tokens[:1, :1], held=only).logits).all())


# --- training and sending ----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_part_is_trained_and_replayed_to_the_bit(form: str) -> None:
    spec = FORMS[form]
    base = initial_shards(spec)
    start = TrainState.fresh(part_of(spec, base, PART))
    end = train(spec, start, PART)
    state = start
    for step in range(1, 9):
        again = deserialize_state(spec, serialize_state(train(spec, state, PART, step)), PART)
        state = again
    assert state == end
    with pytest.raises(DecodeError, match="another model"):
        deserialize_state(spec, serialize_state(end))
    roots = [merkle.shard_root(merkle.tile_roots(data), len(data)) for data in base]
    here = [roots[shard.index] for shard in layout_of(spec, PART)]
    assert start.leaves()[0] == merkle.model_root(here)  # which the chain can say
    weights = weights_from_shards(spec, end.weights, PART)
    assert shards_from_weights(spec, weights, PART) == list(end.weights)


def test_of_the_router_only_what_is_here_moves() -> None:
    base = weights_from_shards(LEARNED, initial_shards(LEARNED))
    start = TrainState.fresh(part_of(LEARNED, initial_shards(LEARNED), PART))
    end = weights_from_shards(LEARNED, train(LEARNED, start, PART).weights, PART)
    for i, experts in enumerate(PART.experts):
        for name in ("weight", "bias"):
            moved = end[f"layers.{i}.router.{name}"] != base[f"layers.{i}.router.{name}"]
            columns = moved.reshape(-1, LEARNED.experts).any(0).nonzero().flatten().tolist()
            # one expert alone is always chosen, with share 1: nothing to learn
            assert columns == (list(experts) if len(experts) > 1 else [])


def squeeze(spec: ModelSpec, base: list[bytes], held: Held | None) -> Compressed:
    before = part_of(spec, base, held)
    after = train(spec, TrainState.fresh(before), held).weights
    return compress(spec, TINY_TRAINING, 0, sections_root(base), before, after, None, held)


def test_a_payload_has_the_shards_that_are_here_alone() -> None:
    base = initial_shards(LEARNED)
    out = squeeze(LEARNED, base, PART)
    named = [shard.index for shard in layout_of(LEARNED, PART)]
    assert list(decode_delta(out.payload, LEARNED.shards()).shards) == named
    assert len(out.residual) == len(named)
    assert out.residual_after == residual_root(out.residual)
    moved = add_delta(LEARNED, base, out.payload, 1, 1)
    assert [i for i, (a, b) in enumerate(zip(base, moved, strict=True)) if a != b] == named
    before, after = (
        part_of(LEARNED, base, PART),
        train(LEARNED, TrainState.fresh(part_of(LEARNED, base, PART)), PART).weights,
    )
    second = compress(
        LEARNED, TINY_TRAINING, 1, Hash32(bytes(32)), before, after, out.residual, PART
    )
    assert second.residual_before == out.residual_after


def aggregated(spec: ModelSpec, base: list[bytes], payloads: list[bytes]) -> list[bytes]:
    """The next model as validators make it (each shard of TINY is one tile)."""
    held = [decode_delta(payload, spec.shards()).shards for payload in payloads]
    return [
        aggregate_tile(
            section,
            [
                PayloadTile(payload, spec.shards(), i, 0)
                if i in has
                else NoDelta(len(section) // 4)
                for payload, has in zip(payloads, held, strict=True)
            ],
        ).new_tile
        for i, section in enumerate(base)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_learners_with_half_of_the_experts_each_teach_the_whole_model(form: str) -> None:
    """Three rounds of 8 steps: the whole model's holdout loss falls by a nat and more, and it is no
    worse than the parts'."""
    spec = FORMS[form]
    halves = [Held(((0, 1), (0, 1))), Held(((2, 3), (2, 3)))]
    base, holdout = initial_shards(spec), library(110_000)[-8000:]
    before = holdout_loss(spec, base, holdout) / 1e9
    for _ in range(3):
        base = aggregated(spec, base, [squeeze(spec, base, held).payload for held in halves])
    after = holdout_loss(spec, base, holdout) / 1e9
    windows: npt.NDArray[np.uint8] = holdout_windows(holdout, spec.context)
    parts = [measure(spec, part_of(spec, base, held), windows, held=held) for held in halves]
    print(form, before, after, [float(part.losses.mean()) for part in parts])
    assert after < before - 1
    assert after < min(float(part.losses.mean()) for part in parts) + 0.05
