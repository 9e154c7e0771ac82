"""Versions of the documents `model` and `training` (docs/spec/governance.md, "Model versions").

Genesis' are version 1.0.0. A later one is in force for the rounds that anchor after its height; a
round names the version it is of, and all of them stay in the state for whoever replays one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

from chain import governance_records as g
from chain.errors import TxError, VerifyError
from chain.params import Genesis
from chain.records import RoundPhase
from chain.state import State

_VERSION = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
_FIELDS = {"model", "training", "version"}


class ModelChange(IntEnum):
    """What lies between two versions at least, in the words of SemVer."""

    NONE = 0
    PATCH = 1  # how a round trains
    MINOR = 2  # what a model computes; every tensor, and so every tile, keeps its shape and place
    MAJOR = 3  # anything else


@dataclass(frozen=True, slots=True)
class Documents:
    """JSON objects that learning/ interprets."""

    model: Mapping[str, Any]
    training: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Version:
    """A proposed version: its number and its documents."""

    number: tuple[int, int, int]
    documents: Documents


def of_genesis(genesis: Genesis) -> Documents:
    return Documents(genesis.model, genesis.training)


def current(state: State) -> str:
    """The version of rounds that anchor now."""
    held = state.get(g.ModelVersion, g.VERSION)
    return g.FIRST_VERSION if held is None else held.version


def of_round(state: State, number: int) -> str:
    """The version that a round was anchored with; before that, the one in force."""
    if number == state.head.round and state.round().phase == RoundPhase.OPEN:
        return current(state)
    held = state.get(g.RoundVersion, g.round_version_key(number))
    return g.FIRST_VERSION if held is None else held.version


def anchor(state: State, number: int) -> None:
    """Fix the version of a round, as its base is fixed."""
    version = current(state)
    if version != g.FIRST_VERSION:  # which needs no words
        state.put(g.round_version_key(number), g.RoundVersion(version))


def documents(state: State, genesis: Genesis, version: str) -> Documents:
    """The documents of a version that is or was in force."""
    if version == g.FIRST_VERSION:
        return of_genesis(genesis)
    return parse_document(state.need(g.ModelDocuments, g.documents_key(version)).document).documents


def canonical(document: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, no spaces and ASCII escapes: one form for one document."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode()


@lru_cache(maxsize=16)
def parse_document(raw: bytes) -> Version:
    """The version in a proposal's value; VerifyError if it is not canonical JSON of one."""
    try:
        top = json.loads(raw, parse_float=_no_fraction, parse_constant=_no_fraction)
        json.dumps(top, ensure_ascii=False).encode()  # half a surrogate is no text
        if canonical(top) != raw:
            raise VerifyError("expected JSON with sorted keys, no spaces and ASCII escapes")
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"no JSON of integers and text: {error}") from None
    if not isinstance(top, dict) or top.keys() != _FIELDS:
        raise VerifyError(f"expected an object of {', '.join(sorted(_FIELDS))}")
    if not isinstance(top["model"], dict) or not isinstance(top["training"], dict):
        raise VerifyError("model and training: expected objects")
    return Version(parse_version(top["version"]), Documents(top["model"], top["training"]))


def parse_version(text: Any) -> tuple[int, int, int]:
    """Three numbers of a SemVer without pre-release or build; VerifyError for anything else."""
    found = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise VerifyError("version: expected MAJOR.MINOR.PATCH, each of at most 6 digits")
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


def format_version(number: tuple[int, int, int]) -> str:
    return ".".join(map(str, number))


def claimed(old: tuple[int, int, int], new: tuple[int, int, int]) -> ModelChange:
    """Which step a number claims; NONE if it is not a next one of the old."""
    major, minor, patch = old
    steps = {
        (major + 1, 0, 0): ModelChange.MAJOR,
        (major, minor + 1, 0): ModelChange.MINOR,
        (major, minor, patch + 1): ModelChange.PATCH,
    }
    return steps.get(new, ModelChange.NONE)


def check_step(old: str, new: Version, least: ModelChange, why: str) -> None:
    """TxError unless the version's number says at least what its documents change."""
    number = format_version(new.number)
    said = claimed(parse_version(old), new.number)
    if least == ModelChange.NONE:
        raise TxError("no_change", f"{number} has the documents of {old}")
    if least == ModelChange.MAJOR:
        raise TxError(
            "major_change",
            f"{why}: tensors would not fit their tiles any more, and no rule says what becomes of "
            "them; such a model needs a network of its own",
        )
    if said == ModelChange.NONE:
        raise TxError("wrong_version", f"{number} does not follow {old}")
    if said == ModelChange.MAJOR:
        raise TxError("major_change", f"{number} promises what no rule can carry out")
    if said < least:
        raise TxError(
            "wrong_version",
            f"{why}: this is a {least.name.lower()} change, and {number} says {said.name.lower()}",
        )


def put(state: State, document: bytes, height: int) -> str:
    """Put a version in force; its number."""
    version = format_version(parse_document(document).number)
    state.put(g.documents_key(version), g.ModelDocuments(document))
    state.put(g.VERSION, g.ModelVersion(version, height))  # type: ignore[arg-type]
    return version


def _no_fraction(text: str) -> Any:
    raise ValueError(f"{text} is no integer")
