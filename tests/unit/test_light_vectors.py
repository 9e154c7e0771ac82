"""The light client against its reference vectors: the Python one, and the browser's in Node.js."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chain.codec import decode, encode
from chain.errors import VerifyError
from chain.hashes import Hash32
from chain.light import Attack, LightBlock, Terms, TooFar, Trusted, Walk, check_step, compare
from chain.light_proofs import TxProof, verify_tx_proof
from chain.types import ChainId, Header, Height, ValidatorSet
from tests.reference import light_cases as reference

ROOT = Path(__file__).parents[2]
FILES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "tests" / "vectors" / "light").glob("*.json"))
}
MOST_S = 120.0


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in FILES[name]["cases"]]


def terms(name: str) -> Terms:
    file = FILES[name]
    return Terms(ChainId(bytes.fromhex(file["chain_id"])), file["trust_ms"], file["drift_ms"])


def trusted(case: dict[str, Any]) -> Trusted:
    header: Header = decode(Header, bytes.fromhex(case["trusted"]))
    members: ValidatorSet = decode(ValidatorSet, bytes.fromhex(case["validators"]))
    return Trusted(header, members)


def block_of(raw: str) -> LightBlock:
    block: LightBlock = decode(LightBlock, bytes.fromhex(raw))
    return block


@pytest.mark.parametrize("name", sorted(reference.FILES))
def test_the_vectors_are_what_the_reference_makes(name: str) -> None:
    assert FILES[name] == reference.vectors(name)
    assert sorted(FILES) == sorted(reference.FILES)


@pytest.mark.parametrize("case", cases("steps"))
def test_steps(case: dict[str, Any]) -> None:
    block, verdict = block_of(case["block"]), "ok"
    try:
        found = check_step(terms("steps"), trusted(case), block, case["now_ms"])
    except TooFar:
        verdict = "too far"
    except VerifyError:
        verdict = "refused"
    else:
        assert found == Trusted(block.header, block.validators)
    assert verdict == case["verdict"]


@pytest.mark.parametrize("case", cases("walks"))
def test_walks(case: dict[str, Any]) -> None:
    walk = Walk(terms("walks"), trusted(case), Height(case["target"]))
    asked = []
    while walk.wanted is not None:
        asked.append(walk.wanted)
        walk.give(block_of(case["blocks"][str(walk.wanted)]), case["now_ms"])
        assert walk.trusted.header.height in (0, *case["reached"])
    assert (asked, walk.steps) == (case["asked"], len(case["reached"]))
    assert walk.trusted.header.height == case["target"]


@pytest.mark.parametrize("case", cases("forks"))
def test_forks(case: dict[str, Any]) -> None:
    def walk(raw: str) -> Walk:
        block = block_of(raw)
        made = Walk(terms("forks"), trusted(case), block.header.height)
        made.give(block, case["now_ms"])
        return made

    verdict, evidence = "same", None
    try:
        compare(walk(case["first"]), walk(case["second"]))
    except Attack as attack:
        item = attack.evidence()
        verdict = "attack" if item is None else "evidence"
        evidence = None if item is None else encode(item).hex()
    assert (verdict, evidence) == (case["verdict"], case["evidence"])


@pytest.mark.parametrize("case", cases("transactions"))
def test_transactions(case: dict[str, Any]) -> None:
    proof: TxProof = decode(TxProof, bytes.fromhex(case["proof"]))
    assert verify_tx_proof(Hash32(bytes.fromhex(case["tx_root"])), proof) == case["holds"]


def test_the_browser_s_module_agrees() -> None:
    """tests/browser/light.test.mjs: the same vectors, and those of the codec and the state tree."""
    node = os.environ.get("BLYAN_NODEJS") or shutil.which("node")
    if node is None:
        reason = "no Node.js: apt-get install nodejs, or name one in BLYAN_NODEJS"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", str(ROOT / "tests" / "browser" / "light.test.mjs")],
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout
