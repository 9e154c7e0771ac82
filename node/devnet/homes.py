"""The directory of a local network: homes, genesis, ports (docs/guides/devnet.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from chain.errors import ConfigError, InputError
from node.cli.output import progress
from node.config import Config, load_config, save_config
from node.founding import Founded, found_home, founding_genesis, template, write_genesis
from node.home import Home, unlock, write_private
from node.net.identity import Address, PortInUseError, check_port_free

DEFAULT_PARENT = "~/.blyan/devnet"
API_PORT, P2P_OFFSET = 8645, 1000  # libp2p listens on the API's port + 1000
LINK_OFFSET = 2000  # and links on the API's port + 2000
PORT_STEP, PORT_TRIES = 20, 100  # blocks of ports that are tried, one after another


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `rounds` None: learn until told to stop. `leave`: end after the rounds."""

    nodes: int = 4
    learners: int = 2
    rounds: int | None = None
    leave: bool = False
    directory: Path | None = None
    data: Path | None = None
    license: str | None = None
    base_port: int | None = None
    model: str | None = None  # by name; a network that is there already keeps its own


@dataclass(frozen=True, slots=True)
class Layout:
    """The homes of a network. Learners, contributor and outsider have keys but run no node."""

    directory: Path
    nodes: tuple[Home, ...]
    learners: tuple[Home, ...]
    contributor: Home  # submits the dataset
    outsider: Home  # submits garbage, to be refused

    @classmethod
    def of(cls, directory: Path, nodes: int, learners: int) -> Layout:
        return cls(
            directory,
            tuple(Home(directory / f"node-{i}") for i in range(nodes)),
            tuple(Home(directory / f"learner-{i}") for i in range(learners)),
            Home(directory / "contributor"),
            Home(directory / "outsider"),
        )

    @property
    def guests(self) -> tuple[Home, ...]:
        return (*self.learners, self.contributor, self.outsider)


# --- preparing the directory ---------------------------------------------------------------


def choose_directory(plan: Plan) -> Path:
    """The directory to use, made if absent. ConfigError if it holds something else."""
    if plan.directory is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = Path(DEFAULT_PARENT).expanduser() / f"{stamp}-{os.getpid()}"
    else:
        path = plan.directory.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        used = any(path.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}; choose another --dir") from None
    if used and not (path / "devnet.json").is_file():
        raise ConfigError(
            f"{path} is neither empty nor a local network; choose another --dir, or empty it"
        )
    return path


def prepare(directory: Path, plan: Plan) -> tuple[Layout, list[Config]]:
    """Homes, genesis and configurations. A network that is there already keeps its genesis."""
    sizes = directory / "devnet.json"
    ports = choose_ports(plan)
    if sizes.is_file():
        nodes, learners = _sizes(sizes)
        layout = Layout.of(directory, nodes, learners)
        progress(f"Resuming the network in {directory}")
        if len(ports) < nodes:
            ports = choose_ports(replace(plan, nodes=nodes))
    else:
        layout = Layout.of(directory, plan.nodes, plan.learners)
        _found(layout, ports, plan.model)
        write_private(sizes, json.dumps({"nodes": plan.nodes, "learners": plan.learners}) + "\n")
    return layout, _configure(layout, ports)


def _sizes(path: Path) -> tuple[int, int]:
    try:
        sizes = json.loads(path.read_text())
        return int(sizes["nodes"]), int(sizes["learners"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; expected {{'nodes': 4, 'learners': 2}}") from None


def _found(layout: Layout, ports: Sequence[int], model: str | None) -> None:
    founders = [
        found_home(home, Config(api_port=port, p2p_port=port + P2P_OFFSET))
        for home, port in zip(layout.nodes, ports, strict=False)
    ]
    guests = [found_home(home, Config()) for home in layout.guests]
    genesis = founding_genesis(founders, [g.keys for g in guests], template(model))
    write_private(layout.directory / "genesis.json", genesis)
    for founded in (*founders, *guests):
        write_genesis(founded.home, genesis)


def _configure(layout: Layout, ports: Sequence[int]) -> list[Config]:
    """Ports and each other's addresses; guests get the address and token of a node to talk to."""
    founders = []
    for home, port in zip(layout.nodes, ports, strict=False):
        config = replace(load_config(home, environment={}), api_port=port)
        config = replace(config, p2p_port=port + P2P_OFFSET, link_port=port + LINK_OFFSET)
        founders.append(Founded(home, config, unlock(home, config.account), ""))
    configs = []
    for founded in founders:
        others = tuple(f.address for f in founders if f is not founded)
        configs.append(replace(founded.config, bootstrap=others))
        save_config(founded.home, configs[-1])
    for i, guest in enumerate(layout.guests):
        host = i % len(layout.nodes)
        save_config(guest, replace(configs[host], bootstrap=()))
        write_private(guest.token_file, layout.nodes[host].create_token() + "\n")
    return configs


def choose_ports(plan: Plan) -> list[int]:
    """API ports, so that they and the ports of libp2p and of links above them are free now."""
    if plan.base_port is not None:
        ports = list(range(plan.base_port, plan.base_port + plan.nodes))
        _check_free(ports)
        return ports
    for attempt in range(PORT_TRIES):
        first = API_PORT + attempt * PORT_STEP
        ports = list(range(first, first + plan.nodes))
        try:
            _check_free(ports)
        except PortInUseError:
            continue
        if attempt:
            progress(f"Port {API_PORT} or one after it is in use; this network starts at {first}")
        return ports
    raise PortInUseError(f"no free ports from {API_PORT} on; choose with --base-port")


def _check_free(ports: Sequence[int]) -> None:
    for port in ports:
        if port + LINK_OFFSET > 65535:
            raise InputError(f"--base-port: at most {65535 - LINK_OFFSET - len(ports) + 1}")
        for each in (port, port + P2P_OFFSET, port + LINK_OFFSET):
            check_port_free(Address("ip4", "127.0.0.1", each))
