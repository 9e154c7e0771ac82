"""The mixture of experts: routing, its sum in order, and the forms a model may have."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chain.limits import TILE_BYTES
from learning.held import imbalance
from learning.init import initial_shards
from learning.model import Weights, forward, mixture, weights_from_shards
from learning.ops import NATIVE
from learning.routing import balance_loss, hashed, largest
from learning.sizes import SIZES
from learning.spec import ModelSpec, TrainingSpec
from learning.state import TrainState
from learning.train import train_segment
from node.founding import MODELS, template
from tests.kit.nano import TINY, TINY_TRAINING, library, tiny_batches
from tests.reference import plain_loss

AT = "layers.1"
FORMS = {
    "learned": TINY,
    "shared": replace(TINY, shared_experts=2),
    "hash": replace(TINY, routing="hash", experts=7, top_k=3),
    "hash_shared": replace(TINY, routing="hash", shared_experts=1, top_k=1),
    "one": replace(TINY, experts=1, top_k=1),
}


def learned(spec: ModelSpec, seed: int) -> Weights:
    """Weights with gradients, and router biases that are not zero."""
    weights = weights_from_shards(spec, initial_shards(spec))
    random = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        if name.endswith("bias"):
            tensor += torch.randn(tensor.shape, generator=random) * 0.1
        else:
            tensor.requires_grad_()
    return weights


def plain(spec: ModelSpec, weights: Weights, x: Tensor) -> Tensor:
    """Expert after expert, each looking for its tokens."""
    scores = x @ weights[f"{AT}.router.weight"]
    chosen = (scores + weights[f"{AT}.router.bias"]).topk(spec.top_k).indices
    shares = torch.softmax(scores.gather(-1, chosen), -1)
    mixed = torch.zeros_like(x)
    for j in range(spec.experts):
        rows, slots = (chosen == j).nonzero(as_tuple=True)
        gate, up, down = (weights[f"{AT}.experts.{j}.{part}"] for part in ("gate", "up", "down"))
        out = (F.silu(x[rows] @ gate) * (x[rows] @ up)) @ down
        mixed = mixed.index_add(0, rows, out * shares[rows, slots].unsqueeze(-1))
    return mixed


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(4, 2, 50), (32, 1, 20), (8, 8, 9)])
def test_a_mixture_is_the_sum_over_experts(experts: int, top_k: int, tokens: int) -> None:
    spec = replace(TINY, experts=experts, top_k=top_k)
    weights = learned(spec, experts)
    x = torch.randn(tokens, spec.width, generator=torch.Generator().manual_seed(7))
    x.requires_grad_()
    pairs = torch.zeros(tokens, dtype=torch.int64)
    mixed, (loads, _) = mixture(spec, weights, 1, x, pairs)
    expected = plain(spec, weights, x)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
    assert (len(loads), int(loads.sum())) == (experts, tokens * top_k)
    inputs = [x, *(w for n, w in weights.items() if n.startswith(AT) and w.requires_grad)]
    found, wanted = (
        torch.autograd.grad(out.square().sum(), inputs, allow_unused=True, materialize_grads=True)
        for out in (mixed, expected)
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_largest_are_found_in_order_and_ties_go_to_the_lower() -> None:
    scores = torch.randn(40, 9, generator=torch.Generator().manual_seed(3))
    assert torch.equal(largest(scores, 4), scores.topk(4).indices)
    tied = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0] * 5])
    assert largest(tied, 4).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


# --- forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_what_the_reference_computes(form: str) -> None:
    spec = FORMS[form]
    weights = {name: w.detach() for name, w in learned(spec, 5).items()}
    text = torch.tensor(list(library(10_000)[500 : 500 + spec.context]))
    found = forward(spec, weights, text.unsqueeze(0))
    expected = plain_loss.logits(spec.to_json(), weights, text)
    torch.testing.assert_close(found.logits[0], expected, rtol=1e-4, atol=1e-5)
    for routed in found.routed:
        assert int(routed.loads.sum()) == spec.context * spec.top_k
        assert (routed.scores is None) == (spec.routing == "hash")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_a_layout_and_learns(form: str) -> None:
    spec = FORMS[form]
    assert ModelSpec.from_json(spec.to_json()) == spec
    shards = spec.shards()
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert sum(shard.elements for shard in shards) == spec.parameters
    batch, losses = tiny_batches()[0], []
    rule = replace(TINY_TRAINING, learning_rate_nano=10_000_000, aux_loss_ppm=10_000)
    start = TrainState.fresh(initial_shards(spec))
    end = train_segment(spec, rule, start, lambda _: batch, 8, lambda p: losses.append(p.loss))
    assert losses[-1] < losses[0] - 0.3
    moved = {s.name for s, a, b in zip(shards, start.weights, end.weights, strict=True) if a != b}
    assert moved >= {s.name for s in shards if ".experts." not in s.name}


def test_hashed_experts_are_the_references_and_differ() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    pairs = [draw.randrange(65_536) for _ in range(200)]
    layer, experts = draw.randrange(256), draw.randrange(1, 1025)
    count = min(experts, 16)
    found = hashed(torch.tensor(pairs), layer, experts, count).tolist()
    for pair, chosen in zip(pairs, found, strict=True):
        assert chosen == plain_loss.hashed(layer, *divmod(pair, 256), experts, count)
        assert len(set(chosen)) == count


def test_hashed_experts_do_not_change() -> None:
    """A model that was trained with them would be worth nothing with others."""
    pairs = torch.tensor([ord(" ") * 256 + ord("t"), ord("t") * 256 + ord("h"), 0])
    assert hashed(pairs, 0, 8, 2).tolist() == [[2, 4], [4, 0], [0, 7]]
    assert hashed(pairs, 1, 8, 2).tolist() == [[1, 3], [5, 3], [5, 3]]
    assert hashed(pairs, 255, 1024, 3).tolist() == [
        [455, 431, 584],
        [289, 703, 172],
        [159, 303, 913],
    ]


def test_hashed_experts_have_even_loads() -> None:
    every = hashed(torch.arange(65_536), 3, 16, 2)
    loads = np.bincount(every.reshape(-1).numpy(), minlength=16)
    assert loads.max() < 1.05 * loads.mean()


# --- balance -----------------------------------------------------------------------------


def test_the_balance_loss_is_one_where_all_is_even() -> None:
    even = balance_loss(torch.zeros(12, 4), torch.tensor([6, 6, 6, 6]), NATIVE)
    assert float(even) == pytest.approx(1)
    scores = torch.tensor([[20.0, 0, 0, 0]]).repeat(12, 1)
    assert float(balance_loss(scores, torch.tensor([12, 0, 0, 0]), NATIVE)) == pytest.approx(4)
    assert imbalance(np.array([[6, 6, 6, 6], [12, 0, 0, 0]])) == (1, 4)


@pytest.mark.parametrize("rule", [{"bias_rate_ppm": 20_000}, {"aux_loss_ppm": 1_000_000}])
def test_either_way_of_balancing_makes_loads_more_even(rule: dict[str, int]) -> None:
    def worst(training: TrainingSpec) -> float:
        loads = []
        train_segment(
            TINY,
            training,
            TrainState.fresh(initial_shards(TINY)),
            lambda step: batches[step % len(batches)],
            40,
            lambda p: loads.append(p.loads),
        )
        return max(imbalance(sum(loads[-8:])))

    batches = tiny_batches()
    never = replace(TINY_TRAINING, bias_rate_ppm=0)
    assert worst(replace(never, **rule)) < worst(never) - 0.1


# --- sizes -------------------------------------------------------------------------------


def test_sizes_can_found_a_network() -> None:
    assert tuple(SIZES) == MODELS
    for name, size in SIZES.items():
        document = template(name)
        assert ModelSpec.from_json(document["model"]) == size.model
        assert TrainingSpec.from_json(document["training"]) == size.training
    usual, longer = template()["params"], template("small")["params"]
    changed = {name for name in usual if usual[name] != longer[name]}
    assert changed == set(SIZES["small"].windows)
    assert longer["train"] == {"blocks": 60, "ms": 1_200_000}
    assert ModelSpec.from_json(template()["model"]) == SIZES["nano"].model
    assert TrainingSpec.from_json(template()["training"]) == SIZES["nano"].training


def test_the_small_model_has_full_tiles() -> None:
    model = SIZES["small"].model
    assert model.parameters >= 60_000_000
    large = [
        s.data_bytes
        for s in model.shards()
        if s.name.startswith("layers.") and s.coding == "sparse"
    ]
    assert len(large) == model.layers * (1 + model.experts)
    assert all(size % TILE_BYTES == 0 for size in large)
