"""The compression is part of the last segment: what an auditor says of a payload, a residual and an
optimizer that the training does not lead to. The worker is real, and so is the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from chain.errors import UnreachableError
from chain.hashes import ZERO_HASH, Hash32
from chain.records import RoundPhase, shard_key
from chain.transactions import PodlManifest, Verdict
from chain.types import PubKey, ShardIndex
from corpus.batches import Assignment
from learning import state_parts
from learning.compress import compress
from learning.held import Held, held_experts, layout_of
from learning.init import initial_shards
from learning.spec import TrainingSpec, expert_name
from learning.state import residual_root, sections_root
from learning.state_parts import served_residual, served_state
from node.services.duty_jury import _replayed
from node.worker.client import Worker
from node.worker.training import TrainJob, TrainOutcome
from tests.kit.nano import TINY, TINY_TRAINING, library
from tests.unit.test_worker_client import with_worker
from tiles.codings import CODECS, LOW_RANK
from tiles.merkle import model_root, shard_root, tile_root

BASE = initial_shards(TINY)
ROOT = sections_root(BASE)
LEARNER, SEED = PubKey(b"l" * 32), Hash32(b"s" * 32)
RULE = replace(TINY_TRAINING, steps=4, segment_steps=2)
PART = tuple(ShardIndex(shard.index) for shard in TINY.shards() if shard.name != expert_name(0, 1))
ROUND = 1


@dataclass
class Trained:
    """A round's training that went on from another, and its auditor."""

    worker: Worker
    rule: TrainingSpec
    held: Held | None
    manifest: PodlManifest
    states: list[bytes]
    residual: tuple[bytes, ...]  # before the round

    def served(self, segment: int) -> dict[Hash32, bytes]:
        root, data = residual_root(self.residual), b"".join(self.residual)
        state_hash = self.manifest.state_hashes[segment]
        return served_residual(TINY, data, root, self.held) | served_state(
            TINY, self.states[segment], state_hash, self.held
        )

    async def verdict(
        self,
        manifest: PodlManifest | None = None,
        segment: int = 1,
        served: dict[Hash32, bytes] | None = None,
    ) -> tuple[Verdict, Hash32]:
        held = self.served(segment) if served is None else served

        async def get_checkpoint(name: Hash32, *, most: int, check: Any) -> bytes:
            if name not in held:
                raise UnreachableError("nobody has it")
            assert check(held[name])
            return held[name]

        async def assignment(current: object, learner: PubKey) -> Assignment:
            return given(self.rule)

        async def newest_model(state: object, shards: Sequence[int]) -> list[bytes]:
            return [BASE[index] for index in shards]

        roots = {shard_key(i): shard_root([tile_root(s)], len(s)) for i, s in enumerate(BASE)}
        state = SimpleNamespace(need=lambda cls, key: SimpleNamespace(root=roots[key]))
        node = SimpleNamespace(
            assignment=assignment,
            newest_model=newest_model,
            state=lambda: state,
            specs=lambda number: SimpleNamespace(model=TINY, training=self.rule),
            node=SimpleNamespace(blobs=SimpleNamespace(get_checkpoint=get_checkpoint)),
            worker=self.worker,
        )
        current = SimpleNamespace(number=ROUND, base_root=ROOT, phase=RoundPhase.SCREEN_COMMIT)
        return await _replayed(
            cast(Any, node), cast(Any, current), manifest or self.manifest, segment
        )


def given(rule: TrainingSpec) -> Assignment:
    shape = {"steps": rule.steps, "batch": rule.batch, "context": TINY.context}
    return Assignment(library(20_000), SEED, LEARNER, ROUND, **shape)


async def trained(worker: Worker, rule: TrainingSpec, shards: tuple[ShardIndex, ...]) -> Trained:
    held = held_experts(TINY, shards)
    base = [BASE[shard.index] for shard in layout_of(TINY, held)]
    batches = given(rule).batches(0, rule.steps)
    first = TrainJob(TINY, rule, ROUND - 1, ROOT, base, batches, shards=shards)
    one = await worker.train(first)
    states: list[bytes] = []
    job = replace(first, round=ROUND, previous=one.state, residual=one.residual)
    two = await worker.train(job, None, lambda _, state: states.append(state))
    assert two.residual_before == one.residual_after
    manifest = named(rule, two, shards)
    return Trained(worker, rule, held, manifest, states, one.residual)


def named(
    rule: TrainingSpec, outcome: TrainOutcome, shards: tuple[ShardIndex, ...]
) -> PodlManifest:
    return PodlManifest(
        round=ROUND,
        learner=LEARNER,
        base_root=ROOT,
        proven=1,
        datasets=(),
        seed=SEED,
        profile=outcome.profile,
        steps=rule.steps,
        segment_steps=rule.segment_steps,
        batch_root=given(rule).root(rule.steps),
        state_hashes=outcome.state_hashes,
        residual_before=outcome.residual_before,
        residual_after=outcome.residual_after,
        optimizer_before=outcome.optimizer_before,
        optimizer_after=outcome.optimizer_after,
        payload_root=outcome.payload_root,
        density=rule.density(ROUND),
        shards=shards,
    )


def test_a_payload_that_its_training_does_not_lead_to_is_a_mismatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(worker: Worker) -> None:
        for codec in CODECS:
            rule = replace(RULE, codec=codec, rank=2 * (codec == LOW_RANK))
            await lies_are_found(await trained(worker, rule, ()))
        await lies_are_found(await trained(worker, RULE, PART))
        sparse = await trained(worker, RULE, ())
        await a_fresh_learner_shows_no_residual(sparse)
        await residuals_that_are_none(sparse, monkeypatch)

    with_worker(body)


async def lies_are_found(made: Trained) -> None:
    honest = made.manifest
    assert await made.verdict() == (Verdict.YES, honest.state_hashes[-1])
    other = Hash32(b"o" * 32)
    lies: dict[str, Hash32] = {
        "payload_root": flipped(made),  # sound, and another delta than what was trained
        "residual_after": other,
        "optimizer_after": other,
    }
    for name, root in lies.items():
        lie = replace(honest, **cast(Any, {name: root}))
        assert await made.verdict(lie) == (Verdict.NO, honest.payload_root), name
        # The lie stands in one segment, so it is met as often as that one is drawn.
        assert await made.verdict(lie, segment=0) == (Verdict.YES, honest.state_hashes[1]), name


def flipped(made: Trained) -> Hash32:
    """Root of the payload of the training's negative."""
    base = [BASE[shard.index] for shard in layout_of(TINY, made.held)]
    moved = [np.frombuffer(section, "<f4") * np.float32(0.9) for section in base]
    after = [section.tobytes() for section in moved]
    return compress(TINY, made.rule, ROUND, ROOT, base, after, None, made.held).payload_root


async def a_fresh_learner_shows_no_residual(made: Trained) -> None:
    """Whoever chains no residual compresses without one; who has used one is found out."""
    lie = replace(made.manifest, residual_before=ZERO_HASH)
    assert (await made.verdict(lie, served=only_state(made)))[0] == Verdict.NO
    batches = given(made.rule).batches(0, made.rule.steps)
    states: list[bytes] = []
    job = TrainJob(TINY, made.rule, ROUND, ROOT, BASE, batches)
    out = await made.worker.train(job, None, lambda _, state: states.append(state))
    fresh = replace(made, manifest=named(made.rule, out, ()), states=states)
    assert fresh.manifest.residual_before == ZERO_HASH
    found = await fresh.verdict(served=only_state(fresh))
    assert found == (Verdict.YES, out.state_hashes[-1])


def only_state(made: Trained) -> dict[Hash32, bytes]:
    name = made.manifest.state_hashes[1]
    return served_state(TINY, made.states[1], name, made.held)


async def residuals_that_are_none(made: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual that nobody shows proves nothing; one that no compression leaves is a lie."""
    monkeypatch.setattr("node.services.duty_jury.UPLOAD_PAUSES_S", (0.0,))
    with pytest.raises(UnreachableError):
        await made.verdict(served=only_state(made))
    nan = tuple(np.full(len(s) // 4, np.nan, "<f4").tobytes() for s in BASE)
    claimed = replace(made.manifest, residual_before=residual_root(nan))
    lie = replace(made, manifest=claimed, residual=nan)
    assert await lie.verdict() == (Verdict.NO, ZERO_HASH)
    monkeypatch.setattr(state_parts, "PARTED_BYTES", 0)
    assert len(made.served(1)) > 4 * len(BASE) // 2
    assert await made.verdict() == (Verdict.YES, made.manifest.state_hashes[-1])
    short = b"short"
    roots = [tile_root(data) for data in (short, *made.residual[1:])]
    shards = [shard_root([root], len(s)) for root, s in zip(roots, made.residual, strict=True)]
    name = model_root(shards)
    served = made.served(1) | {name: b"".join(roots), roots[0]: short}
    wrong = replace(made.manifest, residual_before=name)
    assert await made.verdict(wrong, served=served) == (Verdict.NO, ZERO_HASH)
