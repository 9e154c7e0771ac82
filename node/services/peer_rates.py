"""How fast and how reliable each peer has been, for whoever chooses whom to ask.

Nothing here reads a clock: times are the caller's, in seconds of one monotonic clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_RATE = 10e6  # bytes a second expected of a peer that was never measured
WINDOW_S = 0.25  # a rate is taken over so long, counting only while something is outstanding
FIRST_S = 0.005  # enough for the first look at a peer
RETRY_S = 30.0  # what was measured longer ago means nothing: a slow peer has another chance
FRESH_S = 2.0  # a rate is compared with others' for so long after it was measured
PAUSE_FIRST_S, PAUSE_MOST_S = 0.25, 30.0  # after a failure, four times longer after each more
BAN_S = 300.0  # a proven liar is not asked for so long, as a peer over its points is refused
MAX_PEERS = 1024  # remembered; the one that was idle longest goes first


@dataclass(slots=True)
class PeerRate:
    """One peer. Rates are bytes a second; `outstanding` counts bytes asked for and not here."""

    peer: str
    rate: float | None = None
    lanes: int = 0  # transfers under way
    outstanding: int = 0
    used: float = 0.0  # when it was last asked
    measured: float = 0.0
    paused_until: float = 0.0
    banned_until: float = 0.0
    streak: int = 0  # failures since it last gave anything
    misses: int = 0  # times that it had not what was asked for, since it last had
    bytes_total: int = 0
    failures_total: int = 0
    slow_total: int = 0
    lies_total: int = 0
    _mark: float = 0.0  # up to when the time of this window is counted
    _busy_s: float = 0.0  # time of this window in which something was outstanding
    _bytes: int = 0  # that came in it

    def began(self, now: float, size: int) -> None:
        """It was asked for `size` bytes."""
        self._advance(now)
        if now - self.used > RETRY_S:
            self.misses = 0
        self.lanes += 1
        self.outstanding += size
        self.used = now

    def arrived(self, now: float, size: int) -> None:
        """`size` more bytes came."""
        self._advance(now)
        self._bytes += size
        self.bytes_total += size
        self.outstanding -= size
        if self._busy_s >= WINDOW_S:
            self._close_window(now)

    def ended(self, now: float, left: int) -> None:
        """One of its transfers is over, however; `left` bytes of it never came."""
        self._advance(now)
        self.lanes -= 1
        self.outstanding -= left
        least = WINDOW_S if self.rate is not None else FIRST_S
        if self._busy_s >= least:
            self._close_window(now)

    def slowed(self, now: float) -> float:
        """It was left for another: what it gives at present is all that it can give."""
        self.slow_total += 1
        self.rate = self.live(now) or 0.0
        self.measured = now
        return self.rate

    def gave(self) -> None:
        self.streak = self.misses = 0

    def missed(self) -> None:
        """It answered that it has not what was asked for."""
        self.misses += 1

    def failed(self, now: float) -> None:
        """It did not answer: others first, for a while."""
        self.failures_total += 1
        self.paused_until = now + min(PAUSE_FIRST_S * 4**self.streak, PAUSE_MOST_S)
        self.streak = min(self.streak + 1, 8)

    def lied(self, now: float) -> None:
        self.lies_total += 1
        self.banned_until = now + BAN_S

    def live(self, now: float) -> float | None:
        """As measured of late; None if it was not. While it is asked, silence counts."""
        self._advance(now)
        if not self.lanes:
            return self.rate if now - self.measured < RETRY_S else None
        if self._busy_s < WINDOW_S:
            return self.rate
        current = self._bytes / self._busy_s
        return current if self.rate is None else min(self.rate, current)

    def excuse(self, seconds: float) -> None:
        """So much of the time that passes now is not the peer's fault."""
        self._mark += seconds

    def is_fresh(self, now: float) -> bool:
        return self.rate is not None and (self.lanes > 0 or now - self.measured < FRESH_S)

    def _advance(self, now: float) -> None:
        if self.lanes:
            self._busy_s += max(0.0, now - self._mark)
        self._mark = max(self._mark, now)

    def _close_window(self, now: float) -> None:
        rate = self._bytes / self._busy_s
        self.rate = rate if self.rate is None else (self.rate + rate) / 2
        self.measured = now
        self._busy_s, self._bytes = 0.0, 0


class PeerRates:
    """All peers that were ever asked, within a bound."""

    def __init__(self) -> None:
        self._peers: dict[str, PeerRate] = {}
        self._usual, self._usual_at = DEFAULT_RATE, -1.0

    def __getitem__(self, peer: str) -> PeerRate:
        found = self._peers.get(peer)
        if found is None:
            if len(self._peers) >= MAX_PEERS:
                self._forget_one()
            found = self._peers[peer] = PeerRate(peer)
        return found

    def all(self) -> list[PeerRate]:
        return [self._peers[name] for name in sorted(self._peers)]

    def speed(self, rate: PeerRate, now: float) -> float:
        """What a peer can be expected to give: as the others where it was never measured. One
        that has fallen silent has lost its speed."""
        live = rate.live(now)
        if live is not None:
            return live
        if now != self._usual_at:  # many peers are compared at one moment
            known = [r.rate for r in self._peers.values() if r.rate is not None]
            self._usual_at = now
            self._usual = statistics.median_high(known) if known else DEFAULT_RATE
        return self._usual

    def promise(self, rate: PeerRate, now: float) -> float:
        """`speed`, weighed by how likely a peer is to have what it is asked for at all."""
        return self.speed(rate, now) / 4.0 ** min(rate.misses, 8)

    def median(self, peers: Iterable[str], now: float) -> float | None:
        """The upper median of what these peers give at present; None if none was measured."""
        rates = [r.live(now) or 0.0 for p in peers if (r := self[p]).is_fresh(now)]
        return statistics.median_high(rates) if rates else None

    def excuse(self, seconds: float) -> None:
        """This process was busy for so long: nobody's silence meant anything."""
        for rate in self._peers.values():
            rate.excuse(seconds)

    def _forget_one(self) -> None:
        idle = [r for r in self._peers.values() if not r.lanes]
        if idle:
            del self._peers[min(idle, key=lambda r: (r.banned_until, r.used)).peer]
