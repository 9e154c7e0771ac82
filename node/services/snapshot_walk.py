"""From what a node trusts to a snapshot's header, by light blocks of peers (chain/light.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chain import light
from chain.codec import decode, encode
from chain.errors import ConfigError, DecodeError, UnreachableError, VerifyError
from chain.hashes import Hash32
from chain.light import LightBlock, Trusted, Walk
from chain.limits import MAX_MESSAGE_BYTES
from chain.types import Height
from node.light.anchor import duration, terms_of
from node.services.chain import ChainService
from node.services.peers import Peers
from node.services.snapshot_wire import PROTOCOL, LightRequest

log = logging.getLogger("blyan.sync")
TIMEOUT_S = 10.0
MAX_STEPS = 4096  # light blocks of one walk: an epoch further each in the worst case
POINTS_LIE = 50.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block that the operator knows to be right."""

    height: Height
    hash: Hash32

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Of `HEIGHT:HASH`. ConfigError if it is none."""
        height, _, digest = text.partition(":")
        try:
            found = cls(Height(int(height)), Hash32(bytes.fromhex(digest)))
        except ValueError:
            found = cls(Height(-1), Hash32(b""))
        if found.height < 0 or len(found.hash) != 32:
            raise ConfigError(f"{text!r}: expected HEIGHT:HASH, the hash in 64 hexadecimal digits")
        return found


@dataclass(frozen=True, slots=True)
class Start:
    """Where a walk begins, and who says that it is right."""

    trusted: Trusted
    origin: str  # `genesis`, `own chain` or `--trust`


class Walker:
    """Walks by what peers show. `asked` is charged for what does not hold."""

    def __init__(self, chain: ChainService, net: Peers, now_ms: Callable[[], int]) -> None:
        self._chain, self._net, self._now_ms = chain, net, now_ms
        self.terms = terms_of(chain.genesis)

    async def start(self, checkpoint: Checkpoint | None, peers: Sequence[str]) -> Start:
        """The operator's checkpoint if it is above the own chain, else that chain's end."""
        tip = self._chain.tip
        if checkpoint is not None and checkpoint.height > tip.height:
            return Start(await self._named(checkpoint, peers), "--trust")
        validators = self._chain.validators_at(tip.epoch)
        if validators is None:
            raise VerifyError(f"the validators of epoch {tip.epoch} are not known here")
        return Start(Trusted(tip, validators), "own chain" if tip.height else "genesis")

    async def _named(self, checkpoint: Checkpoint, peers: Sequence[str]) -> Trusted:
        for peer in peers:
            try:
                block = await self._ask(peer, checkpoint.height)
                if block.header.hash() != checkpoint.hash:
                    raise VerifyError(f"block {checkpoint.height} has another hash than --trust")
                light.check_form(self.terms, block)
            except UnreachableError as error:
                log.debug("%s shows no block %d: %s", peer, checkpoint.height, error)
            except (VerifyError, DecodeError) as error:
                log.warning("%s: %s", peer, error)  # it may be the operator who is wrong
            else:
                return Trusted(block.header, block.validators)
        raise UnreachableError(
            f"none of {len(peers)} peers shows the block {checkpoint.height}:"
            f"{checkpoint.hash.hex()} that --trust names; is it right?"
        )

    async def walk(self, start: Start, target: Height, peers: Sequence[str]) -> Walk:
        """To `target`, by what these peers show; each is asked until it fails. VerifyError if the
        start is too old, UnreachableError if nobody is left."""
        walk, left = Walk(self.terms, start.trusted, target), list(peers)
        self._check_age(start)
        for _ in range(MAX_STEPS):
            wanted = walk.wanted
            if wanted is None:
                return walk
            if not left:
                raise UnreachableError(f"no peer shows that block {target} is final")
            try:
                block = await self._ask(left[0], wanted)
                walk.give(block, self._now_ms())
            except UnreachableError as error:
                log.debug("%s shows no block %d: %s", left[0], wanted, error)
                left.pop(0)
            except (VerifyError, DecodeError) as error:
                self._check_age(start)
                log.warning("%s shows a block %d that does not hold: %s", left[0], wanted, error)
                self._net.report(left.pop(0), f"light block: {error}", POINTS_LIE)
        raise UnreachableError(f"block {target} is more than {MAX_STEPS} steps away")

    async def confirm(self, own: Walk, start: Start, witnesses: Sequence[str]) -> int:
        """How many witnesses come to the same block by themselves. Raises light.Attack if one comes
        to another that is final too."""
        agreed = 0
        for witness in witnesses:
            try:
                other = await self.walk(start, own.trusted.header.height, [witness])
            except UnreachableError:
                continue
            light.compare(own, other)
            agreed += 1
        return agreed

    def _check_age(self, start: Start) -> None:
        header = start.trusted.header
        if self._now_ms() >= header.time_ms + self.terms.trust_ms:
            what = "--trust" if start.origin == "--trust" else f"its {start.origin}"
            raise VerifyError(
                f"the last block that this node trusts ({header.height}, of {what}) is older than "
                f"the trust period of {duration(self.terms.trust_ms)}; name a newer one that you "
                "know to be right: --trust HEIGHT:HASH"
            )

    async def _ask(self, peer: str, height: Height) -> LightBlock:
        raw = await self._net.request(
            peer,
            PROTOCOL,
            encode(LightRequest(height)),
            timeout_s=TIMEOUT_S,
            most=MAX_MESSAGE_BYTES,
        )
        found: LightBlock = decode(LightBlock, raw)
        return found
