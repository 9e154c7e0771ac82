"""Functions compiled for one struct: what the codec does for each field in a call, in one.

As `dataclasses` makes an `__init__`, from the source text of one function. They take the common way
only, where every field is what it should be; all else, errors included, is left to `otherwise`.

A frozen dataclass sets each of its own fields by a call of `object.__setattr__`, since its open way
is closed. Here an open twin with the same slots sets them as any class does, and becomes the frozen
class once it is whole: a third of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, make_dataclass
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Form = Callable[[Any], Any]


class Member(NamedTuple):
    """A field: `check` is a condition on `{}`, a scalar's; else `form` reads or writes it."""

    name: str
    check: str | None
    form: Form


def reader(cls: type, tag: int, members: Sequence[Member], otherwise: Form) -> Form:
    """From the list `[tag, field, ...]` to a `cls`."""
    names = [f"f{i}" for i in range(len(members))]
    checks = [m.check.format(n) for n, m in zip(names, members, strict=True) if m.check]
    values = [n if m.check else f"{n}_form({n})" for n, m in zip(names, members, strict=True)]
    twin = _twin(cls)
    return _function(
        {"cls": cls, "twin": twin, "otherwise": otherwise, **_forms(names, members)},
        "def function(plain):",
        f"  if type(plain) is list and len(plain) == {len(names) + 1}:",
        f"    {', '.join(['tag', *names])}, = plain",
        f"    if {' and '.join([f'type(tag) is int and tag == {tag}', *checks])}:",
        *_made(twin is cls, "      ", values),
        "  return otherwise(plain)",
    )


def writer(cls: type, tag: int, members: Sequence[Member], otherwise: Form) -> Form:
    """From a `cls` to the list `[tag, field, ...]`."""
    names = [f"f{i}" for i in range(len(members))]
    checks = [m.check.format(n) for n, m in zip(names, members, strict=True) if m.check]
    values = [n if m.check else f"{n}_form({n})" for n, m in zip(names, members, strict=True)]
    return _function(
        {"cls": cls, "otherwise": otherwise, **_forms(names, members)},
        "def function(value):",
        "  if type(value) is cls:",
        *(f"    {n} = value.{m.name}" for n, m in zip(names, members, strict=True)),
        f"    if {' and '.join(checks) or 'True'}:",
        f"      return [{', '.join([str(tag), *values])}]",
        "  return otherwise(value)",
    )


def maker(cls: type[T]) -> Callable[..., T]:
    """What makes a `cls` from the values of all its fields, in order."""
    names = [f"f{i}" for i in range(len(fields(cls)))]  # type: ignore[arg-type]
    twin = _twin(cls)
    return _function(
        {"cls": cls, "twin": twin},
        f"def function({', '.join(names)}):",
        *_made(twin is cls, "  ", names),
    )


def _made(is_same: bool, indent: str, values: Sequence[str]) -> list[str]:
    whole = f"{indent}made = twin({', '.join(values)})"
    frozen = [] if is_same else [f"{indent}made.__class__ = cls"]
    return [whole, *frozen, f"{indent}return made"]


def _twin(cls: Any) -> Any:
    """An open class with the slots of a frozen one; `cls` itself where it has more than slots."""
    is_plain = cls.__bases__ == (object,) and not cls.__dictoffset__
    if not is_plain or not cls.__dataclass_params__.frozen or hasattr(cls, "__post_init__"):
        return cls
    return make_dataclass(cls.__name__, [field.name for field in fields(cls)], slots=True)


def _forms(names: Sequence[str], members: Sequence[Member]) -> Mapping[str, Form]:
    return {f"{name}_form": m.form for name, m in zip(names, members, strict=True)}


def _function(given: Mapping[str, Any], *lines: str) -> Callable[..., Any]:
    space = dict(given)
    exec("\n".join(lines), space)
    made: Callable[..., Any] = space["function"]
    return made
