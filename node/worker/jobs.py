"""What a worker can do. Each job is stateless: everything it needs is in its request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from chain.errors import InputError
from chain.hashes import ZERO_HASH, Hash32
from learning.compress import add_delta, compress
from learning.conformance import ops_of, profile_of
from learning.evaluate import GotOn, holdout_loss, measure, to_nano, window_losses
from learning.exact_math import DivergedError
from learning.generate import generate
from learning.held import Held, held_experts, imbalance
from learning.profile import KINDS, Kind, kind_of
from learning.spec import ModelSpec, TrainingSpec
from learning.state import TrainState, deserialize_state, serialize_state
from learning.train import Progress, train_segment
from node.worker.protocol import Message

Emit = Callable[[Message], None]


def run_job(request: Message, emit: Emit) -> Message:
    """The result of one request. Raises BlyanError for what the caller got wrong.

    Whatever may take long emits an event now and then: who waits for it gives up on silence."""

    def got_on(done: int) -> None:
        emit({"event": "windows", "done": done})

    job = request.get("job")
    if job == "ping":
        return {"profile": profile_of(_kind(request))}
    if job == "evaluate":
        return _evaluate(request, got_on)
    if job == "holdout":
        spec = ModelSpec.from_json(request["model"])
        return {"loss": holdout_loss(spec, request["shards"], request["holdout"], got_on)}
    if job == "measure":
        spec = ModelSpec.from_json(request["model"])
        windows = _bytes_array(request["windows"], (-1, spec.context + 1))
        found = measure(spec, request["shards"], windows, got_on=got_on)
        return {"losses": to_nano(found.losses), "imbalance": found.imbalance}
    if job == "generate":
        return _generate(request, emit)
    if job == "train":
        return _train(request, emit)
    if job == "replay":
        return _replay(request, emit)
    raise InputError(f"a worker has no job {job!r}")


def _evaluate(request: Message, got_on: GotOn) -> Message:
    spec = ModelSpec.from_json(request["model"])
    windows = _bytes_array(request["windows"], (-1, spec.context + 1))
    shards = request["shards"]
    base = to_nano(window_losses(spec, shards, windows, got_on=got_on))
    if request["payload"] is None:
        return {"base": base, "delta": ()}
    moved = add_delta(
        spec, shards, request["payload"], request["numerator"], request["denominator"]
    )
    got_on(0)  # decoding a large payload took a while
    return {"base": base, "delta": to_nano(window_losses(spec, moved, windows, got_on=got_on))}


def _generate(request: Message, emit: Emit) -> Message:
    spec = ModelSpec.from_json(request["model"])
    began, count = time.monotonic(), request["count"]
    options = {name: request[name] for name in ("temperature", "top_k", "seed")}
    for byte in generate(spec, request["shards"], request["prompt"], count, **options):
        emit({"event": "byte", "byte": byte})
    return {"seconds": time.monotonic() - began}


def _train(request: Message, emit: Emit) -> Message:
    kind = _kind(request)
    profile, ops = profile_of(kind), ops_of(kind)
    spec = ModelSpec.from_json(request["model"])
    training = TrainingSpec.from_json(request["training"])
    shape = (training.steps, training.batch, spec.context + 1)
    batches = _bytes_array(request["batches"], shape)
    held = held_experts(spec, request["held"])
    base, previous, done = request["shards"], request["previous"], request["done"]
    hashes = [Hash32(found) for found in request["state_hashes"]]
    losses: list[float] = []

    def reached(state: TrainState) -> None:
        hashes.append(state.hash())
        emit({"event": "checkpoint", "hash": hashes[-1], "state": serialize_state(state)})

    if done is not None:
        state, optimizer_before = deserialize_state(spec, done, held), request["optimizer_before"]
    else:
        state = TrainState.fresh(base)
        if previous is not None:
            state = deserialize_state(spec, previous, held).next_round(base)
        optimizer_before = state.optimizer_root()
        reached(state)

    loads = np.zeros((spec.layers, spec.experts), np.int64)

    def step_done(progress: Progress) -> None:
        losses.append(progress.loss)
        loads[:] += progress.loads
        emit({"event": "step", "step": progress.step + 1, "loss": progress.loss})

    for segment in range(len(hashes) - 1, training.segments):
        last = training.segment_range(segment)[1]
        state = train_segment(
            *(spec, training, state, batches.__getitem__, last, step_done, ops, held),
            most_bytes=request["most_bytes"],
            mask_key=request["mask_key"],
        )
        reached(state)
    out = compress(
        spec,
        training,
        request["round"],
        Hash32(request["base_root"]),
        base,
        state.weights,
        request["residual"],
        held,
    )
    return {
        "payload": out.payload,
        "payload_root": out.payload_root,
        "residual": out.residual,
        "residual_before": out.residual_before,
        "residual_after": out.residual_after,
        "optimizer_before": optimizer_before,
        "optimizer_after": state.optimizer_root(),
        "state_hashes": hashes,
        "profile": profile,
        "first_loss": losses[0] if losses else 0.0,
        "last_loss": losses[-1] if losses else 0.0,
        "imbalance": imbalance(loads, held),
    }


def _replay(request: Message, emit: Emit) -> Message:
    kind = kind_of(request["profile"])
    profile = profile_of(kind)
    if profile != request["profile"]:  # other bits would come out, and prove nothing
        return {"before": ZERO_HASH, "after": ZERO_HASH, "profile": profile, "closed": None}
    spec = ModelSpec.from_json(request["model"])
    training = TrainingSpec.from_json(request["training"])
    batches = _bytes_array(request["batches"], (-1, training.batch, spec.context + 1))
    held = held_experts(spec, request["held"])
    state = deserialize_state(spec, request["state"], held)
    before, first = state.hash(), state.step
    last = first + len(batches)

    def batch(step: int) -> npt.NDArray[np.uint8]:
        emit({"event": "step", "step": step})  # a replay takes as long as it takes, if it gets on
        found: npt.NDArray[np.uint8] = batches[step - first]
        return found

    try:
        state = train_segment(
            *(spec, training, state, batch, last),
            ops=ops_of(kind),
            held=held,
            most_bytes=request["most_bytes"],
            mask_key=request["mask_key"],
        )
    except DivergedError:  # no state comes after this one, whatever a manifest says
        return {"before": before, "after": ZERO_HASH, "profile": profile, "closed": None}
    closed = None
    if request["closing"] is not None:
        closed = _closed(spec, training, state, request["closing"], held)
    return {"before": before, "after": state.hash(), "profile": profile, "closed": closed}


def _closed(
    spec: ModelSpec, training: TrainingSpec, state: TrainState, closing: Message, held: Held | None
) -> list[Hash32]:
    """What `Closed` is made of."""
    base, residual = closing["shards"], closing["residual"]
    round_, root = closing["round"], Hash32(closing["base_root"])
    try:
        out = compress(spec, training, round_, root, base, state.weights, residual, held)
    except InputError:  # no payload comes of this, whatever a manifest says
        return [ZERO_HASH] * 4
    after = state.optimizer_root()
    return [out.payload_root, out.residual_before, out.residual_after, after]


def _kind(request: Message) -> Kind:
    """The kind of profile that a request names. Raises InputError for another."""
    kind = request["profile"]
    if kind not in KINDS:
        raise InputError(f"a worker has no profile {kind!r}: expected one of {', '.join(KINDS)}")
    return cast(Kind, kind)


def _bytes_array(data: Any, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """uint8 of this shape, where -1 stands for what the length gives."""
    try:
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (TypeError, ValueError):
        raise InputError(f"{len(data)} bytes do not fill the shape {shape}") from None
