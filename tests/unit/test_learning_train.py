"""Exact training, payloads with error feedback, and losses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from chain.errors import DecodeError, InputError
from chain.hashes import ZERO_HASH, Hash32
from chain.types import PubKey
from corpus.batches import Assignment
from learning.compress import LARGEST, Compressed, add_delta, compress
from learning.conformance import ops_of
from learning.evaluate import (
    MAX_LOSS,
    holdout_loss,
    holdout_windows,
    to_nano,
    window_losses,
    windows_at_a_time,
)
from learning.init import initial_shards
from learning.memory import ACTIVATION_BYTES, recomputes
from learning.profile import Kind
from learning.sizes import SIZES
from learning.spec import NANO_MODEL, NANO_TRAINING
from learning.state import TrainState, deserialize_state, sections_root, serialize_state
from learning.train import Progress, train_segment
from node.export import model_header
from tests.kit.nano import TINY, TINY_TRAINING, library, tiny_batches
from tiles.delta import decode_delta, payload_root

BASE = initial_shards(TINY)
ROOT = sections_root(BASE)
BATCHES = tiny_batches()
LAYOUT = TINY.shards()


def floats(section: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(section, "<f4")


def trained(last: int = TINY_TRAINING.steps, start: TrainState | None = None) -> TrainState:
    first = start or TrainState.fresh(BASE)
    return train_segment(TINY, TINY_TRAINING, first, BATCHES.__getitem__, last)


# --- training --------------------------------------------------------------------------


def test_a_replay_from_any_checkpoint_gives_the_same_bits() -> None:
    end = trained()
    state = TrainState.fresh(BASE)
    for step in range(1, TINY_TRAINING.steps + 1):
        state = deserialize_state(TINY, serialize_state(trained(step, state)))
        assert trained(start=state).hash() == end.hash()
    assert state == end
    assert (end.step, end.updates, end.draws) == (8, 8, 64)


def test_whatever_goes_in_shows_in_the_hash() -> None:
    end = trained(2).hash()
    other = BATCHES.copy()
    other[1, 0, 0] ^= 1
    start = TrainState.fresh(BASE)
    altered = [
        train_segment(TINY, TINY_TRAINING, start, other.__getitem__, 2),
        train_segment(
            TINY, replace(TINY_TRAINING, learning_rate_nano=1), start, BATCHES.__getitem__, 2
        ),
        trained(2, replace(start, updates=1)),
        trained(2, TrainState.fresh(initial_shards(replace(TINY, init_seed="x")))),
        trained(3),
    ]
    assert end not in {state.hash() for state in altered}


def test_training_reports_and_learns() -> None:
    seen: list[Progress] = []
    steps = replace(TINY_TRAINING, learning_rate_nano=10_000_000)
    state = train_segment(TINY, steps, TrainState.fresh(BASE), lambda _: BATCHES[0], 8, seen.append)
    assert [p.step for p in seen] == list(range(8))
    assert seen[-1].loss < seen[0].loss - 0.3
    moved = {s.name for s, a, b in zip(LAYOUT, BASE, state.weights, strict=True) if a != b}
    assert moved >= {"embed", "head", "final", "layers.0.router", "layers.1.attention"}


def test_router_biases_follow_the_load_and_have_no_moments() -> None:
    end = trained()
    for i, shard in enumerate(LAYOUT):
        if shard.name.endswith("router"):
            a, b = shard.offsets()["bias"]
            bias = floats(end.weights[i][a:b])
            assert np.abs(bias).max() > 0
            assert np.abs(bias).max() <= 8.001e-3  # at most bias_rate a step
            assert not any(end.first[i][a:b] + end.second[i][a:b])


def test_weight_decay_is_for_matrices_alone() -> None:
    decayed = replace(TINY_TRAINING, weight_decay_ppm=1_000_000)
    one = train_segment(TINY, decayed, TrainState.fresh(BASE), BATCHES.__getitem__, 1)
    zero = trained(1)
    differ = {s.name for s, a, b in zip(LAYOUT, one.weights, zero.weights, strict=True) if a != b}
    assert "final" not in differ
    assert "head" in differ


@pytest.mark.parametrize("kind", ["native", "exact"])
def test_layers_computed_again_give_the_same_bits(kind: Kind) -> None:
    rule = replace(TINY_TRAINING, aux_loss_ppm=10_000, micro_batch=2)
    for model in (TINY, replace(TINY, routing="hash", shared_experts=1)):
        start = TrainState.fresh(initial_shards(model))
        kept, again = (
            train_segment(
                *(model, rule, start, BATCHES.__getitem__, 2), ops=ops_of(kind), most_bytes=most
            ).hash()
            for most in (ACTIVATION_BYTES, 0)
        )
        assert kept == again
        assert recomputes(model, rule, 0) > recomputes(model, rule, ACTIVATION_BYTES)


def test_pieces_of_a_batch_are_added_up() -> None:
    """To what the whole batch gives, but for the order of sums; the bits are others."""
    seen: list[Progress] = []
    whole = train_segment(TINY, TINY_TRAINING, TrainState.fresh(BASE), BATCHES.__getitem__, 2)
    rule = replace(TINY_TRAINING, micro_batch=1)
    fresh = TrainState.fresh(BASE)
    pieces = train_segment(TINY, rule, fresh, BATCHES.__getitem__, 2, seen.append)
    assert whole.hash() != pieces.hash()
    for a, b in zip(whole.first, pieces.first, strict=True):
        assert np.allclose(floats(a), floats(b), rtol=0, atol=1e-5 * np.abs(floats(a)).max())
    assert int(seen[0].loads.sum()) == 4 * TINY.context * TINY.top_k * TINY.layers
    assert 5 < seen[0].loss < 7


def test_training_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="cannot be trained back"):
        trained(1, trained(2))
    with pytest.raises(InputError, match="a batch of shape"):
        train_segment(TINY, TINY_TRAINING, TrainState.fresh(BASE), lambda _: BATCHES[0][:1], 1)


# --- payloads --------------------------------------------------------------------------


def squeeze(residual: tuple[bytes, ...] | None = None, round_: int = 3) -> Compressed:
    return compress(TINY, TINY_TRAINING, round_, ROOT, BASE, trained().weights, residual)


def test_a_payload_and_its_residual_make_the_target() -> None:
    first = squeeze()
    second = squeeze(first.residual)
    decoded = decode_delta(second.payload, LAYOUT)
    assert (decoded.base_root, decoded.density) == (ROOT, 256)
    beta = np.float32(0.95)
    for i, after in enumerate(trained().weights):
        target = floats(after) - floats(BASE[i]) + beta * floats(first.residual[i])
        left = floats(second.residual[i])
        assert np.array_equal(left, target - decoded.shard_float(i))
    assert second == squeeze(first.residual)  # as an auditor recomputes it
    assert second.payload_root == payload_root(second.payload)
    assert (first.residual_before, second.residual_before) == (ZERO_HASH, first.residual_after)
    assert second.residual_after == sections_root(second.residual)


def test_densities_make_payloads_shorter() -> None:
    assert len(squeeze(round_=0).payload) > len(squeeze(round_=3).payload)


def test_values_beyond_the_codec_stay_in_the_residual() -> None:
    after = [np.full_like(floats(section), 3.0).tobytes() for section in BASE]
    found = compress(TINY, TINY_TRAINING, 0, ROOT, BASE, after, None)
    delta = decode_delta(found.payload, LAYOUT)
    final = len(LAYOUT) - 1  # norms are one, so its target is two
    assert np.allclose(delta.shard_float(final), LARGEST, atol=1e-3)
    assert np.allclose(floats(found.residual[final]), 1.0, atol=1e-3)


def test_diverged_training_is_refused() -> None:
    after = [*BASE[:-1], np.full_like(floats(BASE[-1]), np.nan).tobytes()]
    with pytest.raises(InputError, match="shard final: training has diverged"):
        compress(TINY, TINY_TRAINING, 0, ROOT, BASE, after, None)


def test_a_fraction_of_a_delta_is_added() -> None:
    payload = squeeze().payload
    delta = decode_delta(payload, LAYOUT)
    moved = add_delta(TINY, BASE, payload, 1, 5)
    for i, section in enumerate(moved):
        expected = floats(BASE[i]) + np.float32(0.2) * delta.shard_float(i)
        assert np.array_equal(floats(section), expected)
    assert add_delta(TINY, BASE, payload, 0, 1) == BASE
    with pytest.raises(DecodeError):
        add_delta(TINY, BASE, b"junk", 1, 5)


# --- losses ----------------------------------------------------------------------------


def test_holdout_windows_are_consecutive_and_at_most_512() -> None:
    text = bytes(range(256)) * 4
    windows = holdout_windows(text[:49], 16)
    assert [bytes(w) for w in windows] == [text[s : s + 17] for s in (0, 16, 32)]
    assert len(holdout_windows(text[:48], 16)) == 2
    many = (b"0123456789abcdef" * 1000)[:-1]  # 999 whole windows
    found = holdout_windows(bytes(i % 251 for i in range(len(many))), 16)
    assert len(found) == 512
    assert [w[0] for w in found] == [j * 999 // 512 * 16 % 251 for j in range(512)]
    with pytest.raises(InputError, match="a holdout of 16 bytes, expected at least 17"):
        holdout_windows(bytes(16), 16)


def test_losses_that_are_no_numbers_are_as_bad_as_can_be() -> None:
    broken = [*BASE[:-1], np.full_like(floats(BASE[-1]), np.inf).tobytes()]
    losses = window_losses(TINY, broken, BATCHES[0])
    assert (losses == MAX_LOSS).all()
    assert to_nano(losses) == (10**12,) * 4
    with pytest.raises(InputError, match="windows of shape"):
        window_losses(TINY, BASE, BATCHES[0][:, :-1])
    with pytest.raises(InputError, match="is it of another model"):
        window_losses(TINY, [*BASE[:-1], b"\0" * 4], BATCHES[0])
    with pytest.raises(InputError, match="shards, but this model has"):
        window_losses(TINY, BASE[:-1], BATCHES[0])


def test_windows_are_told_of_before_anybody_loses_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 64, and by fewer of a model that takes longer; which changes no loss."""
    assert [windows_at_a_time(size.model) for size in SIZES.values()] == [64] * len(SIZES)
    larger = replace(SIZES["small"].model, layers=12, context=1024)
    assert windows_at_a_time(larger) == 3
    assert windows_at_a_time(replace(larger, width=8192, context=8192)) == 1
    windows = holdout_windows(library(20_000), TINY.context)[:10]
    done: list[int] = []
    whole = window_losses(TINY, BASE, windows, got_on=done.append)
    monkeypatch.setattr("learning.evaluate._BATCH_PRODUCTS", 4 * 300_000)
    pieces = window_losses(TINY, BASE, windows, got_on=done.append)
    assert done == [10, *range(windows_at_a_time(TINY), 10, windows_at_a_time(TINY)), 10]
    assert 1 < windows_at_a_time(TINY) < 10
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)


def test_plain_torch_finds_the_same_loss(tmp_path: Path) -> None:
    """An exported model and a script without our packages: the loss to 1e-4 (issue 2)."""
    model, holdout = tmp_path / "model.safetensors", tmp_path / "holdout"
    rule = replace(TINY_TRAINING, learning_rate_nano=10_000_000, bias_rate_ppm=50_000)
    state = train_segment(TINY, rule, TrainState.fresh(BASE), BATCHES.__getitem__, 8)
    metadata = {"blyan.model": json.dumps(TINY.to_json())}
    model.write_bytes(model_header(LAYOUT, metadata) + b"".join(state.weights))
    holdout.write_bytes(library(12_000))  # more than 512 windows of 16 bytes
    script = Path(__file__).parent.parent / "reference" / "plain_loss.py"
    command = [sys.executable, "-I", str(script), str(model), str(holdout)]  # -I: no path to us
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    expected = holdout_loss(TINY, state.weights, holdout.read_bytes()) / 1e9
    assert abs(float(out.stdout) - expected) < 1e-4


def test_one_round_of_two_learners_lowers_the_loss() -> None:
    """Genesis weights, the genesis rule, the mean of two compressed deltas: at least 0.5 nats."""
    text = library(400_000)
    train, holdout = text[:-20_000], text[-20_000:]
    base = initial_shards(NANO_MODEL)
    root = sections_root(base)
    total = [floats(section).copy() for section in base]
    for learner in (b"1", b"2"):
        key = PubKey(learner * 32)
        given = Assignment(train, Hash32(bytes(32)), key, 0, steps=20, batch=16, context=64)
        start = TrainState.fresh(base)
        state = train_segment(NANO_MODEL, NANO_TRAINING, start, given.batch, 20)
        out = compress(NANO_MODEL, NANO_TRAINING, 0, root, base, state.weights, None)
        delta = decode_delta(out.payload, NANO_MODEL.shards())
        for i, values in enumerate(total):
            values += delta.shard_float(i) / np.float32(2)
    after = [values.tobytes() for values in total]
    before = holdout_loss(NANO_MODEL, base, holdout)
    assert holdout_loss(NANO_MODEL, after, holdout) < before - 500_000_000
