"""What the mempool costs a node for each transaction, and how long an acknowledgement takes.

    python -m bench.mempool [--json] [--senders 256]

Transfers of many senders with different fees: taken (by a node that knows the signature and by one
that does not), executed into a leader's block, and forgotten when they are final; a pool that is
full and gives its places to what bids more; and the journal, by one client and by 64 at once.
Floors, from the same run: checking bare signatures, executing the same transactions in the order
given, one fsync of a file. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Row, at_most, quantile
from chain.crypto import verify
from chain.errors import TxError
from chain.hashes import TX
from chain.receipts import OK, Receipt
from chain.signed import signed
from chain.transactions import decode_transaction
from chain.types import TxId
from node import mempool
from node.pool_journal import PoolJournal
from tests.kit.pools import Pooled

NONCES = 16
TARGET_KNOWN_US, TARGET_FILL, TARGET_ACK_MS = 25.0, 2.0, 10.0
REPEATS = 3
US = 1e6


def timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def submit_all(run: Pooled, raws: list[bytes]) -> int:
    refused = 0
    for raw in raws:
        try:
            run.pool.submit(raw, local=False)
        except TxError:
            refused += 1
    return refused


def one_turn(run: Pooled, raws: list[bytes]) -> dict[str, float]:
    """Microseconds a transaction, of each step."""
    signed.clear()
    run.pool = run.new_pool()
    found = {"fresh": timed(lambda: submit_all(run, raws))}
    run.pool = run.new_pool()
    found["known"] = timed(lambda: submit_all(run, raws))
    block: list[bytes] = []
    execution = run.execution()
    found["fill"] = timed(lambda: block.extend(run.pool.fill(execution, 2 * 10**6)))
    done = execution.finish()
    receipts = [Receipt(TxId(TX.hash(raw)), OK, "") for raw in block]
    found["final"] = timed(lambda: run.pool.committed(receipts, done.changes))
    bare = run.execution()
    found["bare"] = timed(lambda: [bare.try_apply(raw) for raw in block])
    txs = [decode_transaction(raw) for raw in raws]
    found["verify"] = timed(lambda: [verify(t.signer, t.digest(), t.signature) for t in txs])
    of = {"fill": len(block), "final": len(block), "bare": len(block)}
    return {name: seconds * US / of.get(name, len(raws)) for name, seconds in found.items()}


def outbid(run: Pooled, raws: list[bytes], dearer: list[bytes]) -> float:
    """Microseconds of a submission that pushes another out, in a pool that is full."""
    run.pool = run.new_pool()
    mempool.MAX_TXS = len(raws) * 4 // 3
    submit_all(run, raws)
    took = timed(lambda: submit_all(run, dearer))
    if run.pool.displaced_total < len(dearer) * 9 // 10:
        raise SystemExit(f"only {run.pool.displaced_total} were pushed out")
    return took * US / len(dearer)


async def acknowledge(clients: int, rounds: int) -> list[float]:
    """Milliseconds until what a client handed in is on disk."""
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        journal = PoolJournal(Path(directory))

        async def client(number: int) -> None:
            for at in range(rounds):
                raw = bytes([number, at]) * 120
                began = time.perf_counter()
                journal.add(TxId(TX.hash(raw)), 1, raw)
                await journal.flush()
                waits.append((time.perf_counter() - began) * 1e3)

        await asyncio.gather(*(client(n) for n in range(clients)))
        await journal.close()
    return waits


def bare_sync() -> float:
    """Milliseconds of an append and its fsync."""
    with tempfile.TemporaryDirectory() as directory:
        descriptor = os.open(Path(directory) / "file", os.O_WRONLY | os.O_CREAT)
        took = []
        for number in range(60):
            began = time.perf_counter()
            os.pwrite(descriptor, bytes(300), 300 * number)
            os.fsync(descriptor)
            took.append((time.perf_counter() - began) * 1e3)
        os.close(descriptor)
    return quantile(took, 0.5)


def measure(senders: int) -> list[Row]:
    run = Pooled(2 * senders)
    payers, others = run.keys[:senders], run.keys[senders:]
    raws = [
        run.raw(payer, nonce, fee=1000 + (i * 7919 + nonce * 104_729) % 1000)
        for nonce in range(NONCES)
        for i, payer in enumerate(payers)
    ]
    turns = [one_turn(run, raws) for _ in range(REPEATS)]
    best = {name: min(turn[name] for turn in turns) for name in turns[0]}
    dearer = [run.raw(other, nonce, fee=10_000) for nonce in range(2) for other in others]
    one, many = (asyncio.run(acknowledge(c, 60 if c == 1 else 8)) for c in (1, 64))
    sync = bare_sync()
    return [
        at_most("submit", best["fresh"], "us", None, best["verify"]),
        at_most("submit_known_signature", best["known"], "us", TARGET_KNOWN_US),
        at_most("into_a_block", best["fill"], "us", TARGET_FILL * best["bare"], best["bare"]),
        at_most("final", best["final"], "us", None),
        at_most("submit_and_push_out", outbid(run, raws, dearer), "us", None, best["fresh"]),
        at_most("acknowledged_median", quantile(one, 0.5), "ms", TARGET_ACK_MS, sync),
        at_most("acknowledged_64_at_once", quantile(many, 0.5), "ms", 2 * TARGET_ACK_MS, sync),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--senders", type=int, default=256)
    options = parser.parse_args()
    rows = measure(options.senders)
    if options.json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
    else:
        print("\n".join(row.as_text() for row in rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
