"""What is asked for when a node begins with a snapshot (docs/spec/sync.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.codec import Seq, wire
from chain.hashes import Hash32
from chain.types import Height

PROTOCOL = "/blyan/snapshot/1"
MAX_REQUEST_BYTES = 64
KEPT = 2  # snapshots that a node offers: the one before stays while others still fetch it
MAX_OFFERS = 8


@wire(22)
@dataclass(frozen=True, slots=True)
class OffersRequest:
    """Asks which snapshots above a height are offered."""

    above: Height


@wire(23)
@dataclass(frozen=True, slots=True)
class Offers:
    """Heights of snapshots, the newest first."""

    heights: Annotated[tuple[Height, ...], Seq(MAX_OFFERS)]


@wire(24)
@dataclass(frozen=True, slots=True)
class LightRequest:
    """Asks for the light block of a height; answered with a `LightBlock`."""

    height: Height


@wire(25)
@dataclass(frozen=True, slots=True)
class ManifestRequest:
    """Asks for the manifest of a snapshot; answered with a `SnapshotManifest`."""

    height: Height


@wire(26)
@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Asks for the part of a snapshot that has a hash; answered with a `SnapshotChunk`."""

    height: Height
    hash: Hash32


SnapshotRequest = OffersRequest | LightRequest | ManifestRequest | ChunkRequest
