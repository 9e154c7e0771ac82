"""The text forms of keys: an account's is bech32m with the human part `bly`, a node's its libp2p
peer id (docs/spec/wallet.md, docs/spec/network.md).

Source: BIP-350. 32 key bytes give 62 characters; every error in up to four characters is found.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

from chain.errors import InputError
from chain.types import PubKey

HUMAN_PART = "bly"
KEY_BYTES = 32
CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
CHECKSUM_LENGTH = 6
MAX_LENGTH = 90  # characters; beyond it the checksum's guarantees end (BIP-173)

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# identity multihash (0x00) of 36 bytes: protobuf {Type: Ed25519 = 1, Data: 32 bytes}
_PEER_PREFIX = bytes.fromhex("002408011220")

_BECH32M = 0x2BC830A3
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_EXAMPLE = "an address such as bly1… (62 characters) or a public key of 64 hex digits"


def format_address(account: PubKey) -> str:
    """`bly1…` for an account key of 32 bytes."""
    return bech32m_encode(HUMAN_PART, _regroup(account, 8, 5, pad=True))


def parse_address(text: str) -> PubKey:
    """The account key in an address, or in 64 hex digits; InputError says what is wrong."""
    text = text.strip()
    if len(text) == 2 * KEY_BYTES and all(c in string.hexdigits for c in text):
        return PubKey(bytes.fromhex(text))
    human_part, values = bech32m_decode(text)
    if human_part != HUMAN_PART:
        raise InputError(f"the address begins with {human_part!r}; expected {_EXAMPLE}")
    key = bytes(_regroup(values, 5, 8, pad=False))
    if len(key) != KEY_BYTES:
        raise InputError(f"the address holds {len(key)} bytes, a key has 32; expected {_EXAMPLE}")
    return PubKey(key)


def peer_id_of(public_key: bytes) -> str:
    """The libp2p peer id, as text, of a 32-byte Ed25519 public key (libp2p peer-ids spec)."""
    if len(public_key) != 32:
        raise InputError(f"a node's public key has 32 bytes, not {len(public_key)}")
    number = int.from_bytes(_PEER_PREFIX + public_key)
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = BASE58[digit] + digits
    return "1" + digits  # the leading zero byte


def bech32m_encode(human_part: str, values: Sequence[int]) -> str:
    """`human_part`, `1`, the five-bit `values` and their checksum as text (BIP-350)."""
    padded = [*_expand(human_part), *values, *[0] * CHECKSUM_LENGTH]
    check = _polymod(padded) ^ _BECH32M
    checksum = [check >> 5 * (CHECKSUM_LENGTH - 1 - i) & 31 for i in range(CHECKSUM_LENGTH)]
    return human_part + "1" + "".join(CHARSET[v] for v in (*values, *checksum))


def bech32m_decode(text: str) -> tuple[str, list[int]]:
    """(human part in lower case, five-bit values without checksum), or InputError (BIP-350)."""
    if len(text) > MAX_LENGTH:
        raise InputError(f"{len(text)} characters are no address; expected {_EXAMPLE}")
    if not all("!" <= c <= "~" for c in text):
        raise InputError(f"not an address: it has a space or a sign outside ASCII; {_EXAMPLE}")
    if text != text.lower() and text != text.upper():
        raise InputError("the address mixes upper and lower case; copy it again")
    human_part, separator, data = text.lower().rpartition("1")
    if not separator or not human_part or len(data) < CHECKSUM_LENGTH:
        raise InputError(f"{text!r} is no address; expected {_EXAMPLE}")
    if unknown := sorted(set(data) - set(CHARSET)):
        raise InputError(f"{unknown[0]!r} does not occur in addresses; copy the address again")
    values = [CHARSET.index(c) for c in data]
    if _polymod([*_expand(human_part), *values]) != _BECH32M:
        raise InputError("the address has a typing error (its checksum is wrong); copy it again")
    return human_part, values[:-CHECKSUM_LENGTH]


def _expand(human_part: str) -> list[int]:
    return [ord(c) >> 5 for c in human_part] + [0] + [ord(c) & 31 for c in human_part]


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATORS):
            if top >> i & 1:
                check ^= generator
    return check


def _regroup(values: Iterable[int], width: int, into: int, *, pad: bool) -> list[int]:
    """Bits in groups of `width` as groups of `into`. Without `pad`, leftovers must be zeros."""
    bits, held, groups = 0, 0, []
    for value in values:
        bits, held = bits << width | value, held + width
        while held >= into:
            held -= into
            groups.append(bits >> held)
            bits &= (1 << held) - 1
    if pad and held:
        groups.append(bits << into - held)
    elif not pad and (held >= width or bits):
        raise InputError("the address ends in stray bits; copy it again")
    return groups
