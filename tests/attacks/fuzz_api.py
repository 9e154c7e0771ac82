"""Questions of every form to a node's API, by its own description of itself.

    python -m tests.attacks.fuzz_api [--cases N] [--seed S] [--only TEXT]

schemathesis makes requests from `/openapi.json`; half of the names in their paths are ones that the
chain has, half of the bodies are transactions, whole or spoiled, and half of the calls have the
node's token. Every answer must have a documented status, media type and form, the errors too; no
answer may be 5xx, but for 503 where something is asked of peers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from chain.codec import encode
from chain.records import RoundPhase
from chain.transactions import Transfer
from chain.types import Grains
from tests.attacks.mutation import spoil_bytes
from tests.kit.local_chain import LocalChain
from tests.kit.site import Site

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
ASKS_PEERS = ("/blobs/", "/checkpoints/", "/data")
ENDLESS = "/api/v1/events"  # a stream: its form is checked where its events are
TIMEOUT_S = 30.0
BYTES = "application/octet-stream"


@dataclass(slots=True)
class Report:
    """What was asked, and what was wrong with the answers."""

    operations: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Asker:
    """Fills the requests of schemathesis with what the chain has."""

    def __init__(self, site: Site) -> None:
        self.token = site.run(lambda chain: chain.api_token)
        self.names = site.run(names)
        self.bodies = site.run(transactions)

    def fill(self, case: Any, dice: Random) -> None:
        for name in case.path_parameters or {}:
            if dice.random() < 0.5:
                case.path_parameters[name] = dice.choice(self.names)
        if dice.random() < 0.5:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {self.token}"}
        if case.method == "POST" and case.media_type == BYTES and dice.random() < 0.6:
            body = dice.choice(self.bodies)
            case.body = body if dice.random() < 0.3 else spoil_bytes(dice, body, 2)


def names(chain: LocalChain) -> list[str]:
    """Ids, heights and words that stand in paths, and some that are nearly right."""
    state, tip = chain.state, chain.chain.tip
    found = [state.round(0).base_root, *state.round(0).deltas, *state.round(0).datasets]
    found += [chain.chain.tip_hash, chain.account, tip.state_root, b"head"]
    words = ["0", "1", "current", "layers.0.experts.1", str(tip.height), str(tip.height + 1)]
    words += ["-1", str(2**63), str(2**64), "1" * 200, "0x10", "%00", "None", "a b", "é", "bly1x"]
    hexes = [name.hex() for name in found]
    return [*hexes * 2, *words, *(h.upper() for h in hexes[:3]), *(h[:-1] for h in hexes[:3])]


def transactions(chain: LocalChain) -> list[bytes]:
    learner = chain.learners[0]
    made = [chain.sign(Transfer(chain.account, Grains(n)), learner) for n in (1, 2, 2**64 - 1)]
    batch = b"\x92" + b"".join(b"\xc5" + len(raw).to_bytes(2, "big") + raw for raw in made[:2])
    return [*made, batch, encode(chain.chain.tip), b"", b"\x90", b"\xdc\xff\xff" * 2000]


def ask(site: Site, number: int, cases: int, only: str = "") -> Report:
    """`cases` questions of each operation whose path contains `only`."""
    report, asker = Report(), Asker(site)
    schema = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS or only not in operation.path:
            continue
        report.operations += 1
        failure = of_one(operation, asker, number, cases, report)
        if failure is not None:
            report.failures.append(f"{operation.label}: {failure}")
    return report


def of_one(operation: Any, asker: Asker, number: int, cases: int, report: Report) -> str | None:
    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), dice=st.integers(0, 2**64))
    def run(case: Any, dice: int) -> None:
        asker.fill(case, Random(dice))
        response = case.call(timeout=TIMEOUT_S)
        report.statuses[response.status_code] += 1
        asks_peers = any(part in operation.path for part in ASKS_PEERS)
        if response.status_code >= 500 and not (response.status_code == 503 and asks_peers):
            raise AssertionError(f"{response.status_code}: {response.text[:200]}")
        case.validate_response(response, checks=CHECKS)

    try:
        run()
    except (AssertionError, FailureGroup) as error:
        found = error.exceptions if isinstance(error, FailureGroup) else (error,)
        return "; ".join(f"{type(e).__name__}: {e}" for e in found)[:1500]
    return None


def filled(chain: LocalChain) -> None:
    """A finished round, and one that is being screened."""
    chain.learn(learners=2)
    chain.learn(stop_in=RoundPhase.SCREEN_REVEAL)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=200, help="of each operation [200]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="operations whose path contains this")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, Site(Path(directory), filled) as site:
        report = ask(site, options.seed, options.cases, options.only)
    total = sum(report.statuses.values())
    print(f"{report.operations} operations, {total} requests, {dict(report.statuses)}")
    for failure in report.failures:
        print(f"FAILED {failure}\n  python -m tests.attacks.fuzz_api --seed {options.seed}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
