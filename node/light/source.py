"""An untrusted node's API as a light client reads it: every answer bounded in bytes and time, and
decoded strictly. What it says is checked elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from chain import limits
from chain.codec import decode
from chain.errors import (
    BlyanError,
    DeadlineError,
    DecodeError,
    InputError,
    TxError,
    UnreachableError,
    VerifyError,
)
from chain.hashes import Hash32
from chain.light import LightBlock
from chain.light_proofs import HeaderRange, TxProof
from chain.params import Genesis, parse_genesis
from chain.tree import StateProof, verify_state_proof
from chain.types import Block, CertifiedBlock, Header, TxId
from node.client import Client

T = TypeVar("T")

ANSWER_S = 30.0  # for a whole answer, however slowly it drips
MAX_LIGHT_BLOCK_BYTES = 256 * 1024  # 64 headers, 512 signatures and 512 members take 200 KiB
MAX_HEADERS_BYTES = 128 * 1024  # 256 headers
MAX_TX_PROOF_BYTES = limits.MAX_OPENING_TX_BYTES + 1024
MAX_STATE_ANSWER_BYTES = 1024 * 1024  # the tile roots of the largest shard, in hex, take 280 KB
MAX_GENESIS_BYTES = 4 * 1024 * 1024
MAX_TEXT = 300  # characters of what a node says that are repeated on a terminal


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """A value (None: absent) with the proof and header that were shown for it."""

    key: bytes
    value: bytes | None
    proof: StateProof
    header: Header

    def check(self, header: Header) -> None:
        """VerifyError unless the proof holds under a header that is known to be right."""
        if self.header != header:
            raise VerifyError(
                f"the proof of {self.key[:5]!r} was shown under another header than block "
                f"{header.height} has"
            )
        if not verify_state_proof(header.state_root, self.key, self.value, self.proof):
            raise VerifyError(
                f"the proof of {self.key[:5]!r} does not lead to the state root of block "
                f"{header.height}"
            )


class LightSource:
    """One node. Errors name it; their text is safe to print, whatever the node sent."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.url = client.base_url

    async def light_block(self, height: int) -> LightBlock:
        return await self._struct(LightBlock, f"light/{height}", MAX_LIGHT_BLOCK_BYTES)

    async def headers(self, first: int, last: int) -> tuple[Header, ...]:
        """The headers of these heights; whether they hang together is not checked here."""
        found = await self._struct(HeaderRange, f"headers/{first}/{last}", MAX_HEADERS_BYTES)
        if [h.height for h in found.headers] != list(range(first, last + 1)):
            raise VerifyError(f"{self.url}: these are not the headers {first} to {last}")
        return found.headers

    async def header(self, height: int) -> Header:
        return (await self.headers(height, height))[0]

    async def tx_proof(self, tx: TxId) -> TxProof:
        return await self._struct(TxProof, f"txs/{tx.hex()}/proof", MAX_TX_PROOF_BYTES)

    async def block(self, header: Header) -> Block:
        """The body of a block whose header is known. VerifyError if it is another's."""
        path = f"blocks/{header.height}/raw"
        found = await self._struct(CertifiedBlock, path, limits.MAX_MESSAGE_BYTES)
        if found.block.header != header:
            raise VerifyError(f"{self.url} shows another block {header.height}")
        return found.block

    async def state(self, key: bytes, height: int | None = None) -> StateAnswer:
        """A value of the state after `height`, by default the node's newest; to be checked."""
        query = {} if height is None else {"height": height}
        path = f"state/{key.hex()}/proof"
        answer = self._object(await self._get(path, MAX_STATE_ANSWER_BYTES, **query))
        value = None if answer.get("value") is None else self._hex(answer, "value")
        proof = self._decoded(StateProof, self._hex(answer, "proof"))
        header = self._decoded(Header, self._hex(answer, "header"))
        if height is not None and header.height != height:
            raise VerifyError(f"{self.url}: the state of block {header.height}, not {height}")
        return StateAnswer(key, value, proof, header)

    async def genesis(self) -> Genesis:
        """The genesis document; its chain id is computed here and to be compared."""
        raw = await self._get("genesis", MAX_GENESIS_BYTES)
        try:
            return parse_genesis(raw.decode())
        except (UnicodeDecodeError, BlyanError) as error:
            raise VerifyError(f"{self.url}: no genesis document: {printable(error)}") from None

    async def tile(self, shard: int, tile: int, root: Hash32) -> bytes:
        return await self._bounded(self._client.tile_data(shard, tile, root))

    # --- inside ----------------------------------------------------------------------

    async def _struct(self, cls: type[T], path: str, most: int) -> T:
        return self._decoded(cls, await self._get(path, most))

    async def _get(self, path: str, most: int, **query: int) -> bytes:
        return await self._bounded(self._client.fetch(path, most, **query))

    async def _bounded(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise DeadlineError(f"{self.url} did not answer within {ANSWER_S:.0f} s") from None
        except VerifyError as error:
            raise VerifyError(f"{self.url}: {printable(error)}") from None
        except (InputError, TxError) as error:
            raise InputError(f"{self.url} says: {printable(error)}") from None
        except BlyanError as error:
            text = printable(error)
            told = text if self.url in text else f"{self.url}: {text}"
            raise UnreachableError(told) from None

    def _decoded(self, cls: type[T], raw: bytes) -> T:
        try:
            found: T = decode(cls, raw)
        except DecodeError as error:
            raise VerifyError(f"{self.url}: no {cls.__name__}: {printable(error)}") from None
        return found

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise VerifyError(f"{self.url}: a JSON object was expected; is this a Blyan node?")
        return found

    def _hex(self, answer: dict[str, Any], name: str) -> bytes:
        try:
            return bytes.fromhex(answer[name])
        except (KeyError, TypeError, ValueError):
            raise VerifyError(f"{self.url}: the answer has no hex {name!r}") from None


def printable(error: object) -> str:
    """What a node said, without what would move a cursor or fill a terminal."""
    text = "".join(c if c.isprintable() else "?" for c in str(error)[: MAX_TEXT + 1])
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
