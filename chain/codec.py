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

from chain import compiled, limits
from chain.compiled import Member
from chain.errors import DecodeError
from chain.hashes import Hash32
from chain.plain import pack, unpack

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

_Form = Callable[[Any], Any]  # reads or writes one kind of field
_READERS: dict[tuple[Any, str], _Form] = {}
_WRITERS: dict[tuple[Any, str], _Form] = {}
_DECODERS: dict[Any, _Form] = {}  # those of whole values
_ENCODERS: dict[Any, _Form] = {}
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
    cls = type(value)
    return pack((_ENCODERS.get(cls) or _encoder(cls))(value))


def decode(cls: Any, data: bytes, *, most: int = limits.MAX_MESSAGE_BYTES) -> Any:
    """The struct of type `cls` (a wire class or a union of them) in `data`, or DecodeError."""
    if len(data) > most:
        raise DecodeError(f"{len(data)} bytes where at most {most} are allowed")
    plain = unpack(data)
    value = (_DECODERS.get(cls) or _decoder(cls))(plain)
    if pack(plain) != bytes(data):
        raise DecodeError(f"{_name(cls)}: not in canonical (shortest) form")
    return value


# --- structs ---------------------------------------------------------------------


class _Struct:
    __slots__ = ("_fields", "cls", "tag")

    def __init__(self, cls: type, tag: int) -> None:
        self.cls, self.tag = cls, tag
        self._fields: list[tuple[str, Any, str]] | None = None

    @property
    def fields(self) -> list[tuple[str, Any, str]]:
        """Name, kind, and what an error calls it, of each."""
        if self._fields is None:  # resolved late: annotations may name later classes
            hints = typing.get_type_hints(self.cls, include_extras=True)
            self._fields = [
                (f.name, hints[f.name], f"{self.cls.__name__}.{f.name}") for f in fields(self.cls)
            ]
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


def _plan(kind: Any) -> tuple[str, Any]:
    """What a field type means: a form and what it needs."""
    seq = _seq_of(kind)
    if kind in _STRUCTS:
        return "struct", _STRUCTS[kind]
    if seq is not None:
        return "seq", seq
    if _is_union(kind) and type(None) in get_args(kind):
        rest = [a for a in get_args(kind) if a is not type(None)]
        return "option", rest[0] if len(rest) == 1 else typing.Union[tuple(rest)]  # noqa: UP007
    if _is_union(kind):
        return "union", {_STRUCTS[a].tag: a for a in get_args(kind)}
    scalar = _scalar_of(kind)
    if scalar is None:
        raise TypeError(f"{kind} has no wire form")
    return "scalar", scalar


# --- readers and writers -----------------------------------------------------------
# A field type becomes a function once, and is not looked at again: a node decodes each
# transaction that anybody sends.


def _reader(kind: Any, where: str) -> _Form:
    """From what MessagePack gave to a value of `kind`, or DecodeError, which calls it `where`."""
    try:
        return _READERS[kind, where]
    except KeyError:
        return _READERS.setdefault((kind, where), _new_reader(kind, where))


def _decoder(cls: Any) -> _Form:
    return _DECODERS.setdefault(cls, _reader(cls, _name(cls)))


def _encoder(cls: Any) -> _Form:
    return _ENCODERS.setdefault(cls, _writer(cls, "value"))


def _new_reader(kind: Any, where: str) -> _Form:
    form, spec = _plan(kind)
    if form == "scalar":
        return _scalar(spec, where)
    if form == "struct":
        return _struct_reader(spec, where)
    if form == "seq":
        item, most = spec
        return _seq_reader(item, most, where)
    if form == "option":
        return _option_reader(_reader(spec, where), where)
    return _union_reader({tag: _reader(cls, where) for tag, cls in spec.items()}, where)


def _struct_reader(struct: _Struct, where: str) -> _Form:
    cls, tag, size = struct.cls, struct.tag, len(struct.fields) + 1
    members = [_reader(kind, name) for _, kind, name in struct.fields]

    def read(plain: Any) -> Any:
        if type(plain) is not list:
            raise _no_array(plain, where)
        if len(plain) != size or type(plain[0]) is not int or plain[0] != tag:
            raise DecodeError(f"{where}: not a {cls.__name__} (tag {tag})")
        return cls(*[member(value) for member, value in zip(members, plain[1:], strict=True)])

    return compiled.reader(cls, tag, _members(struct, members), read)


def _members(struct: _Struct, forms: Sequence[_Form]) -> list[Member]:
    return [
        Member(name, _check_of(*_plan(kind)), form)
        for (name, kind, _), form in zip(struct.fields, forms, strict=True)
    ]


def _check_of(form: str, spec: Any) -> str | None:
    """What holds of a scalar, as source text; None where that says too little, or it is none."""
    if form != "scalar" or type(spec) is Text:
        return None
    if type(spec) is Bytes:
        return f"type({{0}}) is bytes and {spec.least} <= len({{0}}) <= {spec.most}"
    low = -(1 << spec.bits - 1) if type(spec) is SInt else 0
    return f"type({{0}}) is int and {low} <= {{0}} < {low + (1 << spec.bits)}"


def _seq_reader(item: Any, most: int, where: str) -> _Form:
    one, are_fine = _reader(item, where), _all_scalars(item)

    def read(plain: Any) -> Any:
        if type(plain) is not list:
            raise _no_array(plain, where)
        if len(plain) > most:
            raise DecodeError(f"{where}: {len(plain)} items where at most {most} are allowed")
        return tuple(plain) if are_fine(plain) else tuple(map(one, plain))

    return read


def _option_reader(inner: _Form, where: str) -> _Form:
    def read(plain: Any) -> Any:
        if type(plain) is not list:
            raise _no_array(plain, where)
        if len(plain) > 1:
            raise DecodeError(f"{where}: {len(plain)} items where none or one belongs")
        return inner(plain[0]) if plain else None

    return read


def _union_reader(members: dict[int, _Form], where: str) -> _Form:
    def read(plain: Any) -> Any:
        if type(plain) is not list:
            raise _no_array(plain, where)
        if not plain or type(plain[0]) is not int or plain[0] not in members:
            raise DecodeError(f"{where}: unknown type tag")
        return members[plain[0]](plain)

    return read


def _no_array(plain: Any, where: str) -> DecodeError:
    return DecodeError(f"{where}: {type(plain).__name__} where an array belongs")


def _writer(kind: Any, where: str) -> _Form:
    """From a value of `kind` to what MessagePack packs, or DecodeError, which calls it `where`."""
    try:
        return _WRITERS[kind, where]
    except KeyError:
        return _WRITERS.setdefault((kind, where), _new_writer(kind, where))


def _new_writer(kind: Any, where: str) -> _Form:
    form, spec = _plan(kind)
    if form == "scalar":
        return _scalar_writer(spec, where)
    if form == "struct":
        return _struct_writer(spec, where)
    if form == "seq":
        item, most = spec
        return _seq_writer(item, most, where)
    if form == "option":
        return _option_writer(_writer(spec, where))
    return _union_writer({cls: _writer(cls, where) for cls in spec.values()}, where)


def _scalar_writer(spec: Any, where: str) -> _Form:
    check = _scalar(spec, where)

    def write(value: Any) -> Any:
        return check(int(value) if isinstance(value, IntEnum) else value)

    return write if isinstance(spec, UInt | SInt) else check


def _struct_writer(struct: _Struct, where: str) -> _Form:
    cls, tag = struct.cls, struct.tag
    members = [(name, _writer(kind, full)) for name, kind, full in struct.fields]

    def write(value: Any) -> Any:
        if type(value) is not cls:
            raise DecodeError(f"{where}: {type(value).__name__} where {cls.__name__} belongs")
        return [tag, *[member(getattr(value, name)) for name, member in members]]

    return compiled.writer(cls, tag, _members(struct, [form for _, form in members]), write)


def _seq_writer(item: Any, most: int, where: str) -> _Form:
    one, are_fine = _writer(item, where), _all_scalars(item)

    def write(value: Any) -> Any:
        if len(value) > most:
            raise DecodeError(f"{where}: {len(value)} items where at most {most} are allowed")
        return list(value) if are_fine(value) else list(map(one, value))

    return write


def _option_writer(inner: _Form) -> _Form:
    return lambda value: [] if value is None else [inner(value)]


def _union_writer(members: dict[type, _Form], where: str) -> _Form:
    def write(value: Any) -> Any:
        if type(value) not in members:
            raise DecodeError(f"{where}: {type(value).__name__} is not one of the allowed types")
        return members[type(value)](value)

    return write


def _all_scalars(kind: Any) -> Callable[[Sequence[Any]], bool]:
    """Tells whether all of some values are unsigned integers, or byte strings, as `kind` wants
    them. A list of 60,000 fits a transaction, and looking at each by itself would cost every node
    a fifth of a second; a Merkle proof is 50 hashes, and is had in the time of ten."""
    form, spec = _plan(kind)

    def are_uints(values: Sequence[Any]) -> bool:
        is_int = set(map(type, values)) == {int}
        return is_int and min(values) >= 0 and max(values) < 1 << spec.bits

    def are_bytes(values: Sequence[Any]) -> bool:
        sizes = set(map(len, values)) if set(map(type, values)) == {bytes} else set()
        return bool(sizes) and min(sizes) >= spec.least and max(sizes) <= spec.most

    if form == "scalar" and type(spec) is UInt:
        return are_uints
    if form == "scalar" and type(spec) is Bytes:
        return are_bytes
    return lambda values: False


def _scalar(kind: Any, where: str) -> _Form:
    """Gives a scalar back if it is what `kind` says."""
    match kind:
        case UInt(bits):
            low, high = 0, 1 << bits
            expected = f"an unsigned integer of {bits} bits"
        case SInt(bits):
            low, high = -(1 << bits - 1), 1 << bits - 1
            expected = f"a signed integer of {bits} bits"
        case Bytes(most, least):
            low, high = least, most + 1
            expected = f"{most} bytes" if least == most else f"{least} to {most} bytes"
        case Text(most):
            low, high = 0, most
            expected = f"text of at most {most} bytes without control characters"
        case _:
            raise TypeError(f"{where}: unknown kind {kind}")

    def number(value: Any) -> Any:
        if type(value) is int and low <= value < high:
            return value
        raise DecodeError(f"{where}: expected {expected}")

    def octets(value: Any) -> Any:
        if type(value) is bytes and low <= len(value) < high:
            return value
        raise DecodeError(f"{where}: expected {expected}")

    def text(value: Any) -> Any:
        if type(value) is str and _is_text(value, high):
            return value
        raise DecodeError(f"{where}: expected {expected}")

    return text if isinstance(kind, Text) else octets if isinstance(kind, Bytes) else number


def _is_text(value: str, most: int) -> bool:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return False
    return size <= most and all(c >= " " and c != "\x7f" for c in value)
