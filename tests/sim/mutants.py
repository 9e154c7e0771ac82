"""Bugs seeded into the core, to show that the oracle sees them: `python -m tests.sim.mutants`.

Each is a rule left out. A simulator that finds none of them proves nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from chain import certificates
from chain.types import View, VoteKind
from consensus.simplex import ballots, core, fetch, messages, outbox, proposals, sign_state, supply
from node import log_frames, wal
from tests.sim.scenario import Plan, simulate

MOST_SEEDS = 2000


def _quorum_of_half(weight: int, total: int) -> bool:
    return 2 * weight > total


def _half_is_a_quorum(weight: int, total: int) -> bool:
    return 2 * weight >= total  # two of four


def _quorum_of_two_thirds(weight: int, total: int) -> bool:
    return 3 * weight >= 2 * total


def _appends_without_sync(self: wal.WriteAheadLog, records: Iterable[bytes]) -> None:
    frame = log_frames.framed(list(records), self._end)
    self._files.write(self._file, self._end, frame)
    self._end += len(frame)


def _keeps_what_it_reads(self: wal.WriteAheadLog, frames: bytes) -> None:
    """What a start has read is taken to be on disk."""
    files = self._files
    if not files.exists(wal.LOG_NAME) or files.read(wal.LOG_NAME) != wal._MAGIC + frames:
        _REAL_REPLACE(self, frames)


def _notarizes_again(self: Any, kind: Any, epoch: Any, view: Any, block_hash: Any) -> Any:
    stored = self._votes.get((epoch, view, kind))
    if kind == VoteKind.NOTARIZE and stored is not None and stored.block_hash != block_hash:
        del self._votes[epoch, view, kind]
    return _REAL_VOTE(self, kind, epoch, view, block_hash)


def _never_has_notarized(self: Any, kind: Any, epoch: Any, view: Any) -> Any:
    return None if kind == VoteKind.NOTARIZE else self._votes.get((epoch, view, kind))


def _considers_every_proposal(real: Any) -> Any:
    def on_proposal(self: core.Simplex, proposal: Any, sender: str) -> None:
        self._proposals.pop(proposal.seal.view, None)
        self._seals.pop(proposal.seal.view, None)
        real(self, proposal, sender)

    return on_proposal


def _signs_below_the_floor(self: Any, epoch: Any, view: Any) -> bool:
    return self._signer is None


def _records_nothing(self: outbox.Outbox, record: object) -> None:
    return None


def _restores_no_votes(self: sign_state.SignState, record: object) -> None:
    return None


def _seals_anything(self: sign_state.SignState, epoch: Any, view: Any, block_hash: Any) -> Any:
    signer = self._signer
    return None if signer is None else (signer.sign_proposal(epoch, view, block_hash), True)


def _signs_anything(self: Any, kind: Any, epoch: Any, view: Any, block_hash: Any) -> Any:
    signer = self._signer
    if signer is None:
        return None
    vote = signer.sign_vote(kind, epoch, view, block_hash)
    self._votes.setdefault((epoch, view, kind), vote)
    return vote, True


def _skips_nullifications(real: Any) -> Any:
    """R2 and R3 without 'nullifications of every view between'."""

    def ground(self: proposals.Chamber, view: View, block_hash: Any = None) -> Any:
        found = real(self, view, block_hash)
        if isinstance(found, proposals.Lack):
            return proposals.Ground(self._tree.tip, self._tree.tip_hash, self.floor_proof, ())
        return found

    return ground


def _judges_blindly(self: proposals.Chamber, proposal: Any, *, of_leader: bool) -> Any:
    parent = self._tree.executed(proposal.block.header.parent)
    return proposals.Lack(None) if parent is None else parent


def _believes_other_epochs(self: core.Simplex, proposal: Any, sender: str) -> None:
    """Only what is of this epoch is verified."""
    for shown in (proposal.parent_notarization, *proposal.nullifications):
        if shown is not None and shown.epoch == self.epoch:
            self._on_certificate(shown, sender)


def _holds_what_is_shown(self: proposals.Chamber, proof: Any) -> bool:
    return True


def _pulls_what_is_shown(real: Any) -> Any:
    def advance(self: core.Simplex, source: str | None = None) -> None:
        found = self._proposals.get(self._view)
        if found is not None and found[1].parent_notarization is not None:
            self._pull(found[1].parent_notarization.block_hash, source)
        real(self, source)

    return advance


def _says_nothing_again(self: core.Simplex) -> None:
    return None


def _never_fetches(self: fetch.Fetcher, *args: object) -> list[messages.Effect]:
    return []


def _no_block_is_last(self: proposals.Chamber, header: Any) -> bool:
    return False


def _stays(self: core.Simplex, view: View, certificate: Any) -> None:
    if view <= self._view + 1:
        _REAL_ENTER(self, view, certificate)


_REAL_ENTER = core.Simplex._enter
_REAL_REPLACE = wal.WriteAheadLog._replace
_REAL_VOTE = sign_state.SignState.vote

MUTANTS: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "quorum of a half": (
        (certificates, "is_quorum", _quorum_of_half),
        (ballots, "is_quorum", _quorum_of_half),
    ),
    "quorum of two thirds and no more": (
        (certificates, "is_quorum", _quorum_of_two_thirds),
        (ballots, "is_quorum", _quorum_of_two_thirds),
    ),
    "a half is a quorum": (
        (certificates, "is_quorum", _half_is_a_quorum),
        (ballots, "is_quorum", _half_is_a_quorum),
    ),
    "the log is not synced": ((wal.WriteAheadLog, "append", _appends_without_sync),),
    "the log is not written anew at a start": (
        (wal.WriteAheadLog, "_replace", _keeps_what_it_reads),
    ),
    "a lost log forbids nothing": ((sign_state.SignState, "abstains", _signs_below_the_floor),),
    "notarize twice": (
        (sign_state.SignState, "vote", _notarizes_again),
        (sign_state.SignState, "signed", _never_has_notarized),
        (core.Simplex, "_on_proposal", _considers_every_proposal(core.Simplex._on_proposal)),
    ),
    "nothing is persisted": ((outbox.Outbox, "record", _records_nothing),),
    "own votes are forgotten in a crash": (
        (sign_state.SignState, "restore", _restores_no_votes),
        (sign_state.SignState, "adopt", lambda self, vote: False),
    ),
    "finalize after nullify": ((sign_state, "_EXCLUDES", {}),),
    "any vote is signed": ((sign_state.SignState, "vote", _signs_anything),),
    "any proposal is sealed": (
        (sign_state.SignState, "seal", _seals_anything),
        (sign_state.SignState, "sealed", lambda self, epoch, view: None),
    ),
    "parents without nullifications between": (
        (proposals.Chamber, "ground", _skips_nullifications(proposals.Chamber.ground)),
        (proposals.Chamber, "judge", _judges_blindly),
    ),
    "unverified proofs are trusted": (
        (core.Simplex, "_learn_from", _believes_other_epochs),
        (proposals.Chamber, "_holds", _holds_what_is_shown),
    ),
    "what an unverified proof names is fetched": (
        (core.Simplex, "_learn_from", _believes_other_epochs),
        (core.Simplex, "_advance", _pulls_what_is_shown(core.Simplex._advance)),
    ),
    "no retransmission": ((supply.Supply, "_say_again", _says_nothing_again),),
    "missing blocks are not fetched": ((fetch.Fetcher, "block", _never_fetches),),
    "an epoch's last block is extended": ((proposals.Chamber, "is_last", _no_block_is_last),),
    "no jump by a higher certificate": ((core.Simplex, "_enter", _stays),),
    "bodies are not checked": ((supply.Supply, "_check_body", lambda self, block, h: None),),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, attribute, value in MUTANTS[name]:
            stack.enter_context(patch.object(owner, attribute, value))
        yield


def caught(name: str, seeds: range) -> tuple[int, str] | None:
    """The first seed under which the mutant shows, and how."""
    with planted(name):
        for seed in seeds:
            try:
                simulate(Plan(seed))
            except Exception as error:
                return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="how many to try at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    width = max(len(name) for name in MUTANTS)
    missed = 0
    with ProcessPoolExecutor(
        args.jobs, initializer=logging.disable, initargs=(logging.WARNING,)
    ) as pool:
        found = pool.map(caught, MUTANTS, [range(args.seeds)] * len(MUTANTS))
        for name, how in zip(MUTANTS, found, strict=True):
            missed += how is None
            seed, report = ("-", "MISSED") if how is None else how
            print(f"{name:{width}}  {seed!s:>5}  {report[:110]}", flush=True)
    print(f"{len(MUTANTS)} mutants, {missed} missed", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
