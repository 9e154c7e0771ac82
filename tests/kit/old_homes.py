"""Homes that an earlier program has left (tests/fixtures/README.md), ready to be gone on from."""

from __future__ import annotations

import io
import json
import lzma
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node.config import Config, load_config, save_config
from node.home import Home, unlock
from tests.e2e.fleet import free_ports
from wallet.keys import Keys

HOMES = Path(__file__).parent.parent / "fixtures" / "homes"


@dataclass(frozen=True, slots=True)
class OldHome:
    """One of a set's homes; `about` is what the maker said of it."""

    home: Home
    config: Config
    about: dict[str, Any]

    def keys(self) -> Keys:
        return unlock(self.home, self.config.account)


def kinds() -> list[str]:
    """The sets there are, one for each version of the store."""
    return sorted(path.name for path in HOMES.iterdir() if path.is_dir())


def about(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HOMES / kind / "about.json").read_text())
    return found


def unpack(kind: str, directory: Path) -> list[OldHome]:
    """All homes of a set below `directory`, with ports of this machine that are free."""
    data = lzma.decompress((HOMES / kind / "homes.tar.xz").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(directory, filter="data")
    made = about(kind)["homes"]
    ports = free_ports(3 * len(made), random.Random(str(directory)))
    return list(_with_ports(directory, made, ports))


def _with_ports(directory: Path, made: dict[str, Any], ports: Iterator[int]) -> Iterator[OldHome]:
    homes = [Home(directory / name) for name in made]
    old = [load_config(home, environment={}) for home in homes]
    new = [
        replace(c, api_port=next(ports), p2p_port=next(ports), link_port=next(ports)) for c in old
    ]
    moved = {c.p2p_port: n.p2p_port for c, n in zip(old, new, strict=True)}
    for home, config in zip(homes, new, strict=True):
        places = [address.split("/") for address in config.bootstrap]
        there = tuple("/".join([*p[:4], str(moved[int(p[4])]), *p[5:]]) for p in places)
        config = replace(config, bootstrap=there)
        home.create()
        home.keystore.chmod(0o700)
        save_config(home, config)
        yield OldHome(home, config, made[home.path.name])
