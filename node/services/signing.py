"""The consensus key: what signs with it, and the log that keeps it from signing twice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from chain.codec import encode
from chain.execute import epoch_of
from chain.hashes import Hash32
from chain.types import ChainId, Epoch, Height, ProposalSeal, PubKey, View, Vote, VoteKind
from consensus.simplex.core import Simplex
from consensus.simplex.messages import Effect, SignFloor
from consensus.simplex.sign_state import LAST_VIEW
from node.services.chain import ChainService
from node.services.doubt import Doubt
from node.wal import WriteAheadLog
from wallet.keys import KeyPair
from wallet.signing import sign_proposal, sign_vote

log = logging.getLogger("blyan.consensus")


class ConsensusSigner:
    """The consensus key as the core uses it: it signs votes and proposals and nothing else."""

    def __init__(self, key: KeyPair, chain_id: ChainId) -> None:
        self._key, self._chain_id = key, chain_id

    @property
    def public(self) -> PubKey:
        return self._key.public

    def sign_vote(self, kind: int, epoch: Epoch, view: View, block_hash: Hash32) -> Vote:
        return sign_vote(
            self._key,
            chain_id=self._chain_id,
            kind=VoteKind(kind),
            epoch=epoch,
            view=view,
            block_hash=block_hash,
        )

    def sign_proposal(self, epoch: Epoch, view: View, block_hash: Hash32) -> ProposalSeal:
        return sign_proposal(
            self._key, chain_id=self._chain_id, epoch=epoch, view=view, block_hash=block_hash
        )


def open_log(path: Path, chain: ChainService, key: PubKey) -> tuple[WriteAheadLog, Doubt]:
    """The log; where it may have forgotten a vote, this key signs nothing more in the epoch.

    Nobody knows how far the votes went that are gone, since one certificate may move a node by any
    number of views; nor, if the store was restored as well, which epoch it was in: that is the
    `Doubt`. A chain at genesis without a log is a new home, which has signed nothing, unless its
    directory remembers one. A node that does not validate loses nothing by abstaining.
    """
    epoch = epoch_of(chain.genesis, chain.tip.height + 1)
    abstain = [encode(SignFloor(epoch, LAST_VIEW))]
    opened = WriteAheadLog(path, abstain=abstain, expected=chain.tip.height > 0)
    doubt = Doubt(path)
    if opened.loss:
        doubt.begin(opened.loss)
    doubt.settle()
    if doubt.since_ms is not None and chain.validators(epoch).index_of(key) is not None:
        log.warning(
            "%s %s: so as not to contradict what it may have signed, this node signs nothing in "
            "epochs that may have begun before now. Check the disk and the clock; if the home was "
            "copied or restored, make sure that no other node signs with this key",
            opened.path,
            doubt.reason,
        )
    return opened, doubt


def silenced(core: Simplex, doubt: Doubt, chain: ChainService, epoch: Epoch) -> list[Effect]:
    """Before an epoch begins here: take its voice if it may have begun before the log was lost."""
    before = chain.store.header(Height(epoch * chain.genesis.params.epoch_blocks))
    return core.silence(epoch) if doubt.covers(0 if before is None else before.time_ms) else []


def abstention(core: Simplex, doubt: Doubt, epoch_blocks: int) -> dict[str, Any] | None:
    """Why a validator signs nothing, and the first block of the epoch in which it does again; None
    if it signs, or is no validator."""
    if not core.is_silenced:
        return None
    why = doubt.reason or "was lost before it was started last"
    return {
        "reason": f"the log of what its key has signed {why}",
        "epoch": core.epoch,
        "until_height": (core.epoch + 1) * epoch_blocks + 1,
    }
