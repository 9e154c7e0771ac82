"""`blyan train`: take part in learning rounds."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import click

from learning.memory import MIB
from learning.profile import KINDS, Kind
from node.cli.output import bly, emit, short, table
from node.cli.progress import TerminalProgress
from node.cli.session import Command, Session, pass_session
from node.client import Client
from node.learner import Learner
from node.learner_files import LearnerFiles
from node.submission import Summary
from node.verified import VerifiedReader
from node.worker.client import Worker

EXIT_REJECTED = 4


@click.command(cls=Command)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--key", metavar="NAME", help="Key that trains. [default: the home's]")
@click.option(
    "--profile",
    type=click.Choice(KINDS),
    help="Numeric profile: native; exact, which any machine can replay, at about three times the "
    "work; or bf16, on a GPU where there is one. [default: the configuration's]",
)
@click.option(
    "--experts",
    metavar="LIST",
    help="Hold and train these experts of each layer and what is not an expert, as in 0,3. "
    "[default: the whole model]",
)
@click.option(
    "--memory",
    type=click.IntRange(1, 1 << 24),
    metavar="MIB",
    help="Memory that a step may take beside the state; with less, layers are computed again, "
    "which changes no bit. [default: the configuration's memory_mib]",
)
@pass_session
def train(
    session: Session,
    rounds: int,
    key: str | None,
    profile: str | None,
    experts: str | None,
    memory: int | None,
) -> int:
    """Train rounds on the network's data, and submit what was learnt.

    Data, batches and hyper-parameters follow from the chain. Interrupted? Run it again: it goes
    on with the round in hand. Exit code 4 if no delta was accepted.

    Ctrl-Z stops all of it, and `fg` or `bg` goes on. SIGUSR1 (`kill -USR1 PID`) pauses the training
    alone, at its next step, while the round is still followed; SIGUSR2 goes on. A round that does
    not wait so long is left for the next.

    \b
    Examples:
      blyan train --rounds 3
      blyan train --key alice --node http://127.0.0.1:8646
      blyan train --experts 0,3
      blyan train --memory 256
    """
    chosen = _experts(experts)
    keys = session.keys(key)
    kind = cast(Kind, profile or session.config.profile)
    progress = TerminalProgress()

    async def run(client: Client) -> list[Summary]:
        reader = await VerifiedReader.connect(client)
        files = LearnerFiles(session.home, reader.genesis.chain_id, keys.account.public)
        worker = Worker(most_bytes=(memory or session.config.memory_mib) * MIB)
        try:
            with files.lock(), pausable(worker, progress):
                learner = Learner(reader, keys, files, worker, progress, kind, chosen)
                found = []
                for _ in range(rounds):
                    summary = await learner.train_round()
                    progress.say(headline(summary))
                    found.append(summary)
                return found
        finally:
            await worker.close()

    summaries = session.ask(run)
    emit(session, {"rounds": [s.to_json() for s in summaries]}, rounds_table)
    return 0 if any(s.accepted for s in summaries) else EXIT_REJECTED


@contextmanager
def pausable(worker: Worker, progress: TerminalProgress) -> Iterator[None]:
    """SIGUSR1 pauses the training, SIGUSR2 goes on."""
    loop = asyncio.get_running_loop()

    def pause() -> None:
        said = "training is paused" if worker.pause() else "nothing trains now, and nothing will"
        progress.say(f"{said}; SIGUSR2 (kill -USR2) goes on")

    def go_on() -> None:
        progress.say("training goes on" if worker.go_on() else "training will not be paused")

    handlers = {signal.SIGUSR1: pause, signal.SIGUSR2: go_on}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _experts(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no list of numbers, as in 0,3", param_hint="'--experts'"
        ) from None


def headline(summary: Summary) -> str:
    """One sentence on how a delta fared."""
    said = f"round {summary.round}: delta {summary.delta[:16]} {summary.status}"
    if summary.loss_before is not None and summary.loss_after is not None:
        said += f", holdout loss {summary.loss_before:.4f} → {summary.loss_after:.4f}"
    return said


def rounds_table(found: dict[str, Any]) -> str:
    rows = [
        [
            s["round"],
            short(s["delta"]),
            s["status"],
            _nats(s["gain"]),
            bly(s["reward"]),
            _nats(s["loss_before"]),
            _nats(s["loss_after"]),
            short(s["model_root"]),
        ]
        for s in found["rounds"]
    ]
    headings = ["round", "delta", "status", "gain", "reward", "loss before", "after", "model"]
    return table(rows, headings)


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
