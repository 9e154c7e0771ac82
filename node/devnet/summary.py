"""What `blyan-node devnet --exit` prints on stdout: one JSON object about the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Summary:
    """Losses are nats per byte on the holdout: before the first round and after the last."""

    height_start: int = 0
    height_end: int = 0
    heights: dict[str, int | None] = field(default_factory=dict)  # None: no answer
    dataset: str | None = None
    deltas: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)  # ids of deltas that are in the update
    rejected: list[str] = field(default_factory=list)
    garbage: str | None = None  # id of the delta that had to be refused
    tile_updates: list[str] = field(default_factory=list)
    model_root: str | None = None
    model_roots: dict[str, str | None] = field(default_factory=dict)
    state_roots: dict[str, str | None] = field(default_factory=dict)  # all at `height_end`
    loss_before: float | None = None
    loss_after: float | None = None
    round: int | None = None
    rounds: int = 0  # finished
    explorer: str = ""
    seconds: float = 0.0
    homes: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Rounds finished, losses known, garbage refused, and everybody has the same roots."""
        return (
            self.error is None
            and self.rounds > 0
            and bool(self.accepted)
            and self.loss_before is not None
            and self.loss_after is not None
            and (self.garbage is None or self.garbage not in self.accepted)
            and _agree(self.model_roots)
            and _agree(self.state_roots)
        )

    def document(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def _agree(roots: dict[str, str | None]) -> bool:
    return len(set(roots.values())) == 1 and None not in roots.values()
