"""Which parameters a vote may change, and to what (docs/spec/governance.md, "Parameters").

Those in force are genesis' but for the settings in the state. They change between two epochs only,
so all blocks of an epoch are executed under the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from chain import limits
from chain.errors import GenesisError, TxError
from chain.governance_records import Setting
from chain.params import Params, Window, check_params
from chain.types import GRAINS_PER_BLY

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_BLOCKS, _WINDOW_MS = (1, 10**6), (0, 100 * _DAY_MS)
_GRAINS = (1, limits.MAX_GRAINS)

# What a vote may make of each. Tighter than what a genesis may say where a slip would be hard to
# vote back: the votes themselves need fees or stamps, and views that end.
CHANGEABLE: dict[str, tuple[int, int]] = {
    "empty_interval_ms": (10, 60_000),
    "delta_floor_ms": (10, 10_000),
    "delta_cap_ms": (100, 60_000),
    "min_fee_grains": (0, GRAINS_PER_BLY),
    "stamp_bits": (0, 40),
    "stamp_new_account_bits": (0, 16),
    "stamp_window_blocks": (10, 200),
    "stamp_target_units": (1, 10**6),
    "block_cost_us": (500_000, 10**7),
    "trusted_merit": (0, 10**6),
    "quota_newcomer": (1, 10**6),
    "quota_trusted": (1, 10**6),
    "hosted_bytes_most": (0, 2**50),
    "min_bond_grains": _GRAINS,
    "evidence_jail.blocks": _BLOCKS,
    "evidence_jail.ms": _WINDOW_MS,
    "downtime_views": (4, 10**6),
    "downtime_jail.blocks": _BLOCKS,
    "downtime_jail.ms": _WINDOW_MS,
    "slash_permille": (1, 1000),
    "jury_size": (1, limits.MAX_COMMITTEE),
    "auditors": (0, limits.MAX_COMMITTEE),
    "ranks": (1, 64),
    "round_reward_grains": (0, limits.MAX_GRAINS),
    "dataset_bytes_most": (1, limits.MAX_DATASET_CHUNKS * limits.MAX_CHUNK_BYTES),
    "custody_interval_blocks": (1, 10**6),
    "custody_replicas": (1, limits.MAX_REPLICAS),
    "custody_slash_permille": (0, 1000),
    "custody_bond_grains": _GRAINS,
    "custody_tile_bond_grains": _GRAINS,
    "proposal_deposit_grains": (1, 100_000 * GRAINS_PER_BLY),
    "guard_ppm": (0, 10**6),
} | {
    f"{window}.{part}": bounds
    for window in (
        *("join", "train", "reveal", "screen", "aggregate", "settle"),
        *("custody_commit", "custody_open", "vote"),
    )
    for part, bounds in (("blocks", _BLOCKS), ("ms", _WINDOW_MS))
}

# Why the others stay as they are.
FROZEN = {
    "epoch_blocks": "the epoch of a height follows from it",
    "seed_blocks": "draws that are under way count by it",
    "stamp_retarget_blocks": "which difficulty a stamp of a height needs follows from it",
    "quota_day": "days that have begun end by it",
    "audit_patience": "waits that have begun end by it",
    "momentum_ppm": "what went before is kept from the beginning or not at all",
    "evidence_blocks": "a shorter one would let off whoever can still be convicted, and light "
    "clients know it from genesis",
    "evidence_ms": "as evidence_blocks",
    "clock_drift_ms": "light clients know it from genesis",
    "unbonding_blocks": "it was promised to those who trust stake that leaves",
    "unbonding_ms": "as unbonding_blocks",
}


def names(params: Params) -> list[str]:
    """Every parameter as a proposal names it, a window as its two parts."""
    found = []
    for field in fields(params):
        if isinstance(getattr(params, field.name), Window):
            found += [f"{field.name}.blocks", f"{field.name}.ms"]
        else:
            found.append(field.name)
    return found


def value_of(params: Params, name: str) -> int:
    """The value of a parameter that `names` lists."""
    whole, _, part = name.partition(".")
    found = getattr(params, whole)
    value: int = getattr(found, part) if part else found
    return value


@lru_cache(maxsize=64)
def with_settings(params: Params, settings: tuple[Setting, ...]) -> Params:
    """`params` with what was voted on."""
    for setting in settings:
        whole, _, part = setting.name.partition(".")
        held: Any = getattr(params, whole)
        changed: Any = replace(held, **{part: setting.value}) if part else setting.value
        params = replace(params, **{whole: changed})
    return params


def merged(settings: Iterable[Setting], new: Setting) -> tuple[Setting, ...]:
    """The settings with a new one, in order of their names."""
    values = {s.name: s for s in settings} | {new.name: new}
    return tuple(values[name] for name in sorted(values))


def check_setting(params: Params, new: Setting) -> None:
    """TxError unless a vote may change this parameter of `params` to this value."""
    known = names(params)
    if new.name not in known:
        close = f"; a window has parts: {new.name}.blocks" if hasattr(params, new.name) else ""
        raise TxError("unknown_parameter", f"there is no parameter {new.name}{close}")
    if new.name not in CHANGEABLE:
        why = FROZEN.get(new.name.partition(".")[0], "it may not change while a chain runs")
        raise TxError("frozen_parameter", f"{new.name} is what genesis says: {why}")
    least, most = CHANGEABLE[new.name]
    if not least <= new.value <= most:
        raise TxError("bad_value", f"{new.name} is from {least} to {most}, not {new.value}")
    if value_of(params, new.name) == new.value:
        raise TxError("no_change", f"{new.name} is {new.value} already")
    check_together(with_settings(params, (new,)))


def check_together(params: Params) -> None:
    """TxError unless a network can run with these parameters."""
    try:
        check_params(params)
    except GenesisError as error:
        raise TxError("invalid_params", str(error)) from None
    if params.delta_floor_ms > params.delta_cap_ms:
        raise TxError("invalid_params", "params.delta_floor_ms: expected at most delta_cap_ms")
