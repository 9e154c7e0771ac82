"""What all nodes of a simulated network would work out again, although they share a process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from chain import certificates, types
from chain.codec import encode
from chain.errors import VerifyError
from consensus.simplex import outbox, proposals, replica, witness
from tests.reference import consensus as reference
from tests.sim import node, world

ENCODERS = (types, outbox, proposals, replica, node, world)


@contextmanager
def remembered_verdicts() -> Iterator[None]:
    """Verify, encode and hash each thing once: the same, faster. A mutable thing has no hash, so
    that none can be remembered. The core and the oracle remember apart."""
    encoded = functools.lru_cache(1 << 14)(encode)
    with ExitStack() as stack:
        for owner, name in ((certificates, "verify"), (reference, "signed")):
            memory = functools.lru_cache(1 << 16)(getattr(owner, name))
            stack.enter_context(patch.object(owner, name, memory))
        for owner in ENCODERS:
            stack.enter_context(patch.object(owner, "encode", encoded))
        for name in ("verify_vote", "verify_seal", "verify_certificate"):
            stack.enter_context(patch.object(witness, name, _once(getattr(witness, name))))
        yield


def _once(check: Callable[..., None]) -> Callable[..., None]:
    """`check(chain_id, validators, signed)`, once for each set and signed thing of one world."""
    unknown = VerifyError()
    verdicts: dict[tuple[int, object], VerifyError | None] = {}
    sets: list[object] = []  # kept alive: their ids stand for them

    def remembered(chain_id: object, validators: object, signed: object) -> None:
        key = (id(validators), signed)
        found = verdicts.get(key, unknown)
        if found is unknown:
            sets.append(validators)
            try:
                check(chain_id, validators, signed)
                found = None
            except VerifyError as error:
                found = error
            verdicts[key] = found
        if found is not None:
            raise VerifyError(str(found))

    return remembered
