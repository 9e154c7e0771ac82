"""A layer's mixture of experts against a plain loop over them, on one core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from learning.profile import configure, environment

os.environ.update(environment())  # before torch is imported

import torch
from torch import Tensor

from bench.measure import Row, at_least, at_most, in_turns, quantile
from learning.model import Weights, mixture
from learning.spec import NANO_MODEL, ModelSpec

_AT = "layers.0"


@dataclass(frozen=True, slots=True)
class Case:
    """A mixture of `experts` for `tokens`, and how much faster than the loop it has to be."""

    experts: int
    tokens: int
    least: float


CASES = (Case(64, 1024, 1.5), Case(8, 4096, 1.0))


def moe_rows(width: int, samples: int) -> Iterator[Row]:
    """Forward and backward of a mixture, top-2, expert width = width. Floor of the times: the
    loop's, whose weights are slices (`unbind`) of one stacked tensor."""
    configure()
    for case in CASES:
        spec = replace(NANO_MODEL, layers=1, width=width, experts=case.experts, expert_width=width)
        x, held, stacked = _inputs(spec, case.tokens)
        ours, loop = in_turns(
            samples, partial(_ours, spec, x, held), partial(_loop, spec, x, held, stacked)
        )
        name = f"moe_{case.experts}_experts"
        gain = quantile([b / a for a, b in zip(ours, loop, strict=True)], 0.5)
        yield at_most(name, quantile(ours, 0.5) * 1000, "ms", None, quantile(loop, 0.5) * 1000)
        yield at_least(f"{name}_gain", gain, "x", case.least)


def _inputs(spec: ModelSpec, tokens: int) -> tuple[Tensor, Weights, list[Tensor]]:
    """Tokens; a layer's tensors; gate, up and down stacked over the experts."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=random) * spec.width**-0.5).requires_grad_()

    held: Weights = {f"{_AT}.router.weight": normal(spec.width, spec.experts)}
    held[f"{_AT}.router.bias"] = torch.zeros(spec.experts)
    for j in range(spec.experts):
        for part in ("gate", "up", "down"):
            held[f"{_AT}.experts.{j}.{part}"] = normal(spec.width, spec.width)
    stacked = [
        torch.stack(
            [held[f"{_AT}.experts.{j}.{part}"].detach() for j in range(spec.experts)]
        ).requires_grad_()
        for part in ("gate", "up", "down")
    ]
    return normal(tokens, spec.width), held, stacked


def _ours(spec: ModelSpec, x: Tensor, held: Weights) -> None:
    pairs = torch.zeros(len(x), dtype=torch.int64)
    mixed, _ = mixture(spec, held, 0, x, pairs)
    learned = [tensor for tensor in held.values() if tensor.requires_grad]
    torch.autograd.grad(mixed.square().mean(), [x, *learned], allow_unused=True)


def _loop(spec: ModelSpec, x: Tensor, held: Weights, stacked: list[Tensor]) -> None:
    router = held[f"{_AT}.router.weight"]
    scores = x @ router
    chosen = (scores.detach() + held[f"{_AT}.router.bias"]).topk(spec.top_k, -1).indices
    shares = torch.softmax(scores.gather(-1, chosen), -1)
    gates, ups, downs = (tensor.unbind(0) for tensor in stacked)
    mixed = torch.zeros_like(x)
    for j in range(spec.experts):
        rows, slots = (chosen == j).nonzero(as_tuple=True)
        taken = x[rows]
        hidden = torch.nn.functional.silu(taken @ gates[j]) * (taken @ ups[j])
        out = (hidden @ downs[j]) * shares[rows, slots].unsqueeze(-1)
        mixed = mixed.index_add(0, rows, out)
    torch.autograd.grad(mixed.square().mean(), [x, router, *stacked])
