"""`blyan generate` and `blyan eval`: the network's model at work, every tile of it verified."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from learning.spec import MAX_TEXT
from node.cli.chain_model import chain_model, grounds, source, told
from node.cli.output import emit, progress
from node.cli.session import Command, Session, pass_session

if TYPE_CHECKING:  # brings httpx and numpy
    from node.client import Client, Json
    from node.model_at import FoundModel
    from node.text_file import Text
    from node.verified import VerifiedReader

NANO = 1e-9
MAX_ECHO = 4096  # bytes at the end of a prompt that are shown before what is generated


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
    by byte; what is no UTF-8 shows as �. `-` reads TEXT from stdin. Of a long TEXT the end is
    shown. It and what is generated are 1 MiB at most.

    \b
    Examples:
      blyan generate "import os"
      blyan generate --temperature 0 --bytes 64 "def main("
      blyan generate --height 120 "The " --json
    """
    prompt = _prompt(text, count)
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

        reader, found = await chain_model(client, height)
        shards, worker = await _fetch(reader, found), Worker()
        try:
            if is_shown:
                click.echo(_echo(prompt), nl=False)
            seconds = await worker.generate(
                found.spec,
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
            **told(session, reader, found, newest=height is None),
            "text": said.decode("utf-8", "replace"),
            "hex": said.hex(),
            "seconds": round(seconds, 3),
        }

    answer = session.read(run)
    if is_shown:
        click.echo(decoder.decode(b"", True))
        progress(f"{count} bytes, {count / max(answer['seconds'], 1e-6):.0f}/s, {source(answer)}")
        progress(grounds(answer))
    else:
        emit(session, answer)


@click.command("eval", cls=Command)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--height", type=click.IntRange(0), help="The model as of this height. [default: now]"
)
@pass_session
def evaluate(session: Session, file: Path | None, height: int | None) -> None:
    """The model's loss on FILE, or on the holdout of the round in progress.

    Nats per byte, over at most 512 windows evenly spaced, as validators measure it; 5.55 is what
    guessing gives. FILE may be of any size. On the holdout it stands beside what the chain has, if
    that was measured by the same documents. A layer whose busiest expert has many times the mean is
    not balanced.

    \b
    Examples:
      blyan eval
      blyan eval ~/texts/book.txt
      blyan eval --height 120 --json
    """

    async def run(client: Client, opened: Text | None) -> Json:
        from node.worker.client import Worker

        reader, found = await chain_model(client, height)
        text, chain_loss = opened, None
        if text is None:
            text, chain_loss = await _holdout(reader, found)
        windows = text.windows(found.spec.context)  # before anything large is fetched
        shards, worker = await _fetch(reader, found), Worker()
        try:
            measured = await worker.measure(found.spec, shards, windows)
        finally:
            await worker.close()
        mean, error = _mean(measured.losses)
        return {
            **told(session, reader, found, newest=height is None),
            "of": text.name,
            "bytes": text.size_bytes,
            "windows": len(measured.losses),
            "loss": mean * NANO,
            "standard_error": None if error is None else error * NANO,
            "chain_loss": None if chain_loss is None else chain_loss * NANO,
            "imbalance": [round(layer, 4) for layer in measured.imbalance],
        }

    def human(found: Any) -> str:
        error, count = found["standard_error"], found["windows"]
        lines = [
            f"{found['of']}: {found['loss']:.4f} nats per byte "
            + ("" if error is None else f"± {error:.4f} ")
            + ("(1 window)" if count == 1 else f"({count} windows)"),
            f"of {source(found)}",
            "busiest expert of each layer: "
            + ", ".join(f"{layer:.2f}" for layer in found["imbalance"])
            + " × the mean",
            grounds(found),
        ]
        if found["chain_loss"] is not None:
            lines.insert(1, f"on the chain: {found['chain_loss']:.4f}")
        return "\n".join(lines)

    if file is None:
        answer = session.read(lambda client: run(client, None))
    else:
        from node.text_file import open_text

        with open_text(file) as opened:
            answer = session.read(lambda client: run(client, opened))
    emit(session, answer, human)


def _prompt(text: str, count: int) -> bytes:
    """The bytes to go on from. UsageError if they are none, or with `count` more too many."""
    most = MAX_TEXT - count
    if text == "-":
        where, prompt = "stdin", sys.stdin.buffer.read(most + 1)
    else:
        where, prompt = "TEXT", text.encode("utf-8", "surrogateescape")
    if not prompt:
        raise click.UsageError(f"{where} is empty: give at least one byte to go on from")
    if len(prompt) > most:
        raise click.UsageError(
            f"{where} has more than {most} bytes; with the {count} to be generated the limit is "
            f"{MAX_TEXT}"
        )
    return prompt


def _echo(prompt: bytes) -> str:
    """The prompt as it is shown: of a long one its end."""
    if len(prompt) <= MAX_ECHO:
        return prompt.decode("utf-8", "replace")
    return "…" + prompt[-MAX_ECHO:].decode("utf-8", "replace")


def _mean(losses: Sequence[int]) -> tuple[float, float | None]:
    """Mean of the windows' losses, and its standard error, of which a single one tells nothing."""
    count = len(losses)
    mean = sum(losses) / count
    if count < 2:
        return mean, None
    spread = sum((loss - mean) ** 2 for loss in losses) / (count - 1)
    return mean, (spread / count) ** 0.5


async def _fetch(reader: VerifiedReader, found: FoundModel) -> list[bytes]:
    progress(f"fetching model {found.root.hex()[:16]}, version {found.version}")
    return await reader.shards(found.shards)


async def _holdout(reader: VerifiedReader, found: FoundModel) -> tuple[Text, int | None]:
    """The newest round's holdout that there is, and what validators measured on it; None if they
    computed the model otherwise."""
    from chain import records as r
    from chain.errors import InputError
    from node.data import fetch_round_data
    from node.text_file import Text

    current = await reader.current_round()
    record = current
    if not record.datasets and record.number:
        record = await reader.round(record.number - 1)
    if not record.datasets:
        raise InputError("no round has had data yet: give a FILE")
    data = await fetch_round_data([await reader.dataset(d) for d in record.datasets], reader.blob)
    text = Text.of(f"holdout of round {record.number}", data.holdout)
    measured = await reader.read(r.EvalRecord, r.eval_key(found.root, record.holdout))
    if measured is None or (await reader.round_specs(record.number)).model != found.spec:
        return text, None
    return text, measured.loss or None
