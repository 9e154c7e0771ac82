"""Holdout loss of an exported model in plain torch, without this project's packages
(docs/spec/model.md).

`python tests/reference/plain_loss.py MODEL.safetensors HOLDOUT` prints nats per byte.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


def load(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The model's shape and its tensors."""
    with safe_open(path, framework="pt") as file:
        spec = {"routing": "top_k", "shared_experts": 0}
        spec |= json.loads(file.metadata()["blyan.model"])
        return spec, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def rotate(x: Tensor) -> Tensor:
    """x: [time, heads, head_width]; element i turns with element i + head_width / 2."""
    time, _, width = x.shape
    half = width // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = torch.arange(time, dtype=torch.float64) * 10000.0 ** (-i / half)
        c, s = torch.cos(angle).float()[:, None], torch.sin(angle).float()[:, None]
        a, b = x[..., i], x[..., i + half]
        out[..., i], out[..., i + half] = a * c - b * s, a * s + b * c
    return out


def attention(spec: dict[str, Any], w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    time, heads = x.shape[0], spec["heads"]
    width = spec["width"] // heads
    q = rotate((x @ w[at + "query"]).view(time, heads, width))
    k = rotate((x @ w[at + "key"]).view(time, heads, width))
    v = (x @ w[at + "value"]).view(time, heads, width)
    mask = torch.full((time, time), float("-inf")).triu(1)
    out = []
    for h in range(heads):
        weights = torch.softmax(q[:, h] @ k[:, h].T / width**0.5 + mask, -1)
        out.append(weights @ v[:, h])
    return torch.cat(out, -1) @ w[at + "output"]


def mix(x: int) -> int:
    """The finalizer of MurmurHash3."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)


def hashed(layer: int, before: int, byte: int, experts: int, count: int) -> list[int]:
    """The experts of a byte after another: drawn without putting back."""
    left, start = list(range(experts)), mix(65536 * layer + 256 * before + byte)
    return [left.pop(mix((start + j) % 2**32) % len(left)) for j in range(count)]


def shares(
    spec: dict[str, Any], w: dict[str, Tensor], layer: int, x: Tensor, tokens: Tensor
) -> Tensor:
    """How much each expert counts for each byte: [time, experts]."""
    out = torch.zeros(len(x), spec["experts"])
    if spec["routing"] == "hash":
        before = [0, *tokens.tolist()]
        for i, byte in enumerate(tokens.tolist()):
            found = hashed(layer, before[i], byte, spec["experts"], spec["top_k"])
            out[i, found] = 1 / spec["top_k"]
        return out
    scores = x @ w[f"layers.{layer}.router.weight"]
    chosen = torch.topk(scores + w[f"layers.{layer}.router.bias"], spec["top_k"]).indices
    return out.scatter(-1, chosen, torch.softmax(scores.gather(-1, chosen), -1))


def expert(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate, up, down = (w[f"{name}.{part}"] for part in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down


def experts(
    spec: dict[str, Any], w: dict[str, Tensor], layer: int, x: Tensor, tokens: Tensor
) -> Tensor:
    """Every expert on every byte; the shares of those that were not chosen are zero."""
    share = shares(spec, w, layer, x, tokens)
    total = torch.zeros_like(x)
    for j in range(spec["experts"]):
        total += share[:, j : j + 1] * expert(w, f"layers.{layer}.experts.{j}", x)
    for j in range(spec["shared_experts"]):
        total += expert(w, f"layers.{layer}.shared.{j}", x)
    return total


def logits(spec: dict[str, Any], w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    x = w["embed.weight"][tokens]
    for i in range(spec["layers"]):
        at = f"layers.{i}."
        normed = norm(x, w[at + "router.attention_norm"])
        x = x + attention(spec, w, at + "attention.", normed)
        x = x + experts(spec, w, i, norm(x, w[at + "router.expert_norm"]), tokens)
    return norm(x, w["final.norm"]) @ w["head.weight"]


def holdout_loss(model: str, holdout: str) -> float:
    """Mean cross-entropy in nats per byte over at most 512 windows."""
    spec, w = load(model)
    text = torch.tensor(list(Path(holdout).read_bytes()))
    context = spec["context"]
    count = (len(text) - 1) // context
    most = min(count, 512)
    total = 0.0
    for j in range(most):
        start = j * count // most * context
        window = text[start : start + context + 1]
        loss = torch.nn.functional.cross_entropy(logits(spec, w, window[:-1]), window[1:])
        total += loss.item()
    return total / most


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(holdout_loss(sys.argv[1], sys.argv[2]))
