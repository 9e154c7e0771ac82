"""What must hold after a run, whatever was done to the network: judged from what nodes show.

`read` takes the list of blocks and of transactions of every node, and each block itself from one of
them in turn, whose hash it computes. `judge` is a function of what was read, and of what was told
while the run went on.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chain.errors import BlyanError
from chain.hashes import TX
from chain.transactions import SubmitEvidence, decode_transaction
from chain.types import CertifiedBlock
from node.client import Json
from tests.e2e.fleet import ASK_S, Failure, Machine
from tests.e2e.load import Told

SHOWN = 3  # examples in a failed check
MAX_POINTS = 50.0  # of violations that a node may hold against an honest one; 100 part them
READERS = 4  # questions to one node at a time
PAGE = 100


@dataclass(frozen=True, slots=True)
class Row:
    """A block as one node lists it, and its transactions: id, sender and nonce."""

    hash: str
    txs: tuple[tuple[str, str, int], ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(tx_id for tx_id, _, _ in self.txs)


@dataclass(frozen=True, slots=True)
class Whole:
    """A block itself, as one node handed it out; hashes computed here."""

    by: str
    hash: str
    parent: str
    txs: tuple[str, ...] = ()
    evidence: int = 0  # items, and transactions that carry some


@dataclass(slots=True)
class Seen:
    """What one node lists after the run: its blocks from 1 on."""

    rows: list[Row]
    points: Mapping[str, float] = field(default_factory=dict)  # held against other nodes


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    wrong: tuple[str, ...]
    looked_at: int  # of what the name says; a check of nothing fails

    @property
    def ok(self) -> bool:
        return not self.wrong and self.looked_at > 0

    def line(self) -> str:
        if self.ok:
            return f"ok    {self.name} ({self.looked_at})"
        said = "; ".join(self.wrong[:SHOWN]) or "there was nothing to look at"
        more = f"; and {len(self.wrong) - SHOWN} more" if len(self.wrong) > SHOWN else ""
        return f"WRONG {self.name}: {said}{more}"


# --- reading ------------------------------------------------------------------------------------


async def read(machine: Machine, height: int) -> Seen:
    """Its lists of blocks from 1 to `height` and of their transactions, and whom it charges."""
    client = machine.client
    blocks = await _pages(machine, client.blocks, "blocks", height + 1)
    rows = {int(b["height"]): Row(str(b["hash"])) for b in blocks}
    for tx in await _pages(machine, client.txs, "txs", None):
        at = int(tx["height"])
        if at in rows:
            one = (str(tx["id"]), str(tx["sender"]), int(tx["nonce"]))
            rows[at] = replace(rows[at], txs=(one, *rows[at].txs))  # newest first in the list
    peers = await _answer(machine, client.peers(), "its peers")
    points = {str(p["peer_id"]): float(p["violations"]) for p in peers["peers"]}
    return Seen([rows.get(h, Row("none")) for h in range(1, height + 1)], points)


async def read_whole(machines: Sequence[Machine], height: int) -> list[Whole]:
    """Each block from 1 to `height`, from one node after the other."""
    places = [asyncio.Semaphore(READERS) for _ in machines]

    async def one(number: int) -> Whole:
        which = number % len(machines)
        async with places[which]:
            machine = machines[which]
            asked = machine.client.raw_block(number)
            return _whole(machine.name, await _answer(machine, asked, f"block {number}"))

    return list(await asyncio.gather(*(one(n) for n in range(1, height + 1))))


def _whole(by: str, found: CertifiedBlock) -> Whole:
    block = found.block
    carriers = [isinstance(decode_transaction(raw).payload, SubmitEvidence) for raw in block.txs]
    return Whole(
        by,
        block.header.hash().hex(),
        block.header.parent.hex(),
        tuple(TX.hash(raw).hex() for raw in block.txs),
        len(block.evidence) + sum(carriers),
    )


async def _pages(
    machine: Machine, ask: Callable[..., Awaitable[Any]], name: str, before: int | None
) -> list[Json]:
    """All of a list, newest first."""
    found: list[Json] = []
    while True:
        page = await _answer(machine, ask(before=before, limit=PAGE), name)
        found += page[name]
        before = page["next"]
        if before is None:
            return found


async def _answer(machine: Machine, asked: Awaitable[Any], what: str) -> Any:
    try:
        found = await machine.ask(asked)
    except BlyanError as error:
        raise Failure(f"{machine.name} does not show {what}: {error}") from None
    if found is None:
        raise Failure(f"{machine.name} did not show {what} within {ASK_S:g} s")
    return found


# --- judging ------------------------------------------------------------------------------------


def judge(
    seen: Mapping[str, Seen],
    blocks: Sequence[Whole],
    told: Told,
    sent: Mapping[str, tuple[int, int]],
) -> list[Check]:
    """`seen` by node and `blocks`, all to one height; `sent`: payer and nonce of the transfers put
    in. None of the checks trusts another."""
    most = max((len(s.rows) for s in seen.values()), default=0)
    found: list[tuple[str, Iterator[str], int]] = [
        ("blocks are the same on all nodes", differing(seen, most), most),
        ("each block is what is listed, on the one before", _unlike(seen, blocks), len(blocks)),
        ("blocks told to be final are there", _lost_blocks(seen, told), len(told.blocks)),
        ("transactions told to be final are there", _lost_txs(seen, told), len(told.txs)),
        ("every transfer is final, and took effect", _unpaid(seen, told, sent), len(sent)),
        ("no transaction is there twice", _doubled(seen), most),
        ("nobody is shown to have signed twice", _accused(blocks), len(blocks)),
        ("no node holds much against another", _charged(seen), len(seen)),
    ]
    return [Check(name, tuple(wrong), looked_at) for name, wrong, looked_at in found]


def judge_logs(logs: Mapping[str, str], codes: Mapping[str, int]) -> list[Check]:
    """What nodes printed, and their exit codes once they were asked to end."""
    wrong = [f"{node}: exit code {code}" for node, code in codes.items() if code]
    return [
        Check("all nodes run to the end, and end when told", tuple(wrong), len(codes)),
        Check("no traceback and no error in the logs", tuple(_errors(logs)), len(logs)),
    ]


_ERROR = re.compile(r"^.*(?:Traceback \(most recent call last\)|\bERROR\b|\bCRITICAL\b).*$", re.M)


def _errors(logs: Mapping[str, str]) -> Iterator[str]:
    for node, text in logs.items():
        for found in _ERROR.finditer(text):
            yield f"{node}: {found.group()[:300]}"


def _row_at(node: Seen, height: int) -> Row | None:
    return node.rows[height - 1] if 1 <= height <= len(node.rows) else None


def differing(seen: Mapping[str, Seen], most: int) -> Iterator[str]:
    for height in range(1, most + 1):
        rows = {name: _row_at(node, height) for name, node in seen.items()}
        if len(set(rows.values())) > 1:
            shown = (f"{n} {r.hash[:8]} with {len(r.txs)}" for n, r in rows.items() if r)
            yield f"height {height}: {', '.join(shown)} transactions"


def _unlike(seen: Mapping[str, Seen], blocks: Sequence[Whole]) -> Iterator[str]:
    for height, block in enumerate(blocks, 1):
        row = _row_at(seen[block.by], height)
        if row is None or (row.hash, row.ids) != (block.hash, block.txs):
            yield f"height {height} of {block.by} is not what it lists"
        if height > 1 and block.parent != blocks[height - 2].hash:
            yield f"height {height} of {block.by} has another parent"


def _lost_blocks(seen: Mapping[str, Seen], told: Told) -> Iterator[str]:
    for (height, block_hash), by in sorted(told.blocks.items()):
        for name, node in seen.items():
            row = _row_at(node, height)
            if height > 0 and (row is None or row.hash != block_hash):
                yield f"{block_hash[:8]} at {height}, told by {', '.join(sorted(by))}, on {name}"


def _lost_txs(seen: Mapping[str, Seen], told: Told) -> Iterator[str]:
    for tx, by in sorted(told.txs.items()):
        for said, height in sorted(by):
            for name, node in seen.items():
                row = _row_at(node, height)
                if row is None or tx not in row.ids:
                    yield f"{tx[:8]} at {height}, told by {said}, is not there on {name}"


def _unpaid(
    seen: Mapping[str, Seen], told: Told, sent: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    for name, node in seen.items():
        there = {tx for row in node.rows for tx in row.ids}
        for tx, (payer, nonce) in sent.items():
            if tx not in there:
                yield f"{tx[:8]} (payer {payer}, nonce {nonce}) is not there on {name}"
    for tx, code in told.failed.items():
        yield f"{tx[:8]}: {code}"


def _doubled(seen: Mapping[str, Seen]) -> Iterator[str]:
    for name, node in seen.items():
        txs = [tx for row in node.rows for tx in row.txs]
        for tx_id, count in Counter(tx_id for tx_id, _, _ in txs).items():
            if count > 1:
                yield f"{tx_id[:8]} {count} times on {name}"
        for (sender, nonce), count in Counter((who, nonce) for _, who, nonce in txs).items():
            if count > 1:
                yield f"nonce {nonce} of {sender} {count} times on {name}"


def _accused(blocks: Sequence[Whole]) -> Iterator[str]:
    for height, block in enumerate(blocks, 1):
        if block.evidence:
            yield f"evidence in block {height} of {block.by}"


def _charged(seen: Mapping[str, Seen]) -> Iterator[str]:
    for name, node in seen.items():
        for peer, points in node.points.items():
            if points >= MAX_POINTS:
                yield f"{name} holds {points:g} points against {peer}"


def all_ok(checks: Sequence[Check]) -> bool:
    return bool(checks) and all(check.ok for check in checks)
