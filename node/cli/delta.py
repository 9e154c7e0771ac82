"""`blyan delta`: deltas trained elsewhere, and what became of any."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from chain import records as r
from node.cli.output import emit, listing, short, table
from node.cli.progress import TerminalProgress
from node.cli.session import Group, Session, pass_session
from node.cli.train import EXIT_REJECTED, headline
from node.client import Client
from node.delta_file import parse_root, read_delta, start_of, submit_delta
from node.delta_rebase import rebase_file
from node.learner_files import LearnerFiles
from node.submission import Submission, Summary
from node.verified import VerifiedReader


@click.group(cls=Group)
def delta() -> None:
    """Submit a delta trained elsewhere; see what became of one.

    \b
    Examples:
      blyan delta submit my-delta.safetensors --base 3f1c…
      blyan delta rebase my-delta.safetensors
      blyan delta list
      blyan delta show 9ab0…
    """


@delta.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--base",
    metavar="ROOT",
    help="Model root that FILE starts from; another is refused. [default: blyan.base of its "
    "metadata]",
)
@click.option("--key", metavar="NAME", help="Key that submits. [default: the home's]")
@pass_session
def submit(session: Session, file: Path, base: str | None, key: str | None) -> int:
    """Submit FILE: fp32 tensors `<shard>.<tensor>`, each new weight minus base weight.

    Joins the next round (or one that trains now), commits, reveals and waits for the verdict.
    Its manifest says that the training is not proven. Exit code 4 if it was not accepted. Which
    model FILE starts from must be said, by --base or in its metadata.

    \b
    Examples:
      blyan delta submit my-delta.safetensors --base 3f1c…
      blyan delta submit rebased.safetensors --json
    """
    root = parse_root(base, "--base") if base else None
    keys = session.keys(key)
    progress = TerminalProgress()

    async def run(client: Client) -> Summary:
        reader = await VerifiedReader.connect(client)
        found = read_delta(file, reader.specs)
        start = start_of(file, found, root)
        files = LearnerFiles(session.home, reader.genesis.chain_id, keys.account.public)
        with files.lock():
            submission = Submission(reader, keys, files, progress)
            summary = await submit_delta(submission, files, found, start)
        progress.say(headline(summary))
        return summary

    summary = session.ask(run)
    emit(session, summary.to_json())
    return 0 if summary.accepted else EXIT_REJECTED


@delta.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--base", metavar="ROOT", help="Model root that FILE starts from; another is refused."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write here. [default: FILE itself]")
@pass_session
def rebase(session: Session, file: Path, base: str | None, out: Path | None) -> None:
    """Take FILE over to the newest model: the same change, said to start from that.

    Nothing of the two models is mixed; whether the change still helps, the jury says.

    \b
    Examples:
      blyan delta rebase my-delta.safetensors
      blyan delta rebase my-delta.safetensors --base 3f1c… --out rebased.safetensors
    """
    root = parse_root(base, "--base") if base else None

    async def run(client: Client) -> dict[str, str]:
        reader = await VerifiedReader.connect(client)
        model = await reader.need(r.ModelRecord, r.MODEL, "model")
        target = out or file
        had = await asyncio.to_thread(rebase_file, file, target, reader.specs, root, model.root)
        return {"file": str(target), "from": had.hex(), "onto": model.root.hex()}

    emit(session, session.ask(run))


@delta.command()
@click.argument("delta_id", metavar="ID")
@pass_session
def show(session: Session, delta_id: str) -> None:
    """A delta by the id of its commit.

    \b
    Example:
      blyan delta show 9ab0…
    """
    wanted = parse_root(delta_id, "ID").hex()
    emit(session, session.read(lambda client: client.delta(wanted)), listing)


@delta.command(name="list")
@pass_session
def list_(session: Session) -> None:
    """The newest deltas.

    \b
    Example:
      blyan delta list
    """

    def human(answer: Any) -> str:
        rows = answer["deltas"] if isinstance(answer, dict) else answer
        names = ("id", "round", "sender", "status")
        return table([[short(str(row.get(n, "-")), 16) for n in names] for row in rows], names)

    emit(session, session.read(lambda client: client.deltas()), human)
