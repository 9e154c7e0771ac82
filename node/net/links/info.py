"""What a link says of itself, for status and metrics. Imports nothing of TLS."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """The link with one connected peer. `dialled_by`: "us", "peer", or None without a link."""

    peer_id: str
    up: bool
    dialled_by: str | None
    rtt_ms: float | None
    bytes_in: int  # over all links with this peer since it connected
    bytes_out: int
