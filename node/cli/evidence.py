"""`blyan evidence`: who signed two histories, shown to the chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from chain.codec import decode
from chain.errors import DecodeError, InputError
from chain.transactions import SubmitEvidence
from chain.types import ConflictingCertificates
from node.cli.output import bly, confirm, emit
from node.cli.session import Group, Session, pass_session
from node.client import Client, Json
from node.stamping import spend_of

MAX_FILE_BYTES = 4 * 1024 * 1024  # two light blocks and two certificates of 512, in hex


@click.group(cls=Group)
def evidence() -> None:
    """Show the chain who has signed two histories.

    \b
    Examples:
      blyan evidence submit blyan-attack-812.json
    """


@evidence.command()
@click.argument("file")
@click.option("--key", metavar="NAME", help="Key that pays the fee. [default: the home's]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def submit(session: Session, file: str, key: str | None, yes: bool) -> None:
    """Send the evidence that `blyan verify` wrote to FILE.

    Whoever stands in both certificates loses a part of its stake. Anyone may send it, while the
    evidence age of the epoch lasts; the fee grows with the signatures to check.

    \b
    Examples:
      blyan evidence submit blyan-attack-812.json --yes
    """
    item = read_evidence(Path(file))
    payload = SubmitEvidence(item)
    keys = session.keys(key)

    async def price(client: Client) -> int:
        return (await client.genesis()).params.min_fee_grains * spend_of(payload).units

    fee = session.ask(price)
    confirm(f"Submit it for a fee of {bly(fee)} BLY?", yes)

    async def send(client: Client) -> Json:
        tx_id, found = await client.submit(payload, keys, fee=fee)
        both = sorted(set(item.first.indices()) & set(item.second.indices()))
        return {
            "id": tx_id.hex(),
            "height": found["height"],
            "epoch": item.first.epoch,
            "view": item.first.view,
            "signers": both,
        }

    emit(
        session,
        session.ask(send),
        lambda d: (
            f"{len(d['signers'])} signer(s) of two certificates of epoch {d['epoch']}, view "
            f"{d['view']}, are slashed by block {d['height']} (transaction {d['id']})"
        ),
    )


def read_evidence(path: Path) -> ConflictingCertificates:
    """What a file of `blyan verify` holds for the chain. InputError if it has nothing."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    try:
        found: Any = json.loads(raw) if len(raw) <= MAX_FILE_BYTES else None
        coded = found["evidence"]
        if coded is None:
            raise InputError(
                f"{path}: the two blocks were certified in different views, which no rule "
                "punishes: show the file to people"
            )
        item: ConflictingCertificates = decode(ConflictingCertificates, bytes.fromhex(coded))
    except (ValueError, TypeError, KeyError, RecursionError, DecodeError):
        raise InputError(f"{path} is no file that `blyan verify` wrote about an attack") from None
    return item
