"""Everything that four validators, one of whom lies, can do in two views:
`python -m tests.sim.explore`.

Three honest nodes are real cores (`tests/sim/local.py`); the fourth key is the adversary's. A state
is that of the three cores; every order of what they are given is explored, and in every state it is
judged who signed what: nobody notarizes or proposes two things in a view, nor finalizes and
nullifies it; no view has two notarized blocks, or a nullification with a finalization; all that is
notarized from the view of a final block on descends from it. Each state of a core is also judged by
the simulator's oracle: what it has sent, in which order with its log, and what it delivered.

The liar votes for everything, to whomever it likes, so that two honest votes and the liar's are a
certificate, which each node may get early, late or never. In its view it may propose, to each node,
nothing, or any of two blocks in the first view, and in the second a block (with `--twins 2`: any of
two) on genesis and on each block of the first, once that is notarized. Timers may fire at any time.
An honest leader builds at any time after it was asked to.

Not explored: votes one by one (below a quorum a vote only counts, or is a leader's nullify, which
a timer's is, too); quorums themselves (a certificate has three signers); proofs and signatures that
do not hold; a proposal that arrives after its view was left (its block still may); a proposal that
somebody else passes on; restarts; what is sent again (nothing is lost, only late); skips, syncs and
epochs. Those are the random simulator's. A proposal that comes before its view is as good as one
that comes when it begins, and its proof as good as one that comes by itself; execution takes no
time, which is as good as a proposal that comes later. What differs by the names of honest nodes
that lead the same views is one state, and so is what differs in fields of the core that only decide
what is sent again, and when (`local.IGNORED`).

**Reduction.** What a node may be given depends on what others have signed, and that only grows. So
an input after which a node signs nothing new is seen by nobody and disables nothing elsewhere: it
can be put off until just before the next after which that node does. A move here is therefore any
quiet inputs and one after which something is signed. Of two moves that sign the same, one whose
state the other can still reach quietly is left out: it can do nothing that the other cannot. Every
combination of signatures, and every state of a single core, that can be reached is reached still;
`reduced=False` explores without it, and a test compares the two.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from chain.types import VoteKind
from consensus.simplex.rules import Rule
from tests.sim.local import GENESIS, HONEST, LIAR, SEAL, Book, Input, Role
from tests.sim.memory import remembered_verdicts
from tests.sim.oracle import Violation

BITS = 20  # of a node's state within the state of all
MASK = (1 << BITS) - 1
NOTARIZE, NULLIFY, FINALIZE = (int(kind) for kind in VoteKind)
# Who leads, but for the names of the honest nodes.
LEADERS = {
    1: ((LIAR,), (0,)),
    2: ((LIAR, LIAR), (LIAR, 0), (0, LIAR), (0, 0), (0, 1)),
}


@dataclass
class Found:
    states: int = 0
    transitions: int = 0
    alone: int = 0  # states of single cores
    inputs: int = 0  # given to cores in order to find these
    # Combinations of signatures: for each node the views it leads, and what it signed.
    said: set[tuple[tuple[tuple[int, ...], int], ...]] = field(default_factory=set)
    rules: set[Rule] = field(default_factory=set)  # branches that the cores have taken
    seen: Counter[str] = field(default_factory=Counter)  # what was certified in how many of them


class Explorer:
    def __init__(self, leaders: tuple[int, ...], twins: int = 1, *, reduced: bool = True) -> None:
        self.book = Book(leaders, twins)
        self.found = Found(rules=self.book.rules)
        self._reduced = reduced
        by_views: dict[tuple[int, ...], Role] = {}
        self._roles: list[Role] = []
        for node in HONEST:
            role = Role(self.book, node)
            self._roles.append(by_views.setdefault(role.leads, role))
        self._offers: list[tuple[Input, ...]] = []
        self._offer_of: dict[tuple[int, int], int] = {}
        self._steps: dict[tuple[int, int, int], frozenset[int]] = {}
        self._moves: dict[tuple[int, int, int], tuple[frozenset[int], frozenset[int]]] = {}

    def run(self) -> Found:
        found = self.found
        first = self._packed([role.start for role in self._roles])
        known, todo = {first}, deque([first])
        while todo:
            packed = todo.popleft()
            found.states += 1
            for after in self._successors(
                [packed & MASK, packed >> BITS & MASK, packed >> 2 * BITS]
            ):
                found.transitions += 1
                if after not in known:
                    known.add(after)
                    todo.append(after)
        roles = {id(role): role for role in self._roles}.values()
        found.alone = sum(len(role.states) for role in roles)
        found.inputs = sum(role.steps for role in roles)
        return found

    def _packed(self, nodes: list[int]) -> int:
        """One number; nodes of one role in the order of their states."""
        for i, j in ((0, 1), (1, 2), (0, 2), (0, 1)):
            if self._roles[i] is self._roles[j] and nodes[i] > nodes[j]:
                nodes[i], nodes[j] = nodes[j], nodes[i]
        return nodes[0] | nodes[1] << BITS | nodes[2] << 2 * BITS

    # --- moves --------------------------------------------------------------------

    def _successors(self, nodes: list[int]) -> Iterator[int]:
        said = [role.states[s].said for role, s in zip(self._roles, nodes, strict=True)]
        self._judge(nodes, said)
        offer = self._offer(*said)
        for i, role in enumerate(self._roles):
            others = said[:i] + said[i + 1 :]
            _, moves = self._alone(role, nodes[i], offer)
            for moved in self._least(role, moves, others):
                yield self._packed([*nodes[:i], moved, *nodes[i + 1 :]])

    def _least(self, role: Role, moves: frozenset[int], others: list[int]) -> set[int]:
        """Without those that another of them can still become quietly."""
        left = set(moves)
        if self._reduced and len(left) > 1:
            for state in sorted(moves):
                if state in left:
                    offer = self._offer(role.states[state].said, *others)
                    left -= self._alone(role, state, offer)[0] - {state}
        return left

    def _alone(self, role: Role, state: int, offer: int) -> tuple[frozenset[int], frozenset[int]]:
        """What a node can become quietly, itself included; and then by one input after which it
        has signed something (without the reduction: by any one input)."""
        key = (id(role), state, offer)
        if key not in self._moves:
            said = role.states[state].said
            quiet, loud, todo = {state}, set(), [state]
            while todo:
                for after in self._next(role, todo.pop(), offer):
                    if role.states[after].said != said or not self._reduced:
                        loud.add(after)
                    elif after not in quiet:
                        quiet.add(after)
                        todo.append(after)
            self._moves[key] = frozenset(quiet), frozenset(loud)
        return self._moves[key]

    def _next(self, role: Role, state: int, offer: int) -> frozenset[int]:
        """The other states after one input."""
        key = (id(role), state, offer)
        if key not in self._steps:
            local = role.states[state]
            given: list[Input] = []
            if local.view <= self.book.views:
                given.append(("timeout", 0, local.view, ""))
            if local.builds:
                given.append(("built", 0, local.view, local.builds))
            for offered in self._offers[offer]:
                what, _, view, block = offered
                if what == "proposal" and (view != local.view or view in role.leads):
                    continue
                if what != "block" or block in local.wants:
                    given.append(offered)
            self._steps[key] = frozenset(role.after(state, x) for x in given) - {state}
        return self._steps[key]

    def _offer(self, a: int, b: int, c: int) -> int:
        """What may be given to a node when the three have signed so much; a number for it."""
        anyone, two = a | b | c, a & b | a & c | b & c
        key = (anyone, two)
        if key not in self._offer_of:
            offers = tuple(self._given(anyone, two))
            if offers not in self._offers:
                self._offers.append(offers)
            self._offer_of[key] = self._offers.index(offers)
        return self._offer_of[key]

    def _given(self, anyone: int, two: int) -> Iterator[Input]:
        book = self.book
        for said, bit in book.bit.items():
            kind, view, block = said
            if kind != SEAL:
                if two & bit:
                    yield ("certificate", *said)
                continue
            parent = book.parents[block]
            proof = (NOTARIZE, book.views_of[parent], parent)
            if parent != GENESIS and not two & book.bit[proof]:
                continue
            if anyone & bit or book.leaders[view - 1] == LIAR:
                yield ("proposal", *said)
                yield ("block", *said)

    # --- judgement ----------------------------------------------------------------

    def _judge(self, nodes: list[int], said: list[int]) -> None:
        key = tuple(
            sorted((role.leads, mine) for role, mine in zip(self._roles, said, strict=True))
        )
        if key in self.found.said:
            return
        self.found.said.add(key)
        book = self.book
        a, b, c = said
        certified = [x for x, bit in book.bit.items() if (a & b | a & c | b & c) & bit and x[0]]
        wrong = [w for mine in said for w in self._alone_wrong(mine)]
        wrong += self._together_wrong(certified)
        if wrong:
            paths = [role.states[s].path for role, s in zip(self._roles, nodes, strict=True)]
            raise Violation(f"{'; '.join(wrong)}; after {paths}")
        final = sorted({view for kind, view, _ in certified if kind == FINALIZE})
        nullified = sorted({view for kind, view, _ in certified if kind == NULLIFY})
        self.found.seen[f"final {final}, nullified {nullified}"] += 1

    def _alone_wrong(self, mine: int) -> Iterator[str]:
        signed = [x for x, bit in self.book.bit.items() if mine & bit]
        times = Counter((kind, view) for kind, view, _ in signed)
        for (kind, view), count in times.items():
            if count > 1:
                yield f"an honest node signed kind {kind} twice in view {view}"
            if kind == FINALIZE and (NULLIFY, view) in times:
                yield f"an honest node finalized and nullified view {view}"

    def _together_wrong(self, certified: list[tuple[int, int, str]]) -> Iterator[str]:
        notarized = Counter(view for kind, view, _ in certified if kind == NOTARIZE)
        yield from (f"two blocks notarized in view {v}" for v, n in notarized.items() if n > 1)
        for kind, final_view, final in certified:
            if kind != FINALIZE:
                continue
            for other, view, block in certified:
                if other == NULLIFY and view == final_view:
                    yield f"view {view} is nullified and final"
                if other != NULLIFY and view >= final_view and not self.book.follows(block, final):
                    yield f"fork: {block} of view {view} beside final {final}"


def explore(leaders: tuple[int, ...], twins: int = 1, *, reduced: bool = True) -> Found:
    with remembered_verdicts():
        return Explorer(leaders, twins, reduced=reduced).run()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.explore")
    parser.add_argument("--views", type=int, choices=LEADERS, default=2)
    parser.add_argument("--twins", type=int, choices=(1, 2), default=1, help="see the docstring")
    parser.add_argument("--leaders", help="only these, as 3,0 (3 is the liar)")
    args = parser.parse_args(arguments)
    cases: Sequence[tuple[int, ...]] = LEADERS[args.views]
    if args.leaders:
        cases = [tuple(int(x) for x in args.leaders.split(","))]
    failed = 0
    print("leaders   states  transitions  signed  cores' states  inputs   CPU s")
    for leaders in cases:
        begun = time.process_time()
        shown = ",".join(str(x) for x in leaders)
        try:
            found = explore(leaders, args.twins)
        except Violation as error:
            failed += 1
            line = f"python -m tests.sim.explore --leaders {shown} --twins {args.twins}"
            print(f"FAILED {line}  # {error}", flush=True)
            continue
        print(
            f"{shown:7} {found.states:8,d} {found.transitions:12,d} {len(found.said):7,d}"
            f" {found.alone:14,d} {found.inputs:7,d} {time.process_time() - begun:7.1f}",
            flush=True,
        )
        for what, count in sorted(found.seen.items()):
            print(f"    {count:7,d} of these signed combinations: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
