"""Gossip over libp2p's gossipsub, `/meshsub/1.1.0` (docs/spec/network.md).

Imported in libp2p's own thread only. A message is named by its content, so that a block which
several nodes publish travels once. It is judged by the application before it is passed on:
whoever brings an invalid one is the culprit, since an honest node would not have.
"""

from __future__ import annotations

import enum
import functools
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import ValidationError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from chain.hashes import Context
from node.net import limits, streams
from node.net.bridge import Metrics
from node.net.guards import Blame, GuardedHost, _GuardedService

log = logging.getLogger("blyan.net")
MESHSUB = TProtocol("/meshsub/1.1.0")
_MESSAGE_ID = Context("gossip")


class Verdict(enum.Enum):
    ACCEPT = 1  # pass it on
    REJECT = 2  # invalid: do not pass it on, blame who brought it
    IGNORE = 3  # could not be judged: do not pass it on, blame nobody


Judge = Callable[[str, str, bytes], Awaitable[Verdict]]  # peer, topic, data; awaited in trio


def message_id(topics: Iterable[str], data: bytes) -> bytes:
    """BLAKE3 of (number of topics, each with its length, data), context `blyan/1/gossip`."""
    names = [topic.encode() for topic in topics]
    head = [len(names).to_bytes(2)]
    for name in names:
        head += [len(name).to_bytes(2), name]
    return _MESSAGE_ID.hash(*head, data)


def _id_of(message: Any) -> bytes:
    return message_id(message.topicIDs, message.data)


class GuardedGossipSub(_GuardedService, GossipSub):
    """Mesh parameters for small networks: up to 12 nodes everyone is everyone's mesh peer."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        super().__init__(
            protocols=[MESHSUB],
            degree=8,
            degree_low=6,
            degree_high=12,
            heartbeat_initial_delay=0.1,
            heartbeat_interval=1,
            prune_back_off=5,
            unsubscribe_back_off=2,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=True,
            max_messages_per_topic_per_second=limits.GOSSIP_RATE,
            eclipse_protection_enabled=False,  # wants 3 IPs; small and local networks have one
        )

    def _get_peers_to_send(
        self,
        topic_ids: Iterable[str],
        msg_forwarder: ID,
        origin: ID,
        msg_id: bytes | None = None,
    ) -> Iterable[ID]:
        """Own messages go to every subscriber (gossipsub 1.1's flood publishing), and so do all
        in a small network: a peer that is not in the mesh yet would miss them."""
        topics = list(topic_ids)
        chosen = set(super()._get_peers_to_send(topics, msg_forwarder, origin, msg_id))
        if self.pubsub is not None:
            for topic in topics:
                subscribed = self.pubsub.peer_topics.get(topic, set())
                if msg_forwarder == self.pubsub.my_id or len(subscribed) <= self.degree_high:
                    chosen |= subscribed
        return chosen - {msg_forwarder, origin}


class GuardedPubsub(_GuardedService, Pubsub):
    """Strictly signed pubsub whose messages go to `judge` instead of subscription channels."""

    def __init__(self, host: GuardedHost, judge: Judge, blame: Blame, metrics: Metrics) -> None:
        self.metrics, self._judge, self._blame = metrics, judge, blame
        self._judging: dict[bytes, bool] = {}  # by id: did its signature hold?
        self._judging_by_peer: Counter[ID] = Counter()
        self._judging_bytes: Counter[ID] = Counter()
        self._judged = trio.Event()  # wakes readers that wait for a verdict
        self._reads = 0
        self._rejected: OrderedDict[bytes, None] = OrderedDict()
        self.gossipsub = GuardedGossipSub(metrics)
        super().__init__(
            host,
            self.gossipsub,
            strict_signing=True,
            msg_id_constructor=_id_of,
        )

    async def continuously_read_stream(self, stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        try:
            buffered: Any = streams.BufferedReads(stream, functools.partial(self._gate, peer))
            await super().continuously_read_stream(buffered)
        except Exception as error:
            self.metrics.add("gossip_garbage")
            log.info("gossip stream of %s ended by %r", peer, error)
            self._blame(str(peer), "garbage on the gossip stream", limits.POINTS_GARBAGE)
            await streams.reset(stream)
            self._handle_dead_peer(peer)

    async def _gate(self, peer: ID) -> None:
        """Read no more from a peer that has enough with the application: TCP slows it down."""
        self._reads += 1
        if self._reads % 16 == 0:  # what was read becomes tasks only when we yield
            await trio.lowlevel.checkpoint()
        while (
            self._judging_by_peer[peer] >= limits.MAX_JUDGING_PER_PEER
            or self._judging_bytes[peer] >= limits.MAX_JUDGING_BYTES_PER_PEER
        ):
            await self._judged.wait()

    async def _handle_new_peer(self, peer_id: ID) -> None:
        greeted_with = set(self.topic_ids)
        await super()._handle_new_peer(peer_id)
        if peer_id not in self.peer_queues:
            return
        queue = self.peer_queues[peer_id]
        queue._queue.max_size = limits.GOSSIP_QUEUE
        # A topic subscribed to while the greeting was being written is neither in it nor
        # announced to a peer that libp2p does not list yet: the peer would never hear of it.
        for topic in sorted(set(self.topic_ids) - greeted_with):
            packet, announce = self._build_announce_rpc(topic, subscribe=True)
            self._enqueue_or_retry_announce(peer_id, queue, packet, announce)

    def renew_stream(self, peer: ID) -> None:
        """Open a new stream to a connected peer if ours was on a connection that closed.

        libp2p skips a peer that it still lists, and keeps listing one that reconnected before
        its old connection was taken down: what we published would be lost. Its own way of
        taking a peer off the list forgets what the peer has just subscribed to anew.
        """
        stream = self.peers.get(peer)
        if stream is None or not stream.muxed_conn.is_closed:
            return
        del self.peers[peer]
        if peer in self.peer_queues:
            self.peer_queues.pop(peer).close()
        self.gossipsub.remove_peer(peer)
        if self._peer_is_connected(peer):
            self._schedule_peer_stream_retry(peer)
        else:
            self._forget_all_subscriptions(peer)

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        if msg_forwarder == self.my_id:
            if self._is_msg_seen(msg):  # said again, for those who could make nothing of it before
                await self.router.publish(msg_forwarder, msg)
            else:
                await super().push_msg(msg_forwarder, msg)
            return
        try:
            await self._push_from(msg_forwarder, msg)
        except Exception as error:
            self.metrics.add("gossip_garbage")
            log.info("gossip message from %s refused: %r", msg_forwarder, error)
            self._blame(str(msg_forwarder), "malformed gossip message", limits.POINTS_GARBAGE)

    async def _push_from(self, peer: ID, msg: Any) -> None:
        if len(msg.topicIDs) != 1:
            raise ValueError(f"{len(msg.topicIDs)} topics where one belongs")
        name = _id_of(msg)
        if name in self._judging or self._is_msg_seen(msg):
            self.metrics.add("gossip_duplicates")
            return
        if (
            len(self._judging) >= limits.MAX_JUDGING
            or self._judging_bytes.total() >= limits.MAX_JUDGING_BYTES
        ):
            self.metrics.add("gossip_dropped")
            return
        self._judging[name] = False
        self._judging_by_peer[peer] += 1
        self._judging_bytes[peer] += len(msg.data)
        try:
            await super().push_msg(peer, msg)
            if not self._judging[name]:  # `validate_msg` was not reached
                raise ValueError("bad signature")
        finally:
            del self._judging[name]
            self._judged.set()
            self._judged = trio.Event()
            self._judging_by_peer[peer] -= 1
            self._judging_bytes[peer] -= len(msg.data)
            if self._judging_by_peer[peer] <= 0:
                del self._judging_by_peer[peer], self._judging_bytes[peer]

    async def validate_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """Called once the signature holds. Raises ValidationError unless it may be passed on."""
        if msg_forwarder == self.my_id:
            return
        name = _id_of(msg)
        self._judging[name] = True
        if ID(msg.from_id) == self.my_id:
            # After a restart neighbours may offer what this node said before it.
            raise ValidationError("own message come back")
        if name in self._rejected:
            verdict = Verdict.REJECT
        else:
            self.metrics.add("gossip_received")
            verdict = Verdict.IGNORE
            with trio.move_on_after(limits.JUDGE_TIMEOUT_S):
                verdict = await self._judge(str(msg_forwarder), msg.topicIDs[0], msg.data)
        if verdict is Verdict.REJECT:
            self._rejected[name] = None
            while len(self._rejected) > limits.MAX_REJECTED:
                self._rejected.popitem(last=False)
            self.metrics.add("gossip_rejected")
            self._blame(
                str(msg_forwarder),
                f"invalid message on {msg.topicIDs[0]}",
                limits.POINTS_INVALID_GOSSIP,
            )
        elif verdict is Verdict.IGNORE:
            self.metrics.add("gossip_ignored")
        if verdict is not Verdict.ACCEPT:
            raise ValidationError("not accepted")

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """The application has seen it when it judged it: nothing to deliver."""
