"""`blyan tile`: `verify`, tiles against a block header; `verify-election`, who keeps one; and
`scrub`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import click

from chain.errors import InputError
from node.cli.output import emit
from node.cli.scrub import scrub
from node.cli.session import Command, Group, Session, pass_session
from node.client import Client, Json
from node.config import load_genesis
from node.election_check import check_election
from node.tile_check import check_tiles, parse_target
from node.verified import VerifiedReader

MAX_ANSWER_BYTES = 1 << 20  # 512 members take 0.4 MB


@click.group(cls=Group)
def tile() -> None:
    """Verify tiles against a block header; find and mend damaged ones.

    \b
    Examples:
      blyan tile verify layers.0.experts.1
      blyan tile verify 3:0 --node http://127.0.0.1:8646
      blyan tile verify-election election.json
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


@click.command(cls=Command, name="verify-election")
@click.argument("file", type=click.File("rb"))
@pass_session
def verify_election(session: Session, file: BinaryIO) -> None:
    """Compute a saved answer of `blyan query election` again, without a node.

    Only its state proof is believed, as far as the certificate of its header goes: that is checked
    with the genesis in the home. Exit code 65 if the ranks are not those that follow.

    \b
    Examples:
      blyan query election layers.0.experts.1 0 --json > election.json
      blyan tile verify-election election.json
      blyan query election 3 0 --json | blyan tile verify-election -
    """
    raw = file.read(MAX_ANSWER_BYTES + 1)
    try:
        answer = json.loads(raw) if len(raw) <= MAX_ANSWER_BYTES else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise InputError(
            f"{file.name} is no answer of `blyan query election --json`: expected a JSON object "
            f"of at most {MAX_ANSWER_BYTES >> 20} MiB"
        )
    emit(session, check_election(answer, load_genesis(session.home)), _election)


tile.add_command(verify)
tile.add_command(verify_election)
tile.add_command(scrub)


def _local(session: Session) -> Path | None:
    """The home's tile store, unless another node's bytes were asked for."""
    if session.node_url or os.environ.get("BLYAN_NODE"):
        return None
    directory = session.home.tiles
    return directory if directory.is_dir() else None


def _election(found: Any) -> str:
    lines = [f"tile {found['tile']} of {found['name']}, epoch {found['epoch']}: the ranks hold"]
    lines += [f"  rank {i}: {account}" for i, account in enumerate(found["ranks"])]
    lines += [f"  checked {line}" for line in found["checked"]]
    return "\n".join(lines)


def _human(found: Any) -> str:
    lines = [f"shard {found['shard']} {found['name']}: {len(found['tiles'])} tile(s) hold"]
    lines += [f"  checked {line}" for line in found["checked"]]
    return "\n".join(lines)
