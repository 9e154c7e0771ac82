"""How much memory a training step takes beside the state (docs/spec/training.md, "Memory")."""

from __future__ import annotations

from typing import Final

from learning.spec import VOCAB, ModelSpec

# What a step may keep for its backward pass, unless a caller says otherwise. Above it the layers'
# values are computed again: a third more work, and the same bits.
ACTIVATION_BYTES: Final = 512 << 20
_ATTENTION_WIDTHS = 12  # vectors of `width` kept for a byte by attention, norms and sums
_EXPERT_WIDTHS = 3  # and by each of its experts, with `_EXPERT_INNER` of `expert_width`
_EXPERT_INNER = 4


def activation_bytes(spec: ModelSpec, windows: int) -> int:
    """What the backward pass of so many windows finds kept, about: measured within a fifth in the
    native profile."""
    return 4 * windows * spec.context * (spec.layers * _layer_floats(spec) + 3 * VOCAB)


def recomputes(spec: ModelSpec, windows: int, most_bytes: int) -> bool:
    """Whether a step of so many windows at a time keeps only what enters each layer."""
    return activation_bytes(spec, windows) > most_bytes


def _layer_floats(spec: ModelSpec) -> int:
    """Kept for each byte in each layer."""
    inner = _EXPERT_WIDTHS * spec.width + _EXPERT_INNER * spec.expert_width
    return _ATTENTION_WIDTHS * spec.width + (spec.top_k + spec.shared_experts) * inner
