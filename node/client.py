"""The client of the HTTP API (docs/spec/api.md): the command line, learners and tests use it.

Every failure is a BlyanError: UnreachableError when nobody answers, TxError with the API's code
when a transaction is refused, InputError for what does not exist or cannot be asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
import msgpack

from chain import limits
from chain.codec import decode, encode
from chain.errors import (
    BlyanError,
    ConfigError,
    DeadlineError,
    DecodeError,
    InputError,
    TxError,
    UnreachableError,
    VerifyError,
)
from chain.hashes import Hash32
from chain.params import Genesis, parse_genesis
from chain.transactions import Payload, Transaction
from chain.types import BlobId, CertifiedBlock, Grains, PubKey, TxId
from node.stamping import spend_of, stamp_for
from wallet.keys import KeyPair, Keys
from wallet.signing import sign_transaction

Json = dict[str, Any]
T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:8645"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0  # a blob of 64 MiB from a busy node
FINAL_TIMEOUT_S = 60.0  # from sending a transaction to its finality
POLL_S = 0.1  # between two looks at a transaction that waits
MAX_EVENT_BYTES = 1024 * 1024  # one server-sent event
MAX_ANSWER_BYTES = limits.MAX_BLOB_BYTES + 1024 * 1024
# Our view of the chain was old, or another program of this account was quicker.
_RETRIED = frozenset({"bad_nonce", "nonce_taken", "underpriced", "stale_stamp", "weak_stamp"})


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of the stream: `block`, `tx`, `phase`, `round` or `peers`."""

    name: str
    data: Any


class Client:
    """One node's API. `transport` may be in-process (httpx.ASGITransport) instead of a socket."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._token = token
        try:
            self._http = httpx.AsyncClient(
                base_url=self.base_url,
                transport=transport,
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                trust_env=False,
                headers={"Accept-Encoding": "identity"},
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(f"{base_url!r} is no URL: {error}; expected {DEFAULT_URL}") from None
        self._genesis: Genesis | None = None
        self._sending = asyncio.Lock()  # nonces are given out one after another

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- reading the chain -------------------------------------------------------------

    async def status(self) -> Json:
        return await self._object("status")

    async def genesis(self) -> Genesis:
        """The network's genesis, parsed; its chain id is computed here, not taken on trust."""
        if self._genesis is None:
            document = await self._object("genesis")
            self._genesis = parse_genesis(json.dumps(document))
        return self._genesis

    async def blocks(self, *, before: int | None = None, limit: int | None = None) -> Any:
        return await self._json("blocks", before=before, limit=limit)

    async def block(self, height_or_hash: int | str) -> Json:
        return await self._object(f"blocks/{height_or_hash}")

    async def raw_block(self, height: int) -> CertifiedBlock:
        raw = await self._bytes(f"blocks/{height}/raw", limits.MAX_MESSAGE_BYTES)
        block: CertifiedBlock = decode(CertifiedBlock, raw)
        return block

    async def txs(self, *, before: int | None = None, limit: int | None = None) -> Any:
        return await self._json("txs", before=before, limit=limit)

    async def tx(self, tx_id: TxId) -> Json:
        return await self._object(f"txs/{tx_id.hex()}")

    async def account(self, address: PubKey | str) -> Json:
        name = address if isinstance(address, str) else address.hex()
        return await self._object(f"accounts/{name}")

    async def validators(self) -> Any:
        return await self._json("validators")

    async def shards(self) -> Any:
        return await self._json("shards")

    async def holdings(self) -> Json:
        return await self._object("holdings")

    async def shard(self, shard: int | str) -> Json:
        return await self._object(f"shards/{shard}")

    async def tile(self, shard: int | str, tile: int) -> Json:
        return await self._object(f"tiles/{shard}/{tile}")

    async def tile_data(self, shard: int, tile: int, root: Hash32 | None = None) -> bytes:
        """A tile's bytes, of the version with this shard root or the newest. Not verified here."""
        wanted = root.hex() if root else None
        return await self._bytes(f"tiles/{shard}/{tile}/data", limits.TILE_BYTES, root=wanted)

    async def model(self, height: int | None = None) -> Json:
        return await self._object("model", height=height)

    async def rounds(self) -> Any:
        return await self._json("rounds")

    async def round(self, number: int | str = "current") -> Json:
        return await self._object(f"rounds/{number}")

    async def deltas(self) -> Any:
        return await self._json("deltas")

    async def delta(self, delta: str) -> Json:
        return await self._object(f"deltas/{delta}")

    async def datasets(self) -> Any:
        return await self._json("datasets")

    async def dataset(self, dataset: str) -> Json:
        return await self._object(f"datasets/{dataset}")

    async def update(self, update: TxId) -> Json:
        return await self._object(f"updates/{update.hex()}")

    async def evals(self, root: Hash32 | None = None) -> Any:
        return await self._json("evals", root=root.hex() if root else None)

    async def losses(self) -> Any:
        return await self._json("losses")

    async def election(self, shard: int | str, tile: int) -> Json:
        return await self._object(f"election/{shard}/{tile}")

    async def custody(self, limit: int | None = None) -> Any:
        return await self._json("custody", limit=limit)

    async def custody_event(self, event: str = "current") -> Json:
        return await self._object(f"custody/{event}")

    async def governance(self, limit: int | None = None) -> Json:
        return await self._object("governance", limit=limit)

    async def parameters(self) -> Json:
        return await self._object("governance/parameters")

    async def model_documents(self, version: str | None = None) -> Json:
        return await self._object("governance/model", version=version)

    async def proposal(self, proposal: str) -> Json:
        return await self._object(f"governance/{proposal}")

    async def peers(self) -> Any:
        return await self._json("peers")

    async def mempool(self) -> Any:
        return await self._json("mempool")

    async def search(self, text: str) -> Any:
        return await self._json("search", q=text)

    async def state_proof(self, key: bytes, height: int | None = None) -> Json:
        """Of the state after `height`, by default the newest. InputError where it is not kept."""
        return await self._object(f"state/{key.hex()}/proof", height=height)

    async def fetch(self, path: str, most: int, **query: int | str | None) -> bytes:
        """The bytes at a path below /api/v1. VerifyError if they are more than `most`."""
        return await self._bytes(path, most, **query)

    # --- blobs -------------------------------------------------------------------------

    async def start_scrub(self) -> None:
        """Have the node read and mend its tiles; needs the node's token."""
        await self._send("POST", "tiles/scrub", token=True)

    async def scrub(self) -> Json:
        """How far the node's scrub is, and its last report."""
        return await self._object("tiles/scrub")

    async def put_blob(self, data: bytes) -> BlobId:
        """Have the node host bytes; needs the node's token."""
        answer = await self._send("POST", "blobs", content=data, token=True)
        return BlobId(_hex(_parsed(answer), "id"))

    async def blob(self, blob: BlobId) -> bytes:
        """A blob's bytes. Not verified here: the caller compares the hash it knows. The node asks
        its peers only for whoever has its token."""
        return await self._hosted(f"blobs/{blob.hex()}")

    async def put_checkpoint(self, state_hash: Hash32, data: bytes) -> None:
        """Have the node serve a training state by its hash until the round settles."""
        await self._send("POST", f"checkpoints/{state_hash.hex()}", content=data, token=True)

    async def checkpoint(self, state_hash: Hash32) -> bytes:
        return await self._hosted(f"checkpoints/{state_hash.hex()}")

    async def _hosted(self, path: str) -> bytes:
        return (await self._send("GET", path, token=True, most=limits.MAX_BLOB_BYTES)).body

    # --- transactions ------------------------------------------------------------------

    async def post_tx(self, raw: bytes) -> TxId:
        """Hand in a signed transaction. TxError with the rule's code if it is refused at once."""
        answer = await self._send("POST", "txs", content=raw, refused=TxError)
        return TxId(_hex(_parsed(answer), "id"))

    async def post_txs(self, batch: Sequence[bytes]) -> list[Json]:
        """Hand in several signed transactions; of each `id`, `code` (`ok`) and `reason`."""
        answer = await self._send("POST", "txs/batch", content=msgpack.packb(list(batch)))
        found = _parsed(answer)
        if not isinstance(found, dict) or not isinstance(found.get("txs"), list):
            raise DecodeError("the answer has no list 'txs'; is this a Blyan node?")
        return list(found["txs"])

    async def wait_tx(self, tx_id: TxId, timeout: float = FINAL_TIMEOUT_S) -> Json:
        """Wait until a transaction is final and its receipt says ok.

        Raises TxError with the receipt's code if it was refused or dropped, and DeadlineError.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = await self.tx(tx_id)
                    if found["status"] == "final":
                        break
                    if found["status"] == "dropped":
                        raise TxError(str(found.get("code")), str(found.get("reason")))
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise DeadlineError(
                f"transaction {tx_id.hex()} was not final after {timeout:.0f} s; "
                f"`blyan query tx {tx_id.hex()}` shows how it goes on"
            ) from None
        if found.get("code") != "ok":
            raise TxError(str(found.get("code")), str(found.get("reason")))
        return found

    async def submit(
        self,
        payload: Payload,
        keys: Keys | KeyPair,
        *,
        fee: int | None = None,
        stamp: bool | None = None,
        timeout: float = FINAL_TIMEOUT_S,
        on_stamp: Callable[[int, int], None] | None = None,
    ) -> tuple[TxId, Json]:
        """Sign, send and wait until final; (id, the API's transaction).

        Pays `fee`, by default the network's least one; an account that cannot pay makes a stamp
        (seconds of work; `on_stamp` gets tries made and expected). `stamp` forces one or the other.
        """
        key = keys.account if isinstance(keys, Keys) else keys

        async def once() -> tuple[TxId, Json]:
            async with self._sending:
                tx = await self._signed(payload, key, fee, stamp, on_stamp)
                tx_id = await self.post_tx(encode(tx))
            return tx_id, await self.wait_tx(tx_id, timeout)

        try:
            return await once()
        except TxError as error:
            if error.code not in _RETRIED:
                raise
        return await once()

    async def _signed(
        self,
        payload: Payload,
        key: KeyPair,
        fee: int | None,
        stamp: bool | None,
        on_stamp: Callable[[int, int], None] | None,
    ) -> Transaction:
        genesis = await self.genesis()
        account = await self.account(key.public)
        nonce = int(account["next_nonce"])
        units = spend_of(payload).units
        price = int(account["price"]["fee"]) * units if fee is None else fee
        if not stamp and (stamp is False or int(account["balance"]) >= price):
            return sign_transaction(
                key, chain_id=genesis.chain_id, nonce=nonce, payload=payload, fee=Grains(price)
            )
        work = await stamp_for(
            account,
            payload,
            chain_id=genesis.chain_id,
            sender=key.public,
            nonce=nonce,
            on_stamp=on_stamp,
        )
        return sign_transaction(
            key, chain_id=genesis.chain_id, nonce=nonce, payload=payload, stamp=work
        )

    # --- events ------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[ServerEvent]:
        """Server-sent events until the node closes the stream; UnreachableError if it breaks."""
        headers = {"Accept": "text/event-stream"}
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.stream(
                "GET", "/api/v1/events", headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    raise _failure(await _read_bounded(answer, MAX_EVENT_BYTES), None)
                async for event in _parse_events(answer.aiter_lines()):
                    yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    # --- the wire ----------------------------------------------------------------------

    async def _json(self, path: str, **query: int | str | None) -> Any:
        return _parsed(await self._send("GET", path, query=query))

    async def _object(self, path: str, **query: int | str | None) -> Json:
        found = await self._json(path, **query)
        if not isinstance(found, dict):
            raise DecodeError(f"{path}: expected a JSON object; is this a Blyan node?")
        return found

    async def _bytes(self, path: str, most: int, **query: int | str | None) -> bytes:
        return (await self._send("GET", path, query=query, most=most)).body

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, int | str | None] | None = None,
        content: bytes | None = None,
        token: bool = False,
        refused: type[TxError] | None = None,
        most: int = MAX_ANSWER_BYTES,
    ) -> _Answer:
        headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
        if token and self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        params = {k: v for k, v in (query or {}).items() if v is not None}
        request = self._http.build_request(
            method, f"/api/v1/{path}", params=params, content=content, headers=headers
        )
        try:
            answer = await self._exchange(request, most)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # The node ends idle connections, perhaps just as we ask. All calls may be repeated: a
            # transaction and a blob are known by their hashes.
            try:
                answer = await self._exchange(request, most)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if answer.status // 100 != 2:
            raise _failure(answer, refused)
        return answer

    async def _exchange(self, request: httpx.Request, most: int) -> _Answer:
        response = await self._http.send(request, stream=True)
        try:
            return await _read_bounded(response, most)
        finally:
            await response.aclose()

    def _unreachable(self, error: httpx.HTTPError) -> UnreachableError:
        why = str(error) or type(error).__name__
        return UnreachableError(
            f"no answer from {self.base_url} ({why}); is the node running? "
            "`blyan-node status` tells; --node names another one"
        )


async def _read_bounded(response: httpx.Response, most: int) -> _Answer:
    """Read a body, but never more than what can be meant. Nothing compressed was asked for: a few
    bytes of it could become gigabytes before they are counted."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise VerifyError(f"{response.url.path}: a compressed answer, which was not asked for")
    parts, size = [], 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > most:
            raise VerifyError(f"{response.url.path}: more than {most} bytes in the answer")
        parts.append(part)
    return _Answer(response.status_code, response.url.path, b"".join(parts))


async def _parse_events(lines: AsyncIterator[str]) -> AsyncIterator[ServerEvent]:
    """The event stream of the HTML standard, as far as the API uses it: event and data."""
    name, data, size = "message", list[str](), 0
    async for line in lines:
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise VerifyError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if line == "":
            if data:
                yield ServerEvent(name, _loads("\n".join(data), "event"))
            name, data, size = "message", [], 0
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def _loads(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DecodeError(f"{where}: the answer is not JSON; is this a Blyan node?") from None


def _parsed(answer: _Answer) -> Any:
    return _loads(answer.body, answer.path)


def _hex(found: Any, name: str) -> Hash32:
    try:
        value = bytes.fromhex(found[name])
    except (KeyError, TypeError, ValueError):
        raise DecodeError(f"the answer has no hex {name!r}; is this a Blyan node?") from None
    return Hash32(value)


def _failure(answer: _Answer, refused: type[TxError] | None) -> BlyanError:
    """The API's error as ours: its code where the class carries one."""
    code, message = "", f"{answer.path}: HTTP {answer.status}"
    try:
        error = json.loads(answer.body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        pass  # not the API's form (a proxy's page): the status line must do
    if answer.status in (401, 403):
        return ConfigError(f"{message}; this needs the api-token of the node's home (--home)")
    if answer.status == 503:
        return UnreachableError(message)
    if answer.status // 100 == 4:
        if refused is TxError or answer.status in (409, 422):
            return TxError(code or "refused", message)
        return InputError(message)
    return BlyanError(message)
