"""How much memory a training step takes beside the state (docs/spec/training.md, "Memory")."""

from __future__ import annotations

from typing import Final

from learning.spec import VOCAB, ModelSpec, TrainingSpec

MIB: Final = 1 << 20
# What a step may keep for its backward pass, unless a caller says otherwise. Above it the layers'
# values are computed again: a third more work, and the same bits.
ACTIVATION_BYTES: Final = 512 * MIB
_ATTENTION_WIDTHS = 12  # vectors of `width` kept for a byte by attention, norms and sums
_EXPERT_WIDTHS = 3  # and by each of its experts, with `_EXPERT_INNER` of `expert_width`
_EXPERT_INNER = 4
_MASK_WIDTHS = 2  # and with dropout: a factor for each channel of both branches
_HEAD_FLOATS = 3 * VOCAB
# Layers computed again: vectors of `width` for a byte that each leaves behind, which are its input
# and holes in the allocator's memory; and, of the one that is computed again, what it keeps and
# half as much of gradients on their way.
_LEFT_WIDTHS = 10
_AGAIN_HALVES = 3


def activation_bytes(spec: ModelSpec, rule: TrainingSpec) -> int:
    """What the backward pass of a step finds kept, about: measured within a fifth in the native
    profile."""
    floats = spec.layers * _layer_floats(spec, rule) + _HEAD_FLOATS
    return _bytes_a_step(spec, rule, floats)


def recomputed_bytes(spec: ModelSpec, rule: TrainingSpec) -> int:
    """The most that a step takes whose layers are computed again, about: measured within a fifth
    in the native profile, for models where it is some hundred megabytes."""
    left = spec.layers * _LEFT_WIDTHS * spec.width
    again = _AGAIN_HALVES * _layer_floats(spec, rule) // 2
    return _bytes_a_step(spec, rule, left + again + _HEAD_FLOATS)


def recomputes(spec: ModelSpec, rule: TrainingSpec, most_bytes: int) -> bool:
    """Whether a step keeps only what enters each layer."""
    return activation_bytes(spec, rule) > most_bytes


def shortage(spec: ModelSpec, rule: TrainingSpec, most_bytes: int) -> str | None:
    """What to say before a training whose steps take more than they may, layers computed again or
    not; None if they fit."""
    least = min(activation_bytes(spec, rule), recomputed_bytes(spec, rule))
    if least <= most_bytes:
        return None
    needed = -(-least // MIB)
    return (
        f"a step takes about {needed:,} MiB beside the state even if its layers are computed "
        f"again, and the memory budget is {most_bytes // MIB:,} MiB: it is trained all the same, "
        "and the machine may swap or end it. If there is so much, raise the budget "
        f"(`blyan train --memory {needed}`, or memory_mib = {needed} in config.toml); else use a "
        "machine with more. The windows computed at a time (training.micro_batch) are the "
        "network's rule, which only a vote changes"
    )


def _bytes_a_step(spec: ModelSpec, rule: TrainingSpec, floats: int) -> int:
    """fp32 for each byte of the windows computed at a time."""
    return 4 * rule.windows_at_a_time * spec.context * floats


def _layer_floats(spec: ModelSpec, rule: TrainingSpec) -> int:
    """Kept for each byte in each layer."""
    widths = _ATTENTION_WIDTHS + (_MASK_WIDTHS if rule.dropout_ppm else 0)
    inner = _EXPERT_WIDTHS * spec.width + _EXPERT_INNER * spec.expert_width
    return widths * spec.width + (spec.top_k + spec.shared_experts) * inner
