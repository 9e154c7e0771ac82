"""`blyan generate` and `blyan eval`: the network's model at work, every tile of it verified."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.output import emit, progress, short
from node.cli.session import Command, Session, pass_session

if TYPE_CHECKING:  # brings httpx and numpy
    from node.client import Client, Json
    from node.export import FoundModel
    from node.verified import VerifiedReader

NANO = 1e-9
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
MAX_FILE_BYTES = 256 * 1024 * 1024  # of an evaluated text: 512 windows of it are read


@click.command(cls=Command)
@click.argument("text")
@click.option("--bytes", "count", type=click.IntRange(1, 65_536), default=256, show_default=True)
@click.option(
    "--height", type=click.IntRange(0), help="The model as of this height. [default: now]"
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 100),
    default=0.8,
    show_default=True,
    help="0: always the likeliest byte.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1, 256),
    default=40,
    show_default=True,
    help="Choose among so many bytes.",
)
@click.option("--seed", type=click.IntRange(0, 2**63), default=0, help="Another one, another text.")
@pass_session
def generate(
    session: Session,
    text: str,
    count: int,
    height: int | None,
    temperature: float,
    top_k: int,
    seed: int,
) -> None:
    """Let the network's model go on from TEXT.

    The model is fetched and each tile verified up to its root on the chain. The text comes byte
    by byte; what is no UTF-8 shows as �. `-` reads TEXT from stdin.

    \b
    Examples:
      blyan generate "import os"
      blyan generate --temperature 0 --bytes 64 "def main("
      blyan generate --height 120 "The " --json
    """
    prompt = sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")
    said = bytearray()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_shown = not session.json

    def show(byte: int) -> None:
        said.append(byte)
        if is_shown:
            click.echo(decoder.decode(bytes([byte])), nl=False)
            sys.stdout.flush()

    async def run(client: Client) -> Json:
        from node.worker.client import Worker

        reader, found, shards = await _model(client, height)
        spec, worker = (await reader.specs_now()).model, Worker()
        try:
            if is_shown:
                click.echo(prompt.decode("utf-8", "replace"), nl=False)
            seconds = await worker.generate(
                spec,
                shards,
                prompt,
                count,
                show,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
            )
        finally:
            await worker.close()
        return {
            **_told(found),
            "text": said.decode("utf-8", "replace"),
            "hex": said.hex(),
            "seconds": round(seconds, 3),
        }

    answer = session.read(run)
    if is_shown:
        click.echo(decoder.decode(b"", True))
        progress(f"{count} bytes, {count / max(answer['seconds'], 1e-6):.0f}/s, {_source(answer)}")
    else:
        emit(session, answer)


@click.command("eval", cls=Command)
@click.argument(
    "file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False
)
@click.option(
    "--height", type=click.IntRange(0), help="The model as of this height. [default: now]"
)
@pass_session
def evaluate(session: Session, file: Path | None, height: int | None) -> None:
    """The model's loss on FILE, or on the holdout of the round in progress.

    Nats per byte, over at most 512 windows evenly spaced, as validators measure it; 5.55 is what
    guessing gives. On the holdout it stands beside what the chain has. A layer whose busiest expert
    has many times the mean is not balanced.

    \b
    Examples:
      blyan eval
      blyan eval ~/texts/book.txt
      blyan eval --height 120 --json
    """

    async def run(client: Client) -> Json:
        from node.worker.client import Worker

        reader, found, shards = await _model(client, height)
        if file is None:
            what, text, chain_loss = await _holdout(reader, found)
        else:
            what, text, chain_loss = str(file), _read(file), None
        spec, worker = (await reader.specs_now()).model, Worker()
        try:
            measured = await worker.measure(spec, shards, text)
        finally:
            await worker.close()
        losses = measured.losses
        mean = sum(losses) / len(losses)
        spread = sum((loss - mean) ** 2 for loss in losses) / max(len(losses) - 1, 1)
        return {
            **_told(found),
            "of": what,
            "bytes": len(text),
            "windows": len(losses),
            "loss": mean * NANO,
            "standard_error": (spread / len(losses)) ** 0.5 * NANO,
            "chain_loss": None if chain_loss is None else chain_loss * NANO,
            "imbalance": [round(layer, 4) for layer in measured.imbalance],
        }

    def human(found: Any) -> str:
        lines = [
            f"{found['of']}: {found['loss']:.4f} nats per byte "
            f"± {found['standard_error']:.4f} ({found['windows']} windows)",
            f"of {_source(found)}",
            "busiest expert of each layer: "
            + ", ".join(f"{layer:.2f}" for layer in found["imbalance"])
            + " × the mean",
        ]
        if found["chain_loss"] is not None:
            lines.insert(1, f"on the chain: {found['chain_loss']:.4f}")
        return "\n".join(lines)

    emit(session, session.read(run), human)


async def _model(
    client: Client, height: int | None
) -> tuple[VerifiedReader, FoundModel, list[bytes]]:
    from node.export import find_model
    from node.verified import VerifiedReader

    reader = await VerifiedReader.connect(client)
    found = await find_model(reader, height)
    progress(f"fetching model {found.root.hex()[:16]}, version {found.version}")
    return reader, found, await reader.shards(found.shards)


def _told(found: FoundModel) -> dict[str, Any]:
    return {
        "root": found.root.hex(),
        "version": found.version,
        "height": found.height,
        "shown_by": found.shown_by,
        "finality": found.finality.value,
    }


def _source(answer: dict[str, Any]) -> str:
    return f"model {short(answer['root'])}, version {answer['version']}, {answer['shown_by']}"


def _read(file: Path) -> bytes:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise click.UsageError(f"{file} has more than {MAX_FILE_BYTES} bytes")
    return file.read_bytes()


async def _holdout(reader: VerifiedReader, found: FoundModel) -> tuple[str, bytes, int | None]:
    """The newest round's holdout that there is, and what validators measured on it."""
    from chain import records as r
    from chain.errors import InputError
    from node.data import fetch_round_data

    current = await reader.current_round()
    record = current
    if not record.datasets and record.number:
        record = await reader.round(record.number - 1)
    if not record.datasets:
        raise InputError("no round has had data yet: give a FILE")
    data = await fetch_round_data([await reader.dataset(d) for d in record.datasets], reader.blob)
    measured = await reader.read(r.EvalRecord, r.eval_key(found.root, record.holdout))
    chain_loss = measured.loss if measured is not None and measured.loss else None
    return f"holdout of round {record.number}", data.holdout, chain_loss
