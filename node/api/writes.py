"""The writing half of the API: signed transactions from anyone, bytes from who holds the token.

Bodies are `application/octet-stream`: a page of another site cannot send that without asking
first, and nothing here answers such a question.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from chain import limits
from chain.errors import InputError, UnreachableError
from chain.hashes import Hash32
from chain.types import BlobId
from node.api import resources as res
from node.api import resources_upkeep as upkeep
from node.api.errors import MediaError, TokenError, TooLarge
from node.api.routes import BYTES, ERRORS, Ask, Name, node_of
from node.query.base import unhex
from node.seam import NodeSeam
from node.tx_batch import parse_batch

BODY_S, BODY_BYTES_PER_S = 10.0, 1024 * 1024  # a body comes within this and its size at this
MAX_CLIENT_TXS, MAX_BATCH_BYTES = 1024, 1024 * 1024  # of one call: half a second of work
router = APIRouter(prefix="/api/v1", responses=ERRORS)
Node = Annotated[NodeSeam, Depends(node_of)]
_BODY = {"requestBody": {"required": True, "content": {BYTES: {"schema": {"type": "string"}}}}}


async def body_of(request: Request, most: int) -> bytes:
    """The request's body, read no further than `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != BYTES:
        raise MediaError(f"the body is {kind or 'of no type'}; send it as {BYTES}")
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise TooLarge(f"{told} bytes where at most {most} are allowed")
    parts = bytearray()
    seconds = BODY_S + most / BODY_BYTES_PER_S
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                parts += part
                if len(parts) > most:
                    raise TooLarge(f"more than {most} bytes, the limit")
    except TimeoutError:
        raise InputError(f"the body did not come within {seconds:.0f} s") from None
    except ClientDisconnect:
        raise InputError("the client went away before its body was here") from None
    return bytes(parts)


def needs_token(request: Request, node: Node) -> None:
    """Refuse a call without the token of the home directory."""
    if not _has_token(request, node):
        raise TokenError(
            "this call needs the header `Authorization: Bearer TOKEN`; "
            "the token stands in the file api-token of the node's home"
        )


def _has_token(request: Request, node: NodeSeam) -> bool:
    """Whether a call carries the token. The comparison takes constant time."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), node.api_token.encode())
    return scheme.lower() == "bearer" and right and bool(node.api_token)


def _not_here(what: str, name: str) -> UnreachableError:
    """A stranger does not choose what this node fetches: it may come from a peer of theirs."""
    return UnreachableError(
        f"{what} {name} is not here; connected peers are asked for it if the call has the header "
        "`Authorization: Bearer TOKEN` with the token in the file api-token of the node's home"
    )


@router.post("/txs", status_code=202, response_model=res.Id, tags=["chain"], openapi_extra=_BODY)
async def submit(request: Request, ask: Ask) -> Response:
    """Hand in a signed transaction (encode(Transaction), docs/spec/transactions.md)."""
    raw = await body_of(request, limits.MAX_OPENING_TX_BYTES)
    return JSONResponse(await ask.submit(raw), status_code=202)


@router.post(
    "/txs/batch", status_code=202, response_model=res.Taken, tags=["chain"], openapi_extra=_BODY
)
async def submit_batch(request: Request, ask: Ask) -> Response:
    """Hand in several signed transactions as a MessagePack array; each is answered by itself."""
    batch = parse_batch(await body_of(request, MAX_BATCH_BYTES), MAX_CLIENT_TXS)
    return JSONResponse(await ask.submit_batch(batch), status_code=202)


@router.post(
    "/tiles/scrub",
    status_code=202,
    response_model=upkeep.Scrub,
    tags=["model"],
    dependencies=[Depends(needs_token)],
)
async def start_scrub(node: Node) -> Response:
    """Have this node read and mend all tiles on its disk; see GET for how far it is."""
    return JSONResponse(dict(node.scrub.start()), status_code=202)


@router.get("/tiles/scrub", response_model=upkeep.Scrub, tags=["model"])
async def scrub(node: Node) -> Response:
    """How far the scrub in progress is, and what the last one found."""
    return JSONResponse(dict(node.scrub.info()))


@router.post(
    "/blobs",
    status_code=201,
    response_model=res.Id,
    tags=["blobs"],
    dependencies=[Depends(needs_token)],
    openapi_extra=_BODY,
)
async def put_blob(request: Request, node: Node) -> Response:
    """Have this node host bytes under their hash."""
    data = await body_of(request, limits.MAX_BLOB_BYTES)
    blob_id = await asyncio.to_thread(node.blobs.put, data)  # synced to disk when it returns
    return JSONResponse({"id": blob_id.hex()}, status_code=201)


@router.get("/blobs/{blob}", tags=["blobs"], response_class=Response)
async def blob(request: Request, node: Node, blob: Name) -> Response:
    """A blob, verified: from here, and with the token from a peer, if none is here. What a peer
    gives is passed on and not kept."""
    name = BlobId(unhex(blob, "blob id"))
    if _has_token(request, node):
        return Response(await node.blobs.get(name, keep=False), media_type=BYTES)
    data = await asyncio.to_thread(node.blobs.local, name)
    if data is None:
        raise _not_here("blob", blob)
    return Response(data, media_type=BYTES)


@router.post(
    "/checkpoints/{state_hash}",
    status_code=201,
    response_model=res.Id,
    tags=["blobs"],
    dependencies=[Depends(needs_token)],
    openapi_extra=_BODY,
)
async def put_checkpoint(request: Request, node: Node, state_hash: Name) -> Response:
    """Have this node serve a training state under the hash that its manifest names."""
    name = Hash32(unhex(state_hash, "state hash"))
    data = await body_of(request, limits.MAX_BLOB_BYTES)
    await asyncio.to_thread(node.blobs.put_checkpoint, name, data)
    return JSONResponse({"id": name.hex()}, status_code=201)


@router.get("/checkpoints/{state_hash}", tags=["blobs"], response_class=Response)
async def checkpoint(request: Request, node: Node, state_hash: Name) -> Response:
    """A training state by its hash, which the caller recomputes: from here, and with the token
    from a peer, if none is here."""
    name = Hash32(unhex(state_hash, "state hash"))
    if _has_token(request, node):
        return Response(await node.blobs.get_checkpoint(name), media_type=BYTES)
    data = await asyncio.to_thread(node.blobs.local_checkpoint, name)
    if data is None:
        raise _not_here("the state", state_hash)
    return Response(data, media_type=BYTES)
