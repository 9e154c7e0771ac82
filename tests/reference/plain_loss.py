"""Holdout loss of an exported model in plain torch, without this project's packages
(docs/spec/model.md).

`python tests/reference/plain_loss.py MODEL.safetensors HOLDOUT` prints nats per byte.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def load(path: str) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The model's shape and its tensors."""
    with safe_open(path, framework="pt") as file:
        spec = json.loads(file.metadata()["blyan.model"])
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


def attention(spec: dict[str, int], w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
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


def experts(spec: dict[str, int], w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    """Every expert on every byte; the shares of those that were not chosen are zero."""
    scores = x @ w[at + "router.weight"]
    chosen = torch.topk(scores + w[at + "router.bias"], spec["top_k"]).indices
    gates = torch.softmax(scores.gather(-1, chosen), -1)
    total = torch.zeros_like(x)
    for j in range(spec["experts"]):
        gate, up, down = (w[f"{at}experts.{j}.{part}"] for part in ("gate", "up", "down"))
        share = (gates * (chosen == j)).sum(-1, keepdim=True)
        total += share * ((torch.nn.functional.silu(x @ gate) * (x @ up)) @ down)
    return total


def logits(spec: dict[str, int], w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    x = w["embed.weight"][tokens]
    for i in range(spec["layers"]):
        at = f"layers.{i}."
        normed = norm(x, w[at + "router.attention_norm"])
        x = x + attention(spec, w, at + "attention.", normed)
        x = x + experts(spec, w, at, norm(x, w[at + "router.expert_norm"]))
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
