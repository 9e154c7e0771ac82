"""The container of a delta: what a learner sends for a round (docs/spec/delta.md).

    4 bytes   length of the header, big-endian
    header    DeltaHeader, canonical MessagePack (docs/spec/encoding.md)
    sections  of each shard, in order: one a subtile, as `tiles.sections` says

A delta is theta_after - theta_base. Its values are integers in units of 2**-28 below 2**28 in
size (so |x| < 1), which fp32 holds exactly. The bytes have one form: an equal delta has equal
bytes, and a decoder refuses any others. Error feedback is the learner's and not done here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt

from chain import limits
from chain.codec import U16, U32, Seq, decode, encode, wire
from chain.errors import DecodeError, InputError
from chain.hashes import PAYLOAD, PAYLOAD_SECTION, ZERO_HASH, Hash32
from chain.types import ShardIndex, u64_be
from tiles import merkle, sections
from tiles.codings import INT8, LOW_RANK, codec_of, rank_of
from tiles.layout import SUBTILE_ELEMENTS, SUBTILES_PER_TILE, ShardSpec
from tiles.low_rank import decode_low_rank, encode_low_rank, section_bytes
from tiles.parts import Part

UNIT_BITS = limits.DELTA_UNIT_BITS
# Products with powers of two are as exact as `ldexp`, which takes one value after the other.
_UNITS, _UNIT = np.ldexp(np.float32(1), UNIT_BITS), np.ldexp(np.float32(1), -UNIT_BITS)
_MAX_SUBTILES = limits.MAX_TILES_PER_SHARD * SUBTILES_PER_TILE
_LENGTH_BYTES = 4

Buffer = sections.Buffer
Ints = npt.NDArray[np.int32]


@wire(101)
@dataclass(frozen=True, slots=True)
class ShardSections:
    """A shard in the payload, and the length in bytes of each of its sections."""

    shard: ShardIndex
    lengths: Annotated[tuple[U32, ...], Seq(_MAX_SUBTILES)]


@wire(102)
@dataclass(frozen=True, slots=True)
class DeltaHeader:
    """`density`: kept entries a chunk of 4096 of a sparse shard, or the number of another coding
    (docs/spec/delta.md, "Coding"); `shards` ascend."""

    base_root: Hash32
    density: U16
    shards: Annotated[tuple[ShardSections, ...], Seq(limits.MAX_SHARDS)]


@dataclass(frozen=True, slots=True)
class QuantizedShard:
    """A shard's delta as everybody decodes it: `units` int32 (elements,), in 2**-28."""

    spec: ShardSpec
    units: Ints

    def floats(self) -> npt.NDArray[np.float32]:
        """fp32 (elements,), exact: a value has at most 24 significant bits."""
        values: npt.NDArray[np.float32] = self.units.astype(np.float32) * _UNIT
        return values

    def tile_ints(self, tile: int) -> npt.NDArray[np.int64]:
        """int64 units of one tile, for aggregation."""
        start, end = self.spec.tile_range(tile)
        return self.units[start // 4 : end // 4].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Delta:
    """A decoded payload. `shards` maps shard index to its values."""

    base_root: Hash32
    density: int
    shards: Mapping[int, QuantizedShard]

    def shard(self, shard: int) -> QuantizedShard:
        try:
            return self.shards[shard]
        except KeyError:
            raise InputError(f"the delta has no shard {shard}") from None

    def tile_ints(self, shard: int, tile: int) -> npt.NDArray[np.int64]:
        """int64 units of one tile. Raises InputError if the delta has not that shard."""
        return self.shard(shard).tile_ints(tile)

    def shard_float(self, shard: int) -> npt.NDArray[np.float32]:
        """fp32 (elements,) of one shard, exactly what aggregation sees."""
        return self.shard(shard).floats()


# --- encoding --------------------------------------------------------------------------


def encode_delta(
    base_root: Hash32,
    shards: Mapping[int, npt.NDArray[np.float32]],
    specs: Sequence[ShardSpec],
    density: int,
) -> tuple[bytes, dict[int, QuantizedShard]]:
    """Payload, and what decoders will get from it (the learner's residual is the difference).

    `shards`: flat fp32 delta, (elements,), by shard index; `density`: of the header. Raises
    InputError on values that are not finite or not below 1 in size, on wrong sizes, and if the
    payload grows beyond MAX_BLOB_BYTES.
    """
    codec_of(density)
    known = {spec.index: spec for spec in specs}
    decoded: dict[int, QuantizedShard] = {}
    entries, bodies = [], []
    for index in sorted(shards):
        if index not in known:
            raise InputError(f"the model has no shard {index}")
        spec = known[index]
        units = to_units(shards[index], spec)
        values, parts = _encode_shard(spec, units, density)
        decoded[index] = QuantizedShard(spec, values)
        entries.append(ShardSections(ShardIndex(index), tuple(len(part) for part in parts)))
        bodies += parts
    header = encode(DeltaHeader(base_root, density, tuple(entries)))
    if len(header) > limits.MAX_DELTA_HEADER_BYTES:
        raise InputError(f"a delta of {len(bodies)} sections is too large for one payload")
    payload = b"".join([len(header).to_bytes(_LENGTH_BYTES, "big"), header, *bodies])
    if len(payload) > limits.MAX_BLOB_BYTES:
        raise InputError(
            f"payload of {len(payload)} bytes, at most {limits.MAX_BLOB_BYTES}: lower the density"
        )
    return payload, decoded


def _encode_shard(spec: ShardSpec, units: Ints, density: int) -> tuple[Ints, list[bytes]]:
    """What decoders get, and the sections."""
    if spec.coding == "dense":
        return sections.encode_full(units, SUBTILE_ELEMENTS, sections.DENSE_BYTES)
    if codec_of(density) == INT8:
        return sections.encode_full(units, SUBTILE_ELEMENTS, sections.INT8_BYTES)
    if codec_of(density) == LOW_RANK:
        return encode_low_rank(units, rank_of(density), SUBTILE_ELEMENTS)
    return sections.encode_sparse(units, density, SUBTILE_ELEMENTS)


def largest_payload(specs: Sequence[ShardSpec], density: int) -> int:
    """The most bytes that a payload of all these shards can have; `density`: of the header."""
    entries, total = [], 0
    for spec in specs:
        whole, rest = divmod(spec.elements, SUBTILE_ELEMENTS)
        lengths = [_most_bytes(spec.coding, SUBTILE_ELEMENTS, density)] * whole
        lengths += [_most_bytes(spec.coding, rest, density)] if rest else []
        entries.append(ShardSections(ShardIndex(spec.index), tuple(lengths)))
        total += sum(lengths)
    header = encode(DeltaHeader(ZERO_HASH, density, tuple(entries)))
    return _LENGTH_BYTES + len(header) + total


@lru_cache(maxsize=1024)
def _most_bytes(coding: str, elements: int, density: int) -> int:
    """Of one section."""
    if coding == "dense":
        return sections.full_bytes(elements, sections.DENSE_BYTES)
    if codec_of(density) == INT8:
        return sections.full_bytes(elements, sections.INT8_BYTES)
    if codec_of(density) == LOW_RANK:
        return section_bytes(elements, rank_of(density))
    return sections.most_sparse_bytes(elements, density)


def to_units(values: npt.NDArray[np.float32], spec: ShardSpec) -> Ints:
    """fp32 (elements,) to the nearest units, ties to even. Raises InputError as above."""
    if values.shape != (spec.elements,) or values.dtype != np.float32:
        raise InputError(
            f"delta of shard {spec.name}: {values.dtype} {values.shape}, "
            f"expected float32 ({spec.elements},)"
        )
    # The negation is true for NaN, too.
    if values.size and not (values.min() > -1.0 and values.max() < 1.0):
        raise InputError(f"delta of shard {spec.name}: a value is not finite or not below 1")
    scaled = values * _UNITS
    units: Ints = np.rint(scaled, out=scaled).astype(np.int32)
    return units


# --- decoding --------------------------------------------------------------------------


def decode_delta(payload: bytes, specs: Sequence[ShardSpec]) -> Delta:
    """The delta in a payload. Raises DecodeError on anything but its one canonical form.

    Memory is bounded by the model's size: every count is checked before it is believed.
    """
    header, body = _split(payload)
    parts = iter(_cut(header, body))
    shards: dict[int, QuantizedShard] = {}
    for entry, spec in _matched(header, specs):
        values = np.zeros(spec.elements, np.int32)
        for start in range(0, spec.elements, SUBTILE_ELEMENTS):
            out = values[start : start + SUBTILE_ELEMENTS]
            part = _decode_part(spec, len(out), header.density, next(parts)[2])
            out[... if part.at is None else part.at] = part.values
        values.flags.writeable = False
        shards[entry.shard] = QuantizedShard(spec, values)
    return Delta(header.base_root, header.density, shards)


def decode_tile(
    payload: bytes, specs: Sequence[ShardSpec], shard: int, tile: int
) -> npt.NDArray[np.int64]:
    """int64 units of one tile alone, without decoding the rest of the payload.

    Raises InputError if the delta has not that shard, DecodeError on hostile bytes.
    """
    header, body = _split(payload)
    spec = next((s for e, s in _matched(header, specs) if e.shard == shard), None)
    if spec is None:
        raise InputError(f"the delta has no shard {shard}")
    elements = spec.tile_bytes(tile) // 4
    first = tile * SUBTILES_PER_TILE
    parts = []
    for index, subtile, section in _cut(header, body):
        at = (subtile - first) * SUBTILE_ELEMENTS
        if index == shard and 0 <= at < elements:
            size = min(SUBTILE_ELEMENTS, elements - at)
            parts.append(decode_section(spec, size, header.density, section))
    return np.concatenate(parts).astype(np.int64)


class SectionSource(Protocol):
    """A payload whose sections are had one by one, wherever they lie."""

    @property
    def header(self) -> DeltaHeader: ...

    def has(self, shard: int) -> bool: ...

    def section(self, shard: int, subtile: int) -> Buffer:
        """Of a shard that it has; `subtile` counts from the start of the shard."""


class CutPayload:
    """The sections of a payload that is in memory, without a copy. Raises DecodeError unless
    header, lengths and model agree."""

    def __init__(self, payload: bytes, specs: Sequence[ShardSpec]) -> None:
        self.header, self._shards = payload_sections(payload, specs)

    def has(self, shard: int) -> bool:
        return shard in self._shards

    def section(self, shard: int, subtile: int) -> Buffer:
        return self._shards[shard][subtile]


class PayloadTile:
    """One tile of a delta in its payload, decoded subtile by subtile as it is asked for. What is
    sparse stays decoded, up to a part of `most_bytes` for each of MAX_DELTAS deltas.

    Raises InputError if the delta has not that shard, DecodeError on hostile bytes.
    """

    def __init__(
        self,
        payload: bytes | SectionSource,
        specs: Sequence[ShardSpec],
        shard: int,
        tile: int,
        most_bytes: int = limits.MAX_DELTAS * (limits.TILE_BYTES // 8),
    ) -> None:
        self._source = CutPayload(payload, specs) if isinstance(payload, bytes) else payload
        if not self._source.has(shard):
            raise InputError(f"the delta has no shard {shard}")
        spec = next(s for s in specs if s.index == shard)
        self.elements = spec.tile_bytes(tile) // 4
        self._spec, self._first = spec, tile * SUBTILES_PER_TILE
        self._kept: dict[int, Part] = {}
        self._room = most_bytes // limits.MAX_DELTAS

    def part(self, subtile: int) -> Part:
        """See `tiles.parts.TileDelta`."""
        known = self._kept.get(subtile)
        if known is not None:
            return known
        section = self._source.section(self._spec.index, self._first + subtile)
        size = min(SUBTILE_ELEMENTS, self.elements - subtile * SUBTILE_ELEMENTS)
        part = _decode_part(self._spec, size, self._source.header.density, section)
        if part.at is None:
            return part
        part = Part(part.values, part.at.astype(np.int32))
        if part.kept_bytes <= self._room:
            self._kept[subtile] = part
            self._room -= part.kept_bytes
        return part


def decode_section(spec: ShardSpec, elements: int, density: int, section: Buffer) -> Ints:
    """int32 units of one subtile, from its section alone. Raises DecodeError."""
    values = np.zeros(elements, np.int32)
    part = _decode_part(spec, elements, density, section)
    values[... if part.at is None else part.at] = part.values
    return values


def _decode_part(spec: ShardSpec, elements: int, density: int, section: Buffer) -> Part:
    try:
        if spec.coding == "dense":
            return Part(sections.decode_full(section, elements, sections.DENSE_BYTES))
        if codec_of(density) == INT8:
            return Part(sections.decode_full(section, elements, sections.INT8_BYTES))
        if codec_of(density) == LOW_RANK:
            return Part(decode_low_rank(section, elements, rank_of(density)))
        at, values = sections.sparse_entries(section, elements, density)
        return Part(values, at)
    except DecodeError as error:
        raise DecodeError(f"delta of shard {spec.name}: {error}") from None


def delta_header(payload: bytes) -> DeltaHeader:
    """What a payload says it holds. Raises DecodeError if header and length do not agree."""
    return _split(payload)[0]


def payload_sections(
    payload: bytes, specs: Sequence[ShardSpec]
) -> tuple[DeltaHeader, dict[int, tuple[memoryview, ...]]]:
    """The header, and each shard's sections, one a subtile, without a copy and not decoded.

    Raises DecodeError unless header, lengths and model agree.
    """
    header, body = _split(payload)
    _matched(header, specs)
    shards: dict[int, list[memoryview]] = {entry.shard: [] for entry in header.shards}
    for shard, _, section in _cut(header, body):
        shards[shard].append(section)
    return header, {shard: tuple(parts) for shard, parts in shards.items()}


def payload_root(payload: bytes) -> Hash32:
    """List root over the header and every section, so that one subtile's can be shown alone."""
    return merkle.merkle_root(payload_leaves(payload))


def payload_leaves(payload: bytes) -> tuple[Hash32, ...]:
    """Leaves of `payload_root`: the header's, then each section's in order."""
    header, body = _split(payload)
    leaves = [PAYLOAD.hash(encode(header))]
    leaves += [section_hash(*part) for part in _cut(header, body)]
    return tuple(leaves)


def section_hash(shard: int, subtile: int, section: Buffer) -> Hash32:
    """Leaf of one section; `subtile` counts from the start of the shard."""
    return PAYLOAD_SECTION.hash(u64_be(shard), u64_be(subtile), section)


def _split(payload: bytes) -> tuple[DeltaHeader, memoryview]:
    """Header and sections, their lengths consistent."""
    if not _LENGTH_BYTES <= len(payload) <= limits.MAX_BLOB_BYTES:
        raise DecodeError(
            f"delta of {len(payload)} bytes, expected {_LENGTH_BYTES} to {limits.MAX_BLOB_BYTES}"
        )
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
    if end > len(payload):
        raise DecodeError(f"delta header up to byte {end} of {len(payload)}")
    most = limits.MAX_DELTA_HEADER_BYTES
    header: DeltaHeader = decode(DeltaHeader, payload[_LENGTH_BYTES:end], most=most)
    try:
        codec_of(header.density)
    except InputError as error:
        raise DecodeError(str(error)) from None
    if any(a.shard >= b.shard for a, b in pairwise(header.shards)):
        raise DecodeError("the shards of a delta must ascend")
    body = memoryview(payload)[end:]
    expected = sum(sum(entry.lengths) for entry in header.shards)
    if len(body) != expected:
        raise DecodeError(f"{len(body)} bytes of sections where the header says {expected}")
    return header, body


def _matched(
    header: DeltaHeader, specs: Sequence[ShardSpec]
) -> list[tuple[ShardSections, ShardSpec]]:
    """Each shard of the header with its spec."""
    known = {spec.index: spec for spec in specs}
    pairs = []
    for entry in header.shards:
        spec = known.get(entry.shard)
        if spec is None:
            raise DecodeError(f"delta of shard {entry.shard}, which the model has not")
        count = -(-spec.elements // SUBTILE_ELEMENTS)
        if len(entry.lengths) != count:
            raise DecodeError(
                f"delta of shard {spec.name}: {len(entry.lengths)} sections, expected {count}"
            )
        pairs.append((entry, spec))
    return pairs


def _cut(header: DeltaHeader, body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(shard, subtile of the shard, section) in order, without a copy."""
    at = 0
    for entry in header.shards:
        for subtile, length in enumerate(entry.lengths):
            yield entry.shard, subtile, body[at : at + length]
            at += length
