"""What a transaction of ours costs, and the stamp that pays for it without money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from chain.codec import encode
from chain.costs import Spend, spend
from chain.errors import TxError, UnreachableError
from chain.hashes import Hash32
from chain.transactions import Payload, Stamp, Transaction
from chain.types import ChainId, Grains, Height, PubKey, Signature
from wallet.signing import make_stamp


def spend_of(payload: Payload) -> Spend:
    """What a transaction with this payload takes of a block, were all its numbers the longest."""
    blank = Hash32(bytes(32))
    most = 2**64 - 1
    longest = Transaction(
        ChainId(blank),
        PubKey(blank),
        PubKey(blank),
        most,
        Grains(most),
        Stamp(Height(most), most),
        payload,
        Signature(bytes(64)),
    )
    return spend(payload, len(encode(longest)), stamped=True)


async def stamp_for(
    account: dict[str, Any],
    payload: Payload,
    *,
    chain_id: ChainId,
    sender: PubKey,
    nonce: int,
    on_stamp: Callable[[int, int], None] | None,
) -> Stamp:
    """Work for a transaction of an account as the API tells of it; `on_stamp` gets the number of
    tries so far and of those that it takes on average. TxError `quota_exceeded` before any work if
    the chain would refuse it anyway."""
    recent, quota = account["stamp"], account["quota"]
    if recent is None:
        raise UnreachableError("the chain has no block to stamp with yet; try again shortly")
    if quota["left"] <= 0:
        raise TxError(
            "quota_exceeded",
            f"{quota['limit']} stamped transactions are allowed a day; the next one from block "
            f"{quota['resets']} and {quota['resets_ms']} ms of Unix time on, or with a fee at once",
        )
    asked = spend_of(payload)
    expected = int(account["price"]["tries"][asked.kind.name.lower()]) * asked.units
    return await asyncio.to_thread(
        make_stamp,
        chain_id=chain_id,
        sender=sender,
        nonce=nonce,
        height=Height(recent["height"]),
        block_hash=Hash32(bytes.fromhex(recent["hash"])),
        payload=payload,
        difficulty=expected,
        on_progress=None if on_stamp is None else lambda tries: on_stamp(tries, expected),
    )
