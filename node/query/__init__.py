"""Everything that can be asked of a node: the dicts that the API serves as JSON and the explorer
renders (docs/spec/api.md). One object, `Query(node)`; nothing is kept between calls."""

from __future__ import annotations

from node.query.base import BadQuery, NotFound, Pruned
from node.query.blocks import BlockQueries
from node.query.custody import CustodyQueries
from node.query.governance import GovernanceQueries
from node.query.light import LightQueries
from node.query.model import ModelQueries
from node.query.network import NetworkQueries
from node.query.rounds import RoundQueries


class Query(
    BlockQueries,
    RoundQueries,
    ModelQueries,
    NetworkQueries,
    CustodyQueries,
    GovernanceQueries,
    LightQueries,
):
    """Reads of one node, each from its latest final state. NotFound and BadQuery say what was
    wrong with a question; everything returned is plain JSON values."""


__all__ = ["BadQuery", "NotFound", "Pruned", "Query"]
