"""What the next block would say of a transaction, asked before there is one."""

from __future__ import annotations

from chain.errors import TxError
from chain.execute import Context, Execution
from chain.hashes import ZERO_HASH
from chain.params import Genesis
from chain.rules import Rules
from chain.state import State
from chain.tree import StateTree
from chain.types import Height, PubKey, TimeMs


class Trial:
    """One execution on the latest state serves all that is tried on it; nothing of it is kept."""

    def __init__(self, genesis: Genesis, rules: Rules) -> None:
        self._genesis, self._rules = genesis, rules
        self._on: tuple[StateTree, Execution] | None = None

    def judge(self, state: State, raw: bytes) -> None:
        """Raises TxError with the code of the rule that would refuse it."""
        if self._on is None or self._on[0] is not state.tree:
            self._on = state.tree, self._next_block(state)
        receipt = self._on[1].judge(raw)
        if not receipt.ok:
            raise TxError(receipt.code, receipt.reason)

    def _next_block(self, state: State) -> Execution:
        head = state.head
        ctx = Context(
            Height(head.height + 1),
            TimeMs(head.time_ms + 1),
            head.epoch,
            head.view,
            head.recent_parents[-1] if head.recent_parents else ZERO_HASH,
            PubKey(bytes(32)),
            b"",
        )
        return Execution(state.tree, self._genesis, self._rules, ctx)
