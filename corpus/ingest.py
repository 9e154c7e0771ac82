"""From a path to documents: what a contributor has, as UTF-8 text (docs/spec/datasets.md).

Reads .txt, .md and other text or source files, .jsonl (a "text" field a line), .parquet (a "text"
column, when pyarrow is there) and directories, recursively in sorted order. A file that is not
text inside a directory is skipped and reported; a file named by the user is refused instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chain.errors import InputError
from chain.limits import MAX_DATASET_DOCUMENTS, MAX_DOCUMENT_NAME, MAX_NEWCOMER_DATASET_BYTES

MIN_DATASET_BYTES = 2048  # less cannot be split into windows for training and a holdout
MIN_RECORD_BYTES = 2048  # shorter records are joined, or the table of documents outgrows the text
# Directories whose files are somebody else's or made by a program.
SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
EXPECTED = (
    'expected UTF-8 text: .txt, .md, source files, .jsonl with a "text" field, .parquet with a '
    '"text" column, or a directory of these'
)
_LAYOUT = b"\t\n\x0b\x0c\r\x1b"  # control characters that text files have
_CONTROL = bytes(c for c in range(32) if c not in _LAYOUT) + b"\x7f"


@dataclass(frozen=True, slots=True)
class Document:
    """One unit of text: `name` is its path inside the dataset, `text` UTF-8 bytes."""

    name: str
    text: bytes


@dataclass(slots=True)
class Ingested:
    """What was read, and what was not: (file name, reason) for each file that was skipped."""

    documents: list[Document] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)  # names of files that were not UTF-8
    truncated: bool = False  # stopped at the byte limit
    size_bytes: int = 0


def ingest(path: Path, limit_bytes: int | None = None) -> Ingested:
    """Documents of a file or directory, in a fixed order.

    With `limit_bytes` reading stops there, at a line's end; without it, more than the newcomers'
    limit is refused. Raises InputError naming the file and what was expected.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; {EXPECTED}")
    if limit_bytes is not None and limit_bytes < MIN_DATASET_BYTES:
        raise InputError(f"limit of {limit_bytes} bytes: expected at least {MIN_DATASET_BYTES}")
    most = min(limit_bytes or MAX_NEWCOMER_DATASET_BYTES, MAX_NEWCOMER_DATASET_BYTES)
    out = Ingested()
    for document in _directory(path, out, most) if path.is_dir() else _file(path, out, most):
        if len(out.documents) == MAX_DATASET_DOCUMENTS:
            raise InputError(
                f"{path}: more than {MAX_DATASET_DOCUMENTS} documents; submit a part of them"
            )
        if out.size_bytes + len(document.text) > most:
            if limit_bytes is None:
                raise InputError(_too_large(path))
            out.truncated = True
            _append(out, Document(document.name, _cut(document.text, most - out.size_bytes)))
            break
        _append(out, document)
    _check(out, path)
    return out


def _append(out: Ingested, document: Document) -> None:
    if document.text:
        out.documents.append(document)
        out.size_bytes += len(document.text)


def _too_large(path: Path) -> str:
    return (
        f"{path}: more than {MAX_NEWCOMER_DATASET_BYTES} bytes of text; submit a part of it, "
        "or take its beginning with --limit-bytes"
    )


def _cut(text: bytes, size: int) -> bytes:
    """The whole lines of the first `size` bytes."""
    return text[: text.rfind(b"\n", 0, size) + 1]


def _check(out: Ingested, path: Path) -> None:
    if not out.documents:
        why = f" ({len(out.skipped)} files skipped: {out.skipped[0][1]})" if out.skipped else ""
        raise InputError(f"{path}: no text found{why}; {EXPECTED}")
    if out.size_bytes < MIN_DATASET_BYTES:
        raise InputError(
            f"{path}: {out.size_bytes} bytes of text; expected at least {MIN_DATASET_BYTES}, "
            "or nothing can be held out"
        )


# --- files -------------------------------------------------------------------------


def _directory(root: Path, out: Ingested, most: int) -> Iterator[Document]:
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in SKIPPED_DIRECTORIES)
        for file in sorted(files):
            path = Path(directory, file)
            name = path.relative_to(root).as_posix()
            if file[0] == ".":
                continue
            if path.is_symlink() or not path.is_file():
                out.skipped.append((name, "not a regular file"))
                continue
            try:
                for document in _file(path, out, most):
                    yield Document(_clean_name(name + document.name[len(file) :]), document.text)
            except InputError as error:
                out.skipped.append((name, str(error).removeprefix(f"{path}: ")))


def _file(path: Path, out: Ingested, most: int) -> Iterator[Document]:
    """The documents of one file, named after it. Raises InputError if it holds no text."""
    name = _clean_name(path.name)
    if path.suffix.lower() == ".parquet":
        yield from _joined(name, _parquet_texts(path))
        return
    raw = _read(path, most)
    if not raw:
        raise InputError(f"{path}: the file is empty; {EXPECTED}")
    text, converted = _decode(path, raw)
    if converted:
        out.converted.append(name)
    if path.suffix.lower() == ".jsonl":
        yield from _joined(name, _jsonl_texts(path, text))
    elif text.strip():
        yield Document(name, text)
    else:
        raise InputError(f"{path}: nothing but white space; {EXPECTED}")


def _read(path: Path, most: int) -> bytes:
    """The file, or its whole lines within somewhat more than the limit, which then cuts it."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
            if len(raw) > most:
                raw += file.readline(MAX_NEWCOMER_DATASET_BYTES)
            return raw
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _clean_name(name: str) -> str:
    """A name that a manifest may hold: printable, valid UTF-8, short."""
    text = name.encode("utf-8", "replace").decode()
    text = "".join(c if c >= " " and c != "\x7f" else "?" for c in text)
    while len(text.encode()) > MAX_DOCUMENT_NAME:
        text = text[1:]  # the end of a path tells more than its beginning
    return text


def _decode(path: Path, raw: bytes) -> tuple[bytes, bool]:
    """The text as UTF-8, and whether it was something else. Raises InputError for binary data."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return raw.decode("utf-16").encode(), True
        except UnicodeError:
            raise InputError(f"{path}: broken UTF-16; {EXPECTED}") from None
    control = len(raw) - len(raw.translate(None, _CONTROL))
    if b"\0" in raw or control * 64 > len(raw):
        raise InputError(f"{path}: binary data; {EXPECTED}")
    try:
        raw.decode()
    except UnicodeDecodeError:
        high = len(raw) - len(raw.translate(None, bytes(range(128, 256))))
        if high * 4 > len(raw):
            raise InputError(f"{path}: not UTF-8, and not Latin text either; {EXPECTED}") from None
        return raw.decode("latin-1").encode(), True
    return raw, False


# --- records -----------------------------------------------------------------------


def _joined(name: str, texts: Iterator[str]) -> Iterator[Document]:
    """Records as documents `name#first`, short ones joined by an empty line."""
    parts: list[bytes] = []
    first = number = size = 0
    for number, text in enumerate(texts, 1):
        data = text.encode("utf-8", "replace").replace(b"\0", b"")
        if not data.strip():
            continue
        if not parts:
            first = number
        parts.append(data)
        size += len(data)
        if size >= MIN_RECORD_BYTES:
            yield Document(f"{name}#{first}", b"\n\n".join(parts) + b"\n")
            parts, size = [], 0
    if parts:
        yield Document(f"{name}#{first}", b"\n\n".join(parts) + b"\n")
    elif not number:
        raise InputError(f'{name}: no records; expected at least one with a "text" field')


def _jsonl_texts(path: Path, text: bytes) -> Iterator[str]:
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(
                f'{path}: line {number} is not JSON; expected one object with a "text" field a line'
            ) from None
        found = record.get("text") if isinstance(record, dict) else None
        if not isinstance(found, str):
            raise InputError(
                f'{path}: line {number} has no "text" field of type string; expected one object '
                'such as {"text": "..."} a line'
            )
        yield found


def _parquet_texts(path: Path) -> Iterator[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"{path}: reading .parquet needs pyarrow (pip install pyarrow); or convert the file "
            'to .jsonl with a "text" field'
        )
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path)
        if "text" not in table.schema_arrow.names:
            raise InputError(f'{path}: no column "text"; it has {table.schema_arrow.names}')
        for batch in table.iter_batches(columns=["text"]):
            yield from (value for value in batch.column(0).to_pylist() if isinstance(value, str))
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{path}: not a readable .parquet file ({error})") from None
