"""What an auditor says when it replays a segment in the manifest's numeric profile, or cannot."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from chain.errors import ConfigError, InputError, VerifyError
from chain.hashes import ZERO_HASH, Hash32
from chain.transactions import PodlManifest, Verdict
from chain.types import PubKey, ShardIndex
from corpus.batches import Assignment
from learning.compress import compress
from learning.held import held_experts
from learning.init import initial_shards
from learning.profile import EXACT, kind_of
from learning.spec import expert_name
from learning.state import TrainState, sections_root, serialize_state
from node.services.duty_jury import _replayed, check_payload
from node.worker.client import Replay
from tests.kit.nano import TINY, TINY_TRAINING, library
from tiles.codings import CODECS, LOW_RANK
from tiles.delta import encode_delta, payload_root

BASE = initial_shards(TINY)
ROOT, START = sections_root(BASE), TrainState.fresh(BASE)
END, OTHER = Hash32(b"e" * 32), Hash32(b"o" * 32)
LEARNER, SEED = PubKey(b"l" * 32), Hash32(b"s" * 32)
GIVEN = Assignment(library(20_000), SEED, LEARNER, 0, batch=4, context=16)
OUT = compress(TINY, TINY_TRAINING, 0, ROOT, BASE, BASE, None)
MANIFEST = PodlManifest(
    round=0,
    learner=LEARNER,
    base_root=ROOT,
    proven=1,
    datasets=(),
    seed=SEED,
    profile=EXACT,
    steps=TINY_TRAINING.steps,
    segment_steps=TINY_TRAINING.segment_steps,
    batch_root=GIVEN.root(TINY_TRAINING.steps),
    state_hashes=(START.hash(), END, OTHER, OTHER, OTHER),
    residual_before=ZERO_HASH,
    residual_after=OUT.residual_after,
    optimizer_before=ZERO_HASH,
    optimizer_after=ZERO_HASH,
    payload_root=OUT.payload_root,
    density=TINY_TRAINING.density(0),
    shards=(),
)
RULES = {
    codec: replace(TINY_TRAINING, codec=codec, rank=2 * (codec == LOW_RANK)) for codec in CODECS
}
ROUND = cast(Any, SimpleNamespace(number=0, base_root=ROOT))


def context(answer: Replay | Exception) -> Any:
    """A node whose worker answers so, if it is asked for the manifest's profile."""

    async def worker(*args: object) -> Replay:
        if isinstance(answer, Exception):
            raise answer
        assert args[-3:] == (answer.profile, (), GIVEN.mask_key())
        return answer

    async def assignment(current: object, learner: PubKey) -> Assignment:
        return GIVEN

    async def checkpoint(state_hash: Hash32, *, most: int, check: Any) -> bytes:
        data = serialize_state(START)
        assert state_hash == START.hash()
        assert check(data)
        return data

    return SimpleNamespace(
        assignment=assignment,
        specs=lambda number: SimpleNamespace(model=TINY, training=TINY_TRAINING),
        node=SimpleNamespace(blobs=SimpleNamespace(get_checkpoint=checkpoint)),
        worker=SimpleNamespace(replay=worker, most_bytes=1 << 20),
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Replay(START.hash(), END, EXACT), (Verdict.YES, END)),
        (Replay(START.hash(), OTHER, EXACT), (Verdict.NO, OTHER)),
        (Replay(START.hash(), ZERO_HASH, EXACT), (Verdict.NO, ZERO_HASH)),
        (InputError("unknown here"), (Verdict.UNAVAILABLE, ZERO_HASH)),
        (ConfigError("does not round"), (Verdict.UNAVAILABLE, ZERO_HASH)),
    ],
    ids=["same", "other", "diverged", "unknown", "cannot"],
)
def test_a_verdict_follows_from_the_replay(
    answer: Replay | Exception, expected: tuple[Verdict, Hash32]
) -> None:
    assert asyncio.run(_replayed(context(answer), ROUND, MANIFEST, 0)) == expected


def test_another_class_proves_nothing() -> None:
    ours = "native/torch-2.0/avx2/threads-1/00"

    async def worker(*args: object) -> Replay:
        return Replay(ZERO_HASH, ZERO_HASH, ours)

    asked = context(Replay(ZERO_HASH, ZERO_HASH, ours))
    asked.worker.replay = worker
    theirs = replace(MANIFEST, profile="native/torch-2.0/avx2/threads-1/01")
    found = asyncio.run(_replayed(asked, ROUND, theirs, 0))
    assert found == (Verdict.UNAVAILABLE, ZERO_HASH)


def test_the_screen_refuses_a_proof_in_a_profile_that_nobody_knows() -> None:
    node = context(InputError(""))

    def check(manifest: PodlManifest) -> None:
        check_payload(node, ROUND, cast(Any, SimpleNamespace(manifest=manifest)), OUT.payload)

    check(MANIFEST)
    check(replace(MANIFEST, profile="native/torch-9/avx10/threads-1/00"))
    for profile in ("", "exact", "exact/2", "bf16", "Native/x"):
        with pytest.raises(VerifyError, match="is unknown here"):
            check(replace(MANIFEST, profile=profile))
        with pytest.raises(InputError):
            kind_of(profile)


def test_the_screen_refuses_what_its_manifest_does_not_hold() -> None:
    node = context(InputError(""))
    every = tuple(ShardIndex(shard.index) for shard in TINY.shards())
    absent = ShardIndex(next(s.index for s in TINY.shards() if s.name == expert_name(0, 1)))
    part = tuple(index for index in every if index != absent)

    def check(payload: bytes, root: Hash32, **changes: Any) -> None:
        manifest = replace(MANIFEST, payload_root=root, **changes)
        check_payload(node, ROUND, cast(Any, SimpleNamespace(manifest=manifest)), payload)

    held = held_experts(TINY, part)
    base = [BASE[index] for index in part]
    moved = [(np.frombuffer(b, "<f4") + np.float32(0.01)).tobytes() for b in base]
    out = compress(TINY, TINY_TRAINING, 0, ROOT, base, moved, None, held)
    for shards in ((), every, part):
        check(out.payload, out.payload_root, shards=shards)
    moved = [(np.frombuffer(b, "<f4") + np.float32(0.01)).tobytes() for b in BASE]
    whole = compress(TINY, TINY_TRAINING, 0, ROOT, BASE, moved, None)
    with pytest.raises(VerifyError, match="a shard that the manifest does not name"):
        check(whole.payload, whole.payload_root, shards=part)
    check(out.payload, out.payload_root, shards=part[1:] + part[:1])  # as a set
    ones = np.full(TINY.shards()[0].elements, 0.5, np.float32)
    density = TINY_TRAINING.density(0)
    embed, _ = encode_delta(ROOT, {0: ones}, TINY.shards(), density)
    with pytest.raises(VerifyError, match="layer 0: a part of the model has an expert"):
        check(embed, payload_root(embed), shards=part[:1])
    check(embed, payload_root(embed), shards=part[:1], proven=0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("proven", [0, 1])
def test_the_screen_refuses_a_payload_in_another_coding_than_the_rules(
    codec: str, proven: int
) -> None:
    node = context(InputError(""))
    node.specs = lambda number: SimpleNamespace(model=TINY, training=RULES[codec])
    for used, rule in RULES.items():
        out = compress(TINY, rule, 0, ROOT, BASE, BASE, None)
        manifest = replace(
            MANIFEST, proven=proven, payload_root=out.payload_root, density=rule.density(0)
        )
        record = cast(Any, SimpleNamespace(manifest=manifest))
        if used == codec:
            check_payload(node, ROUND, record, out.payload)
        else:
            with pytest.raises(VerifyError, match="another coding than the round's"):
                check_payload(node, ROUND, record, out.payload)
