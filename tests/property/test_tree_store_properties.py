"""The state on disk behaves like one dict a height: whatever is committed, dropped, reopened,
pruned or cut off by a crash, every version that is kept reads, lists and proves what it did."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from chain import store_schema
from chain.hashes import ZERO_HASH, Hash32
from chain.store import ChainStore, FinalBlock
from chain.tree import StateTree, verify_state_proof
from node.state_check import StateCheck
from tests.reference import tree as reference
from tests.unit.test_store import make_block, make_certificate

Model = dict[bytes, bytes]
KEYS = [b"%s/%02d" % (p, i) for p in (b"a", b"ab", b"b", b"\xff", b"\xff\xff") for i in range(30)]
VALUES = (b"", b"short", b"x" * 96, b"x" * 97, b"long " * 2000)
STEPS, RUNS = 16, 3


class Crash(Exception):
    """The process is gone: nothing after this statement has happened."""


class Crashing(sqlite3.Connection):
    left = -1

    def execute(self, *arguments: object) -> sqlite3.Cursor:
        self._step()
        return super().execute(*arguments)  # type: ignore[arg-type]

    def executemany(self, *arguments: object) -> sqlite3.Cursor:
        self._step()
        return super().executemany(*arguments)  # type: ignore[arg-type]

    def _step(self) -> None:
        if self.left == 0:
            raise Crash
        self.left -= 1


def crashing(path: Path) -> Crashing:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Crashing)
    db.execute("PRAGMA synchronous = OFF")
    return db


class Run:
    """A store, and a dict for each height that it should have."""

    def __init__(self, path: Path, seed: int, keep: int | None) -> None:
        self.random = random.Random(seed)
        self.path, self.keep = path, keep
        self.models: list[Model] = []
        self.parent = ZERO_HASH
        self.held: list[tuple[int, StateTree]] = []  # by a reader, over whatever comes
        self.store = ChainStore(path, keep)

    def reopen(self) -> None:
        self.held.clear()
        self.store.close()
        self.store = ChainStore(self.path, self.keep)

    def changes(self, model: Model) -> dict[bytes, bytes | None]:
        of = self.random
        share = of.choice((0, 1, 1, 3, 20, len(KEYS)))
        deletes = of.choice((0.0, 0.3, 0.8, 1.0))
        return {
            key: None if of.random() < deletes else of.choice(VALUES) + b"%d" % of.randrange(3)
            for key in of.sample(KEYS, share)
        }

    def blocks(self, count: int) -> tuple[list[FinalBlock], list[Model]]:
        """Some that follow the tip, and the state after each, with rivals that nobody stores."""
        items, models = [], []
        tree, parent = self.store.load_state(), self.parent
        model = self.models[-1] if self.models else {}
        for i in range(count):
            changes = self.changes(model)
            tree.set_many(self.changes(model))
            tree = tree.set_many(changes)
            model = {k: v for k, v in {**model, **changes}.items() if v is not None}
            block = make_block(len(self.models) + i, parent, tree.root)
            parent = block.hash()
            given = tree if self.random.random() < 0.7 else None
            certificate = make_certificate(block)
            items.append(FinalBlock(block, parent, certificate, (), changes, (), given))
            models.append(model)
        return items, models

    def commit(self, count: int) -> None:
        items, models = self.blocks(count)
        self.store.commit_all(items)
        self.models += models
        self.parent = items[-1].block_hash

    def crash(self, count: int, statements: int) -> bool:
        """Commit, but die before a statement; whether it came so far."""
        items, models = self.blocks(count)
        writer = self.store._writer
        assert isinstance(writer, Crashing)
        writer.left = statements
        try:
            self.store.commit_all(items)
        except Crash:
            return True
        finally:
            writer.left = -1
            if writer.in_transaction:
                writer.execute("ROLLBACK")
        self.models += models
        self.parent = items[-1].block_hash
        return False

    def hold(self) -> None:
        height = self.random.randrange(max(0, self.store.oldest_state()), len(self.models))
        tree = self.store.tree_at(height)
        assert tree is not None
        self.held.append((height, tree))

    def check(self) -> None:
        newest = len(self.models) - 1
        assert self.store.tree_at(newest + 1) is None
        assert self.store.load_state().root == reference.root(self.models[-1])
        oldest = self.store.oldest_state()
        if self.keep is None:
            assert oldest == 0
        elif not self.held:
            assert oldest <= max(0, newest - self.keep)
        for height in range(newest + 1):
            tree = self.store.tree_at(height)
            assert (tree is None) == (height < oldest)
            if tree is not None:
                self.check_tree(tree, self.models[height])
        for height, tree in self.held:
            self.check_tree(tree, self.models[height])

    def check_tree(self, tree: StateTree, model: Model) -> None:
        of = self.random
        assert len(tree) == len(model)
        prefix = of.choice((b"", b"a", b"a/", b"ab", b"b/1", b"\xff", b"\xff\xff", b"z"))
        expected = [(k, v) for k, v in sorted(model.items()) if k.startswith(prefix)]
        assert list(tree.items(prefix)) == expected
        assert sorted(tree.subtree(0, 0).leaves()) == sorted(model.items())
        for key in of.sample(KEYS, 3):
            assert tree.get(key) == model.get(key)
            assert verify_state_proof(tree.root, key, model.get(key), tree.prove(key))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No syncing, and statements at which a commit can be cut off."""
    monkeypatch.setattr(store_schema, "connect", crashing)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("keep", [None, 0, 1, 5])
@pytest.mark.parametrize("seed", range(RUNS))
def test_versions_like_dicts(seed: int, keep: int | None, tmp_path: Path) -> None:
    run = Run(tmp_path / "chain.db", seed, keep)
    actions: list[Callable[[], object]] = [
        *[lambda: run.commit(1)] * 4,
        *[lambda: run.commit(run.random.randrange(2, 5))] * 2,
        run.reopen,
        run.hold,
        run.held.clear,
        lambda: run.crash(run.random.randrange(1, 4), run.random.randrange(30)),
    ]
    run.commit(1)
    for _ in range(STEPS):
        run.random.choice(actions)()
        run.check()
    run.store.close()
    with closing(sqlite3.connect(run.path)) as db:
        assert list(StateCheck(db).problems(len(run.models) - 1)) == []


@pytest.mark.usefixtures("fast")
def test_a_crash_at_any_statement(tmp_path: Path) -> None:
    """The tree in memory goes on as if nothing had been tried, and so does the next process."""
    run = Run(tmp_path / "chain.db", 7, 1)
    run.commit(1)
    run.commit(3)
    statements = 0
    while run.crash(2, statements):
        run.check()
        if statements % 2:
            run.reopen()
            run.check()
        statements += 1
    assert statements > 20
    run.check()
    run.store.close()


def test_pages_of_versions_that_went_are_gone(tmp_path: Path) -> None:
    """What is left is what the versions that are kept have: not a page more."""
    run = Run(tmp_path / "chain.db", 3, 2)
    for _ in range(40):
        run.commit(1)
    oldest = run.store.oldest_state()
    assert oldest == 37
    run.check()
    run.store.close()
    with sqlite3.connect(run.path) as db:
        stored = {n for (n,) in db.execute("SELECT number FROM state_pages")}
        versions = db.execute("SELECT height FROM state_versions").fetchall()
        gone = db.execute("SELECT count(*) FROM state_gone WHERE removed <= ?", (oldest,))
        assert gone.fetchone() == (0,)
    db.close()
    assert [h for (h,) in versions] == [37, 38, 39]
    with ChainStore(run.path, 2) as store:
        assert stored == {n for h in (37, 38, 39) for n in store._states.numbers(h)}
    assert Hash32(run.parent)
