"""Key derivation by the vectors of SLIP-0010 and BIP-39, and what a key refuses."""

from __future__ import annotations

import pytest
from mnemonic import Mnemonic

from chain.crypto import verify
from chain.errors import InputError, InvariantError
from chain.hashes import TX_SIGN, Hash32
from wallet.keys import KeyPair, Keys, Role, check_mnemonic, derive, new_mnemonic, role_path

WORDS = "abandon " * 23 + "art"
SEED_1 = "000102030405060708090a0b0c0d0e0f"
SEED_2 = (
    "fffcf9f6f3f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7b4b1aeaba8a5a2"
    "9f9c999693908d8a8784817e7b7875726f6c696663605d5a5754514e4b484542"
)
# SLIP-0010, test vectors 1 and 2 for ed25519: seed, path, private key.
SLIP10 = [
    (SEED_1, (), "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7"),
    (SEED_1, (0,), "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3"),
    (SEED_1, (0, 1), "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2"),
    (SEED_1, (0, 1, 2), "92a5b23c0b8a99e37d07df3fb9966917f5d06e02ddbd909c7e184371463e9fc9"),
    (SEED_1, (0, 1, 2, 2), "30d1dc7e5fc04c31219ab25a27ae00b50f6fd66622f6e9c913253d6511d1e662"),
    (
        SEED_1,
        (0, 1, 2, 2, 1000000000),
        "8f94d394a8e8fd6b1bc2f3f49f5c47e385281d5c17e65324b0f62483e37e8793",
    ),
    (SEED_2, (), "171cb88b1b3c1db25add599712e36245d75bc65a1a5c9e18d76f9f2b1eab4012"),
    (SEED_2, (0,), "1559eb2bbec5790b0c65d8693e4d0875b1747f4970ae8b650486ed7470845635"),
    (SEED_2, (0, 2147483647), "ea4f5bfe8694d8bb74b7b59404632fd5968b774ed545e810de9c32a4fb4192f4"),
]
FIXED = [  # public keys of WORDS
    "88fef4c832e155487b43ae5f033cd7bfa40b868fba026ae3fd5f420847ff87f9",
    "a53632009a47b72911724ea8bae684a2911abd19d3a400abe9111cb0c1053faa",
    "b1ab09c41ab0779e74277f5cde343f90bcf46c203d6e0e74b2e2f537b82be1af",
    "38f32948afd05185c7abde19d789c677dba299b2050e86041e019581520d5625",
]


@pytest.mark.parametrize(("seed", "path", "private"), SLIP10)
def test_slip10_vectors(seed: str, path: tuple[int, ...], private: str) -> None:
    assert derive(bytes.fromhex(seed), path).hex() == private


def test_slip10_public_key() -> None:
    """The public key of vector 1 at `m`, without SLIP-0010's leading zero byte."""
    pair = KeyPair.from_seed(bytes.fromhex(SLIP10[0][2]))
    assert pair.public.hex() == "a4b2856bfec510abab89753fac1ac0e1112364e7d250545963f135f2a33188ed"


def test_bip39_seed() -> None:
    """The 12-word vector of BIP-39's reference list, passphrase TREZOR."""
    words = "abandon " * 11 + "about"
    expected = (
        "c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e5349553"
        "1f09a6987599d18264c1e1c92f2cf141630c7a3c4ab7c81b2f001698e7463b04"
    )
    assert Mnemonic.to_seed(check_mnemonic(words), "TREZOR").hex() == expected


def test_one_mnemonic_gives_four_keys_by_role_index_and_passphrase() -> None:
    keys = Keys.from_mnemonic(WORDS)
    pairs = [keys.account, keys.node, keys.consensus, keys.vrf]
    assert len({p.public for p in pairs}) == 4
    assert keys == Keys.from_mnemonic(f"  {WORDS.upper()}\n")
    assert keys != Keys.from_mnemonic(WORDS, "other")
    assert keys != Keys.from_mnemonic(WORDS, index=1)
    seed = Mnemonic.to_seed(WORDS)
    assert keys.consensus.seed == derive(seed, role_path(Role.CONSENSUS))
    assert keys == Keys.from_seeds(*(p.seed for p in pairs))


def test_our_paths_never_change() -> None:
    """Changing the derivation would lose everyone's keys."""
    keys = Keys.from_mnemonic(WORDS)
    assert [p.public.hex() for p in (keys.account, keys.node, keys.consensus, keys.vrf)] == FIXED


def test_repr_shows_no_secret() -> None:
    pair = KeyPair.from_seed(bytes(range(32)))
    assert pair.seed.hex() not in repr(pair)
    assert repr(pair.seed) not in repr(pair)
    assert repr(pair) == f"KeyPair(public={pair.public!r})"


def test_signatures_verify_and_only_digests_are_signed() -> None:
    pair = KeyPair.from_seed(bytes(range(32)))
    digest = TX_SIGN.hash(b"x")
    assert verify(pair.public, digest, pair.sign(digest))
    with pytest.raises(InvariantError):
        pair.sign(Hash32(b"a message of someone else's choice"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "0 words"),
        ("abandon abandon", "2 words"),
        ("abandon " * 24, "checksum"),
        ("abandon " * 22 + "abandom art", "word 23"),
        ("xyzzy " * 12, "checksum"),
    ],
)
def test_bad_mnemonics_are_explained_without_repeating_them(words: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check_mnemonic(words)
    assert "abandom" not in str(caught.value)


def test_other_languages_and_their_normal_forms() -> None:
    korean = Mnemonic("korean").to_mnemonic(bytes(range(32)))
    assert Keys.from_mnemonic(korean) == Keys.from_mnemonic(check_mnemonic(korean))
    japanese = Mnemonic("japanese").to_mnemonic(bytes(range(32)))
    assert "\u3000" in japanese
    assert Keys.from_mnemonic(japanese) == Keys.from_mnemonic(japanese.replace("\u3000", " "))


def test_fresh_mnemonics_are_valid_and_differ() -> None:
    words = new_mnemonic()
    assert len(words.split()) == 24
    assert check_mnemonic(words) == words
    assert new_mnemonic() != words


def test_bad_index_and_seed() -> None:
    with pytest.raises(InputError, match="index"):
        Keys.from_mnemonic(WORDS, index=2**31)
    with pytest.raises(InputError, match="32 bytes"):
        KeyPair.from_seed(bytes(31))
