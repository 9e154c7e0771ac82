"""`blyan query`: the API's answers, as JSON (--json) or for the eye."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click

from chain.errors import InputError
from chain.types import TxId
from node.cli.output import bly, emit, listing, short, table, when
from node.cli.session import Group, Session, pass_session
from node.client import Client


@click.group(cls=Group)
def query() -> None:
    """What the chain says.

    \b
    Examples:
      blyan query status
      blyan query block 42
      blyan query tile layers.0.experts.1 0
      blyan query round current --json | jq .deltas
    """


def _show(
    session: Session,
    question: Callable[[Client], Awaitable[Any]],
    human: Callable[[Any], str] | None = None,
) -> None:
    emit(session, session.read(question), human)


def _columns(**columns: Callable[[dict[str, Any]], Any]) -> Callable[[Any], str]:
    """A writer of tables; each column is made from a row of the answer.

    A field that a node does not give shows as `-`: the API may be of another version.
    """

    def write(answer: Any) -> str:
        rows = _rows(answer)
        return table(
            [[_or_dash(make, row) for make in columns.values()] for row in rows],
            [name.replace("_", " ") for name in columns],
        )

    return write


def _rows(answer: Any) -> list[dict[str, Any]]:
    """The list of an answer, which may stand in an object beside a count or cursor."""
    if isinstance(answer, dict):
        answer = next((v for v in answer.values() if isinstance(v, list)), [])
    return [row for row in answer if isinstance(row, dict)]


def _or_dash(make: Callable[[dict[str, Any]], Any], row: dict[str, Any]) -> Any:
    try:
        return make(row)
    except KeyError:
        return "-"


@query.command()
@pass_session
def status(session: Session) -> None:
    """The node: height, roots, round, peers."""
    _show(session, lambda client: client.status())


@query.command()
@click.argument("which", default="latest")
@pass_session
def block(session: Session, which: str) -> None:
    """A block by height or hash; without one, the newest."""

    async def ask(client: Client) -> Any:
        wanted = str((await client.status())["height"]) if which == "latest" else which
        return await client.block(wanted)

    _show(session, ask)


@query.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@pass_session
def blocks(session: Session, limit: int) -> None:
    """The newest blocks."""
    columns = _columns(
        height=lambda r: r["height"],
        hash=lambda r: short(r["hash"]),
        time=lambda r: when(r["time_ms"]),
        view=lambda r: r["view"],
        txs=lambda r: r["tx_count"],
    )
    _show(session, lambda client: client.blocks(limit=limit), columns)


@query.command()
@click.argument("tx_id", metavar="ID")
@pass_session
def tx(session: Session, tx_id: str) -> None:
    """A transaction by its id."""
    wanted = _tx_id(tx_id)
    _show(session, lambda client: client.tx(wanted))


def _tx_id(text: str) -> TxId:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise InputError(f"{text!r} is no transaction id; expected 64 hexadecimal digits")
    return TxId(raw)


@query.command()
@click.argument("address")
@pass_session
def account(session: Session, address: str) -> None:
    """An account by address or public key."""

    def human(found: dict[str, Any]) -> str:
        named = dict[str, str]()
        for name in ("balance", "bonded"):
            named[name] = f"{bly(found[name])} BLY"
        quota, price = found["quota"], found["price"]
        named["quota"] = f"{quota['left']} of {quota['limit']} stamped transactions left today"
        tries = " ".join(f"{kind} {count:,}" for kind, count in price["tries"].items())
        named["price"] = f"{price['fee']:,} grains a unit, or tries: {tries}"
        return listing(found | named)

    _show(session, lambda client: client.account(address), human)


@query.command()
@pass_session
def validators(session: Session) -> None:
    """Who votes on blocks, with how much stake; turns missed in a row, and who is jailed."""
    columns = _columns(
        account=lambda r: r["account"],
        stake=lambda r: bly(r["stake"]),
        missed=lambda r: r["missed_turns"],
        jail=lambda r: r["jail"]["reason"] if r["jail"] else "no",
        node=lambda r: short(r["node_id"], 20),
    )
    _show(session, lambda client: client.validators(), columns)


@query.command()
@pass_session
def shards(session: Session) -> None:
    """The model's shards and their versions."""
    columns = _columns(
        index=lambda r: r["index"],
        name=lambda r: r["name"],
        version=lambda r: r["version"],
        bytes=lambda r: r["data_bytes"],
        root=lambda r: short(r["root"]),
    )
    _show(session, lambda client: client.shards(), columns)


@query.command()
@click.argument("shard")
@pass_session
def shard(session: Session, shard: str) -> None:
    """A shard by index or name."""
    _show(session, lambda client: client.shard(shard))


@query.command()
@click.argument("shard")
@click.argument("tile", type=click.IntRange(0), default=0)
@pass_session
def tile(session: Session, shard: str, tile: int) -> None:
    """A tile: root, ranks, Merkle path, versions."""
    _show(session, lambda client: client.tile(shard, tile))


@query.command()
@pass_session
def holdings(session: Session) -> None:
    """What this node keeps of the model, and what is missing."""
    _show(session, lambda client: client.holdings())


@query.command()
@click.argument("shard")
@click.argument("tile", type=click.IntRange(0), default=0)
@pass_session
def election(session: Session, shard: str, tile: int) -> None:
    """Who is primary of a tile, and why.

    With --json also what proves it: `blyan tile verify-election` computes the ranks again.
    """

    _show(session, lambda client: client.election(shard, tile), _election)


def _election(found: dict[str, Any]) -> str:
    """Ranks, each with the first probe that meets it, `-` for those that none of the shown does,
    and with its capacity: `full` for those that have no room left for this tile."""
    why = ("shard", "name", "tile", "epoch", "seed", "scale", "lot")
    head = listing({name: found[name] for name in why if name in found})
    probes: dict[str, int] = {}
    for met in found.get("meetings", ()):
        for account in met["accounts"]:
            probes.setdefault(account, met["probe"])
    room = {w["account"]: w.get("capacity_tiles", "-") for w in found.get("weights", ())}
    room |= {f["account"]: "full" for f in found.get("full", ()) if f["refuses"]}
    ranks = _columns(
        rank=lambda r: r["rank"],
        account=lambda r: r["account"],
        stake=lambda r: bly(r["stake"]),
        probe=lambda r: probes[r["account"]],
        capacity=lambda r: room[r["account"]],
    )
    return f"{head}\n\n{ranks(found['ranks'])}"


@query.command()
@click.argument("event", required=False)
@pass_session
def custody(session: Session, event: str | None) -> None:
    """Custody events, or one by its seed (or `current`).

    Every so many blocks custodians have to show that they keep what was entrusted to them.
    """
    if event is not None:
        wanted = event
        _show(session, lambda client: client.custody_event(wanted))
        return

    def human(found: dict[str, Any]) -> str:
        rows = [found["current"]] if found["current"] else []
        head = f"next anchor: block {found['next_anchor']}\n\n"
        return head + _custody_table({"events": [*rows, *found["events"]]})

    _show(session, lambda client: client.custody(), human)


def _custody_table(found: Any) -> str:
    return _columns(
        event=lambda r: short(r["event"], 16),
        anchor=lambda r: r["anchor"],
        phase=lambda r: r["phase"],
        places=lambda r: r["places"],
        committed=lambda r: f"{r['committed']}/{r['custodians']}",
        missed=lambda r: r["missed"],
        convicted=lambda r: r["convicted"],
        disputed=lambda r: r["disputed"],
    )(found)


@query.command()
@pass_session
def rounds(session: Session) -> None:
    """Learning rounds with their losses."""
    columns = _columns(
        round=lambda r: r["number"],
        phase=lambda r: r["phase"],
        deltas=lambda r: r["delta_count"],
        accepted=lambda r: r["accepted_count"],
        loss_before=lambda r: _nats(r["loss_before"]),
        loss_after=lambda r: _nats(r["loss_after"]),
        guard=lambda r: r["guard"]["verdict"].replace("_", " ") if r["guard"] else "-",
    )
    _show(session, lambda client: client.rounds(), columns)


def _nats(nano: int | None) -> str:
    return f"{nano / 1e9:.4f}" if nano else "-"


@query.command(name="round")
@click.argument("number", default="current")
@pass_session
def round_(session: Session, number: str) -> None:
    """A round by number, or the current one."""
    _show(session, lambda client: client.round(number))


@query.command()
@pass_session
def deltas(session: Session) -> None:
    """Deltas and what became of them."""
    columns = _columns(
        id=lambda r: short(r["id"], 16),
        round=lambda r: r["round"],
        sender=lambda r: short(r["sender"], 16),
        status=lambda r: r["status"],
    )
    _show(session, lambda client: client.deltas(), columns)


@query.command()
@click.argument("delta")
@pass_session
def delta(session: Session, delta: str) -> None:
    """A delta by its id."""
    _show(session, lambda client: client.delta(delta))


@query.command()
@pass_session
def datasets(session: Session) -> None:
    """Datasets and their licences."""
    columns = _columns(
        id=lambda r: short(r["id"], 16),
        title=lambda r: r["title"],
        license=lambda r: r["license"],
        bytes=lambda r: r["size_bytes"],
        status=lambda r: r["status"],
    )
    _show(session, lambda client: client.datasets(), columns)


@query.command()
@click.argument("dataset")
@pass_session
def dataset(session: Session, dataset: str) -> None:
    """A dataset by its id, with the rounds that learned from it."""
    _show(session, lambda client: client.dataset(dataset))


@query.command()
@pass_session
def peers(session: Session) -> None:
    """Whom the node is connected with."""
    _show(session, lambda client: client.peers())


@query.command()
@click.option("--height", type=click.IntRange(0), help="At an earlier block.")
@pass_session
def model(session: Session, height: int | None) -> None:
    """The model's root and shards."""
    _show(session, lambda client: client.model(height))


@query.command()
@click.argument("text")
@pass_session
def search(session: Session, text: str) -> None:
    """Anything: a height, hash, address, shard name, title."""
    columns = _columns(
        kind=lambda r: r["kind"], title=lambda r: r["title"], id=lambda r: short(r["id"], 32)
    )
    _show(session, lambda client: client.search(text), columns)
