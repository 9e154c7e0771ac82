"""What an auditor says when it replays a segment in the manifest's numeric profile, or cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from chain.codec import encode
from chain.errors import ConfigError, InputError, UnreachableError, VerifyError, WorkerError
from chain.hashes import ZERO_HASH, Hash32
from chain.records import RoundPhase
from chain.transactions import Attest, PodlManifest, Verdict
from chain.types import PubKey, ShardIndex, TxId
from corpus.batches import Assignment
from learning import state_parts
from learning.compress import compress
from learning.held import held_experts
from learning.init import initial_shards
from learning.profile import EXACT, kind_of
from learning.spec import expert_name
from learning.state import (
    TrainState,
    counters_leaf,
    header_of,
    sections_root,
    serialize_state,
)
from node.services.duty_jury import _replayed, check_payload, replay
from node.services.duty_plan import Replay as Replaying
from node.worker.training import Replay
from tests.kit.nano import TINY, TINY_TRAINING, library
from tiles.codings import CODECS, LOW_RANK
from tiles.delta import encode_delta, payload_root
from tiles.merkle import merkle_root, model_root, shard_root, tile_root

BASE = initial_shards(TINY)
ROOT, START = sections_root(BASE), TrainState.fresh(BASE)
END, OTHER = Hash32(b"e" * 32), Hash32(b"o" * 32)
LEARNER, SEED = PubKey(b"l" * 32), Hash32(b"s" * 32)
GIVEN = Assignment(
    library(20_000), SEED, LEARNER, 0, steps=TINY_TRAINING.steps, batch=4, context=16
)
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
ROUND = cast(Any, SimpleNamespace(number=0, base_root=ROOT, phase=RoundPhase.SCREEN_COMMIT))


def context(answer: Replay | Exception, start: TrainState = START) -> Any:
    """A node whose worker answers so, if it is asked for the manifest's profile, and that has this
    state to begin at."""

    async def worker(*args: object, closing: object) -> Replay:
        if isinstance(answer, Exception):
            raise answer
        assert args[-3:] == (answer.profile, (), GIVEN.mask_key())
        assert closing is None  # but for the last segment (tests/unit/test_replay_end.py)
        return answer

    async def assignment(current: object, learner: PubKey) -> Assignment:
        return GIVEN

    async def checkpoint(state_hash: Hash32, *, most: int, check: Any) -> bytes:
        data = serialize_state(start)
        assert state_hash == start.hash()
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


def test_what_no_rule_asks_for_is_refused_before_it_costs_anything() -> None:
    """The chain takes any steps that are a multiple of any segment's: 2^32 of them would take a
    day and 316 GB, in a thread that nobody can end."""
    rule, part = TINY_TRAINING, (ShardIndex(0), ShardIndex(1))
    most = 2**32 - 1
    claims = [
        replace(MANIFEST, steps=most, segment_steps=most, state_hashes=(START.hash(), END)),
        replace(MANIFEST, steps=2 * rule.steps, state_hashes=(END,) * (2 * rule.segments + 1)),
        replace(MANIFEST, segment_steps=rule.steps, state_hashes=(START.hash(), END)),
        replace(MANIFEST, density=MANIFEST.density + 1),
        replace(MANIFEST, shards=part),
    ]
    for manifest in claims:
        nothing = context(AssertionError("nothing is replayed"))
        nothing.assignment = nothing.worker = None
        found = asyncio.run(_replayed(nothing, ROUND, manifest, 0))
        assert found == (Verdict.NO, ZERO_HASH)
    nothing = context(AssertionError("nothing is replayed"))
    nothing.assignment = nothing.worker = None
    found = asyncio.run(_replayed(nothing, ROUND, replace(MANIFEST, profile="exact/2"), 0))
    assert found == (Verdict.UNAVAILABLE, ZERO_HASH)


def said(node: Any, manifest: PodlManifest, segment: int, current: Any = None) -> Attest:
    """What an auditor tells the chain."""
    sent: list[Attest] = []

    async def send(payload: Attest) -> None:
        sent.append(payload)

    record = SimpleNamespace(id=b"d" * 32, manifest=manifest)
    node.state = lambda: SimpleNamespace(round=lambda _: current or ROUND, delta=lambda _: record)
    node.send = send
    asyncio.run(replay(node, Replaying(0, TxId(b"d" * 32), segment)))
    (attest,) = sent
    return attest


def test_a_state_that_no_training_leads_to_costs_nobody_a_verdict() -> None:
    """A counter of 2^64 - 1 would overflow at the next step's hash, in every auditor's worker."""
    moments = tuple(b"\0\0\0@" * (len(section) // 4) for section in BASE)

    def found(updates: int, round_: int) -> tuple[Verdict, Hash32]:
        state = replace(START, first=moments, second=moments, updates=updates)
        node = context(Replay(state.hash(), END, EXACT), state)
        hashes = (state.hash(), END, *MANIFEST.state_hashes[2:])
        lie = replace(
            MANIFEST,
            round=round_,
            state_hashes=hashes,
            density=TINY_TRAINING.density(round_),
            optimizer_before=state.optimizer_root(),
        )
        current = SimpleNamespace(number=round_, base_root=ROOT)
        return asyncio.run(_replayed(node, cast(Any, current), lie, 0))

    assert found(100_000, 1) == (Verdict.YES, END)
    for updates, round_ in ((2**64 - 1, 3), (100_001, 1), (1, 0)):
        assert found(updates, round_) == (Verdict.NO, ZERO_HASH)


def test_tiles_that_are_no_state_cost_nobody_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index binds tiles by their roots; that they fit the model, only the whole shows."""
    monkeypatch.setattr(state_parts, "PARTED_BYTES", 0)
    parts = (START.weights, START.first, START.second)
    tiles = {tile_root(data): data for part in parts for data in part}
    short = b"short"
    tiles[tile_root(short)] = short
    roots = [tile_root(data) for part in parts for data in part]
    roots[0] = tile_root(short)
    index = state_parts.StateIndex(header_of(START), tuple(roots))
    sizes = index.header.section_bytes
    shards = [shard_root([root], n) for root, n in zip(roots, 3 * sizes, strict=True)]
    thirds = [shards[i : i + len(sizes)] for i in range(0, len(shards), len(sizes))]
    claimed = merkle_root([*map(model_root, thirds), counters_leaf(index.header)])
    served = {claimed: encode(index), **tiles}
    node = context(AssertionError("nothing is replayed"))
    node.node.blobs.get_checkpoint = served_from(served)
    lie = replace(MANIFEST, state_hashes=(Hash32(claimed), *MANIFEST.state_hashes[1:]))
    assert asyncio.run(_replayed(node, ROUND, lie, 0)) == (Verdict.NO, ZERO_HASH)


def served_from(held: Mapping[bytes, bytes]) -> Any:
    async def get_checkpoint(name: Hash32, *, most: int, check: Any) -> bytes:
        assert check(held[name])
        return held[name]

    return get_checkpoint


@pytest.mark.parametrize("error", [WorkerError("died"), UnreachableError("nobody has it")])
def test_what_cannot_be_replayed_is_told_in_the_end(error: Exception) -> None:
    def node(late: bool) -> Any:
        asked = context(error)
        asked.late = lambda current, window_ms: late
        asked.params = lambda: SimpleNamespace(screen=SimpleNamespace(ms=1000))
        return asked

    opening = SimpleNamespace(**{**vars(ROUND), "phase": RoundPhase.SCREEN_REVEAL})
    with pytest.raises(type(error)):
        said(node(late=False), MANIFEST, 0, opening)
    with pytest.raises(type(error)):
        said(node(late=True), MANIFEST, 0, ROUND)
    attest = said(node(late=True), MANIFEST, 0, opening)
    assert (attest.verdict, attest.evidence) == (Verdict.UNAVAILABLE, ZERO_HASH)


def test_a_no_is_never_taken_for_a_yes() -> None:
    """A liar knows the batches that it should have trained on, and may claim their root for a state
    hash; the chain refuses a 'no' that shows what is claimed."""
    given = GIVEN.root(TINY_TRAINING.steps)
    hashes = (START.hash(), given, *MANIFEST.state_hashes[2:])
    lie = replace(MANIFEST, batch_root=OTHER, state_hashes=hashes)
    attest = said(context(AssertionError("nothing is replayed")), lie, 0)
    assert (attest.verdict, attest.evidence) == (Verdict.NO, ZERO_HASH)
    attest = said(context(AssertionError("nothing is replayed")), lie, 1)
    assert (attest.verdict, attest.evidence) == (Verdict.NO, given)


def test_another_class_proves_nothing() -> None:
    ours = "native/torch-2.0/avx2/threads-1/00"

    async def worker(*args: object, closing: object) -> Replay:
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
