"""Starting networks: new homes with keys of their own, and a genesis that names them.

The local network's genesis is the template `genesis.json` with founders filled in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from chain.address import peer_id_of
from chain.errors import ConfigError, GenesisError
from chain.params import Genesis, parse_genesis
from chain.types import GRAINS_PER_BLY
from node.config import Config, save_config
from node.home import Home, create_keys, generate_passphrase, write_private
from wallet.keys import Keys

FOUNDER_STAKE = 10_000 * GRAINS_PER_BLY  # grains bonded by each founding validator
FOUNDER_BALANCE = 10_000 * GRAINS_PER_BLY  # grains each founding account may spend
MODELS = ("nano", "tiny", "small")  # what `learning.sizes` has
MAX_GENESIS_BYTES = 1024 * 1024  # 512 validators have 0.3 MiB


@dataclass(frozen=True, slots=True)
class Founded:
    """A home that has just been made. `words` is the mnemonic, shown once."""

    home: Home
    config: Config
    keys: Keys
    words: str

    @property
    def node_id(self) -> str:
        return peer_id_of(self.keys.node.public)

    @property
    def address(self) -> str:
        """The multiaddr by which others on this machine reach the node."""
        return f"/ip4/{self.config.p2p_host}/tcp/{self.config.p2p_port}/p2p/{self.node_id}"


def found_home(home: Home, config: Config, passphrase: Callable[[], str] | None = None) -> Founded:
    """Make a home with fresh keys, configuration and API token; the genesis is still to come.

    Without `passphrase` a random one is kept beside the keys. ConfigError if a node lives there.
    """
    if home.initialized or home.config_file.exists():
        raise ConfigError(
            f"{home.path} holds a node already: start it with `blyan-node start --home "
            f"{home.path}`, or choose another directory"
        )
    home.create()
    secret = passphrase() if passphrase else generate_passphrase(home)
    keys, words = create_keys(home, config.account, secret)
    save_config(home, config)
    home.create_token()
    return Founded(home, config, keys, words)


def set_bootstrap(founded: Founded, addresses: Sequence[str]) -> Founded:
    config = replace(founded.config, bootstrap=tuple(addresses))
    save_config(founded.home, config)
    return replace(founded, config=config)


def template(model: str | None = None) -> dict[str, Any]:
    """The local network's genesis without founders, as the package carries it; with the model, the
    training rule and the windows that have this name, if one is given."""
    document = json.loads(resources.files("node").joinpath("genesis.json").read_text())
    if not isinstance(document, dict):
        raise GenesisError("genesis.json of the package: expected an object")
    if model is not None:
        from learning.sizes import SIZES

        size = SIZES[model]
        document |= {"model": size.model.to_json(), "training": size.training.to_json()}
        document["params"] |= {n: {"blocks": b, "ms": ms} for n, (b, ms) in size.windows.items()}
    return document


def write_genesis(home: Home, text: str) -> Genesis:
    """Check a genesis, its documents included, and keep it, byte for byte."""
    from learning.documents import read_documents

    genesis = parse_genesis(text)
    read_documents(dict(genesis.model), dict(genesis.training))
    if not genesis.validators:
        raise GenesisError(
            "validators: none; this is a template, from which `blyan-node devnet` or "
            "`blyan-node init` without --genesis makes a network"
        )
    write_private(home.genesis_file, text)
    return genesis


def read_genesis(path: Path) -> str:
    """The text of a genesis file that an operator names."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_GENESIS_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a genesis.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GenesisError(f"{path} cannot be read: {error}") from None
    if len(data) > MAX_GENESIS_BYTES:
        raise GenesisError(f"{path}: more than {MAX_GENESIS_BYTES} bytes; expected a genesis.json")
    return text


def founding_genesis(
    validators: Sequence[Founded], funded: Sequence[Keys] = (), document: Any = None
) -> str:
    """A genesis with these validators, and with spending money for them and `funded`."""
    document = document or template()
    document["time_ms"] = time.time_ns() // 1_000_000
    document["validators"] = [
        {
            "account": f.keys.account.public.hex(),
            "node_key": f.keys.node.public.hex(),
            "consensus_key": f.keys.consensus.public.hex(),
            "vrf_key": f.keys.vrf.public.hex(),
            "node_id": f.node_id,
            "stake": FOUNDER_STAKE,
        }
        for f in validators
    ]
    accounts = [f.keys.account.public for f in validators] + [k.account.public for k in funded]
    document["accounts"] = [{"account": a.hex(), "grains": FOUNDER_BALANCE} for a in accounts]
    return json.dumps(document, indent=1) + "\n"
