"""`blyan tile`: `verify` (also as `blyan verify`), tiles against a block header, and `scrub`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from node.cli.output import emit
from node.cli.scrub import scrub
from node.cli.session import Command, Group, Session, pass_session
from node.client import Client, Json
from node.tile_check import check_tiles, parse_target
from node.verified import VerifiedReader


@click.group(cls=Group)
def tile() -> None:
    """Verify tiles against a block header; find and mend damaged ones.

    \b
    Examples:
      blyan tile verify layers.0.experts.1
      blyan tile verify 3:0 --node http://127.0.0.1:8646
      blyan tile scrub
    """


@click.command(cls=Command)
@click.argument("target", metavar="SHARD[:TILE]")
@pass_session
def verify(session: Session, target: str) -> None:
    """Check a shard's tiles, or one of them, up to the header of the newest block.

    The bytes are those in the home's tile store; with --node (or without a home) those that the
    node sends. Exit code 65 if anything does not hold.

    \b
    Examples:
      blyan tile verify layers.0.experts.1
      blyan tile verify 3:0 --node http://127.0.0.1:8646
    """
    directory = _local(session)

    async def run(client: Client) -> Json:
        reader = await VerifiedReader.connect(client)
        spec, tiles = parse_target(target, reader.specs)
        return (await check_tiles(reader, spec, tiles, directory)).to_json()

    emit(session, session.read(run), _human)


tile.add_command(verify)
tile.add_command(scrub)


def _local(session: Session) -> Path | None:
    """The home's tile store, unless another node's bytes were asked for."""
    if session.node_url or os.environ.get("BLYAN_NODE"):
        return None
    directory = session.home.tiles
    return directory if directory.is_dir() else None


def _human(found: Any) -> str:
    lines = [f"shard {found['shard']} {found['name']}: {len(found['tiles'])} tile(s) hold"]
    lines += [f"  checked {line}" for line in found["checked"]]
    return "\n".join(lines)
