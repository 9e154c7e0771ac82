"""`blyan custody`: shown as people read it, and disputes as the chain takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from chain import custody
from chain.custody_records import CustodyPhase
from chain.errors import InputError, TxError
from chain.hashes import Hash32
from chain.types import Grains
from node.api.app import create_app
from node.cli.custody import _human, disputed, file_dispute
from node.client import Client
from tests.kit.custody_chain import CUSTODY_PARAMS, commit, event_of, keys_of, troubled_event, until
from tests.kit.local_chain import LocalChain
from tests.kit.machine import keys
from tests.kit.waiting import reached

STRANGER = keys("stranger")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    with LocalChain(tmp_path_factory.mktemp("chain"), **CUSTODY_PARAMS) as made:
        made.ended = troubled_event(made)  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def client(chain: LocalChain) -> Client:
    return Client("http://localhost", None, httpx.ASGITransport(create_app(chain)))


def test_a_dispute_is_filed_and_shown(chain: LocalChain, client: Client) -> None:
    async def body() -> None:
        until(chain, CustodyPhase.COMMIT)
        owner, rival = (keys_of(chain, i) for i in event_of(chain).places[0].custodians[:2])
        account = owner.account.public
        with pytest.raises(InputError, match="phase commit"):
            await disputed(client, "current", account, 0, None)
        for member in range(len(event_of(chain).members)):
            commit(chain, member)
        until(chain, CustodyPhase.DISPUTE)
        for position, who in ((0, STRANGER.account.public), (200, account)):
            with pytest.raises(InputError, match="not that account's"):
                await disputed(client, "current", who, position, None)
        found = await disputed(client, "current", account, 0, None)
        seed = event_of(chain).seed
        assert (found.event, found.custodian, found.position) == (seed, account, 0)
        assert found.bond == CUSTODY_PARAMS["custody_bond_grains"]
        named = await disputed(client, seed.hex(), account, 0, Grains(2 * 10**6))
        assert named.bond == 2 * 10**6
        filing = asyncio.create_task(file_dispute(client, rival, named))
        await reached(lambda: chain.pool.size, 120, "the dispute to wait")
        chain.block()
        said = await filing
        (claim,) = custody.claims(chain.state)
        assert (claim.bond, claim.disputer) == (2 * 10**6, rival.account.public)
        assert (said["bond"], said["event"]) == (2 * 10**6, seed.hex())
        text = _human(await client.custody_event())
        assert "disputed" in text
        assert said["custodian"] in text
        with pytest.raises(TxError, match="dispute already"):
            await file_dispute(client, rival, found)

    asyncio.run(body())


def test_an_event_that_is_over_is_shown_and_not_disputed(chain: LocalChain, client: Client) -> None:
    async def body() -> None:
        ended: Hash32 = chain.ended  # type: ignore[attr-defined]
        text = _human(await client.custody_event(ended.hex()))
        for word in ("closed", "convicted", "missed", "wrong", "shown"):
            assert word in text
        with pytest.raises(InputError, match="phase closed"):
            await disputed(client, ended.hex(), STRANGER.account.public, 0, None)
        with pytest.raises(InputError):
            await disputed(client, "nonsense", STRANGER.account.public, 0, None)

    asyncio.run(body())
