"""A delta's payload that lies elsewhere, in a file say: its sections are read one by one.

What is kept here is the header, where each section begins, and its leaf under the payload root, so
that bytes which come back otherwise than they were are found before they are used.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate

from chain.errors import StorageError
from chain.hashes import Hash32
from tiles import merkle
from tiles.delta import payload_leaves, payload_sections, section_hash
from tiles.layout import ShardSpec

Read = Callable[[int, int], bytes]  # offset in the payload, and how many bytes
_LEAF_BYTES = 32


class StoredPayload:
    """A `tiles.delta.SectionSource`. `root`: the payload's. `is_damaged`: something came back
    otherwise; whoever keeps this one makes it anew."""

    def __init__(self, payload: bytes, specs: Sequence[ShardSpec], read: Read) -> None:
        """`payload`: what `read` will give, looked at now and not kept. Raises DecodeError unless
        header, lengths and model agree."""
        self.header, shards = payload_sections(payload, specs)
        leaves = payload_leaves(payload)
        self.root: Hash32 = merkle.merkle_root(leaves)
        self.is_damaged = False
        self._read = read
        self._leaves = b"".join(leaves[1:])  # of the sections, after the header's
        lengths = [length for entry in self.header.shards for length in entry.lengths]
        self._bounds = array("Q", accumulate(lengths, initial=len(payload) - sum(lengths)))
        counts = [len(parts) for parts in shards.values()]
        self._first = dict(zip(shards, accumulate(counts, initial=0), strict=False))

    def has(self, shard: int) -> bool:
        return shard in self._first

    def section(self, shard: int, subtile: int) -> bytes:
        """Raises StorageError for bytes that cannot be read, or are not those that were stored."""
        number = self._first[shard] + subtile
        start, end = self._bounds[number : number + 2]
        data = self._read(start, end - start)
        at = number * _LEAF_BYTES
        if section_hash(shard, subtile, data) != self._leaves[at : at + _LEAF_BYTES]:
            self.is_damaged = True
            raise StorageError(
                f"section {subtile} of shard {shard} of payload {self.root.hex()[:16]} came back "
                "damaged from the disk; it is made anew from the payload's blob"
            )
        return data
