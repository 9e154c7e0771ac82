"""Progress of long commands, on stderr: lines for all, a moving bar only on a terminal."""

from __future__ import annotations

import sys
import time

import click

from node.cli.output import progress, size

BAR_WIDTH = 24
BYTES_BAR_WIDTH = 16  # sizes, speed and time stand beside it in 80 columns
REFRESH_S = 0.1
MIN_ELAPSED_S = 1e-6


class TerminalProgress:
    """Implements `node.submission.Progress`."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._drawn = 0.0
        self._done, self._first = 0, (0, 0.0)  # the last step, and the first: number and seconds
        self._open = False  # a bar stands on the current line

    def say(self, text: str) -> None:
        self._end_line()
        progress(text)

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        """Draw the bar: share done, loss, bytes trained on a second, seconds left. Speed is that of
        the steps after the first one seen, which may be in the middle of a round."""
        now = time.monotonic()
        if done <= self._done or not self._done or seconds < self._first[1]:
            self._first = done, seconds
        self._done = done
        if not self._terminal or (now - self._drawn < REFRESH_S and done < total):
            return
        self._drawn, self._open = now, True
        seen, elapsed = done - self._first[0], max(seconds - self._first[1], MIN_ELAPSED_S)
        rate = seen * tokens / elapsed
        left = (total - done) * elapsed / max(seen, 1)
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


class CountProgress:
    """A bar over so many things. Silent unless stderr is a terminal. Close it."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit, self._terminal = what, unit, sys.stderr.isatty()
        self._drawn = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._terminal and now - self._drawn >= REFRESH_S:
            self._drawn = now
            filled = BAR_WIDTH * done // max(total, 1)
            bar = "█" * filled + "░" * (BAR_WIDTH - filled)
            line = f"{self._what} {bar} {done} of {total} {self._unit}"
            click.echo(f"\r\x1b[2K{line}", err=True, nl=False)

    def close(self) -> None:
        if self._drawn:
            click.echo("\r\x1b[2K", err=True, nl=False)


class ByteProgress:
    """A bar over bytes: share done, speed, time left. Silent unless stderr is a terminal."""

    def __init__(self, what: str) -> None:
        self._what, self._terminal = what, sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._open = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._terminal or (now - self._drawn < REFRESH_S and done < total):
            return
        self._drawn, self._open = now, True
        elapsed = max(now - self._started, MIN_ELAPSED_S)
        left = (total - done) * elapsed / max(done, 1)
        filled = BYTES_BAR_WIDTH * done // max(total, 1)
        bar = "█" * filled + "░" * (BYTES_BAR_WIDTH - filled)
        end = "syncing" if done == total else f"{_minutes(left)} left"
        line = f"{self._what} {bar} {size(done)} of {size(total)}  {size(int(done / elapsed))}/s"
        click.echo(f"\r\x1b[2K{line}  {end}", err=True, nl=False)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def close(self) -> None:
        """Take the bar away; what follows stands on a line of its own."""
        if self._open:
            self._open = False
            click.echo("\r\x1b[2K", err=True, nl=False)

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
