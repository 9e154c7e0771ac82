"""What a light client starts from: a header that the user trusts, or the genesis file."""

from __future__ import annotations

from dataclasses import dataclass

from chain.errors import InputError, VerifyError
from chain.hashes import ZERO_HASH, Hash32
from chain.light import Terms, Trusted
from chain.params import Genesis
from chain.types import Header
from node.genesis import build_genesis
from node.light.source import LightSource

GENESIS = "genesis"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block that the user names, by what they have seen elsewhere."""

    height: int
    block_hash: Hash32

    def __str__(self) -> str:
        return f"{self.height}:{self.block_hash.hex()}"


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where the way begins: a header that is believed, on what ground, and under which terms."""

    header: Header
    genesis: Genesis
    terms: Terms
    name: str  # `genesis`, or HEIGHT:HASH
    grounds: tuple[str, ...]

    async def trusted(self, source: LightSource) -> Trusted:
        """With its validator set, which the header's hash of it is compared with."""
        if self.header.height == 0:
            return Trusted(self.header, self.genesis.validator_set)
        block = await source.light_block(self.header.height)
        return Trusted(self.header, block.validators)


def parse_trust(text: str) -> Checkpoint | None:
    """HEIGHT:HASH; None for `genesis`. InputError for anything else."""
    if text == GENESIS:
        return None
    height, _, block_hash = text.partition(":")
    try:
        found = Checkpoint(int(height), Hash32(bytes.fromhex(block_hash)))
    except ValueError:
        found = Checkpoint(-1, Hash32(b""))
    is_height = height.isascii() and height.isdigit() and found.height < 2**63
    if not is_height or len(found.block_hash) != 32:
        raise InputError(
            f"{text[:80]!r} is no checkpoint; expected HEIGHT:HASH, the hash with 64 hexadecimal "
            f"digits as `blyan-node status` shows it, or {GENESIS!r}"
        )
    return found


async def anchor_at(
    source: LightSource, checkpoint: Checkpoint | None, own: Genesis | None
) -> Anchor:
    """The header to start from. `own`: a genesis file of the user's; without one the node's is
    taken if its hash is the chain id that the trusted header names."""
    if checkpoint is None:
        return await _at_genesis(source, own)
    header = await source.header(checkpoint.height)
    if header.hash() != checkpoint.block_hash:
        raise VerifyError(
            f"{source.url}: its block {header.height} is {header.hash().hex()}, not the one that "
            f"you trust ({checkpoint}): another chain, or a lie"
        )
    genesis = own or await source.genesis()
    if genesis.chain_id != header.chain_id:
        whose = "the genesis file" if own else f"the genesis that {source.url} shows"
        raise VerifyError(f"{whose} is of another chain than the trusted block {checkpoint}")
    grounds = (
        f"block {header.height} has the hash that you trust",
        f"the genesis of {genesis.network!r} has the hash that this block names as its chain",
    )
    return Anchor(header, genesis, terms_of(genesis), str(checkpoint), grounds)


async def _at_genesis(source: LightSource, own: Genesis | None) -> Anchor:
    """Header 0 is built from the file; the node only says what its weights hash to, which nothing
    after it rests on: block 1 is believed by signatures of the file's validators."""
    if own is None:
        raise InputError(
            "nothing to trust: pass --trust HEIGHT:HASH as somebody you believe has seen it, or "
            "the network's genesis with --genesis FILE or --home DIR"
        )
    header = await source.header(0)
    members = own.validator_set.hash()
    if header.chain_id != own.chain_id:
        raise VerifyError(f"{source.url} is a node of another network than {own.network!r}")
    expected = (1, 0, ZERO_HASH, own.time_ms, members, members)
    shown = (
        *(header.version, header.epoch, header.parent, header.time_ms),
        *(header.validators_hash, header.next_validators_hash),
    )
    if shown != expected:
        raise VerifyError(f"{source.url}: its block 0 is not what follows from the genesis file")
    grounds = (
        f"genesis of {own.network!r}: chain id, time and {len(own.validators)} validators computed "
        "from the file",
    )
    return Anchor(header, own, terms_of(own), GENESIS, grounds)


def check_genesis_state(anchor: Anchor) -> None:
    """For what stands in block 0 itself: compute its state too, initial weights included."""
    if build_genesis(anchor.genesis).block.header != anchor.header:
        raise VerifyError("the node's block 0 is not what follows from the genesis file")


def terms_of(genesis: Genesis) -> Terms:
    """A header is trusted for two thirds of the evidence age: the rest is for showing evidence."""
    params = genesis.params
    return Terms(genesis.chain_id, 2 * params.evidence_ms // 3, params.clock_drift_ms)


def check_age(anchor: Anchor, now_ms: int) -> None:
    """InputError that says which checkpoint was used, if it may not be trusted any more."""
    age, most = now_ms - anchor.header.time_ms, anchor.terms.trust_ms
    if age < most:
        return
    told = "the genesis block" if anchor.name == GENESIS else f"the checkpoint {anchor.name}"
    raise InputError(
        f"{told} is {duration(age)} old, and a header is trusted for {duration(most)} on this "
        "network: longer, and those who signed it could have taken their stake away and sign "
        "another history. Start from a newer block: --trust HEIGHT:HASH, which somebody you "
        "believe has seen (`blyan-node status` shows it)"
    )


def duration(ms: int) -> str:
    """Two units: `6 min 40 s`, `3 h 2 min`."""
    seconds = max(0, ms) // 1000
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {below}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
