"""A few hundred questions to the API; more with `python -m tests.attacks.fuzz_api`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from node.query import Query
from tests.attacks import fuzz_api
from tests.kit.site import Site

CASES = 6  # of each operation: some ten seconds in all


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("chain"), fuzz_api.filled) as made:
        yield made


def test_every_answer_has_the_form_that_the_api_documents(site: Site) -> None:
    report = fuzz_api.ask(site, 1, CASES)
    assert report.failures == []
    assert report.operations >= 40
    assert {200, 202, 400, 401, 404} <= set(report.statuses)
    assert report.statuses[200] > sum(report.statuses.values()) // 4


def broken(*_: Any) -> Any:
    raise ValueError("a bug")


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("blocks", broken, "500: "),
        ("blocks", lambda *_: {"blocks": "none", "next": None}, "blocks"),
        ("blocks", lambda *_: {}, "required"),
    ],
)
def test_a_bug_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, says: str
) -> None:
    monkeypatch.setattr(Query, name, answer)
    report = fuzz_api.ask(site, 1, 3, "/api/v1/blocks")
    assert any(says in failure for failure in report.failures), report.failures
