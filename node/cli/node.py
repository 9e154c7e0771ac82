"""`blyan-node`: what an operator does. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from chain.errors import DeadlineError, UnreachableError
from node.cli.output import emit, progress
from node.cli.session import (
    Command,
    Group,
    Session,
    ask_new_passphrase,
    ask_passphrase,
    pass_session,
    run_program,
)
from node.config import LOG_LEVELS, SYNC_MODES, load_config, load_genesis
from node.founding import (
    MODELS,
    Founded,
    found_home,
    founding_genesis,
    read_genesis,
    template,
    write_genesis,
)
from node.home import PASSPHRASE_VARIABLE, read_passphrase
from node.version import formats
from node.version import version as package_version

STOP_TIMEOUT_S = 15.0  # a node drains its queues first; normally it is gone within two seconds
_POLL_S = 0.05
_PORT, _ANY_PORT = click.IntRange(1, 65535), click.IntRange(0, 65535)


@click.group(cls=Group)
def program() -> None:
    """Run a Blyan node.

    \b
    Examples:
      blyan-node devnet                     a network of four on this machine
      blyan-node init --genesis genesis.json --bootstrap /ip4/192.0.2.1/tcp/9645/p2p/12D3KooW…
      blyan-node start                      run the node of ~/.blyan/local
      blyan-node status --json | jq .height

    \b
    Completion for bash (zsh, fish alike):
      eval "$(_BLYAN_NODE_COMPLETE=bash_source blyan-node)"

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 rejected, 5 timeout,
    65 corrupt data, 77 locked, 130 interrupted.
    """


@program.command(cls=Command)
@click.option("--genesis", type=click.Path(path_type=Path), help="The network's genesis file.")
@click.option("--model", type=click.Choice(MODELS), help="Of a new network. [default: nano]")
@click.option("--bootstrap", multiple=True, metavar="ADDR", help="A peer's address; repeatable.")
@click.option("--api-port", type=_PORT, help="Port of API and explorer. [default: 8645]")
@click.option("--p2p-port", type=_PORT, help="Port for other nodes. [default: 9645]")
@click.option("--link-port", type=_ANY_PORT, help="Port for tiles; 0: a free one. [default: 10645]")
@click.option("--p2p-host", help="Address to listen on for other nodes. [default: 127.0.0.1]")
@click.option(
    "--generate-passphrase",
    is_flag=True,
    help="Keep a random passphrase beside the keys, for a node that starts unattended.",
)
@pass_session
def init(
    session: Session,
    /,
    genesis: Path | None,
    model: str | None,
    bootstrap: tuple[str, ...],
    generate_passphrase: bool,
    **ports: Any,
) -> None:
    """Make a home directory: keys, configuration and genesis.

    Without --genesis it founds a network of its own, with this node as its only validator.

    \b
    Examples:
      blyan-node init --generate-passphrase
      blyan-node init --genesis genesis.json --bootstrap /ip4/192.0.2.1/tcp/9645/p2p/12D3KooW…
    """
    home = session.home
    if genesis and model:
        raise click.UsageError("--model is for a new network; the one of --genesis has its own")
    text = read_genesis(genesis) if genesis else None
    flags = {**ports, "bootstrap": list(bootstrap) or None}
    config = load_config(home, flags)

    def passphrase() -> str:
        if os.environ.get(PASSPHRASE_VARIABLE):
            return read_passphrase(home, None, "the new key")
        return ask_new_passphrase("the new key")

    founded = found_home(home, config, None if generate_passphrase else passphrase)
    written = write_genesis(home, text or founding_genesis([founded], document=template(model)))
    _show_founded(session, founded, written.chain_id.hex())


def _show_founded(session: Session, founded: Founded, chain_id: str) -> None:
    from chain.address import format_address

    data = {
        "home": str(founded.home.path),
        "account": format_address(founded.keys.account.public),
        "node_id": founded.node_id,
        "address": founded.address,
        "chain_id": chain_id,
        "mnemonic": founded.words,
    }
    emit(session, data)
    progress("\nWrite the mnemonic down: it is shown only now, and whoever has it has the account.")
    progress(f"Start with: blyan-node start --home {founded.home.path}")


@program.command(cls=Command)
@click.option("--api-port", type=_PORT, help="Port of API and explorer.")
@click.option("--p2p-port", type=_PORT, help="Port for other nodes.")
@click.option("--link-port", type=_ANY_PORT, help="Port for tiles and other bulk; 0: a free one.")
@click.option("--bootstrap", multiple=True, metavar="ADDR", help="A peer's address; repeatable.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="[default: info]")
@click.option("--sync", type=click.Choice(SYNC_MODES), help="How to catch up. [default: auto]")
@click.option("--trust", metavar="HEIGHT:HASH", help="A block known to be right.")
@click.option(
    "--trust-log",
    is_flag=True,
    help="This home was copied, and no node has run with its keys since: let it sign at once.",
)
@pass_session
def start(session: Session, /, bootstrap: tuple[str, ...], trust_log: bool, **flags: Any) -> int:
    """Run the node until it is told to stop (Ctrl-C or SIGTERM).

    \b
    Examples:
      blyan-node start
      BLYAN_PASSPHRASE_FILE=/run/secrets/blyan blyan-node start --home DIR
      blyan-node start --sync blocks
    """
    home = session.home
    config = load_config(home, {**flags, "bootstrap": list(bootstrap) or None})
    load_genesis(home)  # a bad one is told before anything heavy is imported
    with home.lock():
        from node import daemon
        from node.services import doubt

        if trust_log and home.wal.is_dir():
            doubt.trust(home.wal)
        return daemon.run(home, config, ask_passphrase if sys.stdin.isatty() else None)


@program.command(cls=Command)
@pass_session
def status(session: Session) -> None:
    """What the node says of itself: height, roots, round, peers.

    \b
    Examples:
      blyan-node status
      blyan-node status --json | jq .state_root
    """
    emit(session, session.ask(lambda client: client.status()))


@program.command(cls=Command)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=STOP_TIMEOUT_S, show_default=True
)
@pass_session
def stop(session: Session, timeout: float) -> None:
    """Stop the node of this home and wait until it is gone.

    \b
    Example:
      blyan-node stop --home DIR
    """
    owner = session.home.owner()
    if owner is None:
        raise UnreachableError(f"no node runs on {session.home.path}")
    with suppress(ProcessLookupError):  # it went by itself
        os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while session.home.owner() == owner:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"process {owner} still runs after {timeout:.0f} s; `kill -9 {owner}` ends it "
                "without harm to the chain"
            )
        time.sleep(_POLL_S)
    emit(session, {"stopped": owner}, lambda data: f"stopped (process {data['stopped']})")


@program.command(cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@pass_session
def backup(session: Session, directory: Path) -> None:
    """Copy this home's keys, configuration and chain to the new DIRECTORY; the node may run.

    The log of what was signed is left out, since an old one is worse than none: a node restored
    from the copy signs nothing until it cannot contradict itself.

    \b
    Examples:
      blyan-node backup /mnt/backups/blyan-monday
      blyan-node start --home /mnt/backups/blyan-monday
    """
    from node.backup import back_up
    from node.cli.progress import CountProgress

    with closing(CountProgress("copying", "pages")) as bar:
        done = back_up(session.home, directory, bar)
    data = {"directory": str(directory), "height": done.height, "bytes": done.size_bytes}
    emit(session, data)


@program.command(cls=Command)
@pass_session
def version(session: Session) -> None:
    """Versions of this program, of the formats it knows, and of what it runs on.

    \b
    Example:
      blyan-node version --json | jq .store
    """
    data = {
        "version": package_version(),
        **formats(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    emit(session, data)


@program.command(cls=Command)
@click.option("--deep", is_flag=True, help="Read everything through; a node may run meanwhile.")
@click.option("--replay", is_flag=True, help="As --deep, and execute all blocks again.")
@click.option("--repair", is_flag=True, help="Mend what can be; the node must be stopped.")
@pass_session
def doctor(session: Session, deep: bool, replay: bool, repair: bool) -> int:
    """Check this home: configuration, genesis, keys, store and ports.

    --repair never deletes: what it replaces is moved into damaged-DATE/ of the home.

    \b
    Examples:
      blyan-node doctor --home DIR
      blyan-node doctor --deep
      blyan-node doctor --repair
    """
    from node import doctor_deep
    from node.cli.progress import CountProgress
    from node.doctor import examine

    findings = []
    with closing(CountProgress("checking", "blocks")) as bar:
        if repair:
            findings += doctor_deep.repair(session.home, progress, bar)
        findings += examine(session.home)
        if deep or replay or repair:
            findings += doctor_deep.examine_deeply(session.home, bar, replay=replay)
    emit(
        session,
        [{"check": f.check, "ok": f.ok, "detail": f.detail} for f in findings],
        lambda rows: "\n".join(_mark(r["ok"]) + f" {r['check']:14} {r['detail']}" for r in rows),
    )
    return 0 if all(f.ok for f in findings) else 1


def _mark(ok: bool) -> str:
    return click.style("ok  ", fg="green") if ok else click.style("FAIL", fg="red", bold=True)


@program.command(cls=Command)
@click.option("--nodes", type=click.IntRange(1, 16), default=4, show_default=True)
@click.option("--learners", type=click.IntRange(0, 16), default=2, show_default=True)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Its directory; resumed if it has one.",
)
@click.option("--rounds", type=click.IntRange(0), default=None, help="Stop learning after so many.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Text to learn from. [default: Python's library]",
)
@click.option("--license", help="SPDX expression of --data.")
@click.option("--model", type=click.Choice(MODELS), help="[default: nano]")
@click.option("--base-port", type=_PORT, help="First API port. [default: 8645, or the next free]")
@click.option("--exit", "leave", is_flag=True, help="End after the rounds, with one JSON summary.")
@pass_session
def devnet(session: Session, /, directory: Path | None, leave: bool, **options: Any) -> int:
    """Run a whole network on this machine: validators, learners, a dataset.

    \b
    Examples:
      blyan-node devnet
      blyan-node devnet --rounds 1 --exit
      blyan-node devnet --data ~/texts --license CC-BY-4.0
    """
    from node.devnet.homes import Plan
    from node.devnet.run import run

    return run(Plan(directory=directory, leave=leave, **options))


def main() -> None:
    sys.exit(run_program(program, "blyan-node"))


if __name__ == "__main__":
    main()
