"""The arithmetic of the model, under names that a numeric profile may fill in its own way.

Whatever rounds in more than one way (an order of summation, a transcendental function) is here.
What the model does beside it is moving values, and single IEEE additions and multiplications.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.exact_math import turns

NORM_EPSILON = 1e-6


class Ops(Protocol):
    """Tensors are fp32. All but `rotary` and `norm` are differentiable in them, and none changes
    its arguments."""

    device: torch.device  # where tensors are

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Rows of weight [classes, width], for int64 tokens of any shape."""
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a: [..., n, m], b: [m, p], to [..., n, p]."""
        ...

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        """Each row of x [n, width] times its own of weights [n]."""
        ...

    def softmax(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        ...

    def silu(self, x: Tensor) -> Tensor:
        """x / (1 + exp(-x)), for each element."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / sqrt(mean(x**2) + 1e-6) * weight over the last dimension (arXiv 1910.07467)."""
        ...

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled dot product, all [batch, heads, time, head_width]; keys may be more than queries.

        `mask`: bool [queries, keys], true where a query sees a key; None: causal, as many keys as
        queries.
        """
        ...

    def rotary(self, first: int, time: int, head_width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `time` positions from `first` on, fp32 [time, head_width / 2]
        (arXiv 2104.09864)."""
        ...

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """-log softmax(logits)[target], in nats: [n] from logits [n, classes], int64 [n]."""
        ...

    def norm(self, vector: Tensor) -> float:
        """Euclidean length of a vector."""
        ...


class NativeOps:
    """torch's own: as fast as the machine can, the same bits within one numeric profile."""

    device = torch.device("cpu")

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(tokens, weight)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        return x * weights[:, None]

    def softmax(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * weight

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )

    def rotary(self, first: int, time: int, head_width: int) -> tuple[Tensor, Tensor]:
        # not numpy's: its vector code differs from one processor to the next, whatever torch is
        # held to
        return turns(first, time, head_width)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")

    def norm(self, vector: Tensor) -> float:
        return float(torch.linalg.vector_norm(vector))


NATIVE: Ops = NativeOps()
