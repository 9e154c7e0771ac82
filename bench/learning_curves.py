"""Rows of `bench.learning` about whole runs: what compression and hostile learners cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.learning_attacks import ATTACKS
from bench.learning_rounds import LIGHT, SMALL, TINY, WHOLE, Curve, Plan, Size, ratio, run
from bench.learning_task import LONG_DENSITY, LONG_MOMENTUM_PPM
from bench.measure import Row, at_least, at_most
from bench.svg import chart
from learning.spec import NANO_TRAINING

# Times fewer bytes than fp32, entries kept of 4096, nats that the loss may end above that of dense
# averaging. Dense shards take 5 KB of each payload of this model, so fewer entries are left.
SUITE = ((28, 770, 0.0), (47, 365, 0.010), (67, 227, 0.020), (117, 102, 0.050))
# The same, and how many times as many rounds it may take to dense averaging's loss
SPEEDS = ((67, 227, 1.15), (146, 73, 1.35))
DENSITY = 256  # of what is attacked
CLEAN_LOSS = 2.0  # per cent of progress that robust weights may cost where nobody is bad
KEPT = {attack: 70.0 if attack == "alie" else 85.0 for attack in ATTACKS}  # % of clean progress
COMPANIES = ((8, 2), (10, 3))  # learners, of which bad: a quarter, and just under a third

GUARD_PPM = 10_000  # a round whose loss rises by more is rolled back (docs/spec/rounds.md)

LONG_STEPS, FEWER_ROUNDS = 50, 2  # rounds of as many steps as nano's, and half as many of them
OTHERS: dict[str, dict[str, Any]] = {
    "zero": {"moments": "zero", "warmup": 0},
    "zero_warmed": {"moments": "zero", "warmup": 5},
    "nesterov": {"outer": "nesterov"},
    "schedule-free": {"outer": "schedule-free"},
    **{f"momentum_0.{tenths}": {"momentum_ppm": tenths * 100_000} for tenths in (2, 3, 5)},
}


@dataclass(frozen=True, slots=True)
class Curves:
    """How much is run, and where pictures go."""

    whole: Size = WHOLE
    light: Size = LIGHT
    tiny: Size = TINY
    rounds: int = 20
    attacked_rounds: int = 30
    plots: Path | None = None


FEW = Curves(SMALL, SMALL, SMALL, rounds=1, attacked_rounds=1)


def suite20(amount: Curves) -> Iterator[Row]:
    """20 rounds of four learners under the protocol's rule, by density, and averaged in fp32."""
    dense_plan = Plan(amount.whole, rounds=amount.rounds)
    dense = run(dense_plan)
    yield at_most("suite20_start", dense.first, "nats", None)
    yield at_most("suite20_dense", dense.last, "nats", None)
    found = {"fp32, averaged": dense}
    for times, density, most in SUITE:
        plan = replace(dense_plan, density=density, rule="robust")
        curve = found[f"{times} times fewer bytes"] = run(plan)
        yield at_most(f"gap_{times}x", curve.last - dense.last, "nats", most)
        yield at_least(f"bytes_{times}x", ratio(plan, curve), "x", times)
    rise = max(map(worst_rise, found.values()))
    yield at_most("worst_rise", rise, "ppm", GUARD_PPM)
    _draw(amount, "compression", "Holdout loss: four learners, ten steps a round", found)


def rounds(amount: Curves) -> Iterator[Row]:
    """Rounds to the loss of dense averaging after all of its rounds, as a part of them."""
    dense_plan = Plan(amount.whole, rounds=amount.rounds)
    goal = run(dense_plan).losses[-1]
    for times, density, most in SPEEDS:
        plan = replace(dense_plan, density=density, rule="robust")
        plan = replace(plan, rounds=int(amount.rounds * most) + 1)
        curve = run(plan)
        yield at_most(f"rounds_{times}x", first_at(curve, goal) / amount.rounds, "x", most, 1.0)
        yield at_least(f"rounds_bytes_{times}x", ratio(plan, curve), "x", times)


def robust(amount: Curves) -> Iterator[Row]:
    """Bad learners among good ones: by how much the loss falls, against as many good ones whose
    payloads are averaged. By weights alone, and with the screen before them. Floor: averaged."""
    clean = Plan(amount.light, 8, amount.attacked_rounds, DENSITY)
    kept = _kept(run(replace(clean, rule="robust")), run(clean))
    yield at_most("clean_lost", 100 - kept, "%", CLEAN_LOSS)
    for learners, bad in COMPANIES:
        clean = replace(clean, learners=learners)
        best = run(clean)
        found, passed = {"none bad, averaged": best}, {"none bad, averaged": best}
        for attack in ATTACKS:
            plan = replace(clean, bad=bad, attack=attack, rule="robust")
            alone, screened = run(plan), run(replace(plan, is_screened=True))
            name = f"{attack}_{bad}of{learners}"
            yield at_most(f"{name}_worst_rise", worst_rise(alone), "ppm", GUARD_PPM)
            yield at_least(f"{name}_weights", _kept(alone, best), "%", None)
            yield at_least(f"{name}_screened", _kept(screened, best), "%", KEPT[attack])
            yield at_most(f"{name}_refused", 100 * screened.refused_bad, "%", None)
            found[attack], passed[attack] = alone, screened
        title = f"Holdout loss: {bad} of {learners} learners attack"
        _draw(amount, f"attacks-{bad}-of-{learners}", f"{title}, weights alone", found)
        _draw(amount, f"screened-{bad}-of-{learners}", f"{title}, screened", passed)


def moments(amount: Curves) -> Iterator[Row]:
    """What a learner keeps of AdamW between rounds, and what a round's result is fed to: how much
    higher the loss ends than with the protocol's choice (kept, and nothing)."""
    for name, size, density in _cases(amount):
        rule = "mean" if density is None else "robust"
        plan = Plan(size, rounds=amount.rounds, density=density, rule=rule)
        if size.training.steps > WHOLE.training.steps:
            plan = replace(plan, rounds=-(-amount.rounds // FEWER_ROUNDS))
        usual = run(plan)
        yield at_most(name, usual.last, "nats", None)
        found = {"moments kept, no optimizer": usual}
        for other, changed in OTHERS.items():
            if "momentum_ppm" in changed and density is None:
                continue  # a rule of payloads
            curve = found[other] = run(replace(plan, **changed))
            yield at_most(f"{name}_{other}", curve.last - usual.last, "nats", None)
        _draw(
            amount, f"moments-{name}", f"Holdout loss: what is kept between rounds ({name})", found
        )


def momentum(amount: Curves) -> Iterator[Row]:
    """What the network's own momentum is worth in rounds of 30 steps, beside averaging in fp32: the
    loss in the last quarter of the rounds, in the mean, and rounds to what averaging has before."""
    dense_plan = Plan(amount.tiny, rounds=amount.rounds)
    sparse = replace(dense_plan, density=LONG_DENSITY, rule="robust")
    momentous = replace(sparse, momentum_ppm=LONG_MOMENTUM_PPM)
    found = {"averaged": run(dense_plan), "none": run(sparse), "momentum": run(momentous)}
    quarter = -(-amount.rounds // 4)
    given = found["averaged"].losses[-1 - quarter]
    for name, curve in found.items():
        yield at_most(f"tiny_{name}", fmean(curve.losses[-quarter:]), "nats", None)
        yield at_most(f"tiny_{name}_rounds", first_at(curve, given), "rounds", None)
    _draw(amount, "momentum", "Holdout loss: four learners, 30 steps a round", found)


def guard(amount: Curves) -> Iterator[Row]:
    """Rounds without anybody bad, many and long ones: by how much the loss rises in the worst. What
    is above the limit would have been rolled back for nothing (ADR 26)."""
    plan = Plan(amount.light, rounds=5 * amount.rounds, density=DENSITY, rule="robust")
    yield at_most("worst_rise_many", worst_rise(run(plan)), "ppm", GUARD_PPM)
    long = replace(
        amount.light.training,
        steps=LONG_STEPS,
        segment_steps=LONG_STEPS,
        learning_rate_nano=NANO_TRAINING.learning_rate_nano,
    )
    plan = replace(plan, size=replace(amount.light, training=long), rounds=2 * amount.rounds)
    yield at_most("worst_rise_long", worst_rise(run(plan)), "ppm", GUARD_PPM)


def _cases(amount: Curves) -> Iterator[tuple[str, Size, int | None]]:
    long = replace(amount.light.training, steps=LONG_STEPS, segment_steps=LONG_STEPS)
    yield "fp32", amount.light, None
    yield "67x", amount.light, 227
    yield "67x_long", replace(amount.light, training=long), 227
    yield "67x_whole", amount.whole, 227


GROUPS = {
    "suite20": suite20,
    "rounds": rounds,
    "robust": robust,
    "moments": moments,
    "momentum": momentum,
    "guard": guard,
}


def first_at(curve: Curve, goal: float) -> int:
    """The first round after which the loss is at most `goal`; one more than there are, if none."""
    return next((i for i, loss in enumerate(curve.losses) if loss <= goal), len(curve.losses))


def worst_rise(curve: Curve) -> float:
    """By how many millionths of itself the loss rose in the worst round; negative if it fell."""
    return max(1e6 * (after - before) / before for before, after in pairwise(curve.losses))


def _kept(curve: Curve, clean: Curve) -> float:
    return 100 * curve.progress / clean.progress


def _draw(amount: Curves, name: str, title: str, found: Mapping[str, Curve]) -> None:
    if amount.plots is None:
        return
    lines: dict[str, Sequence[float]] = {key: curve.losses for key, curve in found.items()}
    amount.plots.mkdir(parents=True, exist_ok=True)
    (amount.plots / f"{name}.svg").write_text(chart(title, "round", "nats per byte", lines))
