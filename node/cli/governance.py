"""`blyan governance`: what is in force, proposals, and votes on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from chain.errors import InputError
from chain.limits import MAX_PROPOSAL_BYTES
from chain.model_versions import canonical
from chain.plain import pack
from chain.transactions import GovernanceVote, Propose, Verdict
from chain.types import Height, TxId
from node.cli.output import bly, confirm, emit, short, table, when
from node.cli.session import Group, Session, pass_session
from node.client import Client, Json
from node.delta_file import parse_root
from wallet.keys import Keys

_KEY_OPTION = click.option("--key", metavar="NAME", help="Key that acts. [default: the home's]")
_YES_OPTION = click.option("--yes", is_flag=True, help="Do not ask.")
_ACTIVATE_OPTION = click.option(
    "--activate",
    metavar="HEIGHT",
    default="",
    help="First block under it: the first of an epoch; +N: the next such one N blocks from now. "
    "[default: the soonest]",
)


@click.group(cls=Group)
def governance() -> None:
    """Change parameters and the model's documents by vote.

    \b
    Examples:
      blyan governance list
      blyan governance propose min_fee_grains 2000 --activate +600
      blyan governance propose-model changes.json --version 1.0.1
      blyan governance vote 5d2e… yes
    """


@governance.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=25, help="Ended ones. [default: 25]")
@pass_session
def list_(session: Session, limit: int) -> None:
    """Proposals that are voted on or wait, and those that ended, newest first.

    \b
    Examples:
      blyan governance list
      blyan governance list --limit 100 --json
    """
    emit(session, session.read(lambda client: client.governance(limit)), _list_text)


@governance.command()
@pass_session
def params(session: Session) -> None:
    """Every parameter: in force, in genesis, and what a vote may make of it.

    \b
    Examples:
      blyan governance params
      blyan governance params --json
    """
    emit(session, session.read(lambda client: client.parameters()), _params_text)


@governance.command()
@click.argument("proposal")
@pass_session
def show(session: Session, proposal: str) -> None:
    """PROPOSAL by its id: what it changes, who voted how, and what became of it.

    \b
    Examples:
      blyan governance show 5d2e…
      blyan governance show 5d2e… --json
    """
    emit(session, session.read(lambda client: client.proposal(proposal)), _proposal_text)


@governance.command()
@click.argument("parameter")
@click.argument("value", type=click.IntRange(0, 2**64 - 1))
@_ACTIVATE_OPTION
@_KEY_OPTION
@_YES_OPTION
@pass_session
def propose(
    session: Session, parameter: str, value: int, activate: str, key: str | None, yes: bool
) -> None:
    """Propose VALUE for PARAMETER; of a window for `name.blocks` or `name.ms`.

    It locks a deposit, which comes back when the vote is over, unless no more than a third of the
    stake has voted. `blyan governance params` tells what may be changed, and how far.

    \b
    Examples:
      blyan governance propose min_fee_grains 2000 --activate +600
      blyan governance propose train.ms 120000 --yes --json
    """
    keys = session.keys(key)
    height = session.ask(lambda client: height_of(client, activate))
    confirm(f"Propose {parameter} = {value} from block {height} on?", yes)
    payload = Propose(parameter, pack(value), height)
    emit(session, session.ask(lambda client: file_proposal(client, keys, payload)), _sent_text)


@governance.command("propose-model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--version", required=True, metavar="X.Y.Z", help="Number of the new version.")
@_ACTIVATE_OPTION
@_KEY_OPTION
@_YES_OPTION
@pass_session
def propose_model(
    session: Session, file: Path, version: str, activate: str, key: str | None, yes: bool
) -> None:
    """Propose a version of the model's documents: FILE has what changes.

    It is a JSON object with `training`, `model` or both, each with the fields that get another
    value. Training fields make a patch (1.0.1), `context` and `top_k` of the model a minor version
    (1.1.0); anything else is refused.

    \b
    Examples:
      blyan governance propose-model changes.json --version 1.0.1
      blyan governance propose-model changes.json --version 1.1.0 --activate +2000 --yes
    """
    keys, changes = session.keys(key), _read_changes(file)
    document = session.ask(lambda client: document_of(client, changes, version))
    height = session.ask(lambda client: height_of(client, activate))
    confirm(f"Propose version {version} of the model's documents from block {height} on?", yes)
    payload = Propose("model", document, height)
    emit(session, session.ask(lambda client: file_proposal(client, keys, payload)), _sent_text)


@governance.command()
@click.argument("proposal")
@click.argument("verdict", type=click.Choice(["yes", "no"]))
@_KEY_OPTION
@pass_session
def vote(session: Session, proposal: str, verdict: str, key: str | None) -> None:
    """Vote on PROPOSAL; the last word of a validator counts.

    Those of the epoch in which it was proposed vote, with their accounts' keys.

    \b
    Examples:
      blyan governance vote 5d2e… yes
      blyan governance vote 5d2e… no --key alice --json
    """
    keys, which = session.keys(key), TxId(parse_root(proposal, "PROPOSAL"))
    ballot = GovernanceVote(which, Verdict.YES if verdict == "yes" else Verdict.NO)

    async def send(client: Client) -> Json:
        tx_id, found = await client.submit(ballot, keys)
        held = await client.proposal(which.hex())
        names = ("parameter", "status", "yes", "no", "total")
        sent = {"id": tx_id.hex(), "height": found["height"], "proposal": which.hex()}
        return sent | {"verdict": verdict} | {name: held[name] for name in names}

    emit(
        session,
        session.ask(send),
        lambda d: (
            f"voted {d['verdict']} on {d['parameter']} in block {d['height']} (transaction "
            f"{d['id']}); {_share(d['yes'], d['total'])} are for it, "
            f"{_share(d['no'], d['total'])} against"
        ),
    )


# --- what the commands do -------------------------------------------------------------


async def height_of(client: Client, text: str) -> Height:
    """The height that --activate means."""
    found = await client.governance(1)
    if not text:
        return Height(found["soonest"])
    try:
        number = int(text.removeprefix("+"))
    except ValueError:
        raise InputError(f"--activate {text!r}: expected a height, or + and blocks") from None
    if not text.startswith("+"):
        return Height(number)
    length = found["epoch_blocks"]
    first = -(-(found["height"] + number - 1) // length) * length + 1
    return Height(max(first, found["soonest"]))


async def document_of(client: Client, changes: dict[str, Any], version: str) -> bytes:
    """The documents in force with the changes, as a proposal carries them."""
    held = await client.model_documents()
    parts = {name: held[name] | changes.get(name, {}) for name in ("model", "training")}
    document = canonical(parts | {"version": version})
    if len(document) > MAX_PROPOSAL_BYTES:
        raise InputError(f"the documents are {len(document)} bytes, more than {MAX_PROPOSAL_BYTES}")
    return document


async def file_proposal(client: Client, keys: Keys, payload: Propose) -> Json:
    """Send it and wait until it is final."""
    tx_id, found = await client.submit(payload, keys)
    held = await client.proposal(tx_id.hex())
    names = (
        *("parameter", "value", "version", "activate", "deposit"),
        *("deadline_height", "deadline_ms"),
    )
    return {"id": tx_id.hex(), "height": found["height"]} | {name: held[name] for name in names}


def _read_changes(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: no JSON ({error})") from None
    parts: dict[str, Any] = found if isinstance(found, dict) else {}
    if not parts or not parts.keys() <= {"model", "training"}:
        raise InputError(f"{file}: expected an object of `model`, `training` or both")
    for name, values in parts.items():
        if not isinstance(values, dict):
            raise InputError(f"{file}: {name}: expected an object of fields and their values")
    return parts


# --- how they look --------------------------------------------------------------------


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %"


def _goal(row: Json) -> str:
    return f"version {row['version']}" if row["version"] else str(row["value"])


def _list_text(data: Any) -> str:
    rows = [
        (
            short(p["id"]),
            p["parameter"],
            _goal(p),
            p["status"],
            _share(p["yes"], p["total"]),
            _share(p["no"], p["total"]),
            p["activate"],
        )
        for p in (*data["proposals"], *data["ended"])
    ]
    return table(rows, ("proposal", "changes", "to", "state", "for", "against", "from block"))


def _params_text(data: Any) -> str:
    rows = [
        (
            p["name"],
            p["value"],
            "" if p["value"] == p["genesis"] else f"genesis: {p['genesis']}",
            "fixed" if p["least"] is None else f"{p['least']} to {p['most']}",
        )
        for p in data["parameters"]
    ]
    return table(rows, ("parameter", "in force", "changed", "a vote may say"))


def _proposal_text(data: Any) -> str:
    deposit = f", with a deposit of {bly(data['deposit'])} BLY" if data["deposit"] else ""
    lines = [
        f"proposal {data['id']}",
        f"by         {data['proposer']}{deposit}",
        f"state      {data['status']}" + (f": {data['reason']}" if data["reason"] else ""),
        f"vote ends  at block {data['deadline_height']} and {when(data['deadline_ms'])}",
        f"in force   from block {data['activate']}, if it passes",
        f"for        {_share(data['yes'], data['total'])}, against "
        f"{_share(data['no'], data['total'])}",
        "",
        table(
            [(c["name"], str(c["now"]), str(c["proposed"])) for c in data["changes"]],
            ("changes", "now", "proposed"),
        ),
        "",
        table(
            [
                (b["account"], b["verdict"] or "-", "-" if b["stake"] is None else bly(b["stake"]))
                for b in data["ballots"]
            ],
            ("voter", "vote", "stake"),
        ),
    ]
    return "\n".join(lines)


def _sent_text(data: Any) -> str:
    return (
        f"proposed {data['parameter']} = {_goal(data)} in block {data['height']}\n"
        f"proposal {data['id']}\n"
        f"validators vote until block {data['deadline_height']} and {when(data['deadline_ms'])}; "
        f"in force from block {data['activate']} if more than two thirds of the stake agree"
    )
