"""`blyan wallet`: keys in <home>/keystore, balances, transfers."""

from __future__ import annotations

import os
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from chain.address import format_address, parse_address
from chain.errors import InputError
from chain.transactions import Transfer
from chain.types import GRAINS_PER_BLY, Grains, PubKey
from node.cli.output import bly, confirm, emit, progress, table
from node.cli.session import Group, Session, ask_new_passphrase, pass_session
from node.client import Client
from node.home import (
    PASSPHRASE_VARIABLE,
    check_passphrase,
    create_keys,
    generate_passphrase,
    read_passphrase,
)
from wallet.keystore import Keystore

MAX_GRAINS = 2**63 - 1
_KEY_OPTION = click.option("--key", metavar="NAME", help="Key that acts. [default: the home's]")


@click.group(cls=Group)
def wallet() -> None:
    """Keys, balances, transfers.

    \b
    Examples:
      blyan wallet new alice
      blyan wallet balance
      blyan wallet send bly1… 12.5
    """


@wallet.command()
@click.argument("name", default="")
@click.option("--mnemonic", is_flag=True, help="Restore: asks for an existing mnemonic.")
@click.option(
    "--generate-passphrase", is_flag=True, help="Keep a random passphrase beside the keys (0600)."
)
@pass_session
def new(session: Session, name: str, mnemonic: bool, generate_passphrase: bool) -> None:
    """Make a key NAME and show its mnemonic, once.

    \b
    Examples:
      blyan wallet new alice
      BLYAN_PASSPHRASE_FILE=secret.txt blyan wallet new bob --json
    """
    home, name = session.home, name or session.config.account
    secret = _new_passphrase(session, name, generate_passphrase)
    home.create()
    if mnemonic:
        words = click.prompt("Mnemonic", hide_input=True, err=True)
        keys = Keystore(home.keystore).create(name, words, check_passphrase(secret))
        shown: dict[str, Any] = {}
    else:
        keys, words = create_keys(home, name, secret)
        shown = {"mnemonic": words}
    emit(session, {"name": name, "address": format_address(keys.account.public)} | shown)
    if shown:
        progress("Write the mnemonic down: it is shown only now, and whoever has it has the keys.")


def _new_passphrase(session: Session, name: str, generate: bool) -> str:
    if generate:
        return generate_passphrase(session.home)
    if os.environ.get(PASSPHRASE_VARIABLE):
        return read_passphrase(session.home, None, f"the key {name!r}")
    return ask_new_passphrase(f"the key {name!r}")


@wallet.command(name="list")
@pass_session
def list_keys(session: Session) -> None:
    """The keys of this home."""
    rows = [
        {"name": entry.name, "address": format_address(entry.account)}
        for entry in Keystore(session.home.keystore).list()
    ]
    emit(
        session, rows, lambda r: table([(k["name"], k["address"]) for k in r], ("name", "address"))
    )


@wallet.command()
@click.argument("name", default="")
@click.option("--mnemonic", is_flag=True, help="Show the mnemonic, too; asks for the passphrase.")
@click.option("--yes", is_flag=True, help="Do not ask before showing a mnemonic.")
@pass_session
def show(session: Session, name: str, mnemonic: bool, yes: bool) -> None:
    """Public keys of NAME."""
    name = name or session.config.account
    keys = session.keys(name)
    data = {
        "name": name,
        "address": format_address(keys.account.public),
        "account": keys.account.public.hex(),
        "node": keys.node.public.hex(),
        "consensus": keys.consensus.public.hex(),
        "vrf": keys.vrf.public.hex(),
    }
    if mnemonic:
        confirm("Everybody who sees the mnemonic can take the account. Show it?", yes)
        secret = read_passphrase(session.home, None, name)
        data["mnemonic"] = Keystore(session.home.keystore).words(name, secret) or "none"
    emit(session, data)


@wallet.command()
@click.argument("address", default="")
@pass_session
def balance(session: Session, address: str) -> None:
    """What ADDRESS holds; without it, this home's account.

    \b
    Examples:
      blyan wallet balance
      blyan wallet balance bly1… --json
    """
    account = parse_address(address) if address else own_account(session)
    found = session.read(lambda client: client.account(account))
    emit(
        session,
        found,
        lambda a: (
            f"{format_address(account)}\n"
            f"balance  {bly(a['balance'])} BLY\n"
            f"bonded   {bly(a['bonded'])} BLY"
        ),
    )


def own_account(session: Session) -> PubKey:
    """Public, so no passphrase is asked for."""
    name = session.config.account
    for entry in Keystore(session.home.keystore).list():
        if entry.name == name:
            return entry.account
    raise InputError(
        f"no key named {name!r} in {session.home.keystore}; name an address, or make a key with "
        f"`blyan wallet new {name}`"
    )


@wallet.command()
@click.argument("address")
@click.argument("amount")
@_KEY_OPTION
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def send(session: Session, address: str, amount: str, key: str | None, yes: bool) -> None:
    """Send AMOUNT (in BLY) to ADDRESS and wait until it is final.

    \b
    Examples:
      blyan wallet send bly1… 12.5
      blyan wallet send bly1… 0.00000001 --key alice --yes --json
    """
    to, grains = parse_address(address), parse_bly(amount)
    keys = session.keys(key)
    confirm(f"Send {bly(grains)} BLY to {format_address(to)}?", yes)

    async def transfer(client: Client) -> dict[str, Any]:
        tx_id, found = await client.submit(Transfer(to, grains), keys)
        return {"id": tx_id.hex(), "height": found["height"], "amount": grains}

    emit(
        session,
        session.ask(transfer),
        lambda d: f"sent {bly(d['amount'])} BLY in block {d['height']} (transaction {d['id']})",
    )


def parse_bly(text: str) -> Grains:
    """`12.5` as grains, exactly. InputError for anything that is not a positive amount."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount <= 0:
        raise InputError(f"{text!r} is no amount; expected BLY such as 12.5")
    grains = amount * GRAINS_PER_BLY
    if grains != grains.to_integral_value():
        raise InputError(f"{text} BLY: at most 8 decimals")
    if grains > MAX_GRAINS:
        raise InputError(f"{text} BLY is more than there can be")
    return Grains(int(grains))
