"""What one input makes the core say and do, in the order in which it must happen."""

from __future__ import annotations

from collections.abc import Iterable

from chain.codec import encode
from consensus.simplex.messages import Broadcast, Effect, Message, Persist, Record


class Outbox:
    """Collects while an input is processed. `flush` puts all records first, in one `Persist` (one
    sync an input), then what is broadcast, in one packet, then the rest as it came."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._messages: list[Message] = []
        self._effects: list[Effect] = []

    def record(self, record: Record) -> None:
        self._records.append(encode(record))

    def say(self, message: Message) -> None:
        if message not in self._messages:
            self._messages.append(message)

    def effect(self, effect: Effect) -> None:
        self._effects.append(effect)

    def effects(self, effects: Iterable[Effect]) -> None:
        self._effects.extend(effects)

    def flush(self) -> list[Effect]:
        out: list[Effect] = []
        if self._records:
            out.append(Persist(tuple(self._records)))
        if self._messages:
            out.append(Broadcast(tuple(self._messages)))
        out += self._effects
        self._records, self._messages, self._effects = [], [], []
        return out
