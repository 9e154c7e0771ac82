"""What the API and the explorer see of a running node: one small protocol.

`node/daemon.py` assembles the real one, `tests/kit` one without a network; mypy holds both to it.
Everything here is called on the main loop, and nothing here waits unless it is `async`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from chain.execute import Executed
from chain.hashes import Hash32
from chain.params import Genesis
from chain.state import State
from chain.store import ChainStore
from chain.tree import StateTree
from chain.types import BlobId, Block, Certificate, Header, PubKey, TxId
from tiles.layout import ShardSpec
from tiles.store import TileStore

if TYPE_CHECKING:
    from node.net.info import PeerInfo
    from node.net.links.info import LinkInfo
    from node.services.versions import VersionHistory


class ChainSeam(Protocol):
    """The final chain. `state` is a fresh read overlay over the latest final state."""

    @property
    def tip(self) -> Header: ...

    @property
    def tip_hash(self) -> Hash32: ...

    def state(self) -> State: ...

    def tree_at(self, height: int) -> StateTree | None:
        """The state after a recent final height, for proofs."""

    def certified(self, height: int) -> tuple[tuple[Header, ...], Certificate] | None:
        """The headers from a height to the first with a finalization of its own, and that."""

    def finalized(self, callback: Callable[[Block, Executed], None]) -> object:
        """Call back on the main loop after each final block."""


_Bytes = bytes  # PoolSeam has a property of that name


class PoolSeam(Protocol):
    """Transactions that wait for a block. `submit` raises DecodeError, VerifyError or TxError."""

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def submit(self, raw: _Bytes) -> TxId: ...

    async def durable(self, tx_ids: Iterable[TxId]) -> None:
        """Return when these survive the process: only then is their sender answered. StorageError
        if the disk takes nothing."""

    def next_nonce(self, account: PubKey) -> int: ...

    def pending(self) -> Iterator[tuple[TxId, _Bytes]]: ...

    def get(self, tx_id: TxId) -> _Bytes | None: ...

    def status(self, tx_id: TxId) -> str | None:
        """'pending', 'dropped:<code>: <reason>', or None if nothing is known."""


class BlobSeam(Protocol):
    """Content-addressed bytes, from here or from peers. UnreachableError: nobody has them."""

    def put(self, data: bytes) -> BlobId: ...

    def local(self, blob_id: BlobId) -> bytes | None:
        """The blob if it is here."""

    async def get(self, blob_id: BlobId, most: int = ..., *, keep: bool = ...) -> bytes: ...

    def put_checkpoint(self, state_hash: Hash32, data: bytes) -> object: ...

    def local_checkpoint(self, state_hash: Hash32) -> bytes | None: ...

    async def get_checkpoint(self, state_hash: Hash32) -> bytes: ...


class TileSeam(Protocol):
    """Shards by root, fetched from peers tile by tile where they are not here."""

    @property
    def specs(self) -> Sequence[ShardSpec]: ...

    @property
    def store(self) -> TileStore: ...

    async def shard(self, index: int, root: Hash32) -> bytes: ...

    async def tile(self, index: int, root: Hash32, tile: int) -> bytes: ...


class PlacementSeam(Protocol):
    """What this node keeps of the model, and who else holds it, in plain JSON values."""

    def info(self) -> Mapping[str, Any]: ...

    def tile_info(self, shard: int, root: Hash32, tile: int) -> Mapping[str, Any]: ...


class NetSeam(Protocol):
    """The network port, as far as it tells of itself."""

    @property
    def peer_id(self) -> str: ...

    def addresses(self) -> list[str]:
        """Multiaddrs with the peer id, at which this node can be dialled."""

    def peers(self) -> list[PeerInfo]: ...

    def link_info(self) -> list[LinkInfo]: ...


class ScrubSeam(Protocol):
    """Checks of the whole store, in plain JSON values (node/services/scrub.py)."""

    def start(self) -> Mapping[str, Any]:
        """Begin one, unless one is under way; what `info` says then."""

    def info(self) -> Mapping[str, Any]:
        """`running`, `done_tiles`, `total_tiles`, `last`: the last report or None."""


class InfoSeam(Protocol):
    """A service that tells about itself in plain JSON values."""

    def info(self) -> Mapping[str, Any]: ...


class NodeSeam(Protocol):
    """A running node."""

    @property
    def genesis(self) -> Genesis: ...

    @property
    def account(self) -> PubKey: ...

    @property
    def genesis_tree(self) -> StateTree:
        """The state at height 0, which every node computes from the genesis file alone."""

    @property
    def api_address(self) -> str:
        """`http://host:port` of this API."""

    @property
    def api_token(self) -> str:
        """What `Authorization: Bearer` must carry to write blobs and checkpoints."""

    @property
    def started_ms(self) -> int:
        """Unix time at which the node started, in milliseconds."""

    @property
    def store(self) -> ChainStore: ...

    @property
    def chain(self) -> ChainSeam: ...

    @property
    def pool(self) -> PoolSeam: ...

    @property
    def blobs(self) -> BlobSeam: ...

    @property
    def tiles(self) -> TileSeam: ...

    @property
    def history(self) -> VersionHistory: ...

    @property
    def scrub(self) -> ScrubSeam: ...

    @property
    def placement(self) -> PlacementSeam: ...

    @property
    def consensus(self) -> InfoSeam:
        """`info`: epoch, view, delta_ms, halted, abstains (why and until when a validator
        signs nothing, or None), index (of this validator, or None)."""

    @property
    def sync(self) -> InfoSeam:
        """`info`: synced, target (the highest height that a peer told of)."""

    @property
    def net(self) -> NetSeam: ...

    def metrics(self) -> Mapping[str, int | float]:
        """Counters and gauges for /metrics, by name without the `blyan_` prefix."""
