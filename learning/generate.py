"""Text from a model, byte after byte, with keys and values kept (docs/spec/model.md, "Generation").

What was read is not computed again: a byte costs one pass of one position. Positions go on beyond
the context, and a byte sees the last `context` ones: rotary attention knows distances alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chain.errors import InputError
from chain.hashes import PRF
from chain.prf import Prf
from learning.model import (
    mixture,
    rms_norm,
    rotary_tables,
    rotate,
    weights_from_shards,
)
from learning.spec import VOCAB, ModelSpec

MAX_TEXT = 1 << 20  # bytes of prompt and answer together


class Generator:
    """A model that reads bytes and says what may come next. Not reentrant."""

    def __init__(self, spec: ModelSpec, shards: Sequence[bytes]) -> None:
        self._spec, self._weights = spec, weights_from_shards(spec, shards)
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * spec.layers
        self._position = 0

    def read(self, text: bytes) -> Tensor:
        """Logits fp32 [256] of the byte after `text`, which follows what was read before."""
        if not text:
            raise InputError("nothing to go on from: give at least one byte")
        logits = torch.empty(0)
        with torch.inference_mode():
            for start in range(0, len(text), self._spec.context):
                logits = self._some(text[start : start + self._spec.context])
        return logits

    def _some(self, text: bytes) -> Tensor:
        spec, weights = self._spec, self._weights
        tokens = torch.tensor([list(text)])
        x = F.embedding(tokens, weights["embed.weight"])
        for i in range(spec.layers):
            at = f"layers.{i}"
            x = x + self._attention(i, rms_norm(x, weights[f"{at}.router.attention_norm"]))
            flat = rms_norm(x, weights[f"{at}.router.expert_norm"]).reshape(-1, spec.width)
            mixed, _ = mixture(spec, weights, at, flat)
            x = x + mixed.reshape(x.shape)
        self._position += len(text)
        logits: Tensor = (rms_norm(x[:, -1], weights["final.norm"]) @ weights["head.weight"])[0]
        return logits

    def _attention(self, layer: int, x: Tensor) -> Tensor:
        """Of new positions to themselves and to the kept ones, at most `context` back."""
        spec, at = self._spec, f"layers.{layer}.attention"
        new = x.shape[1]
        cosine, sine = rotary_tables(new, spec.head_width, self._position)

        def heads(name: str) -> Tensor:
            projected = x @ self._weights[f"{at}.{name}"]
            return projected.reshape(1, new, spec.heads, spec.head_width).transpose(1, 2)

        query, key = rotate(heads("query"), cosine, sine), rotate(heads("key"), cosine, sine)
        value = heads("value")
        kept = self._kept[layer]
        if kept is not None:
            key, value = torch.cat((kept[0], key), 2), torch.cat((kept[1], value), 2)
        back = torch.arange(new)[:, None] + key.shape[2] - new - torch.arange(key.shape[2])[None]
        mask = (back >= 0) & (back < spec.context)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        most = spec.context - 1  # so many the next byte sees beside itself
        self._kept[layer] = (key[:, :, -most:], value[:, :, -most:])
        joined = mixed.transpose(1, 2).reshape(1, new, spec.width)
        return joined @ self._weights[f"{at}.output"]


def generate(
    spec: ModelSpec,
    shards: Sequence[bytes],
    prompt: bytes,
    count: int,
    *,
    temperature: float = 0.8,
    top_k: int = 40,
    seed: int = 0,
) -> Iterator[int]:
    """`count` bytes after `prompt`. The same seed gives the same bytes on machines of one numeric
    profile; temperature 0 takes the likeliest byte each time. InputError for what cannot be."""
    if not 0 <= temperature <= 100:
        raise InputError(f"temperature {temperature}, expected 0 to 100")
    if not 1 <= top_k <= VOCAB:
        raise InputError(f"top-k {top_k}, expected 1 to {VOCAB}")
    if len(prompt) + count > MAX_TEXT:
        raise InputError(f"{len(prompt) + count} bytes of text, at most {MAX_TEXT}")
    draws = Prf(PRF.hash(b"generate"), "generate", seed)
    model, text = Generator(spec, shards), prompt
    for number in range(count):
        logits = model.read(text)
        chosen = _draw(logits, temperature, top_k, draws.words(1, number)[0] / 2**64)
        yield chosen
        text = bytes([chosen])


def _draw(logits: Tensor, temperature: float, top_k: int, uniform: float) -> int:
    """A byte by its probability, `uniform` below 1 saying which."""
    if temperature == 0:
        return int(logits.argmax())
    values, order = logits.double().topk(top_k)
    reached = torch.softmax(values / temperature, 0).cumsum(0)
    return int(order[min(int((reached <= uniform).sum()), top_k - 1)])
