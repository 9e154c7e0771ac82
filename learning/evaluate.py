"""Losses of a model on bytes (docs/spec/model.md, "Holdout loss")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from chain.errors import InputError
from learning.held import Held, imbalance
from learning.model import forward, weights_from_shards, window_cross_entropy
from learning.ops import NATIVE, Ops
from learning.spec import VOCAB, ModelSpec
from learning.windows import window_starts

NANO_PER_NAT = 1_000_000_000
MAX_LOSS = 1000.0  # nats; what is larger, or not a number, counts as this
_BATCH = 64  # windows at a time, which bounds memory
# Products at a time: ten to twenty seconds of a core, after which whoever waits hears of it. A
# window's own are not cut.
_BATCH_PRODUCTS = 1 << 38

Windows = npt.NDArray[np.uint8]
GotOn = Callable[[int], None]  # told how many windows are done


@dataclass(frozen=True, slots=True)
class Measured:
    """`losses`: mean cross-entropy of each window in nats per byte, float64 [n]. `imbalance`: of
    each layer, the busiest expert's bytes over the mean one's."""

    losses: npt.NDArray[np.float64]
    imbalance: tuple[float, ...]


def measure(
    spec: ModelSpec,
    shards: Sequence[bytes],
    windows: Windows,
    ops: Ops = NATIVE,
    held: Held | None = None,
    got_on: GotOn | None = None,
) -> Measured:
    """Losses and loads of these windows.

    `windows`: uint8 [n, context + 1]; byte i predicts byte i + 1. `got_on` is called after every
    few of them. Raises InputError for shards or windows of another shape.
    """
    if windows.ndim != 2 or windows.shape[1] != spec.context + 1:
        raise InputError(f"windows of shape {windows.shape}, expected [n, {spec.context + 1}]")
    weights = weights_from_shards(spec, shards, held)
    losses = np.empty(len(windows), np.float64)
    loads = np.zeros((spec.layers, spec.experts), np.int64)
    batch = windows_at_a_time(spec)
    with torch.inference_mode():
        for i in range(0, len(windows), batch):
            tokens = torch.from_numpy(windows[i : i + batch].astype(np.int64))
            logits, routed = forward(spec, weights, tokens[:, :-1], ops, held)
            each = window_cross_entropy(logits, tokens[:, 1:], ops).double().mean(-1)
            losses[i : i + batch] = each.numpy()
            loads += np.stack([layer.loads.numpy() for layer in routed])
            if got_on is not None:
                got_on(min(i + batch, len(windows)))
    losses = np.where(losses < MAX_LOSS, losses, MAX_LOSS)  # also where it is not a number
    return Measured(losses, imbalance(loads, held))


def windows_at_a_time(spec: ModelSpec) -> int:
    """How many are computed between two words about them: 64, or fewer of a large model."""
    expert = 3 * spec.width * spec.expert_width
    layer = 4 * spec.width**2 + (spec.top_k + spec.shared_experts) * expert
    products = spec.context * (spec.layers * layer + VOCAB * spec.width)  # of a window, about
    return min(max(_BATCH_PRODUCTS // products, 1), _BATCH)


def window_losses(
    spec: ModelSpec,
    shards: Sequence[bytes],
    windows: Windows,
    ops: Ops = NATIVE,
    got_on: GotOn | None = None,
) -> npt.NDArray[np.float64]:
    """The losses of `measure` alone."""
    return measure(spec, shards, windows, ops, got_on=got_on).losses


def to_nano(losses: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """Losses in nano-nats, rounded to even."""
    return tuple(int(loss) for loss in np.rint(losses * NANO_PER_NAT))


def holdout_windows(holdout: bytes, context: int) -> Windows:
    """The windows uint8 [n, context + 1] of a holdout, at most 512 evenly spaced (`window_starts`).
    Raises InputError if there is none."""
    starts = window_starts(len(holdout), context)
    if not len(starts):
        raise InputError(f"a holdout of {len(holdout)} bytes, expected at least {context + 1}")
    windows: Windows = np.frombuffer(holdout, np.uint8)[
        starts[:, None] + np.arange(context + 1, dtype=np.int64)
    ]
    return windows


def holdout_loss(
    spec: ModelSpec, shards: Sequence[bytes], holdout: bytes, got_on: GotOn | None = None
) -> int:
    """Mean loss over the holdout's windows in nano-nats per byte."""
    windows = holdout_windows(holdout, spec.context)
    losses = window_losses(spec, shards, windows, got_on=got_on)
    return round(float(losses.mean()) * NANO_PER_NAT)
