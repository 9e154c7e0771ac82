"""Networks from the template: the genesis at the repository's top, and what is made from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from chain.errors import ConfigError, GenesisError
from chain.params import parse_genesis
from learning.spec import ModelSpec, TrainingSpec
from node.config import Config, load_genesis
from node.founding import (
    FOUNDER_BALANCE,
    FOUNDER_STAKE,
    found_home,
    founding_genesis,
    read_genesis,
    template,
    write_genesis,
)
from node.home import Home, unlock
from node.net.identity import Address

ROOT = Path(__file__).parent.parent.parent


def test_the_template_is_the_genesis_at_the_top() -> None:
    assert template() == json.loads((ROOT / "genesis.json").read_text())
    genesis = parse_genesis((ROOT / "genesis.json").read_text())
    assert not genesis.validators
    ModelSpec.from_json(genesis.model)
    TrainingSpec.from_json(genesis.training)


def test_every_field_is_documented() -> None:
    """docs/spec/genesis.md names each field of the template, with its local value if it is one."""
    page = (ROOT / "docs/spec/genesis.md").read_text()

    def names(value: object) -> set[str]:
        if not isinstance(value, dict):
            return set()
        return set(value) | {n for inner in value.values() for n in names(inner)}

    assert not names(template()) - set(re.findall(r"`(\w+)`", page)) - {"blocks", "ms"}


def test_documented_values_are_the_template_s() -> None:
    page = (ROOT / "docs/spec/genesis.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE)
    said = {name: value.strip() for name, value in rows if name in template()["params"]}
    powers = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")

    def shown(value: int | dict[str, int]) -> set[str]:
        if isinstance(value, dict):
            return {f"{value['blocks']}, {value['ms']}"}
        return {str(value), f"10^{len(str(value)) - 1}"}

    assert said.keys() == template()["params"].keys()
    for name, value in template()["params"].items():
        text = re.sub("10([⁰-⁹¹²³]+)", lambda m: "10^" + m[1].translate(powers), said[name])
        assert text in shown(value), name


def test_a_founded_network_is_a_valid_one(tmp_path: Path) -> None:
    founded = found_home(Home(tmp_path / "a"), Config(p2p_port=9700))
    guest = found_home(Home(tmp_path / "b"), Config())
    text = founding_genesis([founded], [guest.keys])
    genesis = write_genesis(founded.home, text)
    assert load_genesis(founded.home).chain_id == genesis.chain_id
    assert [v.stake for v in genesis.validators] == [FOUNDER_STAKE]
    assert genesis.validators[0].consensus_key == founded.keys.consensus.public
    assert {a.account: a.grains for a in genesis.accounts} == {
        founded.keys.account.public: FOUNDER_BALANCE,
        guest.keys.account.public: FOUNDER_BALANCE,
    }
    address = Address.parse(founded.address)
    assert (address.port, address.peer_id) == (9700, genesis.validators[0].node_id)
    assert unlock(founded.home, "node") == founded.keys


def test_a_home_is_founded_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "a")
    founded = found_home(home, Config())
    with pytest.raises(ConfigError, match="holds a node already: start it with"):
        found_home(home, Config())
    assert unlock(home, "node") == founded.keys


def test_a_template_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(GenesisError, match="this is a template"):
        write_genesis(Home(tmp_path), (ROOT / "genesis.json").read_text())
    assert not (tmp_path / "genesis.json").exists()


def test_genesis_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_genesis(tmp_path / "missing")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff" * 10)
    with pytest.raises(GenesisError, match="cannot be read"):
        read_genesis(garbage)
    garbage.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(GenesisError, match="more than 1048576 bytes"):
        read_genesis(garbage)
