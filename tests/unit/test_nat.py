"""Validators whom nobody can dial take part: they dial out, and what two of them must hear of each
other goes round through those between them.

Stakes are 4, 3, 2 and 1 of 10, so without the first nothing is final, and what the second proposes
needs the first's vote.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kit.validators import Member, until_height, validators
from tests.kit.waiting import TIMEOUT_S, reached


def cut_links(*members: Member) -> None:
    """No link with these can be made, from either side: whatever stands between lets the port of
    libp2p through and nothing else."""
    for member in members:
        links = member.net._asking.links
        assert links is not None

        async def fail(peer: object) -> bool:
            return False

        links._dial_any = fail  # type: ignore[method-assign]


def has_link(member: Member) -> bool:
    return any(link.up for link in member.net.link_info())


def was_dialled(member: Member) -> bool:
    """Whether anybody has got through to it, by libp2p or by a link."""
    inbound = any(p.direction == "in" for p in member.net.peers() if p.connected)
    return inbound or any(link.dialled_by == "peer" for link in member.net.link_info())


async def until_own_blocks(members: list[Member], *proposers: Member, blocks: int = 3) -> None:
    for proposer in proposers:
        await reached(
            lambda proposer=proposer: all(m.blocks_of(proposer) >= blocks for m in members),  # type: ignore[misc]
            TIMEOUT_S,
            "blocks of a validator behind a NAT",
        )


def agree(members: list[Member]) -> bool:
    height = min(m.height for m in members)
    blocks = (m.local.chain.store.block(height) for m in members)
    return len({b.hash() for b in blocks if b is not None}) == 1


@pytest.mark.parametrize("links", [True, False], ids=["links", "libp2p alone"])
def test_a_validator_that_nobody_can_dial_takes_part(tmp_path: Path, links: bool) -> None:
    """It dials all the others, and nothing needs to be flooded for it."""

    async def main() -> None:
        nets = validators(tmp_path, behind_nat={0}, start=False, empty_interval_ms=50)
        async with nets as members:
            hidden, *others = members
            if not links:
                cut_links(hidden)
            ids = {m.id for m in others}
            await reached(lambda: ids <= hidden.connected, TIMEOUT_S, "its connections")
            if links:
                up = lambda: {i.peer_id for i in hidden.net.link_info() if i.up}  # noqa: E731
                await reached(lambda: ids <= up(), TIMEOUT_S, "its links")
            for member in members:
                member.consensus.start()
            await until_own_blocks(members, *members[:2])
            await until_height(members, members[0].height + 3)
            assert agree(members)
            assert not was_dialled(hidden)
            assert has_link(hidden) is links
            assert has_link(others[0])
            assert hidden.consensus.info()["flooded"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("links", [True, False], ids=["links", "libp2p alone"])
def test_two_that_cannot_dial_each_other_agree(tmp_path: Path, links: bool) -> None:
    async def main() -> None:
        nets = validators(tmp_path, behind_nat={0, 1}, start=False, empty_interval_ms=100)
        async with nets as members:
            hidden, others = members[:2], members[2:]
            if not links:
                cut_links(*hidden)
            for member in members:
                member.consensus.start()
            await until_own_blocks(members, *hidden)
            await until_height(members, members[0].height + 3)
            assert agree(members)
            for one in hidden:
                assert one.connected <= {m.id for m in others}
                assert not was_dialled(one)
                assert has_link(one) is links
                assert one.consensus.info()["flooded"] > 0
            assert sum(m.consensus.info()["flooded_for_others"] for m in others) > 0

    asyncio.run(main())
