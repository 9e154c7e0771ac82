"""docs/spec/transactions.md against the code: every payload, and every code that can refuse one."""

import ast
import re
from typing import get_args

from chain.codec import tag_of
from chain.transactions import Payload
from tests.reference.codec_ref import ROOT

PAGE = (ROOT / "docs/spec/transactions.md").read_text()


def codes() -> set[str]:
    """The first argument of every TxError in chain/."""
    found = set()
    for path in (ROOT / "chain").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id="TxError"), args=[ast.Constant(value=str(code)), *_]
                ):
                    found.add(code)
                case ast.Call(func=ast.Name(id="TxError")):
                    raise AssertionError(f"{path}:{node.lineno}: a code that is no literal")
    return found


def test_every_code_stands_on_the_page() -> None:
    written = set(re.findall(r"`([a-z_]+)`", PAGE))
    assert codes(), "the code refuses something"
    assert codes() - written == set()


def test_every_payload_stands_in_the_table() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \|", PAGE, re.MULTILINE)
    tags = {int(tag) for row in rows for tag in row.split(",")}
    assert {tag_of(cls) for cls in get_args(Payload)} == tags
