"""What the network says of its peers. Imports nothing of libp2p."""

from __future__ import annotations

import time
from dataclasses import dataclass

from node.net.state import State


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One peer, as `peers()` found it. `direction`: "in" if it dialled us, "out" if we did."""

    peer_id: str
    addresses: tuple[str, ...]
    connected: bool
    rtt_ms: float | None
    violations: float  # points; at 100 it is disconnected and refused for some minutes
    direction: str | None


def found_peers(state: State) -> list[PeerInfo]:
    """Every peer that is connected, wanted or pinned, by peer id."""
    links = {name: link for name, link in list(state.links.items()) if link.is_usable}
    known = dict(list(state.book.known.items()))
    kept = {name for name, peer in known.items() if peer.is_kept}
    found = []
    for name in sorted(links.keys() | kept):
        link, peer = links.get(name), known.get(name)
        found.append(
            PeerInfo(
                peer_id=name,
                addresses=tuple(str(a) for a in list(peer.addresses)) if peer else (),
                connected=link is not None,
                rtt_ms=link.rtt_ms if link else None,
                violations=round(state.book.violations.points(name, time.monotonic()), 3),
                direction=state.directions.get(name) if link else None,
            )
        )
    return found
