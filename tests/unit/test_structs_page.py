"""docs/spec/structs.md names every struct as the programs have it."""

from tests.reference.codec_ref import ROOT
from tests.reference.structs_page import page


def test_the_page_is_what_the_programs_say() -> None:
    """If not: python -m tests.reference.structs_page > docs/spec/structs.md"""
    assert (ROOT / "docs/spec/structs.md").read_text() == page()
