"""Canonical MessagePack: one value, one byte string (docs/spec/encoding.md).

A struct is the array `[tag, field, ...]`. Fields are unsigned or signed integers, bytes,
strings, arrays and structs; there are no floats, maps, booleans or nil. `X | None` is an array
of zero or one element. `decode` refuses whatever would not re-encode to the same bytes.

A struct is a frozen dataclass marked with `@wire(tag)`; its field types carry the limits:

    @wire(7)
    @dataclass(frozen=True, slots=True)
    class Transfer:
        to: PubKey
        amount: Grains
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgpack

from chain import limits
from chain.errors import DecodeError
from chain.hashes import Hash32

T = TypeVar("T")


# --- field kinds ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UInt:
    """An unsigned integer below 2**bits."""

    bits: int = 64


@dataclass(frozen=True, slots=True)
class SInt:
    """A signed integer in [-2**(bits-1), 2**(bits-1))."""

    bits: int = 64


@dataclass(frozen=True, slots=True)
class Bytes:
    """Between `least` and `most` bytes."""

    most: int
    least: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """At most `most` bytes of UTF-8 without control characters."""

    most: int


@dataclass(frozen=True, slots=True)
class Seq:
    """At most `most` items."""

    most: int


U8 = Annotated[int, UInt(8)]
U16 = Annotated[int, UInt(16)]
U32 = Annotated[int, UInt(32)]
U64 = Annotated[int, UInt(64)]
I64 = Annotated[int, SInt(64)]

_KINDS: dict[Any, Any] = {Hash32: Bytes(32, 32)}
_STRUCTS: dict[type, _Struct] = {}
_TAGS: dict[int, type] = {}


def register(new_type: Any, kind: UInt | SInt | Bytes | Text) -> None:
    """Give a `NewType` its wire form. Called once, beside the type's definition."""
    _KINDS[new_type] = kind


def wire(tag: int) -> Callable[[type[T]], type[T]]:
    """Class decorator: makes a frozen dataclass a struct with this tag."""

    def mark(cls: type[T]) -> type[T]:
        if tag in _TAGS:
            raise TypeError(f"tag {tag} belongs to {_TAGS[tag].__name__} already")
        _TAGS[tag] = cls
        _STRUCTS[cls] = _Struct(cls, tag)
        return cls

    return mark


def tag_of(cls: type) -> int:
    return _STRUCTS[cls].tag


def wire_types() -> dict[int, type]:
    """All registered structs by tag, for vectors and property tests."""
    return dict(sorted(_TAGS.items()))


# --- the public pair -------------------------------------------------------------


def encode(value: Any) -> bytes:
    """The canonical bytes of a struct. Raises DecodeError if a field exceeds its limit."""
    return pack(_to_plain(type(value), value, "value"))


def decode(cls: Any, data: bytes, *, most: int = limits.MAX_MESSAGE_BYTES) -> Any:
    """The struct of type `cls` (a wire class or a union of them) in `data`, or DecodeError."""
    if len(data) > most:
        raise DecodeError(f"{len(data)} bytes where at most {most} are allowed")
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_str_len=limits.MAX_MESSAGE_BYTES,
            max_bin_len=limits.MAX_BLOB_BYTES,
            max_array_len=min(limits.MAX_SHARDS, len(data)),  # lists are allocated up front
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise DecodeError(f"not MessagePack of this protocol: {error}") from None
    value = _from_plain(cls, plain, _name(cls), limits.MAX_DEPTH)
    if pack(plain) != bytes(data):
        raise DecodeError(f"{_name(cls)}: not in canonical (shortest) form")
    return value


def pack(plain: Any) -> bytes:
    """MessagePack of plain integers, bytes, strings and lists, in shortest form."""
    packed: bytes = msgpack.packb(plain, use_bin_type=True, strict_types=True)
    return packed


# --- structs ---------------------------------------------------------------------


class _Struct:
    __slots__ = ("_fields", "cls", "tag")

    def __init__(self, cls: type, tag: int) -> None:
        self.cls, self.tag = cls, tag
        self._fields: list[tuple[str, Any]] | None = None

    @property
    def fields(self) -> list[tuple[str, Any]]:
        if self._fields is None:  # resolved late: annotations may name later classes
            hints = typing.get_type_hints(self.cls, include_extras=True)
            self._fields = [(f.name, hints[f.name]) for f in fields(self.cls)]
        return self._fields


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _seq_of(kind: Any) -> tuple[Any, int] | None:
    """(item kind, most) if kind is Annotated[tuple[X, ...], Seq(most)]."""
    if get_origin(kind) is Annotated:
        inner, *marks = get_args(kind)
        if get_origin(inner) is tuple:
            most = next(m.most for m in marks if isinstance(m, Seq))
            return get_args(inner)[0], most
    return None


def _scalar_of(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        inner, *marks = get_args(kind)
        return next((m for m in marks if not isinstance(m, Seq)), _KINDS.get(inner))
    return _KINDS.get(kind)


_PLAN: dict[Any, tuple[str, Any]] = {}


def _plan(kind: Any) -> tuple[str, Any]:
    """What a field type means, worked out once: a form and what it needs."""
    try:
        return _PLAN[kind]
    except KeyError:
        pass
    seq = _seq_of(kind)
    if kind in _STRUCTS:
        plan: tuple[str, Any] = ("struct", _STRUCTS[kind])
    elif seq is not None:
        plan = ("seq", seq)
    elif _is_union(kind) and type(None) in get_args(kind):
        rest = [a for a in get_args(kind) if a is not type(None)]
        plan = ("option", rest[0] if len(rest) == 1 else typing.Union[tuple(rest)])  # noqa: UP007
    elif _is_union(kind):
        plan = ("union", {_STRUCTS[a].tag: a for a in get_args(kind)})
    elif (scalar := _scalar_of(kind)) is not None:
        plan = ("scalar", scalar)
    else:
        raise TypeError(f"{kind} has no wire form")
    _PLAN[kind] = plan
    return plan


def _to_plain(kind: Any, value: Any, where: str) -> Any:
    form, spec = _plan(kind)
    if form == "scalar":
        if isinstance(value, IntEnum):
            value = int(value)
        _check_scalar(spec, value, where)
        return value
    if form == "struct":
        if type(value) is not spec.cls:
            raise DecodeError(f"{where}: {type(value).__name__} where {spec.cls.__name__} belongs")
        name = spec.cls.__name__
        return [
            spec.tag,
            *(_to_plain(k, getattr(value, n), f"{name}.{n}") for n, k in spec.fields),
        ]
    if form == "seq":
        item, most = spec
        if len(value) > most:
            raise DecodeError(f"{where}: {len(value)} items where at most {most} are allowed")
        if _are_scalars(item, value):
            return list(value)
        return [_to_plain(item, v, where) for v in value]
    if form == "option":
        return [] if value is None else [_to_plain(spec, value, where)]
    if type(value) not in spec.values():
        raise DecodeError(f"{where}: {type(value).__name__} is not one of the allowed types")
    return _to_plain(type(value), value, where)


def _from_plain(kind: Any, plain: Any, where: str, depth: int) -> Any:
    if depth < 0:
        raise DecodeError(f"{where}: nested deeper than {limits.MAX_DEPTH}")
    form, spec = _plan(kind)
    if form == "scalar":
        _check_scalar(spec, plain, where)
        return plain
    if type(plain) is not list:
        raise DecodeError(f"{where}: {type(plain).__name__} where an array belongs")
    if form == "struct":
        members = spec.fields
        if len(plain) != len(members) + 1 or type(plain[0]) is not int or plain[0] != spec.tag:
            raise DecodeError(f"{where}: not a {spec.cls.__name__} (tag {spec.tag})")
        values = [
            _from_plain(k, v, f"{spec.cls.__name__}.{n}", depth - 1)
            for (n, k), v in zip(members, plain[1:], strict=True)
        ]
        return spec.cls(*values)
    if form == "seq":
        item, most = spec
        if len(plain) > most:
            raise DecodeError(f"{where}: {len(plain)} items where at most {most} are allowed")
        if _are_scalars(item, plain):
            return tuple(plain)
        return tuple(_from_plain(item, v, where, depth - 1) for v in plain)
    if form == "option":
        if len(plain) > 1:
            raise DecodeError(f"{where}: {len(plain)} items where none or one belongs")
        return _from_plain(spec, plain[0], where, depth - 1) if plain else None
    if not plain or type(plain[0]) is not int or plain[0] not in spec:
        raise DecodeError(f"{where}: unknown type tag")
    return _from_plain(spec[plain[0]], plain, where, depth)


def _are_scalars(kind: Any, values: Sequence[Any]) -> bool:
    """Whether all `values` are unsigned integers, or byte strings, as `kind` wants them. A list of
    60,000 fits a transaction, and looking at each by itself would cost every node a fifth of a
    second; a Merkle proof is 50 hashes, and is had in the time of ten."""
    form, spec = _plan(kind)
    if form != "scalar" or not values:
        return False
    if type(spec) is UInt:
        return set(map(type, values)) == {int} and min(values) >= 0 and max(values) < 1 << spec.bits
    if type(spec) is Bytes:
        sizes = set(map(len, values)) if set(map(type, values)) == {bytes} else set()
        return bool(sizes) and min(sizes) >= spec.least and max(sizes) <= spec.most
    return False


def _check_scalar(kind: Any, value: Any, where: str) -> None:
    match kind:
        case UInt(bits):
            ok = type(value) is int and 0 <= value < 1 << bits
            expected = f"an unsigned integer of {bits} bits"
        case SInt(bits):
            ok = type(value) is int and -(1 << bits - 1) <= value < 1 << bits - 1
            expected = f"a signed integer of {bits} bits"
        case Bytes(most, least):
            ok = type(value) is bytes and least <= len(value) <= most
            expected = f"{most} bytes" if least == most else f"{least} to {most} bytes"
        case Text(most):
            ok = type(value) is str and _is_text(value, most)
            expected = f"text of at most {most} bytes without control characters"
        case _:
            raise TypeError(f"{where}: unknown kind {kind}")
    if not ok:
        raise DecodeError(f"{where}: expected {expected}")


def _is_text(value: str, most: int) -> bool:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return False
    return size <= most and all(c >= " " and c != "\x7f" for c in value)
