"""Snapshots of small states in small chunks."""

from __future__ import annotations

import pytest

from chain import snapshot
from chain.hashes import ZERO_HASH, Hash32
from chain.snapshot import SnapshotManifest, plan
from chain.tree import StateTree
from chain.types import ChainId, Epoch, Header, Height, PubKey, TimeMs, View


def header_of(state_root: Hash32) -> Header:
    """A header of which only the state root means anything."""
    return Header(
        1,
        ChainId(bytes(32)),
        Epoch(0),
        View(1),
        Height(8),
        ZERO_HASH,
        TimeMs(1),
        PubKey(bytes(32)),
        ZERO_HASH,
        state_root,
        ZERO_HASH,
        ZERO_HASH,
        b"",
        b"",
        ZERO_HASH,
    )


def manifest_of(tree: StateTree) -> SnapshotManifest:
    return SnapshotManifest(header_of(tree.root), plan(tree))


def small_chunks(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Chunks of at most so much, in this process: small states then have several."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", most)
