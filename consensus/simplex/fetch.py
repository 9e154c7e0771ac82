"""Asking peers for what is missing, and a limit on what they may ask of us."""

from __future__ import annotations

from collections.abc import Iterable

from chain.hashes import Hash32
from chain.types import Epoch, View
from consensus.simplex.messages import BlockRequest, CertificateRequest, Effect, Send

MAX_PEERS = 32  # peers remembered as sources, the latest heard last
MAX_WANTED = 128  # blocks asked for at once; more than Sync ever leaves to fetching
MAX_SERVED = 64  # answers to one peer between two retransmissions
MAX_VIEWS = 64  # views named by one request for certificates


class Fetcher:
    """Every want is asked of its source at once, and of one peer after another each Δ until it is
    here or no longer wanted. Deterministic: peers take turns in the order they were last heard."""

    def __init__(self) -> None:
        self._peers: dict[str, None] = {}
        self._wanted: dict[Hash32, int] = {}
        self._views: CertificateRequest | None = None
        self._served: dict[str, int] = {}
        self._turn = 0

    def heard(self, peer: str) -> None:
        self._peers.pop(peer, None)
        self._peers[peer] = None
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]

    def latest(self) -> str:
        """The peer heard last, or an empty name."""
        return next(reversed(self._peers), "")

    def suggest(self, peers: Iterable[str]) -> None:
        """Peers that may know, although they have not been heard: the epoch's validators."""
        for peer in peers:
            if len(self._peers) < MAX_PEERS:
                self._peers.setdefault(peer, None)

    def block(self, block_hash: Hash32, source: str | None) -> list[Effect]:
        if block_hash in self._wanted or len(self._wanted) >= MAX_WANTED:
            return []
        self._wanted[block_hash] = 0
        return self._ask(BlockRequest(block_hash), source)

    def views(self, epoch: Epoch, last: View, lowest: View, source: str | None) -> list[Effect]:
        """Ask for the certificates of the views up to `last`, none below `lowest`."""
        first = View(max(lowest, last - MAX_VIEWS + 1))
        request = CertificateRequest(epoch, first, last)
        if request == self._views:
            return []
        self._views = request
        return self._ask(request, source)

    def wants(self, block_hash: Hash32) -> bool:
        return block_hash in self._wanted

    def got(self, block_hash: Hash32) -> None:
        self._wanted.pop(block_hash, None)

    def retry(self) -> list[Effect]:
        """Once a retransmission: ask the next peer for each thing that is still missing."""
        self._served.clear()
        views, self._views = self._views, None  # asked again by whoever still needs them
        out: list[Effect] = []
        for block_hash in self._wanted:
            out += self._ask(BlockRequest(block_hash), None)
        if views is not None:
            out += self._ask(views, None)
        return out

    def may_serve(self, peer: str) -> bool:
        """Counts an answer to `peer`; False once it has asked too much since the last `retry`."""
        count = self._served.get(peer, 0)
        if count >= MAX_SERVED or (peer not in self._served and len(self._served) > 8 * MAX_PEERS):
            return False
        self._served[peer] = count + 1
        return True

    def forget(self) -> None:
        """Nothing asked for is wanted any more: its views are final."""
        self._wanted.clear()
        self._views = None

    def _ask(self, request: BlockRequest | CertificateRequest, source: str | None) -> list[Effect]:
        if source is None:
            peers = list(self._peers)
            if not peers:
                return []
            self._turn += 1
            source = peers[-1 - self._turn % len(peers)]
        return [Send(source, (request,))]
