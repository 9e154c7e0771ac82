"""What an end-to-end run does to its network: the manifests in tests/e2e/manifests/, one a file.

    summary = "two validators are killed, one after the other"
    validators = 4                   # 1 to 16; every one a process
    rate = 12                        # transfers a second, put in through the API
    [clock]                          # seconds that a node's clock is ahead from the start
    "3" = 2.5
    [genesis]                        # parameters that differ from the local network's
    epoch_blocks = 16
    [[perturb]]
    do = "kill"                      # and what the class `Perturbation` tells
    nodes = [1]                      # by index; or how many: the seed draws them
    at_s = 1.0                       # after the load has begun; or at_height of the chain; or
                                     # after = 1: when the first perturbation is over
    for_s = 2.0                      # until it is started again, connected, …

Perturbations begin on their own and may overlap; what ends or stops the same process waits for the
one before. Unknown keys and values that make no sense are refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.founding import template

DIRECTORY = Path(__file__).parent / "manifests"
MAX_VALIDATORS, MAX_RATE, MAX_S, MAX_PERTURBATIONS = 16, 200.0, 120.0, 32
MAX_OFFSET_S = 86400.0
KINDS = ("kill", "restart", "pause", "disconnect", "partition", "slow", "clock")
MEANWHILE = ("", "goes_on", "stops")


class ManifestError(ValueError):
    """A manifest that cannot be read: the file, the key, and what was expected."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One thing that is done to some nodes, and undone after `for_s`.

    kill        SIGKILL; started again after `for_s`
    restart     SIGTERM, which must end it with exit code 0; started again after `for_s`
    pause       SIGSTOP, then SIGCONT
    disconnect  each of `nodes` is parted from every other node
    partition   each of `groups` is parted from the others; `nodes` is not given
    slow        every byte from and to `nodes` takes `delay_ms` longer, at most `bytes_per_s`
    clock       the wall clock of `nodes` is stepped to `offset_s` ahead, then back

    `how` (disconnect, partition): `reset`, connections break and none can be made; or `stall`,
    nothing arrives and nobody is told. `meanwhile`: `goes_on`, it lasts until the chain has two
    more blocks at nodes it does not touch; `stops`, nothing becomes final after its first second.
    """

    do: str
    nodes: tuple[int, ...] = ()
    draw: int = 0  # how many nodes the seed chooses, in place of `nodes`
    groups: tuple[tuple[int, ...], ...] = ()
    at_s: float | None = None
    at_height: int | None = None
    after: int | None = None  # of the manifest's perturbations, from 1
    for_s: float = 0.0
    how: str = "reset"
    delay_ms: int = 0
    bytes_per_s: int = 0
    offset_s: float = 0.0
    meanwhile: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    summary: str
    validators: int = 4
    rate: float = 12.0
    clock: Mapping[int, float] = field(default_factory=dict)
    genesis: Mapping[str, Any] = field(default_factory=dict)
    perturb: tuple[Perturbation, ...] = ()


# --- reading ------------------------------------------------------------------------------------

_TOP = ("summary", "validators", "rate", "clock", "genesis", "perturb")
_WHEN = ("at_s", "at_height", "after")
_COMMON = ("do", *_WHEN, "for_s", "meanwhile")
_KEYS = {
    "kill": ("nodes",),
    "restart": ("nodes",),
    "pause": ("nodes",),
    "disconnect": ("nodes", "how"),
    "partition": ("groups", "how"),
    "slow": ("nodes", "delay_ms", "bytes_per_s"),
    "clock": ("nodes", "offset_s"),
}


def names() -> list[str]:
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def load(name: str) -> Manifest:
    try:
        text = (DIRECTORY / f"{name}.toml").read_text()
    except FileNotFoundError:
        raise ManifestError(
            f"there is no manifest {name!r}; there are {', '.join(names())}"
        ) from None
    return parse(name, text)


def parse(name: str, text: str) -> Manifest:
    """Raises ManifestError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{name}: not TOML: {error}") from None
    _no_others(name, document, _TOP)
    count = _number(name, document, "validators", 4, 1, MAX_VALIDATORS, whole=True)
    listed = document.get("perturb", [])
    if not isinstance(listed, list) or len(listed) > MAX_PERTURBATIONS:
        raise ManifestError(f"{name}: perturb: expected at most {MAX_PERTURBATIONS} tables")
    return Manifest(
        name,
        _text(name, document, "summary", None),
        count,
        _number(name, document, "rate", 12.0, 0.1, MAX_RATE),
        _clock(name, document, count),
        _genesis(name, document),
        tuple(_perturbation(name, i, p, count) for i, p in enumerate(listed, 1)),
    )


def _clock(where: str, document: Mapping[str, Any], count: int) -> dict[int, float]:
    table = _table(where, document, "clock")
    allowed = tuple(str(i) for i in range(count))
    _no_others(f"{where}: clock", table, allowed)
    return {
        int(node): _number(f"{where}: clock", table, node, 0.0, -MAX_OFFSET_S, MAX_OFFSET_S)
        for node in table
    }


def _genesis(where: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Values are judged by the genesis itself."""
    table = _table(where, document, "genesis")
    _no_others(f"{where}: genesis", table, tuple(template()["params"]))
    return dict(table)


def _perturbation(name: str, number: int, table: Any, count: int) -> Perturbation:
    where = f"{name}: perturb {number}"
    if not isinstance(table, dict):
        raise ManifestError(f"{where}: expected a table")
    do = _text(where, table, "do", KINDS)
    where = f"{where} ({do})"
    _no_others(where, table, _COMMON + _KEYS[do])
    if sum(key in table for key in _WHEN) != 1:
        raise ManifestError(f"{where}: expected one of {', '.join(_WHEN)}")
    at_height = after = None
    if "at_height" in table:
        at_height = _number(where, table, "at_height", 0, 1, 10**6, whole=True)
    if "after" in table:  # an earlier one, so that none waits for itself
        after = _number(where, table, "after", 0, 1, number - 1, whole=True)
    made = Perturbation(
        do,
        *_nodes(where, table, count),
        groups=_groups(where, table, count),
        at_s=_number(where, table, "at_s", 0, 0, MAX_S) if "at_s" in table else None,
        at_height=at_height,
        after=after,
        for_s=_number(where, table, "for_s", 0.0, 0, MAX_S),
        how=_text(where, table, "how", ("reset", "stall"), "reset"),
        delay_ms=_number(where, table, "delay_ms", 0, 0, 10_000, whole=True),
        bytes_per_s=_number(where, table, "bytes_per_s", 0, 0, 10**9, whole=True),
        offset_s=_number(where, table, "offset_s", 0.0, -MAX_OFFSET_S, MAX_OFFSET_S),
        meanwhile=_text(where, table, "meanwhile", MEANWHILE, ""),
    )
    _check_sense(where, made, count)
    return made


def _check_sense(where: str, made: Perturbation, count: int) -> None:
    if made.do == "slow" and not (made.delay_ms or made.bytes_per_s):
        raise ManifestError(f"{where}: expected delay_ms, bytes_per_s or both")
    if made.do == "clock" and not made.offset_s:
        raise ManifestError(f"{where}: expected offset_s")
    if made.meanwhile == "stops" and made.for_s < 2:
        raise ManifestError(f"{where}: for_s: expected at least 2 where the chain stops meanwhile")
    if made.meanwhile == "goes_on" and count == len(made.nodes) + made.draw:
        raise ManifestError(f"{where}: it goes_on at nobody if all nodes are touched")


def _nodes(where: str, table: Mapping[str, Any], count: int) -> tuple[tuple[int, ...], int]:
    """(the nodes named, how many are drawn)."""
    if table["do"] == "partition":
        return (), 0
    value = table.get("nodes")
    if type(value) is int and 1 <= value <= count:
        return (), value
    return _indices(f"{where}: nodes", value, count), 0


def _groups(where: str, table: Mapping[str, Any], count: int) -> tuple[tuple[int, ...], ...]:
    if table["do"] != "partition":
        return ()
    value = table.get("groups")
    if not isinstance(value, list) or len(value) < 2:
        raise ManifestError(f"{where}: groups: expected two or more lists of nodes")
    groups = tuple(_indices(f"{where}: groups", group, count) for group in value)
    if sorted(node for group in groups for node in group) != list(range(count)):
        raise ManifestError(f"{where}: groups: expected each node from 0 to {count - 1} once")
    return groups


def _indices(where: str, value: Any, count: int) -> tuple[int, ...]:
    good = isinstance(value, list) and value and all(type(v) is int for v in value)
    if not good or len(set(value)) != len(value) or not all(0 <= v < count for v in value):
        raise ManifestError(
            f"{where}: expected different nodes from 0 to {count - 1} in a list, or how many"
        )
    return tuple(value)


def _no_others(where: str, table: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in table:
        if key not in allowed:
            raise ManifestError(f"{where}: unknown key {key!r}; expected {', '.join(allowed)}")


def _table(where: str, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: {key}: expected a table")
    return value


def _number(
    where: str,
    table: Mapping[str, Any],
    key: str,
    default: float,
    least: float,
    most: float,
    *,
    whole: bool = False,
) -> Any:
    value = table.get(key, default)
    is_number = type(value) is int or (type(value) is float and not whole)
    if not is_number or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise ManifestError(
            f"{where}: {key}: expected {kind} from {least:g} to {most:g}, not {value!r}"
        )
    return value


def _text(
    where: str,
    table: Mapping[str, Any],
    key: str,
    allowed: Sequence[str] | None,
    default: str | None = None,
) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or (allowed is not None and value not in allowed):
        expected = "some text" if allowed is None else f"one of {', '.join(filter(None, allowed))}"
        raise ManifestError(f"{where}: {key}: expected {expected}, not {value!r}")
    return value
