"""What `blyan-node doctor` has to say of one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`detail` says what there is; of what is not ok what was expected, and what to do."""

    check: str
    ok: bool
    detail: str
