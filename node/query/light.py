"""What a light client asks for, as canonical bytes (docs/spec/light-client.md)."""

from __future__ import annotations

from chain import limits
from chain import records as r
from chain.codec import decode, encode
from chain.light import LightBlock
from chain.light_proofs import HeaderRange, prove_tx
from chain.types import Epoch, Header, Height, TxId, ValidatorSet
from node.query.base import BadQuery, NotFound, Pruned, Reader, natural, unhex


class LightQueries(Reader):
    def light_block(self, which: str) -> bytes:
        """encode(LightBlock) of a height: why it is final, and by whose signatures."""
        height = natural(which, "block height")
        self._header(height)  # or there is no such block
        found = self.node.chain.certified(height)
        if found is not None:
            headers, certificate = found
            return encode(LightBlock(headers, certificate, self._validators(headers[-1].epoch)))
        if height < (below := self.node.store.pruned.height):
            raise Pruned(f"what makes block {height} final", below)
        raise NotFound(
            f"no certificate for block {height} is here; genesis has none, and others may come "
            "with the blocks that follow"
        )

    def headers(self, first: str, last: str) -> bytes:
        """encode(HeaderRange) of the heights `first` to `last`, both included."""
        low, high = natural(first, "block height"), natural(last, "block height")
        if not 0 <= high - low < limits.MAX_HEADERS:
            raise BadQuery(f"{low} to {high}: expected 1 to {limits.MAX_HEADERS} headers, in order")
        return encode(HeaderRange(tuple(self._header(at) for at in range(low, high + 1))))

    def tx_proof(self, tx_id_text: str) -> bytes:
        """encode(TxProof) of a transaction in a final block."""
        tx_id = TxId(unhex(tx_id_text, "transaction id"))
        stored = self.node.store.tx(tx_id)
        block = None if stored is None else self.node.store.block(stored.height)
        if stored is None or block is None:
            raise NotFound(f"this node knows no final block with transaction {tx_id.hex()}")
        return encode(prove_tx(stored.height, block.txs, stored.position))

    def _header(self, height: int) -> Header:
        header: Header | None = None
        tip = self.node.chain.tip.height
        if height <= tip:
            header = self.node.store.header(Height(height))
        if header is None:
            first = self.node.store.first_height()
            raise NotFound(f"there is no block {height}; this node has {first} to {tip}")
        return header

    def _validators(self, epoch: Epoch) -> ValidatorSet:
        """The set of an epoch, which is kept for as long as a header of it may be trusted."""
        key = r.epoch_key(epoch)
        raw = self.state.tree.get(key) or self.node.genesis_tree.get(key)
        if raw is None:
            raise NotFound(
                f"the validator set of epoch {epoch} is not kept any more: its evidence age is "
                "over, and so is the time for which a header of it may be trusted"
            )
        record: r.EpochRecord = decode(r.EpochRecord, raw)
        return record.validators
