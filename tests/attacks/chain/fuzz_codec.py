"""Fuzzing the decoder of every wire type, against a second one that shares nothing with it.

A case is a valid value, spoiled as a tree, in the forms that MessagePack has for it, or as bytes.
Both decoders must say the same; what they accept must be the same value, and encode to the same
bytes again. Nothing but DecodeError may be raised.
"""

from __future__ import annotations

import struct
from random import Random
from typing import Any

import msgpack

from chain import limits
from chain.codec import decode, encode, wire_types
from chain.errors import DecodeError
from chain.transactions import CustodyOpening, decode_transaction
from node.tx_batch import parse_batch
from tests.attacks.mutation import anything, number, spoil_bytes, spoil_tree
from tests.reference.codec_ref import all_structs
from tests.reference.schema_ref import Kind, Refused, Schema

SCHEMA = Schema()
all_structs()  # every module with wire types is loaded
CLASSES = {cls.__name__: cls for cls in wire_types().values()}

# Which types each decoder's cases are of; what nobody names falls to `other`.
NAMES: dict[str, tuple[str, ...]] = {
    "transaction": ("Transaction",),
    "payload": ("chain.transactions",),
    "block": ("Block", "CertifiedBlock", "Header", "Validator", "ValidatorSet"),
    "certificate": ("chain.types",),
    "consensus": ("Proposal", "consensus.simplex.messages"),
    "proof": ("chain.tree", "chain.light"),
    "record": (
        *("chain.records", "chain.custody_records", "chain.guard_records"),
        *("chain.price_records", "chain.latency", "chain.momentum", "chain.round_records"),
    ),
    "tile": ("tiles.",),
    "data": ("corpus.", "learning."),
    "peer": ("node.",),
    "other": ("",),
}


def types_of(decoder: str) -> list[str]:
    """By name of the type first, then by the module's."""
    named = {name: key for key, parts in NAMES.items() for name in parts if name in SCHEMA.tags}
    found = []
    for name, module in SCHEMA.modules.items():
        home = named.get(name) or next(
            key
            for key, parts in NAMES.items()
            if any(module.startswith(part) for part in parts if part not in SCHEMA.tags)
        )
        if home == decoder:
            found.append(name)
    return sorted(found)


class CodecTarget:
    """The cases of one decoder."""

    def __init__(self, name: str) -> None:
        self.name, self.types, self.size = name, types_of(name), 0

    def run(self, random: Random) -> str:
        name = random.choice(self.types)
        data = case(random, name)
        self.size = len(data)
        asked = name if random.random() < 0.97 else random.choice(self.types)
        return judge(asked, data)


def judge(name: str, data: bytes) -> str:
    """What both decoders make of the bytes. Raises AssertionError where they differ."""
    try:
        plain = SCHEMA.decode(name, data)
    except Refused:
        plain = None
    try:
        value = decode(CLASSES[name], data)
    except DecodeError:
        value = None
    assert (value is None) == (plain is None), f"{name} {data.hex()}: only one decodes it"
    if value is None:
        return "refused"
    assert SCHEMA.plain(("struct", name), value) == plain, f"{name} {data.hex()}: another value"
    assert encode(value) == data, f"{name} {data.hex()}: two encodings of one value"
    if name == "Transaction":
        judge_transaction(value, data)
    return "accepted"


def judge_transaction(value: Any, data: bytes) -> None:
    fits = len(data) <= limits.MAX_TX_BYTES or isinstance(value.payload, CustodyOpening)
    try:
        taken = decode_transaction(data) == value
    except DecodeError:
        taken = False
    assert taken == (fits and len(data) <= limits.MAX_OPENING_TX_BYTES), f"{len(data)} bytes"


class BatchTarget:
    """Several transactions as one message: a list of byte strings, all different."""

    name = "batch"
    size = 0

    def run(self, random: Random) -> str:
        sizes = (0, 1, 1, 2, 3, 17)
        items: list[Any] = [random.randbytes(random.choice((0, 1, 40, 300))) for _ in sizes]
        tree: Any = items[: random.choice(sizes)]
        if random.random() < 0.5:
            tree = spoil_tree(random, tree, lambda r, leaf: r.choice((leaf[:-1], anything(r))))
        data = loose(random, tree, 0.02)
        if random.random() < 0.3:
            data = spoil_bytes(random, data, 1)
        if random.random() < 0.02:
            data = bomb(random, data)
        try:
            batch = parse_batch(data)
        except DecodeError:
            return "refused"
        assert all(type(raw) is bytes for raw in batch)
        assert len(set(batch)) == len(batch) <= limits.MAX_BLOCK_TXS
        return "accepted"


# --- making cases --------------------------------------------------------------------------


def case(random: Random, name: str) -> bytes:
    """Near an encoding of a type, or far from it."""
    style = random.random()
    if style < 0.03:
        return random.randbytes(random.randrange(80))
    kind = ("struct", name)
    tree = SCHEMA.example(kind, random)
    if style < 0.06:
        return bomb(random, loose(random, tree, 0.0))
    if style < 0.10:
        return loose(random, tree, 0.0)  # as it is
    if style < 0.45:
        edged = at_edge(random, kind, tree)
        return loose(random, edged, 0.0)
    if style < 0.65:
        return loose(random, tree, random.choice((0.02, 0.1)))
    if style < 0.85:
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            tree = spoil_tree(random, tree, spoil_leaf)
        return loose(random, tree, 0.0)
    return spoil_bytes(random, loose(random, tree, 0.0), random.choice((1, 1, 1, 2, 4)))


def at_edge(random: Random, kind: Kind, tree: Any) -> Any:
    """One field somewhere at its limit, or just over it."""
    match kind:
        case ("struct", name):
            fields = SCHEMA.fields[name]
            if not fields:
                return tree
            i = random.randrange(len(fields))
            return [*tree[: i + 1], at_edge(random, fields[i][1], tree[i + 1]), *tree[i + 2 :]]
        case ("union", names):
            name = next(n for n in names if SCHEMA.tags[n] == tree[0])
            return at_edge(random, ("struct", name), tree)
        case ("option", inner):
            if tree and random.random() < 0.8:
                return [at_edge(random, inner, tree[0])]
            return random.choice(([], [*tree, *tree], None, 0))
        case ("seq", item, most):
            if tree and random.random() < 0.5:
                i = random.randrange(len(tree))
                return [*tree[:i], at_edge(random, item, tree[i]), *tree[i + 1 :]]
            one = tree[:1] or [SCHEMA.example(item, random, 0)]
            return one * min(most + random.choice((-1, 0, 0, 1)), 600)
        case ("uint", bits):
            return random.choice((0, 127, 128, 2**bits - 1, 2**bits, -1, 1.0, True))
        case ("int", bits):
            return random.choice((-(2 ** (bits - 1)), -33, -32, -129, 2 ** (bits - 1), -0.5))
        case ("bytes", least, most):
            return bytes(random.choice((max(least - 1, 0), least, min(most, 70_000), least + 1)))
        case ("text", most):
            return random.choice(("x" * most, "x" * (most + 1), "a\x7f", "\x1f", "é" * most, b"x"))
    return tree


def spoil_leaf(random: Random, leaf: Any) -> Any:
    if type(leaf) is int:
        return number(random, leaf)
    if isinstance(leaf, bytes):
        return random.choice((leaf[:-1], leaf + b"\0", spoil_bytes(random, leaf, 1), leaf.hex()))
    return anything(random)


def loose(random: Random, tree: Any, odds: float) -> bytes:
    """MessagePack of a tree; with these odds a value in a form that is longer than it need be, or
    of another kind with the same contents."""
    if random.random() < odds:
        return longer(random, tree, odds)
    if isinstance(tree, list):
        return head(len(tree), 0x90, 16, (0xDC, 0xDD), random, odds) + b"".join(
            loose(random, item, odds) for item in tree
        )
    try:
        packed: bytes = msgpack.packb(tree, use_bin_type=True, unicode_errors="surrogatepass")
    except (OverflowError, ValueError):  # a number that MessagePack cannot say
        return b"\xcf" + b"\xff" * 8
    return packed


def longer(random: Random, tree: Any, odds: float) -> bytes:
    match tree:
        case bool() | None | float():
            return random.choice((b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xcb" + bytes(8)))
        case int():
            forms = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
            forms += ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"), (0xCB, ">d"))
            code, form = random.choice(forms)
            try:
                return bytes([code]) + struct.pack(form, tree)
            except (struct.error, OverflowError):
                return bytes([0xD3]) + struct.pack(">Q", tree & 2**64 - 1)
        case bytes():
            kinds = ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4), (0xC7, 1))
            code, width = random.choice(kinds)
            size = (len(tree) % (1 << 8 * width)).to_bytes(width, "big")
            return bytes([code]) + size + (b"\x05" if code == 0xC7 else b"") + tree
        case str():
            raw = tree.encode(errors="surrogatepass")
            bad = random.choice((raw, b"\xff" + raw, b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80"))
            code, width = random.choice(((0xD9, 1), (0xDA, 2), (0xDB, 4), (0xC4, 1)))
            return bytes([code]) + (len(bad) % (1 << 8 * width)).to_bytes(width, "big") + bad
        case list():
            items = b"".join(loose(random, item, odds) for item in tree)
            codes = (b"\xdc" + struct.pack(">H", len(tree)), b"\xdd" + struct.pack(">I", len(tree)))
            maps = (bytes([0x80 | len(tree) & 15]), b"\xde" + struct.pack(">H", len(tree)))
            return random.choice((*codes, *codes, *maps)) + items
    return b"\xd4\x01\x00"


def head(
    size: int, fixed: int, short: int, codes: tuple[int, int], random: Random, odds: float
) -> bytes:
    """The head of an array; now and then one that claims another length."""
    if random.random() < odds / 4:
        size = max(0, size + random.choice((-1, 1, 16, 65_536)))
    if size < short:
        return bytes([fixed | size])
    if size < 1 << 16:
        return bytes([codes[0]]) + struct.pack(">H", size)
    return bytes([codes[1]]) + struct.pack(">I", size)


def bomb(random: Random, data: bytes) -> bytes:
    """A few bytes that claim many: arrays in arrays, or one huge length."""
    at = random.randrange(len(data) + 1)
    size = random.choice((1, 2, 100, 1023, 5000)) if random.random() < 0.3 else 300
    unit = random.choice(
        (b"\x91", b"\x9f", b"\xdc\xff\xff", b"\xdd\x00\x00\xff\xff", b"\xdc\x0f\xff", b"\x81")
    )
    if random.random() < 0.3:
        unit, size = random.choice((b"\xdd", b"\xc6", b"\xdb", b"\xdf")) + b"\xff" * 4, 1
    return data[:at] + unit * size + data[at:] + bytes(random.choice((0, 0, 3000, 20_000)))
