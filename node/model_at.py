"""The chain's model of a height, and what shows that it is that
(docs/spec/light-client.md, "The model of a height").

    the newest header → ModelRecord     if the model has not changed since that height
    the height's header → ModelRecord   if the node keeps the state of that height
    the newest header → RoundRecords    else: which models the round of that height had

Root, version, height and documents have to agree with one another and with what is shown. All of it
hangs on one header; what is not shown is said to be the node's word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chain import governance_records as g
from chain import limits
from chain import records as r
from chain.codec import decode
from chain.errors import InputError, VerifyError
from chain.hashes import Hash32
from chain.light_proofs import check_ancestors
from chain.model_versions import parse_version
from chain.types import Header
from learning.spec import ModelSpec
from node.light.follow import MAX_BACK
from node.light.source import LightSource
from node.verified import Finality, Proven, ShardVersion, VerifiedReader, check_proof


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model version of the chain. `shown_by` says what shows that its root is the chain's."""

    root: Hash32
    version: int
    height: int
    shards: tuple[ShardVersion, ...]
    spec: ModelSpec  # in force after the block of that height
    documents: str  # whose version this is
    newest: Header  # that the node has shown; all else hangs on it
    finality: Finality  # of that
    shown_by: str
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]  # what is the node's word alone


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the node says."""

    root: Hash32
    version: int
    height: int
    documents: str | None  # nodes of before this version do not tell


async def find_model(reader: VerifiedReader, height: int | None) -> FoundModel:
    """The model after the block of a height (None: the newest that the node shows).

    VerifyError if what the node says contradicts what it shows; InputError for a height beyond its
    newest block.
    """
    newest = await reader.proven(r.MODEL)
    at = newest.header.height if height is None else height
    if at > newest.header.height:
        raise InputError(
            f"height {at} is not final: the newest block that the node shows is "
            f"{newest.header.height}"
        )
    answer = await reader.client.model(at)
    claim = _claim(answer)
    if claim.height != at:
        raise VerifyError(
            f"the node was asked for the model of height {at} and shows one of height "
            f"{claim.height}; ask another node"
        )
    shards = tuple(reader.check_model(answer, claim.root))
    search = _Search(reader, newest, claim)
    shown_by, documents = await search.run()
    spec = (await reader.at(newest.header).specs_of(documents)).model
    return FoundModel(
        root=claim.root,
        version=claim.version,
        height=at,
        shards=shards,
        spec=spec,
        documents=documents,
        newest=newest.header,
        finality=newest.finality,
        shown_by=shown_by,
        checked=tuple(search.checked),
        unchecked=tuple(search.unchecked),
    )


def _claim(answer: dict[str, Any]) -> _Claim:
    try:
        root = Hash32(bytes.fromhex(answer["root"]))
        version, height = int(answer["version"]), int(answer["height"])
        documents = answer.get("model_version")
        if documents is not None:
            parse_version(documents)
    except (KeyError, TypeError, ValueError, OverflowError, VerifyError):
        raise VerifyError(
            "the node shows a model with no root, version or documents of the form expected; ask "
            "another node"
        ) from None
    return _Claim(root, version, height, documents)


class _Search:
    """One claim, held against what the node can show for it."""

    def __init__(self, reader: VerifiedReader, newest: Proven, claim: _Claim) -> None:
        self._reader, self._newest, self._claim = reader, newest, claim
        self._now = reader.at(newest.header)
        self.checked: list[str] = []
        self.unchecked: list[str] = []
        self._tell_finality()

    async def run(self) -> tuple[str, str]:
        """What shows the root, and the version of the documents."""
        at, record = self._claim.height, _model_record(self._newest)
        held = await self._now.read(g.ModelVersion, g.VERSION)
        # A version counts from the block after the one whose state has it first.
        is_same = held is None or held.height <= at + 1
        old = None
        if record.height > at or not is_same:
            old = await self._state_at(at)
        rounds = _Rounds(self._now, at, record)
        shown_by = await self._show_model(record, old, rounds)
        return shown_by, await self._show_documents(self._now if is_same else None, old, rounds)

    async def _show_model(self, record: r.ModelRecord, old: Proven | None, rounds: _Rounds) -> str:
        at, newest = self._claim.height, self._newest.header.height
        if record.height > at and old is None:
            return await self._by_rounds(rounds)
        shown_by, since = f"the model record of block {newest}", ""
        if record.height <= at:
            since = f", unchanged since block {record.height}"
        elif old is not None:
            record, shown_by = _model_record(old), f"the model record of block {at}"
        self._agree({record.version: record.root}, shown_by)
        self.checked.append(f"root and version: {shown_by}{since}")
        return shown_by

    async def _show_documents(
        self, state: VerifiedReader | None, old: Proven | None, rounds: _Rounds
    ) -> str:
        """`state`: what has the version that was in force, if the newest block's has it."""
        at, said = self._claim.height, self._claim.documents
        if state is None and old is not None:
            state = self._reader.at(old.header)
        if state is None:
            return await self._documents_by_rounds(rounds)
        documents = await state.version_now()
        if said is not None and said != documents:
            raise VerifyError(
                f"the node says that the documents {said} were in force after block {at}, and its "
                f"state shows {documents}; ask another node"
            )
        self.checked.append(f"documents {documents}: in force after block {at}, by the state")
        return documents

    # --- by the state of the height ----------------------------------------------------------

    async def _state_at(self, at: int) -> Proven | None:
        """The model record after the block of a height, that block being final as the newest one
        is; None if the node does not keep its state."""
        reader, newest = self._reader, self._newest.header
        try:
            answer = await reader.client.state_proof(r.MODEL, at)
        except InputError:
            return None
        found = check_proof(reader.genesis, answer, r.MODEL)
        if found.header.height != at:
            raise VerifyError(
                f"the node was asked for the state of block {at} and shows that of "
                f"{found.header.height}; ask another node"
            )
        if found.finality is Finality.CERTIFIED:
            self.checked.append(f"block {at} is {Finality.CERTIFIED.value}")
        elif newest.height - at <= MAX_BACK:
            await self._descend(found.header)
            self.checked.append(f"block {at} is an ancestor of block {newest.height}, by hashes")
        else:
            self.unchecked.append(
                f"that block {at} is an ancestor of block {newest.height}: more than {MAX_BACK} "
                "lie between them"
            )
        return found

    async def _descend(self, wanted: Header) -> None:
        """VerifyError unless the newest header follows from this one, link by link."""
        source, child = LightSource(self._reader.client), self._newest.header
        while child.height > wanted.height:
            last = child.height - 1
            first = max(wanted.height, last + 1 - limits.MAX_HEADERS)
            headers = await source.headers(first, last)
            check_ancestors(headers, child)
            child = headers[0]
        if child != wanted:
            raise VerifyError(
                f"block {self._newest.header.height} does not follow from the block "
                f"{wanted.height} that the node shows; ask another node"
            )

    # --- by the rounds -----------------------------------------------------------------------

    async def _by_rounds(self, rounds: _Rounds) -> str:
        """The round of the height had this model: as its base, its result, or its base again."""
        record, roots = await rounds.models()
        shown_by = f"the record of round {record.number}"
        self._agree(roots, shown_by)
        self.checked.append(
            f"root and version: by {shown_by}, which was in progress at height {rounds.at}"
        )
        if len(roots) > 1:
            self.unchecked.append(
                f"that it had version {self._claim.version} at height {rounds.at} already, and "
                f"still: round {record.number} had the versions {min(roots)} to {max(roots)}, and "
                "the node keeps no state of that height"
            )
        return shown_by

    async def _documents_by_rounds(self, rounds: _Rounds) -> str:
        """One version if the rounds around the height leave no other; else the node's word, which
        must lie between theirs."""
        first, last = await rounds.versions()
        if first == last:
            self.checked.append(f"documents {first}: by the rounds around height {rounds.at}")
            return first
        said = self._claim.documents
        if said is None:
            raise VerifyError(
                f"the node does not say which documents were in force at height {rounds.at}, "
                f"{first} to {last}: ask a newer node"
            )
        if not parse_version(first) <= parse_version(said) <= parse_version(last):
            raise VerifyError(
                f"the node says that the documents {said} were in force at height {rounds.at}; by "
                f"its rounds they were {first} to {last}; ask another node"
            )
        self.unchecked.append(
            f"that the documents {said} were in force at height {rounds.at}: by the rounds around "
            f"it they were {first} to {last}, and the node keeps no state of that height"
        )
        return said

    # --- inside ------------------------------------------------------------------------------

    def _agree(self, roots: dict[int, Hash32], where: str) -> None:
        """VerifyError unless the claimed version has the claimed root."""
        claim = self._claim
        if roots.get(claim.version) == claim.root:
            return
        shown = ", ".join(f"version {v} with root {root.hex()}" for v, root in roots.items())
        raise VerifyError(
            f"the node says that the model at height {claim.height} is version {claim.version} "
            f"with root {claim.root.hex()}, and {where} shows {shown}; ask another node"
        )

    def _tell_finality(self) -> None:
        newest = self._newest
        if newest.finality is Finality.CERTIFIED:
            self.checked.append(f"block {newest.header.height} is {newest.finality.value}")
        else:
            reason = newest.finality.value.removeprefix("not checked: ")
            self.unchecked.append(f"that block {newest.header.height} is final: {reason}")


class _Rounds:
    """The rounds around a height, by their records, which no later block changes."""

    def __init__(self, reader: VerifiedReader, at: int, newest: r.ModelRecord) -> None:
        self._reader, self.at, self._newest = reader, at, newest
        self._known: dict[int, r.RoundRecord] = {}

    async def models(self) -> tuple[r.RoundRecord, dict[int, Hash32]]:
        """The round of the height, and by version the roots that the model had in it: that of its
        base, of its result, and if it was rolled back that of its base again."""
        number, top = await self._numbers()
        record, last = await self._record(number), self._newest.version
        if number < top:
            last = (await self._record(number + 1)).base_version
        roots = (record.base_root, record.result_root, record.base_root)
        versions = range(record.base_version, min(last, record.base_version + 2) + 1)
        return record, dict(zip(versions, roots, strict=False))

    async def versions(self) -> tuple[str, str]:
        """The lowest and the highest version of the documents that can have been in force: those
        of the last anchor that was surely before, and of the first that was surely after."""
        number, top = await self._numbers()
        first = g.FIRST_VERSION if number == 0 else await self._reader.round_version(number - 1)
        after = number + 1
        if after <= top and (await self._record(after)).phase != r.RoundPhase.OPEN:
            return first, await self._reader.round_version(after)
        return first, await self._reader.version_now()

    async def _numbers(self) -> tuple[int, int]:
        """The round in progress after the block of the height, which is the last that was open by
        then, and the newest round."""
        top = low = int((await self._reader.head()).round)
        if (await self._record(top)).opened > self.at:
            low, high = 0, top - 1
            while low < high:
                middle = (low + high + 1) // 2
                if (await self._record(middle)).opened <= self.at:
                    low = middle
                else:
                    high = middle - 1
        return low, top

    async def _record(self, number: int) -> r.RoundRecord:
        if number not in self._known:
            self._known[number] = await self._reader.round(number)
        return self._known[number]


def _model_record(proven: Proven) -> r.ModelRecord:
    if proven.value is None:
        raise VerifyError(f"the state of block {proven.header.height} has no model")
    found: r.ModelRecord = decode(r.ModelRecord, proven.value)
    return found
