"""Reading what a contributor has, and refusing what is no text with a reason."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest

from chain.errors import InputError
from corpus import ingest as module
from corpus.ingest import ingest
from corpus.licenses import check_license

TEXT = b"".join(b"line %d of an ordinary text file\n" % i for i in range(100))


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_one_text_file(tmp_path: Path) -> None:
    found = ingest(put(tmp_path / "notes.txt", TEXT))
    assert [(d.name, d.text) for d in found.documents] == [("notes.txt", TEXT)]
    assert found.size_bytes == len(TEXT)
    assert (found.skipped, found.converted, found.truncated) == ([], [], False)


def test_a_directory_is_read_in_order_and_without_what_programs_made(tmp_path: Path) -> None:
    for name in ("b/two.md", "a.py", "b/one.rs", "c.jsonl"):
        data = json.dumps({"text": TEXT.decode()}).encode() if name.endswith("jsonl") else TEXT
        put(tmp_path / name, data)
    for name in ("__pycache__/x.txt", ".git/config", "node_modules/m.js", ".hidden"):
        put(tmp_path / name, TEXT)
    put(tmp_path / "image.png", bytes(range(256)))
    put(tmp_path / "empty.txt", b"")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.py")
    found = ingest(tmp_path)
    assert [d.name for d in found.documents] == ["a.py", "c.jsonl#1", "b/one.rs", "b/two.md"]
    reasons = dict(found.skipped)
    assert sorted(reasons) == ["empty.txt", "image.png", "link.txt"]
    assert reasons["image.png"].startswith("binary data")
    assert reasons["empty.txt"].startswith("the file is empty")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n" * 2000, "nothing but white space"),
        ("a.txt", random.Random(1).randbytes(5000), "binary data"),
        ("a.txt", bytes(range(128, 256)) * 40, "not UTF-8, and not Latin text"),
        ("a.txt", b"\xff\xfe" + b"\x00\xd8" * 3000, "broken UTF-16"),
        ("a.txt", b"short\n", "expected at least 2048"),
        ("a.jsonl", TEXT, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', 'line 2 has no "text" field'),
        ("a.jsonl", b'["text"]\n', 'line 1 has no "text" field'),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b"\n\n", "no records"),
        ("a.jsonl", b'{"text": ""}\n' * 3, "no text found"),
    ],
)
def test_what_is_no_text_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    path = put(tmp_path / name, data)
    with pytest.raises(InputError, match=reason) as refused:
        ingest(path)
    assert name in str(refused.value)
    assert "expected" in str(refused.value)


def test_missing_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        ingest(tmp_path / "nothing")
    with pytest.raises(InputError, match="no text found"):
        ingest(tmp_path)
    put(tmp_path / "x.bin", bytes(5000))
    with pytest.raises(InputError, match="1 files skipped: binary data"):
        ingest(tmp_path)


def test_other_encodings_become_utf8_and_are_reported(tmp_path: Path) -> None:
    words = "Größe und Maß, naïve café\n" * 100
    put(tmp_path / "bom.txt", b"\xef\xbb\xbf" + words.encode())
    put(tmp_path / "latin.txt", words.encode("latin-1"))
    put(tmp_path / "wide.txt", words.encode("utf-16"))
    found = ingest(tmp_path)
    assert [d.text.decode() for d in found.documents] == [words] * 3
    assert found.converted == ["latin.txt", "wide.txt"]


def test_short_records_are_joined(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"record {i} " + "x" * 90}) for i in range(100)]
    found = ingest(put(tmp_path / "a.jsonl", "\n".join(lines).encode()))
    assert [d.name for d in found.documents][:2] == ["a.jsonl#1", "a.jsonl#22"]
    assert all(len(d.text) >= module.MIN_RECORD_BYTES for d in found.documents[:-1])
    assert sum(d.text.count(b"record") for d in found.documents) == 100


def test_a_limit_cuts_at_a_line(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", TEXT)
    put(tmp_path / "b.txt", TEXT)
    found = ingest(tmp_path, len(TEXT) + 100)
    assert found.truncated
    assert found.documents[1].text == b"".join(TEXT.splitlines(keepends=True)[:3])
    assert ingest(tmp_path / "a.txt", 2100).size_bytes <= 2100
    assert not ingest(tmp_path, 10**9).truncated
    with pytest.raises(InputError, match="expected at least 2048"):
        ingest(tmp_path, 100)


def test_newcomers_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NEWCOMER_DATASET_BYTES", 5000)
    put(tmp_path / "a.txt", TEXT)
    assert ingest(tmp_path).size_bytes == len(TEXT)
    put(tmp_path / "b.txt", TEXT)
    with pytest.raises(InputError, match=r"more than 5000 bytes of text.*--limit-bytes"):
        ingest(tmp_path)


def test_odd_names_are_made_printable(tmp_path: Path) -> None:
    put(tmp_path / "a\x01\udcff.txt", TEXT)
    assert ingest(tmp_path).documents[0].name == "a??.txt"


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is here")
def test_parquet_without_pyarrow_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install pyarrow"):
        ingest(put(tmp_path / "a.parquet", b"PAR1"))


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "PSF-2.0",
        "GPL-2.0-or-later WITH Classpath-exception-2.0",
        "(MIT OR Apache-2.0) AND CC-BY-4.0",
        "Apache-2.0+",
        "LicenseRef-Local",
    ],
)
def test_licences(expression: str) -> None:
    check_license(expression)


@pytest.mark.parametrize(
    "expression",
    ["", "mit", "MIT Apache-2.0", "MIT OR", "(MIT", "MIT)", "MIT WITH x", "none", "M" * 65, "()"],
)
def test_what_is_no_licence(expression: str) -> None:
    with pytest.raises(InputError, match="expected an SPDX expression"):
        check_license(expression)
