"""MessagePack of plain integers, bytes, strings and lists: what lies under the codec, without types
and canonical form (docs/spec/encoding.md)."""

from __future__ import annotations

import re
from typing import Any

import msgpack

from chain import limits
from chain.errors import DecodeError

_UNSEEN_ITEMS = 32 * 1024  # 256 KiB of lists
# What takes a known number of bytes, in runs: numbers, arrays of under 16 items (a thousand of
# them, nested, are 120 KiB), hashes, signatures. Possessive: nothing is kept to go back to.
_RUN = re.compile(
    rb"(?:\xc4(?:\x20.{32}|\x40.{64})|[\x00-\x9f\xc0-\xc3\xe0-\xff]"
    rb"|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8})*+",
    re.DOTALL,
)
_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}
_PACKERS: list[msgpack.Packer] = []  # idle ones: making one takes longer than most packing
_KEPT_BYTES = 256 * 1024  # a new one has as much


def pack(plain: Any) -> bytes:
    """MessagePack of plain integers, bytes, strings and lists, in shortest form."""
    try:
        packer = _PACKERS.pop()  # one step for threads: nobody else has it
    except IndexError:
        packer = msgpack.Packer(use_bin_type=True, strict_types=True)
    packed: bytes = packer.pack(plain)
    if len(packed) <= _KEPT_BYTES:  # its buffer stays as long as what it has packed
        _PACKERS.append(packer)
    return packed


def unpack(data: bytes, most_items: int = limits.MAX_SHARDS) -> Any:
    """What MessagePack says, of the kinds that this protocol has, or DecodeError. Whether it is in
    shortest form is for the caller."""
    most = min(most_items, len(data))
    # Lists are allocated as long as they claim to be, so what is claimed is looked at first, if
    # there are bytes enough that may claim much: a claim takes three at least.
    if len(data) * most > 3 * _UNSEEN_ITEMS and _claims_at_most(data) * most > _UNSEEN_ITEMS:
        check_claims(data)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_str_len=limits.MAX_MESSAGE_BYTES,
            max_bin_len=limits.MAX_BLOB_BYTES,
            max_array_len=most,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise DecodeError(f"not MessagePack of this protocol: {error}") from None


def _claims_at_most(data: bytes) -> int:
    return data.count(b"\xdc") + data.count(b"\xdd")


def check_claims(data: bytes) -> None:
    """Raise DecodeError if arrays claim more items in all than there are bytes: each item takes one
    at least. Nested arrays could otherwise claim a thousand times what one may."""
    at, claimed = 0, 0
    while (at := _RUN.match(data, at).end()) < len(data):  # type: ignore[union-attr]
        first = data[at]
        width = _WIDTHS.get(first, 0)
        size = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first & 31
        at += 1 + width
        if first in (0xDC, 0xDD):
            claimed += size
            if claimed > len(data):
                raise DecodeError("not MessagePack of this protocol: more items than bytes")
        elif width or 0xA0 <= first < 0xC0:
            at += size
        else:
            return  # a kind that is none of ours: it is refused where it stands
