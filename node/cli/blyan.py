"""`blyan`: what contributors and readers do."""

from __future__ import annotations

import sys

import click

from node.cli.session import Group, run_program

# Imported when called: training brings torch, and help should come at once.
_COMMANDS = {
    "wallet": ("node.cli.wallet:wallet", "Keys, balances, transfers."),
    "stake": ("node.cli.stake:stake", "Stake of a validator: bond, unbond, unjail."),
    "announce": ("node.cli.announce:announce", "Roles, capacity and addresses of one's node."),
    "query": ("node.cli.query:query", "What the chain says."),
    "train": ("node.cli.train:train", "Take part in learning rounds."),
    "delta": ("node.cli.delta:delta", "Submit a delta trained elsewhere."),
    "dataset": ("node.cli.dataset:dataset", "Submit data to learn from."),
    "custody": ("node.cli.custody:custody", "Who had to show what it keeps; doubt it."),
    "governance": (
        "node.cli.governance:governance",
        "Change parameters and the model's documents by vote.",
    ),
    "model": ("node.cli.model:model", "Models as files, in and out."),
    "generate": ("node.cli.generate:generate", "Text from the network's model."),
    "eval": ("node.cli.generate:evaluate", "How well the model knows a text."),
    "tile": ("node.cli.tile:tile", "Verify tiles against a block header."),
    "verify": ("node.cli.verify:verify", "Check what any node says, from a block you trust."),
    "evidence": ("node.cli.evidence:evidence", "Show the chain who has signed two histories."),
}


@click.group(cls=Group, lazy=_COMMANDS)
def program() -> None:
    """Contribute to a Blyan network, and read its chain.

    \b
    Examples:
      blyan wallet new alice
      blyan dataset submit ~/texts --license CC-BY-4.0
      blyan train --rounds 1
      blyan query round current
      blyan tile verify layers.0.experts.1
      blyan verify account bly1… --trust 812:4f5a…

    \b
    Completion for bash (zsh, fish alike):
      eval "$(_BLYAN_COMPLETE=bash_source blyan)"

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 rejected, 5 timeout,
    65 corrupt data, 77 locked, 130 interrupted.
    """


def main() -> None:
    sys.exit(run_program(program, "blyan"))


if __name__ == "__main__":
    main()
