"""Specs of model and training, genesis weights, and states as bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain.errors import DecodeError, GenesisError
from chain.hashes import ZERO_HASH
from learning.evaluate import holdout_loss
from learning.init import initial_shards
from learning.spec import NANO_MODEL, NANO_TRAINING, ModelSpec, TrainingSpec
from learning.state import (
    TrainState,
    deserialize_state,
    residual_root,
    sections_root,
    serialize_state,
)
from tests.kit.nano import TINY, library
from tiles.codings import INT8_NUMBER, low_rank_number
from tiles.merkle import merkle_proof, verify_merkle

GENESIS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent.parent / "genesis.json").read_text()
)


YOUNGER = (
    "aux_loss_ppm",
    "micro_batch",
    "codec",
    "rank",
    "dropout_ppm",
)  # fields that a genesis may lack


def test_specs_come_back_from_json() -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(NANO_MODEL.to_json()))) == NANO_MODEL
    assert TrainingSpec.from_json(json.loads(json.dumps(NANO_TRAINING.to_json()))) == NANO_TRAINING
    ModelSpec.from_json(GENESIS["model"])
    TrainingSpec.from_json(GENESIS["training"])


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("layers", 0, "model.layers: expected an integer from 1"),
        ("layers", 2.0, "model.layers"),
        ("layers", True, "model.layers"),
        ("heads", 5, "width / heads must be an even integer"),
        ("heads", 96, "width / heads must be an even integer"),
        ("top_k", 5, "5 of 4 experts"),
        ("init_seed", "", "model.init_seed"),
        ("init_seed", 7, "model.init_seed"),
        ("width", 16_384, "parameters, at most"),
        ("wdith", 1, "unknown field wdith; check the spelling"),
        ("routing", "random", "model.routing: expected 'top_k' or 'hash'"),
        ("routing", 1, "model.routing"),
        ("shared_experts", -1, "model.shared_experts"),
    ],
)
def test_a_bad_model_is_named(field: str, value: Any, reason: str) -> None:
    top = NANO_MODEL.to_json() | {field: value}
    if field == "width":
        top |= {"layers": 256}
    with pytest.raises(GenesisError, match=reason):
        ModelSpec.from_json(top)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("steps", 0, "training.steps"),
        ("segment_steps", 7, "7 does not divide 50"),
        ("densities", [], "a list of 1 to 256"),
        ("densities", [4097], "training.densities"),
        ("densities", 64, "training.densities"),
        ("beta1_ppm", 1_000_000, "training.beta1_ppm"),
        ("learning_rate_nano", 0.004, "training.learning_rate_nano"),
        ("aux_loss_ppm", 1_000_001, "training.aux_loss_ppm"),
        ("dropout_ppm", 900_001, "training.dropout_ppm: expected an integer from 0 to 900000"),
        ("dropout_ppm", 0.1, "training.dropout_ppm"),
        ("micro_batch", 3, "3 does not divide a batch of 16"),
        ("codec", "gzip", "training.codec: expected one of sparse, int8, lowrank"),
        ("codec", "lowrank", "training.rank: 1 to 64 with"),
        ("rank", 4, "training.rank: 1 to 64 with"),
        ("rank", 65, "training.rank"),
        ("codec", ["int8"], "training.codec"),
    ],
)
def test_a_bad_training_rule_is_named(field: str, value: Any, reason: str) -> None:
    with pytest.raises(GenesisError, match=reason):
        TrainingSpec.from_json(NANO_TRAINING.to_json() | {field: value})
    with pytest.raises(GenesisError, match="expected an object"):
        TrainingSpec.from_json([])
    if field not in YOUNGER:
        lacking = {k: v for k, v in NANO_TRAINING.to_json().items() if k != field}
        with pytest.raises(GenesisError, match=f"lacks {field}"):
            TrainingSpec.from_json(lacking)


def test_fields_younger_than_a_genesis_have_what_was_the_rule() -> None:
    model, training = NANO_MODEL.to_json(), NANO_TRAINING.to_json()
    assert (model.pop("routing"), model.pop("shared_experts")) == ("top_k", 0)
    assert [training.pop(field) for field in YOUNGER] == [0, 0, "sparse", 0, 0]
    assert ModelSpec.from_json(model) == NANO_MODEL
    assert TrainingSpec.from_json(training) == NANO_TRAINING


def test_a_model_of_too_many_shards_is_refused() -> None:
    many = NANO_MODEL.to_json() | {"width": 8, "expert_width": 8, "heads": 1, "experts": 1024}
    with pytest.raises(GenesisError, match="shards, at most 65536"):
        ModelSpec.from_json(many | {"layers": 64})


def test_shards_hold_every_parameter_once() -> None:
    shards = NANO_MODEL.shards()
    assert [s.index for s in shards] == list(range(len(shards)))
    assert sum(s.elements for s in shards) == NANO_MODEL.parameters <= 500_000
    names = [s.name for s in shards]
    assert names[:4] == ["embed", "layers.0.attention", "layers.0.router", "layers.0.experts.0"]
    assert names[-2:] == ["head", "final"]
    assert [s.name for s in shards if s.coding == "dense"] == [
        "layers.0.router",
        "layers.1.router",
        "final",
    ]


def test_densities_hold_on() -> None:
    rule = replace(NANO_TRAINING, densities=(9, 5))
    assert [rule.density(r) for r in (0, 1, 2, 99)] == [9, 5, 5, 5]
    thin = replace(rule, codec="lowrank", rank=8)
    assert thin.density(3) == low_rank_number(8)
    assert TrainingSpec.from_json(thin.to_json()) == thin
    assert [thin.is_coded_by(low_rank_number(r)) for r in (7, 8)] == [False, True]
    assert [rule.is_coded_by(n) for n in (7, low_rank_number(7))] == [True, False]
    assert [replace(rule, codec="int8").density(r) for r in (0, 99)] == [INT8_NUMBER] * 2
    assert rule.segments == 5
    assert [rule.segment_range(s) for s in (0, 4)] == [(0, 10), (40, 50)]


def test_genesis_weights_are_spread_as_written() -> None:
    shards = initial_shards(NANO_MODEL)
    assert shards == initial_shards(NANO_MODEL)
    assert shards != initial_shards(replace(NANO_MODEL, init_seed="other"))
    layout = {s.name: (s, data) for s, data in zip(NANO_MODEL.shards(), shards, strict=True)}
    for name, tensor, fan_in in (
        ("embed", "weight", 1024),
        ("head", "weight", 96),
        ("layers.1.attention", "output", 4 * 96),
        ("layers.0.experts.3", "up", 96),
    ):
        spec, data = layout[name]
        start, end = spec.offsets()[tensor]
        values = np.frombuffer(data[start:end], "<f4").astype(np.float64)
        assert abs(values.var() * fan_in - 1) < 0.05
        assert abs(values.mean()) < 4 * (values.var() / values.size) ** 0.5
    assert abs(holdout_loss(NANO_MODEL, shards, library(20_000)) / 1e9 - log(256)) < 0.7


# --- states ----------------------------------------------------------------------------


def state() -> TrainState:
    weights = initial_shards(TINY)
    first = tuple(bytes([i % 7]) * len(w) for i, w in enumerate(weights))
    return TrainState(tuple(weights), first, tuple(weights), step=4, updates=12, draws=32)


def test_a_state_comes_back_from_its_bytes() -> None:
    assert deserialize_state(TINY, serialize_state(state())) == state()


def test_broken_states_are_refused() -> None:
    data = serialize_state(state())
    header = 4 + int.from_bytes(data[:4], "big")
    broken = [b"", data[:3], data[:header], data[:-1], data + b"\0", b"\xff" * 8 + data]
    broken.append(data[:4] + b"\0" + data[5:])
    for bad in broken:
        with pytest.raises(DecodeError):
            deserialize_state(TINY, bad)
    with pytest.raises(DecodeError, match="another model"):
        deserialize_state(NANO_MODEL, data)


def test_every_part_of_a_state_is_in_its_hash() -> None:
    base = state()

    def flipped(sections: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return (*sections[:-1], sections[-1][:-1] + bytes([sections[-1][-1] ^ 1]))

    others = [
        replace(base, weights=flipped(base.weights)),
        replace(base, first=flipped(base.first)),
        replace(base, second=flipped(base.second)),
        replace(base, first=base.second, second=base.first),
        replace(base, step=5),
        replace(base, updates=13),
        replace(base, draws=33),
    ]
    assert len({base.hash(), *(s.hash() for s in others)}) == 8
    for i, leaf in enumerate(base.leaves()):
        verify_merkle(base.hash(), merkle_proof(base.leaves(), i), leaf)
    assert base.leaves()[0] == sections_root(base.weights)


def test_roots_of_nothing_are_zero() -> None:
    fresh = TrainState.fresh(initial_shards(TINY))
    assert fresh.optimizer_root() == ZERO_HASH == residual_root(None)
    assert state().optimizer_root() != ZERO_HASH
    assert state().next_round(fresh.weights).optimizer_root() == state().optimizer_root()
    assert residual_root(fresh.weights) == sections_root(fresh.weights)
