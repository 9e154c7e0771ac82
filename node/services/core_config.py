"""What the consensus core is told of the chain that it agrees on."""

from __future__ import annotations

from collections.abc import Callable

from chain.params import Genesis
from chain.types import Block
from consensus.simplex.messages import Config


def core_config(genesis: Genesis, body_matches: Callable[[Block], bool]) -> Config:
    params = genesis.params
    return Config(
        chain_id=genesis.chain_id,
        is_last=lambda height: height % params.epoch_blocks == 0 and height > 0,
        body_matches=body_matches,
        delta_floor_ms=params.delta_floor_ms,
        delta_cap_ms=params.delta_cap_ms,
        empty_interval_ms=params.empty_interval_ms,
    )
