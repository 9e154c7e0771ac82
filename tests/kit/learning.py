"""A learning round on a `LocalChain`: every transaction is real, only the training is not.

Deltas are seeded noise instead of gradients, and losses are made up so that the verdicts follow
from them; payloads, manifests, commitments, aggregation, witnesses and attestations are the
protocol's own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from chain import momentum
from chain import records as r
from chain.hashes import BLOB, DATASET, ZERO_HASH, Hash32
from chain.records import DatasetStatus, RoundPhase
from chain.rounds import manifest_root, tile_ranks
from chain.transactions import (
    Attest,
    AttestKind,
    AuditReport,
    DatasetSubmit,
    DeltaCommit,
    DeltaReveal,
    JoinRound,
    LossSlice,
    Phase,
    PodlManifest,
    PolVote,
    TileChange,
    TileUpdate,
    Verdict,
    delta_commitment,
    pol_commitment,
)
from chain.types import BlobId, PubKey, ShardIndex, TileIndex, TxId
from tiles.aggregate import TileResult, aggregate_tile
from tiles.delta import encode_delta, payload_root
from tiles.merkle import shard_root, tile_roots
from tiles.momentum import share_of
from wallet.keys import KeyPair, Keys

if TYPE_CHECKING:
    from tests.kit.local_chain import LocalChain

LAST_LOSS, FALL = 1_840_000_000, 1_372_000_000  # nano-nats per byte: where it ends, how far
SLICES = 8
STEPS, SEGMENT = 4, 2


@dataclass(slots=True)
class _Delta:
    learner: KeyPair
    payload: bytes
    values: dict[int, npt.NDArray[np.int64]]  # units by shard
    manifest: PodlManifest
    salt: Hash32
    garbage: bool
    id: TxId  # of its commit; zero until it is sent


def loss_after(rounds: int) -> int:
    """The made-up holdout loss after so many rounds: a third less to go with each."""
    return LAST_LOSS + int(FALL * 2**rounds // 3**rounds)


def add_dataset(chain: LocalChain, title: str = "Python standard library") -> Hash32:
    """A dataset submitted by the last learner, audited by all and in use."""
    manifest = f"manifest of {title}".encode()
    dataset = DATASET.hash(manifest)
    chain.blobs.put(manifest)
    chain.send(
        DatasetSubmit(
            dataset,
            BlobId(BLOB.hash(manifest)),
            len(manifest),
            12_345_678,
            1_042,
            "PSF-2.0",
            title,
        ),
        chain.learners[-1],
    )
    chain.block()
    root = Hash32(hashlib.sha256(title.encode()).digest())
    for validator in chain.validators:
        if chain.state.dataset(dataset).status == DatasetStatus.PENDING:
            chain.duty(AuditReport(dataset, Verdict.YES, 97, (), root), validator)
            chain.block()
    chain.until(lambda state: state.dataset(dataset).status == DatasetStatus.ACTIVE)
    return dataset


def run_round(
    chain: LocalChain,
    *,
    learners: int = 2,
    garbage: int = 0,
    worse: bool = False,
    stop_in: RoundPhase | None = None,
) -> int:
    """Run the round in progress to its end, or stop in a phase. Of `learners`, the last `garbage`
    send noise that the jury finds harmful. `worse`: all find the result twice as bad."""
    number = chain.state.round().number
    if not any(True for _ in chain.state.items(b"data/")):
        add_dataset(chain)
    phase = _Stop(chain, number, stop_in)
    who = chain.learners[:learners]
    for learner in who:
        chain.send(JoinRound(number, ()), learner)
    if phase.reach(RoundPhase.TRAIN):
        return number
    deltas = [
        _trained(chain, number, learner, garbage=i >= learners - garbage)
        for i, learner in enumerate(who)
    ]
    _commit(chain, number, deltas)
    if phase.reach(RoundPhase.REVEAL):
        return number
    for delta in deltas:
        chain.send(DeltaReveal(delta.id, delta.salt), delta.learner)
    if phase.reach(RoundPhase.SCREEN_COMMIT):
        return number
    _screen(chain, number, deltas, phase)
    if phase.stopped or phase.reach(RoundPhase.AGGREGATE):
        return number
    if chain.state.round(number).phase == RoundPhase.AGGREGATE:
        _aggregate(chain, number, [d for d in deltas if not d.garbage])
        if phase.reach(RoundPhase.SETTLE):
            return number
        _measure(chain, number, worse)
        phase.reach(RoundPhase.DONE)
    return number


class _Stop:
    """Blocks until a phase, unless the round was to stop before."""

    def __init__(self, chain: LocalChain, number: int, stop_in: RoundPhase | None) -> None:
        self._chain, self._number, self._stop = chain, number, stop_in
        self.stopped = False

    def reach(self, phase: RoundPhase) -> bool:
        """True if the wanted last phase is reached: nothing more is to be done."""
        last = phase if self._stop is None else min(phase, self._stop)
        self._chain.until(lambda state: state.round(self._number).phase >= last)
        self.stopped = self._chain.state.round(self._number).phase == self._stop
        return self.stopped


def _trained(chain: LocalChain, number: int, learner: KeyPair, garbage: bool) -> _Delta:
    current = chain.state.round(number)
    seed = hashlib.sha256(b"delta" + bytes([number]) + learner.public).digest()
    noise = np.random.default_rng(list(seed))
    size = 0.5 if garbage else 0.01
    raw = {
        spec.index: noise.normal(0, size, spec.elements).clip(-0.9, 0.9).astype(np.float32)
        for spec in chain.tiles.specs
    }
    density = chain.genesis.training["densities"][0]
    payload, decoded = encode_delta(current.base_root, raw, chain.tiles.specs, density)
    hashes = tuple(
        Hash32(hashlib.sha256(seed + bytes([i])).digest()) for i in range(STEPS // SEGMENT + 1)
    )
    manifest = PodlManifest(
        round=number,
        learner=learner.public,
        base_root=current.base_root,
        proven=1,
        datasets=current.datasets,
        seed=current.seed,
        profile="native/kit",
        steps=STEPS,
        segment_steps=SEGMENT,
        batch_root=Hash32(hashlib.sha256(seed + b"batch").digest()),
        state_hashes=hashes,
        residual_before=ZERO_HASH,
        residual_after=Hash32(hashlib.sha256(seed + b"residual").digest()),
        optimizer_before=ZERO_HASH,
        optimizer_after=Hash32(hashlib.sha256(seed + b"optimizer").digest()),
        payload_root=payload_root(payload),
        density=density,
        shards=(),
    )
    values = {index: shard.units.astype(np.int64) for index, shard in decoded.items()}
    salt = Hash32(hashlib.sha256(seed + b"salt").digest())
    return _Delta(learner, payload, values, manifest, salt, garbage, TxId(ZERO_HASH))


def _commit(chain: LocalChain, number: int, deltas: list[_Delta]) -> None:
    base = chain.state.round(number).base_root
    for delta in deltas:
        blob = chain.blobs.put(delta.payload)
        commitment = delta_commitment(
            chain.genesis.chain_id,
            number,
            delta.learner.public,
            base,
            delta.manifest.payload_root,
            delta.salt,
        )
        delta.id = chain.send(
            DeltaCommit(
                number, base, commitment, manifest_root(delta.manifest), blob, len(delta.payload)
            ),
            delta.learner,
        )
        chain.send(delta.manifest, delta.learner)
    chain.block()


def _screen(chain: LocalChain, number: int, deltas: list[_Delta], phase: _Stop) -> None:
    current = chain.state.round(number)
    votes: list[tuple[Keys, PolVote]] = []
    for delta in deltas:
        for juror in _keys_of(chain, current.jurors):
            vote = _vote(chain, number, delta, juror)
            votes.append((juror, vote))
            commitment = pol_commitment(chain.genesis.chain_id, juror.account.public, vote)
            chain.duty(PolVote(number, delta.id, Phase.COMMIT, commitment, ZERO_HASH, 0, ()), juror)
    audited = current.audited
    for auditor in _keys_of(chain, current.auditors):
        found = next(d for d in deltas if d.id == audited)
        claimed = found.manifest.state_hashes[current.audit_segment + 1]
        chain.duty(
            Attest(AttestKind.REPLAY, number, Hash32(found.id), Verdict.YES, 0, claimed), auditor
        )
    if phase.reach(RoundPhase.SCREEN_REVEAL):
        return
    for juror, vote in votes:
        chain.duty(vote, juror)


def _vote(chain: LocalChain, number: int, delta: _Delta, juror: Keys) -> PolVote:
    """Losses that go down a little everywhere, or up for garbage; the verdict follows."""
    noise = np.random.default_rng(list(delta.id + juror.account.public))
    base = loss_after(number)
    slices = tuple(
        LossSlice(
            i * 65,
            base + (wobble := int(noise.integers(0, 9_000_000))),
            base + wobble + (220_000_000 if delta.garbage else -31_000_000) + int(extra),
        )
        for i, extra in enumerate(noise.integers(0, 4_000_000, SLICES))
    )
    verdict, *_ = chain.rules.pol_verdict(slices, True)
    salt = Hash32(hashlib.sha256(delta.id + juror.account.public).digest())
    return PolVote(number, delta.id, Phase.REVEAL, ZERO_HASH, salt, verdict, slices)


def _aggregate(chain: LocalChain, number: int, deltas: list[_Delta]) -> None:
    """Each primary posts its tiles; everyone else attests; the new shards are stored."""
    state = chain.state
    order = list(state.round(number).accepted)
    deltas = sorted(deltas, key=lambda d: order.index(d.id))
    by_primary: dict[PubKey, list[TileChange]] = {}
    new: dict[int, list[bytes]] = {}
    share = share_of(chain.genesis.params.momentum_ppm)
    for spec in chain.tiles.specs:
        record = state.need(r.ShardRecord, r.shard_key(spec.index))
        data = chain.tiles.read(spec.index, record.root)
        past = momentum.past(state, number, spec.index)
        before = chain.tiles.read(spec.index, past.root) if past is not None else None
        roots = state.need(r.TileRoots, r.tiles_key(spec.index)).roots
        for tile, root in enumerate(roots):
            start, end = spec.tile_range(tile)
            parts = [d.values[spec.index][start // 4 : end // 4] for d in deltas]
            old = before[start:end] if before is not None else None
            result = aggregate_tile(data[start:end], parts, old, share)
            new.setdefault(spec.index, []).append(result.new_tile)
            primary = tile_ranks(state, chain.rules, spec.index, tile)[0]
            change = _change(spec.index, tile, root, result)
            by_primary.setdefault(primary, []).append(change)
    base = state.round(number).base_root
    updates = {
        primary: chain.duty(
            TileUpdate(number, 0, base, tuple(changes)), _keys_of(chain, (primary,))[0]
        )
        for primary, changes in by_primary.items()
    }
    chain.block()
    for primary, update in updates.items():
        for validator in chain.validators:
            if validator.account.public != primary:
                attest = Attest(AttestKind.UPDATE, number, Hash32(update), Verdict.YES, 0, base)
                chain.duty(attest, validator)
    for index, tiles in new.items():
        data = b"".join(tiles)
        chain.tiles.store.put_shard(index, data, shard_root(tile_roots(data), len(data)))


def _change(shard: int, tile: int, base: Hash32, result: TileResult) -> TileChange:
    return TileChange(
        ShardIndex(shard),
        TileIndex(tile),
        base,
        result.new_root,
        result.gram_root,
        result.gram_total_bytes,
        result.weights,
    )


def _measure(chain: LocalChain, number: int, worse: bool) -> None:
    current = chain.state.round(number)
    before, after = loss_after(number), loss_after(number + 1)
    if worse:
        after = 2 * before
    for validator in chain.validators:
        for root, loss in ((current.base_root, before), (current.result_root, after)):
            known = chain.state.get(r.EvalRecord, r.eval_key(root, current.holdout))
            if known is None or not any(
                v.validator == validator.account.public for v in known.votes
            ):
                chain.duty(
                    Attest(AttestKind.EVAL, number, root, Verdict.YES, loss, current.holdout),
                    validator,
                )


def _keys_of(chain: LocalChain, accounts: tuple[PubKey, ...]) -> list[Keys]:
    return [k for k in chain.validators if k.account.public in accounts]
