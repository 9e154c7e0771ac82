"""The operator's configuration: flag, else environment (BLYAN_…), else config.toml, else default.

Reading is strict: an unknown key or a value of the wrong type is a ConfigError that names the
file, the key and what was expected.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from chain.errors import BlyanError, ConfigError, GenesisError
from chain.params import Genesis, parse_genesis
from learning.memory import ACTIVATION_BYTES, MIB
from learning.profile import KINDS
from node.home import Home, write_private
from node.net.identity import Address

HISTORIES = ("archive", "pruned")
LOG_LEVELS = ("debug", "info", "warning", "error")
SYNC_MODES = ("auto", "blocks", "snapshot")
MAX_BOOTSTRAP = 64  # addresses; one that answers is enough


@dataclass(frozen=True, slots=True)
class Config:
    """What an operator may set. Hosts are addresses to listen on; loopback unless told."""

    api_host: str = "127.0.0.1"
    api_port: int = 8645
    p2p_host: str = "127.0.0.1"
    p2p_port: int = 9645
    link_port: int = 10645  # for tiles and other bulk, on p2p_host; 0: any free one
    bootstrap: tuple[str, ...] = ()  # multiaddrs with /p2p/, dialled at start
    log_level: str = "info"
    account: str = "node"  # name of the keystore entry that this home acts with
    keep_versions: int = 2  # newest versions of each shard that are kept whole
    retention_rounds: int = 32  # rounds whose model can be rebuilt; older versions are dropped
    snapshot_every: int = 16  # of how many versions one is whole, so that a rebuild is short
    capacity_tiles: int = 0  # tiles to keep at most; 0: as announced, else 65536 (256 GiB)
    store_quota: int = 0  # bytes that tiles may take on the disk; 0: all but a reserve
    sync: str = "auto"  # how to catch up: with a snapshot if far behind, or by blocks alone
    trust: str = ""  # HEIGHT:HASH of a block known to be right, where genesis is too old
    history: str = "archive"  # keep every block whole, or prune: only headers of old ones
    history_blocks: int = 100_000  # newest blocks that a pruned node keeps whole; or more, if the
    # network's terms for evidence and unbonding, or retention_rounds, say so
    scrub_interval_hours: int = 168  # between two background checks of the whole store; 0: never
    profile: str = "native"  # numeric profile that this home trains with
    memory_mib: int = ACTIVATION_BYTES // MIB  # that a step of training or replay may take beside
    # the state (docs/spec/training.md, "Memory")
    relay: bool = False  # fetch every payload of a round at once, for peers that ask for them

    @property
    def api_url(self) -> str:
        host = "127.0.0.1" if self.api_host in ("0.0.0.0", "") else self.api_host
        host = "[::1]" if self.api_host == "::" else f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.api_port}"


@dataclass(frozen=True, slots=True)
class _Field:
    """How one key is read: from text (environment), and checked, with what was expected."""

    expected: str
    from_text: Callable[[str], Any]
    check: Callable[[Any], bool]


def _text_list(text: str) -> list[str]:
    return [part for part in text.replace(",", " ").split() if part]


def _whole(least: int, most: int, unit: str) -> _Field:
    def fits(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    return _Field(f"a whole number of {unit} from {least} to {most}", int, fits)


_PORT = _Field("a port from 1 to 65535", int, lambda v: type(v) is int and 0 < v < 65536)
_ANY_PORT = _Field(
    "a port from 1 to 65535, or 0 for a free one", int, lambda v: type(v) is int and 0 <= v < 65536
)
_HOST = _Field("a host such as 127.0.0.1", str, lambda v: isinstance(v, str) and 0 < len(v) < 254)
_FIELDS: Mapping[str, _Field] = {
    "api_host": _HOST,
    "api_port": _PORT,
    "p2p_host": _HOST,
    "p2p_port": _PORT,
    "link_port": _ANY_PORT,
    "bootstrap": _Field(
        f"a list of at most {MAX_BOOTSTRAP} addresses like /ip4/HOST/tcp/PORT/p2p/PEER_ID",
        _text_list,
        lambda v: isinstance(v, list | tuple) and len(v) <= MAX_BOOTSTRAP and all(map(_is_peer, v)),
    ),
    "log_level": _Field(f"one of {', '.join(LOG_LEVELS)}", str, lambda v: v in LOG_LEVELS),
    "account": _Field("a key name of the keystore", str, lambda v: isinstance(v, str) and v != ""),
    "keep_versions": _whole(1, 1000, "versions"),
    "retention_rounds": _whole(1, 1_000_000, "rounds"),
    "snapshot_every": _whole(1, 1000, "versions"),
    "capacity_tiles": _whole(0, 2**32 - 1, "tiles"),
    "store_quota": _whole(0, 2**60, "bytes"),
    "sync": _Field(f"one of {', '.join(SYNC_MODES)}", str, lambda v: v in SYNC_MODES),
    "trust": _Field("HEIGHT:HASH of a block, or nothing", str, lambda v: _is_checkpoint(v)),
    "history": _Field(f"one of {', '.join(HISTORIES)}", str, lambda v: v in HISTORIES),
    "history_blocks": _whole(1, 2**40, "blocks"),
    "scrub_interval_hours": _whole(0, 8760, "hours"),
    "memory_mib": _whole(1, 1 << 24, "MiB"),
    "relay": _Field(
        "true or false",
        lambda text: {"true": True, "false": False}.get(text, text),
        lambda v: type(v) is bool,
    ),
    "profile": _Field(f"one of {', '.join(KINDS)}", str, lambda v: v in KINDS),
}


def _is_peer(value: Any) -> bool:
    try:
        return isinstance(value, str) and Address.parse(value).peer_id is not None
    except BlyanError:
        return False


def _is_checkpoint(value: Any) -> bool:
    return value == "" or (
        isinstance(value, str) and re.fullmatch("[0-9]{1,19}:[0-9a-f]{64}", value) is not None
    )


def load_config(
    home: Home,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The configuration in force. `flags` that are None count as not given."""
    environment = os.environ if environment is None else environment
    values = _from_file(home)
    for name, rule in _FIELDS.items():
        variable = f"BLYAN_{name.upper()}"
        if (text := environment.get(variable)) is not None:
            try:
                values[name] = rule.from_text(text)
            except ValueError:
                values[name] = text
            _check(name, values[name], f"the environment variable {variable}")
    for name, value in (flags or {}).items():
        if value is not None:
            _check(name, value, f"--{name.replace('_', '-')}")
            values[name] = value
    if "bootstrap" in values:
        values["bootstrap"] = tuple(values["bootstrap"])
    return Config(**values)


def _from_file(home: Home) -> dict[str, Any]:
    path = home.config_file
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML ({error}); mend it, or move it away: `blyan-node init` "
            "writes a fresh one"
        ) from None
    for name, value in document.items():
        if name not in _FIELDS:
            raise ConfigError(f"{path}: unknown key {name!r}; expected {', '.join(_FIELDS)}")
        _check(name, value, f"{path}: {name}")
    return document


def _check(name: str, value: Any, where: str) -> None:
    rule = _FIELDS[name]
    if not rule.check(value):
        raise ConfigError(f"{where}: expected {rule.expected}, not {value!r}")


def save_config(home: Home, config: Config) -> None:
    """Write config.toml with every key, so that it documents itself."""
    lines = ["# Flags and BLYAN_… environment variables win over this file (docs/cli.md)."]
    values = asdict(config)
    for name in (f.name for f in fields(Config)):
        value = list(values[name]) if isinstance(values[name], tuple) else values[name]
        lines.append(f"{name} = {json.dumps(value)}")  # JSON text and lists are TOML, too
    write_private(home.config_file, "\n".join(lines) + "\n")


def load_genesis(home: Home) -> Genesis:
    """The network's genesis. GenesisError names the file and the field."""
    path = home.genesis_file
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: `blyan-node init --home {home.path}` makes a home"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise GenesisError(f"{path} cannot be read: {error}") from None
    try:
        return parse_genesis(text)
    except GenesisError as error:
        raise GenesisError(f"{path}: {error}") from None
