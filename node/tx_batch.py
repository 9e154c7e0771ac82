"""Several transactions as one message: what peers gossip, and clients that send many hand in.

batch = MessagePack array of encode(Transaction) as byte strings, all different
"""

from __future__ import annotations

from chain import limits
from chain.errors import DecodeError
from chain.plain import unpack

MAX_BATCH_TXS = limits.MAX_BLOCK_TXS  # wire: transactions in one message
SLICE_TXS = 32  # judged (some 10 ms) before others get a turn of the main loop


def parse_batch(data: bytes, most: int = MAX_BATCH_TXS) -> list[bytes]:
    """Raises DecodeError unless it is a list of at most `most` different byte strings."""
    batch = unpack(data, most)
    if not isinstance(batch, list) or not all(isinstance(raw, bytes) for raw in batch):
        raise DecodeError("not a list of transactions")
    if max(map(len, batch), default=0) > limits.MAX_OPENING_TX_BYTES:
        raise DecodeError(f"a transaction of more than {limits.MAX_OPENING_TX_BYTES} bytes")
    if len(set(batch)) != len(batch):
        raise DecodeError("the same transaction twice in one message")
    return batch
