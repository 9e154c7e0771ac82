"""The protocol's pseudo-random function: integers from BLAKE3's extendable output
(docs/spec/training.md, "Random numbers").

A stream is named by a seed, a label and integers or 32-byte strings; it is the same on every
machine, and any part of it can be had without the part before.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from chain.errors import invariant
from chain.hashes import PRF
from chain.types import u64_be

WORD_BYTES = 8


class Prf:
    """One stream of 64-bit words.

    key = H_prf(seed, len(label), label, parts...), seed 32 bytes, integers 8 bytes big-endian;
    word i = bytes [8i, 8i+8) of BLAKE3 keyed by `key` over the empty string, little-endian.
    """

    __slots__ = ("_hasher",)

    def __init__(self, seed: bytes, label: str, *parts: int | bytes) -> None:
        name = label.encode()
        invariant(len(seed) == 32 and len(name) < 256, "a PRF seed is 32 bytes, a label short")
        coded = [u64_be(part) if isinstance(part, int) else bytes(part) for part in parts]
        invariant(all(len(c) in (8, 32) for c in coded), "a PRF part is an integer or 32 bytes")
        key = PRF.hash(seed, bytes([len(name)]), name, *coded)
        self._hasher = blake3(key=key)

    def read(self, length: int, at: int = 0) -> bytes:
        """`length` bytes of the stream from byte `at`; little-endian words for numpy."""
        return self._hasher.digest(length=length, seek=at) if length else b""

    def words(self, count: int, at: int = 0) -> tuple[int, ...]:
        """Words [at, at + count), each uniform below 2**64."""
        return struct.unpack(f"<{count}Q", self.read(count * WORD_BYTES, at * WORD_BYTES))


def below(word: int, bound: int) -> int:
    """A uniform word as an integer in [0, bound): floor(word * bound / 2**64).

    The bias is at most bound / 2**64.
    """
    return word * bound >> 64
