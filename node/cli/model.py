"""`blyan model`: the network's model as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.output import emit, progress, short, table
from node.cli.session import Group, Session, pass_session
from node.client import Client, Json
from node.export import find_model, write_model
from node.verified import VerifiedReader


@click.group(cls=Group)
def model() -> None:
    """The network's model: what it is made of, and its weights as a file.

    \b
    Examples:
      blyan model show
      blyan model export model.safetensors
      blyan model export --height 0 start.safetensors
    """


@model.command()
@click.option("--height", type=click.IntRange(0), help="As of this height. [default: now]")
@click.argument("out", type=click.Path(path_type=Path))
@pass_session
def export(session: Session, height: int | None, out: Path) -> None:
    """Write the model to the file OUT, every tile verified.

    Tensors are `<shard>.<tensor>`; metadata holds blyan.model, blyan.root and blyan.height.

    \b
    Examples:
      blyan model export model.safetensors
      blyan model export --height 120 before.safetensors
    """

    async def run(client: Client) -> Json:
        reader = await VerifiedReader.connect(client)
        found = await find_model(reader, height)
        shards = await reader.shards(found.shards)
        size = write_model(out, reader, found, shards)
        return {
            "file": str(out),
            "bytes": size,
            "root": found.root.hex(),
            "version": found.version,
            "height": found.height,
            "tiles": sum(len(v.tile_roots) for v in found.shards),
            "shown_by": found.shown_by,
            "finality": found.finality.value,
        }

    answer = session.read(run)
    progress(
        f"verified {answer['tiles']} tiles up to the model root, shown by {answer['shown_by']}"
    )
    emit(session, answer)


@model.command()
@click.option("--height", type=click.IntRange(0), help="As of this height. [default: now]")
@pass_session
def show(session: Session, height: int | None) -> None:
    """The model's root and its shards.

    \b
    Example:
      blyan model show
    """

    def human(found: Any) -> str:
        rows = [
            [s["index"], s["name"], len(s["tile_roots"]), s["data_bytes"], short(s["root"])]
            for s in found["shards"]
        ]
        head = f"model {found['root']}\nversion {found['version']} at height {found['height']}"
        return f"{head}\n\n{table(rows, ['index', 'shard', 'tiles', 'bytes', 'root'])}"

    emit(session, session.read(lambda client: client.model(height)), human)
