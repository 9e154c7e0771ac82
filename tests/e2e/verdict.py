"""What must hold after a run, whatever was done to the network: judged from blocks alone.

`read` takes every block of every node from its API and computes the hashes itself; `judge` is a
function of what was read and what was told while it went on.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chain.errors import BlyanError
from chain.hashes import TX
from chain.transactions import SubmitEvidence, decode_transaction
from tests.e2e.fleet import ASK_S, Failure, Machine
from tests.e2e.load import Told

SHOWN = 3  # examples in a failed check
MAX_POINTS = 50.0  # of violations that a node may hold against an honest one; 100 part them
READERS = 4  # questions to one node at a time


@dataclass(frozen=True, slots=True)
class Row:
    """A block as one node has it."""

    hash: str
    parent: str
    txs: tuple[str, ...] = ()
    nonces: tuple[tuple[str, int], ...] = ()  # sender and nonce of each
    evidence: int = 0  # items, and transactions that carry some


@dataclass(slots=True)
class Seen:
    """What one node shows after the run: its blocks from 1 on."""

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
    """Its blocks from 1 to `height`, and what it holds against others."""
    places = asyncio.Semaphore(READERS)

    async def row(number: int) -> Row:
        async with places:
            return await _row(machine, number)

    rows = await asyncio.gather(*(row(n) for n in range(1, height + 1)))
    found = await machine.ask(machine.client.peers())
    if found is None:
        raise Failure(f"{machine.name} does not answer after the run")
    return Seen(list(rows), {p["peer_id"]: float(p["violations"]) for p in found["peers"]})


async def _row(machine: Machine, height: int) -> Row:
    try:
        found = await machine.ask(machine.client.raw_block(height))
    except BlyanError as error:
        raise Failure(f"{machine.name} has no block {height}: {error}") from None
    if found is None:
        raise Failure(f"{machine.name} did not show block {height} within {ASK_S:g} s")
    block = found.block
    txs = [decode_transaction(raw) for raw in block.txs]
    return Row(
        block.header.hash().hex(),
        block.header.parent.hex(),
        tuple(TX.hash(raw).hex() for raw in block.txs),
        tuple((tx.sender.hex(), tx.nonce) for tx in txs),
        len(block.evidence) + sum(isinstance(tx.payload, SubmitEvidence) for tx in txs),
    )


# --- judging ------------------------------------------------------------------------------------


def judge(seen: Mapping[str, Seen], told: Told, sent: Mapping[str, tuple[int, int]]) -> list[Check]:
    """`seen` by node, all to one height; `sent`: the transfers put in. Each check names what is
    wrong; none of them trusts another."""
    return [
        Check("blocks are the same on all nodes", *_counted(_differing(seen), _most(seen))),
        Check("each block follows the one before", *_counted(_loose(seen), _most(seen))),
        Check("blocks told to be final are there on all nodes", *_counted(
            _lost_blocks(seen, told), len(told.blocks))),
        Check("transactions told to be final are there on all nodes", *_counted(
            _lost_txs(seen, told), len(told.txs))),
        Check("every transfer is final, and took effect", *_counted(
            _unpaid(seen, told, sent), len(sent))),
        Check("no transaction is there twice", *_counted(_doubled(seen), _most(seen))),
        Check("nobody is shown to have signed twice", *_counted(_accused(seen), _most(seen))),
        Check("no node holds much against another", *_counted(_charged(seen), len(seen))),
    ]  # fmt: skip


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


def _counted(wrong: Iterator[str], looked_at: int) -> tuple[tuple[str, ...], int]:
    return tuple(wrong), looked_at


def _most(seen: Mapping[str, Seen]) -> int:
    return max((len(s.rows) for s in seen.values()), default=0)


def _row_at(node: Seen, height: int) -> Row | None:
    return node.rows[height - 1] if 1 <= height <= len(node.rows) else None


def _differing(seen: Mapping[str, Seen]) -> Iterator[str]:
    for height in range(1, _most(seen) + 1):
        rows = {name: _row_at(node, height) for name, node in seen.items()}
        if len(set(rows.values())) > 1:
            shown = ", ".join(f"{n} {r.hash[:8] if r else 'none'}" for n, r in rows.items())
            yield f"height {height}: {shown}"


def _loose(seen: Mapping[str, Seen]) -> Iterator[str]:
    for name, node in seen.items():
        for height in range(2, len(node.rows) + 1):
            if node.rows[height - 1].parent != node.rows[height - 2].hash:
                yield f"{name} height {height}"


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
                if row is None or tx not in row.txs:
                    yield f"{tx[:8]} at {height}, told by {said}, is not there on {name}"


def _unpaid(
    seen: Mapping[str, Seen], told: Told, sent: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    for name, node in seen.items():
        there = {tx for row in node.rows for tx in row.txs}
        for tx, (payer, nonce) in sent.items():
            if tx not in there:
                yield f"{tx[:8]} (payer {payer}, nonce {nonce}) is not there on {name}"
    for tx, code in told.failed.items():
        yield f"{tx[:8]}: {code}"


def _doubled(seen: Mapping[str, Seen]) -> Iterator[str]:
    for name, node in seen.items():
        times = Counter(tx for row in node.rows for tx in row.txs)
        yield from (f"{tx[:8]} {count} times on {name}" for tx, count in times.items() if count > 1)
        uses = Counter(nonce for row in node.rows for nonce in row.nonces)
        for (sender, nonce), count in uses.items():
            if count > 1:
                yield f"nonce {nonce} of {sender[:8]} {count} times on {name}"


def _accused(seen: Mapping[str, Seen]) -> Iterator[str]:
    for name, node in seen.items():
        for height, row in enumerate(node.rows, 1):
            if row.evidence:
                yield f"evidence in block {height} of {name}"


def _charged(seen: Mapping[str, Seen]) -> Iterator[str]:
    for name, node in seen.items():
        for peer, points in node.points.items():
            if points >= MAX_POINTS:
                yield f"{name} holds {points:g} points against {peer}"


def all_ok(checks: Sequence[Check]) -> bool:
    return bool(checks) and all(check.ok for check in checks)
