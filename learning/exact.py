"""The model's arithmetic in the `exact` profile, with gradients (docs/spec/numeric-profiles.md).

Each function of the model is a pair of passes written out in what learning/exact_math.py allows.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from learning.exact_math import (
    exp,
    halving_sum,
    log,
    norm,
    product,
    product_of_doubles,
    shift_of,
    sqrt_,
    to_grid,
    turns,
)
from learning.ops import NORM_EPSILON

_ONE = shift_of(1.0)  # rounds shares, which are at most 1, to their grid
_KEPT = 1 << 24  # attention shares kept for the backward pass; more are computed again
_GROUP = 1 << 18  # attention scores computed at a time


class _Matmul(Function):
    """a @ b by grids: `a_grid` and `b_grid` are those of a and b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, a_grid: Tensor, b_grid: Tensor) -> Tensor:
        ctx.save_for_backward(a_grid, b_grid)
        out = product(a_grid.reshape(-1, a.shape[-1]), b_grid)
        return out.reshape(*a.shape[:-1], b.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = ctx.saved_tensors
        rows = to_grid(grad.reshape(-1, grad.shape[-1])).double()
        of_a = product_of_doubles(rows, b.T.double()).reshape(a.shape)
        of_b = product_of_doubles(a.reshape(-1, a.shape[-1]).T.double(), rows)
        return of_a, of_b, None, None


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.rows = weight.shape[0]
        return weight[tokens]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """Sums of numbers on a grid are exact in a double, so their order does not matter."""
        (tokens,) = ctx.saved_tensors
        width = grad.shape[-1]
        total = torch.zeros(ctx.rows, width, dtype=torch.float64)
        total.index_add_(0, tokens.reshape(-1), to_grid(grad.reshape(-1, width)).double())
        return None, total.float()


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        mean = halving_sum(x * x).mul_(1 / x.shape[-1])
        inverse = torch.ones_like(mean).div_(sqrt_(mean.add_(NORM_EPSILON)))
        ratio = x * inverse
        ctx.save_for_backward(ratio, inverse, weight)
        return ratio * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        ratio, inverse, weight = ctx.saved_tensors
        width = grad.shape[-1]
        of_weight = halving_sum((grad * ratio).reshape(-1, width), 0).reshape(width)
        weighed = grad * weight
        share = halving_sum(weighed * ratio).mul_(1 / width)
        return weighed.sub_(ratio * share).mul_(inverse), of_weight


class _Silu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = torch.ones_like(x).div_(exp(-x).add_(1.0))
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope: Tensor = (1.0 - gate).mul_(x).add_(1.0).mul_(gate)
        return slope.mul_(grad)


class _Softmax(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shares = _shares(x)[0]
        ctx.save_for_backward(shares)
        return shares

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        shares: Tensor = ctx.saved_tensors[0]
        return (grad - halving_sum(grad * shares)) * shares


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        shares, relative, total = _shares(logits)
        column = targets[:, None]
        ctx.save_for_backward(shares, column)
        loss = log(total.double()) - relative.gather(1, column).double()
        return loss[:, 0].float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        shares, column = ctx.saved_tensors
        miss = shares.clone()
        miss.scatter_(1, column, shares.gather(1, column).sub_(1.0))
        return miss.mul_(grad[:, None]), None


class _Weigh(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return x * weights[:, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weights = ctx.saved_tensors
        return grad * weights[:, None], halving_sum(grad * x)[:, 0]


class _Attention(Function):
    """All [slices, time, head_width]; a slice is a head of a window, with grids of its own, so
    they can be gone through in groups that a cache holds."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (to_grid(part, slices=True) for part in (query, key, value))
        scores = query.shape[-2] * key.shape[-2]
        slices = len(query) if len(query) * scores <= _KEPT else 0
        kept = torch.empty(slices, query.shape[-2], key.shape[-2])
        out, total = torch.empty_like(query), torch.empty(*query.shape[:-1], 1)
        for group in _groups(len(query), scores):
            shares = _attention_shares(query[group], key[group], mask)
            total[group] = shares.sum(-1, keepdim=True, dtype=torch.float64)
            out[group] = product(shares, value[group]).div_(total[group])
            if len(kept):
                kept[group] = shares
        ctx.save_for_backward(query, key, value, mask, total, out, kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mask, total, out, kept = ctx.saved_tensors
        divided = grad / total
        mean = halving_sum(divided * out)
        rows = to_grid(divided, slices=True)
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        for group in _groups(len(query), query.shape[-2] * key.shape[-2]):
            q, k, v, r = (x[group].double() for x in (query, key, value, rows))
            part = query[group], key[group]
            shares = kept[group] if len(kept) else _attention_shares(*part, mask)
            of_value[group] = product_of_doubles(shares.mT.double(), r)
            scores = product_of_doubles(r, v.mT).sub_(mean[group]).mul_(shares)
            scores = to_grid(scores, slices=True).double()
            of_query[group] = product_of_doubles(scores, k)
            of_key[group] = product_of_doubles(scores.mT, q)
        scale = _scale(query)
        return of_query.mul_(scale), of_key.mul_(scale), of_value, None


def _groups(slices: int, scores: int) -> Iterator[slice]:
    """As many slices at a time as have about `_GROUP` scores."""
    size = max(1, _GROUP // max(1, scores))
    for start in range(0, slices, size):
        yield slice(start, start + size)


def _attention_shares(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """exp(score - largest of its row) on the grid of 1; zero where a query does not see a key."""
    scores = product(query, key.transpose(-1, -2)).mul_(_scale(query))
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril_()
    scores.masked_fill_(mask.logical_not(), -math.inf)
    shares = exp(scores.sub_(scores.amax(-1, keepdim=True)))
    return shares.add_(_ONE).sub_(_ONE)


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1])


def _shares(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the last dimension; x less its largest, and the sum of its exponentials."""
    relative = x - x.amax(-1, keepdim=True)
    shares = exp(relative)
    total = halving_sum(shares)
    return shares / total, relative, total


def _apply(function: type[Function], *args: Tensor | None) -> Tensor:
    out: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return out


class ExactOps:
    """learning.ops.Ops with the same bits everywhere. One step at a time."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        # the grid of the last left operand: query, key and value have one in common
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def _grid(self, x: Tensor) -> Tensor:
        if self._last is not None:
            last, version, grid = self._last
            if last() is x and x._version == version:
                return grid
        grid = to_grid(x.detach())
        self._last = weakref.ref(x), x._version, grid
        return grid

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return _apply(_Matmul, a, b, self._grid(a), to_grid(b.detach()))

    def softmax(self, x: Tensor) -> Tensor:
        return _apply(_Softmax, x)

    def silu(self, x: Tensor) -> Tensor:
        return _apply(_Silu, x)

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return _apply(_RmsNorm, x, weight)

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        return _apply(_Embedding, tokens, weight)

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        return _apply(_Weigh, x, weights)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        parts = [part.flatten(0, 1) for part in (query, key, value)]
        return _apply(_Attention, *parts, mask).reshape(query.shape)

    def rotary(self, first: int, time: int, head_width: int) -> tuple[Tensor, Tensor]:
        return turns(first, time, head_width)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _apply(_CrossEntropy, logits, targets)

    def norm(self, vector: Tensor) -> float:
        return norm(vector)
