"""The pages of the explorer. Each renders what `Query` says, and links to it as JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi import Query as Parameter
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from node.explorer import charts
from node.explorer.files import load_files
from node.explorer.formats import FILTERS
from node.query import NotFound, Query

router = APIRouter(include_in_schema=False)
LATEST = 8  # rows of each list on the overview
ROWS = 25  # rows of a page of a list
Before = Annotated[int | None, Parameter(ge=0)]

NAVIGATION = (
    ("/", "Overview"),
    ("/blocks", "Blocks"),
    ("/txs", "Transactions"),
    ("/rounds", "Rounds"),
    ("/deltas", "Deltas"),
    ("/datasets", "Datasets"),
    ("/shards", "Model"),
    ("/custody", "Custody"),
    ("/governance", "Votes"),
    ("/validators", "Validators"),
    ("/peers", "Peers"),
)


def install(app: FastAPI, query: Query) -> None:
    """Add the explorer's pages and files to the application."""
    app.state.pages = Pages(query)
    app.include_router(router)


class Pages:
    """Templates and files, loaded once."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.files = load_files()
        self._templates = Environment(
            loader=PackageLoader("node.explorer"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._templates.filters["pretty"] = lambda value: json.dumps(value, indent=2)
        self._templates.globals["file"] = self._address
        self._templates.globals["navigation"] = NAVIGATION

    def _address(self, name: str) -> str:
        return f"/static/{name}?v={self.files[name].tag}"

    def render(
        self, request: Request, name: str, status_code: int = 200, **values: Any
    ) -> HTMLResponse:
        path = request.url.path
        section = "/" + path.split("/")[1]
        sections = {"/tiles": "/shards", "/accounts": "/txs", "/updates": "/rounds"}
        text = self._templates.get_template(f"{name}.html").render(
            status=self.query.status(),
            path=path,
            section=sections.get(section, section),
            json_path=f"/api/v1{path}{'?' + request.url.query if request.url.query else ''}",
            **values,
        )
        return HTMLResponse(text, status_code=status_code)


def pages_of(request: Request) -> Pages:
    found: Pages = request.app.state.pages
    return found


Show = Annotated[Pages, Depends(pages_of)]


def error_page(request: Request, status: int, code: str, text: str) -> Response:
    """A page that says what was wrong and where to go on."""
    pages = pages_of(request)
    return pages.render(request, "error", status, error_status=status, code=code, text=text)


@router.get("/static/{name}")
async def static(show: Show, name: str, v: str = "") -> Response:
    held = show.files.get(name)
    if held is None:
        raise NotFound(f"there is no file {name[:80]!r}")
    keep = "public, max-age=31536000, immutable" if v == held.tag else "no-cache"
    return Response(held.data, media_type=held.media_type, headers={"Cache-Control": keep})


# --- the chain -------------------------------------------------------------------------------


@router.get("/")
async def overview(request: Request, show: Show) -> Response:
    ask = show.query
    current = ask.round("current")
    rounds = ask.rounds(limit=2)["rounds"]
    before = ask.round(str(rounds[1]["number"])) if len(rounds) > 1 else None
    idle = current["phase"] == "open" and not current["joined"] and before is not None
    losses = ask.losses()["losses"]
    return show.render(
        request,
        "overview",
        round=before if idle else current,
        idle=idle,
        current=current,
        losses=losses,
        fall=_last_fall(losses),
        chart=charts.loss_chart(losses),
        blocks=ask.blocks(limit=LATEST)["blocks"],
        txs=ask.txs(limit=LATEST)["txs"],
        model=ask.model(),
        validators=ask.validators(),
        datasets=ask.datasets()["datasets"],
    )


def _last_fall(losses: list[dict[str, Any]]) -> float | None:
    """By how much the newest measured round changed the loss."""
    for row in reversed(losses):
        if row["rolled_back"]:
            return 0.0
        if row["loss_before_nats"] is not None and row["loss_after_nats"] is not None:
            return float(row["loss_after_nats"] - row["loss_before_nats"])
    return None


@router.get("/blocks")
async def blocks(request: Request, show: Show, before: Before = None) -> Response:
    return show.render(request, "blocks", page=show.query.blocks(before, ROWS), before=before)


@router.get("/blocks/{which}")
async def block(request: Request, show: Show, which: str) -> Response:
    return show.render(request, "block", block=show.query.block(which))


@router.get("/txs")
async def txs(request: Request, show: Show, before: Before = None) -> Response:
    ask = show.query
    return show.render(
        request, "txs", page=ask.txs(before, ROWS), before=before, waiting=ask.mempool(ROWS)
    )


@router.get("/txs/{tx_id}")
async def tx(request: Request, show: Show, tx_id: str) -> Response:
    return show.render(request, "tx", tx=show.query.tx(tx_id))


@router.get("/accounts/{account}")
async def account(request: Request, show: Show, account: str, before: Before = None) -> Response:
    found = show.query.account(account, before, ROWS)
    return show.render(request, "account", account=found, before=before)


@router.get("/validators")
async def validators(request: Request, show: Show) -> Response:
    return show.render(request, "validators", page=show.query.validators())


@router.get("/peers")
async def peers(request: Request, show: Show) -> Response:
    return show.render(request, "peers", page=show.query.peers())


@router.get("/search")
async def search(request: Request, show: Show, q: str = "") -> Response:
    hits = show.query.search(q)
    if len(hits) == 1:
        return RedirectResponse(hits[0]["url"], status_code=303)
    return show.render(request, "search", q=q, hits=hits)


# --- the model -------------------------------------------------------------------------------


@router.get("/shards")
async def shards(request: Request, show: Show) -> Response:
    ask = show.query
    return show.render(request, "shards", page=ask.shards(), model=ask.model())


@router.get("/shards/{which}")
async def shard(request: Request, show: Show, which: str) -> Response:
    return show.render(request, "shard", shard=show.query.shard(which))


@router.get("/tiles/{shard}/{tile}")
async def tile(request: Request, show: Show, shard: str, tile: str) -> Response:
    found = show.query.tile(shard, tile)
    return show.render(request, "tile", tile=found, rows=charts.merkle_rows(found))


@router.get("/custody")
async def custody(request: Request, show: Show, before: Before = None) -> Response:
    return show.render(request, "custody", page=show.query.custody(before, ROWS), before=before)


@router.get("/custody/{which}")
async def custody_event(request: Request, show: Show, which: str) -> Response:
    return show.render(request, "custody_event", event=show.query.custody_event(which))


# --- learning --------------------------------------------------------------------------------


@router.get("/rounds")
async def rounds(request: Request, show: Show, before: Before = None) -> Response:
    losses = show.query.losses()["losses"]
    page = show.query.rounds(before, ROWS)
    chart = charts.loss_chart(losses)
    return show.render(request, "rounds", page=page, before=before, losses=losses, chart=chart)


@router.get("/rounds/{which}")
async def round_(request: Request, show: Show, which: str) -> Response:
    ask = show.query
    found = ask.round(which)
    losses = [r for r in ask.losses()["losses"] if r["round"] <= found["number"]]
    return show.render(
        request,
        "round",
        round=found,
        deltas=[ask.delta(d) for d in found["deltas"]],
        losses=losses,
        chart=charts.loss_chart(losses),
        titles={d["id"]: d for d in ask.datasets()["datasets"]},
    )


@router.get("/deltas")
async def deltas(request: Request, show: Show, before: Before = None) -> Response:
    return show.render(request, "deltas", page=show.query.deltas(before, ROWS), before=before)


@router.get("/deltas/{which}")
async def delta(request: Request, show: Show, which: str) -> Response:
    found = show.query.delta(which)
    titles = {d["id"]: d for d in show.query.datasets()["datasets"]}
    return show.render(request, "delta", delta=found, titles=titles)


@router.get("/updates/{which}")
async def update(request: Request, show: Show, which: str) -> Response:
    return show.render(request, "update", update=show.query.update(which))


@router.get("/datasets")
async def datasets(request: Request, show: Show) -> Response:
    return show.render(request, "datasets", page=show.query.datasets())


@router.get("/datasets/{which}")
async def dataset(request: Request, show: Show, which: str) -> Response:
    return show.render(request, "dataset", dataset=show.query.dataset(which))


# --- governance ------------------------------------------------------------------------------


@router.get("/governance")
async def governance(request: Request, show: Show, before: Before = None) -> Response:
    page = show.query.governance(before, ROWS)
    settings = show.query.parameters()["parameters"]
    return show.render(request, "governance", page=page, settings=settings, before=before)


@router.get("/governance/{which}")
async def proposal(request: Request, show: Show, which: str) -> Response:
    return show.render(request, "proposal", proposal=show.query.proposal(which))
