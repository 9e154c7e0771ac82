"""Benchmarks of learning in small: replays with other threads and instruction sets give the same
bits, and duties that aggregate share their payloads."""

from __future__ import annotations

import pytest

from bench import learning_replay
from bench.learning_payloads import payload_rows
from bench.learning_replay import INSTRUCTION_SETS, Tally, instruction_sets, tally


def test_a_replay_with_other_instructions_gives_the_same_bits() -> None:
    """Trained with what the processor has; replayed with SSE kernels, one thread and two."""
    assert tally("exact", 2) == Tally(tries=2, wrong=0, processes=1, seen=2)


def test_another_state_hash_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {"states": ["a", "b", "c"], "threads": [], "class": "AVX2"},
        {"states": ["b", "c"], "threads": [1], "class": "X"},
        {"states": ["b", "b"], "threads": [1, 2], "class": "X"},
        {"states": ["c"], "threads": [1], "class": "X"},
    ]
    asked = []

    def child(kind: str, directory: str, variant: object, first: int, count: int) -> object:
        asked.append((variant, first, count))
        return found[len(asked) - 1]

    monkeypatch.setattr(learning_replay, "_child", child)
    assert tally("exact", 5) == Tally(tries=5, wrong=2, processes=3, seen=2)
    free, first, second, third = INSTRUCTION_SETS[:4]
    assert asked == [(free, 0, 0), (first, 0, 2), (second, 2, 2), (third, 4, 1)]


def test_no_processor_is_asked_for_what_it_has_not() -> None:
    assert instruction_sets("AVX512") == INSTRUCTION_SETS
    assert instruction_sets("AVX2") == INSTRUCTION_SETS[:6]
    assert instruction_sets("DEFAULT") == instruction_sets("SVE256") == INSTRUCTION_SETS[:3]


def test_memory_of_payloads_is_measured_in_processes_of_their_own() -> None:
    rows = list(payload_rows(6, 2))
    values = {row.name: row.value for row in rows}
    assert list(values) == [
        "payloads_6_memory",
        "payloads_6_memory_each",
        "payloads_6_seconds",
        "payloads_6_seconds_each",
    ]
    assert values["payloads_6_memory_each"] - values["payloads_6_memory"] > 10.0  # MB
