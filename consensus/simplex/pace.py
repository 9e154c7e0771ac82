"""Δ, and which leaders have fallen silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chain.certificates import is_quorum
from chain.types import PubKey, Stake, ValidatorSet
from consensus.simplex.rules import Rule, unobserved

SILENT_VIEWS = 16  # a leader unheard for this many views is passed over


class Pace:
    """Δ doubles after a nullified view and halves on finality, between floor and cap."""

    def __init__(
        self, floor_ms: int, cap_ms: int, on_rule: Callable[[Rule], None] = unobserved
    ) -> None:
        self._cap_ms, self._did = cap_ms, on_rule
        self._floor_ms = self.delta_ms = min(floor_ms, cap_ms)

    def set_bounds(self, floor_ms: int, cap_ms: int) -> None:
        """Those of an epoch that begins."""
        self._cap_ms, self._floor_ms = cap_ms, min(floor_ms, cap_ms)
        self.delta_ms = min(max(self.delta_ms, self._floor_ms), cap_ms)

    def set_floor(self, floor_ms: int) -> None:
        """The driver's measure: twice the round trip of two thirds of stake, plus execution."""
        self._floor_ms = min(floor_ms, self._cap_ms)
        self.delta_ms = max(self.delta_ms, self._floor_ms)

    def nullified(self) -> None:
        self._did(Rule.DL_DOUBLE)
        self.delta_ms = min(self._cap_ms, 2 * self.delta_ms)

    def finalized(self) -> None:
        if self.delta_ms > self._floor_ms:
            self._did(Rule.DL_HALVE)
        self.delta_ms = max(self._floor_ms, self.delta_ms // 2)


class Attendance:
    """Who was heard, in certificates or in votes, over the last 16 views that this node entered.

    Skipping is bounded so that a node which merely hears badly cannot skip everyone: at most n
    skips since the last finalization, and only while the silent hold less than W/3 in all.
    """

    def __init__(self) -> None:
        self._entered = 0
        self._heard: dict[PubKey, int] = {}
        self._skips = 0

    def entered(self) -> None:
        self._entered += 1

    def heard(self, keys: Iterable[PubKey]) -> None:
        for key in keys:
            self._heard[key] = self._entered

    def finalized(self) -> None:
        self._skips = 0

    def open_epoch(self, validators: ValidatorSet) -> None:
        """A member who was not there before starts as heard."""
        keys = [v.consensus_key for v in validators.members]
        self._heard = {k: self._heard.get(k, self._entered) for k in keys}

    def skip(self, validators: ValidatorSet, leader: PubKey) -> bool:
        """Whether the view of `leader` is nullified on entry; counts the skip."""
        silent = [v for v in validators.members if self.is_silent(v.consensus_key)]
        weight = Stake(validators.total - sum(v.stake for v in silent))
        if not self.is_silent(leader) or not is_quorum(weight, validators.total):
            return False
        if self._skips >= len(validators.members):
            return False
        self._skips += 1
        return True

    def is_silent(self, key: PubKey) -> bool:
        """Whether nothing of this member was heard in the last 16 views entered here."""
        return self._entered - self._heard.get(key, 0) > SILENT_VIEWS
