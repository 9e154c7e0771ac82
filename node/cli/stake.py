"""`blyan stake`: grains at stake, from the bond to the payout, and the way out of jail."""

from __future__ import annotations

from typing import Any

import click

from chain.address import format_address, parse_address
from chain.transactions import Bond, Unbond, Unjail
from chain.types import Grains, PubKey
from node.cli.output import bly, confirm, emit, when
from node.cli.session import Group, Session, pass_session
from node.cli.wallet import own_account, parse_bly
from node.client import Client, Json
from wallet.keys import Keys

_KEY_OPTION = click.option("--key", metavar="NAME", help="Key that acts. [default: the home's]")
_YES_OPTION = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group(cls=Group)
def stake() -> None:
    """Stake of a validator: bond, unbond, unjail.

    \b
    Examples:
      blyan stake show
      blyan stake bond 1000
      blyan stake unbond 250
      blyan stake unjail
    """


@stake.command()
@click.argument("amount")
@_KEY_OPTION
@_YES_OPTION
@pass_session
def bond(session: Session, amount: str, key: str | None, yes: bool) -> None:
    """Put AMOUNT (in BLY) of the account's balance at stake.

    It counts in the set that freezes next, which acts two epochs later, and can be slashed.

    \b
    Examples:
      blyan stake bond 1000
      blyan stake bond 1000 --key alice --yes --json
    """
    grains, keys = parse_bly(amount), session.keys(key)
    confirm(f"Put {bly(grains)} BLY of {format_address(keys.account.public)} at stake?", yes)

    async def send(client: Client) -> Json:
        return await file_bond(client, keys, grains)

    emit(
        session,
        session.ask(send),
        lambda d: (
            f"bonded {bly(d['amount'])} BLY in block {d['height']} (transaction {d['id']}); "
            f"{bly(d['bonded'])} BLY are at stake, which count from epoch {d['counts_from']}"
        ),
    )


@stake.command()
@click.argument("amount")
@_KEY_OPTION
@_YES_OPTION
@pass_session
def unbond(session: Session, amount: str, key: str | None, yes: bool) -> None:
    """Take AMOUNT (in BLY) out of the account's stake.

    It is paid out when its height and time have come and no evidence can reach it any more;
    until then it can be slashed.

    \b
    Examples:
      blyan stake unbond 250
      blyan stake unbond 250 --yes --json
    """
    grains, keys = parse_bly(amount), session.keys(key)
    confirm(f"Take {bly(grains)} BLY out of the stake?", yes)

    async def send(client: Client) -> Json:
        return await file_unbond(client, keys, grains)

    emit(
        session,
        session.ask(send),
        lambda d: (
            f"unbonded {bly(d['amount'])} BLY in block {d['height']} (transaction {d['id']}); "
            f"paid out at block {d['release']} or later, not before {when(d['release_ms'])}"
        ),
    )


@stake.command()
@_KEY_OPTION
@pass_session
def unjail(session: Session, key: str | None) -> None:
    """Leave jail when its term is over; counts in the set that freezes next.

    Rejected (exit 4) if the account is not jailed or its term is not over; `blyan stake show`
    says until when it is.

    \b
    Examples:
      blyan stake unjail
      blyan stake unjail --key alice --json
    """
    keys = session.keys(key)

    async def send(client: Client) -> Json:
        return await file_unjail(client, keys)

    emit(
        session,
        session.ask(send),
        lambda d: (
            f"out of jail in block {d['height']} (transaction {d['id']}); can be in a set from "
            f"epoch {d['counts_from']}"
        ),
    )


@stake.command()
@click.argument("address", default="")
@pass_session
def show(session: Session, address: str) -> None:
    """What ADDRESS has at stake and on its way out, its sets and its jail; by default one's own.

    \b
    Examples:
      blyan stake show
      blyan stake show bly1… --json
    """
    account = parse_address(address) if address else own_account(session)

    async def read(client: Client) -> Json:
        return await standing(client, account)

    emit(session, session.read(read), _human)


# --- what the commands do -------------------------------------------------------------


async def file_bond(client: Client, keys: Keys, amount: Grains) -> Json:
    """Send it and wait until it is final."""
    tx_id, found = await client.submit(Bond(amount), keys)
    bonded = (await client.account(format_address(keys.account.public)))["bonded"]
    return {
        "id": tx_id.hex(),
        "height": found["height"],
        "amount": amount,
        "bonded": bonded,
        "counts_from": await _counts_from(client, found["height"]),
    }


async def file_unbond(client: Client, keys: Keys, amount: Grains) -> Json:
    tx_id, found = await client.submit(Unbond(amount), keys)
    account = await client.account(format_address(keys.account.public))
    release = found["height"] + (await client.genesis()).params.unbonding_blocks
    times = [u["release_ms"] for u in account["unbonding"] if u["release"] == release]
    return {
        "id": tx_id.hex(),
        "height": found["height"],
        "amount": amount,
        "bonded": account["bonded"],
        "release": release,
        "release_ms": max(times, default=0),
    }


async def file_unjail(client: Client, keys: Keys) -> Json:
    tx_id, found = await client.submit(Unjail(), keys)
    counts_from = await _counts_from(client, found["height"])
    return {"id": tx_id.hex(), "height": found["height"], "counts_from": counts_from}


async def _counts_from(client: Client, height: int) -> int:
    """The epoch whose set is the first to freeze with or after this block: the first block of e
    freezes that of e+2."""
    length = (await client.genesis()).params.epoch_blocks
    return -(-(height - 1) // length) + 2


async def standing(client: Client, account: PubKey) -> Json:
    """The part of an account that is about its stake."""
    found = await client.account(format_address(account))
    names = ("address", "bonded", "unbonding", "sets", "jail", "missed_turns")
    roles = found["node"]["roles"] if found["node"] else []
    return {name: found[name] for name in names} | {"announced": "validator" in roles}


def _human(data: Any) -> str:
    lines = [
        data["address"],
        f"at stake   {bly(data['bonded'])} BLY",
        f"announced  {'as a validator' if data['announced'] else 'not as a validator'}",
        "sets       "
        + (", ".join(f"epoch {s['epoch']} with {bly(s['stake'])}" for s in data["sets"]) or "none"),
        f"missed     {data['missed_turns']} turns in a row",
    ]
    lines += [
        f"leaving    {bly(waiting['amount'])} BLY at block {waiting['release']} or later, not "
        f"before {when(waiting['release_ms'])}"
        for waiting in data["unbonding"]
    ]
    jail = data["jail"]
    if jail is None:
        lines.append("jail       no")
    else:
        until = f"until block {jail['until']} and {when(jail['until_ms'])}"
        done = "; over, see `blyan stake unjail`" if jail["over"] else ""
        lines.append(f"jail       for {jail['reason']}, {until}{done}")
    return "\n".join(lines)
