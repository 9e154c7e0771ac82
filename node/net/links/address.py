"""Where a node's links can be dialled: what two connected peers tell each other over libp2p."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from chain import limits as protocol_limits
from chain.codec import Seq, Text, decode, encode, wire
from node.net import peers
from node.net.identity import Address
from node.net.links import limits

PROTOCOL = "/blyan/link/1"
MAX_BYTES = 4096  # of one such message: four addresses have under 1.1 KiB


@wire(203)
@dataclass(frozen=True, slots=True)
class LinkAddresses:
    """Where the sender accepts links; a wildcard host stands for 'where you see me'. None: it
    accepts none, but may dial."""

    addresses: Annotated[
        tuple[Annotated[str, Text(protocol_limits.MAX_ADDRESS)], ...], Seq(limits.ADDRESSES)
    ]


def tell(places: Iterable[Address], port: int) -> bytes:
    """`places`: where libp2p listens, as told to peers. The links' port is another."""
    texts = [str(Address(place.kind, place.host, port)) for place in places]
    return encode(LinkAddresses(tuple(texts[: limits.ADDRESSES])))


def hear(data: bytes, host: str) -> list[Address]:
    """What a peer that we see at `host` tells, as far as we would dial it. Raises DecodeError.

    The place where we see it comes first: what else a peer claims may be anybody's address.
    """
    told: LinkAddresses = decode(LinkAddresses, data, most=MAX_BYTES)
    usable = peers.seen_from(told.addresses, host)
    return sorted(set(usable), key=lambda a: (a.host != host, usable.index(a)))
