"""How a checkpoint of any kind is cut into shards (docs/spec/checkpoints.md).

Experts are recognised by the names of their tensors and become a shard each,
`layers.3.experts.5`; what is left of a layer is its trunk, `layers.3.trunk`, and what stands in no
layer is `trunk`. A part that would break a limit of shards goes on in `layers.3.trunk.1` and so on.
Inside a shard tensors stand in the order of the source, larger elements first, so that each is
aligned. Nothing here reads a file: headers in, a plan out, the same for the same headers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from chain import limits
from chain.errors import InputError
from tiles.layout import DTYPE_BITS, ShardSpec, TensorSpec

MAX_FUSED_EXPERTS = 65_536  # the first dimension of a tensor that holds all experts of a layer
MAX_SHARD_BYTES = limits.MAX_TILES_PER_SHARD * limits.TILE_BYTES
CODING = "dense"  # an imported model has no deltas yet; dense suits every dtype
_HEADER_ROOM = 4096  # bytes of a shard's header for metadata, padding and the length
_ENTRY_BYTES = 96  # of a tensor's entry beside its name and shape: keys and two offsets
_SIZE_BYTES = 16  # of one dimension in an entry

_LAYER = re.compile(r"(?:^|(?<=\.))(layers|layer|blocks|block|h)\.(0|[1-9]\d{0,5})\.")
_EXPERT = re.compile(r"(?:^|\.)experts\.(?:expert_)?(0|[1-9]\d{0,5})\.")
_FUSED = re.compile(
    r"(?:^|\.)experts\.(?:gate_up_proj|gate_proj|up_proj|down_proj|w[123])(?:[._][\w.]+)?$"
)
_EXPERT_SHARD = re.compile(r"\.experts\.\d+$")
_STACK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,48}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor, or a range of its rows, and where its bytes stand in the sources.

    `start` is a byte of the data section of source file `file`.
    """

    spec: TensorSpec
    file: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.spec.data_bytes


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to make: its pieces in order of storage."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def data_bytes(self) -> int:
        return sum(piece.spec.data_bytes for piece in self.pieces)

    @property
    def is_expert(self) -> bool:
        """Whether it is one, or the beginning of one that takes several shards."""
        return _EXPERT_SHARD.search(self.name) is not None

    def spec(self, index: int) -> ShardSpec:
        return ShardSpec(index, self.name, CODING, tuple(p.spec for p in self.pieces))


@dataclass(frozen=True, slots=True)
class _Place:
    """What the name of a tensor says of it. `fused`: it holds all experts of its layer."""

    stack: tuple[str, str]  # what stands before `layers.N.`, and the word that stands for `layers`
    layer: int
    expert: int | None
    fused: str | None


# (rank of the stack, layer, -1 for the trunk or the expert): shards come in this order.
_Key = tuple[int, int, int]
_REST: _Key = (1 << 30, 0, -1)  # what stands in no layer comes last


def plan_shards(tensors: Sequence[Piece]) -> tuple[ShardPlan, ...]:
    """The shards of a checkpoint. `tensors`: all of its tensors, by file and by place in it.

    Raises InputError where the checkpoint has more shards than a model may have.
    """
    places = [_place(piece.spec.name) for piece in tensors]
    experts = _fused_experts(tensors, places)
    names = _stack_names(tensors, places)
    parts: defaultdict[_Key, list[Piece]] = defaultdict(list)
    ranks = {stack: rank for rank, stack in enumerate(names)}
    for piece, place in zip(tensors, places, strict=True):
        if place is None:
            parts[_REST].append(piece)
            continue
        at = (ranks[place.stack], place.layer)
        count = experts.get(_group(place), 0) if place.fused and _is_fused(piece) else 0
        for expert, row in enumerate(_rows(piece, count)):
            parts[(*at, expert)].append(row)
        if not count:
            parts[(*at, -1 if place.expert is None else place.expert)].append(piece)
    shards: list[ShardPlan] = []
    titles = list(names.values())
    for key in sorted(parts):
        shards += _packed(_title(key, titles), parts.pop(key))
    if len(shards) > limits.MAX_SHARDS:
        raise InputError(
            f"this checkpoint makes {len(shards)} shards, at most {limits.MAX_SHARDS} are possible"
        )
    return tuple(shards)


# --- names ---------------------------------------------------------------------------


def _place(name: str) -> _Place | None:
    """None for a tensor that stands in no layer."""
    layer = _LAYER.search(name)
    if layer is None:
        return None
    stack, rest = _one(name[: layer.start()], layer[1]), name[layer.end() :]
    if expert := _EXPERT.search(rest):
        return _Place(stack, int(layer[2]), int(expert[1]), None)
    fused = _FUSED.search(rest)
    group = _one(rest[: fused.start()], "")[0] if fused else None
    return _Place(stack, int(layer[2]), None, group)


@lru_cache(4096)
def _one(before: str, word: str) -> tuple[str, str]:
    """The same object for the same stack: a large model names few stacks in many tensors."""
    return before, word


def _group(place: _Place) -> tuple[tuple[str, str], int, str | None]:
    return place.stack, place.layer, place.fused


def _is_fused(piece: Piece) -> bool:
    """Whether a tensor with a fused name can hold one row an expert: a vector cannot."""
    return len(piece.spec.shape) > 1


def _fused_experts(
    tensors: Sequence[Piece], places: Sequence[_Place | None]
) -> dict[tuple[tuple[str, str], int, str | None], int]:
    """How many experts the fused tensors of each layer hold: what all of them agree on."""
    named = {(p.stack, p.layer) for p in places if p is not None and p.expert is not None}
    found: dict[tuple[tuple[str, str], int, str | None], int] = {}
    for piece, place in zip(tensors, places, strict=True):
        if place is None or place.fused is None or not _is_fused(piece):
            continue
        count = piece.spec.shape[0]
        sound = 1 < count <= MAX_FUSED_EXPERTS and (place.stack, place.layer) not in named
        if not sound or piece.spec.data_bytes % count:
            count = 0
        if found.setdefault(_group(place), count) != count:
            found[_group(place)] = 0
    return found


def _rows(piece: Piece, count: int) -> Iterator[Piece]:
    """A tensor cut along its first dimension, a row an expert."""
    if count:
        spec = TensorSpec(piece.spec.name, piece.spec.dtype, piece.spec.shape[1:])
        for row in range(count):
            yield Piece(spec, piece.file, piece.start + row * spec.data_bytes)


def _stack_names(
    tensors: Sequence[Piece], places: Sequence[_Place | None]
) -> dict[tuple[str, str], str]:
    """The stacks of layers, the largest first, and what their shards' names begin with.

    A model with one stack has plain `layers.N`; a vision tower or a decoder beside it keeps what
    stands before its layers, where that makes a name.
    """
    sizes: dict[tuple[str, str], int] = {}
    for piece, place in zip(tensors, places, strict=True):
        if place is not None:
            sizes[place.stack] = sizes.get(place.stack, 0) + piece.spec.data_bytes
    ordered = sorted(sizes, key=lambda stack: -sizes[stack])  # stable: then by appearance
    names: dict[tuple[str, str], str] = {}
    for rank, stack in enumerate(ordered):
        name = "layers" if rank == 0 else "".join(stack)
        if not _STACK_NAME.fullmatch(name) or name in names.values():
            name = f"stack.{rank}.layers"
        names[stack] = name
    return names


def _title(key: _Key, stacks: Sequence[str]) -> str:
    if key == _REST:
        return "trunk"
    rank, layer, expert = key
    part = "trunk" if expert < 0 else f"experts.{expert}"
    return f"{stacks[rank]}.{layer}.{part}"


# --- packing -------------------------------------------------------------------------


def _packed(name: str, pieces: Sequence[Piece]) -> Iterator[ShardPlan]:
    """The shard `name`, and `name.1` and so on where it would be larger than a shard may be."""
    part: list[Piece] = []
    number = data_bytes = header_bytes = 0

    def shard() -> ShardPlan:
        # Elements of 1, 2, 4 and 8 bytes, large ones first, without gaps: each start is aligned.
        ordered = sorted(part, key=lambda piece: -DTYPE_BITS[piece.spec.dtype])
        return ShardPlan(f"{name}.{number}" if number else name, tuple(ordered))

    for piece in (cut for whole in pieces for cut in _cut(whole)):
        size, entry = piece.spec.data_bytes, _entry_bytes(piece.spec)
        full = data_bytes + size > MAX_SHARD_BYTES
        full |= header_bytes + entry > limits.MAX_SHARD_HEADER_BYTES - _HEADER_ROOM
        if part and full:
            yield shard()
            part, number, data_bytes, header_bytes = [], number + 1, 0, 0
        part.append(piece)
        data_bytes, header_bytes = data_bytes + size, header_bytes + entry
    yield shard()


def _entry_bytes(spec: TensorSpec) -> int:
    """At least the bytes of a tensor's entry in a shard's header."""
    name = len(json.dumps(spec.name, ensure_ascii=False).encode())
    return name + _ENTRY_BYTES + _SIZE_BYTES * len(spec.shape)


def _cut(piece: Piece) -> Iterator[Piece]:
    """A tensor larger than a shard as ranges of its rows, each no larger than a shard.

    Leading dimensions become one until eight rows fit, so that a range of eights of them is whole
    bytes also where an element is less than one.
    """
    spec, most = piece.spec, MAX_SHARD_BYTES
    if spec.data_bytes <= most:
        yield piece
        return
    rows, inner = 1, spec.shape
    while 8 * spec.data_bytes // rows > most:
        rows, inner = rows * inner[0], inner[1:]
    step = most * rows // spec.data_bytes
    step -= step % 8
    start = piece.start
    for first in range(0, rows, step):
        part = TensorSpec(spec.name, spec.dtype, (min(step, rows - first), *inner))
        yield Piece(part, piece.file, start)
        start += part.data_bytes
