"""The files of the store as bytes (docs/spec/tiles.md, "The store"). Nothing here touches a disk.

<shard root>.safetensors         a snapshot: the whole data section
<shard root>.partial             the same, tiles still missing
<shard root>.roots               the version: its tile roots; for a snapshot the subtile
                                 hashes of the tiles that are there follow
<shard root>.kept                what `.roots` of a dropped version becomes while tiles of
                                 its snapshot are still needed by others
<name>.pack.safetensors          some tiles, then their roots and subtile hashes
<shard root>.steps.safetensors   the steps of a version's tiles from those of older ones
<shard root>.thin.safetensors    the same of a version that needs no tiles of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from chain.errors import DecodeError, InputError
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec, subtile_count
from tiles.shardfile import TensorRange, build_header, parse_header

WHOLE, PARTIAL, ROOTS, KEPT = ".safetensors", ".partial", ".roots", ".kept"
PACK, STEPS, THIN = ".pack.safetensors", ".steps.safetensors", ".thin.safetensors"
SUFFIXES = (WHOLE, PARTIAL, ROOTS, KEPT, PACK, STEPS, THIN)
HASH_BYTES = 32
STEP_ROW_BYTES = 3 * HASH_BYTES  # of the table of steps: base root, new root, checksum
_TILE_ROOTS, _SUBTILE_HASHES, _STEP_TABLE = "tile_roots", "subtile_hashes", "step_table"


def split_name(name: str) -> tuple[str, str] | None:
    """Stem (64 hexadecimal digits) and suffix of a file of the store; None if it is none."""
    stem, suffix = name[:64], name[64:]
    if suffix in SUFFIXES and len(stem) == 64 and not stem.strip("0123456789abcdef"):
        return stem, suffix
    return None


def hashes_in(raw: bytes) -> tuple[Hash32, ...]:
    """The 32-byte hashes that `raw` is made of."""
    return tuple(Hash32(raw[i : i + HASH_BYTES]) for i in range(0, len(raw), HASH_BYTES))


# --- versions -----------------------------------------------------------------------


def record_bytes(spec: ShardSpec) -> tuple[int, int]:
    """Size of a `.roots` file without and with subtile hashes."""
    short = HASH_BYTES * spec.tile_count
    return short, short + HASH_BYTES * subtile_count(spec.data_bytes)


def record_places(spec: ShardSpec) -> list[tuple[int, int]]:
    """Where in a `.roots` file each tile's subtile hashes stand, and their size in bytes."""
    at, places = HASH_BYTES * spec.tile_count, []
    for tile in range(spec.tile_count):
        size = HASH_BYTES * subtile_count(spec.tile_bytes(tile))
        places.append((at, size))
        at += size
    return places


def leads_to(hashes: bytes, root: Hash32, size_bytes: int) -> bool:
    """Whether subtile hashes are those of the tile with this root: whether it is present."""
    return merkle.tile_root_of(hashes_in(hashes), size_bytes) == root


# --- packs --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackTile:
    """A place in a pack: bytes at `offset` of the file, subtile hashes at `record_at`."""

    tile: int
    size_bytes: int
    offset: int
    record_at: int


@dataclass(frozen=True, slots=True)
class PackLayout:
    header: bytes
    tiles: tuple[PackTile, ...]
    roots_at: int
    file_bytes: int


def pack_name(roots: Sequence[Hash32]) -> str:
    """Packs are named by what they hold: two of the same tiles cannot be side by side."""
    return merkle.merkle_root(roots).hex() + PACK


def pack_layout(sizes: Sequence[tuple[int, int]]) -> PackLayout:
    """The layout of a pack of (tile, size in bytes), tiles ascending.

    Only the last may be no multiple of a page, so all of them start on one.
    """
    leaves = [subtile_count(size) for _, size in sizes]
    header = build_header(
        (
            *(TensorSpec(f"tile.{tile:05d}", "U8", (size,)) for tile, size in sizes),
            TensorSpec(_TILE_ROOTS, "U8", (len(sizes), HASH_BYTES)),
            TensorSpec(_SUBTILE_HASHES, "U8", (sum(leaves), HASH_BYTES)),
        ),
        {"format": "pt", "blyan": "pack"},
    )
    roots_at = len(header) + sum(size for _, size in sizes)
    record_at = roots_at + HASH_BYTES * len(sizes)
    tiles, offset = [], len(header)
    for (tile, size), count in zip(sizes, leaves, strict=True):
        tiles.append(PackTile(tile, size, offset, record_at))
        offset += size
        record_at += HASH_BYTES * count
    return PackLayout(header, tuple(tiles), roots_at, record_at)


def parse_pack(prefix: bytes, file_bytes: int, spec: ShardSpec) -> PackLayout:
    """The layout of a pack from its file's beginning. Raises DecodeError if it is none."""
    tensors, _ = parse_header(prefix, file_bytes)
    try:
        sizes = [(_number(t, "tile."), t.end - t.start) for t in tensors[:-2]]
        known = all(spec.tile_bytes(tile) == size for tile, size in sizes)
    except InputError as error:
        raise DecodeError(f"no pack of shard {spec.name}: {error}") from None
    ascending = all(a < b for (a, _), (b, _) in pairwise(sizes))
    layout = pack_layout(sizes) if sizes and known and ascending else None
    if layout is None or prefix[: len(layout.header)] != layout.header:
        raise DecodeError(f"no pack of shard {spec.name}")
    return layout


def _number(tensor: TensorRange, prefix: str) -> int:
    digits = tensor.spec.name.removeprefix(prefix)
    if len(digits) != 5 or not digits.isascii() or not digits.isdigit():
        raise DecodeError(f"an unknown tensor {tensor.spec.name[:64]!r}")
    return int(digits)


# --- steps --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepPlace:
    """A step in its file: encoded at `offset`, its row of the table at `row_at`."""

    tile: int
    size_bytes: int
    offset: int
    row_at: int


def steps_layout(sizes: Sequence[tuple[int, int]]) -> tuple[bytes, tuple[StepPlace, ...]]:
    """Header and places of a file of (tile, encoded size) steps; the table stands at its end."""
    header = build_header(
        (
            *(TensorSpec(f"step.{tile:05d}", "U8", (size,)) for tile, size in sizes),
            TensorSpec(_STEP_TABLE, "U8", (len(sizes), STEP_ROW_BYTES)),
        ),
        {"format": "pt", "blyan": "steps"},
    )
    offset, places = len(header), []
    row = offset + sum(size for _, size in sizes)
    for tile, size in sizes:
        places.append(StepPlace(tile, size, offset, row))
        offset, row = offset + size, row + STEP_ROW_BYTES
    return header, tuple(places)


def parse_steps(prefix: bytes, file_bytes: int, spec: ShardSpec) -> tuple[StepPlace, ...]:
    """The places of a file of steps. Raises DecodeError if it is none."""
    tensors, _ = parse_header(prefix, file_bytes)
    sizes = [(_number(t, "step."), t.end - t.start) for t in tensors[:-1]]
    header, places = steps_layout(sizes)
    if prefix[: len(header)] != header or any(tile >= spec.tile_count for tile, _ in sizes):
        raise DecodeError(f"no steps of shard {spec.name}")
    return places
