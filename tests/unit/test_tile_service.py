"""Tiles between nodes: fetched, verified, mended; a lying peer is charged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chain import records as r
from chain.errors import UnreachableError, VerifyError
from chain.hashes import Hash32
from node.genesis import build_genesis
from node.net.port import PeerInfo
from node.services.tiles import TileService
from tests.kit.local_chain import LocalChain
from tiles.store import TileStore


class Wire:
    def __init__(self) -> None:
        self.servers: dict[str, Any] = {}
        self.reported: list[str] = []

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        self.handler = handler

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(name, (), True, None, 0.0, "out") for name in self.servers]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append(peer)

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        answer: bytes = await self.servers[peer]("asker", data)
        return answer


class Pair:
    """A node that holds the genesis model and one that holds nothing."""

    def __init__(self, directory: Path, chain: LocalChain) -> None:
        start = build_genesis(chain.genesis)
        roots = [s.tile_roots for s in start.rooted]
        self.root = chain.state.need(r.ShardRecord, r.shard_key(0)).root
        self.data = start.shards[0]
        self.wires = Wire(), Wire()
        self.services = []
        for wire, name in zip(self.wires, ("full", "empty"), strict=True):
            store = TileStore(directory / name, start.specs)
            self.services.append(
                TileService(store, start.specs, wire, chain.store, roots)  # type: ignore[arg-type]
            )
        self.services[0].put_shard(0, self.data, self.root)

    def fetch(self) -> bytes:
        return asyncio.run(self.services[1].shard(0, self.root))

    def connect(self) -> None:
        self.wires[1].servers["full"] = self.wires[0].handler


def test_what_is_not_here_comes_from_a_peer_verified(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        pair = Pair(tmp_path, chain)
        with pytest.raises(UnreachableError, match="none of 0 connected peers"):
            pair.fetch()
        pair.connect()
        assert pair.fetch() == pair.data
        assert pair.services[1].fetched == 1


def test_a_flipped_byte_is_charged_to_its_sender(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        pair = Pair(tmp_path, chain)

        async def lie(peer: str, request: bytes) -> bytes:
            data = bytearray(await pair.wires[0].handler(peer, request))
            data[len(data) // 2] ^= 1
            return bytes(data)

        pair.wires[1].servers["liar"] = lie
        with pytest.raises(UnreachableError):
            pair.fetch()
        assert pair.wires[1].reported == ["liar"]
        pair.connect()
        assert pair.fetch() == pair.data


def test_damage_on_disk_is_mended_from_a_peer_and_never_served(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        pair = Pair(tmp_path, chain)
        pair.connect()
        assert pair.fetch() == pair.data
        path = pair.services[1].store.path(0, pair.root)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        request = (0).to_bytes(4, "big") + pair.root + (0).to_bytes(4, "big")
        assert asyncio.run(pair.wires[1].handler("asker", request)) == b""
        assert pair.fetch() == pair.data
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        assert pair.fetch() == pair.data
        assert pair.services[1].damaged == 1


def test_a_root_that_never_was_is_refused(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        pair = Pair(tmp_path, chain)
        pair.connect()
        with pytest.raises(VerifyError, match="never had the root"):
            asyncio.run(pair.services[1].shard(0, Hash32(bytes(32))))


def test_requests_that_cannot_be_meant_cost_their_sender(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        pair = Pair(tmp_path, chain)
        for request in (b"", b"x" * 40, bytes(4) + pair.root + b"\xff" * 4):
            assert asyncio.run(pair.wires[0].handler("fool", request)) == b""
        assert pair.wires[0].reported == ["fool"] * 3
