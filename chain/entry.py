"""Where a store begins that has no history: the block of a snapshot, with the state after it.

What the events of the blocks before would have told and is still needed stands in the state, and
becomes events of this block: which versions of the model there are (docs/spec/sync.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from chain import records as r
from chain.errors import VerifyError
from chain.execute import evidence_root
from chain.hashes import TX
from chain.receipts import Receipt
from chain.state import Event, State
from chain.tree import StateTree
from chain.types import Block, Header, TxId, tx_root

_TOLD = (b"shrd/", b"tile/", b"rnd_/")
UNKNOWN = "unknown"  # the code of what was executed before the snapshot
_REASON = "executed before the snapshot that this node began with: its result is not known here"


def check_body(header: Header, block: Block) -> None:
    """Whether this is the block of a header that is trusted, body included. VerifyError if not."""
    if block.header != header:
        raise VerifyError(f"not the block of header {header.height}")
    if tx_root(block.txs) != header.tx_root or evidence_root(block.evidence) != (
        header.evidence_root
    ):
        raise VerifyError(f"the body is not that of block {header.height}")


def first_receipts(block: Block) -> list[Receipt]:
    """Of the transactions of a block that was executed elsewhere."""
    return [Receipt(TxId(TX.hash(raw)), UNKNOWN, _REASON) for raw in block.txs]


def is_told(key: bytes) -> bool:
    """Whether `first_events` reads this part of the state."""
    return key in (r.HEAD, r.MODEL) or key.startswith(_TOLD)


def first_events(content: Mapping[bytes, bytes]) -> list[Event]:
    """The newest versions of shards and model, as their rounds told of them. `content`: what
    `is_told` chooses of the state."""
    return _events(State(StateTree.empty().set_many(content)))


def _events(state: State) -> list[Event]:
    found: list[Event] = []
    model = state.model
    for index in range(model.shards):
        shard = state.need(r.ShardRecord, r.shard_key(index))
        if shard.version == 0:
            continue  # genesis's
        roots = state.need(r.TileRoots, r.tiles_key(index)).roots
        data = {
            "round": _round_at(state, shard.height),
            "root": shard.root.hex(),
            "version": shard.version,
            "tiles": [root.hex() for root in roots],
        }
        found.append(Event("shard", r.shard_key(index), data))
    if model.version:
        data = {"round": _round_at(state, model.height), "version": model.version}
        found.append(Event("model", model.root, data))
    return found


def _round_at(state: State, height: int) -> int:
    """The round that was in progress at a height: the newest that had been opened."""
    number = state.head.round
    while number > 0:
        record = state.get(r.RoundRecord, r.round_key(number))
        if record is None or record.opened <= height:
            break
        number -= 1
    return number
