"""`blyan announce`: what an account's node does, holds and where it is, told to everybody."""

from __future__ import annotations

from typing import Any

import click

from chain import limits
from chain.address import format_address, peer_id_of
from chain.errors import InputError
from chain.transactions import Roles
from node.cli.output import confirm, emit
from node.cli.session import Command, Session, pass_session
from node.client import Client, Json
from wallet.keys import Keys
from wallet.signing import sign_announce

ROLES = {role.name.lower(): role for role in Roles}
NOWHERE = "none"


@click.command(cls=Command)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([*ROLES, NOWHERE]),
    help="What the node does; may be repeated. [default: as announced last]",
)
@click.option(
    "--capacity",
    type=click.IntRange(0, 2**32 - 1),
    metavar="TILES",
    help="Tiles that it keeps at most, for which it is elected; 0: its configuration says, and it "
    "is elected for 65536. [default: as announced last]",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Where others reach it, as /dns/HOST/tcp/PORT; may be repeated; none: nowhere. "
    "[default: as announced last]",
)
@click.option("--key", metavar="NAME", help="Key that acts. [default: the home's]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def announce(
    session: Session,
    roles: tuple[str, ...],
    capacity: int | None,
    addresses: tuple[str, ...],
    key: str | None,
    yes: bool,
) -> None:
    """Announce this account's node on the chain: roles, capacity, keys and addresses.

    Whoever has the role validator and enough at stake (`blyan stake bond`) is in the set that
    freezes next, which acts two epochs later. The node's keys are announced as they are in the
    keystore, each signing that it agrees. What an option does not name stays as it was announced.

    \b
    Examples:
      blyan announce --role validator --role host --address /dns/node.example.org/tcp/9645
      blyan announce --capacity 4096
      blyan announce --role none --yes --json
    """
    keys = session.keys(key)
    places = checked(addresses, peer_id_of(keys.node.public))
    wanted = asked(roles)

    async def send(client: Client) -> Json:
        before = (await client.account(format_address(keys.account.public)))["node"]
        if before is None and wanted is None:
            raise InputError("nothing was announced before: say what the node does with --role")
        chosen = before["roles"] if wanted is None else wanted
        who = format_address(keys.account.public)
        confirm(f"Announce {who} as {', '.join(chosen) or 'without a role'}?", yes)
        old: Json = before or {"capacity_tiles": 0, "addresses": []}
        return await file_announce(
            client,
            keys,
            chosen,
            old["capacity_tiles"] if capacity is None else capacity,
            tuple(old["addresses"]) if places is None else places,
        )

    emit(session, session.ask(send), _human)


def asked(roles: tuple[str, ...]) -> list[str] | None:
    """The roles in the order of the protocol; None if none was named."""
    if NOWHERE in roles and set(roles) != {NOWHERE}:
        raise InputError("--role none goes with no other role")
    return [name for name in ROLES if name in roles] if roles else None


def checked(addresses: tuple[str, ...], node_id: str) -> tuple[str, ...] | None:
    """Addresses that others can dial, each with the peer id; None if none was named."""
    from node.net.identity import Address

    if not addresses:
        return None
    if NOWHERE in addresses:
        if set(addresses) != {NOWHERE}:
            raise InputError("--address none goes with no other address")
        return ()
    if len(addresses) > limits.MAX_ADDRESSES:
        raise InputError(f"{len(addresses)} addresses; at most {limits.MAX_ADDRESSES}")
    found = []
    for text in addresses:
        address = Address.parse(text)
        if address.is_wildcard or not address.port:
            raise InputError(
                f"{text}: nobody can dial that; name the host and port that others see"
            )
        if address.peer_id not in (None, node_id):
            raise InputError(f"{text}: its peer id is not that of the node's key, {node_id}")
        found.append(str(address.with_peer(node_id)))
    return tuple(found)


async def file_announce(
    client: Client, keys: Keys, roles: list[str], capacity: int, addresses: tuple[str, ...]
) -> Json:
    """Send it and wait until it is final; what the chain then holds of the node."""
    payload = sign_announce(
        keys,
        chain_id=(await client.genesis()).chain_id,
        roles=sum(ROLES[name] for name in roles),
        capacity_tiles=capacity,
        node_id=peer_id_of(keys.node.public),
        addresses=addresses,
    )
    tx_id, found = await client.submit(payload, keys)
    account = await client.account(format_address(keys.account.public))
    return {"id": tx_id.hex(), "height": found["height"], **account["node"]}


def _human(data: Any) -> str:
    tiles = data["capacity_tiles"]
    return "\n".join(
        [
            f"announced in block {data['height']} (transaction {data['id']})",
            f"roles      {', '.join(data['roles']) or 'none'}",
            f"capacity   {f'{tiles} tiles' if tiles else 'as configured'}",
            f"node       {data['node_id']}",
            *(f"address    {address}" for address in data["addresses"] or ["none"]),
        ]
    )
