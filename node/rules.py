"""The state machine's questions (chain/rules.py), answered from tiles/ and consensus/."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from chain.errors import VerifyError
from chain.hashes import Hash32
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
from consensus.election import Candidate
from consensus.evidence import check_evidence
from tiles import aggregate, merkle


class ProtocolRules:
    """Implements `chain.rules.Rules`; one instance a process, without state of its own."""

    def draw(self, seed: Hash32, candidates: Sequence[Validator], size: int) -> tuple[PubKey, ...]:
        return election.draw(seed, [Candidate(v.account, v.stake) for v in candidates], size)

    def leader(self, seed: Hash32, view: View, validators: ValidatorSet) -> int:
        return election.leader(seed, view, validators)

    def ranks(
        self, seed: Hash32, shard: int, tile: int, candidates: Sequence[Validator], most: int
    ) -> tuple[PubKey, ...]:
        return _ranks(seed, shard, tile, custodians(candidates), most)

    def pol_verdict(self, slices: Sequence[LossSlice], proven: bool) -> tuple[int, int]:
        decision = pol.verdict(
            [s.base_loss for s in slices], [s.delta_loss for s in slices], proven
        )
        return int(decision.verdict), decision.mean

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


@lru_cache(maxsize=65_536)
def _ranks(
    seed: Hash32, shard: int, tile: int, candidates: tuple[Candidate, ...], most: int
) -> tuple[PubKey, ...]:
    """Ranks hold for a whole epoch and are asked for at every block: worth remembering."""
    subject = election.tile_subject(ShardIndex(shard), TileIndex(tile))
    return ranking.layout_of(seed, candidates).ranks(subject, most)


def custodians(members: Sequence[Validator]) -> tuple[Candidate, ...]:
    """Who may be elected to keep tiles, and what each weighs. Every reputation is still 1, and
    nobody's latency is known on chain."""
    return tuple(Candidate(v.account, election.weight(v.stake)) for v in members)
