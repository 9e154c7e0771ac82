"""The deterministic auditor: integers in, a report out, the same on every machine
(docs/spec/datasets.md, "Audit").

It measures what bytes can show: encoding, share of text, duplicates, repetition, what looks like
secrets. It says nothing about truth or quality; that is what the vote is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain import limits
from chain.codec import U8, U16, U32, Seq, encode, wire
from chain.hashes import AUDIT, DOCUMENT, Hash32
from chain.transactions import Verdict
from corpus.dataset import DatasetManifest
from corpus.similar import normalized

AUDITOR_VERSION = 1
PER_MILLE = 1000
MIN_LINE_BYTES = 24  # shorter lines repeat in any honest text
PASSING_SCORE = 50
SCORE_BUCKET = 10


class Finding(IntEnum):
    NOT_UTF8 = 1  # hard: a document is not UTF-8
    BINARY = 2  # hard: control characters are more than 1 in 100 bytes
    ALL_DUPLICATES = 3  # hard: more than 900 in 1000 bytes repeat earlier documents
    SOME_DUPLICATES = 4  # more than 100 in 1000
    REPETITIVE = 5  # more than 400 in 1000 bytes of longer lines repeat earlier lines
    VERY_REPETITIVE = 6  # more than 800
    SECRETS = 7  # something has the form of a private key or an access token
    PERSONAL = 8  # more than 1 mail address in 2,000 bytes
    TINY_DOCUMENTS = 9  # the mean document is under 200 bytes


HARD = frozenset({Finding.NOT_UTF8, Finding.BINARY, Finding.ALL_DUPLICATES})
PENALTY = {
    Finding.SOME_DUPLICATES: 10,
    Finding.REPETITIVE: 10,
    Finding.VERY_REPETITIVE: 40,
    Finding.SECRETS: 20,
    Finding.PERSONAL: 20,
    Finding.TINY_DOCUMENTS: 10,
}

_SECRETS = re.compile(
    rb"-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY-----"
    rb"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[0-9A-Za-z]{36}\b"
    rb"|\bxox[abprs]-[0-9A-Za-z-]{20,72}\b"
    rb"|\bAIza[0-9A-Za-z_-]{35}\b"
)
# Begins with one character, not a run: a long run without an @ would cost its square.
_MAIL = re.compile(rb"[0-9A-Za-z._+-]@[0-9A-Za-z-]{1,63}\.[A-Za-z]{2}")
_CONTROL = bytes(c for c in range(32) if c not in b"\t\n\x0b\x0c\r\x1b") + b"\x7f"


@wire(114)
@dataclass(frozen=True, slots=True)
class AuditMeasures:
    """What an auditor counted. Shares are per mille of the dataset's bytes, rounded down."""

    version: U8
    dataset: Hash32
    documents: U32
    not_utf8: U32  # documents
    control_share: U16
    duplicate_share: U16  # in documents whose normalised text came before
    repeated_share: U16  # of bytes in lines of at least 24 bytes, in lines that came before
    secrets: U32
    mails: U32
    findings: Annotated[tuple[U16, ...], Seq(limits.MAX_FINDINGS)]
    score: U16


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of an `audit_report` transaction. Auditors agree when `report_root` does."""

    verdict: Verdict
    score: int  # 0 to 100 in steps of 10
    findings: tuple[int, ...]
    report_root: Hash32
    measures: AuditMeasures


def audit(dataset: Hash32, manifest: DatasetManifest, text: bytes) -> Report:
    """Audit a dataset whose text has been verified against its manifest."""
    total = max(1, len(text))
    not_utf8 = duplicates = 0
    seen: set[Hash32] = set()
    for entry in manifest.documents:
        document = text[entry.offset : entry.offset + entry.size]
        try:
            document.decode()
        except UnicodeDecodeError:
            not_utf8 += 1
        key = DOCUMENT.hash(normalized(document))
        duplicates += len(document) if key in seen else 0
        seen.add(key)
    control = (len(text) - len(text.translate(None, _CONTROL))) * PER_MILLE // total
    duplicate = duplicates * PER_MILLE // total
    repeated = _repeated(text)
    secrets = sum(1 for _ in _SECRETS.finditer(text))
    mails = sum(1 for _ in _MAIL.finditer(text))
    flags = {
        Finding.NOT_UTF8: not_utf8 > 0,
        Finding.BINARY: control > 10,
        Finding.ALL_DUPLICATES: duplicate > 900,
        Finding.SOME_DUPLICATES: duplicate > 100,
        Finding.REPETITIVE: repeated > 400,
        Finding.VERY_REPETITIVE: repeated > 800,
        Finding.SECRETS: secrets > 0,
        Finding.PERSONAL: mails * 2000 > total,
        Finding.TINY_DOCUMENTS: total < 200 * len(manifest.documents),
    }
    findings = [finding for finding, found in flags.items() if found]
    hard = any(finding in HARD for finding in findings)
    score = 0 if hard else 100 - sum(PENALTY[finding] for finding in findings)
    score = max(0, score) // SCORE_BUCKET * SCORE_BUCKET
    codes = tuple(int(finding) for finding in findings)
    measures = AuditMeasures(
        AUDITOR_VERSION,
        dataset,
        len(manifest.documents),
        not_utf8,
        control,
        duplicate,
        repeated,
        min(secrets, 2**32 - 1),
        min(mails, 2**32 - 1),
        codes,
        score,
    )
    verdict = Verdict.YES if score >= PASSING_SCORE else Verdict.NO
    return Report(verdict, score, codes, AUDIT.hash(encode(measures)), measures)


def _repeated(text: bytes) -> int:
    """Per mille of the bytes in longer lines that stand in lines which came before."""
    seen: set[bytes] = set()
    total = again = 0
    for line in text.split(b"\n"):
        line = line.strip()
        if len(line) >= MIN_LINE_BYTES:
            total += len(line)
            again += len(line) if line in seen else 0
            seen.add(line)
    return again * PER_MILLE // max(1, total)
