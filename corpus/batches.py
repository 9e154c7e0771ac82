"""Which bytes a learner trains on, and which a jury may ask about (docs/spec/training.md).

Everything follows from the round's seed: the learner chooses nothing. The train bytes are cut into
pages; a learner is assigned some of them for a round, and its windows come from these alone. Jurors
draw theirs from pages that it was not assigned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chain.errors import InputError
from chain.hashes import BATCH, Hash32
from chain.prf import WORD_BYTES, Prf, below
from chain.types import PubKey, u64_be

PAGE_BYTES = 4096
PAGES = 16  # a small text is cut into about so many
MAX_ASSIGNED_PAGES = 1024  # 4 MiB, far more than a round of local steps reads

Windows = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Slices:
    """Evaluation slices: window i is the `context + 1` train bytes from `starts[i]`.

    `windows`: uint8 [count, context + 1]. `starts` are the slice ids of a PoL vote.
    """

    starts: tuple[int, ...]
    windows: Windows


class Assignment:
    """One learner's data for one round of `steps` steps, `batch` windows of `context + 1` bytes
    each."""

    def __init__(
        self,
        train: bytes,
        seed: Hash32,
        learner: PubKey,
        round_: int,
        *,
        steps: int,
        batch: int,
        context: int,
    ) -> None:
        """Raises InputError if there is less text than one window."""
        self._train = np.frombuffer(train, np.uint8)
        self._seed, self._learner, self._round = seed, learner, round_
        self._steps, self._batch, self._window = steps, batch, context + 1
        self._size, self._count = page_grid(len(train), self._window)
        self.pages = assigned_pages(seed, learner, round_, self._count)

    def batch(self, step: int) -> Windows:
        """Windows of one step: uint8 [batch, context + 1]."""
        prf = Prf(self._seed, "batch", self._learner, self._round, step)
        return self._take(self._starts(prf, self.pages, self._batch))

    def batches(self, first: int, last: int) -> Windows:
        """Windows of steps [first, last): uint8 [steps, batch, context + 1]. Raises InputError for
        steps that the round has not."""
        self._check(last)
        if last <= first:
            return np.empty((0, self._batch, self._window), np.uint8)
        return np.stack([self.batch(step) for step in range(first, last)])

    def root(self, steps: int) -> Hash32:
        """The batch Merkle root of a manifest: over all batches of the round. Raises InputError for
        steps that the round has not."""
        self._check(steps)
        return batch_root(self.batch(step) for step in range(steps))

    def mask_key(self) -> Hash32:
        """Of this learner's masks in this round, if the rule has dropout."""
        return Hash32(Prf(self._seed, "dropout", self._learner, self._round).read(32))

    def _check(self, steps: int) -> None:
        """Refuse a number that a stranger may have chosen: each step costs time and memory."""
        if steps > self._steps:
            raise InputError(f"{steps} steps of a round that has {self._steps}")

    def jury_slices(self, jury_seed: Hash32, count: int) -> Slices:
        """`count` windows from pages that this learner was not assigned.

        Distinct ones as far as possible, in ascending order. If every page is assigned (a text of
        one page) any page will do.
        """
        held = set(self.pages)
        free = [page for page in range(self._count) if page not in held]
        prf = Prf(jury_seed, "slices", self._learner, self._round)
        starts = self._starts(prf, free or list(self.pages), count)
        ordered = tuple(sorted(set(starts)))
        return Slices(ordered, self._take(ordered))

    def _starts(self, prf: Prf, pages: Sequence[int], count: int) -> list[int]:
        words = prf.words(2 * count)
        starts = []
        for i in range(count):
            page = pages[below(words[2 * i], len(pages))]
            start = page * self._size
            last_page = page == self._count - 1
            size = len(self._train) - start if last_page else self._size
            starts.append(start + below(words[2 * i + 1], size - self._window + 1))
        return starts

    def _take(self, starts: Sequence[int]) -> Windows:
        index = np.asarray(starts, np.int64)[:, None] + np.arange(self._window)
        windows: Windows = self._train[index]
        return windows


def page_grid(size_bytes: int, window: int) -> tuple[int, int]:
    """(bytes of a page, pages) of a text; the last page takes the remainder too."""
    if size_bytes < window:
        raise InputError(
            f"{size_bytes} bytes to train on, but one window takes {window}; add more text"
        )
    size = max(min(PAGE_BYTES, size_bytes // PAGES), window)
    return size, size_bytes // size


def assigned_pages(seed: Hash32, learner: PubKey, round_: int, count: int) -> tuple[int, ...]:
    """The pages assigned to a learner, ascending: half of them, at most 1024, at least one.

    Those with the smallest words of the stream "pages", ties by index.
    """
    prf = Prf(seed, "pages", learner, round_)
    words = np.frombuffer(prf.read(count * WORD_BYTES), "<u8")
    chosen = np.argsort(words, kind="stable")[: max(1, min(count // 2, MAX_ASSIGNED_PAGES))]
    return tuple(int(page) for page in np.sort(chosen))


def batch_root(batches: Iterable[Windows]) -> Hash32:
    """Binary Merkle root over batches, position-bound, in the form of `chain.types.tx_root`."""
    level = [BATCH.hash(b"\x00", u64_be(i), b.tobytes()) for i, b in enumerate(batches)]
    count = len(level)
    while len(level) > 1:
        pairs = [BATCH.hash(b"\x01", *level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return BATCH.hash(b"\x02", u64_be(count), *level)
