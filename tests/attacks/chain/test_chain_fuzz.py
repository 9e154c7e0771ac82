"""20,000 cases of the fuzz program; more with `python -m tests.attacks.chain.fuzz`."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import Any

import pytest

from chain import codec, plain
from chain.codec import decode, wire_types
from chain.errors import DecodeError
from chain.transactions import Transaction
from node.tx_batch import parse_batch
from tests.attacks import fuzzing
from tests.attacks.chain import fuzz_codec
from tests.attacks.chain.fuzz import PROGRAM, TARGETS
from tests.reference.codec_ref import PACKAGES

CASES = 20_000 // len(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_decoders_agree_and_nothing_crashes_hangs_or_grows(name: str) -> None:
    with fuzzing.alarm():
        outcome = fuzzing.fuzz(TARGETS[name](), 1, 0, CASES, PROGRAM)
    assert outcome.failure is None, outcome.failure
    assert outcome.cases == CASES
    assert min(outcome.results["accepted"], outcome.results["refused"]) > CASES // 10


def test_every_wire_type_has_a_decoder_that_is_fuzzed() -> None:
    fuzzed = [name for decoder in fuzz_codec.NAMES for name in fuzz_codec.types_of(decoder)]
    ours = [c for c in wire_types().values() if c.__module__.split(".")[0] in PACKAGES]
    assert sorted(fuzzed) == sorted(cls.__name__ for cls in ours)


@pytest.mark.parametrize(
    ("name", "bug", "says"),
    [
        ("pack", lambda plain: plain, "only one decodes it"),
        ("_is_text", lambda value, most: len(value) <= most, "only one decodes it"),
        ("check_claims", lambda data: None, "MemoryError"),
    ],
    ids=["no canonical form", "any text", "claims unseen"],
)
def test_a_bug_in_the_decoder_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, bug: Any, says: str
) -> None:
    kept = codec.decode
    monkeypatch.setattr(fuzzing, "TRACED", 1)

    def careless(cls: Any, data: bytes, **options: Any) -> Any:
        monkeypatch.setattr(codec, "pack", lambda plain: bytes(data))
        return kept(cls, data, **options)

    if name == "pack":
        monkeypatch.setattr(fuzz_codec, "decode", careless)
    else:
        monkeypatch.setattr(plain if hasattr(plain, name) else codec, name, bug)
    with fuzzing.alarm():
        outcome = fuzzing.fuzz(TARGETS["peer"](), 3, 0, 3000, PROGRAM)
    assert outcome.failure is not None
    assert says in outcome.failure


# --- claims --------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"\xdc\xff\xff", b"\xdd\x00\x00\xff\xff", b"\xdc\x0f\xff"])
@pytest.mark.parametrize("behind", [0, 4000, 250_000])
def test_nested_claims_take_no_memory(head: bytes, behind: int) -> None:
    """A thousand arrays, each in the one before, that each claim as many items as there are bytes:
    they took half a gigabyte and a tenth of a second where a transfer takes microseconds."""
    data = head * 1000 + bytes(behind)
    tracemalloc.start()
    try:
        for parse in (parse_batch, lambda raw: decode(Transaction, raw)):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with pytest.raises(DecodeError):
                parse(data)
            assert tracemalloc.get_traced_memory()[1] - before < 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "tree",
    [
        [[1] * 5000, [b"\xdc" * 300] * 20, ["\xdc\xdd" * 40] * 30, [-5, -200, 2**40] * 700],
        [list(range(65_536))],
        [[bytes([0xDD]) * 32] * 4000, [b"\xdc" * 64] * 1000, b"\xdd" * 70_000],
        [[[[]] * 20] * 20] * 20,
    ],
)
def test_what_is_there_may_be_claimed(tree: Any) -> None:
    data = plain.pack(tree)
    plain.check_claims(data)
    assert plain.unpack(data) == tree
    with pytest.raises(DecodeError, match="more items than bytes"):
        plain.check_claims(b"\xdd\x7f\xff\xff\xff" + data)
    for end in range(1, min(len(data), 500)):
        with suppress(DecodeError):  # and nothing else, wherever it begins
            plain.check_claims(data[-end:])
