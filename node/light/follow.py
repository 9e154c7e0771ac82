"""From an anchor to a verified header at any height, and what witnesses say of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chain import limits
from chain.errors import BlyanError, InputError, UnreachableError, VerifyError
from chain.light import Attack, LightBlock, Trusted, Walk, compare
from chain.light_proofs import check_ancestors
from chain.types import Header, Height
from node.light.anchor import GENESIS, Anchor, check_age, check_genesis_state, duration
from node.light.source import LightSource, printable

MAX_BACK = 20_000  # headers followed back by their hashes: 10 MB and a second
STALE_MS = 60_000  # a newest block that is older is told of

Now = Callable[[], int]


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Found:
    """What was checked on the way, in order, in words."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    witnesses: list[dict[str, object]] = field(default_factory=list)
    steps: int = 0


class Follower:
    """Follows one node's chain from an anchor. Every header it gives is verified."""

    def __init__(self, source: LightSource, anchor: Anchor, now: Now) -> None:
        self.source, self.anchor, self.now = source, anchor, now
        self.found = Found(list(anchor.grounds))
        self._highest = anchor.header  # that was verified
        self._walk: Walk | None = None
        self._trusted: Trusted | None = None

    @property
    def checkpoint(self) -> str:
        """The newest header that was verified, to start from next time."""
        return f"{self._highest.height}:{self._highest.hash().hex()}"

    async def header(self, height: int) -> Header:
        """The header of a height: forward by certificates, back by parents' hashes."""
        if height == self._highest.height:
            if height == 0 and self.anchor.name == GENESIS:
                check_genesis_state(self.anchor)
            return self._highest
        return await (self._up(height) if height > self._highest.height else self._back(height))

    async def _up(self, height: int) -> Header:
        old = self.anchor.header
        walk = await self._reach(self.source, height, self._told)
        self._walk, self._highest = walk, walk.trusted.header
        age = self.now() - old.time_ms
        self.found.checked.append(
            f"that is {walk.steps} step(s) from block {old.height}, which is {duration(age)} old; "
            f"this network trusts a header for {duration(self.anchor.terms.trust_ms)}"
        )
        return walk.trusted.header

    async def _reach(
        self, source: LightSource, height: int, told: Callable[[LightBlock], None]
    ) -> Walk:
        check_age(self.anchor, self.now())
        if self._trusted is None:
            self._trusted = await self.anchor.trusted(self.source)
        walk = Walk(self.anchor.terms, self._trusted, Height(height))
        while walk.wanted is not None:
            block = await source.light_block(walk.wanted)
            before = walk.steps
            try:
                walk.give(block, self.now())
            except VerifyError as error:
                raise VerifyError(f"{source.url}: {error}") from None
            if walk.steps > before:
                told(block)
        return walk

    def _told(self, block: LightBlock) -> None:
        self.found.steps += 1
        self.found.checked.append(finality(block))

    async def _back(self, height: int) -> Header:
        """Each header is named by the hash in the next: no signature and no age matters."""
        count = self._highest.height - height
        if count > MAX_BACK:
            raise InputError(
                f"block {height} is {count} below block {self._highest.height}; at most "
                f"{MAX_BACK} headers are followed back. Trust a block that is nearer"
            )
        child = self._highest
        while child.height > height:
            last = child.height - 1
            first = max(height, last + 1 - limits.MAX_HEADERS)
            headers = await self.source.headers(first, last)
            check_ancestors(headers, child)
            child = headers[0]
        self.found.checked.append(
            f"block {height} is an ancestor of block {self._highest.height}: {count} header(s), "
            "each named by its hash in the next"
        )
        return child

    # --- witnesses ------------------------------------------------------------------------

    async def ask_witnesses(self, witnesses: Sequence[LightSource]) -> None:
        """What others show at the height that was reached. Attack if one of them verifies and
        differs; UnreachableError if none says the same."""
        if not witnesses:
            self.found.unchecked.append("that no second history exists: no --witness was named")
            return
        block = self._walk.block if self._walk else None
        if self._walk is None or block is None:
            self.found.unchecked.append(
                f"witnesses were not asked: block {self._highest.height} follows from the trusted "
                "one by hashes alone"
            )
            return
        for witness in witnesses:
            row: dict[str, object] = {"url": witness.url, "agrees": False, "reason": None}
            try:
                row["agrees"] = await self._agrees(witness, block)
            except Attack:
                raise
            except BlyanError as error:
                row["reason"] = printable(error)
            self.found.witnesses.append(row)
            said = (
                f"shows the same block {block.header.height}"
                if row["agrees"]
                else f"does not count: {row['reason']}"
            )
            self.found.checked.append(f"witness {witness.url} {said}")
        if not any(row["agrees"] for row in self.found.witnesses):
            reasons = "; ".join(str(row["reason"]) for row in self.found.witnesses)
            raise UnreachableError(f"no witness confirms block {block.header.height}: {reasons}")

    async def _agrees(self, witness: LightSource, own: LightBlock) -> bool:
        other = await witness.light_block(own.header.height)
        if other.headers and other.headers[0] == own.header:
            return True
        walk = await self._reach(witness, own.header.height, lambda block: None)
        if self._walk is not None:
            await self._part(witness, self._walk, walk)
        return False  # not reached: two verified headers of one height agree or are an attack

    async def _part(self, witness: LightSource, own: Walk, other: Walk) -> None:
        """Raise the Attack of the lowest height at which two verified histories differ, where it
        is most likely that both were certified in one view."""
        low, high = int(self.anchor.header.height), int(own.trusted.header.height)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                ours = await self._reach(self.source, middle, lambda block: None)
                theirs = await self._reach(witness, middle, lambda block: None)
            except BlyanError:
                break  # whoever lies says no more; what was shown is enough
            if ours.trusted.header == theirs.trusted.header:
                low = middle
            else:
                high, own, other = middle, ours, theirs
        compare(own, other)


def finality(block: LightBlock) -> str:
    """`block 120 is final by 3 of 4 validators (75.0 % of stake) of epoch 0, view 131`."""
    members, certificate = block.validators.members, block.finalization
    signers = certificate.indices()
    permille = 1000 * sum(members[i].stake for i in signers) // block.validators.total
    by = ""
    if len(block.headers) > 1:
        by = f", by the certificate of its descendant, block {block.headers[-1].height}"
    return (
        f"block {block.header.height} is final by {len(signers)} of {len(members)} validators "
        f"({permille // 10}.{permille % 10} % of stake) of epoch {certificate.epoch}{by}"
    )
