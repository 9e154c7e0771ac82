"""`blyan verify`: what an untrusted node says, checked from a block that the user trusts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from chain.address import parse_address
from chain.errors import GenesisError, InputError
from chain.light import Attack
from chain.params import Genesis, parse_genesis
from chain.types import TxId
from node.cli.output import bly, emit, listing
from node.cli.session import Group, Session, pass_session
from node.client import Client, Json
from node.config import load_genesis
from node.delta_file import parse_root
from node.light.anchor import GENESIS, anchor_at, duration, parse_trust
from node.light.attack_file import file_name, write_attack
from node.light.facts import Fact, Verifier
from node.light.follow import STALE_MS, Follower, wall_ms
from node.light.source import LightSource

ABSENT = 1  # exit code: the chain proves that it has no such thing
TOTAL_S = 600.0  # for all of a verification
_AMOUNTS = ("balance", "bonded", "fee")


@click.group(cls=Group)
def verify() -> None:
    """Check what any node says, from one block that you trust.

    Nothing is believed but --trust: headers by the signatures of more than two thirds of the
    stake, everything else by hashes up to a header. What was checked is listed step by step, and
    what was not. Exit codes: 0 it is so; 1 the chain proves that there is no such thing; 65 the
    node lies, or two histories exist; 3 the node or every witness is silent.

    \b
    Examples:
      blyan verify account bly1… --trust 812:4f5a… --node http://node.example.org:8645
      blyan verify tx 9c1e… --trust 812:4f5a… --witness http://other.example.org:8645
      blyan verify tile layers.0.experts.1:0 --data
    """


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options of every subcommand."""

    trust: str | None
    genesis: str | None
    witnesses: tuple[str, ...]
    evidence: str | None


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--trust",
            metavar="HEIGHT:HASH",
            help="A block that you believe, as somebody you trust has seen it; or `genesis`. "
            "[default: the genesis of --genesis or the home]",
        ),
        click.option("--genesis", metavar="FILE", help="The network's genesis. [default: home's]"),
        click.option(
            "--witness",
            "witnesses",
            metavar="URL",
            multiple=True,
            help="Another node that must show the same block; may be repeated.",
        ),
        click.option(
            "--evidence",
            metavar="FILE",
            help="Where two histories are written to if a witness shows another. "
            "[default: blyan-attack-HEIGHT.json]",
        ),
    ):
        command = option(command)
    return command


_height = click.option(
    "--height", type=click.IntRange(0, 2**63 - 1), help="After this block. [default: the newest]"
)


@verify.command()
@click.argument("tx", metavar="ID")
@_options
@pass_session
def tx(session: Session, /, tx: str, **options: Any) -> None:
    """A transaction: in which block it is, and whether it was carried out.

    A block commits to its transactions and to the state after them, but to no receipts. So the
    outcome is shown by the sender's nonce before and after the block, as long as the node has
    these states; older ones are `unknown`.

    \b
    Examples:
      blyan verify tx 9c1e… --trust 812:4f5a…
    """
    wanted = TxId(parse_root(tx, "ID"))
    _run(session, _Asked(**options), lambda verifier: verifier.tx(wanted))


@verify.command()
@click.argument("address")
@_height
@_options
@pass_session
def account(session: Session, /, address: str, height: int | None, **options: Any) -> None:
    """An account: balance, stake, nonce, merit; or that the chain has none.

    \b
    Examples:
      blyan verify account bly1… --trust 812:4f5a…
      blyan verify account bly1… --height 830 --json
    """
    key = parse_address(address)
    _run(session, _Asked(**options), lambda verifier: verifier.account(key, height))


@verify.command()
@click.argument("tile", metavar="SHARD:TILE")
@click.option("--data", is_flag=True, help="Fetch the tile's bytes from the node and hash them.")
@_height
@_options
@pass_session
def tile(session: Session, /, tile: str, data: bool, height: int | None, **options: Any) -> None:
    """A tile's root, and with --data its bytes. `blyan tile verify` checks your own disk.

    \b
    Examples:
      blyan verify tile layers.0.experts.1:0 --trust 812:4f5a…
      blyan verify tile 3:0 --data
    """
    _run(session, _Asked(**options), lambda v: v.tile(tile, height, data=data))


@verify.command()
@click.argument("dataset", metavar="ID")
@_height
@_options
@pass_session
def dataset(session: Session, /, dataset: str, height: int | None, **options: Any) -> None:
    """A dataset: who submitted it, what it is, how it was judged.

    \b
    Examples:
      blyan verify dataset 1d0f… --trust 812:4f5a…
    """
    wanted = parse_root(dataset, "ID")
    _run(session, _Asked(**options), lambda verifier: verifier.dataset(wanted, height))


@verify.command()
@click.argument("delta", metavar="ID")
@_height
@_options
@pass_session
def delta(session: Session, /, delta: str, height: int | None, **options: Any) -> None:
    """A delta: its record with the jurors' votes, and the transaction that committed to it.

    \b
    Examples:
      blyan verify delta 77ab… --trust 812:4f5a…
    """
    wanted = TxId(parse_root(delta, "ID"))
    _run(session, _Asked(**options), lambda verifier: verifier.delta(wanted, height))


# --- inside --------------------------------------------------------------------------------


def _run(session: Session, asked: _Asked, ask: Callable[[Verifier], Awaitable[Fact]]) -> None:
    checkpoint = parse_trust(asked.trust or GENESIS)
    genesis = _genesis(session, asked)

    async def work(client: Client) -> Json:
        source = LightSource(client)
        own = genesis
        if checkpoint is not None and asked.genesis is None:
            own = None  # the trusted block names its chain; the home may be of another
        anchor = await anchor_at(source, checkpoint, own)
        follower = Follower(source, anchor, wall_ms)
        fact = await ask(Verifier(follower))
        async with AsyncExitStack() as stack:
            others = [
                LightSource(await stack.enter_async_context(Client(url))) for url in asked.witnesses
            ]
            await follower.ask_witnesses(others)
        return _answer(follower, fact)

    async def bounded(client: Client) -> Json:
        try:
            async with asyncio.timeout(TOTAL_S):
                return await work(client)
        except Attack as attack:
            target = Path(asked.evidence or file_name(attack))
            raise Attack(*attack.blocks, hint=write_attack(attack, target)) from None

    found = session.read(bounded)
    emit(session, found, _human)
    if not found["present"]:
        click.get_current_context().exit(ABSENT)


def _genesis(session: Session, asked: _Asked) -> Genesis | None:
    if asked.genesis is not None:
        path = Path(asked.genesis)
        try:
            return parse_genesis(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        except GenesisError as error:
            raise GenesisError(f"{path}: {error}") from None
    return load_genesis(session.home) if session.home.initialized else None


def _answer(follower: Follower, fact: Fact) -> Json:
    found, header, anchor = follower.found, fact.header, follower.anchor
    unchecked = [*fact.unchecked, *found.unchecked]
    if fact.is_newest:
        age = wall_ms() - header.time_ms
        silent = ", so the node may be behind or keep newer ones from you" if age > STALE_MS else ""
        unchecked.append(
            f"that block {header.height} is the newest: it is {duration(age)} old{silent}"
        )
    return {
        "kind": fact.kind,
        "id": fact.id,
        "present": fact.value is not None,
        "value": fact.value,
        "height": header.height,
        "block_hash": header.hash().hex(),
        "time_ms": header.time_ms,
        "network": anchor.genesis.network,
        "chain_id": anchor.genesis.chain_id.hex(),
        "trust": anchor.name,
        "steps": found.steps,
        "witnesses": found.witnesses,
        "checked": [*found.checked, *fact.checked],
        "unchecked": unchecked,
        "next_trust": follower.checkpoint,
    }


def _human(found: Any) -> str:
    value = found["value"]
    head = f"{found['kind']} {found['id']} at block {found['height']} of {found['network']!r}"
    if value is None:
        lines = [f"{head}: the chain has none"]
    else:
        named = {k: f"{bly(value[k])} BLY" for k in _AMOUNTS if k in value}
        lines = [head, listing(value | named, 1)]
    lines += ["checked", *(f"  {line}" for line in found["checked"])]
    lines += ["not checked", *(f"  {line}" for line in found["unchecked"])]
    return "\n".join([*lines, f"next time: --trust {found['next_trust']}"])
