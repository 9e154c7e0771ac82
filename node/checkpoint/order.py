"""In which order an import reads: each source once from end to end, and the shards on the way.

A whole file is hashed in its own order, while a shard is written in the order of its pieces, which
differs where dtypes are mixed or experts interleaved. So a piece whose turn in its shard has come
is written as it is read; any other is only hashed, and read again when its turn comes: at the
latest when the last piece of its shard has passed. What writers hold is bounded by `open_most`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from tiles.checkpoint import Piece, ShardPlan

# A smaller piece opens no writer: reading it again costs little, and a file may begin with the
# scales of a thousand experts.
MIN_OPENING_BYTES = 1 << 20
_PLACE_BITS = 32  # of a piece's place in its shard
_BYTE_BITS = 64  # of an offset in a file


class Act(Enum):
    """What is done with a piece, or with a shard."""

    PASS = "hash it"
    STREAM = "hash it and write it"
    AGAIN = "read it again and write it"
    FINISH = "all pieces of the shard are written"


@dataclass(frozen=True, slots=True)
class Step:
    """One act. `piece` is None where the shard as a whole is meant."""

    act: Act
    shard: int
    piece: Piece | None


class _Progress:
    """How far one shard is: its next place to write, and which places have passed by."""

    __slots__ = ("count", "next", "passed", "unbroken")

    def __init__(self, pieces: int) -> None:
        self.next = self.count = self.unbroken = 0
        self.passed = bytearray(pieces)

    def pass_by(self, place: int) -> None:
        """One more piece has passed. `unbroken`: how many have from the first on."""
        self.passed[place] = 1
        self.count += 1
        while self.unbroken < len(self.passed) and self.passed[self.unbroken]:
            self.unbroken += 1


def reading_order(shards: Sequence[ShardPlan], open_most: int) -> Iterator[Step]:
    """All steps of an import. Pieces pass in ascending (file, start), each once."""
    started: dict[int, _Progress] = {}
    open_shards: set[int] = set()
    for shard, place in _passing(shards):
        pieces = shards[shard].pieces
        piece = pieces[place]
        at = started.setdefault(shard, _Progress(len(pieces)))
        room = len(open_shards) < open_most and piece.spec.data_bytes >= MIN_OPENING_BYTES
        streams = at.unbroken >= place and (shard in open_shards or room)
        at.pass_by(place)
        if streams:
            open_shards.add(shard)
            for earlier in range(at.next, place):
                yield Step(Act.AGAIN, shard, pieces[earlier])
            at.next = place + 1
        yield Step(Act.STREAM if streams else Act.PASS, shard, piece)
        last = at.count == len(pieces)
        if last or shard in open_shards:
            for waiting in range(at.next, at.unbroken):
                yield Step(Act.AGAIN, shard, pieces[waiting])
            at.next = max(at.next, at.unbroken)
        if last:
            yield Step(Act.FINISH, shard, None)
            open_shards.discard(shard)
            del started[shard]


def _passing(shards: Sequence[ShardPlan]) -> Iterator[tuple[int, int]]:
    """(shard, place) of all pieces in the order of the sources."""

    def where(code: int) -> int:
        piece = shards[code >> _PLACE_BITS].pieces[code & (1 << _PLACE_BITS) - 1]
        return (piece.file << _BYTE_BITS | piece.start) << _BYTE_BITS | piece.end

    # Numbers, not tuples: there may be hundreds of thousands.
    codes = [s << _PLACE_BITS | p for s, plan in enumerate(shards) for p in range(len(plan.pieces))]
    codes.sort(key=where)
    for code in codes:
        yield code >> _PLACE_BITS, code & (1 << _PLACE_BITS) - 1
