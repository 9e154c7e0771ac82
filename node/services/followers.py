"""Telling those who do not vote what has become final: by gossip (docs/spec/consensus.md)."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from chain.codec import encode
from chain.errors import BlyanError
from chain.types import Block, Certificate, CertifiedBlock

log = logging.getLogger("blyan.consensus")
BLOCK_TOPIC, CERTIFICATE_TOPIC = "blyan/block/1", "blyan/certificate/1"
GOSSIPED_BYTES = 32 * 1024  # of a block: gossip brings each node a message several times


class PublishNet(Protocol):
    """What this needs of the network port."""

    async def publish(self, topic: str, data: bytes) -> None: ...


class Followers:
    def __init__(self, net: PublishNet) -> None:
        self._net = net
        self._publishing: set[asyncio.Task[None]] = set()

    def tell_block(self, block: Block, certificate: Certificate) -> None:
        """Said by the proposer. Of a large block only that it is final: who lacks it asks for it,
        over a link."""
        whole = encode(CertifiedBlock(block, certificate))
        if len(whole) <= GOSSIPED_BYTES:
            self._publish(BLOCK_TOPIC, whole)
        else:
            self.tell_certificate(certificate)

    def tell_certificate(self, certificate: Certificate) -> None:
        """Said once more by the next leader: the proposer may be gone."""
        self._publish(CERTIFICATE_TOPIC, encode(certificate))

    def _publish(self, topic: str, data: bytes) -> None:
        async def publish() -> None:
            try:
                await self._net.publish(topic, data)
            except BlyanError as error:
                log.debug("not gossiped, followers will sync: %s", error)

        task = asyncio.get_running_loop().create_task(publish())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)
