"""An election computed again from its proof (docs/spec/election.md, "Recomputing a tile's ranks").

Of an answer only the state proof is read, and believed as far as its header is; all else in it is
compared with what follows from there.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from chain import records as r
from chain.address import format_address as address
from chain.codec import decode
from chain.errors import InputError, VerifyError
from chain.params import Genesis
from chain.types import ShardIndex, TileIndex
from consensus.election import tile_subject
from learning.spec import ModelSpec
from node.rules import custodians, custody_order
from node.verified import check_proof

Json = dict[str, Any]
MOST_MEETINGS = 16  # probes that are shown; a tile's first ranks take about one each


def drawn(epoch: r.EpochRecord, shard: int, tile: int) -> Json:
    """What lies between an epoch's record and a tile's ranks."""
    candidates, order = custodians(epoch), custody_order(epoch)
    layout = order.layout
    subject = tile_subject(ShardIndex(shard), TileIndex(tile))
    lot = layout.lot(subject)
    return {
        "scale": layout.scale,
        "lot": f"{lot:016x}",
        "weights": [
            {
                "account": address(candidate.account),
                "weight": str(candidate.weight),
                "capacity_tiles": standing.capacity_tiles,
                "reputation": standing.reputation,
                "latency_class": standing.latency_class,
            }
            for candidate, standing in zip(candidates, epoch.standings, strict=True)
        ],
        "full": [
            {
                "account": address(layout.accounts[cutoff.member]),
                "shard": cutoff.shard,
                "tile": cutoff.tile,
                "lot": f"{layout.lot(tile_subject(cutoff.shard, cutoff.tile)):016x}",
                "refuses": order.refuses(cutoff.member, (lot, subject)),
            }
            for cutoff in epoch.cutoffs
        ],
        "meetings": [
            {"probe": number, "accounts": [address(layout.accounts[i]) for i in met]}
            for number, met in islice(layout.meetings(subject), MOST_MEETINGS)
        ],
    }


def check_election(answer: Json, genesis: Genesis) -> Json:
    """The ranks that follow from an answer's proof, and what was checked.

    VerifyError if the proof does not hold or the answer says anything else than follows from it;
    InputError if it is no answer to `blyan query election`.
    """
    try:
        shard, tile, number = (int(answer[k]) for k in ("shard", "tile", "epoch"))
        proof = dict(answer["state"])
        said = [dict(row) for row in answer["ranks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"this is no answer of `blyan query election --json` ({error!r} is missing or wrong)"
        ) from None
    specs = ModelSpec.from_json(dict(genesis.model)).shards()
    if not 0 <= shard < len(specs) or not 0 <= tile < specs[shard].tile_count:
        raise VerifyError(f"this network's model has no tile {tile} of shard {shard}")
    proven = check_proof(genesis, proof, r.epoch_key(number))
    if proven.value is None:
        raise VerifyError(f"the state under the header has no epoch {number}")
    if proven.header.epoch != number:
        raise VerifyError(f"the header is of epoch {proven.header.epoch}, the ranks of {number}")
    epoch: r.EpochRecord = decode(r.EpochRecord, proven.value)
    found = drawn(epoch, shard, tile)
    subject = tile_subject(ShardIndex(shard), TileIndex(tile))
    members = {v.account: v for v in epoch.validators.members}
    order = custody_order(epoch).ranks(subject)
    ranks = [address(a) for a in order]
    if [row.get("account") for row in said] != ranks:
        raise VerifyError(
            f"the answer's order is not the election's, whose rank 0 is {ranks[0]}; "
            "ask another node"
        )
    rows = [
        {"rank": i, "account": address(a), "node_id": members[a].node_id, "stake": members[a].stake}
        for i, a in enumerate(order)
    ]
    right = {**found, "seed": epoch.seed.hex(), "name": specs[shard].name, "ranks": rows}
    for field, value in right.items():
        if answer.get(field) != value:
            raise VerifyError(f"the answer's {field} is not what follows from the epoch's record")
    return {
        "shard": shard,
        "name": specs[shard].name,
        "tile": tile,
        "epoch": number,
        "ranks": ranks,
        "height": proven.header.height,
        "block_hash": proven.header.hash().hex(),
        "finality": proven.finality.value,
        "checked": [
            f"epoch record → state root of block {proven.header.height}",
            f"block {proven.header.height}: {proven.finality.value}",
            f"seed, {len(members)} weights and {len(epoch.cutoffs)} cutoffs → {len(ranks)} ranks, "
            "computed here",
        ],
    }
