"""BLAKE3-256 with one derive-key context for each kind of thing (docs/spec/encoding.md).

Two things of different kind never share a hash, even when their bytes agree.
"""

from __future__ import annotations

from typing import Final, NewType

from blake3 import blake3

Hash32 = NewType("Hash32", bytes)

ZERO_HASH: Final = Hash32(bytes(32))
WIDE_BYTES: Final = 16 * 1024  # what BLAKE3 hashes at once with the widest registers there are


class Context:
    """A kind of thing that is hashed. The string is `blyan/1/<name>`."""

    __slots__ = ("_idle", "fresh", "name")

    def __init__(self, name: str) -> None:
        self.name = f"blyan/1/{name}"
        self.fresh = blake3(derive_key_context=self.name).copy
        """A new hasher of this kind: for the few places where a call more is too many. Making one
        takes as long as hashing 64 bytes, so who hashes much resets it after each digest."""
        self._idle: list[blake3] = []  # hashers that were reset; no more than threads hash at once

    def hash(self, *parts: bytes | bytearray | memoryview) -> Hash32:
        """BLAKE3-256 of the concatenated parts. Parts must be fixed-width or self-delimiting."""
        try:
            hasher = self._idle.pop()  # one step for threads: nobody else has it
        except IndexError:
            hasher = self.fresh()
        for part in parts:
            hasher.update(part)
        digest: Hash32 = hasher.digest()  # type: ignore[assignment]  # which is no call
        hasher.reset()
        self._idle.append(hasher)
        return digest

    def hash_behind(self, prefix: bytes, data: bytes | bytearray | memoryview) -> Hash32:
        """`hash(prefix, data)`, quicker for long data: BLAKE3 works on 16 chunks of 1024 bytes at
        once only where an update starts on a multiple of 16 chunks, which a short prefix alone
        would spoil for half of a subtile. So the prefix goes in with the data's beginning."""
        head, view = WIDE_BYTES - len(prefix), memoryview(data)
        hasher = self.fresh().update(prefix + view[:head])
        if len(view) > head:
            hasher.update(view[head:])
        return Hash32(hasher.digest())

    def xof(self, length: int, *parts: bytes) -> bytes:
        """`length` bytes of BLAKE3's extendable output over the parts."""
        try:
            hasher = self._idle.pop()
        except IndexError:
            hasher = self.fresh()
        for part in parts:
            hasher.update(part)
        digest = hasher.digest(length=length)
        hasher.reset()
        self._idle.append(hasher)
        return digest


def keyed_hash(key: Hash32, data: bytes | bytearray | memoryview) -> Hash32:
    """BLAKE3-256 of `data` in keyed mode: the key enters every block of it, so that nothing can be
    worked out before the key is known. A prefix enters the first chunk alone."""
    return Hash32(blake3(data, key=key).digest())


GENESIS: Final = Context("genesis")
BLOCK: Final = Context("block")
TX: Final = Context("tx")
TX_SIGN: Final = Context("tx-sign")
TX_ROOT: Final = Context("tx-root")
EVIDENCE: Final = Context("evidence")
VOTE: Final = Context("vote")
PROPOSAL: Final = Context("proposal")
VALIDATORS: Final = Context("validators")
STAMP: Final = Context("stamp")
STATE_KEY: Final = Context("state-key")
STATE_LEAF: Final = Context("state-leaf")
STATE_NODE: Final = Context("state-node")
VRF_INPUT: Final = Context("vrf-input")
EPOCH_SEED: Final = Context("epoch-seed")
EVENT_SEED: Final = Context("event-seed")
CUSTODY: Final = Context("custody")
COMMITTEE: Final = Context("committee")
DELTA_COMMIT: Final = Context("delta-commit")
DELTA_KEY: Final = Context("delta-key")
POL_COMMIT: Final = Context("pol-commit")
MANIFEST: Final = Context("manifest")
BLOB: Final = Context("blob")
BUNDLE: Final = Context("bundle")
DATASET: Final = Context("dataset")
ANNOUNCE: Final = Context("announce")
SUBTILE: Final = Context("subtile")
TILE_NODE: Final = Context("tile-node")
SHARD: Final = Context("shard")
MODEL: Final = Context("model")
LIST: Final = Context("list")
GRAM_LEAF: Final = Context("gram-leaf")
PAYLOAD: Final = Context("payload")
PAYLOAD_SECTION: Final = Context("payload-section")
TILE_STEP: Final = Context("tile-step")
PRF: Final = Context("prf")
DOCUMENT: Final = Context("document")
AUDIT: Final = Context("audit")
BATCH: Final = Context("batch")
TRAIN_STATE: Final = Context("train-state")
LINK_AUTHORITY: Final = Context("link-authority")
