"""From a genesis file to everything a node starts with: model shards, state and block 0."""

from __future__ import annotations

from dataclasses import dataclass

from chain.execute import GenesisShard, genesis_tree
from chain.params import Genesis
from chain.tree import StateTree
from chain.types import Block
from learning.documents import read_documents
from learning.init import initial_shards
from node.rules import ProtocolRules
from tiles import merkle
from tiles.layout import ShardSpec


@dataclass(frozen=True, slots=True)
class GenesisChain:
    """What every node computes alike from the file alone. `shards`: the initial data sections."""

    genesis: Genesis
    specs: tuple[ShardSpec, ...]
    shards: tuple[bytes, ...]
    rooted: tuple[GenesisShard, ...]
    tree: StateTree
    block: Block


def build_genesis(genesis: Genesis) -> GenesisChain:
    """Initial weights, state and block 0. Raises GenesisError for a model that cannot be, or a
    training rule that it cannot be trained by."""
    spec, _ = read_documents(dict(genesis.model), dict(genesis.training))
    specs = spec.shards()
    shards = tuple(initial_shards(spec))
    rooted = []
    for shard, data in zip(specs, shards, strict=True):
        roots = merkle.tile_roots(data)
        rooted.append(
            GenesisShard(shard.name, len(data), merkle.shard_root(roots, len(data)), roots)
        )
    tree, header = genesis_tree(genesis, rooted, ProtocolRules())
    return GenesisChain(genesis, specs, shards, tuple(rooted), tree, Block(header, (), ()))
