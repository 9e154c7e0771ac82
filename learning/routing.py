"""Which experts a byte is sent to, and how much each counts (docs/spec/model.md, "Routing")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learning.ops import Ops
from learning.spec import LEARNED, ModelSpec

_LOW_32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Route:
    """For n bytes: `chosen` int64 [n, k] with `shares` fp32 [n, k]; `scores` fp32 [n, candidates],
    of a learned router."""

    chosen: Tensor
    shares: Tensor
    scores: Tensor | None


def route(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    layer: int,
    x: Tensor,
    pairs: Tensor,
    held: tuple[int, ...] | None,
    ops: Ops,
) -> Route:
    """The experts of bytes x [n, width]. `pairs` int64 [n]: each byte with the one before it.
    `held`: the experts of this layer that are here, None for all; no other is ever chosen by a
    learned router."""
    if spec.routing != LEARNED:
        chosen = hashed(pairs, layer, spec.experts, spec.top_k)
        shares = torch.full(chosen.shape, 1 / spec.top_k, dtype=torch.float32, device=x.device)
        return Route(chosen, shares, None)
    scores = ops.matmul(x, weights[f"layers.{layer}.router.weight"])
    bias = weights[f"layers.{layer}.router.bias"].detach()
    if held is None:
        chosen = largest(scores.detach() + bias, spec.top_k)
        return Route(chosen, ops.softmax(scores.gather(-1, chosen)), scores)
    columns = torch.tensor(held, device=x.device)
    scores = scores.index_select(-1, columns)
    places = largest(scores.detach() + bias.index_select(0, columns), min(spec.top_k, len(held)))
    return Route(columns[places], ops.softmax(scores.gather(-1, places)), scores)


def largest(scores: Tensor, count: int) -> Tensor:
    """Columns of the `count` largest of each row, largest first; ties: the lower column (which
    `topk` does not promise)."""
    left, found = scores.clone(), []
    for _ in range(count):
        found.append(left.argmax(-1, keepdim=True))
        left.scatter_(-1, found[-1], -math.inf)
    return torch.cat(found, -1)


def byte_pairs(tokens: Tensor, before: Tensor) -> Tensor:
    """256 times the byte before and the byte itself, int64 [batch, time]; `before`: int64 [batch]
    stands before the first."""
    earlier = torch.cat((before.unsqueeze(-1), tokens[:, :-1]), -1)
    return earlier * 256 + tokens


def hashed(pairs: Tensor, layer: int, experts: int, count: int) -> Tensor:
    """`count` different experts for each pair of bytes, int64 [n, count]: draws without putting
    back, by the finalizer of MurmurHash3."""
    start = _mix(pairs + layer * 65_536)
    taken: list[Tensor] = []
    for j in range(count):
        found = _mix(start + j) % (experts - j)
        for earlier in torch.stack(taken).sort(0).values if taken else ():
            found = found + (found >= earlier).long()
        taken.append(found)
    return torch.stack(taken, -1)


def _mix(x: Tensor) -> Tensor:
    """Of 32-bit integers in int64, whose products wrap without harm to the low bits."""
    x = x & _LOW_32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _LOW_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _LOW_32
    return x ^ (x >> 16)


def balance_loss(scores: Tensor, loads: Tensor, ops: Ops) -> Tensor:
    """candidates * sum over experts of its part of the loads times its mean probability: 1 where
    both are even (arXiv 2101.03961). `loads`: int64 [candidates], of `scores` [n, candidates]."""
    tokens, candidates = scores.shape
    parts = (loads.double() * candidates / (loads.sum() * tokens)).float()
    summed = ops.matmul(torch.ones(1, tokens, device=scores.device), ops.softmax(scores))
    return ops.matmul(summed, parts.unsqueeze(-1)).reshape(())
