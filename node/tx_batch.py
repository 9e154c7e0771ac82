"""Several transactions as one message: what peers gossip, and clients that send many hand in.

batch = MessagePack array of encode(Transaction) as byte strings, all different
"""

from __future__ import annotations

import msgpack

from chain import limits
from chain.errors import DecodeError

MAX_BATCH_TXS = limits.MAX_BLOCK_TXS  # wire: transactions in one message
SLICE_TXS = 32  # judged (some 10 ms) before others get a turn of the main loop


def parse_batch(data: bytes, most: int = MAX_BATCH_TXS) -> list[bytes]:
    """Raises DecodeError unless it is a list of at most `most` different byte strings."""
    try:
        batch = msgpack.unpackb(
            data,
            max_bin_len=limits.MAX_OPENING_TX_BYTES,
            max_array_len=most,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"not a list of transactions: {error}") from None
    if not isinstance(batch, list) or not all(isinstance(raw, bytes) for raw in batch):
        raise DecodeError("not a list of transactions")
    if len(set(batch)) != len(batch):
        raise DecodeError("the same transaction twice in one message")
    return batch
