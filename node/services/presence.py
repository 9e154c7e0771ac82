"""Who holds which tiles: asked of each connected peer, for shard versions that matter here
(docs/spec/placement.md, "Presence").

An answer is a bitmap a shard; asked again, one that has not changed is a few bytes. It is hearsay
about the speaker alone: who claims what it does not serve is asked no more for it and loses points,
and every tile is verified whoever brings it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import U32, U64, Bytes, Seq, decode, encode, wire
from chain.errors import DecodeError, UnreachableError
from chain.hashes import Context, Hash32
from chain.types import ShardIndex
from node.net.kademlia import Rate
from node.services.peers import Peers
from tiles.layout import ShardSpec
from tiles.store import TileStore

log = logging.getLogger("blyan.placement")

PROTOCOL = "/blyan/presence/1"
MAX_ASKED = 256  # shards in one request: its answer has at most 133 KiB
MAX_REQUEST_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 160 * 1024
TIMEOUT_S = 10.0
PATIENCE_S = 5.0  # with all that are asked together: one that is slow must not hold up the others
INTERVAL_S = 10.0  # between two looks at one peer; half of it at random, so that nobody marches
ASK_RATE, ASK_BURST = 8.0, 512.0  # requests of one peer: a model of 65,536 shards has 256
POINTS_GARBAGE = 50.0
POINTS_FLOOD = 2.0
POINTS_FALSE = 5.0  # claimed a tile, did not serve it
FALSE_S = 2.0  # at most once within this: an honest node that makes room drops many at a time

_ANSWER = Context("presence")


@wire(124)
@dataclass(frozen=True, slots=True)
class ShardVersionRef:
    """One version of one shard."""

    shard: ShardIndex
    root: Hash32


@wire(125)
@dataclass(frozen=True, slots=True)
class PresenceRequest:
    """`known`: the token of the last answer to the same shards, or 0."""

    known: U64
    shards: Annotated[tuple[ShardVersionRef, ...], Seq(MAX_ASKED)]


@wire(126)
@dataclass(frozen=True, slots=True)
class ShardPresence:
    """How many tiles are held, and which: tile i is bit i % 8, from the lowest, of byte i // 8.
    None and all need no bitmap."""

    held: U32
    bitmap: Annotated[bytes, Bytes(limits.MAX_TILES_PER_SHARD // 8)]


@wire(127)
@dataclass(frozen=True, slots=True)
class PresenceAnswer:
    """In the order of the request; empty if nothing has changed since the answer `token` names."""

    token: U64
    shards: Annotated[tuple[ShardPresence, ...], Seq(MAX_ASKED)]


def describe(held: Sequence[bool]) -> ShardPresence:
    """The wire form of a shard's presence."""
    count = sum(held)
    if count in (0, len(held)):
        return ShardPresence(count, b"")
    bits = sum(1 << i for i, is_held in enumerate(held) if is_held)
    return ShardPresence(count, bits.to_bytes(-(-len(held) // 8), "little"))


def read(said: ShardPresence, tiles: int) -> int:
    """Bit i: tile i is held. Raises DecodeError if it is not the one form of any presence."""
    if said.held in (0, tiles) and not said.bitmap:
        return (1 << tiles) - 1 if said.held else 0
    bits = int.from_bytes(said.bitmap, "little")
    if (
        len(said.bitmap) != -(-tiles // 8)
        or bits >> tiles
        or bits.bit_count() != said.held
        or said.held in (0, tiles)
    ):
        raise DecodeError(f"a bitmap that is not one of {said.held} of {tiles} tiles")
    return bits


class Holdings:
    """What peers say they hold: one version a peer and shard, the last that was asked for."""

    def __init__(self) -> None:
        self._peers: dict[str, dict[int, tuple[Hash32, int]]] = {}

    def learn(self, peer: str, shard: int, root: Hash32, bits: int) -> None:
        self._peers.setdefault(peer, {})[shard] = (root, bits)

    def forget(self, peer: str) -> None:
        self._peers.pop(peer, None)

    def holds(self, peer: str, shard: int, root: Hash32, tile: int) -> bool | None:
        """None: it was not asked about this version."""
        known = self._peers.get(peer, {}).get(shard)
        if known is None or known[0] != root:
            return None
        return bool(known[1] >> tile & 1)

    def correct(self, peer: str, shard: int, root: Hash32, tile: int) -> bool:
        """It does not hold the tile after all. True if it had said so."""
        if not self.holds(peer, shard, root, tile):
            return False
        known = self._peers[peer][shard]
        self._peers[peer][shard] = (root, known[1] & ~(1 << tile))
        return True

    def holders(self, shard: int, root: Hash32, tile: int) -> list[str]:
        return [p for p in list(self._peers) if self.holds(p, shard, root, tile)]

    def at_least(self, shard: int, root: Hash32, count: int, own: int) -> int:
        """Bit i: at least `count` > 0 hold tile i, peers and (bits of) ourselves together. For any
        thread, as `holders` and `holds` are."""
        layers = [0] * count  # bit i of layer k: more than k hold it
        for bits in (own, *self._bits(shard, root)):
            for k in range(count - 1, 0, -1):
                layers[k] |= layers[k - 1] & bits
            layers[0] |= bits
        return layers[-1]

    def _bits(self, shard: int, root: Hash32) -> Iterable[int]:
        known = (versions.get(shard) for versions in list(self._peers.values()))
        return [entry[1] for entry in known if entry is not None and entry[0] == root]


Versions = Sequence[tuple[int, Hash32]]
Asked = Callable[[], tuple[Versions, Versions]]  # what matters now, and what else is of interest


class Presence:
    """Asks and answers. Belongs to one event loop; `run` until cancelled."""

    def __init__(
        self, net: Peers, store: TileStore, specs: Sequence[ShardSpec], asked: Asked
    ) -> None:
        self.holdings = Holdings()
        self.false_claims = self.refused = 0
        self._net, self._store, self._specs, self._asked = net, store, tuple(specs), asked
        self._rate = Rate(ASK_RATE, ASK_BURST)
        # Per peer, the name of each request made, and the token of its answer.
        self._tokens: dict[str, OrderedDict[Hash32, int]] = {}
        self._turns: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._charged: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._random = random.Random()  # jitter only
        net.serve(PROTOCOL, self._answer, most=MAX_REQUEST_BYTES, concurrent=4)

    # --- asking ---------------------------------------------------------------------

    async def run(self) -> None:
        """Ask each connected peer at once, and again every few seconds."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            connected = self._connected()
            for peer in [p for p in self._due if p not in connected]:
                self.forget(peer)
            now = loop.time()
            due = [p for p in connected if self._due.get(p, 0.0) <= now]
            await self.ask_all(due)
            wait = min((self._due[p] for p in self._due), default=now + INTERVAL_S) - loop.time()
            try:
                async with asyncio.timeout(max(0.05, wait)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def wake(self) -> None:
        """A peer has come, or what matters here has changed."""
        self._wake.set()

    def forget(self, peer: str) -> None:
        self._due.pop(peer, None)
        self._tokens.pop(peer, None)
        self._turns.pop(peer, None)
        self._charged.pop(peer, None)
        self.holdings.forget(peer)

    async def ask_all(self, peers: Iterable[str] | None = None) -> None:
        """Learn what these, or all connected ones, hold now; of slow ones what comes in time."""
        asked = self._connected() if peers is None else peers
        tasks = [asyncio.ensure_future(self.ask(peer)) for peer in asked]
        if not tasks:
            return
        try:
            done, _ = await asyncio.wait(tasks, timeout=PATIENCE_S)
        finally:
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()

    async def ask(self, peer: str) -> None:
        """Learn what one peer holds now: of all that matters, and of a batch of the rest in turn.
        Nothing is raised: it may have gone, or not know us."""
        spread = 0.5 + self._random.random() / 2
        self._due[peer] = asyncio.get_running_loop().time() + INTERVAL_S * spread
        urgent, others = self._asked()
        tokens = self._tokens.setdefault(peer, OrderedDict())
        turns = max(1, -(-len(others) // MAX_ASKED))
        turn = self._turns[peer] = (self._turns.get(peer, 0) + 1) % turns
        quiet = others[turn * MAX_ASKED : (turn + 1) * MAX_ASKED]
        batches = (*_batches(urgent), *_batches(quiet))
        for batch in batches:
            name = _ANSWER.hash(encode(PresenceRequest(0, batch)))
            known = tokens.get(name, 0)
            request = encode(PresenceRequest(known, batch))
            try:
                data = await self._net.request(
                    peer, PROTOCOL, request, timeout_s=TIMEOUT_S, most=MAX_ANSWER_BYTES
                )
                if peer not in self._due:
                    return  # it has gone meanwhile, and was forgotten
                token = self._learn(peer, batch, data, known)
            except UnreachableError as error:
                log.debug("%s does not tell what it holds: %s", peer, error)
                return
            except DecodeError as error:
                self._net.report(peer, f"presence: {error}", POINTS_GARBAGE)
                return
            tokens[name] = token
            tokens.move_to_end(name)
            while len(tokens) > turns + len(batches):
                tokens.popitem(last=False)

    def _learn(self, peer: str, batch: tuple[ShardVersionRef, ...], data: bytes, known: int) -> int:
        answer: PresenceAnswer = decode(PresenceAnswer, data, most=MAX_ANSWER_BYTES)
        if not answer.shards:
            if answer.token != known or not known:
                raise DecodeError("nothing new since an answer that was never given")
            return answer.token
        if len(answer.shards) != len(batch) or not answer.token:
            raise DecodeError(f"{len(answer.shards)} shards in answer to {len(batch)}")
        for ref, said in zip(batch, answer.shards, strict=True):
            bits = read(said, self._specs[ref.shard].tile_count)
            self.holdings.learn(peer, ref.shard, ref.root, bits)
        return answer.token

    def missed(self, peer: str, shard: int, root: Hash32, tile: int) -> None:
        """A peer that was asked for a tile does not hold it: points if it had said so."""
        if not self.holdings.correct(peer, shard, root, tile):
            return
        self.false_claims += 1
        now = asyncio.get_running_loop().time()
        if now - self._charged.get(peer, -FALSE_S) >= FALSE_S:
            self._charged[peer] = now
            self._net.report(peer, f"said it holds tile {tile} of shard {shard}", POINTS_FALSE)

    def _connected(self) -> list[str]:
        return [p.peer_id for p in self._net.peers() if p.connected]

    # --- answering ------------------------------------------------------------------

    async def _answer(self, peer: str, data: bytes) -> bytes:
        if not self._rate.take(peer, asyncio.get_running_loop().time()):
            self.refused += 1
            self._net.report(peer, "asks for presence all the time", POINTS_FLOOD)
            raise UnreachableError("asked too often")
        try:
            request: PresenceRequest = decode(PresenceRequest, data, most=MAX_REQUEST_BYTES)
        except DecodeError as error:
            self._net.report(peer, f"presence: {error}", POINTS_GARBAGE)
            raise
        if any(ref.shard >= len(self._specs) for ref in request.shards):
            self._net.report(peer, "asked about a shard that cannot exist", POINTS_GARBAGE)
            raise DecodeError(f"the model has the shards 0 to {len(self._specs) - 1}")
        shards = await asyncio.to_thread(self._held, request.shards)
        token = int.from_bytes(_ANSWER.hash(encode(PresenceAnswer(1, shards)))[:8], "big") | 1
        return encode(PresenceAnswer(token, () if token == request.known else shards))

    def _held(self, refs: Sequence[ShardVersionRef]) -> tuple[ShardPresence, ...]:
        found = []
        for ref in refs:
            held = self._store.presence(ref.shard, ref.root)
            found.append(describe(held) if held else ShardPresence(0, b""))
        return tuple(found)


def _batches(versions: Versions) -> list[tuple[ShardVersionRef, ...]]:
    refs = [ShardVersionRef(ShardIndex(index), root) for index, root in versions]
    return [tuple(refs[i : i + MAX_ASKED]) for i in range(0, len(refs), MAX_ASKED)]
