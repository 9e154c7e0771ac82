"""The reading half of the API: one line of route for each question of `Query`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi import Query as Parameter
from starlette.responses import JSONResponse, Response, StreamingResponse

from node.api import resources as res
from node.api import resources_custody as kept
from node.api import resources_governance as gov
from node.api import resources_learning as learn
from node.api.metrics import CONTENT_TYPE, metrics_text
from node.query import Query
from node.query.base import DEFAULT_LIMIT, MAX_LIMIT
from node.seam import NodeSeam

# Of every call, also where it is refused before its handler runs.
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": res.Error, "description": "It does not exist"},
    "4XX": {"model": res.Error, "description": "Refused: `code` says why (docs/spec/api.md)"},
    503: {"model": res.Error, "description": "No peer has it now, or every place is taken"},
}
router = APIRouter(prefix="/api/v1", responses=ERRORS)
BYTES = "application/octet-stream"


async def query_of(request: Request) -> Query:
    found: Query = request.app.state.query
    return found


async def node_of(request: Request) -> NodeSeam:
    found: NodeSeam = request.app.state.node
    return found


Ask = Annotated[Query, Depends(query_of)]
Limit = Annotated[int, Parameter(ge=1, le=MAX_LIMIT, description="rows of one answer")]
Before = Annotated[int | None, Parameter(ge=0, description="`next` of the page before")]
Name = Annotated[str, Path(max_length=200)]


def _json(value: Any) -> JSONResponse:
    return JSONResponse(value)


def _raw(data: bytes) -> Response:
    return Response(data, media_type=BYTES)


# --- the node ----------------------------------------------------------------------------


@router.get("/status", response_model=res.Status, tags=["node"])
async def status(ask: Ask) -> Response:
    """Where this node stands."""
    return _json(ask.status())


@router.get("/genesis", response_model=dict[str, Any], tags=["node"])
async def genesis(ask: Ask) -> Response:
    """The genesis document, as the chain id binds it."""
    return _json(ask.genesis())


@router.get("/peers", response_model=res.Peers, tags=["node"])
async def peers(ask: Ask) -> Response:
    """Peers that are connected or wanted."""
    return _json(ask.peers())


@router.get("/mempool", response_model=res.Mempool, tags=["node"])
async def mempool(ask: Ask, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Transactions that wait for a block."""
    return _json(ask.mempool(limit))


@router.get("/events", tags=["node"], response_class=StreamingResponse)
async def events(request: Request) -> Response:
    """Server-sent events: `block`, `tx`, `phase`, `round`, `peers`; data is JSON."""
    frames = await request.app.state.hub.stream()
    return StreamingResponse(frames, media_type="text/event-stream")


# --- blocks and transactions -------------------------------------------------------------


@router.get("/blocks", response_model=res.Blocks, tags=["chain"])
async def blocks(ask: Ask, before: Before = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Final blocks, newest first."""
    return _json(ask.blocks(before, limit))


@router.get("/blocks/{which}", response_model=res.Block, tags=["chain"])
async def block(ask: Ask, which: Name) -> Response:
    """A block by height or hash."""
    return _json(ask.block(which))


@router.get("/blocks/{which}/raw", tags=["chain"], response_class=Response)
async def raw_block(ask: Ask, which: Name) -> Response:
    """encode(CertifiedBlock), docs/spec/blocks.md."""
    return _raw(ask.raw_block(which))


@router.get("/txs", response_model=res.Txs, tags=["chain"])
async def txs(ask: Ask, before: Before = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Transactions in final blocks, newest first."""
    return _json(ask.txs(before, limit))


@router.get("/txs/{tx_id}", response_model=res.Tx, tags=["chain"])
async def tx(ask: Ask, tx_id: Name) -> Response:
    """A transaction: final (with its receipt's code), pending, or dropped."""
    return _json(ask.tx(tx_id))


@router.get("/accounts/{account}", response_model=res.Account, tags=["chain"])
async def account(
    ask: Ask, account: Name, before: Before = None, limit: Limit = DEFAULT_LIMIT
) -> Response:
    """An account by address or hex key, with what it needs for its next transaction."""
    return _json(ask.account(account, before, limit))


@router.get("/validators", response_model=res.Validators, tags=["chain"])
async def validators(ask: Ask) -> Response:
    """The validator set of the epoch in progress."""
    return _json(ask.validators())


@router.get("/state/{key}/proof", response_model=res.StateProof, tags=["chain"])
async def state_proof(
    ask: Ask, key: Name, height: Annotated[int | None, Parameter(ge=0, lt=2**63)] = None
) -> Response:
    """A value of the state or its absence, with its path to the header of the tip or `height`."""
    return _json(ask.state_proof(key, height))


@router.get("/search", response_model=list[res.Hit], tags=["chain"])
async def search(ask: Ask, q: Annotated[str, Parameter(max_length=200)]) -> Response:
    """What a height, hash, address, shard or title may mean, best first."""
    return _json(ask.search(q))


# --- the model ---------------------------------------------------------------------------


@router.get("/model", response_model=learn.Model, tags=["model"])
async def model(ask: Ask, height: Annotated[int | None, Parameter(ge=0)] = None) -> Response:
    """Every shard and tile root as of a height."""
    return _json(ask.model(height))


@router.get("/shards", response_model=learn.Shards, tags=["model"])
async def shards(ask: Ask) -> Response:
    """The shards of the newest model."""
    return _json(ask.shards())


@router.get("/shards/{which}", response_model=learn.Shard, tags=["model"])
async def shard(ask: Ask, which: Name) -> Response:
    """A shard by index or name."""
    return _json(ask.shard(which))


@router.get("/holdings", response_model=learn.Holdings, tags=["model"])
async def holdings(ask: Ask) -> Response:
    """What this node keeps of the newest model."""
    return _json(ask.holdings())


@router.get("/tiles/{shard}/{tile}", response_model=learn.Tile, tags=["model"])
async def tile(ask: Ask, shard: Name, tile: Name) -> Response:
    """A tile with its Merkle path, custodians and history."""
    return _json(ask.tile(shard, tile))


@router.get("/tiles/{shard}/{tile}/data", tags=["model"], response_class=Response)
async def tile_data(ask: Ask, shard: Name, tile: Name, root: str | None = None) -> Response:
    """A tile's bytes; `root` is a shard root, by default the newest."""
    return _raw(await ask.tile_data(shard, tile, root))


@router.get("/election/{shard}/{tile}", response_model=learn.Election, tags=["model"])
async def election(ask: Ask, shard: Name, tile: Name) -> Response:
    """Custody order of a tile in this epoch."""
    return _json(ask.election(shard, tile))


@router.get("/custody", response_model=kept.CustodyList, tags=["model"])
async def custody(ask: Ask, before: Before = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Custody events: the one in progress, and those that have ended, newest first."""
    return _json(ask.custody(before, limit))


@router.get("/custody/{which}", response_model=kept.CustodyEvent, tags=["model"])
async def custody_event(ask: Ask, which: Name) -> Response:
    """A custody event by its seed, or the `current` one."""
    return _json(ask.custody_event(which))


# --- learning ----------------------------------------------------------------------------


@router.get("/rounds", response_model=learn.Rounds, tags=["learning"])
async def rounds(ask: Ask, before: Before = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Learning rounds, newest first."""
    return _json(ask.rounds(before, limit))


@router.get("/rounds/{which}", response_model=learn.Round, tags=["learning"])
async def round_(ask: Ask, which: Name) -> Response:
    """A round by number, or the `current` one."""
    return _json(ask.round(which))


@router.get("/deltas", response_model=learn.Deltas, tags=["learning"])
async def deltas(ask: Ask, before: Before = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Deltas, newest round first; `before` and `next` are round numbers."""
    return _json(ask.deltas(before, limit))


@router.get("/deltas/{which}", response_model=learn.Delta, tags=["learning"])
async def delta(ask: Ask, which: Name) -> Response:
    """A delta by the id of its delta_commit."""
    return _json(ask.delta(which))


@router.get("/updates/{which}", response_model=learn.Update, tags=["learning"])
async def update(ask: Ask, which: Name) -> Response:
    """A primary's tile update."""
    return _json(ask.update(which))


@router.get("/losses", response_model=learn.Losses, tags=["learning"])
async def losses(ask: Ask) -> Response:
    """Holdout loss before and after each round, oldest first."""
    return _json(ask.losses())


@router.get("/evals", response_model=learn.Evals, tags=["learning"])
async def evals(ask: Ask, root: str | None = None) -> Response:
    """Measured holdout losses, of one model root or of all."""
    return _json(ask.evals(root))


@router.get("/datasets", response_model=learn.Datasets, tags=["learning"])
async def datasets(ask: Ask) -> Response:
    """Every dataset on the chain."""
    return _json(ask.datasets())


@router.get("/datasets/{which}", response_model=learn.Dataset, tags=["learning"])
async def dataset(ask: Ask, which: Name) -> Response:
    """A dataset with its audits, and what was trained on it."""
    return _json(ask.dataset(which))


# --- governance --------------------------------------------------------------------------


@router.get("/governance", response_model=gov.Governance, tags=["governance"])
async def governance(ask: Ask, before: Before = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Proposals: those that are voted on or wait, and those that ended, newest first."""
    return _json(ask.governance(before, limit))


@router.get("/governance/parameters", response_model=gov.Parameters, tags=["governance"])
async def parameters(ask: Ask) -> Response:
    """Every parameter: in force, in genesis, and what a vote may make of it."""
    return _json(ask.parameters())


@router.get("/governance/model", response_model=gov.ModelDocuments, tags=["governance"])
async def model_documents(
    ask: Ask, version: Annotated[str | None, Parameter(max_length=32)] = None
) -> Response:
    """The model's documents of a version, by default of rounds that anchor now."""
    return _json(ask.model_documents(version))


@router.get("/governance/{which}", response_model=gov.Proposal, tags=["governance"])
async def proposal(ask: Ask, which: Name) -> Response:
    """A proposal by its id: what it changes, who voted how, and what became of it."""
    return _json(ask.proposal(which))


# --- metrics -----------------------------------------------------------------------------

metrics_router = APIRouter()


@metrics_router.get("/metrics", tags=["node"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus's text format."""
    state = request.app.state
    return Response(metrics_text(state.node, state.query, state.hub), media_type=CONTENT_TYPE)
