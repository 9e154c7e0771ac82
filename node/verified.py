"""What a client may believe of a node's answers: everything is checked against a header
(docs/spec/rounds.md, "What a learner checks").

    tile bytes → tile root → shard root → model root → state proof → header → certificate

Records are read as state proofs and decoded from canonical bytes, never taken from an answer's
JSON. A header's certificate is checked with the genesis validator set for as long as that is the
set in force; another set would need the light client, and the answer then says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from chain import governance_records as g
from chain import limits, model_versions
from chain import records as r
from chain.certificates import verify_certificate
from chain.codec import decode
from chain.errors import InputError, UnreachableError, VerifyError
from chain.hashes import BLOB, Hash32
from chain.parameters import with_settings
from chain.params import Genesis, Params
from chain.tree import StateProof, verify_state_proof
from chain.types import BlobId, Certificate, CertifiedBlock, Header, TxId, VoteKind
from learning.spec import ModelSpec
from node.client import Client
from node.round_specs import RoundSpecs
from tiles import merkle
from tiles.layout import ShardSpec

T = TypeVar("T")

CERTIFICATE_SEARCH = 64  # descendants that may carry the certificate of a block
FETCHES = 4  # tiles asked for at once


class Finality(Enum):
    """How sure a header is."""

    CERTIFIED = "certified by the genesis validators"
    OTHER_SET = "not checked: another validator set than genesis's is in force"
    ABSENT = "not checked: the node shows no certificate for it yet"


@dataclass(frozen=True, slots=True)
class Proven:
    """A state value (None: absent) under a header that was checked as far as `finality` says."""

    value: bytes | None
    header: Header
    finality: Finality


@dataclass(frozen=True, slots=True)
class ShardVersion:
    """One shard of a model, its tile roots checked against its root."""

    spec: ShardSpec
    root: Hash32
    tile_roots: tuple[Hash32, ...]


def check_proof(genesis: Genesis, answer: dict[str, Any], key: bytes) -> Proven:
    """A value of the state from an API answer, by its proof. VerifyError if it does not hold."""
    header: Header = decode(Header, _bytes(answer, "header"))
    proof: StateProof = decode(StateProof, _bytes(answer, "proof"))
    value = None if answer.get("value") is None else _bytes(answer, "value")
    if header.chain_id != genesis.chain_id:
        raise VerifyError("the node shows a header of another chain")
    if not verify_state_proof(header.state_root, key, value, proof):
        raise VerifyError(f"the node's proof of {key[:5]!r} does not hold; ask another node")
    certificate = (
        decode(Certificate, _bytes(answer, "certificate")) if answer.get("certificate") else None
    )
    return Proven(value, header, check_finality(genesis, header, certificate))


def check_finality(genesis: Genesis, header: Header, certificate: Certificate | None) -> Finality:
    """Check a certificate for this very header. VerifyError if it is wrong."""
    validators = genesis.validator_set
    if header.height == 0:
        return Finality.ABSENT
    if header.validators_hash != validators.hash():
        return Finality.OTHER_SET
    if certificate is None:
        return Finality.ABSENT
    if (certificate.kind, certificate.block_hash) != (VoteKind.FINALIZE, header.hash()):
        raise VerifyError(f"the certificate shown for block {header.height} is of another")
    verify_certificate(genesis.chain_id, validators, certificate)
    return Finality.CERTIFIED


class VerifiedReader:
    """Reads one node's chain and believes nothing that a header does not show. `block`: the header
    whose state is read, by default the newest that the node has whenever it is asked."""

    def __init__(self, client: Client, genesis: Genesis, block: Header | None = None) -> None:
        self.client, self.genesis, self._block = client, genesis, block
        self.height = -1  # of the newest block whose state was read
        # No version changes the shape or the place of a tensor.
        self.specs = ModelSpec.from_json(dict(genesis.model)).shards()

    @classmethod
    async def connect(cls, client: Client) -> VerifiedReader:
        return cls(client, await client.genesis())

    def at(self, block: Header) -> VerifiedReader:
        """The same node, all of whose answers have to be of the state after this very block."""
        return VerifiedReader(self.client, self.genesis, block)

    # --- state ---------------------------------------------------------------------------

    async def proven(self, key: bytes) -> Proven:
        """A value of the state, with its proof checked. VerifyError if it does not hold."""
        block = self._block
        answer = await self.client.state_proof(key, block.height if block else None)
        found = check_proof(self.genesis, answer, key)
        if block is not None and found.header != block:
            raise VerifyError(
                f"the node shows block {found.header.height} ({found.header.hash().hex()[:16]}), "
                f"expected block {block.height} ({block.hash().hex()[:16]}); ask another node"
            )
        self.height = max(self.height, found.header.height)
        return found

    async def read(self, cls: type[T], key: bytes) -> T | None:
        value = (await self.proven(key)).value
        found: T | None = None if value is None else decode(cls, value)
        return found

    async def need(self, cls: type[T], key: bytes, what: str) -> T:
        found = await self.read(cls, key)
        if found is None:
            raise InputError(f"the chain knows no {what}")
        return found

    async def head(self) -> r.Head:
        return await self.need(r.Head, r.HEAD, "head")

    async def round(self, number: int) -> r.RoundRecord:
        return await self.need(r.RoundRecord, r.round_key(number), f"round {number}")

    async def current_round(self) -> r.RoundRecord:
        return await self.round((await self.head()).round)

    async def delta(self, delta: TxId) -> r.DeltaRecord:
        return await self.need(r.DeltaRecord, r.delta_key(delta), f"delta {delta.hex()}")

    async def dataset(self, dataset: Hash32) -> r.DatasetRecord:
        key = r.dataset_key(dataset)
        return await self.need(r.DatasetRecord, key, f"dataset {dataset.hex()}")

    # --- what is in force --------------------------------------------------------------------

    async def params(self) -> Params:
        """Parameters in force."""
        held = await self.read(g.Settings, g.SETTINGS)
        return with_settings(self.genesis.params, held.settings) if held else self.genesis.params

    async def version_now(self) -> str:
        """The version of the documents that rounds anchor with now."""
        held = await self.read(g.ModelVersion, g.VERSION)
        return held.version if held else g.FIRST_VERSION

    async def round_version(self, number: int) -> str:
        """The version that a round was anchored with."""
        held = await self.read(g.RoundVersion, g.round_version_key(number))
        return held.version if held else g.FIRST_VERSION

    async def specs_now(self) -> RoundSpecs:
        """Model and training rule of the rounds that anchor now."""
        return await self.specs_of(await self.version_now())

    async def round_specs(self, number: int) -> RoundSpecs:
        """Model and training rule of a round that is anchored."""
        return await self.specs_of(await self.round_version(number))

    async def specs_of(self, version: str) -> RoundSpecs:
        """Model and training rule of a version that is or was in force."""
        if version == g.FIRST_VERSION:
            return RoundSpecs.of(model_versions.of_genesis(self.genesis))
        key = g.documents_key(version)
        found = await self.need(g.ModelDocuments, key, f"model version {version}")
        return RoundSpecs.of(model_versions.parse_document(found.document).documents)

    # --- finality --------------------------------------------------------------------------

    def finality(self, header: Header, certificate: Certificate | None) -> Finality:
        """As `check_finality`."""
        return check_finality(self.genesis, header, certificate)

    async def certify(self, header: Header) -> tuple[Finality, int]:
        """How a header is final, and by the certificate of which height: its own, or that of a
        descendant, which is followed link by link."""
        tip = int((await self.client.status())["height"])
        expected = header.hash()
        for height in range(header.height, min(tip, header.height + CERTIFICATE_SEARCH) + 1):
            found: CertifiedBlock = await self.client.raw_block(height)
            at = found.block.header
            linked = at.hash() == expected if height == header.height else at.parent == expected
            if not linked or at.height != height:
                raise VerifyError(f"the node's block {height} does not follow the header shown")
            expected = at.hash()
            if found.finalization is not None:
                return self.finality(at, found.finalization), height
        return Finality.ABSENT, header.height

    # --- model -----------------------------------------------------------------------------

    async def model_roots(self, root: Hash32, height: int | None = None) -> list[ShardVersion]:
        """The shards of the model with this root, every level recomputed."""
        answer = await self.client.model(height)
        return self.check_model(answer, root)

    def check_model(self, answer: dict[str, Any], root: Hash32) -> list[ShardVersion]:
        """Shard versions from an API answer, if their roots lead to `root`. VerifyError if not."""
        rows = answer.get("shards")
        if not isinstance(rows, list) or len(rows) != len(self.specs):
            raise VerifyError(f"the node's model has not the {len(self.specs)} shards of genesis")
        versions = []
        for spec, row in zip(self.specs, rows, strict=True):
            try:
                roots = tuple(Hash32(bytes.fromhex(t)) for t in row["tile_roots"])
            except (KeyError, TypeError, ValueError):
                roots = ()
            if len(roots) != spec.tile_count or any(len(root) != 32 for root in roots):
                raise VerifyError(
                    f"the node shows no list of the {spec.tile_count} tile root(s) of {spec.name}"
                )
            versions.append(ShardVersion(spec, merkle.shard_root(roots, spec.data_bytes), roots))
        if merkle.model_root([v.root for v in versions]) != root:
            raise VerifyError(f"the node's tile roots do not lead to model root {root.hex()}")
        return versions

    async def tile(self, version: ShardVersion, tile: int) -> bytes:
        """One tile's bytes, verified against its root."""
        data = await self.client.tile_data(version.spec.index, tile, version.root)
        if len(data) != version.spec.tile_bytes(tile):
            raise VerifyError(f"tile {tile} of {version.spec.name}: {len(data)} bytes")
        if await asyncio.to_thread(merkle.tile_root, data) != version.tile_roots[tile]:
            raise VerifyError(
                f"tile {tile} of {version.spec.name}: the bytes do not have the root "
                f"{version.tile_roots[tile].hex()}; ask another node"
            )
        return data

    async def shard(self, version: ShardVersion) -> bytes:
        tiles = range(version.spec.tile_count)
        return b"".join([await self.tile(version, tile) for tile in tiles])

    async def shards(self, versions: Sequence[ShardVersion]) -> list[bytes]:
        """Data sections, a few shards at a time."""
        room = asyncio.Semaphore(FETCHES)

        async def one(version: ShardVersion) -> bytes:
            async with room:
                return await self.shard(version)

        tasks = [asyncio.create_task(one(version)) for version in versions]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    # --- blobs -----------------------------------------------------------------------------

    async def blob(self, blob: BlobId, most: int = limits.MAX_BLOB_BYTES) -> bytes:
        """A blob's bytes, verified. UnreachableError if what came is something else."""
        data = await self.client.blob(blob)
        if len(data) > most or BlobId(BLOB.hash(data)) != blob:
            raise UnreachableError(f"the node serves other bytes as blob {blob.hex()}")
        return data


def _bytes(answer: dict[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(answer[name])
    except (KeyError, TypeError, ValueError):
        raise VerifyError(f"the node's proof has no hex {name!r}") from None
