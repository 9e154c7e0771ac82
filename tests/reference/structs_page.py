"""docs/spec/structs.md: every struct, field by field, as the source says it.

Made by `python -m tests.reference.structs_page > docs/spec/structs.md`; a test compares the two.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from tests.reference.codec_ref import Reference, modules, structs

HEAD = (
    "# Structs\n\nMade by `python -m tests.reference.structs_page`; a test compares this page with "
    "the programs.\n\nEvery struct on the wire, in the store and under a hash, by module. How a "
    "field becomes bytes stands in [encoding.md](encoding.md): a struct is the array of its tag "
    "and its fields in this order. A named type (`Height`, `Hash32`, …) is listed there; "
    "`u64[≤ 16]` is a sequence of at most 16, `?` an option, `|` a union told by the tag. What "
    "fields must say of one another, and what a struct does, is on the page named in brackets.\n"
)
WHY = """
## Why
*Made from the programs*: a table written by hand is wrong after the first change that nobody
thought of. The vectors of each module hold the same fields for machines.
"""
PAGES = {
    "chain": "blocks.md",
    "chain.transactions": "transactions.md",
    "chain.records": "state.md",
    "chain.custody_records": "custody.md",
    "chain.guard_records": "rounds.md",
    "chain.momentum": "aggregation.md",
    "chain.round_records": "state.md",
    "chain.light": "light-client.md",
    "chain.light_proofs": "light-client.md",
    "chain.governance_records": "governance.md",
    "chain.tree": "state-tree.md",
    "chain.snapshot": "sync.md",
    "chain.latency": "election.md",
    "chain.price_records": "transactions.md",
    "consensus": "consensus.md",
    "tiles.delta": "delta.md",
    "tiles.gram": "aggregation.md",
    "tiles": "tiles.md",
    "corpus": "datasets.md",
    "learning": "training.md",
    "node.services.bundles": "tile-transfer.md",
    "node.services.presence": "placement.md",
    "node.services.snapshot_wire": "sync.md",
    "node.services.sync_wire": "sync.md",
    "node.services.tile": "tile-transfer.md",
    "node": "network.md",
}


def page() -> str:
    return HEAD + "".join(_module(name) for name in modules()) + WHY


def _module(name: str) -> str:
    _, about = max((len(k), v) for k, v in PAGES.items() if name.startswith(k))
    path = name.replace(".", "/")
    out = [f"\n## `{path}.py` ([{about}]({about}))\n"]
    named = vars(importlib.import_module(name)).values()
    out += [_enum(cls) for cls in named if _is_enum(cls, name)]
    out += [_struct(tag, cls) for tag, cls in sorted(structs(name).items())]
    return "".join(out)


def _is_enum(value: Any, module: str) -> bool:
    return inspect.isclass(value) and issubclass(value, IntEnum) and value.__module__ == module


def _enum(cls: type[IntEnum]) -> str:
    notes = dict(_notes(cls))
    rows = [f"| {m.value} | {m.name} | {_escaped(notes.get(m.name, ''))} |\n" for m in cls]
    return "".join([f"\n### {cls.__name__}\n\n| value | name | |\n|---|---|---|\n", *rows])


def _struct(tag: int, cls: type) -> str:
    text = inspect.cleandoc(cls.__doc__ or "")
    if text.startswith(f"{cls.__name__}("):  # a dataclass without words of its own
        text = ""
    lines = [f"\n### {tag} {cls.__name__}\n", _escaped(" ".join(text.split())) + "\n" * bool(text)]
    notes = dict(_notes(cls))
    hints = typing.get_type_hints(cls, include_extras=True)
    named = Reference()
    rows = [
        f"| `{name}` | {_form(hints[name], kind)} | {_escaped(notes.get(name, ''))} |\n"
        for name, kind in named.fields(cls)
    ]
    if rows:
        lines += ["\n| field | form | |\n|---|---|---|\n", *rows]
    return "".join(lines)


def _form(hint: Any, kind: tuple[Any, ...]) -> str:
    """The type's own name where it has one, else its wire form."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    match kind[0]:
        case "option":
            inner = next(a for a in args if a is not type(None))
            return f"{_form(inner, kind[1])}?"
        case "seq":
            item = typing.get_args(args[0])[0]
            return f"{_form(item, kind[1])}[≤ {kind[2]:,}]"
        case "struct":
            return str(kind[1].__name__)
        case "union":
            return " \\| ".join(cls.__name__ for cls in kind[1])
    if origin is None and hasattr(hint, "__supertype__"):
        return str(hint.__name__)
    match kind:
        case ("uint", bits):
            return f"u{bits}"
        case ("int", bits):
            return f"i{bits}"
        case ("text", most):
            return f"text[≤ {most:,}]"
        case ("bytes", least, most):
            return f"bytes[{most:,}]" if least == most else f"bytes[≤ {most:,}]"
    raise TypeError(f"no words for {kind}")


def _notes(cls: type) -> Iterator[tuple[str, str]]:
    """The comment at each field: on its line, or alone above it."""
    try:
        source = textwrap.dedent(inspect.getsource(cls)).splitlines()
    except OSError:  # an enum made by a call
        return
    (top,) = ast.parse("\n".join(source)).body
    for node in top.body if isinstance(top, ast.ClassDef) else ():
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found = re.search(r"#\s*(.*)", source[(node.end_lineno or node.lineno) - 1])
                above = source[node.lineno - 2].strip()
                if found:
                    yield name, found[1]
                elif above.startswith("#"):
                    yield name, above.lstrip("# ")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("**", r"\*\*")


if __name__ == "__main__":
    sys.stdout.write(page())
