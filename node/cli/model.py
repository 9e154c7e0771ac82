"""`blyan model`: models as files: the chain's, and those imported into a home."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.checkpoint.exports import SavedModel, export_model
from node.checkpoint.imports import import_checkpoint
from node.checkpoint.manifest import Manifest
from node.checkpoint.models import CHAIN, Models
from node.cli.chain_model import chain_model, told
from node.cli.output import confirm, emit, progress, short, size, table, when
from node.cli.progress import ByteProgress
from node.cli.session import Group, Session, pass_session

if TYPE_CHECKING:  # brings httpx and numpy, which files in and out do not need
    from node.client import Client, Json


@click.group(cls=Group)
def model() -> None:
    """The network's model, and models of other origin that a home holds.

    \b
    Examples:
      blyan model show
      blyan model export --height 0 start.safetensors
      blyan model import mixtral.safetensors
      blyan model list
      blyan model export --model mixtral copy.safetensors
    """


@model.command("import")
@click.argument(
    "paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--name", help="What to call it. [default: after the file or its directory]")
@pass_session
def import_(session: Session, paths: tuple[Path, ...], name: str | None) -> None:
    """Take a checkpoint into the home, cut into experts and trunk parts.

    FILE is a .safetensors file, all parts of a sharded checkpoint, its
    model.safetensors.index.json, or a directory that holds these. The home needs no node, and a
    node may run on it. `blyan model export` gives the files back byte for byte.

    \b
    Examples:
      blyan model import mixtral.safetensors
      blyan model import --name qwen ~/qwen3-moe/model.safetensors.index.json
      blyan model import --home ~/models-only deepseek/
    """
    models = Models(session.home)
    with ByteProgress("importing") as bar:
        made = import_checkpoint(models, paths, name, time.time_ns() // 1_000_000, bar)
        seconds = bar.seconds
    speed = made.file_bytes / max(seconds, 1e-6)
    progress(f"read {size(made.file_bytes)} in {seconds:.1f} s, {size(int(speed))}/s")
    emit(session, {**_summary(made), "seconds": round(seconds, 3)}, lambda _: _told(made))


def _summary(made: Manifest) -> dict[str, Any]:
    """A manifest as --json shows it."""
    found = made.to_json()
    del found["format"], found["shards_hash"]
    for file in found["files"]:
        del file["data_start"], file["header_hash"]
    return {**found, "bytes": made.file_bytes}


def _told(made: Manifest) -> str:
    files = "1 file" if len(made.files) == 1 else f"{len(made.files)} files"
    out = f"{made.name}.safetensors" if made.is_one_file else f"{made.name}/"
    return (
        f"imported {made.name}: {files}, {size(made.file_bytes)}, {made.tensors} tensors\n"
        f"{made.shards} shards, {made.experts} of them experts, {made.tiles} tiles\n"
        f"root {made.root or '-'}\n"
        f"back with: blyan model export --model {made.name} {out}"
    )


@model.command("list")
@pass_session
def list_(session: Session) -> None:
    """The imported models of the home.

    \b
    Example:
      blyan model list
    """
    models = Models(session.home)
    models.clean()
    found = models.all()

    def human(_: Any) -> str:
        rows: list[list[Any]] = []
        for entry in found:
            made = entry.manifest
            if made is None:
                rows.append([entry.name, "damaged", *["-"] * 5])
            else:
                counts = [made.tensors, made.shards, made.experts]
                root = short(made.root)
                rows.append(
                    [made.name, size(made.file_bytes), *counts, root, when(made.imported_ms)]
                )
        if not rows:
            return f"no models in {models.home.path}; `blyan model import FILE` takes one"
        return table(rows, ["name", "size", "tensors", "shards", "experts", "root", "imported"])

    rows = [
        _summary(m.manifest) if m.manifest else {"name": m.name, "damage": m.damage} for m in found
    ]
    for entry in found:
        if entry.damage:
            progress(entry.damage)
    emit(session, rows, human)


@model.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def remove(session: Session, name: str, yes: bool) -> None:
    """Remove an imported model from the home.

    \b
    Example:
      blyan model remove mixtral
    """
    models = Models(session.home)
    path = models.path(name)
    confirm(f"Remove the model {name} from {path.parent}? There is no way back.", yes)
    removed = models.remove(name)
    freed = removed.file_bytes if removed else None
    emit(
        session,
        {"name": name, "bytes": freed},
        lambda _: f"removed {name}" + (f", {size(freed)}" if freed else ""),
    )


@model.command()
@click.option("--height", type=click.IntRange(0), help="The chain's model as of this height.")
@click.option(
    "--model",
    "name",
    help="An imported model, or `chain`. [default: the one imported last, else the chain's]",
)
@click.argument("out", type=click.Path(path_type=Path, readable=False))
@pass_session
def export(session: Session, height: int | None, name: str | None, out: Path) -> None:
    """Write a model to OUT, every tile verified.

    An imported model becomes what it was imported from, byte for byte: a file, or a directory if
    it was several. The chain's model becomes a file of tensors named <shard>.<tensor>, with
    blyan.model (the documents' of that height), blyan.root and blyan.height as metadata. With
    --height or --node, and where nothing was imported, it is the chain's.

    \b
    Examples:
      blyan model export model.safetensors
      blyan model export --height 120 before.safetensors
      blyan model export --model mixtral copy.safetensors
    """
    if name not in (None, CHAIN) and height is not None:
        raise click.UsageError("--height is for the chain's model; an imported one has no heights")
    models = Models(session.home)
    if name is None and height is None and session.node_url is None:
        name = models.last()
    if name in (None, CHAIN):
        _export_chain(session, height, out)
    else:
        _export_imported(session, models, name, out)


def _export_imported(session: Session, models: Models, name: str, out: Path) -> None:
    with models.reading(name) as (path, made), ByteProgress("exporting") as bar:
        progress(f"exporting {name}, imported {when(made.imported_ms)}")
        export_model(SavedModel(path, made), out, bar)
        seconds = bar.seconds
    speed = made.file_bytes / max(seconds, 1e-6)
    progress(f"wrote {size(made.file_bytes)} in {seconds:.1f} s, {size(int(speed))}/s")
    answer = {
        "model": name,
        "file": str(out),
        "bytes": made.file_bytes,
        "root": made.root,
        "tiles": made.tiles,
        "files": [{"name": f.name, "bytes": f.bytes, "hash": f.hash} for f in made.files],
        "seconds": round(seconds, 3),
    }
    emit(session, answer, lambda _: f"{out}: the same bytes as imported, BLAKE3 and tiles checked")


def _export_chain(session: Session, height: int | None, out: Path) -> None:
    from node.export import write_model

    async def run(client: Client) -> Json:
        reader, found = await chain_model(client, height)
        with ByteProgress("exporting") as bar:
            written = await write_model(out, reader, found, bar)
        return {
            "model": CHAIN,
            "file": str(out),
            "bytes": written,
            "tiles": sum(len(v.tile_roots) for v in found.shards),
            **told(session, reader, found, newest=height is None),
        }

    progress("exporting the chain's model" + ("" if height is None else f" as of height {height}"))
    answer = session.read(run)
    progress(
        f"verified {answer['tiles']} tiles up to the model root, shown by {answer['shown_by']}"
    )
    emit(session, answer)


@model.command()
@click.option("--height", type=click.IntRange(0), help="As of this height. [default: now]")
@pass_session
def show(session: Session, height: int | None) -> None:
    """The root of the chain's model, and its shards.

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
