"""A leader that is connected and says nothing, as one that is paused, while transactions wait."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from chain.transactions import Transfer
from chain.types import Grains
from tests.kit.validators import Member, until_met, validators
from tests.kit.waiting import reached

IDLE_S = 5.0  # the empty interval: a view that waited for it would take longer than this
DELTA_MS = 250


async def transfer(members: list[Member]) -> float:
    """Seconds until a transfer that all of them have is final on all."""
    first = members[0].local
    raw = first.sign(Transfer(first.learners[1].public, Grains(5)), first.learners[0])
    began = time.monotonic()
    ids = []
    for member in members:
        ids.append(member.local.pool.submit(raw))
        member.consensus.wake()
    await reached(
        lambda: all(m.local.pool.get(i) is None for m, i in zip(members, ids, strict=True)),
        4 * IDLE_S,
        "the transfer is final",
    )
    return time.monotonic() - began


def test_its_view_is_lost_without_the_empty_interval(tmp_path: Path) -> None:
    """Stakes are 4, 3, 2 and 1: the others are a quorum without the second, which leads three
    views of ten."""

    async def main() -> None:
        async with validators(
            tmp_path, empty_interval_ms=int(IDLE_S * 1000), delta_floor_ms=DELTA_MS
        ) as members:
            await until_met(members)
            await transfer(members)
            members[1].consensus.stop()
            others = [members[0], *members[2:]]
            lost = [await cost(others) for _ in range(12)]
            assert sum(lost) >= 1, "the silent one led no view"

    asyncio.run(main())


async def cost(members: list[Member]) -> int:
    """Views lost until a transfer is final. Each costs 2Δ, which doubles with each; with the empty
    interval the first would take longer than is allowed here."""
    first = members[0]
    # All three are needed, so that the slowest one's Δ counts: each has its own.
    before, deltas = first.local.chain.tip, [m.consensus.info()["delta_ms"] for m in members]
    took = await transfer(members)
    after = first.local.chain.tip
    lost = (after.view - before.view) - (after.height - before.height)
    allowed = 2 * max(deltas) / 1000 * (2**lost - 1) + IDLE_S / 2
    told = f"{lost} views were lost in {took:.1f} s: at most {allowed:.1f}, with Δ of {deltas} ms"
    assert took < allowed, told
    return lost
