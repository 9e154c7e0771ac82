"""One event heap, one seed: the network between nodes, faults, and the clock."""

from __future__ import annotations

import functools
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from chain.codec import decode, encode
from consensus.simplex.messages import Envelope, Message


@dataclass
class Weather:
    """How bad the network is. Times in ms."""

    least_ms: int = 1
    most_ms: int = 30
    loss: float = 0.0
    duplicates: float = 0.0
    groups: tuple[frozenset[int], ...] = ()  # who hears whom, while partitioned

    def parts(self, a: int, b: int) -> bool:
        return bool(self.groups) and not any(a in g and b in g for g in self.groups)


@dataclass
class World:
    seed: int
    weather: Weather = field(default_factory=Weather)
    now: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = random.Random(f"world {self.seed}")
        self.nodes: list[Any] = []  # SimNode, in the order of their indices
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._inboxes: dict[int, Callable[[int, Envelope], None]] = {}
        self._trace = blake3()
        self._decoded = functools.lru_cache(4096)(functools.partial(decode, Envelope))
        self._encoded: tuple[object, bytes] = ((), b"")
        self.travelled_ms = 0  # how long the packet was under way that arrives now
        self._latest: dict[tuple[int, int], int] = {}
        self.said_twice: dict[tuple[int, int, int, int], bytes] = {}  # by two copies of a key
        self.censor: Callable[[int, int, tuple[Message, ...]], tuple[Message, ...]] | None = None

    @property
    def trace(self) -> str:
        """A digest of every delivery: the same seed gives the same one."""
        return self._trace.hexdigest()

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._sequence, action))

    def listen(self, node: int, inbox: Callable[[int, Envelope], None]) -> None:
        self._inboxes[node] = inbox

    def send(self, source: int, target: int, messages: tuple[Message, ...]) -> None:
        """One packet; it may be lost, doubled, late or out of order."""
        self.counts["packets"] += 1
        weather = self.weather
        if self.censor is not None:
            messages = self.censor(source, target, messages)
            if not messages:
                return
        if weather.parts(source, target):
            self.counts["cut off"] += 1
            return
        if self.dice.random() < weather.loss:
            self.counts["lost"] += 1
            return
        if self._encoded[0] is not messages:  # a broadcast is encoded once
            self._encoded = (messages, encode(Envelope(messages)))
        data = self._encoded[1]
        copies = 1
        if self.dice.random() < weather.duplicates:
            self.counts["doubled"] += 1
            copies = 2
        for _ in range(copies):
            delay_ms = self.dice.randint(weather.least_ms, weather.most_ms)
            latest = self._latest.get((source, target), 0)
            self.counts["reordered"] += self.now + delay_ms < latest
            self._latest[source, target] = max(latest, self.now + delay_ms)
            self.after(delay_ms, functools.partial(self._arrive, source, target, data, self.now))

    def _arrive(self, source: int, target: int, data: bytes, sent: int) -> None:
        if self.weather.parts(source, target):
            return
        self._trace.update(b"%d %d %d " % (self.now, source, target) + data[-16:])
        self.travelled_ms = self.now - sent
        self._inboxes[target](source, self._decoded(data))

    def run(self, until: Callable[[], bool], limit_ms: int) -> bool:
        """Events in order until `until()` holds, or the clock passes `limit_ms`: then False."""
        while self._heap and not until():
            when, _, action = self._heap[0]
            if when > limit_ms:
                break
            heapq.heappop(self._heap)
            self.now = when
            action()
        self.now = max(self.now, limit_ms) if not until() else self.now
        return until()
