"""The model of a height: the documents of that height, and a node that lies about any of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chain import governance
from chain.codec import decode, encode
from chain.errors import InputError, VerifyError
from chain.hashes import Hash32
from chain.model_versions import canonical, current
from chain.state import State
from chain.transactions import GovernanceVote, Propose, Verdict
from chain.types import Header, Height, TimeMs
from learning.spec import ModelSpec
from node import model_at
from node.api.app import create_app
from node.client import Client, Json
from node.export import write_model
from node.model_at import FoundModel, find_model
from node.verified import Finality, VerifiedReader
from node.worker.client import Measured, Worker
from tests.kit.commands import Run, runner
from tests.kit.local_chain import TINY, LocalChain

EPOCH = 16
CONTEXT = TINY["context"]
# The documents of each stretch: what a vote makes of `context` and `top_k`.
CHANGES = ({"context": CONTEXT // 2}, {"context": CONTEXT // 2, "top_k": 2})
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
SPECS = ((CONTEXT, 1), (CONTEXT // 2, 1), (CONTEXT // 2, 2))


class Voted:
    """A chain of three rounds, the last of them rolled back, and a vote after each of the first
    two. `models` (root, version) and `versions` (of the documents): after each block, by the states
    themselves."""

    def __init__(self, chain: LocalChain) -> None:
        self.chain = chain
        chain.learn()
        self._vote("1.1.0", CHANGES[0])
        chain.learn()
        self._vote("1.2.0", CHANGES[1])
        chain.learn(worse=True)
        states = [self._state(height) for height in range(chain.chain.tip.height + 1)]
        self.models = [(state.model.root, state.model.version) for state in states]
        self.versions = [current(state) for state in states]
        self.first, self.second = (self.versions.index(version) for version in VERSIONS[1:])
        turns = [h for h in range(1, len(states)) if self.models[h] != self.models[h - 1]]
        votes = [self.first - 1, self.first, self.second - 1, self.second]
        last = len(states) - 1
        self.heights = sorted({*range(0, last, 9), last, *votes, *turns, *(h - 1 for h in turns)})

    def _vote(self, version: str, model: dict[str, int]) -> None:
        chain = self.chain
        at = governance.soonest(chain.genesis.params, chain.chain.tip.height + 1)
        documents = {
            "version": version,
            "model": dict(chain.genesis.model) | model,
            "training": dict(chain.genesis.training),
        }
        accounts = [keys.account for keys in chain.validators]
        proposal = chain.send(Propose("model", canonical(documents), Height(at)), accounts[0])
        chain.block()
        for account in accounts:
            chain.send(GovernanceVote(proposal, Verdict.YES), account)
        chain.until(lambda state: state.head.height >= at + 3)

    def _state(self, height: int) -> State:
        tree = self.chain.chain.tree_at(height)
        assert tree is not None
        return State(tree)


@pytest.fixture(scope="module")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Voted]:
    """Nobody changes it."""
    with LocalChain(
        tmp_path_factory.mktemp("voted"),
        epoch_blocks=EPOCH,
        vote={"blocks": 6, "ms": 0},
        proposal_deposit_grains=10**6,
        unbonding_blocks=10**5,
        guard_ppm=10_000,
    ) as chain:
        yield Voted(chain)


Lie = Callable[[Client], Any]  # changes what a client gets to hear


def asked(voted: Voted, ask: Callable[[VerifiedReader], Any], lie: Lie | None = None) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(create_app(voted.chain))
        async with Client("http://127.0.0.1:8645", None, transport) as client:
            if lie is not None:
                lie(client)
            return await ask(await VerifiedReader.connect(client))

    return asyncio.run(run())


def found(voted: Voted, height: int | None, lie: Lie | None = None) -> FoundModel:
    answer: FoundModel = asked(voted, lambda reader: find_model(reader, height), lie)
    return answer


def says(**lie: Any) -> Lie:
    """The node says this of a model, whatever it has."""

    def change(client: Client) -> None:
        honest = client.model

        async def model(height: int | None = None) -> Json:
            return await honest(height) | lie

        client.model = model  # type: ignore[method-assign]

    return change


def shows(of: int, **lie: Any) -> Lie:
    """Asked for any height, the node shows the model of this one."""

    def change(client: Client) -> None:
        honest = client.model

        async def model(height: int | None = None) -> Json:
            return await honest(of) | {"height": height} | lie

        client.model = model  # type: ignore[method-assign]

    return change


def proves(change: Callable[[Json], Json], of: int | None = None) -> Lie:
    """Proofs of old states are changed, or are those of a height `of`."""

    def lie(client: Client) -> None:
        honest = client.state_proof

        async def state_proof(key: bytes, height: int | None = None) -> Json:
            if height is None or height == tip(await client.status()):
                return await honest(key, height)
            return change(await honest(key, height if of is None else of))

        client.state_proof = state_proof  # type: ignore[method-assign]

    return lie


def tip(status: Json) -> int:
    return int(status["height"])


@pytest.fixture
def forgetful(voted: Voted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node keeps the newest state alone."""
    monkeypatch.setattr(type(voted.chain.chain.store), "tree_at", lambda self, height: None)


def agrees(voted: Voted, height: int, model: FoundModel) -> None:
    assert (model.root, model.version) == voted.models[height]
    assert (model.height, model.documents) == (height, voted.versions[height])
    assert (model.spec.context, model.spec.top_k) == SPECS[VERSIONS.index(model.documents)]
    assert model.finality is Finality.CERTIFIED


def test_each_height_has_its_model_and_its_documents(voted: Voted) -> None:
    for height in voted.heights:
        model = found(voted, height)
        agrees(voted, height, model)
        assert model.unchecked == ()
    assert {version for _, version in voted.models} == {0, 1, 2, 3, 4}  # the last: rolled back
    newest = found(voted, None)
    agrees(voted, len(voted.models) - 1, newest)
    assert newest.documents == "1.2.0"
    with pytest.raises(InputError, match="is not final: the newest block"):
        found(voted, len(voted.models))


def test_an_exported_file_says_how_that_model_computes(voted: Voted, tmp_path: Path) -> None:
    height, path = voted.first - 1, tmp_path / "old.safetensors"

    async def ask(reader: VerifiedReader) -> int:
        model = await find_model(reader, height)
        return await write_model(path, reader, model, lambda done, total: None)

    assert asked(voted, ask) == path.stat().st_size
    raw = path.read_bytes()
    told = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert json.loads(told["blyan.model"])["context"] == CONTEXT
    assert (told["blyan.height"], told["blyan.version"]) == (str(height), "1")


def test_without_old_states_the_rounds_show_what_they_can(voted: Voted, forgetful: None) -> None:
    words: dict[int, tuple[str, ...]] = {}
    for height in voted.heights:
        model = found(voted, height)
        agrees(voted, height, model)
        words[height] = model.unchecked
    assert "round 0 had the versions 0 to 1" in words[0][0]
    turn = next(h for h in voted.heights if voted.models[h][1] == 3)
    assert any("round 2 had the versions 2 to 4" in line for line in words[turn])
    # Round 1 was open when the first vote took effect, and over when the second did.
    assert "by the rounds around it they were 1.0.0 to 1.2.0" in words[voted.first][-1]
    assert words[voted.heights[-1]] == ()


# --- a node that lies ----------------------------------------------------------------------


def test_an_old_model_is_not_passed_off_as_another_height_s(voted: Voted) -> None:
    newest = len(voted.models) - 1
    for height in (None, newest, voted.first):
        with pytest.raises(VerifyError, match=r"the node says that the model at height .* shows"):
            found(voted, height, shows(0))
    with pytest.raises(VerifyError, match="the node says that the model at height"):
        found(voted, voted.first, shows(newest))
    with pytest.raises(VerifyError, match=f"height {voted.first} and shows one of height 0"):
        found(voted, voted.first, says(height=0))
    version = voted.models[voted.first][1]
    for height in (None, voted.first):
        with pytest.raises(VerifyError, match=f"is version {version + 7} with root"):
            found(voted, height, says(version=version + 7))
        with pytest.raises(VerifyError, match=r"the documents 1\.7\.0 were in force"):
            found(voted, height, says(model_version="1.7.0"))
    for broken in ({"root": "zz"}, {"version": None}, {"shards": []}, {"root": "ab" * 32}):
        with pytest.raises(VerifyError):
            found(voted, None, says(**broken))


def test_tile_roots_of_another_form_are_refused(voted: Voted) -> None:
    async def ask(reader: VerifiedReader) -> None:
        answer = await reader.client.model()
        for roots in (None, [1], ["zz"], ["ab"], [], ["ab" * 32] * 2):
            rows = [dict(row, tile_roots=roots) for row in answer["shards"]]
            with pytest.raises(VerifyError, match="no list of the 1 tile root"):
                reader.check_model(answer | {"shards": rows}, Hash32(bytes(32)))

    asked(voted, ask)


def test_a_state_of_another_block_is_refused(voted: Voted) -> None:
    with pytest.raises(VerifyError, match=f"of block {voted.first} and shows that of 3"):
        found(voted, voted.first, proves(dict, of=3))

    def uncertified(answer: Json) -> Json:
        return answer | {"certificate": None}

    def forged(answer: Json) -> Json:
        header = decode(Header, bytes.fromhex(answer["header"]))
        later = replace(header, time_ms=TimeMs(header.time_ms + 1))
        return answer | {"certificate": None, "header": encode(later).hex()}

    model = found(voted, voted.first, proves(uncertified))
    assert any("is an ancestor of block" in line for line in model.checked)
    with pytest.raises(VerifyError, match=f"does not follow from the block {voted.first}"):
        found(voted, voted.first, proves(forged))


def test_what_lies_too_far_back_is_the_node_s_word(
    voted: Voted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_at, "MAX_BACK", 3)
    model = found(voted, voted.first, proves(lambda answer: answer | {"certificate": None}))
    assert any("more than 3 lie between" in line for line in model.unchecked)


def test_the_rounds_bind_root_version_and_height(voted: Voted, forgetful: None) -> None:
    second = next(h for h in voted.heights if voted.models[h][1] == 2)
    for height, of in ((second, 0), (0, second), (voted.second, voted.first)):
        if voted.models[height] == voted.models[of]:
            continue
        with pytest.raises(VerifyError, match=r"and the record of round \d shows version"):
            found(voted, height, shows(of))
    for version in (0, 2, 9):
        with pytest.raises(VerifyError, match="the record of round 1 shows version 1 with root"):
            found(voted, voted.first, says(version=version))
    # The round had both: which of them at this height is the node's word, and is said to be.
    assert voted.models[0][1] == 0
    model = found(voted, 0, shows(voted.first))
    assert (model.height, model.version) == (0, 1)
    assert "that it had version 1 at height 0 already" in model.unchecked[0]
    with pytest.raises(VerifyError, match=r"by its rounds they were 1\.0\.0 to"):
        found(voted, voted.first, says(model_version="2.0.0"))
    with pytest.raises(VerifyError, match="no root, version or documents"):
        found(voted, voted.first, says(model_version="new"))
    with pytest.raises(VerifyError, match="does not say which documents were in force"):
        found(voted, voted.first, says(model_version=None))


# --- the commands --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_an_old_model_computes_by_its_own_documents(
    voted: Voted,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    specs = []

    async def measure(self: Worker, spec: ModelSpec, shards: Any, windows: Any) -> Measured:
        specs.append(spec)
        return Measured((3,) * len(windows), (1.0,))

    async def generate(self: Worker, spec: ModelSpec, *_: Any, **__: Any) -> float:
        specs.append(spec)
        return 1.0

    monkeypatch.setattr(Worker, "measure", measure)
    monkeypatch.setattr(Worker, "generate", generate)
    text = tmp_path / "text"
    text.write_bytes(bytes(10 * CONTEXT + 1))
    what = str(text) if command == "eval" else "ab"
    keys = voted.chain.validators[0]
    run: Run = runner(command, voted.chain, lambda: keys, tmp_path, monkeypatch, capsys)
    code, said = run(what, "--height", str(voted.first - 1), "--json")
    assert (code, said["documents"], specs[-1].context) == (0, "1.0.0", CONTEXT)
    assert said.get("windows") in (None, 10)
    code, said = run(what, "--json")
    assert (code, said["documents"], specs[-1].context) == (0, "1.2.0", CONTEXT // 2)
    assert said.get("windows") in (None, 20)
    assert any("is certified by the genesis validators" in line for line in said["checked"])
    assert any("is the newest" in line for line in said["unchecked"])
    assert any("is the network you mean" in line for line in said["unchecked"])
    assert specs[-1].top_k == 2
