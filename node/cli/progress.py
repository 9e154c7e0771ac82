"""Progress of long commands, on stderr: lines for all, a moving bar only on a terminal."""

from __future__ import annotations

import sys
import time

import click

from node.cli.output import progress

BAR_WIDTH = 24
REFRESH_S = 0.1


class TerminalProgress:
    """Implements `node.submission.Progress`."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._started = self._drawn = 0.0
        self._open = False  # a bar stands on the current line

    def say(self, text: str) -> None:
        self._end_line()
        progress(text)

    def step(self, done: int, total: int, loss: float, tokens: int) -> None:
        """Draw the bar: share done, loss, bytes trained on a second, seconds left."""
        now = time.monotonic()
        if done <= 1 or not self._started:
            self._started = now
        if not self._terminal or (now - self._drawn < REFRESH_S and done < total):
            return
        self._drawn, self._open = now, True
        elapsed = max(now - self._started, 1e-6)
        rate = (done - 1) * tokens / elapsed
        left = (total - done) * elapsed / max(done - 1, 1)
        filled = BAR_WIDTH * done // total
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        click.echo(
            f"\r{bar} {done}/{total}  loss {loss:.3f}  {rate:,.0f} bytes/s  {left:.0f} s left ",
            err=True,
            nl=False,
        )
        if done == total:
            self._end_line()

    def _end_line(self) -> None:
        if self._open:
            self._open = False
            click.echo(err=True)
