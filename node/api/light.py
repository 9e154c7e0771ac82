"""What a light client asks for: canonical bytes, to be checked (docs/spec/light-client.md)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from node.api.routes import BYTES, ERRORS, Ask, Name

router = APIRouter(prefix="/api/v1", responses=ERRORS, tags=["light client"])


def _answer(struct: str) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI describes bytes."""
    schema = {"type": "string", "format": "binary", "description": f"encode({struct})"}
    return {200: {"description": f"encode({struct})", "content": {BYTES: {"schema": schema}}}}


def _raw(data: bytes) -> Response:
    return Response(data, media_type=BYTES)


@router.get("/light/{height}", response_class=Response, responses=_answer("LightBlock"))
async def light_block(ask: Ask, height: Name) -> Response:
    """What shows that a block is final: headers up to one with a finalization, its certificate
    and the validator set."""
    return _raw(ask.light_block(height))


@router.get("/headers/{first}/{last}", response_class=Response, responses=_answer("HeaderRange"))
async def headers(ask: Ask, first: Name, last: Name) -> Response:
    """Headers of up to 256 heights in order, `last` included."""
    return _raw(ask.headers(first, last))


@router.get("/txs/{tx_id}/proof", response_class=Response, responses=_answer("TxProof"))
async def tx_proof(ask: Ask, tx_id: Name) -> Response:
    """Where a transaction stands in which block, with its path to the header's tx_root."""
    return _raw(ask.tx_proof(tx_id))
