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
from learning.model import attend, mixture, project, weights_from_shards
from learning.ops import NATIVE, Ops
from learning.routing import byte_pairs
from learning.spec import MAX_TEXT, VOCAB, ModelSpec


class Generator:
    """A model that reads bytes and says what may come next. Not reentrant."""

    def __init__(self, spec: ModelSpec, shards: Sequence[bytes], ops: Ops = NATIVE) -> None:
        self._spec, self._weights = spec, weights_from_shards(spec, shards)
        self._ops = ops
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * spec.layers
        self._position, self._last = 0, 0  # bytes read, and the last of them

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
        spec, weights, ops = self._spec, self._weights, self._ops
        tokens = torch.tensor([list(text)])
        x = F.embedding(tokens, weights["embed.weight"])
        pairs = byte_pairs(tokens, torch.tensor([self._last]))[0]
        turns = ops.rotary(self._position, len(text), spec.head_width)
        for i in range(spec.layers):
            at = f"layers.{i}"
            normed = ops.rms_norm(x, weights[f"{at}.router.attention_norm"])
            query, *new = project(spec, weights, at, normed, turns, ops)
            x = x + attend(weights, at, query, *self._keep(i, *new), ops)
            normed = ops.rms_norm(x, weights[f"{at}.router.expert_norm"])
            flat = normed.reshape(-1, spec.width)
            mixed, _ = mixture(spec, weights, i, flat, pairs, ops)
            x = x + mixed.reshape(x.shape)
        self._position, self._last = self._position + len(text), text[-1]
        normed = ops.rms_norm(x[:, -1], weights["final.norm"])
        return ops.matmul(normed, weights["head.weight"])[0]

    def _keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept keys and values with the new ones, and which of them each new position sees: itself
        and at most `context` - 1 before it."""
        new, kept = key.shape[2], self._kept[layer]
        if kept is not None:
            key, value = torch.cat((kept[0], key), 2), torch.cat((kept[1], value), 2)
        back = torch.arange(new)[:, None] + key.shape[2] - new - torch.arange(key.shape[2])[None]
        most = self._spec.context - 1  # so many the next byte sees beside itself
        self._kept[layer] = (key[:, :, -most:], value[:, :, -most:])
        return key, value, (back >= 0) & (back < self._spec.context)


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
