"""What goes wrong before the network is good (GST), drawn by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chain.codec import decode
from chain.types import Certificate, Proposal, Vote, VoteKind
from consensus.simplex.messages import Message, Record
from tests.sim.byzantine import Equivocator
from tests.sim.node import SimNode
from tests.sim.world import Weather, World

MOST_POINTS = 24  # a crash comes within so many crash points of the disk


@dataclass(frozen=True)
class Fury:
    """How many of each, in one storm. `None` in a plan draws them."""

    partitions: int = 0
    crashes: int = 0
    pauses: int = 0
    clock_jumps: int = 0
    full_disks: int = 0
    rots: int = 0  # misdirected writes and failing syncs, of those nodes that may suffer them
    lost_logs: int = 0  # likewise
    ambushes: int = 0  # crashes around a vote, and at once a return
    silences: int = 0  # times in which an adversary lets some kind of message not through

    @classmethod
    def drawn(cls, dice: random.Random) -> Fury:
        return cls(
            partitions=dice.randint(0, 3),
            crashes=dice.randint(0, 8),
            pauses=dice.randint(0, 3),
            clock_jumps=dice.randint(0, 2),
            full_disks=dice.randint(0, 2),
            rots=dice.randint(0, 4),
            lost_logs=dice.randint(0, 1),
            ambushes=dice.randint(0, 3),
            silences=dice.randint(0, 2),
        )


class Storm:
    """`frail` nodes may suffer what takes a node's vote for an epoch, or for good: their disks
    forget what was synced. Together with the liars they are below a third."""

    def __init__(
        self,
        world: World,
        dice: random.Random,
        frail: Sequence[SimNode],
        length_ms: int,
        fury: Fury,
    ) -> None:
        self._world, self._dice, self._frail, self._length_ms = world, dice, frail, length_ms
        world.weather = Weather(
            least_ms=1,
            most_ms=dice.choice((30, 200, 600)),
            loss=dice.choice((0.0, 0.05, 0.3)),
            duplicates=dice.choice((0.0, 0.1)),
        )
        for count, blow in (
            (fury.partitions, self._partition),
            (fury.crashes, self._light_a_fuse),
            (fury.pauses, self._pause),
            (fury.clock_jumps, self._jump),
            (fury.full_disks, self._fill),
            (fury.silences, self._silence),
            (fury.ambushes, self._ambush),
        ):
            self._schedule(count, blow)
        for count, blow in ((fury.rots, self._rot), (fury.lost_logs, self._lose_log)):
            self._schedule(count if frail else 0, blow)

    def _schedule(self, count: int, blow: Callable[[], None]) -> None:
        for _ in range(count):
            self._world.after(self._dice.randint(0, self._length_ms), blow)

    def _any(self) -> SimNode:
        found: SimNode = self._dice.choice(self._world.nodes)
        return found

    def _partition(self) -> None:
        nodes = list(range(len(self._world.nodes)))
        self._dice.shuffle(nodes)
        cut = self._dice.randint(1, max(1, len(nodes) - 1))
        self._world.weather.groups = (frozenset(nodes[:cut]), frozenset(nodes[cut:]))
        self._world.counts["partitions"] += 1
        self._world.after(self._dice.randint(100, 4000), self._heal)

    def _heal(self) -> None:
        self._world.weather.groups = ()

    def _light_a_fuse(self) -> None:
        """A crash at a numbered point of one node's disk or between two of its effects, and its
        return; sometimes a second crash while it recovers."""
        node = self._any()
        if node.core is None:
            return
        if self._dice.random() < 0.3:
            node.fuse = self._dice.randint(0, 12)
        else:
            node.disk.fuse = self._dice.randrange(MOST_POINTS)
        wait_ms = self._dice.choice((20, 20, 300, self._dice.randint(300, 3000), self._length_ms))
        self._world.after(wait_ms, lambda: self._restart(node, again=self._dice.random() < 0.3))

    def _ambush(self) -> None:
        """A crash around the moment in which a notarize vote reaches the disk, and a return while
        its view is still open; if somebody equivocates, a vote for what it proposed."""
        node = self._any()
        nodes = self._world.nodes
        twisters = {n.signer.public for n in nodes if isinstance(n, Equivocator)}

        def is_due(records: tuple[bytes, ...]) -> bool:
            for record in (decode(Record, data) for data in records):
                if isinstance(record, Vote) and record.kind == VoteKind.NOTARIZE:
                    leader = None if node.core is None else node.core.leader(record.view)
                    return leader in twisters or not twisters
            return False

        node.ambush, node.ambush_at = is_due, self._dice.randint(2, 5)
        node.back_after_ms = self._dice.randint(1, 40)

    def _restart(self, node: SimNode, *, again: bool = False) -> None:
        node.fuse = node.disk.fuse = None
        if node.core is not None:
            return
        if again:
            node.disk.fuse = self._dice.randrange(12)
            self._world.after(500, lambda: self._restart(node))
        node.start()

    def _pause(self) -> None:
        self._any().freeze(self._dice.choice((50, 500, 3000)))

    def _jump(self) -> None:
        self._any().wall_offset_ms += self._dice.choice((-1, 1)) * self._dice.randint(500, 60_000)
        self._world.counts["clock jumps"] += 1

    def _silence(self) -> None:
        kind = self._dice.choice((VoteKind.FINALIZE, VoteKind.FINALIZE, VoteKind.NOTARIZE, None))
        hold_back(self._world, kind, self._dice.randint(1000, 8000))

    def _fill(self) -> None:
        self._any().disk.refusals = 1

    def _rot(self) -> None:
        """The next write goes astray, or is torn, or its sync fails; then, soon, the power does."""
        node = self._dice.choice(self._frail)
        if node.core is None:
            return
        match self._dice.randrange(4):
            case 0:
                node.disk.failing_syncs = 1
            case 1:
                node.disk.fuse, node.loses_power = self._dice.randint(2, 6), True
            case _:
                node.disk.strays = self._dice.choice((1, 1, 2))

        def fail() -> None:
            if node.core is not None:
                node.crash(power=True)
            self._world.after(300, lambda: self._restart(node))

        self._world.after(self._dice.randint(1, 1500), fail)

    def _lose_log(self) -> None:
        node = self._dice.choice(self._frail)
        if node.core is not None:
            node.lose_log()


def hold_back(world: World, kind: VoteKind | None, for_ms: int) -> None:
    """An asynchronous network may choose what it delays: here, for a time, the votes and
    certificates of one kind, or (None) all proposals."""

    def is_free(message: Message) -> bool:
        if kind is None:
            return not isinstance(message, Proposal)
        return not isinstance(message, Vote | Certificate) or message.kind != kind

    def censor(source: int, target: int, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        free = tuple(x for x in messages if is_free(x))
        world.counts["held back by the adversary"] += len(messages) - len(free)
        return messages if len(free) == len(messages) else free

    def end() -> None:
        world.censor = None

    world.censor = censor
    world.after(for_ms, end)
