"""From weights to a payload, to the bit: what a learner and its auditors must agree on
(docs/spec/training.md, "Payload")."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from chain.errors import InputError
from chain.hashes import Hash32
from chain.prf import Prf
from learning.compress import Compressed, compress
from learning.held import Held, layout_of
from learning.init import initial_shards
from learning.spec import NANO_MODEL, TrainingSpec
from learning.state import residual_root
from tests.kit.nano import TINY_TRAINING
from tests.reference import delta_ref as reference
from tiles.codings import CODECS, INT8, LOW_RANK

MODEL = replace(
    NANO_MODEL,
    layers=1,
    width=8,
    heads=1,
    experts=2,
    expert_width=8,
    context=8,
    init_seed="compress",
)
BASE = initial_shards(MODEL)
ROOT = Hash32(b"r" * 32)
RULES = {
    codec: replace(TINY_TRAINING, codec=codec, rank=3 * (codec == LOW_RANK)) for codec in CODECS
}
# Of the payload and of the residual after, in hexadecimal: the same on every machine.
ROOTS = {
    "sparse": [
        "f4e32f05760e4a419907805126f400d0cc303162277cc11156b8eb69fec6ec3a",
        "bc07f02f4c8a52947b1de16484b331f6f394dd631b80272a3149e5652154200e",
    ],
    "int8": [
        "709264617627af4bfde498f7ed06b9efbd2ce3cacdbd8ecd65f0b9b0b34fa4fa",
        "d73cc2ad9acb5b0d4c54709a24616d7fec0127c6163a5334f2aec91073b66f15",
    ],
    "lowrank": [
        "763804a703432f8db1cfe85c18a0f9fd383ee2205edd722a922d9db46fb0df16",
        "e4ece3c292ce5abf40c4e89114242f715da6d0c84751c4edc7e07917d1f7e74b",
    ],
}


@cache
def drawn(label: str) -> tuple[bytes, ...]:
    """Sections of fp32 below 8 in size, put together bit by bit: a quarter with the exponent 0
    (zeros and numbers below 2^-126), a quarter with any, half near what weights move by."""
    sections = []
    for i, section in enumerate(BASE):
        words = np.frombuffer(Prf(bytes(32), label, i).read(2 * len(section)), "<u8")
        any_, near = 1 + (words >> 32) % 110, 110 + (words >> 32) % 20
        kind = words >> 62
        exponent = np.where(kind == 0, 0, np.where(kind == 1, any_, near)).astype("<u4")
        bits = (words & 0x807FFFFF).astype("<u4") | exponent << 23
        sections.append(bits.astype("<u4").tobytes())
    return tuple(sections)


def moved() -> tuple[bytes, ...]:
    """Weights after training. Where the base is zero they are what is drawn, as it stands."""
    both = zip(BASE, drawn("after"), strict=True)
    return tuple((np.frombuffer(b, "<f4") + np.frombuffer(d, "<f4")).tobytes() for b, d in both)


def made(rule: TrainingSpec, residual: tuple[bytes, ...] | None) -> Compressed:
    return compress(MODEL, rule, 3, ROOT, BASE, moved(), residual)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "residual"])
def test_each_operation_rounds_once(codec: str, is_fresh: bool) -> None:
    """Beside rational numbers that are rounded where the page says so."""
    residual = None if is_fresh else drawn("residual")
    found = made(RULES[codec], residual)
    beta, cut = rounded(Fraction(95, 100)), 1 - Fraction(1, 2**12)
    shards, targets = [], []
    for i, shard in enumerate(MODEL.shards()):
        target = []
        for j, (before, after) in enumerate(zip(values(BASE[i]), values(moved()[i]), strict=True)):
            each = rounded(after - before)
            if residual is not None:
                each = rounded(each + rounded(beta * values(residual[i])[j]))
            target.append(each)
        targets.append(target)
        kept = [float(max(-cut, min(cut, each))) for each in target]
        shards.append((shard.index, shard.coding, kept))
    number = RULES[codec].density(3)
    payload, root, decoded = reference.payload(ROOT, number, shards)
    assert (found.payload, found.payload_root) == (payload, root)
    for i, target in enumerate(targets):
        left = [rounded(x - Fraction(u, 2**28)) for x, u in zip(target, decoded[i], strict=True)]
        assert values(found.residual[i]) == left
    if residual is not None:
        small = [x for section in residual for x in values(section) if 0 < abs(x) < 2**-126]
        assert len(small) > 50  # numbers that a careless processor takes for zero


@cache
def values(section: bytes) -> list[Fraction]:
    return [Fraction(x) for (x,) in struct.iter_unpack("<f", section)]


def rounded(x: Fraction) -> Fraction:
    """The fp32 nearest to a rational number, ties to even, with the numbers below 2^-126."""
    if not x:
        return x
    power = x.numerator.bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** power:
        power -= 1
    unit = Fraction(2) ** (max(power, -126) - 23)
    return round(x / unit) * unit


@pytest.mark.parametrize("codec", CODECS)
def test_every_machine_gets_the_same_bytes(codec: str) -> None:
    found = made(RULES[codec], drawn("residual"))
    assert [found.payload_root.hex(), found.residual_after.hex()] == ROOTS[codec]


def test_a_part_compresses_as_the_whole_does() -> None:
    held = Held(((1,),))
    kept = [shard.index for shard in layout_of(MODEL, held)]
    base, after, before = ([each[i] for i in kept] for each in (BASE, moved(), drawn("residual")))
    found = compress(MODEL, RULES[INT8], 3, ROOT, base, after, before, held)
    whole = made(RULES[INT8], drawn("residual"))
    assert found.residual == tuple(whole.residual[i] for i in kept)
    assert found.residual_before == residual_root(before)


def test_a_residual_that_no_compression_leaves_is_refused() -> None:
    for value in (np.nan, np.inf, 3e38):
        false = tuple(np.full(len(s) // 4, value, "<f4").tobytes() for s in BASE)
        if value == 3e38:  # large and finite: it is cut, and stays in the residual
            assert made(RULES[INT8], false).residual_after != residual_root(false)
        else:
            with pytest.raises(InputError, match="training has diverged"):
                made(RULES[INT8], false)
