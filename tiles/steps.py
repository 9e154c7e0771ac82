"""A tile's way from one version to the next: what old versions shrink to (docs/spec/versions.md).

    new = base + sum_i w_i * x_i

A step keeps, for one tile, the coded sections of the deltas that took part in it (docs/spec/
delta.md) and their weights as the chain gives them. It is applied by the rule that made the tile
(docs/spec/aggregation.md), so the result has the very bytes, and its root says so. Deltas of weight
0, and those that have not trained the tile's shard, add nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.codec import U16, U32, Bytes, Seq, encode, wire
from chain.errors import DecodeError, InputError, VerifyError
from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from tiles import merkle
from tiles.aggregate import apply
from tiles.codings import codec_of
from tiles.delta import CutPayload, SectionSource, decode_section
from tiles.layout import ELEMENT_BYTES, SUBTILES_PER_TILE, ShardSpec, subtile_count
from tiles.weights import WEIGHT_BITS

Buffer = bytes | bytearray | memoryview
Section = Annotated[bytes, Bytes(limits.MAX_SECTION_BYTES)]
Sections = Annotated[tuple[Section, ...], Seq(SUBTILES_PER_TILE)]


@wire(108)
@dataclass(frozen=True, slots=True)
class TileStep:
    """Tile `tile` of shard `shard` from the version of root `base_root` to that of `new_root`.

    One entry a delta, in the state's order: its density, its weight in units of 2**-20 (1 or
    more), and its sections, one a subtile of the tile. Encoded it has at most MAX_STEP_BYTES.
    """

    shard: ShardIndex
    tile: TileIndex
    base_root: Hash32  # of the tile
    new_root: Hash32  # of the tile
    densities: Annotated[tuple[U16, ...], Seq(limits.MAX_DELTAS)]
    weights: Annotated[tuple[U32, ...], Seq(limits.MAX_DELTAS)]
    sections: Annotated[tuple[Sections, ...], Seq(limits.MAX_DELTAS)]


class DeltaSections:
    """A delta's payload cut into its sections, once for all of its tiles."""

    def __init__(self, payload: bytes | SectionSource, specs: Sequence[ShardSpec]) -> None:
        """Raises DecodeError unless header, lengths and model agree."""
        self._source = CutPayload(payload, specs) if isinstance(payload, bytes) else payload
        header = self._source.header
        self.density = header.density
        self._counts = {entry.shard: len(entry.lengths) for entry in header.shards}

    def tile(self, shard: int, tile: int) -> tuple[bytes, ...]:
        """The sections of one tile, one a subtile; none if the delta has not that shard."""
        first = tile * SUBTILES_PER_TILE
        last = min(first + SUBTILES_PER_TILE, self._counts.get(ShardIndex(shard), 0))
        return tuple(bytes(self._source.section(shard, i)) for i in range(first, last))


def make_step(
    spec: ShardSpec,
    tile: int,
    base_root: Hash32,
    new_root: Hash32,
    deltas: Sequence[DeltaSections],
    weights: Sequence[int],
) -> TileStep | None:
    """The step of one tile; None if the tile itself is no longer than its step.

    `deltas`: the accepted ones in the state's order; `weights`: `TileChange.weights`, one a delta.
    A dense shard has two bytes an element and delta, so from two deltas on its tiles are kept
    whole; with the coding int8 the others are from four on. Raises InputError if there is not a
    weight for each delta.
    """
    if len(deltas) != len(weights):
        raise InputError(f"{len(weights)} weights for {len(deltas)} deltas")
    parts = [(d.density, w, d.tile(spec.index, tile)) for d, w in zip(deltas, weights, strict=True)]
    used = [(density, weight, cut) for density, weight, cut in parts if weight and cut]
    size = sum(len(section) for _, _, cut in used for section in cut)
    if size >= spec.tile_bytes(tile):  # before anything of that length is encoded
        return None
    step = TileStep(
        ShardIndex(spec.index),
        TileIndex(tile),
        base_root,
        new_root,
        tuple(density for density, _, _ in used),
        tuple(weight for _, weight, _ in used),
        tuple(cut for _, _, cut in used),
    )
    return step if len(encode(step)) < spec.tile_bytes(tile) else None


def apply_step(spec: ShardSpec, step: TileStep, base: Buffer) -> bytes:
    """The bytes of the step's new tile, from those of its base.

    Raises VerifyError unless the step is of this shard and sound, `base` has its base root and
    the result its new root. A step may be hostile: at worst it costs what an honest one does.
    """
    base = memoryview(base).cast("B")
    _check(spec, step, len(base))
    where = f"step of tile {step.tile} of shard {spec.name}"
    if merkle.tile_root(base) != step.base_root:
        raise VerifyError(f"{where}: its base is not {step.base_root.hex()}")
    try:
        parts = list(_parts(spec, step, base))
    except (DecodeError, InputError) as error:
        raise VerifyError(f"{where}: {error}") from None
    new = b"".join(parts)
    if merkle.tile_root(new) != step.new_root:
        raise VerifyError(f"{where}: it does not lead to {step.new_root.hex()}")
    return new


def _check(spec: ShardSpec, step: TileStep, base_bytes: int) -> None:
    """Everything that can be said before a byte is decoded."""
    if step.shard != spec.index or step.tile >= spec.tile_count:
        raise VerifyError(
            f"a step of shard {step.shard}, tile {step.tile}, is none of shard {spec.name} "
            f"with {spec.tile_count} tiles"
        )
    where = f"step of tile {step.tile} of shard {spec.name}"
    if any(tensor.dtype != "F32" for tensor in spec.tensors):
        raise VerifyError(f"{where}: deltas are of fp32 tensors only")
    if base_bytes != spec.tile_bytes(step.tile):
        raise VerifyError(f"{where}: a base of {base_bytes} bytes")
    if not len(step.densities) == len(step.weights) == len(step.sections):
        raise VerifyError(f"{where}: densities, weights and sections differ in number")
    try:
        for density in step.densities:
            codec_of(density)
    except InputError as error:
        raise VerifyError(f"{where}: {error}") from None
    if 0 in step.weights or sum(step.weights) > 1 << WEIGHT_BITS:
        raise VerifyError(f"{where}: a weight of 0, or a sum above 1")
    if any(len(cut) != subtile_count(base_bytes) for cut in step.sections):
        raise VerifyError(f"{where}: not one section a subtile")


def _parts(spec: ShardSpec, step: TileStep, base: memoryview) -> Iterator[bytes]:
    """The new subtiles in order: one after the other, so that little memory is in use."""
    for index, part in enumerate(merkle.subtiles(base)):
        elements = len(part) // ELEMENT_BYTES
        deltas: list[npt.NDArray[np.int64]] = []
        for density, cut in zip(step.densities, step.sections, strict=True):
            units = decode_section(spec, elements, density, cut[index])
            deltas.append(units.astype(np.int64))
        yield apply(bytes(part), deltas, step.weights) if deltas else bytes(part)
