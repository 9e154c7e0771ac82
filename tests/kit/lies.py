"""What the tests of lying APIs share: lies about one path, and light blocks that nobody signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chain.address import format_address
from chain.certificates import assemble
from chain.hashes import Hash32
from chain.light import LightBlock
from chain.types import Certificate, Header, Height, Stake, Validator, ValidatorSet, VoteKind
from tests.kit.liar import Answer, Lie
from tests.kit.local_chain import key
from tests.kit.site import Site
from wallet.keys import KeyPair
from wallet.signing import sign_vote

TIP, PAID = 30, 20
TO = key("to").public
WHO = ("account", format_address(TO))
Run = Callable[..., tuple[int, str]]  # `blyan verify` at a URL: exit code, and what was said


def only(prefix: str, lie: Callable[[bytes], Answer | bytes]) -> Lie:
    return lambda path, body: lie(body) if path.startswith(prefix) else body


def with_field(body: bytes, name: str, value: Any) -> bytes:
    return json.dumps(json.loads(body) | {name: value}).encode()


def checkpoint(site: Site, height: int) -> str:
    header = site.run(lambda chain: chain.store.header(Height(height)))
    assert header is not None
    return f"{height}:{header.hash().hex()}"


def certified(block: LightBlock, header: Header, pairs: list[KeyPair]) -> Certificate:
    votes = [
        sign_vote(
            pair,
            chain_id=header.chain_id,
            kind=VoteKind.FINALIZE,
            epoch=header.epoch,
            view=header.view,
            block_hash=header.hash(),
        )
        for pair in pairs
    ]
    return assemble(block.validators, votes)


def own_set(block: LightBlock) -> LightBlock:
    """Everything signed, by validators that the liar has made up."""
    pairs = sorted((key(f"liar {i}") for i in range(4)), key=lambda pair: pair.public)
    members = ValidatorSet(
        tuple(Validator(p.public, p.public, p.public, "liar", Stake(10**12)) for p in pairs)
    )
    made = replace(block.header, validators_hash=members.hash(), state_root=Hash32(bytes(32)))
    block = LightBlock((made,), block.finalization, members)
    return replace(block, finalization=certified(block, made, pairs))
