"""The mixture of experts: routing, its sum in order, and what a step of training makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.init import initial_shards
from learning.model import Weights, largest, mixture, weights_from_shards
from learning.ops import NATIVE
from learning.spec import ModelSpec
from tests.kit.nano import TINY

AT = "layers.1"


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
    mixed, loads = mixture(spec, weights, AT, x, NATIVE)
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
