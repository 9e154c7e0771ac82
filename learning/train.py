"""Exact training: the same bits from the same state, batches and profile (docs/spec/training.md).

AdamW over one flat vector, whose layout is the data sections back to back, so a state is bytes at
any step and any part of it can be opened. Nothing here draws a random number: masks of dropout
are a function of their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chain.errors import InputError
from chain.hashes import Hash32
from learning.dropout import Masks, masks_of
from learning.exact_math import sqrt_
from learning.held import Held, layout_of
from learning.memory import ACTIVATION_BYTES, recomputes
from learning.model import Forward, forward, window_cross_entropy
from learning.ops import NATIVE, Ops
from learning.routing import balance_loss
from learning.spec import LEARNED, PPM, WORDS_PER_WINDOW, ModelSpec, TrainingSpec
from learning.state import Sections, TrainState

Batches = Callable[[int], npt.NDArray[np.uint8]]  # step to uint8 [batch, context + 1]
NANO_UNIT = 1e-9
_BLOCK = 1 << 16  # elements updated at a time: what a cache holds


@dataclass(frozen=True, slots=True)
class Progress:
    """One step done: its number in the round, the loss before it in nats per byte, and the bytes
    that each expert got, int64 [layers, experts]."""

    step: int
    loss: float
    loads: npt.NDArray[np.int64]


def train_segment(
    spec: ModelSpec,
    training: TrainingSpec,
    state: TrainState,
    batches: Batches,
    last: int,
    on_step: Callable[[Progress], None] | None = None,
    ops: Ops = NATIVE,
    held: Held | None = None,
    most_bytes: int = ACTIVATION_BYTES,
    mask_key: Hash32 | None = None,
) -> TrainState:
    """The state before step `last`, from one at or before it. Call `profile.configure` first.
    `held`: the part of the model that the state is of. `most_bytes`: how much a step keeps for its
    backward pass before it computes layers again; the bits do not depend on it. `mask_key`: the
    learner's of the round, without which there is no training with dropout."""
    if last < state.step:
        raise InputError(f"a state at step {state.step} cannot be trained back to step {last}")
    run = _Run(spec, training, state, ops, held, most_bytes)
    for step in range(state.step, last):
        masks = _masks(spec, training, mask_key, step)
        loss, loads = run.step(_tokens(spec, training, batches(step)), masks)
        if on_step is not None:
            on_step(Progress(step, loss, loads))
    drawn = (last - state.step) * training.batch * WORDS_PER_WINDOW
    return replace(run.state(), step=last, draws=state.draws + drawn)


def _masks(spec: ModelSpec, training: TrainingSpec, key: Hash32 | None, step: int) -> Masks | None:
    if not training.dropout_ppm:
        return None
    if key is None:
        raise InputError(
            f"a rule with dropout_ppm {training.dropout_ppm} has masks: expected the key of the "
            "learner's assignment (corpus.batches.Assignment.mask_key)"
        )
    return masks_of(key, training.dropout_ppm, spec.layers, step)


def _tokens(spec: ModelSpec, training: TrainingSpec, batch: npt.NDArray[np.uint8]) -> Tensor:
    if batch.shape != (training.batch, spec.context + 1):
        raise InputError(
            f"a batch of shape {batch.shape}, expected ({training.batch}, {spec.context + 1})"
        )
    return torch.from_numpy(batch.astype(np.int64))


class _Run:
    """Tensors of a state while it is trained. Parameters are views of one vector."""

    def __init__(
        self,
        spec: ModelSpec,
        training: TrainingSpec,
        state: TrainState,
        ops: Ops,
        held: Held | None,
        most_bytes: int,
    ) -> None:
        self._ops, self._held = ops, held
        self._spec, self._training, self._updates = spec, training, state.updates
        self._recompute = recomputes(spec, training, most_bytes)
        parts = (state.weights, state.first, state.second)
        self._flat, self._first, self._second = (_vector(part).to(ops.device) for part in parts)
        self._gradient = torch.zeros_like(self._flat)
        self._sizes = [len(section) for section in state.weights]
        self._views: dict[str, Tensor] = {}
        decays = training.weight_decay_ppm > 0
        self._decayed = torch.zeros_like(self._flat) if decays else self._flat[:0]
        start = 0
        for shard in layout_of(spec, held):
            for tensor in shard.tensors:
                name, end = f"{shard.name}.{tensor.name}", start + tensor.elements
                view = self._flat[start:end].view(tensor.shape)
                if tensor.name != "bias":
                    view = view.detach().requires_grad_()
                    view.grad = self._gradient[start:end].view(tensor.shape)  # added to in place
                if len(tensor.shape) > 1 and decays:
                    self._decayed[start:end] = 1.0
                self._views[name] = view
                start = end

    def step(self, tokens: Tensor, masks: Masks | None) -> tuple[float, npt.NDArray[np.int64]]:
        """One AdamW step; the loss before it, and the loads."""
        # An expert that no byte was routed to has no gradient: its moments decay all the same.
        self._gradient.zero_()
        pieces = torch.split(tokens, self._training.windows_at_a_time)
        shape = self._spec.layers, self._spec.experts
        told, loads = 0.0, torch.zeros(shape, dtype=torch.int64, device=self._ops.device)
        for i, piece in enumerate(pieces):
            if masks is not None:
                masks = replace(masks, before=i * self._training.windows_at_a_time)
            loss, found = self._piece(piece.to(self._ops.device), len(pieces), masks)
            told += loss
            loads += found
        with torch.no_grad():
            self._adamw()
            self._balance(loads)
        return told, loads.cpu().numpy()

    def _piece(self, tokens: Tensor, pieces: int, masks: Masks | None) -> tuple[float, Tensor]:
        """Add the gradient of so many windows to the batch's; its part of the loss, and its loads,
        int64 [layers, experts]. A gradient is summed piece by piece, in order."""
        out = forward(
            self._spec,
            self._views,
            tokens[:, :-1],
            self._ops,
            self._held,
            recompute=self._recompute,
            masks=masks,
        )
        losses = window_cross_entropy(out.logits, tokens[:, 1:], self._ops)
        loss = losses.sum() / (losses.numel() * pieces)
        told = float(loss.detach())
        if self._training.aux_loss_ppm:
            loss = loss + self._balance_loss(out, pieces)
        torch.autograd.backward(loss)
        return told, torch.stack([layer.loads for layer in out.routed])

    def _adamw(self) -> None:
        """AdamW (arXiv 1711.05101): decay on matrices alone, gradient clipped by global norm."""
        rule = self._training
        self._updates += 1
        beta1, beta2 = rule.beta1_ppm / PPM, rule.beta2_ppm / PPM
        rate = rule.learning_rate_nano * NANO_UNIT
        if self._updates < rule.warmup_steps:
            rate *= self._updates / rule.warmup_steps
        norm, clip = self._ops.norm(self._gradient), rule.clip_ppm / PPM
        factors = _Factors(
            gradient=clip / norm if norm > clip else 1.0,
            first=(beta1, 1 - beta1),
            second=(beta2, 1 - beta2),
            spread=1 / (1 - _power(beta2, self._updates)),
            epsilon=rule.epsilon_nano * NANO_UNIT,
            decay=rate * rule.weight_decay_ppm / PPM,
            rate=rate / (1 - _power(beta1, self._updates)),
        )
        vectors = (self._flat, self._first, self._second, self._gradient, self._decayed)
        for start in range(0, len(self._flat), _BLOCK):
            _update(factors, *(vector[start : start + _BLOCK] for vector in vectors))

    def _balance_loss(self, out: Forward, pieces: int) -> Tensor:
        """The layers' balance losses, weighed: a mean over the pieces of a batch."""
        total = torch.zeros((), device=self._ops.device)
        for i, routed in enumerate(out.routed):
            if routed.scores is not None:
                loads = routed.loads[self._here(i)]
                total = total + balance_loss(routed.scores, loads, self._ops)
        return total * (self._training.aux_loss_ppm / PPM / pieces)

    def _balance(self, loads: Tensor) -> None:
        """Router biases rise for experts below the mean load, and fall for those above."""
        rate = self._training.bias_rate_ppm / PPM
        if self._spec.routing == LEARNED:
            for i, each in enumerate(loads):
                here = self._here(i)
                load = each[here]
                gap = torch.sign(load.sum() - load * len(load)).float()
                self._views[f"layers.{i}.router.bias"][here] += gap * rate

    def _here(self, layer: int) -> Tensor:
        """The experts of a layer that are held."""
        if self._held is None:
            return torch.arange(self._spec.experts, device=self._ops.device)
        return torch.tensor(self._held.experts[layer], device=self._ops.device)

    def state(self) -> TrainState:
        parts = (self._sections(v) for v in (self._flat, self._first, self._second))
        weights, first, second = parts
        return TrainState(weights, first, second, updates=self._updates)

    def _sections(self, vector: Tensor) -> Sections:
        data = vector.cpu().numpy().astype("<f4", copy=False).data.cast("B")
        sections, start = [], 0
        for size in self._sizes:
            sections.append(bytes(data[start : start + size]))
            start += size
        return tuple(sections)


def _vector(sections: Sections) -> Tensor:
    """Data sections back to back, with memory of its own."""
    vector = np.empty(sum(map(len, sections)) // 4, np.float32)
    start = 0
    for section in sections:
        values = np.frombuffer(section, "<f4")
        vector[start : start + len(values)] = values
        start += len(values)
    return torch.from_numpy(vector)


@dataclass(frozen=True, slots=True)
class _Factors:
    """What the elements of an update are multiplied with, each rounded to fp32 then."""

    gradient: float
    first: tuple[float, float]
    second: tuple[float, float]
    spread: float
    epsilon: float
    decay: float
    rate: float


def _update(
    f: _Factors, flat: Tensor, first: Tensor, second: Tensor, gradient: Tensor, decayed: Tensor
) -> None:
    """One block. No kernel here does more than one rounding: those that do (addcmul, add with a
    factor) are fused on some processors alone."""
    gradient.mul_(f.gradient)
    first.mul_(f.first[0]).add_(gradient * f.first[1])
    second.mul_(f.second[0]).add_(gradient.square().mul_(f.second[1]))
    spread = _root(second * f.spread).add_(f.epsilon)
    if f.decay:
        flat.sub_((flat * decayed).mul_(f.decay))
    flat.sub_((first * f.rate).div_(spread))


def _root(x: Tensor) -> Tensor:
    """In place. A GPU's square root is the IEEE one; torch's on a processor is not."""
    return sqrt_(x) if x.device.type == "cpu" else x.sqrt_()


def _power(base: float, exponent: int) -> float:
    """base ** exponent by squaring: IEEE products only, where pow differs between C libraries."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
