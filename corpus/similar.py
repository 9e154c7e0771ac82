"""Near-duplicate clusters by MinHash in integer arithmetic (docs/spec/datasets.md, "Clusters").

Text is reduced to lower-case ASCII letters, digits and non-ASCII bytes, so that layout and
punctuation do not matter. Shingles are runs of 16 such bytes under a polynomial hash modulo 2**64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chain.hashes import DOCUMENT, ZERO_HASH
from chain.prf import Prf

SHINGLE_BYTES = 16
SIGNATURE = 32  # hash functions
BAND = 4  # rows of a band: two units of similarity s share one of 8 bands with 1 - (1 - s**4)**8
SIMILAR = 20  # of 32 equal minima, a similarity of about 0.6, makes near-duplicates
SAMPLING_BITS = 2  # one shingle of four is kept, by its hash, which leaves similarity unbiased
_POLYNOMIAL = np.uint64(0x9E3779B97F4A7C15)

Words = npt.NDArray[np.uint64]


def _lower() -> tuple[bytes, bytes]:
    """The translation table and the bytes to delete."""
    kept = [c for c in range(256) if c >= 128 or chr(c).isalnum()]
    table = bytes(c + 32 if 65 <= c <= 90 else c for c in range(256))
    return table, bytes(c for c in range(256) if c not in kept)


_TABLE, _DELETED = _lower()
_CONSTANTS = Prf(ZERO_HASH, "minhash").words(2 * SIGNATURE)


def normalized(text: bytes) -> bytes:
    """What of a text counts for likeness."""
    return text.translate(_TABLE, _DELETED)


def clusters(units: Sequence[bytes]) -> list[int]:
    """For each unit the index of the first unit of its cluster."""
    parent = list(range(len(units)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    signatures: list[Words | None] = []
    seen: dict[bytes, int] = {}
    for i, unit in enumerate(units):
        text = normalized(unit)
        signature = _signature(text)
        signatures.append(signature)
        for key in _keys(text, signature):
            other = seen.setdefault(key, i)
            if other != i and root(other) != root(i) and _alike(signatures[other], signature):
                low, high = sorted((root(other), root(i)))
                parent[high] = low
    return [root(i) for i in range(len(units))]


def _keys(text: bytes, signature: Words | None) -> list[bytes]:
    """Under what a unit may be found: the hash of its text, and its bands."""
    keys = [b"=" + DOCUMENT.hash(text)]
    if signature is not None:
        step = BAND
        keys += [bytes([i]) + signature[i : i + step].tobytes() for i in range(0, SIGNATURE, step)]
    return keys


def _alike(first: Words | None, second: Words | None) -> bool:
    if first is None or second is None:  # found by the same text: too short for shingles
        return True
    return int(np.count_nonzero(first == second)) >= SIMILAR


def _signature(text: bytes) -> Words | None:
    """Minima of 32 hash functions over the sampled shingles; None if there are none."""
    shingles = _shingles(text)
    if not shingles.size:
        return None
    odd = np.array(_CONSTANTS[:SIGNATURE], np.uint64) | np.uint64(1)
    add = np.array(_CONSTANTS[SIGNATURE:], np.uint64)
    minima = np.empty(SIGNATURE, np.uint64)
    for j in range(SIGNATURE):
        mixed = shingles * odd[j] + add[j]
        minima[j] = (mixed ^ (mixed >> np.uint64(32))).min()
    return minima


def _shingles(text: bytes) -> Words:
    """Sampled hashes of all runs of 16 bytes: sum of byte * P**(15 - position) modulo 2**64."""
    if len(text) < SHINGLE_BYTES:
        return np.empty(0, np.uint64)
    hashes = np.frombuffer(text, np.uint8).astype(np.uint64)
    power, width = _POLYNOMIAL, 1
    with np.errstate(over="ignore"):
        while width < SHINGLE_BYTES:  # hash of 2w bytes from two hashes of w bytes
            hashes = hashes[:-width] * power + hashes[width:]
            power, width = power * power, 2 * width
    hashes ^= hashes >> np.uint64(29)
    sampled: Words = hashes[hashes >> np.uint64(64 - SAMPLING_BITS) == 0]
    return sampled
