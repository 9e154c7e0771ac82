"""What a step of training depends on, as bytes with a Merkle root (docs/spec/training.md, "State").

    state hash     = list root of [weights, first, second, counters]
    optimizer root = list root of [first, second, H(updates)], zero before the first update
    residual root  = model root of the residual, zero if there is none

Weights and moments are data sections in shard order, each under a model root like the model's own,
so any 256 KiB of a state can be opened. Router biases stand in the weights of the router shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

from chain import limits
from chain.codec import U32, U64, Seq, decode, encode, wire
from chain.errors import DecodeError
from chain.hashes import TRAIN_STATE, ZERO_HASH, Hash32
from chain.types import u64_be
from learning.held import Held, layout_of
from learning.spec import ModelSpec
from tiles import merkle

Sections = tuple[bytes, ...]  # data sections in shard order
_LENGTH_BYTES = 4


@wire(115)
@dataclass(frozen=True, slots=True)
class StateHeader:
    """Stands before the sections of a serialised state: weights, first, second moments."""

    step: U64
    updates: U64
    draws: U64
    section_bytes: Annotated[tuple[U32, ...], Seq(limits.MAX_SHARDS)]  # of one of the three


@dataclass(frozen=True, slots=True)
class TrainState:
    """The state before local step `step`.

    `first` and `second` are AdamW's moments, in the weights' layout. `updates` counts the learner's
    optimizer steps over all rounds, `draws` the PRNG words used in this round.
    """

    weights: Sections
    first: Sections
    second: Sections
    step: int = 0
    updates: int = 0
    draws: int = 0

    @staticmethod
    def fresh(weights: Sequence[bytes]) -> TrainState:
        """The state of a learner without a past, on these weights."""
        zero = tuple(bytes(len(section)) for section in weights)
        return TrainState(tuple(weights), zero, zero)

    def next_round(self, weights: Sequence[bytes]) -> TrainState:
        """The same optimizer on the weights of a new base."""
        return TrainState(tuple(weights), self.first, self.second, updates=self.updates)

    def leaves(self) -> tuple[Hash32, ...]:
        """What the state hash is the list root of; open one with `tiles.merkle.merkle_proof`."""
        roots = (sections_root(part) for part in (self.weights, self.first, self.second))
        return (*roots, counters_leaf(header_of(self)))

    def hash(self) -> Hash32:
        return merkle.merkle_root(self.leaves())

    def optimizer_root(self) -> Hash32:
        if not self.updates:
            return ZERO_HASH
        counted = TRAIN_STATE.hash(u64_be(self.updates))
        parts = [sections_root(self.first), sections_root(self.second), counted]
        return merkle.merkle_root(parts)


def sections_root(sections: Sequence[bytes]) -> Hash32:
    """The model root of data sections in shard order."""
    return merkle.model_root(
        [merkle.shard_root(merkle.tile_roots(data), len(data)) for data in sections]
    )


def residual_root(residual: Sequence[bytes] | None) -> Hash32:
    """Root of an error-feedback residual; zero where there is none."""
    return sections_root(residual) if residual is not None else ZERO_HASH


def serialize_state(state: TrainState) -> bytes:
    """header length (4 bytes big-endian), header, weights, first, second."""
    return join_state(header_of(state), (*state.weights, *state.first, *state.second))


def join_state(header: StateHeader, parts: Iterable[bytes]) -> bytes:
    """A serialised state of whatever its sections were cut into."""
    raw = encode(header)
    return b"".join([len(raw).to_bytes(_LENGTH_BYTES, "big"), raw, *parts])


def header_of(state: TrainState) -> StateHeader:
    sizes = tuple(len(section) for section in state.weights)
    return StateHeader(state.step, state.updates, state.draws, sizes)


def counters_leaf(header: StateHeader) -> Hash32:
    """The last of the leaves of a state hash."""
    return TRAIN_STATE.hash(u64_be(header.step), u64_be(header.updates), u64_be(header.draws))


def deserialize_state(spec: ModelSpec, data: bytes, held: Held | None = None) -> TrainState:
    """The inverse, for this model or a part of it. Raises DecodeError for anything else."""
    view = memoryview(data)
    length = int.from_bytes(view[:_LENGTH_BYTES], "big")
    start = _LENGTH_BYTES + length
    if len(view) < start:
        raise DecodeError(f"a training state of {len(view)} bytes ends within its header")
    header: StateHeader = decode(StateHeader, bytes(view[_LENGTH_BYTES:start]))
    expected = tuple(shard.data_bytes for shard in layout_of(spec, held))
    if header.section_bytes != expected:
        raise DecodeError("a training state of another model")
    if len(view) != start + 3 * sum(expected):
        raise DecodeError(
            f"a training state of {len(view)} bytes, expected {start + 3 * sum(expected)}"
        )
    third = sum(expected)
    weights, first, second = (
        _split(view[at : at + third], expected) for at in range(start, len(view), third)
    )
    return TrainState(weights, first, second, header.step, header.updates, header.draws)


def deserialize_residual(spec: ModelSpec, data: bytes, held: Held | None = None) -> Sections:
    """The sections of a residual, which are served and kept back to back. Raises DecodeError for
    anything but the residual of this model or part."""
    sizes = tuple(shard.data_bytes for shard in layout_of(spec, held))
    if len(data) != sum(sizes):
        raise DecodeError(f"a residual of {len(data)} bytes, expected {sum(sizes)}")
    return _split(memoryview(data), sizes)


def _split(view: memoryview, sizes: Sequence[int]) -> Sections:
    ends = list(accumulate(sizes))
    return tuple(bytes(view[end - size : end]) for end, size in zip(ends, sizes, strict=True))


def is_residual(spec: ModelSpec, data: bytes, root: Hash32, held: Held | None = None) -> bool:
    """Whether these bytes are the residual of this model, or part, with this root."""
    try:
        return sections_root(deserialize_residual(spec, data, held)) == root
    except DecodeError:
        return False


def is_state(spec: ModelSpec, data: bytes, state_hash: Hash32, held: Held | None = None) -> bool:
    """Whether these bytes are the training state of this model, or part, with this hash."""
    try:
        return deserialize_state(spec, data, held).hash() == state_hash
    except DecodeError:
        return False
