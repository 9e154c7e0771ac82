"""One honest node of the exhaustive exploration: the real core, its inputs an alphabet, its states
told apart by what can still matter. `tests/sim/explore.py` puts three of them together.

The core is sans-I/O: a state is reached again by giving a new core the same inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from chain.certificates import assemble
from chain.codec import encode
from chain.hashes import ZERO_HASH, Hash32
from chain.types import (
    Block,
    Certificate,
    Epoch,
    Header,
    Proposal,
    ProposalSeal,
    TimeMs,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex import messages as m
from consensus.simplex.core import Simplex
from consensus.simplex.rules import Rule
from tests.sim.ledger import CHAIN_ID, Law, body_matches, name
from tests.sim.oracle import Oracle, Violation

EPOCH = Epoch(0)
LIAR = 3
HONEST = range(LIAR)
GENESIS = "G"
SEAL = 0  # beside the kinds of votes

Said = tuple[int, int, str]  # kind, view, block: what somebody has signed
Input = tuple[str, int, int, str]  # what, kind, view, block


class Book:
    """Every block, vote, certificate and proposal that there can be, each once, by its name."""

    def __init__(self, leaders: tuple[int, ...], twins: int) -> None:
        self.views = len(leaders)
        self.vote = functools.cache(self._vote)
        self.certificate = functools.cache(self._certificate)
        self.proposal = functools.cache(self._proposal)
        # Nobody honest leads the view after the last, so that nothing is built there.
        self.law = Law(0, LIAR + 1, 1000, equal=True, leaders=(*leaders, LIAR))
        self.leaders = leaders
        genesis = self.law.genesis()
        self.blocks: dict[str, Block] = {GENESIS: genesis}
        self.views_of: dict[str, int] = {GENESIS: 0}
        self.parents: dict[str, str] = {}
        for view, leader in enumerate(leaders, 1):
            lies = leader == LIAR
            # In the second view children of different parents are twins already.
            variants = 1 if not lies else 2 if view == 1 else twins
            for parent in [b for b, v in self.views_of.items() if v < view]:
                for twin in range(variants):
                    self._draw(f"{parent.removeprefix(GENESIS)}{view}{'ab'[twin]}", parent, view)
        self.names: dict[bytes, str] = {b.hash(): n for n, b in self.blocks.items()}
        self.names[ZERO_HASH] = ""
        kinds = (SEAL, VoteKind.NOTARIZE, VoteKind.FINALIZE)
        self.said: list[Said] = [
            (int(kind), view, block)
            for block, view in self.views_of.items()
            if view > 0
            for kind in kinds
        ]
        self.said += [(int(VoteKind.NULLIFY), view, "") for view in range(1, self.views + 1)]
        self.rules: set[Rule] = set()  # that a core has taken
        self.bit = {said: 1 << i for i, said in enumerate(self.said)}

    def _draw(self, block: str, parent: str, view: int) -> None:
        header = self.blocks[parent].header
        leader = self.law.signers[self.leaders[view - 1]].public
        self.blocks[block] = self.law.block(
            header, header.hash(), View(view), leader, (block.encode(),), TimeMs(view)
        )
        self.views_of[block] = view
        self.parents[block] = parent

    def hash(self, block: str) -> Hash32:
        return self.blocks[block].hash() if block else Hash32(ZERO_HASH)

    def follows(self, block: str, other: str) -> bool:
        """Whether `block` is `other` or descends from it."""
        while block != other and block in self.parents:
            block = self.parents[block]
        return block == other

    def _vote(self, node: int, kind: int, view: int, block: str) -> Vote:
        return self.law.signers[node].sign_vote(kind, EPOCH, View(view), self.hash(block))

    def _certificate(
        self, signers: tuple[int, ...], kind: int, view: int, block: str
    ) -> Certificate:
        votes = [self.vote(node, kind, view, block) for node in signers]
        return assemble(self.law.context(EPOCH).validators, votes)

    def _proposal(self, signers: tuple[int, ...], block: str) -> Proposal:
        view, parent = self.views_of[block], self.parents[block]
        leader = self.law.signers[self.leaders[view - 1]]
        seal = leader.sign_proposal(EPOCH, View(view), self.hash(block))
        proof = None
        if parent != GENESIS:
            kind = int(VoteKind.NOTARIZE)
            proof = self.certificate(signers, kind, self.views_of[parent], parent)
        return Proposal(seal, self.blocks[block], proof, ())


@dataclass(frozen=True, slots=True)
class Local:
    """A state of one node, and the inputs that first led there."""

    path: tuple[Input, ...]
    said: int  # bits of `Book.said`: everything it has ever signed and sent
    view: int
    wants: frozenset[str]  # blocks that it asks for
    builds: str  # the block that it was asked to build, if so


class Role:
    """The states of a node that leads certain views, found as they are asked for."""

    def __init__(self, book: Book, node: int) -> None:
        self.book, self.node = book, node
        self.leads = tuple(v for v, leader in enumerate(book.leaders, 1) if leader == node)
        # Whose votes a certificate shows does not matter, but one's own would be adopted.
        self._quorum = (*(n for n in HONEST if n != node), LIAR)
        self.states: list[Local] = []
        self._known: dict[object, int] = {}
        self._next: list[dict[Input, int]] = []
        self.steps = 0
        self.start = self._settle(self._replayed(()))

    def after(self, state: int, given: Input) -> int:
        """The state after one more input: the same one if it changes nothing that matters."""
        known = self._next[state]
        if given not in known:
            self.steps += 1
            path = (*self.states[state].path, given)
            try:
                known[given] = self._settle(self._replayed(path))
            except Violation as error:
                raise Violation(f"{error}; after {path}") from None
        return known[given]

    def _settle(self, driver: Driver) -> int:
        key = driver.key()
        if key not in self._known:
            self._known[key] = len(self.states)
            self.states.append(driver.local())
            self._next.append({})
            driver.judge()
        return self._known[key]

    def _replayed(self, path: tuple[Input, ...]) -> Driver:
        driver = Driver(self.book, self.node, path)
        for given in path:
            driver.give(given, self._quorum)
        return driver


class Driver:
    """Runs the core; blocks that it validates are valid, at once."""

    def __init__(self, book: Book, node: int, path: tuple[Input, ...]) -> None:
        self.book, self.node, self.path = book, node, path
        law = book.law
        config = m.Config(CHAIN_ID, law.is_last, body_matches, on_rule=book.rules.add)
        context = law.context(EPOCH)
        header = book.blocks[GENESIS].header
        self.core = Simplex(config, context, header, None, law.signers[node])
        self._said = 0
        self._sent: list[tuple[m.Message, bool]] = []
        self._records: set[bytes] = set()
        self._final: list[tuple[m.Deliver, int]] = []
        self._builds: m.Build | None = None
        self._perform(self.core.start())

    def give(self, given: Input, quorum: tuple[int, ...]) -> None:
        what, kind, view, block = given
        book, core = self.book, self.core
        sender = name(LIAR)
        if what == "proposal":
            leader = name(book.leaders[view - 1])
            self._perform(core.receive(leader, book.proposal(quorum, block)))
        elif what == "certificate":
            self._perform(core.receive(sender, book.certificate(quorum, kind, view, block)))
        elif what == "block":
            self._perform(core.receive(sender, m.BlockReply(book.blocks[block])))
        elif what == "timeout":
            self._perform(core.timer(m.Timer(m.TimerKind.ADVANCE, EPOCH, core.view)))
        elif what == "built" and self._builds is not None:
            build, self._builds = self._builds, None
            self._perform(core.built(build.view, build.parent_hash, book.blocks[block]))

    def _perform(self, effects: list[m.Effect]) -> None:
        executed: list[Hash32] = []
        for effect in effects:
            match effect:
                case m.Persist():
                    self._records.update(effect.records)
                case m.Broadcast():
                    self._say(effect.messages)
                case m.Validate():
                    executed.append(effect.block_hash)
                case m.Build():
                    self._builds = effect
                case m.Deliver():
                    self._final.append((effect, sum(len(e.blocks) for e, _ in self._final)))
                case m.Halt():
                    raise Violation(f"node {self.node} halted: {effect.report}")
        for block_hash in executed:
            self._perform(self.core.validated(block_hash, True))

    def _say(self, messages: tuple[m.Message, ...]) -> None:
        for message in messages:
            signed = message.seal if isinstance(message, Proposal) else message
            if isinstance(signed, Vote | ProposalSeal):
                kind = signed.kind if isinstance(signed, Vote) else SEAL
                said = (int(kind), int(signed.view), self.book.names[signed.block_hash])
                self._said |= self.book.bit[said]
                self._sent.append((message, encode(signed) in self._records))
            else:
                self._sent.append((message, True))

    @property
    def _asked(self) -> str:
        """The name of the block that it builds, once it does."""
        build = self._builds
        if build is None or self.core._building is None or build.view != self.core.view:
            return ""
        return next(
            name
            for name, parent in self.book.parents.items()
            if self.book.views_of[name] == build.view
            and self.book.hash(parent) == build.parent_hash
        )

    def local(self) -> Local:
        wants = frozenset(self.book.names[h] for h in self.core._fetch._wanted)
        return Local(self.path, self._said, self.core.view, wants, self._asked)

    def _chain(self) -> tuple[str, ...]:
        return tuple(self.book.names[b.hash()] for e, _ in self._final for b in e.blocks)

    def key(self) -> object:
        """Two states with one key do and say the same from here on."""
        return self._said, self._chain(), self._asked, _canonical(self.core, self.book.names)

    def judge(self) -> None:
        """By the simulator's oracle: what this node has sent and delivered since its start."""
        oracle = Oracle(self.book.law, frozenset(HONEST))
        for effect, height in self._final:
            oracle.delivered(self.node, height, effect.blocks, effect.certificate)
        for message, on_disk in self._sent:
            oracle.left(self.node, message, on_disk)


# What cannot matter within two views, or only to what is sent again, when, and to whom.
IGNORED = {
    "Simplex": {
        *("_config", "_did", "_out", "_context", "_signer"),
        *("_pace", "_attendance", "_timers", "_beats"),  # no clock here; silence takes 16 views
        *("_entered_by", "_sync_asked", "_ahead", "_early"),
    },
    "Fetcher": {"_peers", "_served", "_turn", "_views"},
    # Here votes come in certificates, so that none is ever assembled from these.
    "Ballots": {"_validators", "_total", "_stake", "_votes", "_weight", "_convicted"},
    "Chamber": {"_config", "_context", "_tree", "_ballots", "_validators_hash"},
    "SignState": {"_signer"},
}


def _canonical(value: Any, names: dict[bytes, str]) -> object:
    """`value` as something hashable: blocks by name, signatures left out, all else of an object
    that `IGNORED` does not name. The order of a mapping is that of its keys."""
    if isinstance(value, bytes):
        return names.get(value, value)
    if value is None or isinstance(value, int | str | Enum):
        return value
    if isinstance(value, Block | Header):
        return names[value.hash()]
    if isinstance(value, Vote | Certificate):
        return int(value.kind), int(value.view), names[value.block_hash]
    if isinstance(value, ProposalSeal):
        return SEAL, int(value.view), names[value.block_hash]
    if isinstance(value, dict):
        items = [(_canonical(k, names), _canonical(v, names)) for k, v in value.items()]
        return tuple(sorted(items, key=repr))
    if isinstance(value, set | frozenset):
        return tuple(sorted((_canonical(v, names) for v in value), key=repr))
    if isinstance(value, list | tuple):
        return tuple(_canonical(v, names) for v in value)
    ignored = IGNORED.get(type(value).__name__, set())
    return tuple(
        (attribute, _canonical(getattr(value, attribute), names))
        for attribute in _attributes(value)
        if attribute not in ignored
    )


def _attributes(value: Any) -> Iterator[str]:
    if is_dataclass(value):
        yield from (f.name for f in fields(value))
    else:
        yield from vars(value)
