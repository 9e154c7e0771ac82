"""`blyan custody`: what custodians were asked to show, and disputes over what they committed to."""

from __future__ import annotations

from typing import Any

import click

from chain.address import format_address, parse_address
from chain.errors import InputError
from chain.hashes import Hash32
from chain.transactions import CustodyDispute
from chain.types import Grains, PubKey
from node.cli.output import bly, confirm, emit, short, table
from node.cli.session import Group, Session, pass_session
from node.cli.wallet import parse_bly
from node.client import Client, Json
from node.delta_file import parse_root
from wallet.keys import Keys


@click.group(cls=Group)
def custody() -> None:
    """Who had to show what it keeps; doubt it.

    \b
    Examples:
      blyan custody show
      blyan custody dispute current bly1… 3
    """


@custody.command()
@click.argument("event", default="current")
@pass_session
def show(session: Session, event: str) -> None:
    """An event by its seed, or the current one: places, custodians, disputes.

    \b
    Examples:
      blyan custody show
      blyan custody show 5d2e… --json
    """
    emit(session, session.read(lambda client: client.custody_event(event)), _human)


@custody.command()
@click.argument("event")
@click.argument("custodian")
@click.argument("position", type=click.IntRange(0, 255))
@click.option(
    "--bond", metavar="BLY", help="What is lost if the custodian is right. [default: least]"
)
@click.option("--key", metavar="NAME", help="Key that disputes. [default: the home's]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def dispute(
    session: Session,
    event: str,
    custodian: str,
    position: int,
    bond: str | None,
    key: str | None,
    yes: bool,
) -> None:
    """Doubt what CUSTODIAN committed to at POSITION of EVENT (its seed, or `current`).

    Unless the bytes are shown in time the custodian loses a part of its stake, half of it to you.
    If they are and fit, you lose the bond. You need not have the bytes; you need a bonded account
    or the same place to keep.

    \b
    Examples:
      blyan custody dispute current bly1… 3
      blyan custody dispute 5d2e… bly1… 3 --bond 10 --yes --json
    """
    account, stake = parse_address(custodian), parse_bly(bond) if bond else None
    keys = session.keys(key)

    async def prepare(client: Client) -> CustodyDispute:
        return await disputed(client, event, account, position, stake)

    payload = session.ask(prepare)
    confirm(f"Dispute with a bond of {bly(payload.bond)} BLY?", yes)

    async def send(client: Client) -> Json:
        return await file_dispute(client, keys, payload)

    emit(
        session,
        session.ask(send),
        lambda d: (
            f"disputed in block {d['height']} with {bly(d['bond'])} BLY (transaction {d['id']}); "
            f"see `blyan custody show {short(d['event'], 64)}`"
        ),
    )


async def disputed(
    client: Client, event: str, custodian: PubKey, position: int, bond: Grains | None
) -> CustodyDispute:
    """The dispute as asked for; `current` and a bond of None are looked up. InputError if it could
    only be refused."""
    name = event if event == "current" else parse_root(event, "EVENT").hex()
    found = await client.custody_event(name)
    if found["phase"] != "dispute":
        raise InputError(
            f"the event is in phase {found['phase']}; what was committed to can be disputed in "
            "phase dispute, see `blyan custody show`"
        )
    places = found["place_list"]
    asked = places[position]["custodians"] if position < len(places) else []
    if all(c["account"] != format_address(custodian) for c in asked):
        raise InputError(f"place {position} of the event is not that account's to show")
    least = Grains((await client.custody())["bond"]) if bond is None else bond
    return CustodyDispute(Hash32(bytes.fromhex(found["event"])), custodian, position, least)


async def file_dispute(client: Client, keys: Keys, payload: CustodyDispute) -> Json:
    """Send it and wait until it is final."""
    tx_id, found = await client.submit(payload, keys)
    return {
        "id": tx_id.hex(),
        "height": found["height"],
        "event": payload.event.hex(),
        "custodian": format_address(payload.custodian),
        "position": payload.position,
        "bond": payload.bond,
    }


def _human(event: Any) -> str:
    head = (
        f"event {event['event']}\n{event['phase']}, anchored at block {event['anchor']}; "
        f"{event['committed']} of {event['custodians']} custodians committed\n"
    )
    places = table(
        [
            (p["position"], f"{p['name']}:{p['tile']}", p["subtile"], c["account"], c["status"])
            for p in event["place_list"]
            for c in p["custodians"]
        ],
        ("position", "tile", "subtile", "custodian", "status"),
    )
    disputes = table(
        [
            (d["height"], d["what"], d["position"], d["custodian"], d["disputer"] or d["finder"])
            for d in event["disputes"]
        ],
        ("block", "what", "position", "custodian", "by"),
    )
    return f"{head}\n{places}\n\ndisputes and openings\n{disputes}"
