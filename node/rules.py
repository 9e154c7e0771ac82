"""The state machine's questions (chain/rules.py), answered from tiles/, consensus/ and
learning/."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from chain.errors import VerifyError
from chain.hashes import Hash32
from chain.model_versions import Documents, ModelChange
from chain.records import Cutoff, EpochRecord
from chain.transactions import GRAM_BYTES, LossSlice, TileChange
from chain.types import (
    ChainId,
    EvidenceItem,
    PubKey,
    ShardIndex,
    TileIndex,
    Validator,
    ValidatorSet,
    View,
)
from consensus import election, pol, ranking
from consensus.bounded import Assignment
from consensus.custodians import CustodyOrder
from consensus.election import Candidate
from consensus.evidence import check_evidence
from learning.versions import change_between
from tiles import aggregate, merkle


class ProtocolRules:
    """Implements `chain.rules.Rules`; one instance a process, without state of its own."""

    def draw(self, seed: Hash32, candidates: Sequence[Validator], size: int) -> tuple[PubKey, ...]:
        return election.draw(seed, [Candidate(v.account, v.stake) for v in candidates], size)

    def watchers(
        self, seed: Hash32, candidates: Sequence[Validator], size: int
    ) -> tuple[PubKey, ...]:
        stakes = [Candidate(v.account, v.stake) for v in candidates]
        return election.watchers(seed, stakes, size, ())

    def leader(self, seed: Hash32, view: View, validators: ValidatorSet) -> int:
        return election.leader(seed, view, validators)

    def ranks(
        self, epoch: EpochRecord, shard: int, tile: int, most: int | None = None
    ) -> tuple[PubKey, ...]:
        return _ranks(epoch.seed, custodians(epoch), _named(epoch), shard, tile, most)

    def cutoffs(self, epoch: EpochRecord, tiles: Sequence[int], depth: int) -> tuple[Cutoff, ...]:
        room = tuple(standing.capacity_tiles for standing in epoch.standings)
        return _cutoffs(epoch.seed, custodians(epoch), room, tuple(tiles), depth)

    def pol_verdict(self, slices: Sequence[LossSlice], proven: bool) -> tuple[int, int, int]:
        decision = pol.verdict(
            [s.base_loss for s in slices], [s.delta_loss for s in slices], proven
        )
        return int(decision.verdict), decision.mean, decision.lower

    def check_change(self, change: TileChange, deltas: int) -> str | None:
        if len(change.gram) != GRAM_BYTES * deltas * (deltas + 1) // 2:
            return f"the Gram matrix is not of the round's {deltas} deltas"
        if not aggregate.check_weights(change.gram, change.weights):
            return "the weights do not follow from the Gram matrix"
        return None

    def shard_root(self, tile_roots: Sequence[Hash32], data_bytes: int) -> Hash32:
        return merkle.shard_root(tile_roots, data_bytes)

    def model_root(self, shard_roots: Sequence[Hash32]) -> Hash32:
        return merkle.model_root(shard_roots)

    def check_subtile(
        self,
        tile_root: Hash32,
        tile_bytes: int,
        subtile: int,
        siblings: Sequence[Hash32],
        data: bytes,
    ) -> str | None:
        proof = merkle.SubtileProof(subtile, tile_bytes, tuple(siblings))
        try:
            merkle.verify_subtile(tile_root, proof, data)
        except VerifyError as error:
            return str(error)
        return None

    def check_evidence(
        self, chain_id: ChainId, validators: ValidatorSet, item: EvidenceItem
    ) -> tuple[PubKey, ...]:
        return check_evidence(chain_id, validators, item)

    def model_change(self, old: Documents, new: Documents) -> tuple[ModelChange, str]:
        return change_between(old, new)


def custodians(epoch: EpochRecord) -> tuple[Candidate, ...]:
    """Who may be elected to keep tiles, and what each weighs."""
    return tuple(
        Candidate(v.account, election.weight(v.stake, s.reputation, s.latency_class))
        for v, s in zip(epoch.validators.members, epoch.standings, strict=True)
    )


def custody_order(epoch: EpochRecord) -> CustodyOrder:
    """The orders of an epoch whose record has its cutoffs."""
    return _order(epoch.seed, custodians(epoch), _named(epoch))


# Members of the set that are full, by number, and the tile that each refused first.
_Cutoffs = tuple[tuple[int, bytes], ...]


def _named(epoch: EpochRecord) -> _Cutoffs:
    return tuple((c.member, election.tile_subject(c.shard, c.tile)) for c in epoch.cutoffs)


@lru_cache(maxsize=4)
def _order(seed: Hash32, candidates: tuple[Candidate, ...], cutoffs: _Cutoffs) -> CustodyOrder:
    return CustodyOrder(ranking.layout_of(seed, candidates), dict(cutoffs))


@lru_cache(maxsize=65_536)
def _ranks(
    seed: Hash32,
    candidates: tuple[Candidate, ...],
    cutoffs: _Cutoffs,
    shard: int,
    tile: int,
    most: int | None,
) -> tuple[PubKey, ...]:
    """Ranks hold for a whole epoch and are asked for at every block: worth remembering."""
    subject = election.tile_subject(ShardIndex(shard), TileIndex(tile))
    return _order(seed, candidates, cutoffs).ranks(subject, most)


@lru_cache(maxsize=4)
def _cutoffs(
    seed: Hash32,
    candidates: tuple[Candidate, ...],
    room: tuple[int, ...],
    tiles: tuple[int, ...],
    depth: int,
) -> tuple[Cutoff, ...]:
    """An election of the whole model, unless everyone has room for all of it. Remembered: whoever
    plans for an epoch asks for them long before the chain does."""
    if min(room, default=sum(tiles)) >= sum(tiles):
        return ()
    subjects = [
        election.tile_subject(ShardIndex(shard), TileIndex(tile))
        for shard, count in enumerate(tiles)
        for tile in range(count)
    ]
    refused = Assignment(ranking.layout_of(seed, candidates), subjects, depth, room).cutoffs
    found = []
    for member, candidate in enumerate(candidates):
        name = refused.get(candidate.account)
        if name is not None:
            found.append(Cutoff(member, *election.named_by(name)))
    return tuple(found)
