"""An account without money, through the API: what its stamp takes, and how many it has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chain.costs import StampClass
from chain.errors import TxError
from chain.transactions import JoinRound, Transfer
from chain.types import Grains
from node.api.app import create_app
from node.client import Client
from node.query import prices
from node.stamping import spend_of
from tests.kit.local_chain import LocalChain, key
from wallet import signing
from wallet.keys import KeyPair

POOR = key("poor")
PAYLOAD = Transfer(key("shop").public, Grains(1))


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[LocalChain]:
    with LocalChain(tmp_path, stamp_bits=6, quota_newcomer=2, stamp_retarget_blocks=2) as made:
        made.blocks(4)
        made.send(Transfer(POOR.public, Grains(5)), made.learners[0])
        made.blocks(4)
        yield made


def client(chain: LocalChain) -> Client:
    return Client("http://127.0.0.1:8645", transport=httpx.ASGITransport(create_app(chain)))


async def sent(chain: LocalChain, tries: list[int], who: KeyPair = POOR) -> Any:
    """Submit a stamped transfer, with blocks for as long as one waits."""
    task = asyncio.create_task(
        client(chain).submit(PAYLOAD, who, stamp=True, on_stamp=lambda _, most: tries.append(most))
    )
    while not task.done():
        if chain.pool.size:
            chain.block()
        await asyncio.sleep(0)
    return await task


def test_a_stamp_is_made_for_what_the_api_asks_and_counts_in_the_quota(chain: LocalChain) -> None:
    async def main() -> None:
        ask = client(chain)
        before = await ask.account(POOR.public)
        assert before["price"]["tries"]["money"] == 32 * 64  # a new account's first
        assert before["quota"] == {
            "trusted": False, "limit": 2, "used": 0, "left": 2, "resets": None, "resets_ms": None,
        }  # fmt: skip
        await sent(chain, [])
        after = await ask.account(POOR.public)
        assert (after["quota"]["used"], after["quota"]["left"]) == (1, 1)
        assert after["price"]["newcomer_factor"] == 1
        await sent(chain, [])
        with pytest.raises(TxError, match="2 stamped transactions are allowed a day") as refused:
            await sent(chain, [])
        assert refused.value.code == "quota_exceeded"
        assert (await ask.account(POOR.public))["nonce"] == 2

    asyncio.run(main())


def test_the_price_is_the_states(chain: LocalChain) -> None:
    params, state = chain.genesis.params, chain.state
    told = prices.price(state, params, POOR.public)
    assert set(told["tries"]) == {kind.name.lower() for kind in StampClass}
    assert told["fee"] == params.min_fee_grains
    assert spend_of(JoinRound(0, ())).kind == StampClass.DELTAS


def test_progress_tells_what_a_stamp_takes_on_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "_STAMP_BATCH", 16)  # however lucky, it is told once
    tries: list[int] = []
    with LocalChain(tmp_path, stamp_bits=12, stamp_new_account_bits=5) as dear:
        dear.blocks(2)
        dear.send(Transfer(POOR.public, Grains(5)), dear.learners[0])
        dear.blocks(3)
        asyncio.run(sent(dear, tries))
    assert set(tries) == {1 << 17}
