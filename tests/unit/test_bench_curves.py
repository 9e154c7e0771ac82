"""The bench of learning: every row is there, a plan gives its curve again, pictures are SVG."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import learning, learning_attacks, learning_curves
from bench.learning_curves import FEW
from bench.learning_rounds import SMALL, Plan, run
from bench.svg import chart
from chain.hashes import ZERO_HASH
from tiles.delta import decode_delta, encode_delta

SPEC = SMALL.model


def payload(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    shards = {
        s.index: (rng.standard_normal(s.elements) * 1e-3).astype(np.float32) for s in SPEC.shards()
    }
    return encode_delta(ZERO_HASH, shards, SPEC.shards(), 256)[0]


def vector(raw: bytes) -> np.ndarray:
    delta = decode_delta(raw, SPEC.shards())
    return np.concatenate([delta.shard_float(s.index) for s in SPEC.shards()])


def test_the_groups_of_arithmetic_have_their_rows() -> None:
    names = [
        row.name
        for group in ("codec", "aggregate")
        for row in learning.GROUPS[group](learning.SMALL)
    ]
    assert names[:3] == ["encode_tile", "decode_tile", "encode_ratio"]
    assert names[3:6] == ["encode_int8", "decode_int8", "int8_ratio"]
    assert names[-3:] == ["aggregate_3", "aggregate_from_payloads", "aggregate_memory"]


def test_a_run_of_everything_small_and_its_pictures(tmp_path: Path) -> None:
    """Also that the same plan gives the same curve: what is cached is run anew."""
    few = replace(FEW, plots=tmp_path)
    rows = list(learning_curves.suite20(few))
    assert [row.name for row in rows if row.target is not None][:2] == ["gap_28x", "bytes_28x"]
    root = ElementTree.parse(tmp_path / "compression.svg").getroot()
    assert len(root.findall("{*}polyline")) == 5
    plan = Plan(SMALL, rounds=1, density=230, rule="robust")
    again = run.__wrapped__(plan)
    assert again == run(plan)
    assert again.last < again.first


def test_momentum_is_one_more_curve() -> None:
    rows = {row.name: row.value for row in learning_curves.momentum(replace(FEW, rounds=2))}
    assert set(rows) == {
        f"tiny_{name}{of}" for name in ("averaged", "none", "momentum") for of in ("", "_rounds")
    }
    assert rows["tiny_momentum"] != rows["tiny_none"]
    assert rows["tiny_averaged_rounds"] == 1  # all but the last quarter: a half of two


@pytest.mark.parametrize("attack", learning_attacks.ATTACKS)
def test_attacks_are_what_they_are_called(attack: str) -> None:
    honest = [payload(seed) for seed in range(6)]
    rule = replace(SMALL.training, densities=(256,))
    found = learning_attacks.payloads(attack, 2, honest, SPEC, rule, 0)
    assert found == learning_attacks.payloads(attack, 2, honest, SPEC, rule, 0)
    mean = np.mean([vector(p) for p in honest], axis=0)
    length = np.linalg.norm(vector(honest[0]))
    for raw in found:
        bad = vector(raw)
        along = float(bad @ mean) / (np.linalg.norm(bad) * np.linalg.norm(mean))
        match attack:
            case "flip":
                assert along < -0.3
                assert 8 * length < np.linalg.norm(bad) < 12 * length
            case "noise":
                assert abs(along) < 0.1
            case "ipm":
                assert along < -0.6
                assert np.linalg.norm(bad) < 1.2 * length
            case "alie":
                assert np.linalg.norm(bad) < 2 * length
            case _:
                assert raw == honest[0]


def test_a_screened_attack_is_run_through() -> None:
    plan = Plan(SMALL, 6, 1, 256, rule="robust", bad=2, attack="flip", is_screened=True)
    curve = run(plan)
    assert 0 <= curve.refused <= 1
    assert curve.refused_bad > 0


def test_a_chart_holds_every_value_inside() -> None:
    root = ElementTree.fromstring(
        chart("a < b", "round", "nats", {"one": [3.0, 1.0], "two": [2.0]})
    )
    points = [p for line in root.findall("{*}polyline") for p in line.attrib["points"].split()]
    assert len(points) == 3
    assert all(
        0 <= float(p.split(",")[0]) <= 640 and 0 <= float(p.split(",")[1]) <= 360 for p in points
    )
    assert "a < b" in [text.text for text in root.findall("{*}text")]
