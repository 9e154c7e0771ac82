"""What is asked for by a node that lacks blocks (docs/spec/sync.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.codec import U8, Seq, wire
from chain.types import CertifiedBlock, Height

PROTOCOL = "/blyan/sync/1"
BATCH_BLOCKS = 256
BATCH_BYTES = 4 * 1024 * 1024


@wire(20)
@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Asks for final blocks from `first` on; none fit an asker who only wants the tip's height."""

    first: Height
    blocks: U8  # 0: only tell the tip


@wire(21)
@dataclass(frozen=True, slots=True)
class SyncReply:
    """The sender's final height and consecutive blocks; the last one carries its certificate."""

    tip: Height
    blocks: Annotated[tuple[CertifiedBlock, ...], Seq(BATCH_BLOCKS)]
