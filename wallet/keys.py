"""One mnemonic, four separate Ed25519 keys (docs/spec/wallet.md).

A BIP-39 mnemonic gives a 64-byte seed, from which SLIP-0010 derives hardened Ed25519 keys at
`m/44'/6450297'/role'/index'` (6450297 is `bly` in ASCII). The keys of one mnemonic do not reveal
one another, so the node's keys may be on a server while the account's stays offline.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from enum import IntEnum

from mnemonic import Mnemonic
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from chain.errors import InputError, invariant
from chain.hashes import Hash32
from chain.types import PubKey, Signature

SEED_BYTES = 32
PURPOSE = 44
COIN = 0x626C79  # "bly"; not registered in SLIP-0044, and no registered coin has it
MAX_INDEX = 2**31 - 1  # every level is hardened
MNEMONIC_BITS = 256  # 24 words


class Role(IntEnum):
    """What a derived key is for. The number is a level of its path."""

    ACCOUNT = 0
    NODE = 1
    CONSENSUS = 2
    VRF = 3


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key. `seed` (32 bytes, RFC 8032 private key) never shows in `repr`."""

    public: PubKey
    seed: bytes = field(repr=False)
    _secret: bytes = field(repr=False, compare=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        if len(seed) != SEED_BYTES:
            raise InputError(f"a key seed has {SEED_BYTES} bytes, not {len(seed)}")
        public, secret = crypto_sign_seed_keypair(seed)
        return cls(PubKey(public), seed, secret)

    def sign(self, digest: Hash32) -> Signature:
        """Ed25519 over a domain-separated hash. Only `wallet.signing` should need this.

        A key never signs bytes that someone else chose: what is signed is always a hash that
        this program computed under a context of its own.
        """
        invariant(len(digest) == 32, "keys sign 32-byte digests only")
        return Signature(crypto_sign(digest, self._secret)[:64])


@dataclass(frozen=True, slots=True)
class Keys:
    """The four keys of an operator. The account authorises the others in `announce`."""

    account: KeyPair
    node: KeyPair
    consensus: KeyPair
    vrf: KeyPair

    @classmethod
    def from_mnemonic(cls, words: str, passphrase: str = "", index: int = 0) -> Keys:
        """Keys number `index` of a mnemonic; InputError if the words are no mnemonic.

        `passphrase` is BIP-39's: another one gives other keys, none is ever wrong.
        """
        seed = Mnemonic.to_seed(check_mnemonic(words), passphrase)
        pairs = (KeyPair.from_seed(derive(seed, role_path(role, index))) for role in Role)
        return cls(*pairs)

    @classmethod
    def from_seeds(cls, account: bytes, node: bytes, consensus: bytes, vrf: bytes) -> Keys:
        """Keys that no mnemonic connects, each from its 32-byte seed."""
        return cls(*(KeyPair.from_seed(s) for s in (account, node, consensus, vrf)))


def new_mnemonic() -> str:
    """24 fresh English words, from the operating system's randomness."""
    words: str = Mnemonic("english").generate(MNEMONIC_BITS)
    return words


def check_mnemonic(words: str) -> str:
    """The words in BIP-39's normal form, or an InputError that says what is wrong with them."""
    parts = Mnemonic.normalize_string(words).split()
    parts = [part.lower() for part in parts]
    if len(parts) not in (12, 15, 18, 21, 24):
        raise InputError(f"{len(parts)} words; a mnemonic has 12, 15, 18, 21 or 24")
    text = " ".join(parts)
    if any(Mnemonic(language).check(text) for language in _languages()):
        return text
    known = set(Mnemonic("english").wordlist)
    strange = [i + 1 for i, part in enumerate(parts) if part not in known]
    if strange and len(strange) < len(parts):
        numbers = ", ".join(map(str, strange))  # positions only: the words are secret
        raise InputError(f"not in the English word list: word {numbers}; check the spelling")
    raise InputError("the mnemonic's checksum does not fit: a word is wrong or out of order")


def role_path(role: Role, index: int = 0) -> tuple[int, ...]:
    """The levels of a key's path, before hardening."""
    return (PURPOSE, COIN, int(role), index)


def derive(seed: bytes, path: tuple[int, ...]) -> bytes:
    """SLIP-0010 for ed25519: the 32-byte private key at `path`, every level hardened."""
    node = hmac.digest(b"ed25519 seed", seed, hashlib.sha512)
    for level in path:
        if not 0 <= level <= MAX_INDEX:
            raise InputError(f"key index {level} is outside 0 to {MAX_INDEX}")
        key, chain_code = node[:32], node[32:]
        data = b"\x00" + key + (level | 1 << 31).to_bytes(4, "big")
        node = hmac.digest(chain_code, data, hashlib.sha512)
    return node[:32]


def _languages() -> list[str]:
    others = sorted(set(Mnemonic.list_languages()) - {"english"})
    return ["english", *others]  # nearly always the first fits, and each list costs a file
