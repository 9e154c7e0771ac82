"""The pages on consensus and staking name every rule, message, limit and parameter of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from chain import attendance, limits, validator_sets
from chain.codec import tag_of
from chain.params import Params
from chain.types import EvidenceItem, ProposalSeal
from consensus.simplex import ballots, core, fetch, pace, proposals, replica, supply
from consensus.simplex import messages as m
from consensus.simplex.rules import Rule
from node.services import consensus as driver
from node.services import evidence_pool, flood, mesh, sync, timers

SPEC = Path(__file__).parents[2] / "docs/spec"
PAGE = (SPEC / "consensus.md").read_text()
STAKING = (SPEC / "staking.md").read_text()


def section(title: str, page: str = PAGE) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """First cell of each row of the tables: the others."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in found}


def test_every_rule_that_the_core_reports_has_a_row() -> None:
    tags = {rule.value.split()[0] for rule in Rule}
    assert tags == rows(section("Rules")).keys() - {"", "---"}


def test_every_message_stands_with_its_tag_and_its_fields() -> None:
    told = rows(section("Messages"))
    for kind in (*get_args(m.Message), ProposalSeal):
        name, names, _ = told[str(tag_of(kind))]
        plain = re.sub(r"\([^)]*\)", "", names)  # what explains a field
        assert name == f"`{kind.__name__}`"
        assert len(plain.split(",")) == len(fields(kind)), names
    envelope = told[str(tag_of(m.Envelope))]
    for kind in (*get_args(m.Message), *get_args(EvidenceItem)):
        assert re.search(rf"\b{tag_of(kind)}\b", envelope[1])


def test_every_item_of_evidence_and_record_of_the_log_stands_with_its_tag() -> None:
    told = rows(section("Evidence"))
    for kind in get_args(EvidenceItem):
        assert told[str(tag_of(kind))][0] == f"`{kind.__name__}`"
        assert f"`{kind.__name__}`" in section("Slashing", STAKING)
    for record in get_args(m.Record):
        assert re.search(rf"`{record.__name__}`s? \({tag_of(record)}\b", section("The log"))


def test_every_timer_of_the_core_has_a_row() -> None:
    told = {name.split(" (")[0] for name in rows(section("Timers"))}
    for kind in m.TimerKind:
        name = {"RETRANSMIT": "retransmission"}.get(kind.name, kind.name.lower())
        assert name in told


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (PAGE, ("empty_interval_ms", "delta_floor_ms", "delta_cap_ms", "clock_drift_ms")),
        (
            STAKING,
            (
                *("min_bond_grains", "slash_permille", "custody_slash_permille"),
                *("evidence_blocks", "evidence_ms", "unbonding_blocks", "unbonding_ms"),
                *("evidence_jail", "downtime_views", "downtime_jail"),
            ),
        ),
    ],
)
def test_every_parameter_is_named(page: str, names: tuple[str, ...]) -> None:
    assert not set(names) - {field.name for field in fields(Params)}
    assert not set(names) - set(re.findall(r"`(\w+)`", page))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            section("Rules"),
            (
                f"the latest {supply.VOTE_VIEWS};",
                f"over {supply.MAX_FETCH_HEIGHTS} heights",
                f"up to {limits.MAX_NULLIFICATIONS} and {proposals.CERTIFICATE_BYTES // 1024} KiB",
                f"unheard for {pace.SILENT_VIEWS} views",
                f"{core.MAX_UNFINALIZED} unfinalized blocks carry transactions",
                f"is given {timers.GONE_S * 1000:.0f} ms",
            ),
        ),
        (
            section("Timers"),
            (
                f"{flood.UNREACHED_S:.0f} s; {flood.STALLED_S:.0f} s; {flood.AGAIN_S:.0f} s",
                f"every {mesh.LOOK_S:.0f} s, in the DHT every {mesh.SEEK_S:.0f} s",
                f"every {sync.POLL_S:.0f} s; an answer is waited for {sync.TIMEOUT_S:.0f} s",
            ),
        ),
        (
            section("Messages"),
            (
                f"{2 * limits.MAX_NULLIFICATIONS} messages, {limits.MAX_MESSAGE_BYTES:,} bytes",
                f"{limits.MAX_VALIDATORS} signers",
                f"block {limits.MAX_BLOCK_BYTES >> 20} MiB; {limits.MAX_NULLIFICATIONS} null",
                f"at most {fetch.MAX_WANTED} blocks at a time, of the {fetch.MAX_PEERS} peers",
                f"answers {fetch.MAX_SERVED} requests of one peer, and {8 * fetch.MAX_PEERS} peers",
                f"for {core.WINDOW_VIEWS} views ahead of the current one and "
                f"{ballots.EVIDENCE_VIEWS} below",
                f"for {core.WINDOW_VIEWS} ahead, at most {core.MAX_PROPOSALS}",
                f"{replica.MAX_EARLY} are kept until it begins, at most {replica.MAX_EARLY_EACH} ",
                f"answered for {fetch.MAX_VIEWS} views",
                f"at most {sync.BATCH_BLOCKS} and {sync.BATCH_BYTES >> 20} MiB",
            ),
        ),
        (
            section("Evidence"),
            (
                f"at most {evidence_pool.MAX_HELD} items",
                f"at most {limits.MAX_EVIDENCE} items; its leader fills at most "
                f"{limits.MAX_EVIDENCE_BYTES >> 10} KiB",
            ),
        ),
        (section("The log"), (f"over {driver.ROTATE_BYTES >> 20} MiB",)),
        (
            STAKING,
            (
                f"of more than {limits.MAX_VALIDATORS} those",
                f"more than {attendance.MAX_ROW}, none counts",
            ),
        ),
    ],
)
def test_numbers_are_those_of_the_code(text: str, sentences: tuple[str, ...]) -> None:
    assert [said for said in sentences if said not in text] == []


def test_staking_says_the_least_set_and_the_most_jailed_at_once() -> None:
    assert (validator_sets.MIN_SET, attendance.JAIL_SHARE) == (4, 10)
    assert "If fewer than **four** stand" in STAKING
    assert "left of a tenth of all candidates' stake" in STAKING
