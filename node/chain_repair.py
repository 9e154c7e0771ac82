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
from chain.errors import BlockError, BlyanError, DecodeError, StorageError, VerifyError
from chain.execute import epoch_of
from chain.store import ChainStore
from chain.types import Block, Certificate, VoteKind
from node.chain_check import Progress
from node.genesis import GenesisChain
from node.rules import ProtocolRules
from node.services.chain import MAX_OVERLAYS, ChainService

NEW = "chain.db.new"
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
    new = path.with_name(NEW)
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
    path.with_name(NEW).rename(path)
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
        db.execute("PRAGMA writable_schema = ON")  # where one table's text is damaged, others open
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be opened: {error}") from None
    return db


def _last(db: sqlite3.Connection) -> int:
    """The height of the last block; what an index says is enough here. -1: nothing is readable."""
    heights = [-1]
    for table in ("blocks", "bodies"):
        try:
            (height,) = db.execute(f"SELECT max(height) FROM {table}").fetchone()
        except sqlite3.Error:
            continue  # the other one may do
        heights += [height] if isinstance(height, int) else []
    return max(heights)


def _starts_late(db: sqlite3.Connection) -> bool:
    """Whether the first blocks are not here because they were pruned or never were; in a damaged
    file one number may say so, while the blocks are there."""
    try:
        (first,) = db.execute("SELECT min(height) FROM blocks").fetchone()
        begins_late = (isinstance(first, int) and first > 0) or store_pruning.pruned(db).height > 0
        return (
            begins_late
            and not db.execute(
                f"SELECT 1 FROM {_bodies(db)} WHERE height = 1 AND length(body) > 0"
            ).fetchone()
        )
    except (sqlite3.Error, StorageError):
        return False  # a damaged file: what can be read shows


def _replay(db: sqlite3.Connection, chain: ChainService, last: int, progress: Progress) -> str:
    """Take groups of blocks up to a certificate while they hold; why it ended, or nothing."""
    group: list[Block] = []
    why = ""
    if last < 0:
        return "its table of blocks cannot be read"
    try:
        for height, block, raw in _read(db, last):
            group.append(block)
            try:
                certificate = _certificate(chain, block, raw)
            except (VerifyError, DecodeError, TypeError) as error:
                why = str(error)  # a later one may finalize this block too
                if len(group) == MAX_OVERLAYS:
                    break
            else:
                _take(chain, group, certificate)
                group = []
            if height % 64 == 0 or height == last:
                progress(height, last)
    except (BlyanError, sqlite3.Error, TypeError) as error:
        return str(error)
    return why if group else ""


def _read(db: sqlite3.Connection, last: int) -> Iterator[tuple[int, Block, bytes | None]]:
    table = _bodies(db)
    for height in range(1, last + 1):
        body = db.execute(f"SELECT body FROM {table} WHERE height = ?", (height,)).fetchone()
        if body is None:
            raise StorageError(f"block {height} is missing")
        found = db.execute(
            "SELECT certificate FROM certificates WHERE height = ?", (height,)
        ).fetchone()
        block: Block = decode(Block, body[0])
        yield height, block, None if found is None else found[0]


def _bodies(db: sqlite3.Connection) -> str:
    """The table that has them: before store version 4 it was that of blocks."""
    split = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'bodies'").fetchone()
    return "bodies" if split else "blocks"


def _certificate(chain: ChainService, block: Block, raw: bytes | None) -> Certificate:
    """A block's own, if it holds: what a syncing node asks, in the same words
    (docs/spec/consensus.md)."""
    height = block.header.height
    if raw is None:
        raise VerifyError("no certificate for the last blocks")
    certificate: Certificate = decode(Certificate, raw)
    epoch = epoch_of(chain.genesis, height)
    named = (certificate.kind, certificate.block_hash, certificate.epoch)
    if named != (VoteKind.FINALIZE, block.hash(), epoch):
        raise VerifyError(f"certificate {height} does not finalize its block")
    members = chain.validators_at(epoch)
    if members is None:
        raise VerifyError(f"certificate {height} is of an epoch without validators")
    verify_certificate(chain.genesis.chain_id, members, certificate)
    return certificate


def _take(chain: ChainService, group: list[Block], certificate: Certificate) -> None:
    parent, parent_hash = chain.tip, chain.tip_hash
    for block in group:
        if block.header.parent != parent_hash:
            raise BlockError(f"block {block.header.height} does not extend the one before")
        chain.execute(parent, block)
        parent, parent_hash = block.header, block.hash()
    chain.commit(group, certificate)
