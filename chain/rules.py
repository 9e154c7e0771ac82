"""What the state machine must check but may not import: `node/` assembles it from
`tiles/` and `consensus/`. Every method is pure and deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chain.hashes import Hash32
from chain.model_versions import Documents, ModelChange
from chain.records import Cutoff, EpochRecord
from chain.transactions import LossSlice, TileChange
from chain.types import ChainId, EvidenceItem, PubKey, Validator, ValidatorSet, View


class Rules(Protocol):
    def draw(self, seed: Hash32, candidates: Sequence[Validator], size: int) -> tuple[PubKey, ...]:
        """A committee of accounts drawn by stake without replacement; all when there are fewer."""

    def watchers(
        self, seed: Hash32, candidates: Sequence[Validator], size: int
    ) -> tuple[PubKey, ...]:
        """Who looks after others' work; drawn as a committee, but not the same one."""

    def leader(self, seed: Hash32, view: View, validators: ValidatorSet) -> int:
        """The index of the leader of a view in its epoch's set."""

    def ranks(
        self, epoch: EpochRecord, shard: int, tile: int, most: int | None = None
    ) -> tuple[PubKey, ...]:
        """The first `most` (by default all) accounts in an epoch's custody order for a tile; the
        first is its primary."""

    def cutoffs(self, epoch: EpochRecord, tiles: Sequence[int], depth: int) -> tuple[Cutoff, ...]:
        """The cutoffs of the members that are full when each tile of the model has `depth`
        custodians; `tiles`: how many each shard has."""

    def pol_verdict(self, slices: Sequence[LossSlice], proven: bool) -> tuple[int, int, int]:
        """(verdict, mean gain, its lower bound) of the screen's paired test, gains in nano-nats per
        byte. A lower bound of 0 or more is what one that is not proven must have."""

    def check_change(self, change: TileChange, deltas: int) -> str | None:
        """Why a tile change cannot be right by itself (weights that do not follow), or None."""

    def shard_root(self, tile_roots: Sequence[Hash32], data_bytes: int) -> Hash32: ...

    def model_root(self, shard_roots: Sequence[Hash32]) -> Hash32: ...

    def check_subtile(
        self,
        tile_root: Hash32,
        tile_bytes: int,
        subtile: int,
        siblings: Sequence[Hash32],
        data: bytes,
    ) -> str | None:
        """Why `data` is not this subtile of a tile with this root and size, or None."""

    def check_evidence(
        self, chain_id: ChainId, validators: ValidatorSet, item: EvidenceItem
    ) -> tuple[PubKey, ...]:
        """The guilty consensus keys, at least one, in the set's order; or VerifyError."""

    def model_change(self, old: Documents, new: Documents) -> tuple[ModelChange, str]:
        """The least step of SemVer between two versions of the model's documents, and why; or
        VerifyError if the new ones are not those of a model."""
