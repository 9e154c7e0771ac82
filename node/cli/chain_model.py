"""The chain's model as commands read it, and what they tell of how it was checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.cli.output import short
from node.cli.session import Session
from node.config import load_genesis

if TYPE_CHECKING:  # brings httpx and numpy
    from node.client import Client
    from node.model_at import FoundModel
    from node.verified import VerifiedReader


async def chain_model(client: Client, height: int | None) -> tuple[VerifiedReader, FoundModel]:
    """The model of a height, by default the newest; none of its tiles is fetched yet."""
    from node.model_at import find_model
    from node.verified import VerifiedReader

    reader = await VerifiedReader.connect(client)
    return reader, await find_model(reader, height)


def told(session: Session, reader: VerifiedReader, found: FoundModel, *, newest: bool) -> Any:
    """What --json says of a model. `newest`: no height was asked for."""
    from node.light.anchor import duration
    from node.light.follow import wall_ms

    checked, unchecked = list(found.checked), list(found.unchecked)
    chain_id, home = reader.genesis.chain_id, session.home
    if home.initialized and load_genesis(home).chain_id == chain_id:
        checked.append(f"the network is that of this home, {chain_id.hex()[:16]}")
    else:
        unchecked.append(f"that {chain_id.hex()[:16]} is the network you mean")
    if newest:
        age = duration(wall_ms() - found.newest.time_ms)
        unchecked.append(f"that block {found.newest.height} is the newest: it is {age} old")
    return {
        "root": found.root.hex(),
        "version": found.version,
        "height": found.height,
        "documents": found.documents,
        "shown_by": found.shown_by,
        "finality": found.finality.value,
        "checked": checked,
        "unchecked": unchecked,
    }


def source(answer: dict[str, Any]) -> str:
    """Which model it was, in a line."""
    return (
        f"model {short(answer['root'])}, version {answer['version']} at height {answer['height']}, "
        f"documents {answer['documents']}"
    )


def grounds(answer: dict[str, Any]) -> str:
    """What was checked and what was not, as `blyan verify` lists it."""
    lines = ["checked", *(f"  {line}" for line in answer["checked"])]
    if answer["unchecked"]:
        lines += ["only the node's word", *(f"  {line}" for line in answer["unchecked"])]
    return "\n".join(lines)
