"""The byte-level Mixture-of-Experts transformer, as a function of its tensors (docs/spec/model.md).

RMSNorm, rotary attention, and in each layer a router that sends a byte to `top_k` of `experts`
SwiGLU experts. Balance comes from router biases that only choose, never weigh (auxiliary-loss-free
balancing, arXiv 2408.15664); the training loop moves them by the loads that `forward` reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chain.errors import InputError
from learning.ops import NATIVE, Ops
from learning.spec import ModelSpec

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


def forward(
    spec: ModelSpec, weights: Mapping[str, Tensor], tokens: Tensor, ops: Ops = NATIVE
) -> Forward:
    """Next-byte logits and expert loads. `tokens`: int64 [batch, time], time <= context."""
    batch, time = tokens.shape
    turns = ops.rotary(0, time, spec.head_width)
    x = F.embedding(tokens, weights["embed.weight"])
    loads = []
    for i in range(spec.layers):
        at = f"layers.{i}"
        normed = ops.rms_norm(x, weights[f"{at}.router.attention_norm"])
        x = x + attend(weights, at, *project(spec, weights, at, normed, turns, ops), None, ops)
        normed = ops.rms_norm(x, weights[f"{at}.router.expert_norm"])
        mixed, load = mixture(spec, weights, at, normed.reshape(batch * time, spec.width), ops)
        x = x + mixed.reshape(batch, time, spec.width)
        loads.append(load)
    normed = ops.rms_norm(x, weights["final.norm"])
    return Forward(ops.matmul(normed, weights["head.weight"]), loads)


class Forward:
    """`logits`: fp32 [batch, time, 256]; `loads`: int64 [experts] for each layer, bytes routed."""

    __slots__ = ("loads", "logits")

    def __init__(self, logits: Tensor, loads: list[Tensor]) -> None:
        self.logits, self.loads = logits, loads


def window_cross_entropy(logits: Tensor, targets: Tensor, ops: Ops = NATIVE) -> Tensor:
    """Cross-entropy in nats for each byte: [batch, time], from logits [batch, time, 256]."""
    flat = ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return flat.reshape(targets.shape)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs (i, i + half) of the last dimension. x: [batch, heads, time, head_width]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), -1)


def project(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    at: str,
    x: Tensor,
    turns: tuple[Tensor, Tensor],
    ops: Ops,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of x [batch, time, width], by heads: [batch, heads, time, head_width].
    `turns`: the positions' cosines and sines."""
    batch, time, _ = x.shape

    def heads(name: str) -> Tensor:
        projected = ops.matmul(x, weights[f"{at}.attention.{name}"])
        return projected.reshape(batch, time, spec.heads, spec.head_width).transpose(1, 2)

    return rotate(heads("query"), *turns), rotate(heads("key"), *turns), heads("value")


def attend(
    weights: Mapping[str, Tensor],
    at: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    ops: Ops,
) -> Tensor:
    """What the heads found, joined and projected: [batch, time, width]."""
    mixed = ops.attention(query, key, value, mask).transpose(1, 2)
    return ops.matmul(mixed.reshape(*mixed.shape[:2], -1), weights[f"{at}.attention.output"])


def mixture(
    spec: ModelSpec, weights: Mapping[str, Tensor], at: str, x: Tensor, ops: Ops
) -> tuple[Tensor, Tensor]:
    """Mixture for tokens [n, width] and the tokens each expert got, int64 [experts]."""
    scores = ops.matmul(x, weights[f"{at}.router.weight"])
    biased = scores.detach() + weights[f"{at}.router.bias"].detach()
    chosen = largest(biased, spec.top_k)
    shares = ops.softmax(scores.gather(-1, chosen))
    return dispatch(weights, at, x, chosen, shares, spec.experts, ops)


def largest(scores: Tensor, count: int) -> Tensor:
    """Columns of the `count` largest of each row, largest first; ties: the lower column (which
    `topk` does not promise)."""
    left, found = scores.clone(), []
    for _ in range(count):
        found.append(left.argmax(-1, keepdim=True))
        left.scatter_(-1, found[-1], -math.inf)
    return torch.cat(found, -1)


def dispatch(
    weights: Mapping[str, Tensor],
    at: str,
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    experts: int,
    ops: Ops,
) -> tuple[Tensor, Tensor]:
    """Each token's experts, weighed: sum over s of shares[:, s] * expert chosen[:, s] (x).

    The pairs of token and expert are put in order of the experts once, so each expert finds its
    tokens in one piece; a token's sum goes from zero in ascending order of its experts.
    """
    which = chosen.reshape(-1)
    order = which.argsort(stable=True)
    loads = torch.bincount(which, minlength=experts)
    rows = order.div(chosen.shape[1], rounding_mode="floor")
    outs = []
    for j, taken in enumerate(torch.split(x.index_select(0, rows), loads.tolist())):
        if len(taken):
            name = f"{at}.experts.{j}"
            gate, up, down = (weights[f"{name}.{part}"] for part in ("gate", "up", "down"))
            hidden = ops.silu(ops.matmul(taken, gate)) * ops.matmul(taken, up)
            outs.append(ops.matmul(hidden, down))
    out = torch.cat(outs) * shares.reshape(-1).index_select(0, order).unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, rows, out), loads
