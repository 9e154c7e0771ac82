"""Training in the `exact` profile, slowly: numpy, products of integers, every gradient written out
(docs/spec/numeric-profiles.md, training.md). Shares no code with the project.

Run it to write the vectors: `python -m tests.reference.exact_ref`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference import dropout_ref
from tests.reference.data_ref import initial_shards, shard_tensors, stream
from tests.reference.exact_numbers import (
    A,
    F,
    exp,
    flip,
    fold,
    grid,
    last_fold,
    length,
    log,
    product,
    shares,
    turn,
)
from tests.reference.merkle_ref import h, root, shard_root, u64

VECTORS = Path(__file__).parent.parent / "vectors" / "learning" / "exact.json"
# --- layers: each returns its result and what gives its gradients --------------------------


def rms(x: A, w: A) -> tuple[A, Any]:
    n = F(1 / x.shape[-1])
    inverse = F(1) / np.sqrt(last_fold(x * x) * n + F(1e-6))
    ratio = x * inverse

    def back(g: A) -> tuple[A, A]:
        share = last_fold(g * w * ratio) * n
        return (g * w - ratio * share) * inverse, fold((g * ratio).reshape(-1, len(w)))

    return ratio * w, back


def dense(x: A, w: A) -> tuple[A, Any]:
    a, b = grid(x), grid(w)

    def back(g: A) -> tuple[A, A]:
        c = grid(g)
        return product(c, flip(b)), product(flip(a), c)

    return product(a, b), back


def silu(x: A) -> tuple[A, Any]:
    s = F(1) / (exp(-x) + F(1))
    return x * s, lambda g: (((F(1) - s) * x + F(1)) * s) * g


def head(q: A, k: A, v: A) -> tuple[A, Any]:
    """Attention of one head of one window: [time, head_width]."""
    scale = F(1 / math.sqrt(q.shape[1]))
    a, b, c = grid(q), grid(k), grid(v)
    scores = product(a, flip(b)) * scale
    hidden = np.triu(np.ones(scores.shape, bool), 1)
    scores[hidden] = -np.inf
    e = np.rint(exp(scores - scores.max(-1, keepdims=True)).astype(np.float64) * 2.0**21)
    seen, p = (e.astype(np.int64), -21), (e * 2.0**-21).astype(F)
    total = (e.sum(-1, keepdims=True) * 2.0**-21).astype(F)
    out = product(seen, c) / total

    def back(g: A) -> tuple[A, A, A]:
        g = g / total
        mean = last_fold(g * out)
        r = grid(g)
        d = grid((product(r, flip(c)) - mean) * p)
        return product(d, b) * scale, product(flip(d), a) * scale, product(flip(seen), r)

    return out, back


def balanced(scores: A, loads: A, weight: float) -> A:
    """Gradient of the balance loss: products with ones, and with the loads' parts."""
    tokens, experts = scores.shape
    parts = (loads.astype(np.float64) * experts / (loads.sum() * tokens)).astype(F)
    g = product(grid(np.full((1, 1), F(weight))), flip(grid(parts[:, None])))
    g = product(flip(grid(np.ones((1, tokens), F))), grid(g))
    p = shares(scores)[0]
    return (g - last_fold(g * p)) * p


def mix(x: int) -> int:
    x %= 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def drawn(m: dict[str, Any], at: str, before: int, byte: int) -> list[int]:
    """Experts by a hash of two bytes, without putting back."""
    start = mix(65536 * int(at.split(".")[1]) + 256 * before + byte)
    left = list(range(m["experts"]))
    return [left.pop(mix(start + j) % len(left)) for j in range(m["top_k"])]


# --- the model -----------------------------------------------------------------------------


class Model:
    def __init__(self, m: dict[str, Any], weights: dict[str, A], balance: float) -> None:
        self.m, self.w, self.balance = m, weights, balance
        self.factors: Callable[[int, int, int], A] | None = None
        self.g = {name: np.zeros_like(value) for name, value in weights.items()}
        half = m["width"] // m["heads"] // 2
        turns = [[turn(p, i, half) for i in range(half)] for p in range(m["context"])]
        self.cos = np.array([[t[0] for t in row] for row in turns], F)
        self.sin = np.array([[t[1] for t in row] for row in turns], F)

    def use(self, layer: Any, x: A, name: str) -> tuple[A, Any]:
        """A layer with a weight, whose gradient is kept."""
        y, back = layer(x, self.w[name])

        def backward(g: A) -> A:
            of_x, self.g[name] = back(g)
            return of_x

        return y, backward

    def attention(self, at: str, x: A) -> tuple[A, Any]:
        """x: [windows, time, width]."""
        n, t, w = x.shape
        heads, half = self.m["heads"], w // self.m["heads"] // 2
        flat, backs, parts = x.reshape(n * t, w), {}, []
        for name in ("query", "key", "value"):
            y, backs[name] = self.use(dense, flat, f"{at}.{name}")
            y = y.reshape(n, t, heads, 2 * half).transpose(0, 2, 1, 3)
            parts.append(y if name == "value" else self.rotate(y, half))
        mixed, inner = np.zeros_like(parts[0]), {}
        for i in np.ndindex(n, heads):
            mixed[i], inner[i] = head(*(part[i] for part in parts))
        joined = mixed.transpose(0, 2, 1, 3).reshape(n * t, w)
        out, backs["output"] = self.use(dense, joined, f"{at}.output")

        def back(g: A) -> A:
            g = backs["output"](g.reshape(n * t, w))
            g = g.reshape(n, t, heads, 2 * half).transpose(0, 2, 1, 3)
            dq, dk, dv = (np.zeros_like(mixed) for _ in range(3))
            for i in np.ndindex(n, heads):
                dq[i], dk[i], dv[i] = inner[i](g[i])
            dq, dk = (self.rotate_back(d, half) for d in (dq, dk))
            q, k, v = (d.transpose(0, 2, 1, 3).reshape(n * t, w) for d in (dq, dk, dv))
            of_v, of_k, of_q = backs["value"](v), backs["key"](k), backs["query"](q)
            return ((of_v + of_k) + of_q).reshape(x.shape)

        return out.reshape(x.shape), back

    def rotate(self, x: A, half: int) -> A:
        a, b = x[..., :half], x[..., half:]
        turned = (a * self.cos - b * self.sin, a * self.sin + b * self.cos)
        return np.concatenate(turned, -1)

    def rotate_back(self, g: A, half: int) -> A:
        a, b = g[..., :half], g[..., half:]
        return np.concatenate((a * self.cos + b * self.sin, b * self.cos - a * self.sin), -1)

    def expert(self, name: str, x: A) -> tuple[A, Any]:
        """The gradient's two parts: by way of `up`, and of `gate`."""
        a, of_a = self.use(dense, x, f"{name}.gate")
        u, of_u = self.use(dense, x, f"{name}.up")
        s, of_s = silu(a)
        y, of_y = self.use(dense, s * u, f"{name}.down")

        def back(g: A) -> tuple[A, A]:
            hidden = of_y(g)
            return of_u(hidden * s), of_a(of_s(hidden * u))

        return y, back

    def mixture(self, at: str, x: A, pairs: A) -> tuple[A, Any, A]:
        """x: [bytes, width]; pairs: the byte before each and it; also how many each expert got."""
        m, n = self.m, len(x)
        is_learned = m.get("routing", "top_k") == "top_k"
        if is_learned:
            scores, of_scores = self.use(dense, x, f"{at}.router.weight")
            order = np.argsort(-(scores + self.w[f"{at}.router.bias"]), -1, kind="stable")
            chosen = order[:, : m["top_k"]]
            gates = shares(np.take_along_axis(scores, chosen, 1))[0]
        else:
            chosen = np.array([drawn(m, at, int(a), int(b)) for a, b in pairs])
            gates = np.full(chosen.shape, F(1 / m["top_k"]), F)
        out, loads, runs = np.zeros_like(x), [], []
        for j in range(m["experts"]):
            rows, slots = np.nonzero(chosen == j)
            loads.append(len(rows))
            if not len(rows):
                continue
            name = f"{at}.experts.{j}"
            y, of_y = self.expert(name, x[rows])
            out[rows] += y * gates[rows, slots][:, None]
            runs.append((rows, slots, of_y, y))
        always = []
        for j in range(m.get("shared_experts", 0)):
            y, of_y = self.expert(f"{at}.shared.{j}", x)
            out = out + y
            always.append(of_y)

        def back(g: A) -> A:
            total, of_gates = np.zeros_like(x), np.zeros_like(gates)
            for rows, slots, of_y, y in runs:
                of_gates[rows, slots] = last_fold(g[rows] * y)[:, 0]
                of_up, of_gate = of_y(g[rows] * gates[rows, slots][:, None])
                total[rows] += of_up + of_gate
            parts = [part for of_y in reversed(always) for part in of_y(g)] + [total]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            if not is_learned:
                return total
            inner = (of_gates - last_fold(of_gates * gates)) * gates
            spread = np.zeros_like(scores)
            np.put_along_axis(spread, chosen, inner, 1)
            if self.balance:
                spread = spread + balanced(scores, np.array(loads), self.balance)
            return total + of_scores(spread)

        assert n == sum(loads) // m["top_k"]
        return out, back, np.array(loads)

    def dropout(self, layer: int, branch: int, y: A, inner: Any) -> tuple[A, Any]:
        if self.factors is None:
            return y, inner
        factors = self.factors(layer, branch, y.size).reshape(y.shape)

        def back(g: A) -> A:
            of_y: A = inner(g.reshape(y.shape) * factors)
            return of_y

        return y * factors, back

    def step(self, tokens: A, pieces: int) -> tuple[float, list[A]]:
        """Gradients into `g`; a piece's part of the mean loss, and loads by layer. tokens:
        [windows, context + 1], of which a batch has `pieces` times as many."""
        ids, targets = tokens[:, :-1], tokens[:, 1:].ravel()
        for value in self.g.values():
            value[...] = 0
        before = np.concatenate([np.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
        pairs = np.stack([before.ravel(), ids.ravel()], 1)
        x = self.w["embed.weight"][ids]
        backs, loads = [], []
        for i in range(self.m["layers"]):
            at = f"layers.{i}"
            y, norm1 = self.use(rms, x, f"{at}.router.attention_norm")
            y, attention = self.dropout(i, 0, *self.attention(f"{at}.attention", y))
            x = x + y
            y, norm2 = self.use(rms, x, f"{at}.router.expert_norm")
            y, mixture, load = self.mixture(at, y.reshape(-1, x.shape[-1]), pairs)
            y, mixture = self.dropout(i, 1, y, mixture)
            x = x + y.reshape(x.shape)
            loads.append(load)
            backs += [(norm1, attention), (norm2, mixture)]
        y, norm = self.use(rms, x, "final.norm")
        logits, of_logits = self.use(dense, y.reshape(-1, x.shape[-1]), "head.weight")
        p, relative, total = shares(logits)
        count = len(targets) * pieces
        losses = [
            log(float(total[k, 0])) - float(relative[k, target]) for k, target in enumerate(targets)
        ]
        p[np.arange(len(targets)), targets] -= F(1)
        g = norm(of_logits(p * F(1 / count)).reshape(x.shape))
        for inner_norm, layer in reversed(backs):
            inner = layer(g.reshape(-1, g.shape[-1]) if layer.__name__ == "back" else g)
            g = g + inner_norm(inner.reshape(g.shape))
        ints, e = grid(g.reshape(-1, g.shape[-1]))
        embed = np.zeros(self.w["embed.weight"].shape, np.int64)
        np.add.at(embed, ids.ravel(), ints)
        self.g["embed.weight"] = (embed * 2.0**e).astype(F)
        return sum(losses) / count, loads


# --- the optimizer ---------------------------------------------------------------------------


def power(base: float, exponent: int) -> float:
    result = 1.0
    while exponent:
        if exponent % 2:
            result *= base
        base, exponent = base * base, exponent // 2
    return result


def mask(key: bytes, ppm: int, step: int, first: int, layer: int, branch: int, count: int) -> A:
    """Factors of `count` elements of a batch from number `first` on."""
    elements = range(first, first + count)
    is_dropped = np.array(dropout_ref.dropped(key, ppm, step, layer, branch, elements))
    return np.where(is_dropped, F(0), F(dropout_ref.kept(ppm)))


def train(m: dict[str, Any], rule: dict[str, int], batches: A, key: bytes = b"") -> dict[str, Any]:
    """The state after all batches [steps, windows, context + 1], from genesis weights. `key`: of
    the masks, if the rule has dropout."""
    names, sizes = [], []
    for shard, tensors in named_tensors(m):
        names += [(f"{shard}.{name}", shape) for name, shape in tensors]
        sizes.append(sum(4 * math.prod(shape) for _, shape in tensors))
    flat = np.frombuffer(b"".join(initial_shards(m)), "<f4").astype(F)
    first, second = np.zeros_like(flat), np.zeros_like(flat)
    losses = []
    for u, batch in enumerate(batches, 1):
        views, start = {}, 0
        for name, shape in names:
            end = start + math.prod(shape)
            views[name] = flat[start:end].reshape(shape)
            start = end
        size = rule.get("micro_batch", 0) or rule["batch"]
        pieces = rule["batch"] // size
        model = Model(m, views, rule.get("aux_loss_ppm", 0) / 1_000_000 / pieces)
        losses.append(0.0)
        gradient = np.zeros_like(flat)
        loads = [np.zeros(m["experts"], np.int64) for _ in range(m["layers"])]
        for piece in range(pieces):
            if ppm := rule.get("dropout_ppm", 0):
                before = piece * size * m["context"] * m["width"]
                model.factors = partial(mask, key, ppm, u - 1, before)
            loss, found = model.step(batch[piece * size : (piece + 1) * size], pieces)
            losses[-1] += loss
            gradient = gradient + np.concatenate([model.g[name].ravel() for name, _ in names])
            loads = [a + b for a, b in zip(loads, found, strict=True)]
        is_matrix = np.concatenate(
            [np.full(math.prod(shape), len(shape) > 1) for _, shape in names]
        )
        b1, b2 = rule["beta1_ppm"] / 1_000_000, rule["beta2_ppm"] / 1_000_000
        rate = rule["learning_rate_nano"] * 1e-9
        if u < rule["warmup_steps"]:
            rate *= u / rule["warmup_steps"]
        norm, clip = float(length(gradient)), rule["clip_ppm"] / 1_000_000
        if norm > clip:
            gradient = gradient * F(clip / norm)
        first = first * F(b1) + gradient * F(1 - b1)
        second = second * F(b2) + gradient * gradient * F(1 - b2)
        spread = np.sqrt(second * F(1 / (1 - power(b2, u)))) + F(rule["epsilon_nano"] * 1e-9)
        decay = rate * rule["weight_decay_ppm"] / 1_000_000
        if decay:
            flat = np.where(is_matrix, flat - flat * F(decay), flat)
        flat = flat - first * F(rate / (1 - power(b1, u))) / spread
        start = 0
        for name, shape in names:
            end = start + math.prod(shape)
            if name.endswith("router.bias"):
                load = loads[int(name.split(".")[1])]
                gap = np.sign(load.sum() - load * m["experts"]).astype(F)
                flat[start:end] += gap * F(rule["bias_rate_ppm"] / 1_000_000)
            start = end
    assert flat.dtype == first.dtype == second.dtype == F
    steps = len(batches)
    draws = steps * rule["batch"] * 2
    counters = h("train-state", u64(steps) + u64(steps) + u64(draws))
    roots = [vector_root(part, sizes) for part in (flat, first, second)]
    return {"losses": losses, "state": root("list", [*roots, counters], 0).hex()}


def vector_root(vector: A, sizes: list[int]) -> bytes:
    data, ends = vector.tobytes(), np.cumsum([0, *sizes])
    shards = [data[ends[i] : ends[i + 1]] for i in range(len(sizes))]
    return root("model", [shard_root(shard) for shard in shards], 0)


def named_tensors(m: dict[str, Any]) -> list[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    """data_ref's tensors, with the shards' whole names."""
    names = ["embed"]
    for i in range(m["layers"]):
        names += [f"layers.{i}.attention", f"layers.{i}.router"]
        names += [f"layers.{i}.shared.{j}" for j in range(m.get("shared_experts", 0))]
        names += [f"layers.{i}.experts.{j}" for j in range(m["experts"])]
    names += ["head", "final"]
    return [(n, tensors) for n, (_, tensors) in zip(names, shard_tensors(m), strict=True)]


# --- vectors ---------------------------------------------------------------------------------

MODEL = {
    "layers": 2,
    "width": 24,
    "heads": 2,
    "experts": 4,
    "top_k": 3,
    "expert_width": 20,
    "context": 15,
    "init_seed": "exact",
}
RULE = {
    "steps": 3,
    "segment_steps": 1,
    "batch": 5,
    "learning_rate_nano": 10_000_000,
    "warmup_steps": 2,
    "beta1_ppm": 900_000,
    "beta2_ppm": 950_000,
    "epsilon_nano": 10,
    "weight_decay_ppm": 100_000,
    "clip_ppm": 1_000_000,
    "bias_rate_ppm": 1000,
    "error_feedback_ppm": 950_000,
    "densities": [256],
}


CONFORMANCE_MODEL = {
    "width": 96,
    "heads": 4,
    "top_k": 2,
    "expert_width": 128,
    "context": 64,
    "init_seed": "conformance",
}
CONFORMANCE_RULE = {"steps": 2, "batch": 8}
SHARED = {"shared_experts": 2}, {"aux_loss_ppm": 20_000, "steps": 2}
HASHED = {"routing": "hash", "shared_experts": 1}, {"steps": 2}
PIECES = {}, {"batch": 6, "micro_batch": 2, "aux_loss_ppm": 20_000, "steps": 2}
# widths and pieces of which some begin within a word of the masks
DROPOUT = (
    {"width": 18, "heads": 3, "shared_experts": 1},
    {"batch": 6, "micro_batch": 3, "dropout_ppm": 150_000, "steps": 2},
)


def text(m: dict[str, Any], rule: dict[str, Any]) -> A:
    """Small letters: uint8 [steps, batch, context + 1]."""
    shape = (rule["steps"], rule["batch"], m["context"] + 1)
    drawn = stream(h("prf", b"conformance"), "text", length=math.prod(shape))
    return (np.frombuffer(drawn, np.uint8) % 26 + 97).astype(np.uint8).reshape(shape)


def number_vectors() -> list[dict[str, str]]:
    """exp of fp32 and its result, as bits."""
    x = np.array([-100, -87, -20.5, -1, -0.3466, -1e-8, 0, 1e-8, 0.3466, 0.7, 3, 87, 100], F)
    return [
        {"x": a.tobytes().hex(), "exp": e.tobytes().hex()} for a, e in zip(x, exp(x), strict=True)
    ]


def vectors() -> dict[str, Any]:
    changes = [({}, {}), (CONFORMANCE_MODEL, CONFORMANCE_RULE), SHARED, HASHED, PIECES]
    cases = [(MODEL | m, RULE | rule) for m, rule in changes]
    model, rule = (old | new for old, new in zip((MODEL, RULE), DROPOUT, strict=True))
    key = dropout_ref.mask_key(h("x", b"seed"), h("x", b"learner"), 3)
    dropped = train(model, rule, text(model, rule), key)
    return {
        "numbers": number_vectors(),
        "turns": [[p, i, *(t.tobytes().hex() for t in turn(p, i, 6))] for p, i in TURNS],
        "trainings": [
            *({"model": m, "training": rule, **train(m, rule, text(m, rule))} for m, rule in cases),
            {"model": model, "training": rule, "mask_key": key.hex(), **dropped},
        ],
    }


TURNS = [(0, 0), (1, 0), (1, 5), (2, 1), (3, 0), (5, 0), (63, 2), (8191, 0), (1_000_000, 0)]

if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
