"""The arithmetic of the `bf16` profiles: products in bf16, all else in fp32
(docs/spec/numeric-profiles.md). On a GPU where torch finds one, else on the processor.

What a GPU runs here has been run on none by this project's tests: they have a processor alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from learning.ops import NativeOps


def best_device() -> torch.device:
    """The first GPU, if torch can use one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


class Bf16Ops(NativeOps):
    """Operands of products are rounded to bf16, and so are their gradients; sums are the kernel's
    own, results and weights fp32."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or best_device()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.bfloat16() @ b.bfloat16()).float()

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        parts = query.bfloat16(), key.bfloat16(), value.bfloat16()
        if self.device.type == "cpu":
            return super().attention(*parts, mask).float()
        with sdpa_kernel(SDPBackend.MATH):  # the backward passes of the fused ones add in any order
            return F.scaled_dot_product_attention(
                *parts, attn_mask=mask, is_causal=mask is None
            ).float()

    def rotary(self, first: int, time: int, head_width: int) -> tuple[Tensor, Tensor]:
        cosine, sine = super().rotary(first, time, head_width)
        return cosine.to(self.device), sine.to(self.device)
