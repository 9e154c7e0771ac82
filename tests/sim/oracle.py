"""What must hold whatever happens, judged from outside: it shares no predicate with the core.

Digests and certificates come from `tests.reference.consensus`.
"""

from __future__ import annotations

from collections import Counter

from chain.codec import decode
from chain.hashes import Hash32
from chain.types import Block, Certificate, Proposal, ProposalSeal, Vote
from consensus.simplex.messages import Record, SignFloor
from tests.reference import consensus as reference
from tests.sim.ledger import CHAIN_ID, Law


class Violation(AssertionError):
    """The protocol or the core is broken."""


class Oracle:
    """Watches honest nodes: what they deliver, what leaves them, what they have on disk."""

    def __init__(self, law: Law, honest: frozenset[int]) -> None:
        self._law, self._honest = law, honest
        self._chain: dict[int, bytes] = {0: law.genesis().hash()}
        self._root: dict[int, Hash32] = {0: law.genesis().header.state_root}
        self._signed: dict[int, dict[tuple[int, int], dict[str, bytes]]] = {}
        self._holds: dict[Certificate, bool] = {}
        self._times: dict[int, int] = {0: 0}
        self.seen: Counter[str] = Counter()

    @property
    def height(self) -> int:
        return len(self._chain) - 1

    def delivered(self, node: int, height: int, blocks: tuple[Block, ...], by: Certificate) -> None:
        """`node`, whose chain was `height` long, was given `blocks`, finalized by `by`."""
        if by.kind != reference.FINALIZE or by.block_hash != blocks[-1].hash():
            raise Violation(f"node {node}: delivered by a certificate that does not finalize it")
        self.certificate(by)
        for block in blocks:
            header = block.header
            height += 1
            if header.height != height or header.parent != self._chain.get(height - 1):
                raise Violation(f"node {node}: height {header.height} does not follow {height - 1}")
            is_new = height not in self._chain
            found = self._chain.setdefault(height, block.hash())
            if found != block.hash():
                raise Violation(f"fork: two blocks are final at height {height} (node {node})")
            root = self._law.root_after(before := self._root[height - 1], block)
            if header.state_root != root:
                raise Violation(f"height {height}: wrong state root after {before.hex()}")
            self._root[height] = root
            if header.time_ms <= self._times[height - 1]:
                raise Violation(f"height {height}: its time is not after its parent's")
            self._times[height] = header.time_ms
            if header.epoch != self._law.epoch_of(height):
                raise Violation(f"height {height} was agreed in epoch {header.epoch}")
            if is_new:
                self._law.committed(block)
        self.seen["delivered"] += len(blocks)

    def certificate(self, certificate: Certificate) -> None:
        """Raise unless a certificate that an honest node holds or sends is valid."""
        if certificate not in self._holds:
            members = self._law.context(certificate.epoch).validators.members
            values = (
                certificate.kind,
                certificate.epoch,
                certificate.view,
                certificate.block_hash,
                certificate.signers,
                certificate.signatures,
            )
            pairs = [(v.consensus_key, v.stake) for v in members]
            self._holds[certificate] = reference.certificate_holds(CHAIN_ID, pairs, values)
        if not self._holds[certificate]:
            raise Violation(f"an honest node holds an invalid certificate: {certificate}")

    def left(self, node: int, message: object, on_disk: bool) -> None:
        """An honest node has sent `message`; `on_disk` tells whether it could recover it."""
        if isinstance(message, Certificate):
            self.certificate(message)
        seal = message.seal if isinstance(message, Proposal) else message
        if not isinstance(seal, Vote | ProposalSeal):
            return
        if seal.signer != self._law.signers[node].public:
            raise Violation(f"node {node} sent another's signature as its own")
        if not on_disk:
            raise Violation(f"node {node}: a signature left before it was on disk")
        kind = _kind(seal)
        mine = self._signed.setdefault(node, {})
        signed = mine.setdefault((seal.epoch, seal.view), {})
        if signed.setdefault(kind, seal.block_hash) != seal.block_hash:
            raise Violation(f"node {node} signed {kind} twice in {seal.epoch}/{seal.view}")
        if "finalize" in signed and "nullify" in signed:
            raise Violation(f"node {node} finalized and nullified {seal.epoch}/{seal.view}")
        if "finalize" in signed and signed["finalize"] != signed.get(
            "notarize", signed["finalize"]
        ):
            self.seen["finalize of another block than notarized"] += 1
        self.seen[kind] += 1

    def recovered(self, node: int, height: int, records: tuple[bytes, ...]) -> None:
        """`node` has come back, its chain `height` long, with `records` in its log: it remembers
        all that it has ever signed and sent, or a floor forbids to sign there again."""
        known: set[object] = set()
        floor = (self._law.epoch_of(height + 1), 0)
        for data in records:
            record: Record = decode(Record, data)
            if isinstance(record, SignFloor):
                floor = max(floor, (record.epoch, record.view))
            elif isinstance(record, Vote | ProposalSeal):
                known.add((_kind(record), record.epoch, record.view, record.block_hash))
        for (epoch, view), signed in self._signed.get(node, {}).items():
            for kind, block_hash in signed.items():
                if (epoch, view) > floor and (kind, epoch, view, block_hash) not in known:
                    raise Violation(f"node {node} has forgotten its {kind} of {epoch}/{view}")
        self.seen["logs compared with what had left"] += 1

    def refused_to_start(self, node: int, report: str, *, rotten: bool) -> None:
        """A damaged log: only a disk that breaks its promises leaves one, and the report says what
        to do."""
        if not rotten:
            raise Violation(f"node {node} does not start although its disk is sound: {report}")
        if "restore the file" not in report or "move it" not in report:
            raise Violation(f"node {node} does not say what to do: {report}")
        self.seen["refusals to start"] += 1

    def refused(self, node: int, peer: int, reason: str) -> None:
        if peer in self._honest:
            raise Violation(f"node {node} refused honest node {peer}: {reason}")
        self.seen["refused"] += 1

    def rejected(self, node: int, leader: int, reason: str) -> None:
        if leader in self._honest:
            raise Violation(f"node {node} rejected a block of honest node {leader}: {reason}")
        self.seen["rejected"] += 1

    def accused(self, node: int, signer: bytes) -> None:
        guilty = next(i for i, s in enumerate(self._law.signers) if s.public == signer)
        if guilty in self._honest:
            raise Violation(f"node {node} has evidence against honest node {guilty}")
        self.seen["evidence"] += 1

    def halted(self, node: int, report: str) -> None:
        raise Violation(f"node {node} halted: {report}")


def _kind(signed: Vote | ProposalSeal) -> str:
    kinds = {1: "notarize", 2: "nullify", 3: "finalize"}
    return "propose" if isinstance(signed, ProposalSeal) else kinds[signed.kind]
