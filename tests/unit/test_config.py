"""Configuration: precedence, strictness, and errors that name file, key and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.errors import ConfigError, GenesisError
from node.config import Config, load_config, load_genesis, save_config
from node.home import Home

PEER = "/ip4/127.0.0.1/tcp/9645/p2p/12D3KooWECJdbNfHM3mek4M5KQFtUqPKDh52GE1519dwhafWhZ41"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_defaults_need_no_file(home: Home) -> None:
    assert load_config(home, environment={}) == Config()


def test_flag_before_environment_before_file(home: Home) -> None:
    home.config_file.write_text('api_port = 1001\np2p_port = 1002\nlog_level = "debug"\n')
    environment = {"BLYAN_API_PORT": "2001", "BLYAN_P2P_PORT": "2002", "BLYAN_HOME": "elsewhere"}
    config = load_config(home, {"api_port": 3001, "p2p_port": None}, environment)
    assert (config.api_port, config.p2p_port, config.log_level) == (3001, 2002, "debug")
    assert config.api_host == "127.0.0.1"


def test_a_saved_file_reads_back(home: Home) -> None:
    config = Config(api_port=7, bootstrap=(PEER, PEER), account="alice")
    save_config(home, config)
    assert load_config(home, environment={}) == config
    assert home.config_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api_prot = 1\n", "unknown key 'api_prot'; expected api_host, api_port"),
        ('api_port = "8645"\n', "api_port: expected a port from 1 to 65535, not '8645'"),
        ("api_port = 0\n", "api_port: expected a port"),
        ("p2p_port = true\n", "p2p_port: expected a port"),
        ("p2p_port = 70000\n", "p2p_port: expected a port"),
        ("api_host = 1\n", "api_host: expected a host"),
        ('bootstrap = ["/ip4/127.0.0.1/tcp/9645"]\n', "bootstrap: expected a list of"),
        ('log_level = "loud"\n', "log_level: expected one of debug, info"),
        ("memory_mib = 0\n", "memory_mib: expected a whole number of MiB from 1 to"),
        ("relay = 1\n", "relay: expected true or false, not 1"),
        ("keep_versions = 0\n", "keep_versions: expected a whole number of versions from 1 to"),
        (
            "scrub_interval_hours = 0.5\n",
            "expected a whole number of hours from 0 to 8760, not 0.5",
        ),
        ("api_port = [\n", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(home: Home, text: str, message: str) -> None:
    home.config_file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(home, environment={})
    assert str(home.config_file) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_of_garbage_is_told(home: Home) -> None:
    home.config_file.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        load_config(home, environment={})


@pytest.mark.parametrize("value", ["many", "-1", "65536", ""])
def test_mistakes_in_the_environment_are_named(home: Home, value: str) -> None:
    with pytest.raises(ConfigError, match="environment variable BLYAN_API_PORT: expected a port"):
        load_config(home, environment={"BLYAN_API_PORT": value})


def test_bootstrap_in_the_environment_is_a_list(home: Home) -> None:
    config = load_config(home, environment={"BLYAN_BOOTSTRAP": f"{PEER}, {PEER}"})
    assert config.bootstrap == (PEER, PEER)


def test_mistakes_in_flags_are_named(home: Home) -> None:
    with pytest.raises(ConfigError, match="--bootstrap: expected a list"):
        load_config(home, {"bootstrap": ["nonsense"]}, {})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8645"),
        ("0.0.0.0", "http://127.0.0.1:8645"),
        ("::", "http://[::1]:8645"),
        ("fe80::1", "http://[fe80::1]:8645"),
        ("node.example", "http://node.example:8645"),
    ],
)
def test_the_url_is_one_that_can_be_opened(host: str, url: str) -> None:
    assert Config(api_host=host).api_url == url


def test_a_missing_or_broken_genesis_is_named(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"genesis\.json is missing.*blyan-node init"):
        load_genesis(home)
    home.genesis_file.write_text("{}")
    with pytest.raises(GenesisError, match=r"genesis\.json: genesis: lacks accounts"):
        load_genesis(home)
