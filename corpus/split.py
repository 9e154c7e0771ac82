"""Train and holdout of a dataset, from a seed drawn after its approval (docs/spec/datasets.md).

The holdout serves public loss curves only, never rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from chain.errors import InputError, invariant
from chain.hashes import Hash32
from chain.prf import Prf
from corpus.dataset import DatasetManifest
from corpus.similar import clusters

HOLDOUT_SHARE = 16  # about one byte of sixteen is held out
MIN_CLUSTERS = 32  # with fewer clusters of documents, or one that outweighs, sections are split
OUTWEIGHS = 8  # a cluster of more than an eighth of the text
SECTION_BYTES = 4096
MIN_SECTION_BYTES = 256
SECTIONS = 32  # a small text is cut into about so many
SEAM = b"\0"  # stands where text that did not follow is joined

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes to train on and bytes held out; a zero byte marks each seam."""

    train: bytes
    holdout: bytes


def split(manifest: DatasetManifest, text: bytes, seed: Hash32) -> Split:
    """Split a dataset's text. Near-duplicates fall on one side.

    Raises InputError if the text is not the manifest's.
    """
    if len(text) != manifest.size_bytes:
        raise InputError(f"{len(text)} bytes of text, the manifest says {manifest.size_bytes}")
    documents = [(d.offset, d.offset + d.size) for d in manifest.documents]
    groups = _groups(text, documents)
    heaviest = max(_weight(group) for group in groups)
    if len(groups) < MIN_CLUSTERS or heaviest * OUTWEIGHS > len(text):
        sections = _sections(documents, len(text))
        groups = _groups(text, sections)
        if len(groups) < 2:  # one text over and over: nothing can be kept apart
            groups = [[section] for section in sections]
    held = _draw(groups, len(text), seed)
    units = sorted(unit for group in groups for unit in group)
    return Split(
        _join(text, [unit for unit in units if unit not in held]),
        _join(text, [unit for unit in units if unit in held]),
    )


def _groups(text: bytes, units: Sequence[Range]) -> list[list[Range]]:
    """Units by cluster, clusters in order of their first unit."""
    groups: dict[int, list[Range]] = {}
    for unit, first in zip(units, clusters([text[a:b] for a, b in units]), strict=True):
        groups.setdefault(first, []).append(unit)
    return [groups[first] for first in sorted(groups)]


def _weight(group: list[Range]) -> int:
    return sum(end - start for start, end in group)


def _sections(documents: Sequence[Range], total: int) -> list[Range]:
    """Documents cut into sections of equal length; a remainder below half of one joins the last."""
    size = max(MIN_SECTION_BYTES, min(SECTION_BYTES, total // SECTIONS))
    sections: list[Range] = []
    for start, end in documents:
        cuts = max(1, (end - start + size // 2) // size)
        edges = [start + i * size for i in range(cuts)] + [end]
        sections += pairwise(edges)
    return sections


def _draw(groups: list[list[Range]], total: int, seed: Hash32) -> frozenset[Range]:
    """Clusters in the seed's order until a sixteenth is held out, none that would make it a
    quarter; if every one would, the lightest."""
    words = Prf(seed, "split").words(len(groups))
    held: list[Range] = []
    size = 0
    for i in sorted(range(len(groups)), key=lambda i: (words[i], i)):
        weight = _weight(groups[i])
        if (size + weight) * 4 > total:
            continue
        held += groups[i]
        size += weight
        if size * HOLDOUT_SHARE >= total:
            break
    if not held:
        held = min(groups, key=_weight)
    invariant(len(held) < sum(map(len, groups)), "a split must leave something to train on")
    return frozenset(held)


def _join(text: bytes, units: Sequence[Range]) -> bytes:
    parts: list[bytes] = []
    last = None
    for start, end in units:
        if last is not None and last != start:
            parts.append(SEAM)
        parts.append(text[start:end])
        last = end
    return b"".join(parts)
