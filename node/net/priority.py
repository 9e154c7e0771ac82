"""Which of two things that wait for one peer goes first."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """The smaller goes first. On a libp2p stream, which has no order among streams, it has no
    effect; on a link (docs/spec/network.md) a vote never waits behind a tile."""

    VOTE = 0  # consensus: small, and late is as good as lost
    NORMAL = 1  # questions and short answers
    BULK = 2  # tiles, deltas, snapshots: whatever is counted in megabytes
