"""The byte-level Mixture-of-Experts transformer, as a function of its tensors (docs/spec/model.md).

RMSNorm, rotary attention, and in each layer a router that sends a byte to `top_k` of `experts`
SwiGLU experts. Balance comes from router biases that only choose, never weigh (auxiliary-loss-free
balancing, arXiv 2408.15664); the training loop moves them by the loads that `forward` reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chain.errors import InputError
from learning.spec import ModelSpec

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0

Weights = dict[str, Tensor]  # "<shard>.<tensor>" to fp32


def weights_from_shards(spec: ModelSpec, shards: Sequence[bytes]) -> Weights:
    """Tensors with memory of their own, from the data sections in shard order.

    Raises InputError if a section has the wrong size.
    """
    layout = spec.shards()
    if len(shards) != len(layout):
        raise InputError(f"{len(shards)} shards, but this model has {len(layout)}")
    weights: Weights = {}
    for shard, data in zip(layout, shards, strict=True):
        if len(data) != shard.data_bytes:
            raise InputError(
                f"shard {shard.name}: {len(data)} bytes, expected {shard.data_bytes}; "
                "is it of another model?"
            )
        values = np.frombuffer(data, "<f4").astype(np.float32)  # a copy torch may write to
        offsets = shard.offsets()
        for tensor in shard.tensors:
            start, end = offsets[tensor.name]
            part = torch.from_numpy(values[start // 4 : end // 4]).reshape(tensor.shape)
            weights[f"{shard.name}.{tensor.name}"] = part
    return weights


def shards_from_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> list[bytes]:
    """The data sections of these tensors, in shard order."""
    return [
        b"".join(
            weights[f"{shard.name}.{tensor.name}"].detach().numpy().astype("<f4").tobytes()
            for tensor in shard.tensors
        )
        for shard in spec.shards()
    ]


def forward(spec: ModelSpec, weights: Mapping[str, Tensor], tokens: Tensor) -> Forward:
    """Next-byte logits and expert loads. `tokens`: int64 [batch, time], time <= context."""
    batch, time = tokens.shape
    cosine, sine = rotary_tables(time, spec.head_width)
    x = F.embedding(tokens, weights["embed.weight"])
    loads = []
    for i in range(spec.layers):
        at = f"layers.{i}"
        normed = rms_norm(x, weights[f"{at}.router.attention_norm"])
        x = x + _attention(spec, weights, f"{at}.attention", normed, cosine, sine)
        normed = rms_norm(x, weights[f"{at}.router.expert_norm"]).reshape(batch * time, spec.width)
        mixed, load = mixture(spec, weights, at, normed)
        x = x + mixed.reshape(batch, time, spec.width)
        loads.append(load)
    return Forward(rms_norm(x, weights["final.norm"]) @ weights["head.weight"], loads)


class Forward:
    """`logits`: fp32 [batch, time, 256]; `loads`: int64 [experts] for each layer, bytes routed."""

    __slots__ = ("loads", "logits")

    def __init__(self, logits: Tensor, loads: list[Tensor]) -> None:
        self.logits, self.loads = logits, loads


def window_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats for each byte: [batch, time], from logits [batch, time, 256]."""
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    )
    return flat.reshape(targets.shape)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x**2) + 1e-6) * weight over the last dimension (arXiv 1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * weight


def rotary_tables(time: int, head_width: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions from `first` on, fp32 [time, head_width / 2], by way of
    float64 (arXiv 2104.09864)."""
    half = head_width // 2
    frequency = ROTARY_BASE ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.outer(np.arange(first, first + time, dtype=np.float64), frequency)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return torch.from_numpy(cosine), torch.from_numpy(sine)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs (i, i + half) of the last dimension. x: [batch, heads, time, head_width]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), -1)


def _attention(
    spec: ModelSpec, weights: Mapping[str, Tensor], at: str, x: Tensor, cosine: Tensor, sine: Tensor
) -> Tensor:
    batch, time, _ = x.shape

    def heads(name: str) -> Tensor:
        projected = x @ weights[f"{at}.{name}"]
        return projected.reshape(batch, time, spec.heads, spec.head_width).transpose(1, 2)

    query, key = rotate(heads("query"), cosine, sine), rotate(heads("key"), cosine, sine)
    mixed = F.scaled_dot_product_attention(query, key, heads("value"), is_causal=True)
    joined = mixed.transpose(1, 2).reshape(batch, time, spec.width)
    return joined @ weights[f"{at}.output"]


def mixture(
    spec: ModelSpec, weights: Mapping[str, Tensor], at: str, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixture for tokens [n, width] and the tokens each expert got, int64 [experts]."""
    scores = x @ weights[f"{at}.router.weight"]
    biased = scores.detach() + weights[f"{at}.router.bias"].detach()
    chosen = biased.topk(spec.top_k, -1).indices
    gates = torch.softmax(scores.gather(-1, chosen), -1)
    mixed = torch.zeros_like(x)
    counts = []
    for j in range(spec.experts):
        rows, slots = (chosen == j).nonzero(as_tuple=True)
        counts.append(rows.numel())
        if not rows.numel():
            continue
        name = f"{at}.experts.{j}"
        taken = x.index_select(0, rows)
        hidden = F.silu(taken @ weights[f"{name}.gate"]) * (taken @ weights[f"{name}.up"])
        out = (hidden @ weights[f"{name}.down"]) * gates[rows, slots].unsqueeze(-1)
        mixed = mixed.index_add(0, rows, out)
    return mixed, torch.tensor(counts)
