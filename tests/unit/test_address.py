"""Bech32m by the vectors of BIP-350, and account addresses on top of it."""

from __future__ import annotations

import pytest

from chain.address import bech32m_decode, bech32m_encode, format_address, parse_address
from chain.errors import InputError
from chain.types import PubKey

VALID = [
    "A1LQFN3A",
    "a1lqfn3a",
    "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
    "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
    "11llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllludsr8",
    "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
    "?1v759aa",
]
INVALID = [
    "\x201xj0phk",
    "\x7f1g6xzxy",
    "\x801vctc34",
    "an84characterslonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11d6pts4",
    "qyrz8wqd2c9m",
    "1qyrz8wqd2c9m",
    "y1b0jsk6g",
    "lt1igcx5c0",
    "in1muywd",
    "mm1crxm3i",
    "au1s5cgom",
    "M1VUXWEZ",
    "16plkw9",
    "1p2gdwpf",
    "A12UEL5L",  # Bech32, not Bech32m
    "A1lqfn3a",  # mixed case
]


@pytest.mark.parametrize("text", VALID)
def test_bip350_valid(text: str) -> None:
    human_part, values = bech32m_decode(text)
    assert bech32m_encode(human_part, values) == text.lower()


@pytest.mark.parametrize("text", INVALID)
def test_bip350_invalid(text: str) -> None:
    with pytest.raises(InputError):
        bech32m_decode(text)


def test_bip350_taproot_program() -> None:
    """A 32-byte program of BIP-350: five-bit grouping agrees with other implementations."""
    text = "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"
    _, values = bech32m_decode(text)
    as_key = bech32m_encode("bly", values[1:])
    expected = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    assert parse_address(as_key).hex() == expected


def test_round_trip_and_hex() -> None:
    for key in (PubKey(bytes(32)), PubKey(bytes(range(32))), PubKey(b"\xff" * 32)):
        text = format_address(key)
        assert text.startswith("bly1")
        assert len(text) == 62
        assert parse_address(text) == key
        assert parse_address(text.upper()) == key
        assert parse_address(f"  {text}\n") == key
        assert parse_address(key.hex()) == key
        assert parse_address(key.hex().upper()) == key


def test_every_single_substitution_is_found() -> None:
    text = format_address(PubKey(bytes(range(32))))
    for i in range(4, len(text)):
        for c in "qp7l":
            if text[i] != c:
                with pytest.raises(InputError):
                    parse_address(text[:i] + c + text[i + 1 :])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no address"),
        ("alice", "no address"),
        ("00" * 31, "no address"),
        ("zz" * 32, "no address"),
        ("bly1qqqq", "no address"),
        (bech32m_encode("bc", [0] * 52), "begins with 'bc'"),
        (bech32m_encode("bly", [0] * 40), "25 bytes"),
        (bech32m_encode("bly", [0] * 51 + [1]), "stray bits"),
        (bech32m_encode("bly", [0] * 54), "stray bits"),
    ],
)
def test_bad_addresses_are_explained(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_address(text)
