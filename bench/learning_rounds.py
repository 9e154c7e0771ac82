"""Learning rounds in one process: what the chain would make of them, without the chain.

Training, codec, screen and aggregation are the project's own; only the network is left out. Every
random number follows from the protocol's PRF and the seeds below, so a plan gives the same curve
again under the same profile (docs/spec/training.md, "Profiles").
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from learning.profile import configure, environment

os.environ.update(environment())  # before torch is imported

import numpy as np
import numpy.typing as npt

from bench import learning_attacks as attacks
from bench.learning_task import LONG, LONG_TEXT_BYTES, LONG_WARM
from chain import limits
from chain.hashes import PRF, ZERO_HASH, Hash32
from chain.types import PubKey
from consensus.pol import is_clear, looks, verdict
from corpus.batches import Assignment, Windows
from corpus.ingest import ingest
from learning.compress import add_delta, compress
from learning.evaluate import holdout_windows, to_nano, window_losses
from learning.init import initial_shards
from learning.sizes import SIZES
from learning.spec import NANO_MODEL, NANO_TRAINING, ModelSpec, TrainingSpec
from learning.state import Sections, TrainState
from learning.train import train_segment
from tiles.aggregate import aggregate_tile, apply
from tiles.delta import PayloadTile
from tiles.momentum import share_of
from tiles.weights import WEIGHT_BITS

HOLDOUT_BYTES = 400_000  # or a tenth of a smaller text
SCREENED = (1, 5)  # of a delta, as jurors do (docs/spec/pol.md)

Floats = npt.NDArray[np.float32]
Outer = Callable[[Floats], tuple[Floats, Floats]]  # a round's change to the next base, its model


@dataclass(frozen=True, slots=True)
class Size:
    """What is trained, how, and on how much text. `warm` dense rounds of `learners` come first."""

    model: ModelSpec
    training: TrainingSpec
    text_bytes: int = 9_000_000
    warm: int = 23
    every: int = 4  # of the holdout's windows, one in so many after each round; all at the end
    slices: int = 128  # of the screen, as jurors take them


_RULE = replace(
    NANO_TRAINING,
    steps=10,
    segment_steps=10,
    batch=4,
    learning_rate_nano=2_000_000,
)
WHOLE = Size(  # 0.9 M parameters
    replace(NANO_MODEL, layers=3, width=128, expert_width=136, init_seed="rounds"), _RULE
)
LIGHT = Size(  # 0.15 M: for what takes many runs
    replace(NANO_MODEL, layers=1, width=64, expert_width=128, init_seed="rounds"), _RULE
)
TINY = Size(  # 1 M: the default network's model in rounds as long as a network is for
    SIZES["tiny"].model, LONG, LONG_TEXT_BYTES, LONG_WARM
)
SMALL = Size(
    replace(NANO_MODEL, layers=1, width=16, heads=2, experts=2, expert_width=16, context=16),
    replace(_RULE, steps=2, segment_steps=2),
    text_bytes=40_000,
    warm=1,
    every=16,
    slices=8,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a curve depends on.

    `density` None: deltas stay fp32 and are averaged. `rule`: how payloads are, by `mean` or by the
    protocol's `robust` weights. The last `bad` of the learners attack. `outer`: what the result of
    a round is fed to; `moments`: whether AdamW's `carry` over or start at `zero`.
    `momentum_ppm`: the protocol's momentum over rounds.
    """

    size: Size
    learners: int = 4
    rounds: int = 20
    density: int | None = None
    feedback_ppm: int = 1_000_000
    rule: str = "mean"
    bad: int = 0
    attack: str = ""
    is_screened: bool = False
    moments: str = "carry"
    warmup: int = 10  # steps, at most the size's own
    outer: str = "none"
    momentum_ppm: int = 0


@dataclass(frozen=True, slots=True)
class Curve:
    """Holdout loss in nats per byte: `losses` before the first round and after each, on a part of
    the windows; `first` and `last` on all of them. Mean payload bytes of a learner's round; shares
    of honest and of bad deltas that the screen refused."""

    losses: tuple[float, ...]
    first: float
    last: float
    payload_bytes: float
    refused: float
    refused_bad: float

    @property
    def progress(self) -> float:
        return self.first - self.last


@cache
def run(plan: Plan) -> Curve:
    """Run a plan; the same one is run once in a process."""
    return _Run(plan).curve()


@cache
def text_of(size: Size) -> tuple[bytes, bytes]:
    """To train on and to hold out: the Python standard library's source, its end held out."""
    found = ingest(Path(sysconfig.get_paths()["stdlib"]), size.text_bytes)
    text = b"".join(document.text for document in found.documents)
    held = min(HOLDOUT_BYTES, len(text) // 10)
    return text[:-held], text[-held:]


@cache
def start(size: Size) -> Sections:
    """Where every curve of a size begins: a few rounds from the genesis weights, averaged."""
    configure()
    plan = Plan(size, rounds=size.warm)
    return _Run(plan, tuple(initial_shards(size.model)), "warm").last()


class _Run:
    def __init__(self, plan: Plan, base: Sections | None = None, seed: str = "run") -> None:
        self._plan, self._seed = plan, seed
        size = plan.size
        self._spec, self._layout = size.model, size.model.shards()
        self._rule = replace(
            size.training,
            densities=(plan.density or 1,),
            error_feedback_ppm=plan.feedback_ppm,
            warmup_steps=min(plan.warmup, size.training.warmup_steps),
        )
        self._train, holdout = text_of(size)
        self._windows = holdout_windows(holdout, self._spec.context)
        self._base = base or start(size)
        self._before: Sections | None = None  # the base of the round before
        self._outer = _outer(plan.outer, _flat(self._base))
        honest = plan.learners - plan.bad
        self._states = [TrainState.fresh(self._base)] * honest
        self._residuals: list[Sections | None] = [None] * honest
        self._payload_bytes, self._refused, self._judged = 0, [0, 0], [0, 0]

    def curve(self) -> Curve:
        every = self._plan.size.every
        model, first = self._base, self._loss(self._base, 1)
        losses = [self._loss(model, every)]
        for number in range(self._plan.rounds):
            model = self._round(number)
            losses.append(self._loss(model, every))
        judged = [max(1, count) for count in self._judged]
        return Curve(
            tuple(losses),
            first,
            self._loss(model, 1),
            self._payload_bytes / max(1, self._plan.rounds * len(self._states)),
            self._refused[0] / judged[0],
            self._refused[1] / judged[1],
        )

    def last(self) -> Sections:
        model = self._base
        for number in range(self._plan.rounds):
            model = self._round(number)
        return model

    def _loss(self, model: Sections, every: int) -> float:
        return float(window_losses(self._spec, model, self._windows[::every]).mean())

    def _round(self, number: int) -> Sections:
        """Train, send, screen, aggregate; the new model, while `_base` is what comes next."""
        assigned = [self._assignment(number, i) for i in range(self._plan.learners)]
        trained = [self._trained(i, assigned[i]) for i in range(len(self._states))]
        if self._plan.density is None:
            mean = np.mean([_flat(t) for t in trained], axis=0, dtype=np.float64)
            result = self._sections(mean.astype(np.float32))
        else:
            payloads = [self._sent(number, i, after) for i, after in enumerate(trained)]
            self._payload_bytes += sum(map(len, payloads))
            if self._plan.bad:
                payloads += attacks.payloads(
                    self._plan.attack, self._plan.bad, payloads, self._spec, self._rule, number
                )
            if self._plan.is_screened:
                payloads = self._accepted(number, payloads, assigned)
            result = self._aggregated(payloads)
        if self._plan.outer == "none":
            self._before, self._base = self._base, result
            return result
        base, model = self._outer(_flat(result) - _flat(self._base))
        self._base = self._sections(base)
        return self._sections(model)

    def _assignment(self, number: int, learner: int) -> Assignment:
        seed = PRF.hash(self._seed.encode(), number.to_bytes(8, "big"))
        key = PubKey(learner.to_bytes(32, "big"))
        rule = self._rule
        shape = {"steps": rule.steps, "batch": rule.batch, "context": self._spec.context}
        return Assignment(self._train, seed, key, number, **shape)

    def _trained(self, i: int, assigned: Assignment) -> Sections:
        state = self._states[i].next_round(self._base)
        if self._plan.moments == "zero":
            state = TrainState.fresh(self._base)
        rule = self._rule
        self._states[i] = train_segment(
            *(self._spec, rule, state, assigned.batch, rule.steps), mask_key=assigned.mask_key()
        )
        return self._states[i].weights

    def _sent(self, number: int, i: int, after: Sections) -> bytes:
        made = compress(
            self._spec, self._rule, number, ZERO_HASH, self._base, after, self._residuals[i]
        )
        self._residuals[i] = made.residual
        return made.payload

    def _accepted(
        self, number: int, payloads: list[bytes], assigned: Sequence[Assignment]
    ) -> list[bytes]:
        """What the jury lets pass of deltas that all claim to be proven: no replay looks at them,
        so this is the least that the screen does."""
        seed = Hash32(PRF.hash(b"jury", number.to_bytes(8, "big")))
        kept = []
        for i, payload in enumerate(payloads):
            windows = assigned[i].jury_slices(seed, self._plan.size.slices).windows
            moved = tuple(add_delta(self._spec, self._base, payload, *SCREENED))
            before, after = self._looked(moved, windows)
            is_bad = i >= len(self._states)
            self._judged[is_bad] += 1
            if verdict(before, after, proven=True).verdict:
                kept.append(payload)
            else:
                self._refused[is_bad] += 1
        return kept

    def _looked(self, moved: Sections, windows: Windows) -> tuple[list[int], list[int]]:
        """Losses without and with a delta, on as many windows as a juror looks at."""
        before, after = list[int](), list[int]()
        for look in looks(len(windows)):
            first, second = (
                to_nano(window_losses(self._spec, model, windows[look]))
                for model in (self._base, moved)
            )
            before += first
            after += second
            if is_clear(first, second, proven=True):
                break
        return before, after

    def _aggregated(self, payloads: Sequence[bytes]) -> Sections:
        equal = [(1 << WEIGHT_BITS) // max(1, len(payloads))] * len(payloads)
        share = share_of(self._plan.momentum_ppm)
        result = []
        for shard, data in enumerate(self._base):
            tiles = []
            for tile in range(-(-len(data) // limits.TILE_BYTES)):
                part = slice(tile * limits.TILE_BYTES, (tile + 1) * limits.TILE_BYTES)
                base = data[part]
                old = self._before[shard][part] if self._before is not None else None
                deltas = [PayloadTile(p, self._layout, shard, tile) for p in payloads]
                is_robust = self._plan.rule == "robust"
                tiles.append(
                    aggregate_tile(base, deltas, old, share).new_tile
                    if is_robust
                    else apply(base, deltas, equal)
                )
            result.append(b"".join(tiles))
        return tuple(result)

    def _sections(self, vector: Floats) -> Sections:
        data = vector.astype("<f4").tobytes()
        sections, at = [], 0
        for section in self._base:
            sections.append(data[at : at + len(section)])
            at += len(section)
        return tuple(sections)


def _flat(sections: Sections) -> Floats:
    return np.frombuffer(b"".join(sections), "<f4").astype(np.float32)


def _outer(kind: str, first: Floats) -> Outer:
    """Optimizers over rounds: what they do with a round's change.

    `nesterov`: as DiLoCo has it (arXiv 2311.08105), rate 0.7 and momentum 0.9; `schedule-free`:
    arXiv 2405.15682, rate 1 and beta 0.9, whose base is not its model.
    """
    at, far = first.copy(), first.copy()
    speed = np.zeros_like(first)
    rounds = 0

    def nesterov(change: Floats) -> tuple[Floats, Floats]:
        nonlocal speed, at
        speed = np.float32(0.9) * speed + change
        at = at + np.float32(0.7) * (change + np.float32(0.9) * speed)
        return at, at

    def schedule_free(change: Floats) -> tuple[Floats, Floats]:
        nonlocal at, far, rounds
        rounds += 1
        far = far + change
        at = at + (far - at) / np.float32(rounds + 1)
        return np.float32(0.1) * far + np.float32(0.9) * at, at

    def none(change: Floats) -> tuple[Floats, Floats]:
        nonlocal at
        at = at + change
        return at, at

    return {"none": none, "nesterov": nesterov, "schedule-free": schedule_free}[kind]


def ratio(plan: Plan, curve: Curve) -> float:
    """How many times fewer bytes than fp32 a learner sent."""
    return plan.size.model.parameters * 4 / curve.payload_bytes
