"""Building chain.db anew from the blocks that still hold (`blyan-node doctor --repair`).

Blocks are taken from the damaged file in order, as a node that syncs takes them from a peer: each
must follow the one before, be finalized by a certificate that holds, and give its state root when
it is executed. State, receipts, lists and history are what executing them gives. What comes after
the first block that does not hold is left out: the node fetches it from its peers. The damaged
file is moved aside, never changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from chain import store_pruning
from chain.certificates import verify_certificate
from chain.codec import decode
from chain.errors import BlockError, BlyanError, StorageError, VerifyError
from chain.execute import epoch_of
from chain.store import ChainStore
from chain.types import Block, Certificate, VoteKind
from node.chain_check import Progress
from node.genesis import GenesisChain
from node.rules import ProtocolRules
from node.services.chain import ChainService

_NEW = "chain.db.new"
_BESIDE = ("-wal", "-shm", "-journal")


class Rebuilt(NamedTuple):
    """How far the new file reaches, how far the old one said it did, and why no further."""

    height: int
    old_height: int
    why: str


def rebuild(path: Path, start: GenesisChain, progress: Progress) -> Rebuilt:
    """Replace chain.db by one made of its own blocks; the old one is at `path` until the new one
    is whole and synced. The caller owns the home. StorageError if there is nothing to begin with.
    """
    new = path.with_name(_NEW)
    remove(new)  # of a repair that was cut short
    with closing(_opened(path)) as db:
        old_height = _last(db)
        if _starts_late(db):
            raise StorageError(
                f"{path} does not have all blocks from genesis on (pruned, or begun from a "
                "snapshot), so its state cannot be computed again: move it away and start, the "
                "node fetches the chain from its peers"
            )
        params = start.genesis.params
        keep = params.unbonding_blocks, params.unbonding_ms
        with ChainStore(new, *keep, synced=False) as store:
            chain = ChainService(start, store, ProtocolRules())
            why = _replay(db, chain, old_height, progress)
            height = chain.tip.height
    _sync(new)
    return Rebuilt(height, old_height, why)


def put_in_place(path: Path, aside: Path) -> None:
    """Move the damaged file into the directory `aside`, and the rebuilt one to its place."""
    for suffix in ("", *_BESIDE):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(aside / old.name)
    path.with_name(_NEW).rename(path)
    sync_directory(path.parent)
    sync_directory(aside)


def remove(new: Path) -> None:
    for suffix in ("", *_BESIDE):
        new.with_name(new.name + suffix).unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(new: Path) -> None:
    with closing(sqlite3.connect(new)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with new.open("rb+") as file:
        os.fsync(file.fileno())


def _opened(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be opened: {error}") from None
    return db


def _last(db: sqlite3.Connection) -> int:
    """The height of the last block; what an index says is enough here. -1: nothing is readable."""
    try:
        (height,) = db.execute("SELECT max(height) FROM blocks").fetchone()
    except sqlite3.Error:
        return -1
    return int(height) if isinstance(height, int) else -1


def _starts_late(db: sqlite3.Connection) -> bool:
    try:
        (first,) = db.execute("SELECT min(height) FROM blocks").fetchone()
        return (isinstance(first, int) and first > 0) or store_pruning.pruned(db).height > 0
    except (sqlite3.Error, TypeError):
        return False  # a damaged file: what can be read shows


def _replay(db: sqlite3.Connection, chain: ChainService, last: int, progress: Progress) -> str:
    """Take groups of blocks up to a certificate while they hold; why it ended, or nothing."""
    group: list[Block] = []
    try:
        for height, block, certificate in _read(db, last):
            group.append(block)
            if certificate is not None:
                _take(chain, group, certificate)
                group = []
            if height % 64 == 0 or height == last:
                progress(height, last)
    except (BlyanError, sqlite3.Error, TypeError, LookupError) as error:
        return str(error)
    return "no certificate for the last blocks" if group else ""


def _read(db: sqlite3.Connection, last: int) -> Iterator[tuple[int, Block, Certificate | None]]:
    split = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'bodies'").fetchone()
    table = "bodies" if split else "blocks"  # as before store version 4
    for height in range(1, last + 1):
        body = db.execute(f"SELECT body FROM {table} WHERE height = ?", (height,)).fetchone()
        if body is None:
            raise StorageError(f"block {height} is missing")
        found = db.execute(
            "SELECT certificate FROM certificates WHERE height = ?", (height,)
        ).fetchone()
        block: Block = decode(Block, body[0])
        certificate: Certificate | None = None if found is None else decode(Certificate, found[0])
        yield height, block, certificate


def _take(chain: ChainService, group: list[Block], certificate: Certificate) -> None:
    """What a syncing node asks of blocks, in the same words (docs/spec/consensus.md)."""
    last = group[-1]
    epoch = epoch_of(chain.genesis, last.header.height)
    named = (certificate.kind, certificate.block_hash, certificate.epoch)
    if named != (VoteKind.FINALIZE, last.hash(), epoch):
        raise VerifyError(f"certificate {last.header.height} does not finalize its block")
    verify_certificate(chain.genesis.chain_id, chain.validators(epoch), certificate)
    parent, parent_hash = chain.tip, chain.tip_hash
    for block in group:
        if block.header.parent != parent_hash:
            raise BlockError(f"block {block.header.height} does not extend the one before")
        chain.execute(parent, block)
        parent, parent_hash = block.header, block.hash()
    chain.commit(group, certificate)
