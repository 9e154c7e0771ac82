"""`blyan dataset`: data for the network to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from chain.errors import InputError
from chain.transactions import DatasetVote, Verdict
from corpus.dataset import build
from corpus.ingest import MIN_DATASET_BYTES, Ingested, ingest
from corpus.licenses import check_license
from node.cli.output import emit, listing, short, table
from node.cli.progress import TerminalProgress
from node.cli.session import Group, Session, pass_session
from node.client import Client, Json
from node.dataset_submission import export_split, submit_dataset
from node.delta_file import parse_root
from node.verified import VerifiedReader

SKIPPED_SHOWN = 5


@click.group(cls=Group)
def dataset() -> None:
    """Submit data to learn from; see and export what is there.

    \b
    Examples:
      blyan dataset submit ~/texts --license CC-BY-4.0
      blyan dataset list
      blyan dataset export 5d2e… --split holdout holdout.txt
    """


@dataset.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--license", "license_", required=True, metavar="SPDX", help="Such as CC-BY-4.0.")
@click.option("--title", help="[default: the path's last name]")
@click.option(
    "--limit-bytes",
    type=click.IntRange(MIN_DATASET_BYTES),
    help="Take only the beginning, cut at a line's end.",
)
@click.option("--no-wait", is_flag=True, help="Return before it is approved.")
@click.option("--key", metavar="NAME", help="Key that submits. [default: the home's]")
@pass_session
def submit(
    session: Session,
    path: Path,
    license_: str,
    title: str | None,
    limit_bytes: int | None,
    no_wait: bool,
    key: str | None,
) -> None:
    """Submit PATH: text, .jsonl, .parquet, source files, or a directory of these.

    \b
    Examples:
      blyan dataset submit ~/texts --license CC-BY-4.0 --title "My essays"
      blyan dataset submit corpus.jsonl --license MIT --limit-bytes 8000000 --no-wait
    """
    check_license(license_)  # before a large directory is read
    progress = TerminalProgress()
    found = ingest(path, limit_bytes)
    _tell(progress, found)
    built = build(found.documents, license_, title or path.resolve().name)
    keys = session.keys(key)

    async def run(client: Client) -> Json:
        reader = await VerifiedReader.connect(client)
        return await submit_dataset(reader, keys, built, progress, wait=not no_wait)

    emit(session, session.ask(run))


def _tell(progress: TerminalProgress, found: Ingested) -> None:
    progress.say(f"{len(found.documents):,} documents, {found.size_bytes:,} bytes")
    for name, why in found.skipped[:SKIPPED_SHOWN]:
        progress.say(f"skipped {name}: {why}")
    if len(found.skipped) > SKIPPED_SHOWN:
        progress.say(f"skipped {len(found.skipped) - SKIPPED_SHOWN} more")
    if found.converted:
        progress.say(f"converted to UTF-8: {', '.join(found.converted[:SKIPPED_SHOWN])}")
    if found.truncated:
        progress.say("cut at the byte limit")


@dataset.command(name="list")
@pass_session
def list_(session: Session) -> None:
    """Every dataset on the chain.

    \b
    Example:
      blyan dataset list
    """

    def human(answer: Any) -> str:
        rows = answer["datasets"] if isinstance(answer, dict) else answer
        names = ("id", "title", "license", "size_bytes", "documents", "status")
        cells = [[row.get(n, "-") for n in names] for row in rows]
        return table([[short(str(c[0]), 16), *c[1:]] for c in cells], names)

    emit(session, session.read(lambda client: client.datasets()), human)


@dataset.command()
@click.argument("dataset_id", metavar="ID")
@pass_session
def show(session: Session, dataset_id: str) -> None:
    """A dataset, its audits, and what was trained on it.

    \b
    Example:
      blyan dataset show 5d2e…
    """
    wanted = parse_root(dataset_id, "ID").hex()
    emit(session, session.read(lambda client: client.dataset(wanted)), listing)


@dataset.command()
@click.argument("dataset_id", metavar="ID")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "holdout", "all"]),
    default="all",
    show_default=True,
    help="Which part; the split follows from a seed on the chain.",
)
@pass_session
def export(session: Session, dataset_id: str, out: Path, split: str) -> None:
    """Write a dataset's text, verified against its id, to the file OUT.

    \b
    Example:
      blyan dataset export 5d2e… --split holdout holdout.txt
    """
    wanted = parse_root(dataset_id, "ID")

    async def run(client: Client) -> bytes:
        return await export_split(await VerifiedReader.connect(client), wanted, split)

    text = session.read(run)
    try:
        out.write_bytes(text)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    emit(session, {"dataset": wanted.hex(), "split": split, "bytes": len(text), "file": str(out)})


@dataset.command()
@click.argument("dataset_id", metavar="ID")
@click.argument("verdict", type=click.Choice(["yes", "no"]))
@click.option("--key", metavar="NAME", help="Key that votes. [default: the home's]")
@pass_session
def vote(session: Session, dataset_id: str, verdict: str, key: str | None) -> None:
    """Vote on a dataset.

    \b
    Example:
      blyan dataset vote 5d2e… yes
    """
    payload = DatasetVote(
        parse_root(dataset_id, "ID"), Verdict.YES if verdict == "yes" else Verdict.NO
    )
    keys = session.keys(key)

    async def run(client: Client) -> Json:
        tx_id, found = await client.submit(payload, keys)
        return {"tx": tx_id.hex(), "height": found["height"]}

    emit(session, session.ask(run))
