"""`blyan-node doctor`: each thing a node needs, checked alone, with what to do where it fails."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from chain.address import format_address
from chain.errors import BlyanError, ConfigError, QuotaError, StorageError
from node.config import load_config, load_genesis
from node.findings import Finding
from node.home import Home
from node.net.identity import Address, check_port_free
from node.scrub import read_report
from node.services.tile_cache import RESERVE_BYTES
from wallet.keystore import Keystore


def examine(home: Home) -> list[Finding]:
    """All findings. Changes nothing, and needs no passphrase."""
    running = home.owner()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("home", lambda: _home(home)),
        ("configuration", lambda: _config(home)),
        ("genesis", lambda: _genesis(home)),
        ("keys", lambda: _keys(home)),
        ("tiles", lambda: _tiles(home)),
        ("room", lambda: _room(home)),
    ]
    if running is None:
        checks += [("store", lambda: _store(home)), ("ports", lambda: _ports(home))]
    findings = [_try(name, check) for name, check in checks]
    state = f"running as process {running}" if running else "not running"
    return [*findings, Finding("process", True, state)]


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except BlyanError as error:
        return Finding(name, False, str(error))


def _home(home: Home) -> str:
    if not home.path.is_dir():
        raise ConfigError(f"{home.path} is missing: `blyan-node init --home {home.path}` makes it")
    mode = home.path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"others may read {home.path} (mode {mode:o}): chmod 700 {home.path}")
    return f"{home.path}, version {home.check_version()}"


def _config(home: Home) -> str:
    config = load_config(home)
    p2p = f"p2p {config.p2p_host}:{config.p2p_port}, links {config.link_port or 'any port'}"
    return f"API {config.api_url}, {p2p}"


def _genesis(home: Home) -> str:
    genesis = load_genesis(home)
    return f"network {genesis.network!r}, chain {genesis.chain_id.hex()[:16]}…"


def _keys(home: Home) -> str:
    name = load_config(home).account
    for entry in Keystore(home.keystore).list():
        if entry.name == name:
            return f"{name}: {format_address(entry.account)}"
    raise ConfigError(f"no key named {name!r} in {home.keystore}")


def _store(home: Home) -> str:
    if not home.chain_db.exists():
        return "no blocks yet; the first start makes it"
    from chain.store import ChainStore
    from chain.store_schema import SCHEMA_VERSION, read_version

    if (version := read_version(home.chain_db)) < SCHEMA_VERSION:
        return f"of version {version}; the next start brings it to {SCHEMA_VERSION}"
    with ChainStore(home.chain_db) as store:  # verifies the tip and the state's root page
        tip = store.tip()
    return f"height {tip.height}, block {tip.hash.hex()[:16]}…" if tip else "empty"


def _tiles(home: Home) -> str:
    """What the files say of themselves, and what the last scrub found; nothing is read through."""
    if not home.tiles.is_dir():
        return "none yet; the first start makes them"
    from learning.spec import ModelSpec
    from tiles.store import TileReader

    specs = ModelSpec.from_json(dict(load_genesis(home).model)).shards()
    reader = TileReader(home.tiles, specs)
    whole = sum(len(reader.versions(spec.index)) for spec in specs)
    parts = sum(len(reader.partial_versions(spec.index)) for spec in specs)
    last = read_report(home.scrub_file)
    if last is not None and (last["left"] or last["error"]):
        raise StorageError(
            f"the scrub of {_date(last)} left {last['left']} damaged tiles {last['error']}: "
            "`blyan tile scrub` tries again"
        )
    scrubbed = f"scrubbed {_date(last)}" if last else "never scrubbed: `blyan tile scrub`"
    return f"{whole} shard versions whole, {parts} in part; {scrubbed}"


def _room(home: Home) -> str:
    """Whether more tiles would find room: in the operator's quota, and on the disk."""
    if not home.path.is_dir():
        return "not looked at without a home"
    quota, free = load_config(home).store_quota, shutil.disk_usage(home.path).free
    used = sum(file.stat().st_blocks * 512 for file in home.tiles.rglob("*") if file.is_file())
    if quota and used >= quota:
        raise QuotaError(
            f"tiles take {used} bytes, and store_quota allows {quota}: no more are fetched; raise "
            f"it in {home.config_file}, or set capacity_tiles lower"
        )
    if free < RESERVE_BYTES:
        raise QuotaError(
            f"the disk has {free} bytes left, and {RESERVE_BYTES} are kept for the chain: free some"
        )
    return f"tiles take {used:,} bytes" + (f" of {quota:,}" if quota else "") + f"; {free:,} free"


def _date(report: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(report["ended_ms"] / 1000))


def _ports(home: Home) -> str:
    config = load_config(home)
    ports = [config.api_port, config.p2p_port, config.link_port]
    for host, port in zip((config.api_host, config.p2p_host, config.p2p_host), ports, strict=True):
        check_port_free(Address("ip6" if ":" in host else "ip4", host, port))
    return f"{', '.join(str(port) for port in ports if port)} are free"
