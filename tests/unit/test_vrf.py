"""The VRF by RFC 9381's own vectors, by our reference, and against forged proofs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chain.errors import VerifyError
from consensus.vrf import output, prove, verify
from tests.reference import vrf as reference

# RFC 9381, appendix B.3, examples 16, 17 and 18: SK, PK, alpha, pi, beta.
RFC9381 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f"
        "26f8a57ccaed74ee1b190bed1f479d97"
        "27d2d0f9b005a6e456a35d4fb0daab1268a1b0db10836d9826a528ca76567805",
        "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff"
        "66b71dda49d2de59d03450451af026798e8f81cd2e333de5cdf4f3e140fdd8ae",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed593"
        "3bf0864a62558b3ed7f2fea45c92a465"
        "301b3bbf5e3e54ddf2d935be3b67926da3ef39226bbc355bdc9850112c8f4b02",
        "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb"
        "5e33821bc613efb94db5e5b54c70a848a0bef4553a41befc57663b56373a5031",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "9bc0f79119cc5604bf02d23b4caede71393cedfbb191434dd016d30177ccbf80"
        "96bb474e53895c362d8628ee9f9ea3c0"
        "e52c7a5c691b6c18c9979866568add7a2d41b00b05081ed0f58ee5e31b3a970e",
        "645427e5d00c62a23fb703732fa5d892940935942101e456ecca7bb217c61c45"
        "2118fec1219202a0edcf038bb6373241578be7217ba85a2687f7a0310b2df19f",
    ),
]
REFUSED: list[dict[str, str]] = json.loads(reference.VECTORS.with_name("refused.json").read_text())
OWN: list[dict[str, Any]] = json.loads(reference.VECTORS.read_text())
CASES = RFC9381 + [(c["seed"], c["public"], c["alpha"], c["proof"], c["output"]) for c in OWN]


@pytest.mark.parametrize(("seed", "public", "alpha", "proof", "beta"), CASES)
def test_vectors(seed: str, public: str, alpha: str, proof: str, beta: str) -> None:
    asked = bytes.fromhex(alpha)
    made = prove(bytes.fromhex(seed), asked)
    assert made.hex() == proof
    assert output(made).hex() == beta
    found = verify(bytes.fromhex(public), asked, made)
    assert found is not None
    assert found.hex() == beta


def test_reference_agrees_with_the_rfc_and_the_vectors() -> None:
    seed, _, alpha, proof, beta = RFC9381[1]
    made = reference.prove(bytes.fromhex(seed), bytes.fromhex(alpha))
    assert (made.hex(), reference.output(made).hex()) == (proof, beta)
    assert reference.vectors()[:2] == OWN[:2]
    assert max(case["tries"] for case in OWN) > 1  # some vectors need a second try


SEED, PUBLIC, ALPHA, PROOF, _ = (bytes.fromhex(x) for x in RFC9381[2])


def test_a_proof_holds_for_its_key_and_input_only() -> None:
    assert verify(PUBLIC, ALPHA + b"\x00", PROOF) is None
    assert verify(bytes.fromhex(RFC9381[0][1]), ALPHA, PROOF) is None
    for bit in range(0, 640, 5):
        changed = bytearray(PROOF)
        changed[bit // 8] ^= 1 << bit % 8
        assert verify(PUBLIC, ALPHA, bytes(changed)) is None


def test_s_must_be_below_the_group_order() -> None:
    s = int.from_bytes(PROOF[48:], "little") + reference.Q
    second = PROOF[:48] + s.to_bytes(32, "little")
    assert verify(PUBLIC, ALPHA, second) is None
    with pytest.raises(VerifyError):
        output(second)


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\x01" + bytes(31),
        b"\x01" + bytes(30) + b"\x80",
        (reference.P - 1).to_bytes(32, "little"),
        reference.P.to_bytes(32, "little"),
        (reference.P + 1).to_bytes(32, "little"),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
        (2).to_bytes(32, "little"),  # not on the curve
        b"\xff" * 32,
        b"",
        PUBLIC[:31],
        PUBLIC + b"\x00",
    ],
)
def test_small_order_non_canonical_and_foreign_points(point: bytes) -> None:
    assert verify(point, ALPHA, PROOF) is None
    assert verify(PUBLIC, ALPHA, point + PROOF[32:]) is None
    with pytest.raises(VerifyError):
        output(point + PROOF[32:])


def test_mixed_order_gamma_has_no_second_proof() -> None:
    """Gamma + T with T of order 8 gives the same output in the RFC; here it is no proof at all.

    The forger holds the key and redraws its nonce until c is a multiple of 8.
    """
    torsion = reference.to_point(
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
    )
    assert torsion is not None
    assert reference.mul(8, torsion) == reference.IDENTITY
    x, _ = reference.secret(SEED)
    y = reference.mul(x, reference.BASE)
    h, _ = reference.encode_to_curve(PUBLIC, ALPHA)
    gamma = reference.add(reference.mul(x, h), torsion)
    for k in range(1, 200):
        nonce_points = reference.mul(k, reference.BASE), reference.mul(k, h)
        c = reference.challenge(y, h, gamma, *nonce_points)
        if c % 8 == 0:
            break
    s = (k + c * x) % reference.Q
    forged = reference.to_bytes(gamma) + c.to_bytes(16, "little") + s.to_bytes(32, "little")
    u = reference.add(reference.mul(s, reference.BASE), reference.neg(reference.mul(c, y)))
    v = reference.add(reference.mul(s, h), reference.neg(reference.mul(c, gamma)))
    assert reference.challenge(y, h, gamma, u, v) == c  # the RFC's check passes
    assert verify(PUBLIC, ALPHA, forged) is None


def test_zero_challenge_and_scalar_are_refused() -> None:
    assert verify(PUBLIC, ALPHA, PROOF[:32] + bytes(48)) is None
    assert verify(PUBLIC, ALPHA, PROOF[:32] + bytes(16) + PROOF[48:]) is None
    assert verify(PUBLIC, ALPHA, PROOF[:48] + bytes(32)) is None


@pytest.mark.parametrize("proof", [b"", PROOF[:79], PROOF + b"\x00", bytes(80)])
def test_malformed_proofs(proof: bytes) -> None:
    assert verify(PUBLIC, ALPHA, proof) is None
    with pytest.raises(VerifyError):
        output(proof)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["why"])
def test_vectors_of_what_is_refused(case: dict[str, str]) -> None:
    key, alpha, proof = (bytes.fromhex(case[k]) for k in ("public", "alpha", "proof"))
    assert verify(key, alpha, proof) is None
