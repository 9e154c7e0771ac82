"""Provider records between real networks on loopback, most of which never meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chain.address import peer_id_of
from chain.errors import InputError, UnreachableError
from node.net import limits
from node.net.port import Network
from tests.kit.net import Station, stations

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def _nobody_dials_whom_it_only_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or five nodes would all be connected, and nothing would have to be found."""
    monkeypatch.setattr(limits, "WANTED_CONNECTIONS", 0)
    monkeypatch.setattr(limits, "PROVIDE_RETRY_S", 0.2)


@asynccontextmanager
async def star(*names: str) -> AsyncIterator[list[Station]]:
    """The first in the middle; the others know only it."""
    async with stations(*names, dial=False) as made:
        for station in made[1:]:
            await station.net.dial(made[0].address)
            await made[0].until_connected(station)
        yield made


def given(station: Station) -> int:
    return station.net.metrics().get("dht_records_given", 0)


def test_a_provider_is_found_and_reached_by_one_that_never_met_it() -> None:
    async def scenario() -> None:
        async with star("hub", "provider", "seeker", "other") as (hub, provider, seeker, _):
            assert await seeker.net.providers(KEY) == []
            assert provider.net.provide(KEY)
            await provider.until(lambda: given(provider) >= 1)
            assert await seeker.net.providers(KEY) == [provider.id]
            await seeker.net.reach(provider.id)
            await seeker.until_connected(provider)
            assert await hub.net.providers(KEY) == [provider.id]
            assert await provider.net.providers(b"another key") == []

    asyncio.run(scenario())


def test_a_key_provided_before_the_start_is_given_out_once_somebody_is_there() -> None:
    async def scenario() -> None:
        one, two = Station("early"), Station("late")
        try:
            one.net.provide(KEY)
            await one.net.start()
            await two.net.start()
            await two.net.dial(one.address)
            await one.until(lambda: given(one) >= 1)
            assert await two.net.providers(KEY) == [one.id]
        finally:
            await asyncio.gather(one.net.stop(), two.net.stop())

    asyncio.run(scenario())


def test_a_peer_is_reached_by_its_name_alone() -> None:
    """As a custodian is whom the chain names without an address."""

    async def scenario() -> None:
        async with star("hub", "one", "two") as (hub, one, two):
            await hub.until(lambda: all(p.addresses for p in hub.net.peers()))
            await one.net.reach(two.id)
            await one.until_connected(two)
            with pytest.raises(UnreachableError, match="no address"):
                await one.net.reach(peer_id_of(bytes(32)))

    asyncio.run(scenario())


def test_providing_is_bounded_and_can_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PROVIDED", 2)
    net = Network(bytes(32))
    assert net.provide(b"a")
    assert net.provide(b"b")
    assert net.provide(b"a")
    assert not net.provide(b"c")
    net.withdraw(b"a")
    assert net.provide(b"c")
    with pytest.raises(InputError):
        net.provide(b"")


def test_visits_end_when_there_are_connections_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VISIT_S", 0.1)

    async def scenario() -> None:
        async with star("hub", "one", "two") as (hub, one, two):
            await one.net.reach(two.id, [two.address])
            await one.until_connected(two)
            await one.until(lambda: one.connected == {hub.id})

    asyncio.run(scenario())
