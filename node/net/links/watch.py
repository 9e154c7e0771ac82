"""What on a link takes too long: looked at once a second, with the time passed in. Sans-I/O."""

from __future__ import annotations

from node.net import limits as net_limits
from node.net.links import limits
from node.net.links.frames import LinkError
from node.net.links.session import Ask, Asked, Session

_SLEPT_S = 2.0  # between two looks, a second apart: it was us who slept, or were too busy to read


class Watch:
    def __init__(self, session: Session, now: float) -> None:
        self._session = session
        self._last = self._heard_at = now
        self._heard = 0  # bytes received in all, at the last look

    def look(self, now: float, heard: int) -> None:
        """`heard`: bytes received in all. Raises LinkError if the link is to be closed."""
        session = self._session
        slept, self._last = now - self._last > _SLEPT_S, now
        session.small_frames = 0
        if heard != self._heard or slept:
            self._heard, self._heard_at = heard, now
        elif now - self._heard_at > limits.SILENCE_S:
            raise LinkError(f"silent for {limits.SILENCE_S:g} s", 0)
        for ask in list(session.asks.values()):
            self._look_at_answer(ask, now, slept=slept)
        for asked in list(session.requests.values()):
            self._look_at_request(asked, now, slept=slept)

    def _look_at_answer(self, ask: Ask, now: float, *, slept: bool) -> None:
        """It must come at the least rate, unless the link was busy with other things."""
        if ask.answer is None and not ask.is_over:
            return  # being worked on: the caller's own timeout ends that
        content = self._session.content_bytes
        if ask.mark is None or slept:
            ask.mark = (now, ask.received, content)
            return
        since, received, content_then = ask.mark
        if now - since < (limits.STALL_S if ask.is_over else limits.RATE_WINDOW_S):
            return
        if content - content_then < limits.MIN_RATE_BYTES * limits.RATE_WINDOW_S:
            raise LinkError(
                f"{ask.received - received} bytes of an answer to {ask.protocol} in "
                f"{now - since:.0f} s: too slow",
                limits.POINTS_SLOW,
            )
        ask.mark = (now, ask.received, content)

    def _look_at_request(self, asked: Asked, now: float, *, slept: bool) -> None:
        session = self._session
        if asked.opened_at is None or slept:
            asked.opened_at = now
            asked.stalled_at = asked.answered_at = None
        if not asked.is_whole and now - asked.opened_at > net_limits.READ_TIMEOUT_S:
            raise LinkError("a request that does not arrive", limits.POINTS_SLOW)
        left, waits = session.outbox.left(asked.stream)
        if not left:
            asked.stalled_at = asked.answered_at = None
            return
        if asked.answered_at is None:
            asked.answered_at = now
        if not waits or left != asked.stalled_left or asked.stalled_at is None:
            asked.stalled_at, asked.stalled_left = now, left
        is_late = now - asked.answered_at > net_limits.REPLY_TIMEOUT_S
        if is_late or now - asked.stalled_at > limits.STALL_S:
            session.give_up(asked)
