"""What a light client asks for beside light blocks: a transaction's place in its block, and headers
that lead back to an earlier one (docs/spec/light-client.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from chain import limits
from chain.codec import U32, Bytes, Seq, wire
from chain.errors import VerifyError
from chain.hashes import TX_ROOT, Hash32
from chain.types import Header, Height, u64_be


@wire(19)
@dataclass(frozen=True, slots=True)
class TxProof:
    """Shows that the block at `height` has `tx` at `index` of `count`. `siblings` are the other
    sides from the leaf up; where a node has none and rises unchanged, nothing stands."""

    height: Height
    index: U32
    count: U32
    tx: Annotated[bytes, Bytes(limits.MAX_OPENING_TX_BYTES)]
    siblings: Annotated[tuple[Hash32, ...], Seq(limits.MAX_TX_SIBLINGS)]


@wire(86)
@dataclass(frozen=True, slots=True)
class HeaderRange:
    """Headers in order of height, each the parent of the next."""

    headers: Annotated[tuple[Header, ...], Seq(limits.MAX_HEADERS)]


def prove_tx(height: Height, txs: Sequence[bytes], index: int) -> TxProof:
    """The proof of a block's transaction, for `verify_tx_proof`. Raises IndexError."""
    tx, siblings, at = txs[index], list[Hash32](), index
    level = [TX_ROOT.hash(b"\x00", u64_be(i), raw) for i, raw in enumerate(txs)]
    while len(level) > 1:
        if (beside := at ^ 1) < len(level):
            siblings.append(level[beside])
        pairs = [TX_ROOT.hash(b"\x01", *level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
        at //= 2
    return TxProof(height, index, len(txs), tx, tuple(siblings))


def verify_tx_proof(tx_root: Hash32, proof: TxProof) -> bool:
    """Whether the transactions under `tx_root` are `count`, and that at `index` is the proof's."""
    if not proof.index < proof.count <= limits.MAX_BLOCK_TXS:
        return False
    digest = TX_ROOT.hash(b"\x00", u64_be(proof.index), proof.tx)
    at, width, siblings = proof.index, proof.count, list(proof.siblings)
    while width > 1:
        if at ^ 1 < width:
            if not siblings:
                return False
            beside = siblings.pop(0)
            digest = TX_ROOT.hash(b"\x01", *((beside, digest) if at & 1 else (digest, beside)))
        at, width = at // 2, (width + 1) // 2
    return not siblings and TX_ROOT.hash(b"\x02", u64_be(proof.count), digest) == tx_root


def check_ancestors(headers: Sequence[Header], descendant: Header) -> None:
    """Whether each header is the parent of the next, and the last that of `descendant`. What is
    below a final header is final too, so this needs no signature. VerifyError if not."""
    for parent, child in pairwise([*headers, descendant]):
        if child.parent != parent.hash() or child.height != parent.height + 1:
            raise VerifyError(f"header {child.height} does not follow the one before")
