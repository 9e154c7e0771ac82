"""Genesis: the file that a network starts from, checked field by field (docs/spec/genesis.md).

The chain id is the hash of the canonical JSON (sorted keys, no spaces), so every field binds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from chain.errors import GenesisError
from chain.hashes import GENESIS
from chain.limits import MAX_GRAINS, MAX_REPLICAS, MAX_TIME_MS
from chain.types import ChainId, Grains, PubKey, Stake, TimeMs, Validator, ValidatorSet


@dataclass(frozen=True, slots=True)
class Window:
    """A deadline passes at the first block whose height *and* time have passed both."""

    blocks: int
    ms: int


@dataclass(frozen=True, slots=True)
class Params:
    """What a network may choose. Units are in the names; heights are blocks."""

    epoch_blocks: int
    empty_interval_ms: int
    delta_floor_ms: int
    delta_cap_ms: int
    clock_drift_ms: int
    min_fee_grains: int
    stamp_bits: int
    stamp_new_account_bits: int
    stamp_window_blocks: int
    min_bond_grains: int
    unbonding_blocks: int
    unbonding_ms: int
    evidence_blocks: int
    evidence_ms: int
    evidence_jail: Window
    downtime_views: int
    downtime_jail: Window
    slash_permille: int
    seed_blocks: int
    jury_size: int
    auditors: int
    ranks: int
    join: Window
    train: Window
    reveal: Window
    screen: Window
    aggregate: Window
    settle: Window
    round_reward_grains: int
    dataset_bytes_most: int
    custody_interval_blocks: int
    custody_replicas: int
    custody_commit: Window
    custody_open: Window
    custody_slash_permille: int
    custody_bond_grains: int
    custody_tile_bond_grains: int
    # What a genesis of an earlier program lacks has the values that its network goes on with.
    stamp_retarget_blocks: int = 32
    stamp_target_units: int = 64
    block_cost_us: int = 1_000_000
    trusted_merit: int = 3
    quota_newcomer: int = 20
    quota_trusted: int = 200
    quota_day: Window = Window(512, 600_000)
    hosted_bytes_most: int = 4 * 2**30
    audit_patience: Window = Window(1024, 900_000)
    snapshot_epochs: int = 8
    vote: Window = Window(64, 60_000)
    proposal_deposit_grains: int = 10_000_000_000
    guard_ppm: int = 0  # 0: no guard, as before there was one
    momentum_ppm: int = 0  # 0: a round's result is the next base, and nothing else

    @property
    def snapshot_blocks(self) -> int:
        """Snapshots are of multiples of this height: the last blocks of epochs, each of which has
        a finalization of its own."""
        return self.snapshot_epochs * self.epoch_blocks


# What execution can bear: outside of these a block could not be executed at all.
_BOUNDS = {
    "epoch_blocks": (4, 10**9),
    "stamp_bits": (0, 40),
    "stamp_new_account_bits": (0, 16),
    "stamp_window_blocks": (0, 200),
    "stamp_retarget_blocks": (1, 10**6),
    "stamp_target_units": (1, 10**6),
    "block_cost_us": (500_000, 10**8),  # a quarter of it bears the dearest transaction
    "quota_newcomer": (0, 2**31),
    "quota_trusted": (0, 2**31),
    "min_bond_grains": (1, MAX_GRAINS),
    "unbonding_blocks": (1, 10**12),
    "unbonding_ms": (1, 10**12),
    "evidence_blocks": (1, 10**12),
    "evidence_ms": (1, 10**12),
    "downtime_views": (4, 10**6),
    "slash_permille": (0, 1000),
    "seed_blocks": (1, 32),
    "jury_size": (1, 64),
    "auditors": (0, 64),
    "ranks": (1, 64),
    "custody_interval_blocks": (1, 10**12),
    "custody_replicas": (1, MAX_REPLICAS),
    "custody_slash_permille": (0, 1000),
    "custody_bond_grains": (1, MAX_GRAINS),
    "custody_tile_bond_grains": (1, MAX_GRAINS),
    "snapshot_epochs": (1, 10**6),
    "proposal_deposit_grains": (1, MAX_GRAINS),
    "guard_ppm": (0, 10**6),
    "momentum_ppm": (0, 999_999),
}


# Lying is out for this many times as long as sleeping: nobody lies by an oversight.
_JAIL_RATIO = 8
# Eight answers of three a block, and one block to hear of the dispute; with 1 nobody could dispute.
_LEAST_OPEN_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Allocation:
    account: PubKey
    grains: Grains


@dataclass(frozen=True, slots=True)
class GenesisValidator:
    account: PubKey
    node_key: PubKey
    consensus_key: PubKey
    vrf_key: PubKey
    node_id: str
    stake: Stake


@dataclass(frozen=True, slots=True)
class Genesis:
    """A parsed genesis. `model` and `training` are JSON objects that learning/ interprets."""

    network: str
    time_ms: TimeMs
    params: Params
    accounts: tuple[Allocation, ...]
    validators: tuple[GenesisValidator, ...]
    reward_pool_grains: int
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    chain_id: ChainId
    document: Mapping[str, Any]

    @property
    def validator_set(self) -> ValidatorSet:
        members = [
            Validator(v.account, v.consensus_key, v.vrf_key, v.node_id, v.stake)
            for v in self.validators
        ]
        return ValidatorSet(tuple(sorted(members, key=lambda v: v.consensus_key)))


def chain_id_of(document: Mapping[str, Any]) -> ChainId:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return ChainId(GENESIS.hash(canonical.encode()))


def parse_genesis(text: str) -> Genesis:
    """The genesis in `text`, or GenesisError that names the field."""
    try:
        document = json.loads(text, parse_float=_no_float, parse_constant=_no_float)
    except (ValueError, RecursionError) as error:
        raise GenesisError(f"genesis is not JSON: {error}") from None
    top = _object(
        document,
        "genesis",
        {
            "network",
            "time_ms",
            "params",
            "accounts",
            "validators",
            "reward_pool_grains",
            "model",
            "training",
        },
    )
    params = _params(top["params"])
    validators = tuple(
        _validator(v, f"validators[{i}]")
        for i, v in enumerate(_list(top["validators"], "validators"))
    )
    if len({v.consensus_key for v in validators}) != len(validators):
        raise GenesisError("validators: two share one consensus key; each needs its own")
    if len({v.account for v in validators}) != len(validators):
        raise GenesisError("validators: two share one account; each needs its own")
    accounts = tuple(
        _allocation(a, f"accounts[{i}]") for i, a in enumerate(_list(top["accounts"], "accounts"))
    )
    for name in ("model", "training"):
        if not isinstance(top[name], dict):
            raise GenesisError(f"{name}: expected an object")
    pool = _int(top["reward_pool_grains"], "reward_pool_grains")
    if pool + sum(a.grains for a in accounts) + sum(v.stake for v in validators) > MAX_GRAINS:
        raise GenesisError(f"accounts, stakes and reward pool: more than {MAX_GRAINS} grains")
    return Genesis(
        network=_name(top["network"]),
        time_ms=TimeMs(_int(top["time_ms"], "time_ms", most=MAX_TIME_MS)),
        params=params,
        accounts=accounts,
        validators=validators,
        reward_pool_grains=pool,
        model=top["model"],
        training=top["training"],
        chain_id=chain_id_of(document),
        document=document,
    )


def _no_float(text: str) -> Any:
    raise GenesisError(f"{text}: genesis holds integers only (use a smaller unit)")


def _object(
    value: Any, where: str, keys: set[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GenesisError(f"{where}: expected an object")
    if missing := sorted(keys - value.keys()):
        raise GenesisError(f"{where}: lacks {', '.join(missing)}")
    if unknown := sorted(value.keys() - keys - set(optional)):
        raise GenesisError(f"{where}: unknown field {', '.join(unknown)}; check the spelling")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise GenesisError(f"{where}: expected a list")
    return value


def _int(value: Any, where: str, least: int = 0, most: int = 2**63 - 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise GenesisError(f"{where}: expected an integer from {least} to {most}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.replace("-", "").isalnum() or len(value) > 32:
        raise GenesisError("network: expected letters, digits and dashes, at most 32")
    return value


def _key(value: Any, where: str) -> PubKey:
    try:
        key = bytes.fromhex(value)
    except (TypeError, ValueError):
        key = b""
    if len(key) != 32:
        raise GenesisError(f"{where}: expected a public key of 64 hexadecimal digits")
    return PubKey(key)


def _params(value: Any) -> Params:
    known = {f.name: f.type for f in fields(Params)}
    later = {f.name for f in fields(Params) if f.default is not MISSING}
    top = _object(value, "params", set(known) - later, later)
    out: dict[str, Any] = {}
    for name in top:
        if known[name] == "Window":
            window = _object(top[name], f"params.{name}", {"blocks", "ms"})
            out[name] = Window(
                _int(window["blocks"], f"params.{name}.blocks", 1, 10**6),
                _int(window["ms"], f"params.{name}.ms", 0, 10**10),
            )
        else:
            out[name] = _int(top[name], f"params.{name}")
    params = Params(**out)
    check_params(params)
    return params


def check_params(params: Params) -> None:
    """GenesisError for a set that a network could not run with, also if a vote would lead to it."""
    for name, (least, most) in _BOUNDS.items():
        if not least <= getattr(params, name) <= most:
            raise GenesisError(f"params.{name}: expected {least} to {most}")
    _check_ages(params)
    if params.seed_blocks > params.epoch_blocks:  # custody asks the epoch in which it draws
        raise GenesisError("params.seed_blocks: expected at most epoch_blocks")
    if params.custody_open.blocks < _LEAST_OPEN_BLOCKS:
        raise GenesisError(f"params.custody_open.blocks: expected at least {_LEAST_OPEN_BLOCKS}")


def _check_ages(params: Params) -> None:
    """Whoever leaves stays in reach of evidence: stake counts for up to three epochs after unbond
    (two are frozen ahead), and what it signs in the last of them can be shown for the evidence
    age."""
    if params.evidence_blocks < params.epoch_blocks:
        raise GenesisError("params.evidence_blocks: expected at least epoch_blocks")
    least = params.evidence_blocks + 3 * params.epoch_blocks
    if params.unbonding_blocks <= least:
        raise GenesisError(
            f"params.unbonding_blocks: expected more than {least}, which is evidence_blocks and "
            "three epochs (3 * epoch_blocks)"
        )
    if params.unbonding_ms <= params.evidence_ms:
        raise GenesisError("params.unbonding_ms: expected more than evidence_ms")
    term, long = params.downtime_jail, params.evidence_jail
    if term.blocks < params.epoch_blocks:  # or it would be over before any set freezes without it
        raise GenesisError("params.downtime_jail.blocks: expected at least epoch_blocks")
    if long.blocks < _JAIL_RATIO * term.blocks or long.ms < _JAIL_RATIO * term.ms:
        raise GenesisError(
            f"params.evidence_jail: expected at least {_JAIL_RATIO} times downtime_jail, in blocks "
            "and in ms"
        )


def _validator(value: Any, where: str) -> GenesisValidator:
    top = _object(
        value, where, {"account", "node_key", "consensus_key", "vrf_key", "node_id", "stake"}
    )
    if not isinstance(top["node_id"], str) or not 0 < len(top["node_id"]) <= 128:
        raise GenesisError(f"{where}.node_id: expected a libp2p peer id")
    return GenesisValidator(
        _key(top["account"], f"{where}.account"),
        _key(top["node_key"], f"{where}.node_key"),
        _key(top["consensus_key"], f"{where}.consensus_key"),
        _key(top["vrf_key"], f"{where}.vrf_key"),
        top["node_id"],
        Stake(_int(top["stake"], f"{where}.stake", 1, 2**60)),
    )


def _allocation(value: Any, where: str) -> Allocation:
    top = _object(value, where, {"account", "grains"})
    return Allocation(_key(top["account"], where), Grains(_int(top["grains"], where, 0, 2**60)))
