"""The least Δ that this node's network and machine allow (docs/spec/consensus.md, DL).

Δ is twice the round trip within which two thirds of the stake answered, and what execution may
take. A floor that follows what is measured keeps Δ from falling, at each finality, to where the
next view must time out: on a slow network it would go up and down for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from chain.certificates import is_quorum
from chain.types import Stake, Validator
from node.net.info import PeerInfo
from node.net.links.info import LinkInfo

LOOK_S = 1.0  # round trips are read again after so long; they are measured every 2 s or less often


class Pings(Protocol):
    """What of the network port says how far peers are."""

    @property
    def peer_id(self) -> str: ...

    def peers(self) -> Sequence[PeerInfo]: ...

    def link_info(self) -> Sequence[LinkInfo]: ...


def round_trips(net: Pings) -> dict[str, float]:
    """Milliseconds to each connected peer and back, over the quicker way; 0 to this node."""
    found = {p.peer_id: p.rtt_ms for p in net.peers() if p.connected and p.rtt_ms is not None}
    for link in net.link_info():
        if link.rtt_ms is not None:
            found[link.peer_id] = min(link.rtt_ms, found.get(link.peer_id, link.rtt_ms))
    found[net.peer_id] = 0.0
    return found


class DeltaFloor:
    def __init__(
        self, net: Pings, least_ms: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`least_ms`: the network's floor, below which no measure leads."""
        self._net, self._least_ms, self._clock = net, least_ms, clock
        self._mean_ms = self._deviation_ms = 0.0
        self._quorum_ms = 0.0
        self._looked_at: float | None = None

    def executed(self, took_s: float) -> None:
        """A block was executed. Mean and deviation as TCP has them for round trips (RFC 6298)."""
        took_ms = took_s * 1e3
        self._deviation_ms += (abs(took_ms - self._mean_ms) - self._deviation_ms) / 4
        self._mean_ms += (took_ms - self._mean_ms) / 8

    def measured(self, members: Sequence[Validator]) -> int:
        """The floor in ms, never below `least_ms`."""
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._quorum_ms = self._round_trip_ms(members)
        budget_ms = 2 * (self._mean_ms + 4 * self._deviation_ms)  # by the leader, and then here
        return max(self._least_ms(), round(2 * self._quorum_ms + budget_ms))

    def _round_trip_ms(self, members: Sequence[Validator]) -> float:
        """Within which a quorum of the stake answers, this node's own at once. What was last known
        while too few are connected."""
        found = round_trips(self._net)
        answers = sorted(
            (rtt_ms, member.stake)
            for member in members
            if (rtt_ms := found.get(member.node_id)) is not None
        )
        total, weight = sum(member.stake for member in members), 0
        for rtt_ms, stake in answers:
            weight += stake
            if is_quorum(Stake(weight), Stake(total)):
                return rtt_ms
        return self._quorum_ms
