"""A pruned node's old blocks: dropped behind the chain, a little with each block
(docs/spec/storage.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from chain.errors import ConfigError, StorageError
from chain.store import ChainStore
from chain.types import Height
from node.config import Config
from node.home import Home
from node.services.chain import ChainService

log = logging.getLogger("blyan.store")
ARCHIVE, PRUNED = "archive", "pruned"
MOST_TXS = 2000  # dropped after one block: twice what a large block brings


def check_history(home: Home, config: Config, store: ChainStore) -> None:
    """ConfigError for an archive that lacks blocks: only its peers can give them back."""
    if config.history == ARCHIVE and store.pruned.height > (store.first_height() or 0):
        raise ConfigError(
            f"this home was pruned: blocks below {store.pruned.height} have no transactions here, "
            'and history = "archive" needs all of them. Move chain.db away (`mv '
            f"{home.chain_db} {home.chain_db}.pruned`) and start again: the node fetches the chain "
            f'from its peers. Or set history = "pruned" in {home.config_file}'
        )


class Pruner:
    """Drops what is beyond the horizon after each final block, if the configuration says so."""

    def __init__(self, chain: ChainService, config: Config) -> None:
        self._chain, self._config = chain, config
        self.dropped = 0  # blocks, since the node started
        self._oldest = 0  # no round before this one is needed
        if config.history == PRUNED:
            chain.finalized(lambda *_: self._prune())

    def metrics(self) -> Mapping[str, int]:
        return {"pruned_below": self._chain.store.pruned.height, "blocks_pruned": self.dropped}

    def horizon(self) -> Height:
        """Below which height nothing is needed: by others, who may be away for as long as stake
        can be punished; by this node, to rebuild models of the rounds that it keeps."""
        chain, config = self._chain, self._config
        params, state = chain.genesis.params, chain.state()
        head = state.head
        self._oldest = max(self._oldest, head.round - config.retention_rounds)
        while self._oldest < head.round and not state.round(self._oldest).deltas:
            self._oldest += 1  # it has changed nothing
        oldest = state.round(self._oldest)
        window = max(
            config.history_blocks,
            params.unbonding_blocks,
            params.evidence_blocks + 2 * params.epoch_blocks,
        )
        needed = oldest.opened if oldest.deltas else head.height
        return Height(max(0, min(head.height - window, needed)))

    def _prune(self) -> None:
        chain = self._chain
        epoch_blocks = chain.genesis.params.epoch_blocks

        def ends_epoch(height: Height) -> bool:
            return height % epoch_blocks == 0

        try:
            self.dropped += chain.store.prune(self.horizon(), MOST_TXS, ends_epoch)
        except StorageError as error:
            log.error("old blocks are not pruned: %s", error)  # the chain itself goes on
