"""Dropout: masks that follow from a key and a place, whoever computes what in which order."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from chain.errors import InputError
from chain.hashes import Hash32
from chain.types import PubKey
from corpus.batches import Assignment
from learning.conformance import ops_of
from learning.dropout import ATTENTION, MIXTURE, masks_of, words
from learning.evaluate import window_losses
from learning.held import Held, layout_of
from learning.init import initial_shards
from learning.memory import ACTIVATION_BYTES
from learning.profile import KINDS, Kind
from learning.spec import NANO_MODEL, NANO_TRAINING, ModelSpec, TrainingSpec
from learning.state import TrainState, deserialize_state, serialize_state
from learning.train import Progress, train_segment
from tests.kit.nano import TINY, TINY_TRAINING, library, tiny_batches
from tests.reference import dropout_ref

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "learning" / "dropout.json").read_text()
)
KEY, OTHER = Hash32(b"k" * 32), Hash32(b"o" * 32)
RULE = replace(TINY_TRAINING, dropout_ppm=100_000)
BATCHES = tiny_batches()
BASE = initial_shards(TINY)


def trained(
    rule: TrainingSpec = RULE,
    last: int = 4,
    start: TrainState | None = None,
    model: ModelSpec = TINY,
    key: Hash32 | None = KEY,
    **options: Any,
) -> TrainState:
    first = start or TrainState.fresh(initial_shards(model))
    return train_segment(model, rule, first, BATCHES.__getitem__, last, mask_key=key, **options)


# --- masks -------------------------------------------------------------------------------


def test_masks_are_those_of_the_vectors() -> None:
    for seed, outputs in VECTORS["splitmix"]:
        assert [str(word) for word in words(int(seed), 0, 5)] == outputs
        assert [str(word) for word in words(int(seed), 3, 5)] == outputs[3:]
    seed, learner = (bytes.fromhex(VECTORS[name]) for name in ("seed", "learner"))
    given = Assignment(
        *(library(5000), Hash32(seed), PubKey(learner), VECTORS["round"]),
        steps=1,
        batch=4,
        context=16,
    )
    key = given.mask_key()
    assert key.hex() == VECTORS["key"]
    for case in VECTORS["masks"]:
        layer, branch, shape = case["layer"], case["branch"], tuple(case["shape"])
        made = masks_of(key, case["dropout_ppm"], layer + 1, case["step"])
        factors = replace(made, before=case["before"]).factors(layer, branch, shape)
        assert (factors.dtype, factors.shape) == (np.float32, shape)
        assert dropout_ref.text([bool(f == 0) for f in factors.flat]) == case["mask"]
        kept = np.frombuffer(bytes.fromhex(case["kept"]), "<f4")[0]
        assert set(factors.flat) <= {np.float32(0), kept}


def test_the_reference_still_gives_the_vectors() -> None:
    assert dropout_ref.vectors() == VECTORS


@pytest.mark.parametrize("ppm", [1000, 100_000, 500_000, 900_000])
def test_masks_drop_their_share_and_keep_the_mean(ppm: int) -> None:
    """Within five standard deviations, of all elements and of each of the four in a word."""
    factors = masks_of(KEY, ppm, 1, 0).factors(0, MIXTURE, (16, 64, 96))
    share = ppm / 1e6
    for part in (factors, *(factors.reshape(-1, 4).T)):
        spread = (share * (1 - share) / part.size) ** 0.5
        assert abs(float((part == 0).mean()) - share) < 5 * spread + 1e-5
        assert abs(float(part.mean(dtype=np.float64)) - 1) < 5 * spread / (1 - share)


def test_masks_of_different_places_are_independent() -> None:
    """Of two of them, both drop a place as often as chance has it."""
    shape, ppm = (4, 64, 96), 500_000
    masks = [
        masks_of(key, ppm, 2, step).factors(layer, branch, shape) == 0
        for key, step, layer, branch in (
            (KEY, 0, 0, ATTENTION),
            (OTHER, 0, 0, ATTENTION),
            (KEY, 1, 0, ATTENTION),
            (KEY, 0, 1, ATTENTION),
            (KEY, 0, 0, MIXTURE),
        )
    ]
    masks.append(replace(masks_of(KEY, ppm, 2, 0), before=4).factors(0, ATTENTION, shape) == 0)
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            both = float((mask & other).mean())
            assert abs(both - 0.25) < 5 * (0.25 * 0.75 / mask.size) ** 0.5


def test_a_part_of_a_batch_has_its_part_of_the_mask() -> None:
    made = masks_of(KEY, 300_000, 1, 5)
    whole = made.factors(0, ATTENTION, (6, 5, 6))  # 30 a window: some begin within a word
    for first in range(6):
        for last in range(first + 1, 7):
            part = replace(made, before=first).factors(0, ATTENTION, (last - first, 5, 6))
            assert np.array_equal(part, whole[first:last])


# --- training ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_a_key_changes_nothing(kind: Kind) -> None:
    """Nor does a share below half a 65536th: no value is dropped, and each is kept as it is."""
    ops = ops_of(kind)
    before = trained(TINY_TRAINING, 2, key=None, ops=ops).hash()
    for rule in (TINY_TRAINING, replace(TINY_TRAINING, dropout_ppm=7)):
        assert trained(rule, 2, ops=ops).hash() == before
    assert trained(last=2, ops=ops).hash() != before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_layers_computed_again_have_the_same_masks(kind: Kind, micro_batch: int) -> None:
    rule = replace(RULE, aux_loss_ppm=10_000, micro_batch=micro_batch)
    for model in (TINY, replace(TINY, routing="hash", shared_experts=1)):
        kept, again = (
            trained(rule, 2, model=model, ops=ops_of(kind), most_bytes=most).hash()
            for most in (ACTIVATION_BYTES, 0)
        )
        assert kept == again


def test_pieces_of_a_batch_have_the_masks_of_the_whole() -> None:
    """Gradients, and so first moments, are the same but for the order of sums; with other masks
    they would be as far apart as those of another key are."""

    def moments(rule: TrainingSpec, key: Hash32 = KEY) -> npt.NDArray[np.float32]:
        return np.frombuffer(b"".join(trained(rule, 1, key=key).first), "<f4")

    whole, pieces = moments(RULE), moments(replace(RULE, micro_batch=1))
    size = np.abs(whole).max()
    assert np.abs(whole - pieces).max() < 1e-5 * size
    assert np.abs(whole - moments(RULE, OTHER)).max() > 1e-2 * size


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_of_any_segment_alone_gives_the_same_state(kind: Kind) -> None:
    ops = ops_of(kind)
    states, state = list[TrainState](), None
    for last in (0, 2, 3, 5):
        states.append(state := trained(last=last, start=state, ops=ops))
    assert state is not None
    assert trained(last=5, ops=ops) == state
    for before, after in pairwise(states):
        again = deserialize_state(TINY, serialize_state(before))
        assert trained(last=after.step, start=again, ops=ops).hash() == after.hash()
        assert trained(last=after.step, start=again, key=OTHER, ops=ops).hash() != after.hash()
    assert (state.step, state.draws) == (5, 5 * 4 * 2)  # masks are no draws


def test_a_part_of_the_model_has_the_masks_of_the_whole() -> None:
    """By a hash each byte has one expert here. With the other held as well nothing else comes out
    for bytes that it does not get: only the masks could differ, and they do not."""
    model = replace(TINY, routing="hash", top_k=1)
    text = np.full((8, 4, model.context + 1), ord("a"), np.uint8)
    loads = list[npt.NDArray[np.int64]]()

    def run(held: Held | None, key: Hash32 = KEY) -> dict[str, bytes]:
        base = [initial_shards(model)[shard.index] for shard in layout_of(model, held)]
        start = TrainState.fresh(base)
        end = train_segment(
            *(model, RULE, start, text.__getitem__, 2),
            on_step=lambda progress: loads.append(progress.loads),
            held=held,
            mask_key=key,
        )
        names = [shard.name for shard in layout_of(model, held)]
        return dict(zip(names, end.weights, strict=True))

    whole = run(None)
    busy = [tuple(int(j) for j in np.flatnonzero(layer)) for layer in loads[0]]
    assert all(len(experts) < model.experts for experts in busy)
    part = run(Held(tuple(busy)))
    assert part.items() < whole.items()
    assert run(Held(tuple(busy)), OTHER) != part


def test_two_threads_change_no_bit_in_the_exact_profile() -> None:
    rule = replace(NANO_TRAINING, steps=1, segment_steps=1, batch=4, dropout_ppm=200_000)
    text = np.frombuffer(library(4096), np.uint8)[: 4 * 65].reshape(1, 4, 65)
    start, ops = TrainState.fresh(initial_shards(NANO_MODEL)), ops_of("exact")
    before, hashes = torch.get_num_threads(), set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            end = train_segment(NANO_MODEL, rule, start, text.__getitem__, 1, ops=ops, mask_key=KEY)
            hashes.add(end.hash())
    finally:
        torch.set_num_threads(before)
    assert len(hashes) == 1


def test_training_sees_masks_and_evaluation_none() -> None:
    """The loss that a step reports is that of its weights under masks; a jury's is without."""
    base = trained(TINY_TRAINING, 8)
    plain = float(window_losses(TINY, base.weights, BATCHES[0]).mean())

    def told(rule: TrainingSpec) -> float:
        seen = list[Progress]()
        trained(rule, 1, TrainState.fresh(base.weights), on_step=seen.append)
        return seen[0].loss

    assert told(TINY_TRAINING) == pytest.approx(plain, abs=1e-5)
    assert told(replace(RULE, dropout_ppm=500_000)) > plain + 1e-3


def test_training_with_dropout_learns() -> None:
    rule = replace(RULE, learning_rate_nano=10_000_000)
    start = TrainState.fresh(BASE)
    end = train_segment(TINY, rule, start, lambda _: BATCHES[0], 8, mask_key=KEY)
    before, after = (
        float(window_losses(TINY, state.weights, BATCHES[0]).mean()) for state in (start, end)
    )
    assert after < before - 0.3


def test_there_is_no_dropout_without_a_key() -> None:
    with pytest.raises(InputError, match="expected the key of the learner's assignment"):
        trained(key=None)
