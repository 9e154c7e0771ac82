"""The byte-level Mixture-of-Experts transformer, as a function of its tensors (docs/spec/model.md).

RMSNorm, rotary attention, and in each layer a router that sends a byte to `top_k` of `experts`
SwiGLU experts, beside experts that every byte passes. Balance comes from router biases that only
choose, never weigh (auxiliary-loss-free balancing, arXiv 2408.15664), or from a loss of its own;
the training loop makes both of the loads and scores that `forward` reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chain.errors import InputError
from learning.dropout import ATTENTION, MIXTURE, Masks
from learning.held import Held, layout_of
from learning.ops import NATIVE, Ops
from learning.routing import Route, byte_pairs, route
from learning.spec import ModelSpec, expert_name

Weights = dict[str, Tensor]  # "<shard>.<tensor>" to fp32


def weights_from_shards(
    spec: ModelSpec, shards: Sequence[bytes], held: Held | None = None
) -> Weights:
    """Tensors with memory of their own, from the data sections in shard order.

    Raises InputError if a section has the wrong size.
    """
    layout = layout_of(spec, held)
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


def shards_from_weights(
    spec: ModelSpec, weights: Mapping[str, Tensor], held: Held | None = None
) -> list[bytes]:
    """The data sections of these tensors, in shard order."""
    return [
        b"".join(
            weights[f"{shard.name}.{tensor.name}"].detach().numpy().astype("<f4").tobytes()
            for tensor in shard.tensors
        )
        for shard in layout_of(spec, held)
    ]


class Routed(NamedTuple):
    """What a layer's router did: `loads` int64 [experts], the bytes each got; `scores` fp32
    [n, experts held], None without a learned router."""

    loads: Tensor
    scores: Tensor | None


class Forward(NamedTuple):
    """`logits`: fp32 [batch, time, 256]; `routed`: of each layer."""

    logits: Tensor
    routed: list[Routed]


def forward(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    ops: Ops = NATIVE,
    held: Held | None = None,
    *,
    recompute: bool = False,
    masks: Masks | None = None,
) -> Forward:
    """Next-byte logits and expert loads. `tokens`: int64 [batch, time], time <= context.
    `held`: the part of the model that `weights` are. `recompute`: keep what enters each layer
    alone; the backward pass computes the rest again, to the same bits. `masks`: of these windows,
    while they are trained on with dropout."""
    time = tokens.shape[1]
    turns = ops.rotary(0, time, spec.head_width)
    pairs = byte_pairs(tokens, torch.zeros_like(tokens[:, 0])).reshape(-1)
    x = ops.embedding(tokens, weights["embed.weight"])
    routed = []
    for i in range(spec.layers):

        def layer(x: Tensor, i: int = i) -> tuple[Tensor, Routed]:
            at = f"layers.{i}"
            normed = ops.rms_norm(x, weights[f"{at}.router.attention_norm"])
            out = attend(weights, at, *project(spec, weights, at, normed, turns, ops), None, ops)
            x = x + _dropped(out, masks, i, ATTENTION)
            normed = ops.rms_norm(x, weights[f"{at}.router.expert_norm"]).reshape(-1, spec.width)
            mixed, found = mixture(spec, weights, i, normed, pairs, ops, held)
            return x + _dropped(mixed.reshape(x.shape), masks, i, MIXTURE), found

        x, found = _again(layer, x) if recompute else layer(x)
        routed.append(found)
    normed = ops.rms_norm(x, weights["final.norm"])
    return Forward(ops.matmul(normed, weights["head.weight"]), routed)


def _dropped(x: Tensor, masks: Masks | None, layer: int, branch: int) -> Tensor:
    """A branch's output [batch, time, width] after dropout."""
    if masks is None:
        return x
    batch, time, width = x.shape
    factors = masks.factors(layer, branch, (batch, time, width))
    return x * torch.from_numpy(factors).to(x.device)


def _again(layer: Callable[[Tensor], tuple[Tensor, Routed]], x: Tensor) -> tuple[Tensor, Routed]:
    """A layer whose inner values are dropped, and computed again for its backward pass
    (arXiv 1604.06174). Its masks are those of its place, however often it is computed."""
    out: tuple[Tensor, Routed] = checkpoint(
        layer, x, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    return out


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
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    layer: int,
    x: Tensor,
    pairs: Tensor,
    ops: Ops = NATIVE,
    held: Held | None = None,
) -> tuple[Tensor, Routed]:
    """Mixture for bytes x [n, width]. `pairs` int64 [n]: each byte and the one before it."""
    here = held.experts[layer] if held is not None else None
    way = route(spec, weights, layer, x, pairs, here, ops)
    mixed, loads = dispatch(spec, weights, layer, x, way, here, ops)
    for j in range(spec.shared_experts):
        mixed = mixed + _expert(weights, f"layers.{layer}.shared.{j}", x, ops)
    return mixed, Routed(loads, way.scores)


def dispatch(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    layer: int,
    x: Tensor,
    way: Route,
    held: tuple[int, ...] | None,
    ops: Ops,
) -> tuple[Tensor, Tensor]:
    """Each byte's experts, weighed; and the bytes that each expert got, int64 [experts].

    The pairs of byte and expert are put in order of the experts once, so each expert finds its
    bytes in one piece; a byte's sum goes from zero in ascending order of its experts. An expert
    that is not held adds nothing.
    """
    which = way.chosen.reshape(-1)
    order = which.argsort(stable=True)
    if held is not None:
        here = torch.zeros(spec.experts, dtype=torch.bool, device=x.device)
        here[list(held)] = True
        order = order[here[which[order]]]
    loads = torch.bincount(which[order], minlength=spec.experts)
    rows = order.div(way.chosen.shape[1], rounding_mode="floor")
    outs = [
        _expert(weights, expert_name(layer, j), taken, ops)
        for j, taken in enumerate(torch.split(x.index_select(0, rows), loads.tolist()))
        if len(taken)
    ]
    mixed = torch.zeros_like(x)
    if outs:
        shares = way.shares.reshape(-1).index_select(0, order)
        mixed = mixed.index_add(0, rows, ops.weigh(torch.cat(outs), shares))
    return mixed, loads


def _expert(weights: Mapping[str, Tensor], name: str, x: Tensor, ops: Ops) -> Tensor:
    gate, up, down = (weights[f"{name}.{part}"] for part in ("gate", "up", "down"))
    return ops.matmul(ops.silu(ops.matmul(x, gate)) * ops.matmul(x, up), down)
